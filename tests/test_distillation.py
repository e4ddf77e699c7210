"""Distillation: what is minimised, who learns, and which stages there are."""

import csv
import json
import re
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional

from helpers.configs import data_config
from helpers.networks import make_spec
from helpers.overrides import DISTILLATION
from helpers.runs import only_run, outcome, run
from helpers.sources import make_source
from helpers.traps import kill_after
from tutelage.config import Decoupled, DistillationConfig, Hints, OptimizerConfig, SchedulerConfig
from tutelage.config.compose import compose
from tutelage.data import StreamBatch, fingerprint, split
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
from tutelage.runs import RunFolder, read_record, run_identity
from tutelage.runs.checkpoints import WholeCheckpointIO
from tutelage.runs.folder import weights_files
from tutelage.strategies import stages
from tutelage.strategies.distillation import Distillation, HintTraining
from tutelage.strategies.teacher_student import TeacherStudent

SEEDS = st.integers(0, 999)
TEMPERATURES = st.floats(0.5, 20)


def logits_of(seed: int, classes: int = 7, batch: int = 5) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    student, teacher = 3 * torch.randn(2, batch, classes, generator=generator, dtype=torch.float64)
    return student, teacher


def by_hand(student: np.ndarray, teacher: np.ndarray, temperature: float) -> float:
    """The formula of the docstring, in numpy, image by image."""
    total = 0.0
    for s, t in zip(student, teacher, strict=True):
        p = np.exp(t / temperature) / np.exp(t / temperature).sum()
        q = np.exp(s / temperature) / np.exp(s / temperature).sum()
        total += temperature**2 * float((p * np.log(p / q)).sum())
    return total / len(student)


@given(SEEDS, TEMPERATURES)
def test_the_softened_divergence_is_the_papers_formula(seed, temperature):
    student, teacher = logits_of(seed)
    found = softened_divergence(student, teacher, temperature)
    assert float(found) == pytest.approx(by_hand(student.numpy(), teacher.numpy(), temperature), abs=1e-6, rel=1e-6)
    assert float(softened_divergence(teacher, teacher, temperature)) == pytest.approx(0, abs=1e-9)


@given(SEEDS)
def test_at_a_high_temperature_it_matches_centred_logits(seed):
    """Hinton 2015, section 2.1, eq. 4: the gradient tends to that of half the squared distance, over the classes."""
    student, teacher = (one - one.mean(dim=1, keepdim=True) for one in logits_of(seed))
    student.requires_grad_()
    softened_divergence(student, teacher, 1e4).backward()
    expected = (student.detach() - teacher) / student.shape[1] / len(student)
    torch.testing.assert_close(student.grad, expected, rtol=1e-2, atol=1e-4)


@given(SEEDS, TEMPERATURES)
def test_the_divergence_is_its_two_parts_with_the_second_weighed_by_the_teachers_doubt(seed, temperature):
    """Zhao 2022, eq. 6: KD = TCKD + (1 - p of the true class) NCKD, image by image."""
    student, teacher = logits_of(seed)
    classes = torch.arange(5) % 7
    target, others = split_divergence(student / temperature, teacher / temperature, classes)
    doubt = 1 - (teacher / temperature).softmax(dim=1)[torch.arange(5), classes]
    found = temperature**2 * (target + doubt * others).mean()
    torch.testing.assert_close(found, softened_divergence(student, teacher, temperature), rtol=1e-6, atol=1e-6)


@given(SEEDS, TEMPERATURES, st.floats(0, 5), st.floats(0, 10))
def test_the_decoupled_divergence_is_the_one_of_its_authors_code(seed, temperature, alpha, beta):
    """As in github.com/megvii-research/mdistiller, distillers/DKD.py: masks, a sum of probabilities, minus 1000."""
    student, teacher = logits_of(seed)
    classes = torch.arange(5) % 7
    true = torch.zeros_like(student).scatter_(1, classes[:, None], 1).bool()
    p_s, p_t = (student / temperature).softmax(1), (teacher / temperature).softmax(1)
    pair_s, pair_t = (torch.stack([(p * true).sum(1), (p * ~true).sum(1)], 1) for p in (p_s, p_t))
    tckd = functional.kl_div(pair_s.log(), pair_t, reduction="sum") * temperature**2 / len(classes)
    other_t = (teacher / temperature - 1000.0 * true).softmax(1)
    other_s = (student / temperature - 1000.0 * true).log_softmax(1)
    nckd = functional.kl_div(other_s, other_t, reduction="sum") * temperature**2 / len(classes)
    found = decoupled_divergence(student, teacher, classes, temperature, alpha, beta)
    torch.testing.assert_close(found, alpha * tckd + beta * nckd, rtol=1e-6, atol=1e-6)


