"""Learning without forgetting: heads, losses, frozen parts, stages, and the table of tasks."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from helpers.configs import data_config
from helpers.networks import make_spec
from helpers.overrides import CLIPPED_AND_SMOOTHED, QUIET
from helpers.runs import only_run, outcome, run
from helpers.sources import make_source
from tutelage.app.job import run_job
from tutelage.config import CrossEntropyConfig, OptimizerConfig, SchedulerConfig
from tutelage.config.compose import compose
from tutelage.data import EvalBatch, StreamBatch, split
from tutelage.errors import UserError
from tutelage.models import (
    UNLEARNED,
    FineTuning,
    Heads,
    ImageClassifier,
    ImageSpec,
    OptimizationConfig,
    compute_task_metrics,
    load_classifier,
    make_classifier,
    predict,
    save_classifier,
)
from tutelage.runs import run_path
from tutelage.strategies import StageContext, TrainStage
from tutelage.strategies.lwf.method import LwF
from tutelage.terminal.table import build_header, build_notes, build_rows, compute_forgetting
from tutelage.testing import kill_after

TASKS = ((3, 0), (1, 5, 2), (4, 6))  # of ten classes; 7, 8 and 9 are in none
LENET = {"_target_": "tutelage.models.LeNet5", "width": 1.0, "dropout": 0.0}
TINY = (
    "strategy=lwf",
    "strategy.tasks=[[0,1,2],[3,4,5],[6,7,8,9]]",
    "schedule.epochs=null",
    "schedule.steps=3",
    "data.limit=200",
    "data.batch_size=8",
    *CLIPPED_AND_SMOOTHED,
)


def make_network(tasks=TASKS, seed: int = 0) -> ImageClassifier:
    torch.manual_seed(seed)
    return make_classifier(LENET, replace(make_spec(), tasks=tasks))


def random_images(count: int, seed: int = 1) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, 1, 28, 28), dtype=torch.uint8, generator=generator)


def test_each_heads_logits_are_in_its_classes_columns_and_unlearned_classes_have_none():
    heads = Heads(4, TASKS, 10)
    heads.train_tasks([0, 2])
    features = torch.randn(6, 4)
    logits = heads(features)
    assert logits.shape == (6, 10)
    for head, task in ((heads.each[0], (3, 0)), (heads.each[2], (4, 6))):
        torch.testing.assert_close(logits[:, task], head(features))
    assert (logits[:, [1, 5, 2, 7, 8, 9]] == UNLEARNED).all()
    assert logits.half().isfinite().all()


def partitions(draw_count: int = 12):
    return st.lists(st.integers(0, 3), min_size=4, max_size=draw_count).filter(lambda tasks: {1, 2} <= set(tasks))


@given(partitions())
def test_log_probabilities_are_normalised_within_each_task(task_of):
    tasks = [[c for c, t in enumerate(task_of) if t == task] for task in (1, 2)]
    heads = Heads(3, tasks, len(task_of))
    heads.train_tasks([0, 1])
    logits = heads(torch.randn(5, 3))
    log_probabilities = heads.log_probabilities(logits)
    for task in tasks:
        torch.testing.assert_close(log_probabilities[:, task], logits[:, task].softmax(1).log(), rtol=1e-6, atol=1e-6)
    labels = torch.tensor([tasks[0][0], tasks[1][-1], *[tasks[1][0]] * 3])
    predictions = heads.mask_other_tasks(logits, labels).argmax(1)
    for prediction, label in zip(predictions.tolist(), labels.tolist(), strict=True):
        assert task_of[prediction] == task_of[label]


def test_a_network_with_heads_is_saved_and_loaded(tmp_path):
    network = make_network()
    network.head.train_tasks([1])
    save_classifier(network, LENET, tmp_path / "final.ckpt")
    again = load_classifier(tmp_path / "final.ckpt")
    assert again.spec == network.spec
    assert again.head.learned.tolist() == [False, True, False]
    torch.testing.assert_close(again.eval()(random_images(3)), network.eval()(random_images(3)))


def test_an_old_spec_without_tasks_is_read():
    plain = make_spec().to_dict()
    del plain["tasks"]
    assert ImageSpec.from_dict(plain) == make_spec()


def test_a_head_that_cannot_be_replaced_is_an_error():
    with pytest.raises(UserError, match="its head is no single linear layer; strategy=lwf needs another model"):
        make_classifier({"_target_": "tutelage.models.NearestNeighbours", "k": 5}, replace(make_spec(), tasks=TASKS))


def make_batch(task: int, recorded: torch.Tensor | None = None, count: int = 6) -> dict[str, StreamBatch]:
    targets = torch.tensor(TASKS[task])[torch.arange(count) % len(TASKS[task])]
    return {"labelled": StreamBatch(random_images(count), targets, recorded)}


def test_the_loss_is_that_of_the_paper():
    old_network, network = make_network(seed=5).eval(), make_network()
    for model in (old_network, network):
        model.head.train_tasks([0, 1])
    with torch.no_grad():
        recorded = old_network(random_images(6))
    module = LwF(network, new=[2], old=range(2), temperature=2.0, old_weight=0.7)
    batch = make_batch(2, recorded)
    parts = module.training_step(batch, 0)
    features = network.features(batch["labelled"].images)
    new_logits = network.head.each[2](features)
    local = torch.tensor([TASKS[2].index(c) for c in batch["labelled"].targets.tolist()])
    loss_new = functional.cross_entropy(new_logits, local)
    loss_old = torch.tensor(0.0)
    for task in range(2):
        # the paper's equations 2 to 4: probabilities to the power of 1/T, normed; T^2 as in Hinton 2015
        old_probabilities = recorded[:, TASKS[task]].softmax(1) ** 0.5
        new_probabilities = network.head.each[task](features).softmax(1) ** 0.5
        old_probabilities, new_probabilities = (
            old_probabilities / old_probabilities.sum(1, keepdim=True),
            new_probabilities / new_probabilities.sum(1, keepdim=True),
        )
        entropy = -(old_probabilities * old_probabilities.log()).sum(1)
        loss_old = loss_old + 4 * (-(old_probabilities * new_probabilities.log()).sum(1) - entropy).mean()
    torch.testing.assert_close(parts["loss_new"], loss_new.detach(), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(parts["loss_old"], loss_old.detach(), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(parts["loss"], loss_new + 0.7 * loss_old, rtol=1e-6, atol=1e-6)
    assert parts["accuracy"] == (new_logits.argmax(1) == local).float().mean()


def test_soft_and_hard_targets_of_several_tasks_have_the_same_weighted_loss():
    network = make_network()
    network.class_weights = torch.arange(1.0, 11.0)
    module = LwF(network, new=[0, 1])
    targets = torch.tensor([3, 0, 1, 5, 2, 3])
    hard = module.training_step({"labelled": StreamBatch(random_images(6), targets)}, 0)
    soft = module.training_step({"labelled": StreamBatch(random_images(6), functional.one_hot(targets, 10).float())}, 0)
    torch.testing.assert_close(hard["loss"], soft["loss"])
    assert hard["accuracy"] == soft["accuracy"]
    logits = network(random_images(6))
    by_hand = [
        -(c + 1) * logits[i, task].log_softmax(0)[task.index(c)]
        for i, c in enumerate(targets.tolist())
        for task in map(list, TASKS[:2])
        if c in task
    ]
    torch.testing.assert_close(hard["loss"], sum(by_hand) / 6)


@given(st.floats(0, 0.99), st.integers(0, 2**31))
def test_labels_are_smoothed_over_the_classes_of_their_own_task(smoothing, seed):
    """A mixed image has a mass in several tasks, and each mass is spread over that task's classes alone."""
    generator = torch.Generator().manual_seed(seed)
    heads = make_network().head
    targets = torch.rand(3, 10, generator=generator).masked_fill(torch.arange(10) > 6, 0).softmax(1)
    smoothed = heads.smooth(targets, smoothing)
    for task in map(list, TASKS):
        mass = targets[:, task].sum(1, keepdim=True)
        expected = (1 - smoothing) * targets[:, task] + smoothing * mass / len(task)
        torch.testing.assert_close(smoothed[:, task], expected)


