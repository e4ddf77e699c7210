"""Pages: one file each, which a browser shows without a complaint, in light and dark, wide and narrow, and on paper."""

import base64
import csv
import io
import re

import matplotlib.pyplot as plt
import numpy as np
import pytest
from PIL import Image

from helpers import chromium
from helpers.chromium import LAPTOP, NARROW, WIDE, Chromium, find_chromium
from helpers.images import random_images, smooth_image
from helpers.runs import only_run, run
from tutelage.data import Predictions, Source
from tutelage.data.source import empty_indices
from tutelage.inference.evaluate import Evaluation
from tutelage.inference.evaluation_page import write_evaluation_page
from tutelage.inference.evaluation_text import MAX_CLASSES, print_evaluation
from tutelage.report.answers import bin_by_confidence
from tutelage.report.mistakes import MISTAKES
from tutelage.report.palette import DARK, LIGHT
from tutelage.report.templating import encode_image, write_html
from tutelage.report.vector import encode_figure

HOSTILE = (
    "<script>alert(1)</script>",
    '猫 & "dog"',
    "Straßenbahnhaltestellenschild" * 3,
    r"$\frac{",
    "[red]it's[/red]",
)
SOME = 200  # images


def make_evaluation(classes=HOSTILE, count=SOME, side=100, names=None):
    """Return what a network of some skill answers on random images."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, len(classes), count)
    logits = rng.normal(0, 1, (count, len(classes))) + 2 * np.eye(len(classes))[labels]
    probabilities = (np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)).astype(np.float32)
    parts = {part: empty_indices() for part in ("train", "val", "unlabelled")}
    names = names or [f"{'a folder/' * 9}{number}.png" for number in range(count)]
    few = [smooth_image((side, side, 3), seed) for seed in range(4)]
    images = [few[number % len(few)] for number in range(count)]
    source = Source(images, labels, tuple(classes), names=names, test=np.arange(count), **parts)
    predictions = Predictions(probabilities, labels, np.arange(count))
    return Evaluation(tuple(classes), source, predictions, {"</p>": 2}, ("<b>",), ("a note",))


def write(folder, evaluation, heading="last week's <i>"):
    file = folder / "page" / "index.html"
    notes = [*evaluation.describe_classes(), *evaluation.notes]
    write_evaluation_page(file, evaluation, heading, ["a-run", "b-run"], notes, 0.9, {"command": "evaluate <x>"})
    return file


def rgb(colour):
    return tuple(bytes.fromhex(colour.removeprefix("#")))


def corner(view):
    """Return the colour of a screenshot's first pixel, which is the page's own."""
    return Image.open(io.BytesIO(view.screenshot)).convert("RGB").getpixel((0, 0))


@pytest.mark.slow
def test_a_browser_shows_a_page_on_a_phone_in_the_dark_without_a_complaint(tmp_path):
    file = write(tmp_path, make_evaluation())
    with Chromium() as browser:
        view = browser.show(file, NARROW, "dark")
    assert view.complaints == ()
    assert view.content_width == NARROW
    assert corner(view) == rgb(DARK["paper"])
    for text in (*HOSTILE, "last week's <i>", "</p> (2)", "evaluate <x>"):
        assert text in view.text


@pytest.mark.slow
def test_a_browser_shows_pages_at_any_width_in_both_schemes_and_on_paper(tmp_path):
    pages = [
        write(tmp_path / "hostile", make_evaluation()),
        write(tmp_path / "many", make_evaluation([f"kind {number}" for number in range(150)], 900)),
        write(tmp_path / "small", make_evaluation(("cat", "dog"), 9, side=28)),
    ]
    with Chromium() as browser:
        for page in pages:
            for width, scheme, colours in ((NARROW, "light", LIGHT), (LAPTOP, "light", LIGHT), (WIDE, "dark", DARK)):
                view = browser.show(page, width, scheme)
                assert (view.complaints, view.content_width, corner(view)) == ((), width, rgb(colours["paper"]))
            paper = browser.show(page, 760, "dark", media="print")
            assert (paper.complaints, corner(paper)) == ((), rgb(LIGHT["paper"]))


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    """Return the report of a tiny run on files, whose classes have names that break pages which do not escape them."""
    folder = tmp_path_factory.mktemp("hostile")
    rows = [("path", "label", "split")]
    for number, image in enumerate(random_images(80, 12, 3)):
        split = "train" if number < 50 else "test"
        file = folder / f"<i>{number}'&.png"
        Image.fromarray(image).save(file)
        rows.append((file.name, HOSTILE[number % len(HOSTILE)], split))
    with (folder / "list.csv").open("w", newline="") as table:
        csv.writer(table).writerows(rows)
    data = ["data=table", f"data.root={folder / 'list.csv'}", "data.image_size=12", "data.labels_per_class=2"]
    options = ["model=perceptron", "recipe=none", "debug=tiny", "callbacks.report=true", "callbacks.shifts=[crop]"]
    assert run(folder / "outputs", "strategy=noisy_student", *data, *options) == 0
    return only_run(folder / "outputs") / "report" / "index.html"


@pytest.mark.slow
def test_a_report_of_hostile_names_is_shown_at_any_width_in_both_schemes_and_on_paper(report):
    with Chromium() as browser:
        for width, scheme, colours in ((NARROW, "dark", DARK), (LAPTOP, "light", LIGHT), (WIDE, "dark", DARK)):
            view = browser.show(report, width, scheme)
            assert (view.complaints, view.content_width, corner(view)) == ((), width, rgb(colours["paper"]))
            for text in HOSTILE:
                assert text in view.text
        paper = browser.show(report, 760, "dark", media="print")
        assert (paper.complaints, paper.content_width, corner(paper)) == ((), 760, rgb(LIGHT["paper"]))
    assert report.stat().st_size < 1_000_000


SORT = """(() => {
  const table = document.querySelector("#classes table");
  const shown = () => [...table.tBodies[0].rows].map((row) => parseFloat(row.cells[2].textContent));
  const before = shown();
  table.querySelectorAll("button.sort")[2].click();
  const falling = shown();
  table.querySelectorAll("button.sort")[2].click();
  return [before, falling, shown()];
})()"""
FILTER = """(() => {
  const section = document.querySelector("#mistakes");
  const tiles = () => [...section.querySelectorAll("li")].filter((tile) => !tile.hidden);
  const [order, shows] = section.querySelectorAll("select");
  const all = tiles().length;
  shows.value = shows.options[1].value;
  shows.dispatchEvent(new Event("change", { bubbles: true }));
  const some = tiles().map((tile) => JSON.parse(tile.dataset.keys).shows);
  shows.value = "";
  shows.dispatchEvent(new Event("change", { bubbles: true }));
  order.value = "file";
  order.dispatchEvent(new Event("change", { bubbles: true }));
  return [all, shows.options[1].value, some, tiles().map((tile) => JSON.parse(tile.dataset.keys).file)];
})()"""
HOVER = """(async () => {
  const figure = document.querySelector("#curves figure.chart");
  const over = figure.querySelector(".u-over");
  const area = over.getBoundingClientRect();
  const place = { bubbles: true, clientX: area.right - 2, clientY: area.top + 9 };
  over.dispatchEvent(new MouseEvent("mouseenter", place));
  over.dispatchEvent(new MouseEvent("mousemove", place));
  await new Promise((done) => setTimeout(done, 200));
  return [...figure.querySelectorAll(".u-value")].map((value) => value.textContent);
})()"""


@pytest.mark.slow
def test_a_reader_sorts_filters_and_sees_values_under_the_cursor(report):
    with Chromium() as browser:
        before, falling, rising = browser.show(report, script=SORT).value
        assert sorted(before) == rising == falling[::-1]
        count, chosen, shown, files = browser.show(report, script=FILTER).value
        assert 0 < len(shown) < count
        assert set(shown) == {chosen}
        assert len(files) == count
        numbers = [int(re.search(r"(\d+)'&\.png$", file)[1]) for file in files]
        assert numbers == sorted(numbers)
        step, *losses = browser.show(report, script=HOVER).value
        assert float(step) > 0
        assert any(re.fullmatch(r"\d+(\.\d+)?", loss) for loss in losses)


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_no_serious_fault(report, tmp_path, scheme):
    pages = [
        report,
        write(tmp_path, make_evaluation()),
        write(tmp_path, make_evaluation([f"kind {n}" for n in range(40)])),
    ]
    with Chromium() as browser:
        assert [fault for page in pages for fault in browser.find_faults(page, scheme)] == []


@pytest.mark.slow
def test_the_browser_of_the_tests_hears_what_a_page_complains_about(tmp_path):
    page = tmp_path / "bad.html"
    page.write_text("<script>console.error('alas'); nothing()</script><img src=none.png><p style='width:9999px'>text")
    with Chromium() as browser:
        view = browser.show(page, NARROW, script="document.querySelector('p').textContent = 'clicked'")
    complaints = "\n".join(view.complaints)
    for complaint in ("alas", "nothing is not defined", "ERR_FILE_NOT_FOUND"):
        assert complaint in complaints
    assert view.content_width > NARROW
    assert view.text == "clicked"
    assert view.value == "clicked"


@pytest.mark.parametrize(("ci", "outcome"), [("true", pytest.fail.Exception), ("", pytest.skip.Exception)])
def test_without_chromium_tests_are_skipped_but_fail_in_ci(monkeypatch, ci, outcome):
    monkeypatch.setenv("PATH", "")
    monkeypatch.setenv("CI", ci)
    with pytest.raises(outcome, match="apt-get install chromium"):
        find_chromium()
    monkeypatch.setattr(chromium, "AXE", chromium.Path("nowhere"))
    with pytest.raises(outcome, match="npm install"):
        chromium.find_axe()


def test_a_page_is_one_file_without_anything_from_elsewhere(tmp_path):
    text = write(tmp_path, make_evaluation()).read_text()
    assert [file.name for file in (tmp_path / "page").iterdir()] == ["index.html"]
    assert {source.partition(":")[0] for source in re.findall(r'(?:src|href)="([^"]*)"', text)} == {"data"}
    assert "url(" not in text


def test_a_page_of_very_many_images_and_mistakes_stays_small(tmp_path):
    evaluation = make_evaluation(("cat", "dog"), 3000, side=300)
    assert len(evaluation.find_mistakes(10**6)) > 4 * MISTAKES
    file = write(tmp_path, evaluation)
    assert file.read_text().count("<li ") == MISTAKES
    assert file.stat().st_size < 1_000_000


def test_bytes_that_are_no_text_become_escapes(tmp_path):
    write_html(tmp_path / "page.html", "a\udcffb")
    assert (tmp_path / "page.html").read_text() == r"a\udcffb"


def test_the_most_confident_mistakes_and_the_largest_confusions_come_first():
    evaluation = make_evaluation(("cat", "dog", "bird"))
    probabilities, labels = evaluation.predictions.probabilities, evaluation.predictions.labels
    mistakes = evaluation.find_mistakes(5)
    wrong = [i for i in range(SOME) if probabilities[i].argmax() != labels[i]]
    assert mistakes.tolist() == sorted(wrong, key=lambda i: -probabilities[i].max())[:5]
    pairs = {}
    for i in wrong:
        pair = evaluation.classes[labels[i]], evaluation.classes[probabilities[i].argmax()]
        pairs[pair] = pairs.get(pair, 0) + 1
    found = evaluation.find_confusions(100)
    assert {(each.truth, each.predicted): each.count for each in found} == pairs
    assert [each.count for each in found] == sorted(pairs.values(), reverse=True)


def test_the_terminal_shows_names_as_they_are_and_of_many_classes_the_worst(capsys):
    print_evaluation(make_evaluation(), ["a note"], 0.9)
    printed = capsys.readouterr().out
    for text in (
        *HOSTILE,
        "note: a note",
        "that it has learned from: 90.0 %",
    ):
        assert text in printed
    print_evaluation(make_evaluation([f"kind {number}" for number in range(60)], 900), [], None)
    lines = capsys.readouterr().out.splitlines()
    recalls = [float(line.split()[3]) for line in lines if line.startswith("kind ") and "taken" not in line]
    assert recalls == sorted(recalls)
    assert len(recalls) == MAX_CLASSES


def test_bins_of_confidence_have_every_image_once():
    evaluation = make_evaluation(("cat", "dog"))
    bins = bin_by_confidence(evaluation.predictions)
    assert (bins.known.sum(), bins.right.sum()) == (SOME, round(evaluation.accuracy.value * SOME))
    assert (bins.right <= bins.known).all()


def test_a_drawing_has_the_colours_of_the_page_and_is_the_same_each_time():
    def draw():
        figure, axes = plt.subplots()
        axes.set_title("猫", color="#333333")
        return encode_figure(figure)

    first, again = draw(), draw()
    assert first == again
    svg = base64.b64decode(first.partition(",")[2]).decode()
    assert "猫" in svg  # text stays text
    assert "#333333" not in svg
    for colours in (LIGHT, DARK):
        assert f"--ink: {colours['ink']}" in svg


@pytest.mark.parametrize(
    ("shape", "kind", "size"), [((28, 28, 1), "png", (28, 28)), ((300, 600, 3), "jpeg", (224, 112))]
)
def test_images_are_embedded_as_they_are_if_small_and_shrunk_if_large(shape, kind, size):
    image = smooth_image(shape)
    head, _, content = encode_image(image).partition(",")
    assert head == f"data:image/{kind};base64"
    picture = Image.open(io.BytesIO(base64.b64decode(content)))
    assert picture.size == size
    if kind == "png":
        assert (np.asarray(picture) == image.squeeze(-1)).all()