def test_a_hint_is_half_the_mean_square():
    student, teacher = logits_of(0)
    assert float(hint_loss(student, teacher)) == pytest.approx(float(((student - teacher) ** 2).mean() / 2), abs=1e-9)


def test_every_loss_has_a_gradient_for_the_student_only():
    student, teacher = (one.requires_grad_() for one in logits_of(1))
    classes = torch.arange(5)
    for loss in (
        softened_divergence(student, teacher, 4.0),
        decoupled_divergence(student, teacher, classes, 4.0, 1.0, 8.0),
        hint_loss(student, teacher),
    ):
        student.grad = None
        loss.backward()
        assert student.grad.abs().sum() > 0 and teacher.grad is None


def batch_of(channels: int = 1, size: int = 28, count: int = 6) -> dict[str, StreamBatch]:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (count, channels, size, size), generator=generator, dtype=torch.uint8)
    return {"labelled": StreamBatch(images, torch.arange(count) % 10)}


def config_of(**changes) -> DistillationConfig:
    base = {
        "name": "distillation",
        "teachers": ["x"],
        "temperature": 4.0,
        "alpha": 0.3,
        "teacher_logits": "live",
        "cached_views": 1,
    }
    return DistillationConfig(**{**base, **changes})


def ready(network: ImageClassifier) -> ImageClassifier:
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


def state_of(network) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in network.state_dict().items()}


@pytest.mark.parametrize(
    "options", [{}, {"target_type": "hard"}, {"decoupled": Decoupled()}], ids=["soft", "hard", "dkd"]
)
def test_only_the_student_learns_and_the_teacher_stays_as_it_was_to_the_bit(options):
    torch.manual_seed(0)
    network = SmallVGG(make_spec(), width=0.25, dropout=0.5)  # batch norm and dropout
    teacher = Teacher([network])
    module = Distillation(ready(LeNet5(make_spec())), teacher, config=config_of(**options))
    module.train()
    before, of_student = state_of(network), state_of(module.student)
    first = teacher(batch_of()["labelled"].images)
    parts = train_steps(module, batch_of())
    assert not network.training and not any(p.requires_grad or p.grad is not None for p in network.parameters())
    assert all(torch.equal(before[name], value) for name, value in network.state_dict().items())
    assert torch.equal(first, teacher(batch_of()["labelled"].images))
    assert not any(torch.equal(of_student[name], value) for name, value in module.student.state_dict().items())
    assert not [name for name in module.state_dict() if not name.startswith("student.")]  # nor in a checkpoint
    assert set(module.parameters()) == set(module.student.parameters())
    assert {"loss_label", "loss_teacher", "kl", "agreement", "accuracy", "teacher_accuracy"} < set(parts)


def test_the_loss_is_alpha_of_the_labels_and_the_rest_of_the_teacher():
    torch.manual_seed(0)
    student, network, shown = ready(MLP(make_spec(), width=8, depth=2)), LeNet5(make_spec()), batch_of()["labelled"]
    parts = Distillation(student, Teacher([network]), config=config_of()).training_step({"labelled": shown}, 0)
    ours, theirs = student(shown.images), network(shown.images)
    on_labels = functional.nll_loss(ours.log_softmax(1), shown.targets)
    divergence = by_hand(ours.detach().double().numpy(), theirs.detach().double().numpy(), 4.0)
    assert parts["loss"].item() == pytest.approx(0.3 * on_labels.item() + 0.7 * divergence, abs=1e-6)
    assert float(parts["agreement"]) == pytest.approx(float((ours.argmax(1) == theirs.argmax(1)).float().mean()))
    assert float(parts["teacher_accuracy"]) == pytest.approx(float((theirs.argmax(1) == shown.targets).float().mean()))
    hard = Distillation(student, Teacher([network]), config=config_of(target_type="hard"))
    expected = functional.cross_entropy(ours, theirs.argmax(1))
    assert float(hard.training_step({"labelled": shown}, 0)["loss_teacher"]) == pytest.approx(expected.item(), abs=1e-6)


