"""Distillation: its losses, which weights change, its stages and its runs."""

import csv
import json
import re
import signal
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import f1_score
from torch.nn import functional

from helpers.configs import data_config
from helpers.networks import make_spec
from helpers.overrides import DISTILLATION
from helpers.runs import only_run, outcome, run
from helpers.sources import make_source
from tutelage.config import OptimizerConfig, SchedulerConfig
from tutelage.config.compose import compose
from tutelage.data import StreamBatch, data_module, fingerprint, split
from tutelage.errors import UserError
from tutelage.models import (
    MLP,
    ImageClassifier,
    LeNet5,
    OptimizationConfig,
    Perceptron,
    ResNet,
    SmallVGG,
    Teacher,
    Timm,
    Torchvision,
    decoupled_divergence,
    hint_loss,
    load_classifier,
    middle_layer,
    save_classifier,
    softened_divergence,
    weight_hash,
)
from tutelage.models.losses import split_divergence
from tutelage.models.teacher import Regressor, adapt_images, layer_output
from tutelage.runs import RunFolder, evaluate, read_record, run_identity
from tutelage.runs.callbacks import compute_means
from tutelage.runs.checkpoints import WholeCheckpointIO
from tutelage.runs.folder import weights_files
from tutelage.runs.predictions import read_predictions
from tutelage.runs.teachers import teacher_without_weights
from tutelage.strategies import StageContext
from tutelage.strategies.distillation import Decoupled, DistillationStrategy, Hints
from tutelage.strategies.distillation.method import Distillation, HintTraining
from tutelage.strategies.teacher_student.method import TeacherStudent
from tutelage.terminal.table import build_notes, build_rows
from tutelage.testing import kill_after

SEEDS = st.integers(0, 999)
TEMPERATURES = st.floats(0.5, 20)


def draw_logits(seed: int, classes: int = 7, batch: int = 5) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    student, teacher = 3 * torch.randn(2, batch, classes, generator=generator, dtype=torch.float64)
    return student, teacher


def divergence_in_numpy(student: np.ndarray, teacher: np.ndarray, temperature: float) -> float:
    """Compute the softened divergence of logits (B, C) in numpy, image by image."""
    total = 0.0
    for s, t in zip(student, teacher, strict=True):
        p = np.exp(t / temperature) / np.exp(t / temperature).sum()
        q = np.exp(s / temperature) / np.exp(s / temperature).sum()
        total += temperature**2 * float((p * np.log(p / q)).sum())
    return total / len(student)


@given(SEEDS, TEMPERATURES)
def test_the_softened_divergence_is_the_papers_formula(seed, temperature):
    student, teacher = draw_logits(seed)
    divergence = softened_divergence(student, teacher, temperature)
    assert float(divergence) == pytest.approx(
        divergence_in_numpy(student.numpy(), teacher.numpy(), temperature), abs=1e-6, rel=1e-6
    )
    assert float(softened_divergence(teacher, teacher, temperature)) == pytest.approx(0, abs=1e-9)


@given(SEEDS)
def test_at_a_high_temperature_the_divergence_matches_centred_logits(seed):
    """Hinton 2015, section 2.1, eq. 4: the gradient tends to that of half the squared distance / classes."""
    student, teacher = (logits - logits.mean(dim=1, keepdim=True) for logits in draw_logits(seed))
    student.requires_grad_()
    softened_divergence(student, teacher, 1e4).backward()
    expected = (student.detach() - teacher) / student.shape[1] / len(student)
    torch.testing.assert_close(student.grad, expected, rtol=1e-2, atol=1e-4)


@given(SEEDS, TEMPERATURES)
def test_the_divergence_is_its_two_parts_with_the_second_weighed_by_the_teachers_doubt(seed, temperature):
    """Zhao 2022, eq. 6: KD = TCKD + (1 - p of the true class) NCKD, image by image."""
    student, teacher = draw_logits(seed)
    classes = torch.arange(5) % 7
    target, non_target = split_divergence(student / temperature, teacher / temperature, classes)
    doubt = 1 - (teacher / temperature).softmax(dim=1)[torch.arange(5), classes]
    divergence = temperature**2 * (target + doubt * non_target).mean()
    torch.testing.assert_close(divergence, softened_divergence(student, teacher, temperature), rtol=1e-6, atol=1e-6)


