"""One more class from pictures of it alone: the head, its threshold, and whole runs that go on from one another."""

import json
import os
import signal
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torch import nn

import tutelage
from helpers.networks import make_spec
from helpers.overrides import QUIET
from helpers.runs import only_run, outcome, run
from tutelage.app.job import run_job
from tutelage.config.compose import compose
from tutelage.errors import UserError
from tutelage.inference.export import export_network
from tutelage.models import ImprintedHead, load_classifier, make_classifier, save_classifier, with_added_class
from tutelage.models.imprinting import SMALLEST_SPREAD
from tutelage.terminal.table import build_header, build_notes, build_rows

LENET = {"_target_": "tutelage.models.LeNet5", "width": 1.0, "dropout": 0.0}
LOG_ODDS = np.log(9)  # of a probability of 0.9


def make_head(inputs: int = 6, classes: int = 4, added: int = 2, seed: int = 0) -> ImprintedHead:
    """Return a head whose added classes are imprinted, the last one first."""
    torch.manual_seed(seed)
    head = ImprintedHead(nn.Linear(inputs, classes), 1)
    head.imprint(torch.randn(9, inputs) + 1)
    for count in range(2, added + 1):
        larger = ImprintedHead(head.old, count)
        for name in ("directions", "thresholds", "sharpness"):
            getattr(larger, name)[1:] = getattr(head, name)
        head = larger
        head.imprint(torch.randn(9, inputs) - count)
    return head.eval()


def test_the_head_adds_the_logit_that_is_computed_by_hand():
    old = nn.Linear(2, 2)
    head = ImprintedHead(old, 1)
    with torch.no_grad():
        old.weight.copy_(torch.tensor([[2.0, 0.0], [0.0, 5.0]]))
        old.bias.copy_(torch.tensor([1.0, -1.0]))
    head.directions[0] = torch.tensor([-0.6, 0.8])
    head.thresholds[0], head.sharpness[0] = 0.25, 4.0
    logits = head(torch.tensor([[3.0, 4.0]]))
    # old logits 7 and 19; cosines of (0.6, 0.8): -0.36 + 0.64 with the class, 0.6 and 0.8 with the old weights
    new = np.log(np.exp(7) + np.exp(19)) + 4 * ((0.28 - 0.8) - 0.25)
    np.testing.assert_allclose(logits.detach(), [[new, 7, 19]], rtol=1e-6)


@given(st.integers(0, 2**31), st.integers(1, 3), st.floats(0.01, 30))
def test_among_the_old_classes_nothing_changes(seed, added, scale):
    head = make_head(added=added, seed=seed % 1000)
    features = scale * torch.randn(5, 6, generator=torch.Generator().manual_seed(seed))
    with torch.no_grad():
        logits, old = head(features).double(), head.old(features).double()
    assert torch.equal(logits[:, added:], old)
    probabilities = logits.softmax(1)
    others = probabilities[:, added:]
    torch.testing.assert_close(others / others.sum(1, keepdim=True), old.softmax(1))
    if added == 1:
        log_odds = logits[:, 0] - old.logsumexp(1)
        torch.testing.assert_close(probabilities[:, 0], log_odds.sigmoid())


def test_a_class_is_set_by_each_pictures_likeness_to_the_others():
    rng = np.random.default_rng(3)
    features, head = rng.normal(size=(12, 5)) + 1, ImprintedHead(nn.Linear(5, 3), 1)
    head.imprint(torch.from_numpy(features).float())
    rows = features / np.linalg.norm(features, axis=1, keepdims=True)
    weights = head.old.weight.detach().numpy().astype(float)
    weights /= np.linalg.norm(weights, axis=1, keepdims=True)
    margins = []
    for number, row in enumerate(rows):
        mean = np.delete(rows, number, axis=0).mean(axis=0)
        margins.append(row @ mean / np.linalg.norm(mean) - max(row @ weight for weight in weights))
    margins.sort()
    threshold = margins[1] + 0.1 * (margins[2] - margins[1])  # a tenth of the way through eleven gaps
    median = (margins[5] + margins[6]) / 2
    mean = rows.mean(axis=0)
    np.testing.assert_allclose(head.directions[0], mean / np.linalg.norm(mean), rtol=1e-5)
    np.testing.assert_allclose(head.thresholds[0], threshold, rtol=1e-5)
    np.testing.assert_allclose(head.sharpness[0], LOG_ODDS / (median - threshold), rtol=1e-4)