def test_over_a_pass_with_and_without_labels_the_label_loss_is_the_mean_over_the_labelled():
    torch.manual_seed(0)
    student, network, shown = ready(MLP(make_spec(), width=8, depth=2)), LeNet5(make_spec()), batch_of()["labelled"]
    targets = torch.tensor([3, -1, -1, 5, -1, -1])  # in batches of 2: one labelled image, one, none
    module = Distillation(
        student, Teacher([network]), config=config_of(images="all"), stream="all", labelled_fraction=2 / 6
    )
    steps = []
    for first in (0, 2, 4):
        batch = StreamBatch(shown.images[first : first + 2], targets[first : first + 2])
        steps.append(module.training_step({"all": batch}, 0))
        steps[-1]["loss"].backward()
    logits, labelled = student(shown.images).detach(), targets >= 0
    for name, expected in {
        "loss_label": functional.cross_entropy(logits[labelled], targets[labelled]),
        "accuracy": (logits[labelled].argmax(1) == targets[labelled]).float().mean(),
        "loss_teacher": softened_divergence(logits, network(shown.images), 4.0),
    }.items():
        torch.testing.assert_close(torch.stack([step[name] for step in steps]).mean(), expected.detach())
    assert all(torch.isfinite(parameter.grad).all() for parameter in student.parameters())


def test_kept_answers_stand_in_for_the_teacher():
    torch.manual_seed(0)
    student, network, shown = ready(MLP(make_spec(), width=8, depth=2)), LeNet5(make_spec()), batch_of()["labelled"]
    live = Distillation(student, Teacher([network]), config=config_of()).training_step({"labelled": shown}, 0)
    with torch.no_grad():
        kept = shown._replace(cached=network(shown.images) - 3.0)
    other = Teacher([LeNet5(make_spec())])  # is not asked
    found = Distillation(student, other, config=config_of()).training_step({"labelled": kept}, 0)
    for name in ("loss", "kl", "agreement"):
        torch.testing.assert_close(found[name], live[name])


def test_several_teachers_answer_by_the_geometric_mean():
    torch.manual_seed(0)
    networks, images = [LeNet5(make_spec()), MLP(make_spec(), width=8, depth=2)], batch_of()["labelled"].images
    found = (Teacher(networks)(images) / 3).softmax(1)
    product = torch.stack([(network(images) / 3).softmax(1) for network in networks]).log().mean(0).exp()
    torch.testing.assert_close(found, product / product.sum(1, keepdim=True))
    with pytest.raises(UserError, match=r"strategy.teachers: their classes differ \(10 and 5"):
        Teacher([networks[0], LeNet5(make_spec(classes=5))])


def test_a_teacher_sees_images_in_its_own_size_and_colours():
    torch.manual_seed(0)
    teacher, colour = Teacher([ResNet(make_spec(3, 32), width=4, depth=1)]), Teacher([LeNet5(make_spec(1, 20))])
    grey, rgb = (batch_of(channels)["labelled"].images for channels in (1, 3))
    assert teacher(grey).shape == colour(rgb).shape == (6, 10)
    resized = adapt_images(grey, make_spec(3, 32))
    expected = functional.interpolate(grey.float(), (32, 32), mode="bilinear", antialias=True)
    assert all(torch.equal(resized[:, channel], expected[:, 0]) for channel in range(3))
    by_cv2 = adapt_images(rgb, make_spec(1, 28)).round()[:, 0].numpy()
    import cv2

    expected = np.stack([cv2.cvtColor(image.permute(1, 2, 0).numpy(), cv2.COLOR_RGB2GRAY) for image in rgb])
    assert np.abs(by_cv2 - expected).max() <= 1
    assert adapt_images(grey, make_spec()) is grey