@given(SEEDS, TEMPERATURES, st.floats(0, 5), st.floats(0, 10))
def test_the_decoupled_divergence_is_the_one_of_its_authors_code(seed, temperature, alpha, beta):
    """As in github.com/megvii-research/mdistiller, distillers/DKD.py: masks, a sum of probabilities, minus 1000."""
    student, teacher = draw_logits(seed)
    classes = torch.arange(5) % 7
    true = torch.zeros_like(student).scatter_(1, classes[:, None], 1).bool()
    p_s, p_t = (student / temperature).softmax(1), (teacher / temperature).softmax(1)
    pair_s, pair_t = (torch.stack([(p * true).sum(1), (p * ~true).sum(1)], 1) for p in (p_s, p_t))
    tckd = functional.kl_div(pair_s.log(), pair_t, reduction="sum") * temperature**2 / len(classes)
    other_t = (teacher / temperature - 1000.0 * true).softmax(1)
    other_s = (student / temperature - 1000.0 * true).log_softmax(1)
    nckd = functional.kl_div(other_s, other_t, reduction="sum") * temperature**2 / len(classes)
    divergence = decoupled_divergence(student, teacher, classes, temperature, alpha, beta)
    torch.testing.assert_close(divergence, alpha * tckd + beta * nckd, rtol=1e-6, atol=1e-6)


def test_a_hint_is_half_the_mean_square():
    student, teacher = draw_logits(0)
    assert float(hint_loss(student, teacher)) == pytest.approx(float(((student - teacher) ** 2).mean() / 2), abs=1e-9)


def test_every_loss_has_a_gradient_for_the_student_only():
    student, teacher = (logits.requires_grad_() for logits in draw_logits(1))
    classes = torch.arange(5)
    for loss in (
        softened_divergence(student, teacher, 4.0),
        decoupled_divergence(student, teacher, classes, 4.0, 1.0, 8.0),
        hint_loss(student, teacher),
    ):
        student.grad = None
        loss.backward()
        assert student.grad.abs().sum() > 0 and teacher.grad is None


def make_batch(channels: int = 1, size: int = 28, count: int = 6) -> dict[str, StreamBatch]:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (count, channels, size, size), generator=generator, dtype=torch.uint8)
    return {"labelled": StreamBatch(images, torch.arange(count) % 10)}


def make_config(**changes) -> DistillationStrategy:
    base = {
        "teachers": ["x"],
        "temperature": 4.0,
        "alpha": 0.3,
        "teacher_logits": "live",
        "cached_views": 1,
    }
    return DistillationStrategy.from_arguments({**base, **changes})


def prepare(network: ImageClassifier) -> ImageClassifier:
    network.configure_training(
        OptimizationConfig(
            OptimizerConfig(name="adamw", lr=0.01, weight_decay=0.1), SchedulerConfig(name="constant"), steps=10
        )
    )
    return network.train()


def train_steps(module, batch, steps: int = 3):
    optimizer = module.configure_optimizers()["optimizer"]
    for _ in range(steps):
        optimizer.zero_grad()
        parts = module.training_step(batch, 0)
        parts["loss"].backward()
        optimizer.step()
    return parts


def copy_state(network) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in network.state_dict().items()}


@pytest.mark.parametrize(
    "options", [{}, {"target_type": "hard"}, {"decoupled": Decoupled()}], ids=["soft", "hard", "dkd"]
)
def test_only_the_student_learns_and_the_teacher_does_not_change_by_a_bit(options):
    torch.manual_seed(0)
    network = SmallVGG(make_spec(), width=0.25, dropout=0.5)  # batch norm and dropout
    teacher = Teacher([network])
    module = Distillation(prepare(LeNet5(make_spec())), teacher, config=make_config(**options))
    module.train()
    teacher_state, student_state = copy_state(network), copy_state(module.student)
    first = teacher(make_batch()["labelled"].images)
    parts = train_steps(module, make_batch())
    assert not network.training and not any(p.requires_grad or p.grad is not None for p in network.parameters())
    assert all(torch.equal(teacher_state[name], value) for name, value in network.state_dict().items())
    assert torch.equal(first, teacher(make_batch()["labelled"].images))
    assert not any(torch.equal(student_state[name], value) for name, value in module.student.state_dict().items())
    assert not [name for name in module.state_dict() if not name.startswith("student.")]  # nor in a checkpoint
    assert set(module.parameters()) == set(module.student.parameters())
    assert {"loss_label", "loss_teacher", "kl", "agreement", "accuracy", "teacher_accuracy"} < set(parts)


