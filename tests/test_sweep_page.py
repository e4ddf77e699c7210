"""The page of a sweep: its numbers against independent ones, and what a browser makes of it."""

import base64
import html
import json
import re
from dataclasses import replace
from urllib.parse import unquote

import numpy as np
import pytest
from scipy import stats

from helpers.chromium import LAPTOP, NARROW, Chromium
from helpers.runs import make_entry, write_finished_run
from tutelage.config import SweeperConfig
from tutelage.report.sweep_charts import MAX_LINES, MAX_POINTS, chart_curves, chart_measures
from tutelage.report.sweep_page import MAX_WARNINGS
from tutelage.report.sweep_report import report_sweep
from tutelage.report.sweep_results import read_sweep
from tutelage.sweeps.folder import Outcome
from tutelage.terminal.intervals import wilson_interval

HOSTILE = ("<b>bold</b>", "</script><script>alert(1)</script>", "\"quoted\" & 'single'")
TEST_IMAGES = 100
RATES = {"0.001": (0.6, 0.65, 0.61), "0.01": (0.8, 0.83, 0.9), "0.1": (0.7,)}  # validation by learning rate and seed


def write_run(folder, overrides, validation, epochs=2, accuracy=None):
    accuracy = validation - 0.05 if accuracy is None else accuracy
    result = {"val/accuracy": validation, "val/loss": 1 - validation, "test/accuracy": accuracy}
    write_finished_run(folder, [make_entry(result)], data={"test": TEST_IMAGES, "labelled": [10, 10]})
    rows = [f"{epoch},{10 * epoch},{validation * epoch / epochs}" for epoch in range(1, epochs + 1)]
    (folder / "metrics.csv").write_text("\n".join(["epoch,step,val/accuracy", *rows, ""]))
    return Outcome(overrides, folder)


def write_rates(root, rates=RATES, more=()):
    return [
        write_run(root / f"run-{rate}-{seed}", [f"optimizer.lr={rate}", f"seed={seed}", *more], value)
        for rate, values in rates.items()
        for seed, value in enumerate(values)
    ]


def write_hostile(root):
    """Return the outcomes of a sweep over values that are no texts for a page, with one run that failed."""
    outcomes = [
        write_run(root / f"run-{number}-{seed}", [f"data.root={value}", f"seed={seed}"], 0.5 + number / 10 + seed / 50)
        for number, value in enumerate(HOSTILE)
        for seed in (0, 1, 2)
    ]
    return [*outcomes, Outcome([f"data.root={HOSTILE[1]}", "seed=3"], None, HOSTILE[1], 1)]


def write_page(outcomes, search=None, command="tutelage train -m <it>"):
    report_sweep(outcomes, command, search)
    (file,) = outcomes[0].path.parent.glob("sweep-*/index.html")
    return file


def read_table(text, name):
    """Return the rows of one of a page's tables, each a list of texts."""
    table = re.search(rf'aria-label="{name}">(.*?)</table>', text, re.DOTALL)[1]
    rows = re.findall(r"<tr.*?</tr>", table, re.DOTALL)
    return [
        [
            html.unescape(re.sub(r"<[^>]*>", "", cell)).strip()
            for cell in re.findall(r"<t[hd].*?</t[hd]>", row, re.DOTALL)
        ]
        for row in rows
    ]


def test_a_leaderboard_has_means_with_students_interval_and_wilsons_of_a_single_run(tmp_path):
    head, *rows = read_table(write_page(write_rates(tmp_path)).read_text(), "Settings")
    assert head[:4] == ["rank", "lr", "validation accuracy", "test accuracy"]
    assert [row[:2] for row in rows] == [["1", "0.01"], ["2", "0.1"], ["3", "0.001"]]
    values = 100 * np.array(RATES["0.01"])
    low, high = stats.t.interval(0.95, 2, values.mean(), stats.sem(values))
    assert rows[0][2] == f"{values.mean():.1f} % ({low:.1f} to {min(100, high):.1f})"
    expected = stats.binomtest(65, TEST_IMAGES).proportion_ci(method="wilson")
    assert rows[1][2:4] == ["70.0 %", f"65.0 % ({100 * expected.low:.1f} to {100 * expected.high:.1f})"]
    assert [row[-2:] for row in rows] == [["3", "0 1 2"], ["1", "0"], ["3", "0 1 2"]]


def test_an_interval_of_shares_ends_at_0_and_100_percent(tmp_path):
    _, row = read_table(write_page(write_rates(tmp_path, {"1": (0.05, 0.99)})).read_text(), "Settings")
    assert row[0] == "52.0 % (0.0 to 100.0)"


def test_times_are_marked_as_the_machines(tmp_path):
    head, *_ = read_table(write_page(write_rates(tmp_path)).read_text(), "Settings")
    assert [name for name in head if "second" in name or "ms" in name] == ["training seconds, this machine"]