@pytest.mark.parametrize("kind", ["classes", "mixed"])
def test_a_smoothed_loss_is_torchs_within_the_head_of_each_task(kind):
    network = make_network()
    network.configure_training(
        OptimizationConfig(
            OptimizerConfig(name="sgd", lr=0.1),
            SchedulerConfig(name="constant"),
            3,
            tuple(map(float, range(1, 11))),
            loss=CrossEntropyConfig(label_smoothing=0.3),
        )
    )
    module, images = LwF(network, new=[0, 1]), random_images(4)
    classes, shares = torch.tensor([[3, 5], [0, 3], [2, 2], [1, 0]]), torch.tensor([0.75, 0.6, 1.0, 0.5])
    if kind == "classes":
        shares = torch.ones(4)
    one_hot = functional.one_hot(classes, 10).float()
    mixed = shares[:, None] * one_hot[:, 0] + (1 - shares[:, None]) * one_hot[:, 1]
    targets = classes[:, 0] if kind == "classes" else mixed
    loss = module.training_step({"labelled": StreamBatch(images, targets)}, 0)["loss"]
    logits, total = network(images), 0.0
    for image in range(4):
        for c, share in zip(classes[image].tolist(), (shares[image], 1 - shares[image]), strict=True):
            task = list(next(task for task in TASKS if c in task))
            local, weights = torch.tensor([task.index(c)]), network.class_weights[task]
            total += share * functional.cross_entropy(
                logits[image : image + 1, task], local, weights, reduction="sum", label_smoothing=0.3
            )
    torch.testing.assert_close(loss, total / 4)