def test_the_loss_is_alpha_of_the_labels_and_the_rest_of_the_teacher():
    torch.manual_seed(0)
    student, network, batch = prepare(MLP(make_spec(), width=8, depth=2)), LeNet5(make_spec()), make_batch()["labelled"]
    parts = Distillation(student, Teacher([network]), config=make_config()).training_step({"labelled": batch}, 0)
    student_logits, teacher_logits = student(batch.images), network(batch.images)
    label_loss = functional.nll_loss(student_logits.log_softmax(1), batch.targets)
    divergence = divergence_in_numpy(
        student_logits.detach().double().numpy(), teacher_logits.detach().double().numpy(), 4.0
    )
    assert parts["loss"].item() == pytest.approx(0.3 * label_loss.item() + 0.7 * divergence, abs=1e-6)
    assert float(parts["agreement"]) == pytest.approx(
        float((student_logits.argmax(1) == teacher_logits.argmax(1)).float().mean())
    )
    assert float(parts["teacher_accuracy"]) == pytest.approx(
        float((teacher_logits.argmax(1) == batch.targets).float().mean())
    )
    hard = Distillation(student, Teacher([network]), config=make_config(target_type="hard"))
    expected = functional.cross_entropy(student_logits, teacher_logits.argmax(1))
    assert float(hard.training_step({"labelled": batch}, 0)["loss_teacher"]) == pytest.approx(expected.item(), abs=1e-6)


def test_over_a_pass_with_and_without_labels_the_label_loss_is_the_mean_over_the_labelled():
    torch.manual_seed(0)
    student, network, batch = prepare(MLP(make_spec(), width=8, depth=2)), LeNet5(make_spec()), make_batch()["labelled"]
    targets = torch.tensor([3, -1, -1, 5, -1, -1])  # in batches of 2: one labelled image, one, none
    module = Distillation(
        student, Teacher([network]), config=make_config(images="all"), stream="all", labelled_fraction=2 / 6
    )
    steps = []
    for first in (0, 2, 4):
        part = StreamBatch(batch.images[first : first + 2], targets[first : first + 2])
        steps.append(module.training_step({"all": part}, 0))
        steps[-1]["loss"].backward()
    logits, labelled = student(batch.images).detach(), targets >= 0
    for name, expected in {
        "loss_label": functional.cross_entropy(logits[labelled], targets[labelled]),
        "loss_teacher": softened_divergence(logits, network(batch.images), 4.0),
    }.items():
        torch.testing.assert_close(torch.stack([step[name] for step in steps]).mean(), expected.detach())
    assert all(torch.isfinite(parameter.grad).all() for parameter in student.parameters())
    sums = {name: sum(step[name] for step in steps) for name in steps[0]}
    correct = (logits[labelled].argmax(1) == targets[labelled]).float().mean()
    assert compute_means(sums, 3)["accuracy"] == pytest.approx(float(correct))
    first_step = compute_means(steps[0], 1)  # one labelled image of two, where a third is the mean
    assert first_step["accuracy"] in {0.0, 1.0}
    assert "accuracy:count" not in first_step
    assert "accuracy" not in compute_means(steps[2], 1)


def test_cached_logits_give_the_same_loss_as_the_teacher():
    torch.manual_seed(0)
    student, network, batch = prepare(MLP(make_spec(), width=8, depth=2)), LeNet5(make_spec()), make_batch()["labelled"]
    with_teacher = Distillation(student, Teacher([network]), config=make_config()).training_step({"labelled": batch}, 0)
    with torch.no_grad():
        cached_batch = batch._replace(cached=network(batch.images) - 3.0)
    other_teacher = Teacher([LeNet5(make_spec())])  # is not run
    with_cache = Distillation(student, other_teacher, config=make_config()).training_step({"labelled": cached_batch}, 0)
    for name in ("loss", "kl", "agreement"):
        torch.testing.assert_close(with_cache[name], with_teacher[name])


def test_the_probabilities_of_several_teachers_are_their_geometric_mean():
    torch.manual_seed(0)
    networks, images = [LeNet5(make_spec()), MLP(make_spec(), width=8, depth=2)], make_batch()["labelled"].images
    probabilities = (Teacher(networks)(images) / 3).softmax(1)
    product = torch.stack([(network(images) / 3).softmax(1) for network in networks]).log().mean(0).exp()
    torch.testing.assert_close(probabilities, product / product.sum(1, keepdim=True))
    with pytest.raises(UserError, match=r"strategy.teachers: their classes differ \(10 and 5"):
        Teacher([networks[0], LeNet5(make_spec(classes=5))])


def test_a_teacher_sees_images_in_its_own_size_and_colours():
    torch.manual_seed(0)
    teacher, colour = Teacher([ResNet(make_spec(3, 32), width=8, depth=1)]), Teacher([LeNet5(make_spec(1, 20))])
    grey, rgb = (make_batch(channels)["labelled"].images for channels in (1, 3))
    assert teacher(grey).shape == colour(rgb).shape == (6, 10)
    resized = adapt_images(grey, make_spec(3, 32))
    expected = functional.interpolate(grey.float(), (32, 32), mode="bilinear", antialias=True)
    assert all(torch.equal(resized[:, channel], expected[:, 0]) for channel in range(3))
    by_cv2 = adapt_images(rgb, make_spec(1, 28)).round()[:, 0].numpy()
    import cv2

    expected = np.stack([cv2.cvtColor(image.permute(1, 2, 0).numpy(), cv2.COLOR_RGB2GRAY) for image in rgb])
    assert np.abs(by_cv2 - expected).max() <= 1
    assert adapt_images(grey, make_spec()) is grey