def test_pictures_that_are_all_alike_give_a_finite_confidence():
    head = ImprintedHead(nn.Linear(5, 3), 1)
    head.imprint(torch.ones(2, 5))
    np.testing.assert_allclose(head.sharpness[0], LOG_ODDS / SMALLEST_SPREAD, rtol=1e-6)
    assert head(torch.ones(1, 5)).isfinite().all()


def test_the_order_in_which_classes_come_has_no_effect():
    head = make_head(added=2)
    other = ImprintedHead(head.old, 2)
    for name in ("directions", "thresholds", "sharpness"):
        getattr(other, name).copy_(getattr(head, name).flip(0))
    features = torch.randn(4, 6)
    torch.testing.assert_close(head(features)[:, [1, 0, 2, 3, 4, 5]], other(features))


def test_a_network_with_an_added_class_is_saved_and_loaded(tmp_path):
    torch.manual_seed(0)
    spec = with_added_class(replace(make_spec(), classes=("cross",)), make_spec())
    network = make_classifier(LENET, spec).eval()
    images = torch.randint(0, 256, (4, 1, 28, 28), dtype=torch.uint8)
    network.head.imprint(network.features(images))
    save_classifier(network, LENET, tmp_path / "final.ckpt")
    again = load_classifier(tmp_path / "final.ckpt").eval()
    assert again.spec.classes == ("cross", *map(str, range(10)))
    assert torch.equal(again(images), network(images))


@pytest.mark.parametrize(
    ("new", "old", "message"),
    [
        ({"classes": ("3",)}, {}, "the old network knows class '3' already; more pictures of it go with those of the"),
        ({"image_size": 32}, {}, "data.image_size=32: the network of init_from sees 28"),
        (
            {},
            {"tasks": ((0, 1), (2, 3))},
            "the old network has 2 tasks, and one more class needs a single answer; begin",
        ),
    ],
)
def test_a_class_that_cannot_come_to_the_old_ones_is_an_error(new, old, message):
    with pytest.raises(UserError, match=message):
        with_added_class(replace(make_spec(), **{"classes": ("cross",), **new}), replace(make_spec(), **old))


def test_an_architecture_without_a_linear_head_takes_no_class():
    neighbours = {"_target_": "tutelage.models.NearestNeighbours", "k": 5}
    with pytest.raises(UserError, match="its head is no single linear layer; strategy=lwf needs another model"):
        make_classifier(neighbours, replace(make_spec(), added=1))


DATA = ("data=image_folder", "data.image_size=28", "data.channels=1", "data.mean=[0.3]", "data.std=[0.3]")
ADDS = (*DATA, "strategy=lwf", "strategy.tasks=[]", "model=lenet5")