def find_changed_tensors(
    network: ImageClassifier, module: LwF, batch: dict[str, StreamBatch], tuning: FineTuning
) -> set[str]:
    """Return the names of the tensors that three steps with weight decay change."""
    config = OptimizerConfig(name="adamw", lr=0.01, weight_decay=0.5)
    network.configure_training(OptimizationConfig(config, SchedulerConfig(name="constant"), 3, None, tuning))
    initial = {name: value.clone() for name, value in network.state_dict().items()}
    optimizer = module.configure_optimizers()["optimizer"]
    module.train()
    for _ in range(3):
        optimizer.zero_grad()
        module.training_step(batch, 0)["loss"].backward()
        optimizer.step()
    return {name for name, value in network.state_dict().items() if not torch.equal(value, initial[name])}


@pytest.mark.parametrize(
    ("old_tasks", "tuning", "backbone", "heads"),
    [
        ((), FineTuning(frozen_layers=None), False, {1}),
        ((), FineTuning(), True, {1}),
        ((0,), FineTuning(), True, {0, 1}),
    ],
    ids=["warm-up and feature extraction", "finetuning", "lwf"],
)
def test_frozen_parts_do_not_change_under_weight_decay(old_tasks, tuning, backbone, heads):
    network = make_network()
    network.head.train_tasks([0])
    module = LwF(network, [1], old_tasks, 2.0, 1.0)
    changed = find_changed_tensors(network, module, make_batch(1, torch.randn(6, 10)), tuning)
    assert any(name.startswith("backbone.") for name in changed) == backbone
    assert {int(name.split(".")[2]) for name in changed if name.startswith("head.each")} == heads


def test_validation_uses_the_new_tasks_images_and_predicts_among_its_classes():
    module = LwF(make_network(), new=[1], old=[0])
    labels = torch.tensor([0, 1, 5, 3, 2, 9])
    output = module.validation_step(EvalBatch(random_images(6), labels, torch.arange(6)), 0)
    assert output["labels"].tolist() == [1, 5, 2]
    assert set(output["logits"].argmax(1).tolist()) <= {1, 5, 2}


def test_a_tasks_accuracy_compares_its_own_classes_only():
    network = make_network()
    network.head.train_tasks([0, 1])
    labels = torch.tensor([3, 0, 0, 1, 5, 2, 4, 7])
    batch = EvalBatch(random_images(8), labels, torch.arange(8))
    metrics = compute_task_metrics(predict(network, [batch], torch.device("cpu")), network.spec, "test")
    features = network.eval().features(batch.images)
    for number, task, rows in ((1, (3, 0), slice(0, 3)), (2, (1, 5, 2), slice(3, 6))):
        predictions = torch.tensor(task)[network.head.each[number - 1](features)[rows].argmax(1)]
        assert metrics[f"test/task-{number}"] == pytest.approx(
            (predictions == labels[rows]).float().mean().item(), abs=1e-6
        )
    assert len(metrics) == 2  # the third is not learned