def test_a_student_of_a_teacher_with_other_classes_has_a_second_head():
    torch.manual_seed(0)
    network = LeNet5(make_spec(classes=4))
    module = Distillation(prepare(LeNet5(make_spec())), Teacher([network]), config=make_config())
    assert module.second.weight.shape == (4, 84)
    initial = copy_state(module)
    parts = train_steps(module, make_batch())
    assert "teacher_accuracy" not in parts and float(parts["loss_teacher"]) > 0
    assert not any(torch.equal(initial[name], value) for name, value in module.state_dict().items())
    assert module.classifier is module.student and weight_hash(module.classifier) == weight_hash(module.student)
    with pytest.raises(UserError, match=r"strategy.decoupled: the teacher's classes are not those of the data"):
        Distillation(module.student, Teacher([network]), config=make_config(decoupled=Decoupled()))
    with pytest.raises(UserError, match=r"use strategy=distillation"):
        TeacherStudent(module.student, Teacher([network]), stream="pool", temperature=4.0)


def test_without_labels_the_student_learns_the_divergence_alone():
    torch.manual_seed(0)
    student, network, batch = prepare(LeNet5(make_spec())), MLP(make_spec(), width=8, depth=2), make_batch()["labelled"]
    module = TeacherStudent(student, Teacher([network]), stream="pool", temperature=2.0)
    parts = module.training_step({"pool": batch._replace(targets=batch.targets * 0 - 1)}, 0)
    expected = softened_divergence(student(batch.images), network(batch.images), 2.0)
    torch.testing.assert_close(parts["loss"], expected)
    assert set(parts) == {"loss", "kl", "agreement"}


def test_hints_train_the_layers_up_to_the_guided_one():
    torch.manual_seed(0)
    network, student = SmallVGG(make_spec(), width=0.25), prepare(LeNet5(make_spec()))
    module = HintTraining(student, Teacher([network]), hints=Hints(student="backbone.3", teacher="backbone.9"))
    assert module.regressor.map.weight.shape == (16, 16, 1, 1)
    initial = copy_state(module)
    batch = make_batch()["labelled"]
    loss = module.training_step({"labelled": batch}, 0)["loss"]
    maps = functional.conv2d(
        student.backbone[:4]((batch.images - student.mean) * student.scale), *module.regressor.map.parameters()
    )
    maps = functional.interpolate(maps, (14, 14), mode="bilinear")
    network.eval()
    hint = network.backbone[:10]((batch.images - network.mean) * network.scale)
    torch.testing.assert_close(loss, ((maps - hint) ** 2).mean() / 2)
    train_steps(module, make_batch())
    changed = {name for name, value in module.state_dict().items() if not torch.equal(initial[name], value)}
    assert changed == {
        *(f"student.backbone.{layer}.{kind}" for layer in (0, 3) for kind in ("weight", "bias")),
        *(f"regressor.map.{kind}" for kind in ("weight", "bias")),
    }


def test_a_hint_may_go_from_maps_to_vectors_and_a_missing_layer_is_an_error():
    maps, vectors = torch.rand(2, 3, 6, 6), torch.rand(2, 12)
    assert Regressor(maps.shape, vectors.shape)(maps).shape == (2, 12)
    assert Regressor(vectors.shape, maps.shape)(vectors).shape == maps.shape
    teacher = Teacher([SmallVGG(make_spec(), width=0.25)])
    student = MLP(make_spec(), width=8, depth=2)
    module = HintTraining(student, teacher, hints=Hints())
    assert (module._guided, module._hint) == ("backbone.1", "backbone.8")
    assert layer_output(student, "backbone.3", make_batch()["labelled"].images).shape == (6, 8)
    with pytest.raises(UserError, match=r"strategy.hints.student=backbone.77: no such layer; .* backbone.2, backbone."):
        HintTraining(student, teacher, hints=Hints(student="backbone.77"))
    small = MLP(make_spec(), width=8, depth=1)
    with pytest.raises(UserError, match=r"no such layer; there are backbone.0, .*, backbone.3$"):
        HintTraining(small, teacher, hints=Hints(student="backbone.77"))


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (lambda: LeNet5(make_spec()), "backbone.3"),
        (lambda: ResNet(make_spec(), width=8, depth=1), "backbone.3"),
        (lambda: Timm(make_spec(3, 32), name="resnet18"), "backbone.0.layer1"),
        (lambda: Timm(make_spec(3, 32), name="vit_tiny_patch16_224"), "backbone.0.blocks.5"),
        (lambda: Torchvision(make_spec(3, 32), name="mobilenet_v2"), "backbone.0.features.9"),
        (lambda: Torchvision(make_spec(3, 224), name="vgg11"), "backbone.0.features"),
    ],
)
def test_the_middle_layer_is_found_however_the_layers_are_wrapped(make, expected):
    with torch.device("meta"):
        network = make()
        assert middle_layer(network) == expected
        spec = network.spec
        images = torch.zeros(2, spec.channels, spec.image_size, spec.image_size, dtype=torch.uint8)
        assert layer_output(network.eval(), expected, images).shape[0] == 2