def test_for_a_teacher_with_other_classes_the_student_grows_a_second_head():
    torch.manual_seed(0)
    network = LeNet5(make_spec(classes=4))
    module = Distillation(ready(LeNet5(make_spec())), Teacher([network]), config=config_of())
    assert module.second.weight.shape == (4, 84)
    before = state_of(module)
    parts = train_steps(module, batch_of())
    assert "teacher_accuracy" not in parts and float(parts["loss_teacher"]) > 0
    assert not any(torch.equal(before[name], value) for name, value in module.state_dict().items())
    assert module.classifier is module.student and weight_hash(module.classifier) == weight_hash(module.student)
    with pytest.raises(UserError, match=r"strategy.decoupled: the teacher's classes are not those of the data"):
        Distillation(module.student, Teacher([network]), config=config_of(decoupled=Decoupled()))
    with pytest.raises(UserError, match=r"use strategy=distillation"):
        TeacherStudent(module.student, Teacher([network]), stream="pool", temperature=4.0)


def test_without_labels_the_student_learns_the_divergence_alone():
    torch.manual_seed(0)
    student, network, shown = ready(LeNet5(make_spec())), MLP(make_spec(), width=8, depth=2), batch_of()["labelled"]
    module = TeacherStudent(student, Teacher([network]), stream="pool", temperature=2.0)
    parts = module.training_step({"pool": shown._replace(targets=shown.targets * 0 - 1)}, 0)
    expected = softened_divergence(student(shown.images), network(shown.images), 2.0)
    torch.testing.assert_close(parts["loss"], expected)
    assert set(parts) == {"loss", "kl", "agreement"}


def test_hints_teach_the_layers_up_to_the_guided_one():
    torch.manual_seed(0)
    network, student = SmallVGG(make_spec(), width=0.25), ready(LeNet5(make_spec()))
    module = HintTraining(student, Teacher([network]), hints=Hints(student="backbone.3", teacher="backbone.9"))
    assert module.regressor.map.weight.shape == (16, 16, 1, 1)
    before = state_of(module)
    shown = batch_of()["labelled"]
    loss = module.training_step({"labelled": shown}, 0)["loss"]
    maps = functional.conv2d(
        student.backbone[:4]((shown.images - student.mean) * student.scale), *module.regressor.map.parameters()
    )
    maps = functional.interpolate(maps, (14, 14), mode="bilinear")
    network.eval()
    hint = network.backbone[:10]((shown.images - network.mean) * network.scale)
    torch.testing.assert_close(loss, ((maps - hint) ** 2).mean() / 2)
    train_steps(module, batch_of())
    moved = {name for name, value in module.state_dict().items() if not torch.equal(before[name], value)}
    assert moved == {
        *(f"student.backbone.{layer}.{kind}" for layer in (0, 3) for kind in ("weight", "bias")),
        *(f"regressor.map.{kind}" for kind in ("weight", "bias")),
    }


def test_a_hint_may_go_from_maps_to_vectors_and_layers_that_are_not_there_are_told():
    maps, vectors = torch.rand(2, 3, 6, 6), torch.rand(2, 12)
    assert Regressor(maps.shape, vectors.shape)(maps).shape == (2, 12)
    assert Regressor(vectors.shape, maps.shape)(vectors).shape == maps.shape
    teacher = Teacher([SmallVGG(make_spec(), width=0.25)])
    student = MLP(make_spec(), width=8, depth=2)
    module = HintTraining(student, teacher, hints=Hints())
    assert (module._guided, module._hint) == ("backbone.1", "backbone.8")
    assert layer_output(student, "backbone.3", batch_of()["labelled"].images).shape == (6, 8)
    with pytest.raises(UserError, match=r"strategy.hints.student=backbone.77: no such layer; .* backbone.2, backbone."):
        HintTraining(student, teacher, hints=Hints(student="backbone.77"))
    small = MLP(make_spec(), width=8, depth=1)
    with pytest.raises(UserError, match=r"no such layer; there are backbone.0, .*, backbone.3$"):
        HintTraining(small, teacher, hints=Hints(student="backbone.77"))


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (lambda: LeNet5(make_spec()), "backbone.3"),
        (lambda: ResNet(make_spec(), width=4, depth=1), "backbone.3"),
        (lambda: Timm(make_spec(3, 32), name="resnet18"), "backbone.0.layer1"),
        (lambda: Timm(make_spec(3, 32), name="vit_tiny_patch16_224"), "backbone.0.blocks.5"),
        (lambda: Torchvision(make_spec(3, 32), name="mobilenet_v2"), "backbone.0.features.9"),
        (lambda: Torchvision(make_spec(3, 224), name="vgg11"), "backbone.0.features"),
    ],
)
def test_the_middle_of_a_network_is_that_of_its_layers_however_they_are_wrapped(make, expected):
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