def plan_stages(*overrides: str):
    tasks = "strategy.tasks=[[0,1],[3,5],[2,4]]"
    config = compose(["strategy=lwf", tasks, "schedule.epochs=null", "schedule.steps=10", *overrides])
    source = make_source(np.repeat(np.arange(6), 20), test=12, unlabelled=0)
    return config.strategy.stages(StageContext(config, source, split(source, data_config())))


def test_the_stages_are_those_of_the_paper_and_each_comparison_trains_as_many_steps():
    plan = {stage.name: stage for stage in plan_stages() if isinstance(stage, TrainStage)}
    lwf_stages = ["task-1", "warm-up-2", "lwf-2", "warm-up-3", "lwf-3"]
    assert list(plan) == [
        *lwf_stages,
        *("finetuning-2", "finetuning-warm-up-3", "finetuning-3"),
        *("feature_extraction-2", "feature_extraction-3", "joint-2", "joint-3"),
    ]
    assert [name for name, stage in plan.items() if not stage.control] == lwf_stages

    def steps_to(name: str | None) -> int:
        return plan[name].steps + steps_to(plan[name].starts_from) if name else 0

    for method in ("finetuning", "feature_extraction", "joint"):
        assert steps_to(f"{method}-3") == steps_to("lwf-3") == 10 + 2 * (2 + 10)
        assert plan[f"{method}-3"].note.startswith(f"{method}: ")
    assert plan["lwf-3"].teacher.networks == "warm-up-3"
    assert plan["lwf-2"].teacher.networks == "warm-up-2"
    assert plan["lwf-2"].teacher.cached_views == 8
    assert [name for name, stage in plan.items() if stage.teacher] == ["lwf-2", "lwf-3"]
    classes = {name: sorted(set(stage.streams({})[0].targets.tolist())) for name, stage in plan.items()}
    assert (classes["task-1"], classes["lwf-2"], classes["finetuning-3"]) == ([0, 1], [3, 5], [2, 4])
    assert (classes["joint-2"], classes["joint-3"]) == ([0, 1, 3, 5], [0, 1, 2, 3, 4, 5])
    head_alone = {name for name, stage in plan.items() if stage.fine_tuning.frozen_layers is None}
    assert head_alone == {name for name in plan if "warm-up" in name or "extraction" in name}


def test_logits_can_be_cached_for_all_passes_and_comparisons_left_out():
    plan = plan_stages("strategy.teacher_logits=passes", "strategy.compare=[]")
    assert [stage.name for stage in plan] == ["task-1", "warm-up-2", "lwf-2", "warm-up-3", "lwf-3"]
    assert plan[2].teacher.cached_views is None


@pytest.mark.parametrize(
    ("tasks", "message"),
    [
        ("[[0,1],[2,6]]", "task 2 names class 6; this data has 6, numbered from 0 to 5"),
        ("[[0,1,2,3]]", "two tasks or more are needed"),
        ("[[0,1],[2]]", r"a task of one class has nothing to tell it from: give \[2\] a second class"),
        ("[[0,1],[1,2]]", "each with classes of its own"),
    ],
)
def test_invalid_tasks_are_an_error(tasks, message):
    with pytest.raises(UserError, match=message):
        plan_stages(f"strategy.tasks={tasks}")


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    outputs = tmp_path_factory.mktemp("lwf")
    assert run(outputs, *TINY, "callbacks.report=true") == 0
    return outputs


def test_a_run_of_three_tasks_ends_with_a_table_of_them_and_a_report(finished):
    folder = only_run(finished)
    record = json.loads((folder / "run.json").read_text())
    head, table = build_header(record), build_rows(record)
    assert head[-5:] == ("val", "task 1", "task 2", "task 3", "forgets")
    assert all(len(row) == len(head) for row in table)
    by_name = {row[0]: row for row in table}
    assert by_name["task-1"][-3:] == ("-", "-", "-")
    assert "-" not in by_name["joint-3"][-4:]
    assert by_name["feature_extraction-3"][-1] == "0.0"
    assert record["result"] == next(e["result"] for e in record["stages"] if e["name"] == "lwf-3")
    lines = build_notes(record)
    for method in ("finetuning", "feature_extraction", "joint"):
        assert sum(line.startswith(f"{method}: ") for line in lines) == 1
    assert not any("last student" in line for line in lines)
    page = (folder / "report" / "index.html").read_text()
    assert ">forgets</th>" in page