@pytest.mark.parametrize("make", [lambda: Perceptron(make_spec()), lambda: MLP(make_spec(), width=8, depth=1)])
def test_a_network_of_fewer_than_two_layers_has_no_middle(make):
    with pytest.raises(UserError, match=r"the backbone of \w+ has [01] layers with weights, and no middle"):
        middle_layer(make())


def test_computing_a_layers_output_does_not_change_the_layers_above_it():
    torch.manual_seed(0)
    network, images = SmallVGG(make_spec(), width=0.25).train(), make_batch()["labelled"].images
    initial = copy_state(network)
    layer_output(network, "backbone.3", images).sum().backward()
    changed = {name for name, value in network.state_dict().items() if not torch.equal(initial[name], value)}
    assert changed == {f"backbone.1.{name}" for name in ("running_mean", "running_var", "num_batches_tracked")}
    assert {name for name, p in network.named_parameters() if p.grad is not None} == {
        "backbone.0.weight", "backbone.1.weight", "backbone.1.bias", "backbone.3.weight",
    }  # fmt: skip
    assert network(images).shape == (6, 10)  # the full forward pass works again
    network.backbone.unused = torch.nn.Linear(2, 2)
    network.features = lambda images: None
    with pytest.raises(UserError, match="backbone.unused of SmallVGG is not used as a whole; name another layer"):
        layer_output(network, "backbone.unused", images)


def test_a_teachers_logits_are_computed_in_its_own_precision_under_autocast():
    torch.manual_seed(0)
    teacher, images = Teacher([SmallVGG(make_spec(), width=0.25)]), make_batch()["labelled"].images
    expected, hint = teacher(images), teacher.layer_output("backbone.3", images)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(teacher(images), expected)
        assert torch.equal(teacher.layer_output("backbone.3", images), hint)


def plan_stages(*overrides: str, pool: bool = True):
    config = compose(["strategy=distillation", "schedule.epochs=null", "schedule.steps=10", *overrides])
    source = make_source(np.repeat(np.arange(4), 30), test=8, unlabelled=0)
    splits = split(source, data_config(**({"labels_per_class": 3} if pool else {})))
    return config, config.strategy.stages(StageContext(config, source, splits)), splits


def test_the_stages_are_teacher_student_and_control():
    config, plan, _ = plan_stages("strategy.teacher_length=0.5", "model=mlp")
    assert [stage.name for stage in plan] == ["teacher", "student", "control"]
    assert [stage.steps for stage in plan] == [5, 10, 10]
    assert plan[0].model == config.strategy.teacher and plan[1].model == plan[2].model == config.model
    assert plan[1].teacher.networks == "teacher" and plan[1].teacher.cached_views == 8 and plan[2].teacher is None
    assert [stage.control for stage in plan] == [False, False, True]


def test_hints_have_a_stage_of_their_own_and_the_control_trains_as_many_steps():
    _, plan, _ = plan_stages("strategy.hints={length: 0.3}")
    assert [(stage.name, stage.steps) for stage in plan] == [
        ("teacher", 10), ("hints", 3), ("student", 10), ("control", 13),
    ]  # fmt: skip
    assert plan[1].teacher.live and plan[2].starts_from == "hints"


def test_a_student_may_also_learn_from_images_without_labels():
    _, plan, splits = plan_stages("strategy.images=all")
    teacher, student, control = plan
    (stream,) = student.streams({})
    assert stream.indices.tolist() == [*splits.labelled, *splits.pool]
    assert (stream.targets >= 0).sum() == len(splits.labelled) and (stream.targets[len(splits.labelled) :] == -1).all()
    assert student.teacher.stream == stream.name == "all"
    for stage in (teacher, control):
        assert stage.streams({})[0].indices.tolist() == splits.labelled.tolist()
    for refused, instead in {
        "strategy.decoupled={}": "null",
        "augmentation=mixup": "null",
        "data.balance=sampling": "none or weights",
    }.items():
        message = f"strategy.images=all: .* needs the labels of all images; set it to {instead}"
        with pytest.raises(UserError, match=message):
            plan_stages("strategy.images=all", refused)