def write_class(folder: Path, picture: np.ndarray, count: int) -> None:
    """Write pictures of one class, which differ in brightness and noise."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(len(folder.name))
    for number in range(count):
        noisy = picture * (0.6 + 0.4 * number / count) + rng.uniform(0, 40, picture.shape)
        Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(folder / f"{number}.png")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Pictures of lines, crosses and squares, and below ``outputs`` a run that has learned lines in two directions."""
    folder = tmp_path_factory.mktemp("one-more")
    lines = {"row": np.zeros((28, 28)), "column": np.zeros((28, 28)), "square": np.full((28, 28), 220.0)}
    lines["row"][12:16], lines["column"][:, 12:16], lines["square"][8:20, 8:20] = 220, 220, 0
    lines["cross"] = 220 * (np.eye(28) + np.eye(28)[::-1]).clip(0, 1)
    for name, picture in lines.items():
        root = "old" if name in {"row", "column"} else name
        write_class(folder / root / name, picture, 15)
        write_class(folder / "all" / name, picture[::-1] * 0.9, 5)
    schedule = ("schedule.epochs=null", "schedule.steps=30", "optimizer.lr=0.003")
    assert run(folder / "old-run", *DATA, "model=lenet5", f"data.root={folder / 'old'}", *schedule) == 0
    new = (*ADDS, f"data.root={folder / 'cross'}", f"init_from={only_run(folder / 'old-run')}")
    assert run(folder / "new-run", *new, "callbacks.report=true") == 0
    return folder


def refuse(outputs: Path, *overrides: str) -> str:
    """Return the error of a run that is refused before it has a record."""
    with pytest.raises(UserError) as refused:
        run_job(compose([*QUIET, f"paths.outputs={outputs}", *overrides]))
    assert not list(outputs.glob("*/*/run.json"))
    return str(refused.value)


def read_record(outputs: Path) -> dict:
    return json.loads((only_run(outputs) / "run.json").read_text())


def test_a_run_adds_a_class_and_measures_both_sides(folder):
    record = read_record(folder / "new-run")
    (stage,) = record["stages"]
    assert (stage["name"], stage["steps"], stage["labels"]) == ("imprint", 0, 12)
    old, result = read_record(folder / "old-run")["result"], record["result"]
    assert result["test-old-classes/accuracy_before"] == old["test/accuracy"] == 1
    assert result["test/accuracy"] == result["test/accuracy/cross"] >= 0.5
    assert result["test-old-classes/accuracy"] == pytest.approx(1 - result["test-old-classes/taken"])
    header, (row,) = build_header(record), build_rows(record)
    assert header[-3:] == ("val", "test", "old-classes")
    assert row[-1] == f"{100 * result['test-old-classes/accuracy']:.1f} %"
    notes = "\n".join(build_notes(record))
    assert "test: images of cross; old-classes: those that init_from's run was tested on: 100.0 % right before" in notes
    assert "no image was tested" not in notes
    page = (only_run(folder / "new-run") / "report" / "index.html").read_text()
    assert "old-classes" in page and "Confusion matrix" in page


def test_the_old_network_is_in_the_new_one_to_the_bit(folder):
    old, new = (
        load_classifier(next(only_run(folder / name).glob("checkpoints/*.ckpt"))).state_dict()
        for name in ("old-run", "new-run")
    )
    for name, tensor in old.items():
        assert torch.equal(tensor, new[name.replace("head.", "head.old.")]), name


def test_the_network_is_used_by_its_run(folder, tmp_path):
    classifier = tutelage.load(only_run(folder / "new-run"))
    assert classifier.classes == ("cross", "column", "row")
    crosses = sorted((folder / "all" / "cross").glob("*.png"))
    rows = sorted((folder / "all" / "row").glob("*.png"))
    assert classifier.predict([*crosses, *rows]) == ["cross"] * 5 + ["row"] * 5
    probabilities, before = classifier.probabilities(rows), tutelage.load(only_run(folder / "old-run"))
    assert probabilities.shape == (5, 3)
    others = probabilities[:, 1:] / probabilities[:, 1:].sum(axis=1, keepdims=True)
    np.testing.assert_allclose(others, before.probabilities(rows), rtol=1e-4, atol=1e-6)
    exported = export_network(str(only_run(folder / "new-run")), "safetensors", tmp_path / "out")
    assert exported.pictures_note == "of the test set"
    card = (tmp_path / "out" / "README.md").read_text()
    assert "- these are all of class cross, which came to the others by pictures of it alone" in card
    assert "- accuracy on the test pictures of the others: " in card