def test_frozen_parts_of_a_run_are_the_same_to_the_bit(finished):
    folder = only_run(finished)

    def weights(stage: str) -> dict[str, torch.Tensor]:
        return load_classifier(next(folder.glob(f"stages/*-{stage}/checkpoints/final.ckpt"))).state_dict()

    first = weights("task-1")
    for stage in ("warm-up-2", "feature_extraction-3"):
        for name, value in weights(stage).items():
            if name.startswith(("backbone.", "head.each.0.")):
                assert torch.equal(value, first[name]), (stage, name)
    for name, value in weights("finetuning-3").items():
        if name.startswith("head.each.0."):
            assert torch.equal(value, first[name])
    assert weights("lwf-3")["head.learned"].tolist() == [True, True, True]


@pytest.mark.parametrize(("stage", "step"), [("warm-up-2", 1), ("lwf-3", 2)])
def test_a_killed_run_ends_with_the_same_weights_and_tables(finished, outputs, stage, step):
    assert run(outputs, *TINY, before=kill_after(stage, step)) == -9
    assert run(outputs, *TINY) == 0
    assert outcome(outputs) == outcome(finished)


def test_forgetting_is_the_mean_loss_of_accuracy_since_each_tasks_end():
    def entry(name: str, starts_from: str | None, *accuracies: float) -> dict:
        result = {f"test/task-{n}": value for n, value in enumerate(accuracies, 1)}
        return {
            "name": name,
            "kind": "train",
            "result": result,
            **({"starts_from": starts_from} if starts_from else {}),
        }

    record = {
        "stages": [
            entry("task-1", None, 0.9),
            entry("warm-up-2", "task-1", 0.9, 0.5),
            entry("lwf-2", "warm-up-2", 0.85, 0.8),
            entry("warm-up-3", "lwf-2", 0.85, 0.8, 0.4),
            entry("lwf-3", "warm-up-3", 0.7, 0.75, 0.9),
        ]
    }
    forgetting = {stage["name"]: compute_forgetting(record, stage) for stage in record["stages"]}
    assert forgetting["task-1"] is None
    assert forgetting["lwf-2"] == pytest.approx(0.05)
    assert forgetting["warm-up-3"] == pytest.approx((0.05 + 0.0) / 2)
    assert forgetting["lwf-3"] == pytest.approx(
        (0.2 + 0.05) / 2
    )  # task 2 counts from the end of lwf-2, not of its warm-up


def test_averaging_weights_keeps_the_order_of_the_classes():
    network = make_network()
    averaged = AveragedModel(network, multi_avg_fn=get_ema_multi_avg_fn(0.9), use_buffers=True)
    for _ in range(50):
        averaged.update_parameters(network)
    network.head.train_tasks([0, 1, 2])
    averaged.module.head.train_tasks([0, 1, 2])
    batch = random_images(4)
    torch.testing.assert_close(averaged.module.eval()(batch), network.eval()(batch), rtol=1e-4, atol=1e-5)


def test_a_task_without_a_validation_image_is_an_error():
    config = compose(["strategy=lwf", "strategy.tasks=[[0,1],[2,3]]", "data.validation=inside"])
    source = make_source(np.repeat(np.arange(4), 30), test=8, unlabelled=0)
    splits = split(source, data_config())
    no_second = replace(splits, validation=splits.labelled[source.labels[splits.labelled] < 2])
    with pytest.raises(UserError, match=r"task 2 has no validation image; use data.validation=none"):
        config.strategy.stages(StageContext(config, source, no_second))


def test_the_identity_says_whether_task_1_is_measured(old_run):
    def path_of_run(source: Path) -> Path:
        return run_path(compose(["strategy=lwf", "strategy.tasks=[]", f"init_from={source}"]), "")

    assert path_of_run(old_run) != path_of_run(old_run / "checkpoints" / "final.ckpt")