def test_every_run_has_a_row_that_leads_to_it(tmp_path):
    outcomes = write_rates(tmp_path)
    outcomes[1] = replace(outcomes[1], path=outcomes[1].path.rename(tmp_path / "50% #1"))
    report = outcomes[0].path / "report" / "index.html"
    report.parent.mkdir()
    report.touch()
    file = write_page(outcomes)
    head, *rows = read_table(file.read_text(), "Runs")
    assert head[:5] == ["run", "lr", "seed", "validation accuracy", "test accuracy"]
    assert sorted(row[1:5] for row in rows) == sorted(
        [rate, str(seed), f"{100 * value:.1f} %", f"{100 * (value - 0.05):.1f} %"]
        for rate, values in RATES.items()
        for seed, value in enumerate(values)
    )
    addresses = re.findall(r'href="([^"#:]*)"', file.read_text())
    assert {(file.parent / unquote(address)).resolve() for address in addresses} == {
        report,
        *(outcome.path for outcome in outcomes[1:]),
    }


def test_a_search_page_shows_nothing_of_the_test_set(tmp_path):
    text = write_page(write_rates(tmp_path), SweeperConfig(_target_="grid")).read_text()
    assert "A search, which has not seen the test set" in text
    assert "test accuracy" not in text.lower()
    assert "seed=0,1,2,3,4 evaluate_test=true" in text


def test_values_of_settings_are_escaped_and_failures_are_named(tmp_path):
    text = write_page(write_hostile(tmp_path)).read_text()
    assert "<b>bold" not in text
    assert "alert(1)</script>" not in text
    assert text.count("<script") == text.count("</script>")
    assert f"no result: data.root={html.escape(HOSTILE[1])} seed=3: {html.escape(HOSTILE[1])}" in text
    _, *rows = read_table(text, "Settings")
    assert {row[1] for row in rows} == set(HOSTILE)


def test_of_many_failures_the_first_stand_above_and_all_below(tmp_path):
    failed = [Outcome(["optimizer.lr=9", f"seed={seed}"], None, f"reason {seed}", 1) for seed in range(9)]
    text = write_page([*write_rates(tmp_path), *failed]).read_text()
    above, below = text.split("<main>")
    assert above.count("no result: ") == MAX_WARNINGS - 1
    assert f"and {9 - MAX_WARNINGS + 1} more" in above
    assert below.count("no result: ") == 9


def test_curves_are_those_of_the_best_runs_with_few_points_each(tmp_path):
    rates = {f"0.{number:02d}": (number / 100, number / 100 + 0.001) for number in range(1, MAX_LINES + 1)}
    outcomes = write_rates(tmp_path, rates)
    outcomes.append(write_run(tmp_path / "long", ["optimizer.lr=1", "seed=0"], 0.95, epochs=5 * MAX_POINTS))
    sweep = read_sweep(outcomes, "it", None)
    (chart,) = chart_curves(sweep)
    assert len(chart.lines) == MAX_LINES
    best = sorted((job.get_result("val/accuracy") for job in sweep.jobs), reverse=True)[:MAX_LINES]
    assert sorted((line.y[-1] for line in chart.lines), reverse=True) == pytest.approx(best)
    long = chart.lines[0]
    assert (long.name, len(long.x), long.x[0], long.x[-1]) == ("lr 1", MAX_POINTS, 10, 50 * MAX_POINTS)
    colors = {}
    for line in chart.lines:
        assert bool(line.name) is (line.color not in colors)  # a colour and an entry in the legend for each setting
        colors.setdefault(line.color, line)
    assert f"the {MAX_LINES} runs with the best val/accuracy of {len(outcomes)}" in chart.caption


def test_measures_over_a_number_join_means_and_have_a_dot_for_each_run(tmp_path):
    validation, test = chart_measures(read_sweep(write_rates(tmp_path), "it", None))  # all have trained for one second
    assert validation.heading == "Validation accuracy over lr"
    means, dots = validation.lines
    assert means.x == [0.001, 0.01, 0.1]
    assert means.y == pytest.approx([np.mean(values) for values in RATES.values()])
    assert list(zip(dots.x, dots.y, strict=True)) == sorted(
        (float(rate), value) for rate, values in RATES.items() for value in values
    )
    assert (dots.is_dots, dots.name, validation.has_log_x) == (True, "", True)
    assert test.lines[0].y == pytest.approx([np.mean(values) - 0.05 for values in RATES.values()])


def test_a_map_is_a_part_of_the_page(tmp_path):
    outcomes = [
        write_run(tmp_path / f"run-{x}{y}", [f"a.x={x}", f"a.y={y}", "seed=0"], (x + y) / 10)
        for x in (1, 2)
        for y in (3, 4)
    ]
    file = write_page(outcomes)
    svg = base64.b64decode(re.search(r"data:image/svg\+xml;base64,([^\"]*)", file.read_text())[1]).decode()
    assert "60.0 %" in svg
    assert [each.name for each in file.parent.iterdir()] == ["index.html"]


