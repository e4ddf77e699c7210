"""Every strategy trains the layers of a network that starts from trained weights as optimizer and model say."""

import copy

import numpy as np
import pytest
import torch

from helpers.configs import data_config
from helpers.sources import make_source
from tutelage.config.compose import compose
from tutelage.data import StreamBatch, split
from tutelage.errors import UserError
from tutelage.models import ImageSpec, OptimizationConfig, Teacher, make_classifier
from tutelage.runs import run_identity
from tutelage.strategies import StageContext, TrainStage

LR = 0.01
# A residual network with nine convolutions, two of them frozen. The highest one learns at a tenth of the head's rate,
# each other one at half of the rate of the one above it; the norms, at the rate of the convolution before them.
TUNING = ("optimizer.backbone_lr_scale=0.1", "optimizer.layer_decay=0.5", "model.frozen_layers=2")
RATES = [None, None, 0.000015625, 0.00003125, 0.0000625, 0.000125, 0.00025, 0.0005, 0.001]
TUNED = {f"backbone.{layer}": rate for layer, rate in enumerate(RATES)} | {"head": LR}
WHOLE = dict.fromkeys(TUNED, LR)
HEAD = dict.fromkeys(TUNED) | {"head": LR}
FINETUNED = TUNED | {"backbone.2": None}

FINETUNE = "strategy.finetune={length:1,lr_scale:0.5,frozen_layers:3}"
STUDENT = "strategy.students=[{model:{}},{model:{frozen_layers:3}}]"
STAGES = {
    "supervised": {"supervised": TUNED},
    "fixmatch augmentation=weak_strong": {"fixmatch": TUNED, "control": TUNED},
    "mean_teacher": {"mean_teacher": TUNED, "control": TUNED},
    "pseudo_label": {"pseudo_label": TUNED, "control": TUNED},
    f"noisy_student {STUDENT}": {
        "teacher": TUNED,
        "student-1": TUNED,
        "student-2": FINETUNED,
        "control": FINETUNED,
    },
    f"noisy_student strategy.start=teacher {FINETUNE}": {
        "teacher": TUNED,
        "student-1": TUNED,
        "student-2": TUNED,
        "finetune": FINETUNED,
        "control": TUNED,
    },
    "distillation strategy.hints={}": {"teacher": WHOLE, "hints": TUNED, "student": TUNED, "control": TUNED},
    "teacher_student": {"teacher": WHOLE, "student": TUNED, "control": TUNED},
    "lwf strategy.tasks=[[0,1],[2,3]]": {
        "task-1": TUNED,
        "warm-up-2": HEAD,
        "lwf-2": TUNED,
        "finetuning-2": TUNED,
        "feature_extraction-2": HEAD,
        "joint-2": TUNED,
    },
    "transfer_finetune": {"finetuned": TUNED, "control": WHOLE},
    "transfer_gradual": {"head": HEAD, "whole": TUNED, "control": WHOLE},
}


def plan_stages(strategy: str, *overrides: str):
    """Return the config of a small residual network, and the training stages of a strategy on four classes."""
    small = ["model=resnet", "model.width=8", "model.depth=1", "augmentation=basic", f"optimizer.lr={LR}"]
    teacher = ["model@strategy.teacher=resnet"] if "teacher_student" in strategy or "distil" in strategy else []
    teacher += [f"strategy.teacher.{size}" for size in ("width=8", "depth=1") if teacher]
    config = compose([*small, *teacher, *overrides, *f"strategy={strategy}".split()])
    source = make_source(np.repeat(np.arange(4), 12), 0, 0)
    context = StageContext(config, source, split(source, data_config(labels_per_class=6)))
    return config, [stage for stage in config.strategy.stages(context) if isinstance(stage, TrainStage)]


def make_stage_module(config, stage: TrainStage):
    """Return the module of a stage and its network, as a run makes them."""
    torch.manual_seed(0)
    tasks = tuple(map(tuple, config.strategy.task_classes))
    spec = ImageSpec(1, 16, tuple("abcd"), (0.3,), (0.2,), tasks)
    network, teacher = (make_classifier(stage.model.arguments(), spec) for _ in range(2))
    optimizer = config.optimizer
    network.configure_training(OptimizationConfig(optimizer, config.scheduler, 4, None, stage.fine_tuning))
    with_teacher = stage.teacher is not None and not stage.teacher.features
    return stage.module(*([network, Teacher([teacher])] if with_teacher else [network])), network