def test_the_way_to_a_layer_leaves_what_lies_above_it_as_it_was():
    torch.manual_seed(0)
    network, images = SmallVGG(make_spec(), width=0.25).train(), batch_of()["labelled"].images
    before = state_of(network)
    layer_output(network, "backbone.3", images).sum().backward()
    moved = {name for name, value in network.state_dict().items() if not torch.equal(before[name], value)}
    assert moved == {f"backbone.1.{name}" for name in ("running_mean", "running_var", "num_batches_tracked")}
    assert {name for name, p in network.named_parameters() if p.grad is not None} == {
        "backbone.0.weight", "backbone.1.weight", "backbone.1.bias", "backbone.3.weight",
    }  # fmt: skip
    assert network(images).shape == (6, 10)  # the whole way is open again
    network.backbone.unused = torch.nn.Linear(2, 2)
    network.features = lambda images: None
    with pytest.raises(UserError, match="backbone.unused of SmallVGG is not used as a whole; name another layer"):
        layer_output(network, "backbone.unused", images)


def test_a_teacher_answers_in_its_own_precision_whatever_the_step_around_it_computes_in():
    torch.manual_seed(0)
    teacher, images = Teacher([SmallVGG(make_spec(), width=0.25)]), batch_of()["labelled"].images
    expected, hint = teacher(images), teacher.layer_output("backbone.3", images)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(teacher(images), expected)
        assert torch.equal(teacher.layer_output("backbone.3", images), hint)


def plan_of(*overrides: str, pool: bool = True):
    config = compose(["strategy=distillation", "schedule.epochs=null", "schedule.steps=10", *overrides])
    source = make_source(np.repeat(np.arange(4), 30), test=8, unlabelled=0)
    splits = split(source, data_config(**({"labels_per_class": 3} if pool else {})))
    return config, stages(config, source, splits), splits


def test_the_stages_are_teacher_student_control():
    config, plan, _ = plan_of("strategy.teacher_length=0.5", "model=mlp")
    assert [stage.name for stage in plan] == ["teacher", "student", "control"]
    assert [stage.steps for stage in plan] == [5, 10, 10]
    assert plan[0].model == config.strategy.teacher and plan[1].model == plan[2].model == config.model
    assert plan[1].teacher.networks == "teacher" and plan[1].teacher.cached_views == 8 and plan[2].teacher is None
    assert [stage.control for stage in plan] == [False, False, True]


def test_with_hints_there_is_a_stage_of_them_and_the_control_has_as_many_steps():
    _, plan, _ = plan_of("strategy.hints={length: 0.3}")
    assert [(stage.name, stage.steps) for stage in plan] == [
        ("teacher", 10), ("hints", 3), ("student", 10), ("control", 13),
    ]  # fmt: skip
    assert plan[1].teacher.live and plan[2].starts_from == "hints"


def test_a_teacher_may_answer_to_images_without_labels_too():
    _, plan, splits = plan_of("strategy.images=all")
    teacher, student, control = plan
    (stream,) = student.streams({})
    assert stream.indices.tolist() == [*splits.labelled, *splits.pool]
    assert (stream.targets >= 0).sum() == len(splits.labelled) and (stream.targets[len(splits.labelled) :] == -1).all()
    assert student.teacher.stream == stream.name == "all"
    for other in (teacher, control):
        assert other.streams({})[0].indices.tolist() == splits.labelled.tolist()
    for refused, instead in {
        "strategy.decoupled={}": "null",
        "augmentation=mixup": "null",
        "data.balance=sampling": "none or weights",
    }.items():
        message = f"strategy.images=all: .* needs the labels of all images; set it to {instead}"
        with pytest.raises(UserError, match=message):
            plan_of("strategy.images=all", refused)


def test_given_teachers_are_not_trained():
    _, plan, _ = plan_of("strategy.teachers=[a, b/c]", "strategy.teacher_logits=passes", "strategy.control=false")
    assert [stage.name for stage in plan] == ["student"]
    assert plan[0].teacher.networks == (Path("a"), Path("b/c")) and plan[0].teacher.cached_views is None
    with pytest.raises(UserError, match="strategy.hints: 2 teachers give no one hint"):
        plan_of("strategy.teachers=[a, b/c]", "strategy.hints={}")