def test_given_teachers_are_not_trained():
    _, plan, _ = plan_stages("strategy.teachers=[a, b/c]", "strategy.teacher_logits=passes", "strategy.control=false")
    assert [stage.name for stage in plan] == ["student"]
    assert plan[0].teacher.networks == (Path("a"), Path("b/c")) and plan[0].teacher.cached_views is None
    with pytest.raises(UserError, match="strategy.hints: 2 teachers give no one hint"):
        plan_stages("strategy.teachers=[a, b/c]", "strategy.hints={}")


def test_a_student_without_labels_learns_from_the_pool_or_a_note_names_the_images():
    _, plan, splits = plan_stages("strategy=teacher_student")
    (stream,) = plan[1].streams({})
    assert stream.name == "pool" and (stream.indices == splits.pool).all() and (stream.targets == -1).all()
    assert not plan[1].note
    _, plan, splits = plan_stages("strategy=teacher_student", pool=False)
    (stream,) = plan[1].streams({})
    assert stream.name == "labelled" and "without their labels" in plan[1].note


def test_a_student_may_learn_from_another_runs_folder_or_weights_file(tmp_path, capfd):
    """A first run trains a student; a second and a third learn from it, named by its folder and by its weights file."""
    assert run(tmp_path / "first", *DISTILLATION, "data.image_size=20") == 0
    teacher = only_run(tmp_path / "first")
    teachers = f"strategy.teachers=[{teacher}]"
    assert run(tmp_path / "by folder", *DISTILLATION, teachers) == 0
    record = read_record(RunFolder(only_run(tmp_path / "by folder")))
    assert [stage["name"] for stage in record["stages"]] == ["student", "control"]
    first_student = {stage["name"]: stage for stage in read_record(RunFolder(teacher))["stages"]}["student"]
    assert [stage.get("teacher_sha256") for stage in record["stages"]] == [[first_student["weights_sha256"]], None]
    (measured,) = record["given_teachers"]
    images = next(iter(data_module(compose(DISTILLATION).data).eval_dataloader(record_test_images(teacher), 512)))
    network = load_classifier(teacher / "stages/2-student/checkpoints/final.ckpt").eval()
    resized = functional.interpolate(images.images.float(), (20, 20), mode="bilinear", antialias=True)
    with torch.no_grad():
        correct = network(resized).argmax(dim=1) == images.labels
    assert measured["result"]["test/accuracy"] == pytest.approx(correct.float().mean().item(), abs=1e-6)
    assert measured["names"] == [str(teacher)] and not any(key.startswith("val") for key in measured["result"])
    rows = [row[:5] for row in build_rows(record)]
    assert rows[0] == ("teacher (given)", "MLP x16", f"{first_student['parameters']:,}", "-", "-")
    assert [row[0] for row in rows] == ["teacher (given)", "student", "control"]
    assert f"teacher (given): {teacher}." in build_notes(record)
    file = teacher / "stages/2-student/checkpoints/final.ckpt"
    assert run(tmp_path / "by file", *DISTILLATION, f"strategy.teachers=[{file}]") == 0
    assert outcome(tmp_path / "by file") == outcome(tmp_path / "by folder")
    assert (
        only_run(tmp_path / "by file").name == only_run(tmp_path / "by folder").name
    )  # the name follows from the weights, not from the path
    with (only_run(tmp_path / "by file") / "stages/1-student/metrics.csv").open() as lines:
        names = set(next(csv.reader(lines)))
    assert {f"train/{name}" for name in ("loss_label", "loss_teacher", "kl", "agreement", "teacher_accuracy")} <= names


def record_test_images(folder: Path) -> np.ndarray:
    """Return the indices of the test images of a run's networks."""
    return read_predictions(folder / "stages/2-student/test.parquet").indices


def test_a_given_teacher_is_measured_on_validation_alone_where_the_test_set_is_untouched(tmp_path):
    file = save_teacher(10, tmp_path)
    overrides = ("strategy.control=false", "data.validation=inside", "schedule.steps=2")
    command = (*DISTILLATION, *overrides, f"strategy.teachers=[{file}]")
    assert run(tmp_path / "a", *command, "evaluate_test=false") == 0
    record = read_record(RunFolder(only_run(tmp_path / "a")))
    (untested,) = record["given_teachers"]
    assert set(untested["result"]) == {"val/accuracy", "val/balanced_accuracy", "val/f1"}
    assert run(tmp_path / "a", *command) == 0
    record = read_record(RunFolder(only_run(tmp_path / "a")))
    (tested,) = record["given_teachers"]
    assert untested["result"].items() < tested["result"].items() and "test/f1" in tested["result"]
    config = compose([*DISTILLATION, *overrides]).data
    batch = next(iter(data_module(config).eval_dataloader(data_module(config).splits.validation, 512)))
    with torch.no_grad():
        predicted = load_classifier(file).eval()(batch.images).argmax(dim=1)
    assert tested["result"]["val/f1"] == pytest.approx(f1_score(batch.labels, predicted, average="macro"), abs=1e-6)