def name_layers(network) -> dict[str, str]:
    """Return the layer of each tensor: backbone.N, for the N-th convolution and the norm behind it, or head."""
    layers, convolutions = {}, -1
    for name, tensor in network.state_dict().items():
        convolutions += name.startswith("backbone.") and tensor.ndim == 4
        layers[name] = f"backbone.{convolutions}" if name.startswith("backbone.") else "head"
    return layers


def take_step(module, optimizer) -> None:
    """Train for a step on random images of the last two classes, whatever the streams are called."""
    images, logits = torch.randint(0, 256, (16, 1, 16, 16), dtype=torch.uint8), torch.randn(16, 4)
    batch = StreamBatch(images, torch.arange(16) % 2 + 2, logits)
    module.train()
    module.training_step(dict.fromkeys(("labelled", "pool", "all"), batch), 0)["loss"].backward()
    optimizer.step()
    if hasattr(module, "update_teacher"):
        module.update_teacher(0.5)


@pytest.mark.parametrize("strategy", STAGES)
def test_each_stage_from_trained_weights_learns_at_the_rates_of_the_config_and_keeps_frozen_layers(strategy):
    config, stages = plan_stages(strategy, "init_from=w.pth", *TUNING)
    assert [stage.name for stage in stages] == list(STAGES[strategy])
    for stage in stages:
        expected = STAGES[strategy][stage.name]
        module, network = make_stage_module(config, stage)
        optimizer = module.configure_optimizers()["optimizer"]
        rates = {id(p): group["initial_lr"] for group in optimizer.param_groups for p in group["params"]}
        layers, initial = name_layers(network), copy.deepcopy(network.state_dict())
        for name, parameter in network.named_parameters():
            if parameter.requires_grad or layers[name] != "head":  # lwf freezes the heads of tasks that are not shown
                assert rates.get(id(parameter)) == pytest.approx(expected[layers[name]]), (stage.name, name)
        take_step(module, optimizer)
        learned = {name for name, tensor in module.classifier.state_dict().items() if not tensor.equal(initial[name])}
        assert not learned & {name for name, layer in layers.items() if expected[layer] is None}, stage.name
        assert any(layers[name] != "head" for name in learned) == (expected is not HEAD), stage.name


def test_without_trained_weights_no_layer_is_frozen_or_slow():
    students = "strategy.students=[{model:{frozen_layers:2}}]"
    _, stages = plan_stages(f"noisy_student strategy.start=teacher {students}")
    assert [stage.fine_tuning.frozen_layers for stage in stages] == [0, 2, 0]  # the student starts from its teacher's
    for key in TUNING:
        with pytest.raises(UserError, match=f"{key} is for trained weights, .* give init_from=RUN"):
            compose(["model=resnet", key])
    with pytest.raises(UserError, match="strategy.students: model.frozen_layers=2 .* or strategy.start=teacher"):
        compose(["strategy=noisy_student", students])
    with pytest.raises(UserError, match="strategy.teacher.frozen_layers=1: this teacher starts from random weights"):
        compose(["strategy=distillation", "strategy.teacher.frozen_layers=1"])


def test_an_option_of_strategy_sets_the_rate_and_what_is_typed_wins():
    for overrides, scale in (
        (["strategy=transfer_finetune", "optimizer=sgd"], 0.1),
        (["strategy=transfer_gradual"], 0.1),
        (["optimizer.backbone_lr_scale=0.3", "strategy=transfer_finetune", "optimizer=sgd"], 0.3),
        (["experiment=yosinski2014", "strategy=supervised"], 1),
    ):
        assert compose(["init_from=w.pth", *overrides]).optimizer.backbone_lr_scale == scale


def test_the_number_of_frozen_layers_is_no_argument_of_the_network():
    config = compose(["model=resnet", "model.frozen_layers=2", "init_from=tests/conftest.py"])
    assert "frozen_layers" not in config.model.arguments()
    assert run_identity(config, "")["model"]["frozen_layers"] == 2
    neutral = run_identity(compose(["model=resnet"]), "")
    assert "frozen_layers" not in neutral["model"]
    assert not {"backbone_lr_scale", "layer_decay"} & set(neutral["optimizer"])