def test_linear_heads_of_all_architectures_are_replaced():
    for option in ("lenet5", "mlp", "small_vgg", "resnet"):
        model = compose([f"model={option}"]).model
        network = make_classifier(model.arguments(), replace(make_spec(size=32), tasks=TASKS))
        assert isinstance(network.head, Heads)
        assert all(isinstance(head, nn.Linear) for head in network.head.each)


@pytest.fixture(scope="module")
def old_run(tmp_path_factory):
    outputs = tmp_path_factory.mktemp("old")
    tiny = ("schedule.epochs=null", "schedule.steps=20", "data.limit=200", "callbacks.report=false", "seed=3")
    assert run(outputs, *tiny) == 0
    return only_run(outputs)


ONWARD = ("strategy=lwf", "strategy.tasks=[]", "debug=tiny")


def test_a_finished_runs_classes_are_task_1_and_are_measured_on_its_own_test_images(old_run, outputs, capfd):
    assert run(outputs, *ONWARD, f"init_from={old_run}", "callbacks.report=true") == 0
    assert "the old network's 10 classes are task 1, the data's are task 2" in capfd.readouterr().err
    record = json.loads((only_run(outputs) / "run.json").read_text())
    names = [entry["name"] for entry in record["stages"]]
    assert names == ["warm-up-2", "lwf-2", "finetuning-2", "feature_extraction-2"]
    old_accuracy = json.loads((old_run / "run.json").read_text())["result"]["test/accuracy"]
    results = {entry["name"]: entry["result"] for entry in record["stages"]}
    for stage in ("warm-up-2", "feature_extraction-2"):
        assert results[stage]["test/task-1"] == pytest.approx(old_accuracy)
    assert {key for key in results["lwf-2"] if "task-" in key} == {"test/task-1", "test/task-2"}
    forgotten = old_accuracy - results["finetuning-2"]["test/task-1"]
    assert compute_forgetting(record, record["stages"][2]) == pytest.approx(forgotten)
    old = load_classifier(old_run / "checkpoints" / "final.ckpt").state_dict()
    new = load_classifier(next(only_run(outputs).glob("stages/1-*/checkpoints/final.ckpt"))).state_dict()
    assert torch.equal(new["head.each.0.weight"], old["head.weight"])
    assert all(torch.equal(new[name], value) for name, value in old.items() if name.startswith("backbone."))


def test_without_the_old_runs_folder_task_1_is_trained_and_not_measured(old_run, outputs, capfd):
    file = old_run / "checkpoints" / "final.ckpt"
    assert run(outputs, *ONWARD, f"init_from={file}", "strategy.compare=[]") == 0
    assert "note: task 1 is not measured:" in capfd.readouterr().err
    record = json.loads((only_run(outputs) / "run.json").read_text())
    assert build_header(record)[-2:] == ("task 2", "forgets")


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("model.width=2",), "the old network is another one; model and its keys are to be the old run's"),
        (("data.image_size=32",), "data.image_size=32: the network of init_from sees 28"),
    ],
)
def test_a_network_unlike_the_old_one_is_an_error(old_run, outputs, overrides, message):
    assert message in refuse_run(outputs, f"init_from={old_run}", *overrides)


def test_old_weights_without_known_classes_and_missing_ones_are_errors(tmp_path, outputs):
    torch.save(make_classifier(LENET, make_spec()).state_dict(), tmp_path / "plain.pt")
    message = refuse_run(outputs, f"init_from={tmp_path / 'plain.pt'}")
    assert "it is not known what its classes are; give the folder of a finished run" in message
    with pytest.raises(UserError, match=r"strategy.tasks=\[\] adds a task to a trained network"):
        compose(["strategy=lwf", "strategy.tasks=[]"])


def refuse_run(outputs: Path, *overrides: str) -> str:
    """Return the error of a run that cannot start from its old network; check that it wrote no record."""
    with pytest.raises(UserError) as refused:
        run_job(compose([*QUIET, f"paths.outputs={outputs}", *ONWARD, *overrides]))
    assert not list(outputs.glob("*/*/run.json"))
    return str(refused.value)
