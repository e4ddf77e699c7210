"""``tutelage evaluate RUN data.root=OTHER``: a network's numbers on pictures that its run has never seen."""

import csv
import html
import json
import re
import shlex
import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image
from scipy.stats import binomtest
from sklearn.metrics import accuracy_score, confusion_matrix, precision_recall_fscore_support

from helpers.configs import rgb_config
from helpers.images import write_images
from helpers.runs import only_run, run
from tutelage.app import evaluate as command
from tutelage.cli import main
from tutelage.data import DataRuntime, data_module
from tutelage.errors import UserError
from tutelage.inference.evaluate import find_own_accuracy
from tutelage.inference.evaluation_page import name_page
from tutelage.inference.other_data import compose_other_data, describe_own_data, read_evaluation_set
from tutelage.models import load_classifier, save_classifier
from tutelage.runs import Health, RunFolder, inspect_run, read_config, read_record, weights_files
from tutelage.runs.integrity import describe_files, list_files
from tutelage.runs.predictions import read_predictions

CLASSES = tuple("0123456789")
FEW = ("3", "9")  # classes whose labels in a folder of their own are not the network's


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    outputs = tmp_path_factory.mktemp("run")
    assert run(outputs, "model=perceptron", "debug=tiny") == 0
    return only_run(outputs)


@pytest.fixture(scope="module")
def digits(finished, tmp_path_factory):
    """The run's own test pictures as PNG files in a folder of each class."""
    folder, data = tmp_path_factory.mktemp("digits"), data_module(read_config(RunFolder(finished)).data)
    for index in data.splits.test.tolist():
        file = folder / data.classes[data.source.labels[index]] / f"{index}.png"
        file.parent.mkdir(exist_ok=True)
        Image.fromarray(data.source.images[index].squeeze(-1)).save(file)
    return folder


@pytest.fixture
def measure(finished, capsys, monkeypatch):
    """Measure the run with ``--json`` but without a page, and return what was printed."""
    monkeypatch.setattr("tutelage.inference.evaluation_page.write_evaluation_page", lambda *parts: None)

    def evaluate(*words, runs=(finished,)):
        command.evaluate([*map(str, runs), *words, "--json"])
        return json.loads(capsys.readouterr().out)

    return evaluate


def read_rows(found):
    return pq.read_table(found["predictions"]).to_pydict()


def test_the_runs_own_test_pictures_in_files_give_its_own_test_accuracy(finished, digits, measure):
    folder, stored = RunFolder(finished), (finished / "run.json").read_bytes()
    found = measure(f"data.root={digits}")
    record, own = json.loads(stored), read_predictions(folder.test_file)
    assert found["accuracy"] == pytest.approx(record["result"]["test/accuracy"], abs=1e-6)
    assert found["calibration_error"] == pytest.approx(record["result"]["test/calibration_error"], abs=2e-6)
    rows = read_rows(found)
    probabilities = dict(zip([int(Path(path).stem) for path in rows["path"]], rows["probabilities"], strict=True))
    for index, expected in zip(own.indices.tolist(), own.probabilities, strict=True):
        np.testing.assert_allclose(probabilities[index], expected, atol=1e-6)
    assert (finished / "run.json").read_bytes() == stored
    assert inspect_run(folder, check_digests=True).health is Health.WHOLE
    assert list_files(folder) == record["files"]
    assert Path(found["page"]).is_relative_to(folder.report)