def test_a_sweep_over_seeds_alone_has_one_setting_and_a_curve_for_each_seed(tmp_path):
    outcomes = [write_run(tmp_path / f"run-{seed}", [f"seed={seed}"], 0.5 + seed / 10) for seed in (0, 1, 2)]
    (chart,) = chart_curves(read_sweep(outcomes, "it", None))
    assert [(line.name, line.color) for line in chart.lines] == [("seed 0", 0), ("seed 1", 1), ("seed 2", 2)]
    text = write_page(outcomes).read_text()
    assert len(read_table(text, "Settings")) == 2
    interval = wilson_interval(45, TEST_IMAGES)  # no single run's: the mean of three has Student's
    assert f"{100 * interval.low:.1f} to" not in text


SORTED = """
const table = document.querySelector('[aria-label="Settings"] table');
const column = [...table.tHead.rows[0].cells].findIndex((cell) => cell.textContent.trim() === 'lr');
const read = () => [...table.tBodies[0].rows].map((row) => row.cells[column].textContent.trim());
const orders = [read()];
for (let click = 0; click < 2; click++) {
  table.tHead.rows[0].cells[column].querySelector('button').click();
  orders.push(read());
}
JSON.stringify(orders);
"""
SEARCHED = """
const controls = document.querySelector('[aria-label="Runs"]').previousElementSibling;
const search = controls.querySelector('input');
search.value = 'BOLD';
search.dispatchEvent(new Event('input'));
const rows = [...document.querySelectorAll('[aria-label="Runs"] tbody tr')].filter((row) => !row.hidden);
JSON.stringify([rows.map((row) => row.cells[1].textContent), controls.querySelector('output').textContent]);
"""
HOVERED = """new Promise((done) => {
  const figure = document.querySelector('figure.chart');
  const over = figure.querySelector('.u-over');
  const box = over.getBoundingClientRect();
  const at = { clientX: box.left + box.width - 1, clientY: box.top + 9, bubbles: true };
  over.dispatchEvent(new MouseEvent('mouseenter', at));
  over.dispatchEvent(new MouseEvent('mousemove', at));
  setTimeout(() => done(JSON.stringify([...figure.querySelectorAll('.u-legend tr')].map((row) => row.innerText))), 300);
})"""
HIDDEN = """new Promise((done) => {
  const figure = document.querySelectorAll('figure.chart')[1];
  const countBlue = () => {  // in the first line's colour, #0072b2, whole or faint
    const canvas = figure.querySelector('canvas');
    const copy = Object.assign(document.createElement('canvas'), { width: canvas.width, height: canvas.height });
    const context = copy.getContext('2d', { willReadFrequently: true });
    context.drawImage(canvas, 0, 0);
    const { data } = context.getImageData(0, 0, canvas.width, canvas.height);
    let count = 0;
    for (let at = 0; at < data.length; at += 4) {
      const [red, green, blue, opacity] = data.slice(at, at + 4);
      count += opacity > 99 && red < 9 && Math.abs(green - 114) < 9 && Math.abs(blue - 178) < 9;
    }
    return count;
  };
  const before = countBlue();
  figure.querySelectorAll('.u-legend th')[1].click();
  setTimeout(() => done(JSON.stringify([before, countBlue()])), 300);
})"""


def ask(chromium, file, script):
    """Return what a script in a page gives back as JSON; the page must have nothing to complain about."""
    view = chromium.show(file, script=script)
    assert view.complaints == ()
    return json.loads(view.value)


@pytest.mark.slow
def test_a_reader_sorts_and_searches_and_reads_values_off_charts(tmp_path):
    rates = write_page(write_rates(tmp_path / "rates"))
    hostile = write_page(write_hostile(tmp_path / "hostile"))
    with Chromium() as chromium:
        first, falling, rising = ask(chromium, rates, SORTED)
        assert first == ["0.01", "0.1", "0.001"]
        assert falling == ["0.1", "0.01", "0.001"]
        assert rising == falling[::-1]
        assert ask(chromium, hostile, SEARCHED) == [[HOSTILE[0]] * 3, "3 of 9 rows"]
        legend = ask(chromium, rates, HOVERED)
        assert len(legend) == 1 + len(RATES)
        assert legend[1].startswith("lr 0.01")
        for value in RATES["0.01"]:
            assert f"{100 * value:.1f} %" in legend[1]
        before, after = ask(chromium, rates, HIDDEN)
        assert (before > 50, after) == (True, 0)  # the dots of a line's runs go with it


@pytest.mark.slow
def test_a_browser_shows_the_page_of_a_sweep_at_any_width_in_both_schemes_and_on_paper(tmp_path):
    pages = [write_page(write_rates(tmp_path / "rates")), write_page(write_hostile(tmp_path / "hostile"))]
    with Chromium() as chromium:
        for page in pages:
            for options in ({"width": NARROW}, {"width": LAPTOP, "scheme": "dark"}, {"width": 760, "media": "print"}):
                view = chromium.show(page, **options)
                assert (view.complaints, view.content_width) == ((), options["width"])
            for scheme in ("light", "dark"):
                assert chromium.find_faults(page, scheme) == []