def forbid_training() -> None:
    """Make a run fail if it starts or resumes."""
    from tutelage.runs import start

    start.started_run = None


def test_the_identity_has_the_teachers_weights_and_nothing_of_a_teacher_that_is_not_trained(tmp_path):
    file = tmp_path / "weights"
    file.write_bytes(b"weights")

    def strategy_identity(*overrides: str) -> dict:
        config = compose([*DISTILLATION, *overrides])
        return run_identity(config, fingerprint(config.data))["strategy"]

    identity = strategy_identity(f"strategy.teachers=[{file}]")
    assert len(identity["teachers"][0]) == 64 and "teacher" not in identity
    assert identity == strategy_identity(
        f"strategy.teachers=[{file}]", "model@strategy.teacher=mlp", "strategy.teacher_length=2"
    )
    assert strategy_identity() != strategy_identity("model@strategy.teacher=mlp")
    with pytest.raises(UserError, match="strategy.teachers=/proc/nowhere: cannot be read"):
        strategy_identity("strategy.teachers=[/proc/nowhere]")


def save_teacher(classes: int, folder: Path) -> Path:
    """Save a LeNet-5 for this number of classes, as a run does, and return its file."""
    torch.manual_seed(0)
    network = LeNet5(make_spec(classes=classes))
    save_classifier(network, {"_target_": "tutelage.models.LeNet5"}, folder / "teacher.ckpt")
    return folder / "teacher.ckpt"


@pytest.mark.parametrize(("is_trained_anew", "reason"), [(False, "are missing or damaged"), (True, "have changed")])
def test_a_given_teacher_whose_file_has_changed_since_it_taught_is_not_measured_and_the_run_ends(
    tmp_path, is_trained_anew, reason
):
    file = save_teacher(10, tmp_path)
    taught = weight_hash(load_classifier(file))
    stage = SimpleNamespace(name="student", teacher=SimpleNamespace(networks=(file,)))
    context = SimpleNamespace(
        weightless_teachers={},
        data_for=lambda stage: None,
        image_spec=make_spec(classes=10),
        record=SimpleNamespace(finished_entry=lambda name: {"teacher_sha256": [taught]}),
    )
    teacher_without_weights(context, stage.teacher)  # at the start of the run
    file.unlink()
    if is_trained_anew:
        save_classifier(LeNet5(make_spec(classes=10)), {"_target_": "tutelage.models.LeNet5"}, file)
    entry = evaluate._evaluate_teacher(context, stage)
    assert entry["models"] == [{"_target_": "tutelage.models.LeNet5"}] and entry["result"] == {}
    assert entry["reason"] == f"its weights {reason} since it taught"


def test_a_student_of_a_teacher_with_other_classes_is_killed_and_ends_with_the_same_weights(tmp_path):
    overrides = (
        *DISTILLATION,
        f"strategy.teachers=[{save_teacher(4, tmp_path)}]",
        "strategy.control=false",
        "logger=csv",
    )
    assert run(tmp_path / "a", *overrides) == 0
    for step in (3, 7):
        assert run(tmp_path / "b", *overrides, before=kill_after("student", step)) == -signal.SIGKILL
    assert run(tmp_path / "b", *overrides) == 0
    expected = outcome(tmp_path / "a")
    assert outcome(tmp_path / "b") == expected
    rows = expected["tables"]["metrics.csv"]
    record = read_record(RunFolder(only_run(tmp_path / "a")))
    assert build_rows(record)[0] == ("teacher (given)", "LeNet5", "61,196", *["-"] * 4)
    assert any("not measured: its classes (4) differ from the run's" in note for note in build_notes(record))
    assert "train/kl" in rows[-1] and "train/teacher_accuracy" not in rows[-1]  # a second head learned


