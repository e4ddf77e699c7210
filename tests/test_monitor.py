"""``callbacks.monitor``, the metric that selects the best weights, and the metrics in a table beside accuracy."""

import json

import pytest
import torch
from sklearn.metrics import accuracy_score, balanced_accuracy_score, f1_score

from helpers.runs import only_run, run, tables
from tutelage.config.compose import compose
from tutelage.data import UNKNOWN
from tutelage.errors import UserError
from tutelage.runs import run_identity
from tutelage.runs.callbacks import EpochTable
from tutelage.sweeps.search import NOT_IN_NAME
from tutelage.terminal.table import build_header, build_notes, build_rows

BALANCED = "callbacks.monitor=val/balanced_accuracy"
# Of 6 images of class 0 and 2 of class 1, the network's predictions at the end of each of three epochs.
LABELS = [0, 0, 0, 0, 0, 0, 1, 1]
EPOCHS = [[0, 0, 0, 1, 1, 1, 1, 1], [0, 0, 0, 0, 0, 0, 0, 0], [0, 0, 0, 0, 1, 1, 1, 1]]


def validate(table: EpochTable, predicted: list[int], step: int, monkeypatch) -> dict[str, float]:
    """Let a table see a validation in two batches, the second filled up with an image without a label."""
    scores = torch.nn.functional.one_hot(torch.tensor([*predicted, 0]), 2).float()
    labels = torch.tensor([*LABELS, UNKNOWN])
    for part in (slice(0, 3), slice(3, None)):
        table.on_validation_batch_end(None, None, {"logits": scores[part], "labels": labels[part]}, None, 0)
    seen = {}
    monkeypatch.setattr(table, "_end_epoch", lambda trainer, metrics: seen.update(metrics))
    trainer = type("Trainer", (), {"global_step": step, "logged_metrics": {}})
    table.on_validation_epoch_end(trainer, None)
    return seen


def test_the_metrics_of_a_validation_are_scikit_learns(tmp_path, monkeypatch):
    for predicted in EPOCHS:
        metrics = validate(EpochTable(tmp_path / "metrics.csv", 1), predicted, 1, monkeypatch)
        assert metrics["val/accuracy"] == pytest.approx(accuracy_score(LABELS, predicted))
        assert metrics["val/balanced_accuracy"] == pytest.approx(balanced_accuracy_score(LABELS, predicted))
        assert metrics["val/f1"] == pytest.approx(f1_score(LABELS, predicted, average="macro"))


@pytest.mark.parametrize(
    ("monitor", "best"), [("val/accuracy", [1, 2]), ("val/balanced_accuracy", [1, 3]), ("val/f1", [1, 3])]
)
def test_the_best_epoch_is_by_the_monitored_metric_also_after_a_resume(monitor, best, tmp_path, monkeypatch):
    saved, state = [], None
    for step, predicted in enumerate(EPOCHS, start=1):
        table = EpochTable(tmp_path / "metrics.csv", 1, lambda step=step: saved.append(step), monitor=monitor)
        if state is not None:
            table.load_state_dict(state)
        validate(table, predicted, step, monkeypatch)
        state = table.state_dict()
    assert saved == best
    assert state["best"]["step"] == best[-1]


def test_a_run_keeps_the_weights_of_the_epoch_with_the_best_monitored_metric(outputs):
    def reported() -> None:
        from tutelage.runs import callbacks

        values = iter([0.1, 0.2, 0.3])

        def metrics(logits, labels):
            value = next(values)
            return {"val/loss": 1.0, "val/accuracy": value, "val/balanced_accuracy": 1 - value, "val/f1": 0.5}

        callbacks._validation_metrics = metrics

    short = ("model=perceptron", "data.limit=40", "data.batch_size=8", "schedule.epochs=3", "data.validation=inside")
    assert run(outputs, *short, BALANCED, "evaluate_test=false", before=reported) == 0
    (folder,) = [only_run(outputs)]
    record = json.loads((folder / "run.json").read_text())
    assert [row["val/accuracy"] for row in tables(folder)["metrics.csv"]] == ["0.1", "0.2", "0.3"]
    assert record["result"]["val/balanced_accuracy"] == 0.9
    assert record["identity"]["callbacks"] == {"monitor": "val/balanced_accuracy"}
    assert "the weights of the best epoch by val/balanced_accuracy are kept" in " ".join(build_notes(record))
    assert "val balanced" in build_header(record) and "val F1" not in build_header(record)