def test_a_student_without_labels_sees_the_pool_or_it_is_said_what_else():
    _, plan, splits = plan_of("strategy=teacher_student")
    (stream,) = plan[1].streams({})
    assert stream.name == "pool" and (stream.indices == splits.pool).all() and (stream.targets == -1).all()
    assert not plan[1].note
    _, plan, splits = plan_of("strategy=teacher_student", pool=False)
    (stream,) = plan[1].streams({})
    assert stream.name == "labelled" and "without their labels" in plan[1].note


def test_a_run_ends_with_students_that_learned_from_runs_of_any_classes_or_size(tmp_path, capfd):
    """A first run trains two teachers' worth; a second and a third take it, by its folder and by its file."""
    assert run(tmp_path / "first", *DISTILLATION, "data.image_size=20") == 0
    teacher = only_run(tmp_path / "first")
    given = f"strategy.teachers=[{teacher}]"
    assert run(tmp_path / "by folder", *DISTILLATION, given) == 0
    record = read_record(RunFolder(only_run(tmp_path / "by folder")))
    assert [stage["name"] for stage in record["stages"]] == ["student", "control"]
    answered = {stage["name"]: stage for stage in read_record(RunFolder(teacher))["stages"]}["student"]
    assert [stage.get("teacher_sha256") for stage in record["stages"]] == [[answered["weights_sha256"]], None]
    file = teacher / "stages/2-student/checkpoints/final.ckpt"
    assert run(tmp_path / "by file", *DISTILLATION, f"strategy.teachers=[{file}]") == 0
    assert outcome(tmp_path / "by file") == outcome(tmp_path / "by folder")
    assert only_run(tmp_path / "by file").name == only_run(tmp_path / "by folder").name  # it is what it is
    with (only_run(tmp_path / "by file") / "stages/1-student/metrics.csv").open() as lines:
        names = set(next(csv.reader(lines)))
    assert {f"train/{name}" for name in ("loss_label", "loss_teacher", "kl", "agreement", "teacher_accuracy")} <= names


def no_training() -> None:
    """Fail where a run is begun or gone on with."""
    from tutelage.runs import start

    start.started_run = None


def test_the_identity_has_the_teachers_weights_and_nothing_of_a_teacher_that_is_not_trained(tmp_path):
    file = tmp_path / "weights"
    file.write_bytes(b"weights")

    def identity_of(*overrides: str) -> dict:
        config = compose([*DISTILLATION, *overrides])
        return run_identity(config, fingerprint(config.data))["strategy"]

    given = identity_of(f"strategy.teachers=[{file}]")
    assert len(given["teachers"][0]) == 64 and "teacher" not in given
    assert given == identity_of(
        f"strategy.teachers=[{file}]", "model@strategy.teacher=mlp", "strategy.teacher_length=2"
    )
    assert identity_of() != identity_of("model@strategy.teacher=mlp")
    with pytest.raises(UserError, match="strategy.teachers=/proc/nowhere: cannot be read"):
        identity_of("strategy.teachers=[/proc/nowhere]")


def teacher_of(classes: int, folder: Path) -> Path:
    """Return the file of a network that tells so many classes apart, as a run leaves it."""
    torch.manual_seed(0)
    network = LeNet5(make_spec(classes=classes))
    save_classifier(network, {"_target_": "tutelage.models.LeNet5"}, folder / "teacher.ckpt")
    return folder / "teacher.ckpt"


def test_a_student_of_a_teacher_with_other_classes_is_killed_and_ends_with_the_same_weights(tmp_path):
    taught = (*DISTILLATION, f"strategy.teachers=[{teacher_of(4, tmp_path)}]", "strategy.control=false", "logger=csv")
    assert run(tmp_path / "a", *taught) == 0
    for step in (3, 7):
        assert run(tmp_path / "b", *taught, before=kill_after("student", step)) == -signal.SIGKILL
    assert run(tmp_path / "b", *taught) == 0
    expected = outcome(tmp_path / "a")
    assert outcome(tmp_path / "b") == expected
    rows = expected["tables"]["metrics.csv"]
    assert "train/kl" in rows[-1] and "train/teacher_accuracy" not in rows[-1]  # a second head learned