def test_the_numbers_are_those_of_other_libraries(digits, measure):
    found = measure(f"data.root={digits}")
    rows = read_rows(found)
    truth, predicted = rows["truth"], rows["predicted"]
    precision, recall, _, images = precision_recall_fscore_support(
        truth, predicted, labels=list(CLASSES), zero_division=np.nan
    )
    assert found["accuracy"] == accuracy_score(truth, predicted)
    correct = sum(map(str.__eq__, truth, predicted))
    interval = binomtest(correct, len(truth)).proportion_ci(method="wilson")
    np.testing.assert_allclose(found["interval"], interval)
    assert found["confusion"] == confusion_matrix(truth, predicted, labels=list(CLASSES)).tolist()
    for number, score in enumerate(found["classes"]):
        assert (score["name"], score["images"]) == (CLASSES[number], images[number])
        for value, expected in ((score["recall"], recall[number]), (score["precision"], precision[number])):
            assert np.isnan(expected) if value is None else value == pytest.approx(expected)
    confidence = np.max(rows["probabilities"], axis=1)
    bins = np.ceil(confidence * 15)  # Guo et al. 2017: 15 bins, closed on the right
    gaps = [
        np.mean(bins == each) * abs(confidence[bins == each].mean() - np.mean(np.equal(truth, predicted)[bins == each]))
        for each in np.unique(bins)
    ]
    assert found["calibration_error"] == pytest.approx(sum(gaps), abs=1e-5)


def test_classes_are_matched_by_name_and_missing_and_unknown_ones_are_named(digits, measure, tmp_path):
    whole = read_rows(measure(f"data.root={digits}"))
    for name in FEW:
        shutil.copytree(digits / name, tmp_path / name)
    write_images(tmp_path / "cat", 3)
    found = measure(f"data.root={tmp_path}")
    assert found["unknown_classes"] == {"cat": 3}
    assert found["missing_classes"] == [name for name in CLASSES if name not in FEW]
    expected = [predicted == truth for predicted, truth in zip(whole["predicted"], whole["truth"], strict=True)]
    expected = [right for right, truth in zip(expected, whole["truth"], strict=True) if truth in FEW]
    assert (found["images"], found["accuracy"]) == (len(expected), np.mean(expected))
    assert [score["recall"] is None for score in found["classes"]] == [name not in FEW for name in CLASSES]


def test_a_table_of_test_rows_of_one_class_is_measured(digits, measure, tmp_path):
    files = sorted((digits / "3").iterdir())
    with (tmp_path / "new.csv").open("w", newline="") as out:
        csv.writer(out).writerows([("path", "label", "split"), *((file, "3", "test") for file in files)])
    found = measure(f"data.root={tmp_path / 'new.csv'}")
    assert (found["images"], found["dataset"]) == (len(files), "tutelage.data.Table")
    assert measure("data=table", f"data.root={tmp_path / 'new.csv'}") == found


def test_the_test_part_of_a_folder_is_the_test_set(digits, measure, tmp_path):
    shutil.copytree(digits / "3", tmp_path / "test" / "3")
    write_images(tmp_path / "test-dark" / "3", 2)
    alone = measure(f"data.root={tmp_path}")
    assert any("test-dark/ is left out" in note for note in alone["notes"])
    write_images(tmp_path / "train" / "9", 2)
    write_images(tmp_path / "train" / "3", 2)
    assert measure(f"data.root={tmp_path}")["images"] == alone["images"] == len(list((digits / "3").iterdir()))


def test_a_published_dataset_is_a_test_set_too(finished, measure):
    found = measure("data=digits", "data.limit=200")
    assert (found["dataset"], found["images"]) == ("tutelage.data.Digits", 200)
    assert found["accuracy"] == pytest.approx(
        json.loads((finished / "run.json").read_text())["result"]["test/accuracy"]
    )


def test_several_runs_are_the_mean_of_their_probabilities(finished, digits, measure, tmp_path):
    other = shutil.copytree(finished, tmp_path / "runs" / "other")
    record = read_record(RunFolder(other))
    (file,) = weights_files(RunFolder(other), record).values()
    network = load_classifier(file)
    network.head.weight.data = network.head.weight.data.roll(1, dims=0)
    save_classifier(network, network.model_config, file)
    record["stages"][0]["files"] = describe_files(RunFolder(other), [file])
    (other / "run.json").write_text(json.dumps(record))
    small = tmp_path / "few"
    for name in FEW:
        shutil.copytree(digits / name, small / name)
    single = [
        np.array(read_rows(measure(f"data.root={small}", runs=[each]))["probabilities"]) for each in (finished, other)
    ]
    assert not np.allclose(*single)
    both = measure(f"data.root={small}", runs=[finished, other])
    np.testing.assert_allclose(read_rows(both)["probabilities"], np.mean(single, axis=0), atol=1e-6)
    assert Path(both["page"]).is_relative_to(finished / "report")
    assert both["runs"] == [str(finished), str(other)]