@pytest.mark.slow
@pytest.mark.parametrize("name", ["onnx", "pt2"])
def test_the_network_is_exported_as_a_graph(folder, name, tmp_path):
    assert export_network(str(only_run(folder / "new-run")), name, tmp_path / "out").difference < 1e-3


def test_timms_layout_has_no_place_for_an_added_class(folder, tmp_path):
    pytest.importorskip("timm")
    with pytest.raises(UserError, match="--format timm: "):
        export_network(str(only_run(folder / "new-run")), "timm", tmp_path / "out")


def test_a_killed_run_ends_with_the_same_network(folder, outputs):
    def kill_before_saving() -> None:
        from tutelage.runs import fit

        fit.save_classifier = lambda *arguments: os.kill(os.getpid(), signal.SIGKILL)

    new = (*ADDS, f"data.root={folder / 'cross'}", f"init_from={only_run(folder / 'old-run')}")
    assert run(outputs, *new, before=kill_before_saving) == -9
    assert not list(outputs.glob("*/*/checkpoints/*.ckpt"))
    assert run(outputs, *new) == 0
    assert outcome(outputs) == outcome(folder / "new-run")


def test_a_second_class_comes_to_the_first(folder, outputs, capfd):
    first = only_run(folder / "new-run")
    table = "\n".join(["path,label", *(f"{path},square" for path in sorted((folder / "square").glob("*/*.png")))])
    (folder / "square.csv").write_text(table)
    second = (*ADDS, "data=table", f"data.root={folder / 'square.csv'}", f"init_from={first}")
    assert run(outputs, *second) == 0
    message = "the old network's 3 classes stay as they are, and 'square' comes to them"
    assert message in capfd.readouterr().err
    classifier, before = tutelage.load(only_run(outputs)), tutelage.load(first)
    assert classifier.classes == ("square", "cross", "column", "row")
    pictures = sorted((folder / "all").glob("*/*.png"))
    probabilities = classifier.probabilities(pictures)[:, 1:]
    np.testing.assert_allclose(
        probabilities / probabilities.sum(axis=1, keepdims=True), before.probabilities(pictures), rtol=1e-3, atol=1e-5
    )
    record = read_record(outputs)
    assert record["result"]["test-old-classes/accuracy/cross"] > 0
    assert "Of column, row no image was tested" in "\n".join(build_notes(record))


def test_a_task_of_several_classes_does_not_come_after_a_single_one(folder, outputs):
    first = f"init_from={only_run(folder / 'new-run')}"
    message = refuse(outputs, *ADDS, f"data.root={folder / 'old'}", first)
    assert "class 'cross' was added to the old network alone, and no task can come after that" in message


def test_without_the_old_runs_folder_the_old_classes_are_not_measured(folder, outputs, capfd):
    file = next(only_run(folder / "old-run").glob("checkpoints/*.ckpt"))
    assert run(outputs, *ADDS, f"data.root={folder / 'cross'}", f"init_from={file}", "callbacks.report=false") == 0
    assert "note: the old classes are not measured: " in capfd.readouterr().err
    assert not any("old-classes" in key for key in read_record(outputs)["result"])


def test_one_picture_is_too_few(folder, outputs):
    first, root = f"init_from={only_run(folder / 'old-run')}", f"data.root={folder / 'cross'}"
    message = refuse(outputs, *ADDS, root, first, "data.labels_per_class=1")
    assert "1 labelled image of cross; to be told from the old classes it needs 2 or more" in message


@pytest.mark.parametrize("strategy", ["supervised", "transfer_frozen", "pseudo_label", "lwf"])
def test_other_strategies_and_lwf_with_tasks_refuse_a_single_class(folder, outputs, strategy):
    first, root = f"init_from={only_run(folder / 'old-run')}", f"data.root={folder / 'cross'}"
    message = refuse(outputs, *DATA, "model=lenet5", f"strategy={strategy}", root, first)
    assert (
        "found 1 class (cross) under CLASS/; at least 2 are needed, as nothing says what cross is not: add" in message
    )