def test_hints_are_kept_as_they_end_though_the_run_validates(tmp_path, capfd):
    """No head has learned yet: validation could not tell the best of them."""
    hinted = (*DISTILLATION, "strategy.hints={}", "strategy.control=false", "data.validation=inside")
    assert run(tmp_path / "a", *hinted) == 0
    folder, expected = only_run(tmp_path / "a"), outcome(tmp_path / "a")
    place, record = folder / "stages/2-hints/checkpoints", read_record(RunFolder(folder))
    assert not (place / "best.ckpt").exists()
    kept, last = load_classifier(place / "final.ckpt"), WholeCheckpointIO().load_checkpoint(place / "last.ckpt")
    assert all(torch.equal(last["state_dict"][f"student.{name}"], value) for name, value in kept.state_dict().items())
    entry = record["stages"][1]
    assert entry["select_best"] is False and not [name for name in entry["result"] if name.startswith("val/")]
    assert "val/accuracy" in record["result"] and "select_best" not in record["stages"][2]
    files = {name: file.name for name, file in weights_files(RunFolder(folder), record).items()}
    assert files == {"teacher": "best.ckpt", "hints": "final.ckpt", "student": "best.ckpt"}
    assert run(tmp_path / "b", *hinted, before=kill_after("student", 4)) == -signal.SIGKILL
    (only_run(tmp_path / "b") / "stages/2-hints/checkpoints/final.ckpt").unlink()
    assert run(tmp_path / "b", *hinted) == 0
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
def test_networks_that_do_not_go_together_are_told_before_anything_is_written(overrides, message, tmp_path, capfd):
    file = str(teacher_of(4, tmp_path))
    given = [word.replace("TEACHER", file) for word in overrides]
    words = [word for word in DISTILLATION if "perceptron" not in str(given) or not word.startswith("model.")]
    assert run(tmp_path / "outputs", *words, *given) == 70
    assert re.search(f"UserError: .*{message}", capfd.readouterr().err)
    written = [path for path in (tmp_path / "outputs").rglob("*") if path.is_file()]
    assert {path.parent.name for path in written} == {".locks"}


def test_weights_of_others_are_no_teachers_and_it_is_said_before_data_is_read(tmp_path, capfd):
    def no_data() -> None:
        from tutelage.runs import context

        context.stages = None

    torch.save(LeNet5(make_spec()).state_dict(), tmp_path / "weights.pth")
    for named in ("timm:resnet18", str(tmp_path / "weights.pth")):
        assert run(tmp_path / "outputs", *DISTILLATION, f"strategy.teachers=['{named}']", before=no_data) == 70
        message = capfd.readouterr().err
        assert f"strategy.teachers={named}: no network that a run left; name a finished run, or a checkpoint" in message
        assert f"strategy=transfer_frozen init_from={named}" in message and "damaged" not in message
    assert run(tmp_path / "first", *DISTILLATION) == 0
    last = only_run(tmp_path / "first") / "stages/2-student/checkpoints/last.ckpt"
    assert run(tmp_path / "outputs", *DISTILLATION, f"strategy.teachers=[{last}]") == 70
    assert "last.ckpt: holds no network alone; name the run's folder" in capfd.readouterr().err


def test_nearest_neighbours_are_no_teacher_that_is_trained():
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
def test_every_variant_runs_to_its_end_and_again_in_no_time(overrides, outputs):
    assert run(outputs, *DISTILLATION, *overrides) == 0
    first = (only_run(outputs) / "run.json").read_bytes()
    assert run(outputs, *DISTILLATION, *overrides, before=no_training) == 0
    assert (only_run(outputs) / "run.json").read_bytes() == first
    record = json.loads(first)
    assert record["status"] == "finished"
    entries = {entry["name"]: entry for entry in record["stages"]}
    assert record["result"] == entries["student"]["result"]
    assert entries["student"]["teacher_sha256"] == [entries["teacher"]["weights_sha256"]]
    assert entries["control"]["steps"] == sum(entries[n]["steps"] for n in ("hints", "student") if n in entries)
    assert "as many steps" in entries["control"]["note"]