def test_the_command_prints_what_the_page_shows(finished, digits, tmp_path, capsys):
    shutil.copytree(digits / "3", tmp_path / "week 47" / "3")
    words = [str(finished), f"data.root={tmp_path / 'week 47'}", "--stage", "supervised", "--config-dir", str(tmp_path)]
    command.evaluate(words)
    *lines, before_last, last = capsys.readouterr().out.splitlines()
    page = Path(last.removeprefix("page: "))
    assert f'<dd class="value">{lines[0].split()[1]} %</dd>' in page.read_text()
    assert before_last.startswith("note: classes of the network without an image here: 0, 1, 2, 4, 5 and 4 more")
    assert page.parent.name.startswith("evaluate-week-47-")
    (typed,) = re.findall(r"tutelage evaluate [^<]*", html.unescape(page.read_text()))
    assert shlex.split(typed) == ["tutelage", "evaluate", *words]
    assert sorted(file.name for file in page.parent.iterdir()) == ["index.html", "predictions.parquet"]


def test_no_two_measurements_have_one_page_and_each_keeps_its_own():
    def name(*words, run="A", **changes):
        runs = [RunFolder(Path(each)) for each in (run, *words)]
        stage = changes.pop("stage", None)
        return name_page(runs, stage, None, rgb_config(root="x/data").model_copy(update=changes))

    names = [
        name(),
        name(root="y/data"),
        name(limit=5),
        name(stage="teacher"),
        name("B"),
        name(target="tutelage.data.SVHN"),
        name(on_bad_image="skip"),
        name(fit="pad"),
    ]
    assert len(set(names)) == len(names)
    assert name() == name(num_workers=3) == name(run="moved/A") == name(root=str(Path("x/data").resolve()))
    assert name("B", "C") == name("C", "B")


def test_unreadable_pictures_stop_it_or_are_counted(digits, measure, tmp_path):
    shutil.copytree(digits / "3", tmp_path / "test" / "3")
    (tmp_path / "test" / "3" / "broken.png").write_bytes(b"no picture")
    with pytest.raises(
        UserError, match=r"cannot be read \(listed above\): repair .* or leave them out with data.on_bad"
    ):
        measure(f"data.root={tmp_path}")
    assert measure(f"data.root={tmp_path}", "data.on_bad_image=skip")["unreadable_images"] == 1


def test_a_network_measured_on_what_it_has_learned_from_says_so(tmp_path):
    for name in ("cat", "dog"):
        write_images(tmp_path / name, 2)
    config = rgb_config(_target_="tutelage.data.ImageFolder", root=str(tmp_path))
    record = {"identity": {"data": {"fingerprint": data_module(config).fingerprint()}}}
    images = read_evaluation_set(config, DataRuntime(only_test=True))
    assert len(describe_own_data("mine", record, images)) == 1
    write_images(tmp_path / "bird", 1)
    images = read_evaluation_set(config, DataRuntime(only_test=True))
    assert describe_own_data("mine", record, images) == ()