def test_hint_training_keeps_its_final_weights_though_the_run_validates(tmp_path, capfd):
    """The head is not trained yet, so validation cannot select the best weights."""
    overrides = (*DISTILLATION, "strategy.hints={}", "strategy.control=false", "data.validation=inside")
    assert run(tmp_path / "a", *overrides) == 0
    folder, expected = only_run(tmp_path / "a"), outcome(tmp_path / "a")
    checkpoints, record = folder / "stages/2-hints/checkpoints", read_record(RunFolder(folder))
    assert not (checkpoints / "best.ckpt").exists()
    final, last = (
        load_classifier(checkpoints / "final.ckpt"),
        WholeCheckpointIO().load_checkpoint(checkpoints / "last.ckpt"),
    )
    assert all(torch.equal(last["state_dict"][f"student.{name}"], value) for name, value in final.state_dict().items())
    entry = record["stages"][1]
    assert entry["select_best"] is False and not [name for name in entry["result"] if name.startswith("val/")]
    assert "val/accuracy" in record["result"] and "select_best" not in record["stages"][2]
    files = {name: file.name for name, file in weights_files(RunFolder(folder), record).items()}
    assert files == {"teacher": "best.ckpt", "hints": "final.ckpt", "student": "best.ckpt"}
    assert run(tmp_path / "b", *overrides, before=kill_after("student", 4)) == -signal.SIGKILL
    (only_run(tmp_path / "b") / "stages/2-hints/checkpoints/final.ckpt").unlink()
    assert run(tmp_path / "b", *overrides) == 0
    assert "stage hints is run again" in capfd.readouterr().err
    assert outcome(tmp_path / "b") == expected


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("strategy.hints={teacher: backbone.77}",), r"strategy.hints.teacher=backbone.77: no such layer"),
        (("strategy.hints={}", "model=perceptron"), r"the backbone of Perceptron has 0 layers"),
        (
            ("strategy.decoupled={}", "strategy.teachers=[TEACHER]"),
            r"strategy.decoupled: the teacher's classes are not",
        ),
        (
            ("strategy=teacher_student", "strategy.teachers=[TEACHER]"),
            r"strategy=teacher_student: the teacher's classes are not",
        ),
    ],
    ids=["no layer", "no middle", "decoupled", "teacher_student"],
)
def test_networks_that_do_not_fit_are_an_error_before_anything_is_written(overrides, message, tmp_path, capfd):
    file = str(save_teacher(4, tmp_path))
    with_teacher = [override.replace("TEACHER", file) for override in overrides]
    base = [
        override
        for override in DISTILLATION
        if "perceptron" not in str(with_teacher) or not override.startswith("model.")
    ]
    assert run(tmp_path / "outputs", *base, *with_teacher) == 70
    assert re.search(f"UserError: .*{message}", capfd.readouterr().err)
    files = [path for path in (tmp_path / "outputs").rglob("*") if path.is_file()]
    assert {path.parent.name for path in files} == {".locks"}


def test_weights_that_no_run_made_are_refused_as_teachers_before_data_is_read(tmp_path, capfd):
    def no_data() -> None:
        from tutelage.runs import context

        context.stages = None

    torch.save(LeNet5(make_spec()).state_dict(), tmp_path / "weights.pth")
    for source in ("timm:resnet18", str(tmp_path / "weights.pth")):
        assert run(tmp_path / "outputs", *DISTILLATION, f"strategy.teachers=['{source}']", before=no_data) == 70
        message = capfd.readouterr().err
        assert (
            f"strategy.teachers={source}: no network that a run left; name a finished run, or a checkpoint" in message
        )
        assert f"strategy=transfer_frozen init_from={source}" in message and "damaged" not in message
    assert run(tmp_path / "first", *DISTILLATION) == 0
    last = only_run(tmp_path / "first") / "stages/2-student/checkpoints/last.ckpt"
    assert run(tmp_path / "outputs", *DISTILLATION, f"strategy.teachers=[{last}]") == 70
    assert "last.ckpt: holds no network alone; name the run's folder" in capfd.readouterr().err


def test_nearest_neighbours_cannot_be_trained_as_a_teacher():
    with pytest.raises(UserError, match=r"strategy.teacher: nearest neighbours go with strategy=supervised; name a"):
        compose([*DISTILLATION, "model@strategy.teacher=nearest_neighbours"])


@pytest.mark.parametrize(
    "overrides",
    [
        ("strategy=teacher_student", "model@strategy.teacher=lenet5", "data.labels_per_class=3"),
        ("strategy.hints={}",),
        ("strategy.images=all", "strategy.hints={}", "data.labels_per_class=3"),
        ("strategy.decoupled={}", "strategy.teacher_logits=live"),
        ("strategy.target_type=hard", "optimizer.ema_decay=0.9"),
    ],
    ids=["teacher_student", "hints", "all images", "decoupled, live", "hard, averaged"],
)
def test_every_variant_finishes_and_the_same_command_trains_nothing(overrides, outputs):
    assert run(outputs, *DISTILLATION, *overrides) == 0
    first = (only_run(outputs) / "run.json").read_bytes()
    assert run(outputs, *DISTILLATION, *overrides, before=forbid_training) == 0
    assert (only_run(outputs) / "run.json").read_bytes() == first
    record = json.loads(first)
    assert record["status"] == "finished"
    entries = {entry["name"]: entry for entry in record["stages"]}
    assert record["result"] == entries["student"]["result"]
    assert entries["student"]["teacher_sha256"] == [entries["teacher"]["weights_sha256"]]
    assert entries["control"]["steps"] == sum(entries[n]["steps"] for n in ("hints", "student") if n in entries)
    assert "as many steps" in entries["control"]["note"]