def test_a_monitor_enters_the_identity_unless_it_is_the_default():
    def identity(*overrides: str) -> dict:
        return run_identity(compose(overrides), "")

    assert identity() == identity("callbacks.monitor=val/accuracy") != identity(BALANCED)
    assert identity(BALANCED) != identity("callbacks.monitor=val/f1")
    assert not NOT_IN_NAME.match(BALANCED)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("callbacks.monitor=test/f1",), "callbacks.monitor=test/f1.*val/balanced_accuracy"),
        ((BALANCED, "model=nearest_neighbours"), "callbacks.monitor=.* does nothing for nearest neighbours"),
    ],
)
def test_a_monitor_that_selects_nothing_is_an_error(overrides, message):
    with pytest.raises(UserError, match=message):
        compose(overrides)


def test_a_monitor_needs_validation_images(outputs, capfd):
    assert run(outputs, BALANCED, "data.limit=40", "data.validation=none") == 70
    assert "callbacks.monitor=val/balanced_accuracy: there are no validation images; give" in capfd.readouterr().err
    assert not outputs.exists() or not list(outputs.glob("*/*/run.json"))


def make_record(test: list[int], val: list[int], **changes) -> dict:
    """Return the record of a run with these images of each class, one network and its metrics."""
    names = ("accuracy", "balanced_accuracy", "f1")
    result = {
        f"{prefix}/{name}": round(value - 0.1 * number, 1)
        for prefix, value in (("val", 0.9), ("test", 0.8), ("test-without-duplicates", 0.7))
        for number, name in enumerate(names)
    }
    entry = {"name": "supervised", "kind": "train", "control": False, "parameters": 7, "steps": 2, "labels": 4}
    entry |= {"validation": "own", "validation_images": sum(val), "model": {"_target_": "a.LeNet5"}, "result": result}
    data = {"test": sum(test), "images_per_class": {"val": val, "test": test}}
    return {"version": "0", "git": None, "data": data, "stages": [entry], "result": result, **changes}


def test_balanced_accuracy_and_f1_stand_in_the_table_where_classes_are_uneven():
    record = make_record(test=[31, 20, 0], val=[30, 20, 20])
    after = build_header(record)[5:]
    others = ("without-duplicates", "without-duplicates balanced", "without-duplicates F1")
    assert after == ("val", "test", "test balanced", "test F1", *others)
    assert build_rows(record)[0][7:9] == ("70.0 %", "60.0 %")
    assert any(note.startswith("balanced: ") for note in build_notes(record))
    assert build_header(record, wide=False)[5:] == ("val", "test", "without-duplicates")
    narrow = " ".join(build_notes(record, wide=False))
    assert "supervised: test balanced 70.0 %, test F1 60.0 %, without-duplicates balanced 60.0 %" in narrow


def test_even_classes_and_runs_of_earlier_versions_have_accuracy_alone():
    even = make_record(test=[30, 20, 20], val=[3, 2, 2])
    older = make_record(test=[90, 20], val=[3, 2])
    del older["data"]["images_per_class"]
    without_metrics = make_record(test=[90, 20], val=[9, 2])
    without_metrics["stages"][0]["result"] = without_metrics["result"] = {"val/accuracy": 0.9, "test/accuracy": 0.8}
    for record in (even, older, without_metrics):
        assert not [heading for heading in build_header(record) if "balanced" in heading or "F1" in heading]
        assert not any("balanced" in note for note in build_notes(record))
        assert len(build_rows(record)[0]) == len(build_header(record))