def test_pictures_are_brought_to_size_as_the_network_sees_them(tmp_path):
    seen = rgb_config(_target_="tutelage.data.ImageFolder", fit="pad", background=[0, 0, 9], white=4095, num_workers=3)
    config = compose_other_data(seen, [f"data.root={tmp_path}"], ())
    for key in ("image_size", "channels", "mean", "std", "fit", "background", "white", "num_workers"):
        assert getattr(config, key) == getattr(seen, key), key
    assert (config.labels, config.pack, config.validation) == (None, False, "none")
    published = compose_other_data(seen, ["data=digits"], ())
    assert (published.target, published.image_size, published.channels) == ("tutelage.data.Digits", 16, 3)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["data.root=nowhere"], "data.root=nowhere: no such folder"),
        (["data=digitz"], "data=digitz: no such option"),
        (["data.root=photos", "data.image_size=9"], "data.image_size: no key of a test set; there are data, data.root"),
        (["data.root=photos"], r"knows none of its classes \(cat, dog\), but 0, 1, 2, 3, 4 and 5 more; name folders"),
        (["data.root=photos", "--stage=nobody"], "no network of a stage 'nobody'; there are supervised"),
        (["data.root=photos", "--task=2"], "task 2: .* has one task"),
        (
            ["data.root=photos", "--task=two"],
            "evaluate: argument --task: invalid int value: 'two'; 'tutelage evaluate --help' says what it takes",
        ),
        (["--json"], "--stage, --task and --json go with another test set"),
        (["RUN", "data.root=photos"], "takes each run once: the same one is named twice"),
        (["photos/best.ckpt", "data.root=photos"], "best.ckpt: a file; this needs the folder of a finished run"),
        (["photos/best.ckpt"], "best.ckpt: a file; this needs the folder of a finished run"),
    ],
)
def test_what_a_user_got_wrong_is_an_error_of_one_line(finished, tmp_path, monkeypatch, words, message):
    monkeypatch.chdir(tmp_path)
    for name in ("cat", "dog"):
        write_images(tmp_path / "photos" / name, 1)
    (tmp_path / "photos" / "best.ckpt").touch()
    with pytest.raises(UserError, match=message) as caught:
        command.evaluate([str(finished), *(str(finished) if word == "RUN" else word for word in words)])
    assert "\n" not in str(caught.value)


def test_shifts_and_stored_predictions_are_asked_for_as_before(monkeypatch):
    asked = []
    for name in ("evaluate_shifts", "evaluate_ensemble", "evaluate_elsewhere"):
        monkeypatch.setattr(command, name, lambda request, name=name: asked.append(name.removeprefix("evaluate_")))
    for words in (
        ["A"],
        ["A", "shift=crop", "data.root=moved"],
        ["A", "B"],
        ["A", "data.root=x"],
        ["A", "B", "data=x"],
    ):
        command.evaluate(words)
    assert asked == ["shifts", "shifts", "ensemble", "elsewhere", "elsewhere"]


@pytest.mark.parametrize(("name", "flag"), [("evaluate", "--json"), ("export", "--out DIR"), ("predict", "--top K")])
def test_a_command_s_help_has_its_options_and_examples(name, flag, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["tutelage", name, "--help"])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 0
    printed = capsys.readouterr().out
    assert re.search(rf"^  {flag} +\S", printed, re.MULTILINE)
    assert f"\n  tutelage {name} RUN " in printed


def test_torch_is_set_up_as_in_training(digits, measure, monkeypatch):
    asked = []
    monkeypatch.setattr("tutelage.inference.classifier.set_up_torch", asked.append)
    measure(f"data.root={digits}", "data.limit=10")
    assert len(asked) == 1


def test_of_the_runs_own_test_set_the_pictures_that_it_has_learned_from_do_not_count(tmp_path):
    stage = {"name": "only", "kind": "train", "control": False, "result": {"test/accuracy": 0.9}}
    record = {"stages": [stage], "result": stage["result"]}
    assert find_own_accuracy([(RunFolder(tmp_path), record)], None, None) == 0.9
    stage["result"]["test-without-duplicates/accuracy"] = 0.7
    assert find_own_accuracy([(RunFolder(tmp_path), record)], None, None) == 0.7
    assert find_own_accuracy([(RunFolder(tmp_path), record)], None, 2) is None
