"""Transfer: which layers learn, how fast, and what a frozen backbone keeps to the bit."""

import json
import signal

import numpy as np
import pytest
import timm
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from helpers.configs import data_config
from helpers.overrides import CLIPPED_AND_SMOOTHED
from helpers.runs import only_run, outcome, run
from helpers.sources import make_source
from tutelage.config import OptimizerConfig
from tutelage.config.compose import compose
from tutelage.data import split
from tutelage.errors import UserError
from tutelage.models import (
    FineTuning,
    ImageSpec,
    LeNet5,
    ResNet,
    Timm,
    Torchvision,
    cross_entropy,
    freeze,
    load_classifier,
    make_classifier,
    save_classifier,
)
from tutelage.models.optimization import make_optimizer
from tutelage.models.parameter_groups import layer_of_parameters, lr_scales
from tutelage.strategies import SCRATCH, StageContext
from tutelage.testing import kill_after

ADAMW = OptimizerConfig(name="adamw", lr=0.01, weight_decay=0.1)
SMALL = ("model=resnet", "model.width=8", "model.depth=1")


def make_spec(channels: int = 3, size: int = 32) -> ImageSpec:
    return ImageSpec(channels, size, tuple("abcd"), (0.3,) * channels, (0.2,) * channels)


def make_batch(channels: int = 3, size: int = 32) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randint(0, 256, (8, channels, size, size), dtype=torch.uint8), torch.arange(8) % 3


def train_steps(network, tuning: FineTuning, steps: int = 3):
    """Train a network for ``steps`` steps in train mode, with the optimizer of ``tuning``."""
    freeze(network.backbone, tuning)
    network.train()
    optimizer = make_optimizer(network, ADAMW, tuning)
    for _ in range(steps):
        images, targets = make_batch(network.spec.channels, network.spec.image_size)
        optimizer.zero_grad()
        cross_entropy(network(images), targets).backward()
        optimizer.step()
    return network


@pytest.mark.parametrize("name", ["resnet10t", "efficientnet_lite0", "vit_tiny_patch16_224"])
@pytest.mark.parametrize("decay", [0.75, 0.5])
def test_the_learning_rates_of_layers_are_those_of_timm(name, decay):
    from timm.optim.optim_factory import param_groups_layer_decay

    with torch.device("meta"):
        network, reference = Timm(make_spec(size=64), name=name), timm.create_model(name, num_classes=4)
    groups = param_groups_layer_decay(reference, layer_decay=decay)
    scale_of = {id(parameter): group["lr_scale"] for group in groups for parameter in group["params"]}
    expected = {name: scale_of[id(parameter)] for name, parameter in reference.named_parameters()}
    # In timm's count the head lies one layer above the backbone.
    scales = lr_scales(network, FineTuning(backbone_lr_scale=decay, layer_decay=decay))
    classifier = reference.default_cfg["classifier"]
    for parameter, scale in scales.items():
        reference_name = parameter.removeprefix("backbone.0.").replace(
            "head.", f"{classifier}.", not parameter.startswith("back")
        )
        assert scale == pytest.approx(expected[reference_name]), parameter


def test_in_other_networks_each_weight_matrix_starts_a_layer():
    network = LeNet5(make_spec(1))
    assert list(layer_of_parameters(network.backbone).values()) == [0, 0, 1, 1, 2, 2, 3, 3]
    scales = lr_scales(network, FineTuning(backbone_lr_scale=0.1, layer_decay=0.5))
    expected = [0.0125, 0.0125, 0.025, 0.025, 0.05, 0.05, 0.1, 0.1, 1.0, 1.0]
    assert list(scales.values()) == pytest.approx(expected)


@given(st.floats(0.01, 1), st.floats(0.1, 1))
def test_rates_rise_from_the_images_to_the_head(scale, decay):
    network = LeNet5(make_spec(1))
    scales = list(lr_scales(network, FineTuning(backbone_lr_scale=scale, layer_decay=decay)).values())
    assert scales == sorted(scales)
    assert scales[-1] == 1
    assert scales[-3] == scale  # the backbone's highest layer


def test_without_tuning_there_are_two_groups_one_of_them_decayed():
    network = ResNet(make_spec(), width=8, depth=1)
    decayed, plain = make_optimizer(network, ADAMW).param_groups
    assert [id(p) for p in decayed["params"]] == [id(p) for p in network.parameters() if p.ndim > 1]
    assert [id(p) for p in plain["params"]] == [id(p) for p in network.parameters() if p.ndim <= 1]
    assert (decayed["weight_decay"], plain["weight_decay"]) == (0.1, 0.0)
    assert decayed["lr"] == plain["lr"] == 0.01


def test_each_rate_has_a_group_with_decay_and_one_without():
    network, extra = LeNet5(make_spec(1)), nn.Linear(84, 3)
    tuning = FineTuning(frozen_layers=2, backbone_lr_scale=0.1)
    freeze(network.backbone, tuning)
    groups = make_optimizer(network, ADAMW, tuning, extra).param_groups
    settings = [(group["lr"], group["weight_decay"], len(group["params"])) for group in groups]
    assert settings == [(0.001, 0.1, 2), (0.001, 0.0, 2), (0.01, 0.1, 2), (0.01, 0.0, 2)]
    assert any(p is extra.weight for p in groups[2]["params"])


@pytest.mark.parametrize(
    "network", [lambda: ResNet(make_spec(), width=8, depth=1), lambda: Timm(make_spec(), name="resnet10t", dropout=0.5)]
)
def test_a_frozen_backbone_does_not_change_by_a_bit_and_has_no_dropout(network):
    torch.manual_seed(0)
    network = network().eval()
    images, _ = make_batch()
    initial = {name: tensor.clone() for name, tensor in network.backbone.state_dict().items()}
    features, head = network.features(images), network.head.weight.clone()
    train_steps(network, FineTuning(frozen_layers=None))
    for name, tensor in network.backbone.state_dict().items():
        assert torch.equal(tensor, initial[name]), name
    assert network.training
    assert torch.equal(network.features(images), features)  # no dropout, though the network trains
    assert not torch.equal(network.head.weight, head)


@pytest.mark.parametrize("frozen", [1, 3])
def test_the_lowest_layers_are_frozen_and_all_above_are_trained(frozen):
    torch.manual_seed(0)
    network = Torchvision(make_spec(), name="resnet18")
    layer_of_parameter = layer_of_parameters(network.backbone)
    initial = {name: tensor.clone() for name, tensor in network.backbone.state_dict().items()}
    train_steps(network, FineTuning(frozen_layers=frozen))
    for name, tensor in network.backbone.named_parameters():
        assert torch.equal(tensor, initial[name]) == (layer_of_parameter[name] < frozen), name
    frozen_norm = network.backbone[0].bn1
    assert not frozen_norm.training
    assert torch.equal(frozen_norm.running_mean, initial["0.bn1.running_mean"])
    assert network.backbone[0].layer4[1].bn2.training


def test_weight_decay_does_not_change_frozen_layers():
    network = LeNet5(make_spec(1))
    initial = network.backbone[0].weight.clone()
    train_steps(network, FineTuning(frozen_layers=1))
    assert torch.equal(network.backbone[0].weight, initial)


def test_too_many_frozen_layers_are_an_error_of_one_line():
    with pytest.raises(UserError, match="model.frozen_layers=5: this network's backbone has 4 layers"):
        freeze(LeNet5(make_spec(1)).backbone, FineTuning(frozen_layers=5))


def plan_stages(*overrides: str):
    source = make_source(np.repeat(np.arange(3), 12), 0, 0)
    config = compose(["init_from=w.pth", "schedule.epochs=null", "schedule.steps=100", *overrides])
    return config.strategy.stages(StageContext(config, source, split(source, data_config())))


def test_gradual_transfer_trains_the_head_first_and_then_the_whole_network():
    head, whole, control = plan_stages("strategy=transfer_gradual", "strategy.head_length=0.3", "augmentation=basic")
    assert (head.steps, whole.steps, control.steps) == (30, 70, 100)
    assert (head.fine_tuning, head.teacher, head.starts_from) == (FineTuning(frozen_layers=None), None, None)
    assert (whole.fine_tuning, whole.starts_from) == (FineTuning(backbone_lr_scale=0.1), "head")
    assert (control.fine_tuning, control.starts_from, control.control) == (FineTuning(), SCRATCH, True)
    assert "from random weights" in control.note


def test_features_are_cached_if_images_are_not_augmented():
    frozen, control = plan_stages("strategy=transfer_frozen", "augmentation=none")
    assert frozen.teacher is not None and frozen.teacher.features
    assert control.teacher is None
    for overrides in (["augmentation=flip"], ["augmentation=cutmix", "augmentation.transforms=[]"]):
        assert plan_stages("strategy=transfer_frozen", *overrides)[0].teacher is None
    assert plan_stages("strategy=transfer_frozen", "strategy.control=false")[0].name == "frozen"
    assert len(plan_stages("strategy=transfer_frozen", "strategy.control=false")) == 1


@pytest.fixture
def pretrained(tmp_path):
    """Save a small residual network for three classes that are not those of the digits, and return its file."""
    torch.manual_seed(1)
    model = compose([*SMALL]).model.arguments()
    network = make_classifier(model, ImageSpec(1, 28, tuple("abc"), (0.5,), (0.25,)))
    train_steps(network, FineTuning(), 1)
    file = tmp_path / "pretrained.ckpt"
    save_classifier(network, model, file)
    return file


def load_stage_weights(outputs, stage: str):
    (file,) = only_run(outputs).glob(f"stages/*-{stage}/checkpoints/final.ckpt")
    return load_classifier(file)


def compare(first: nn.Module, second: nn.Module, **tolerance) -> None:
    """Compare the state dicts without the batch counters of norms, which files of weights do not have."""
    for name, tensor in first.state_dict().items():
        if not name.endswith("num_batches_tracked"):
            torch.testing.assert_close(tensor, second.state_dict()[name], **tolerance)


@pytest.mark.parametrize("augmentation", ["none", "basic"])
def test_a_frozen_run_ends_with_the_backbone_it_began_with_and_resumes_exactly(outputs, pretrained, augmentation):
    overrides = (
        *SMALL,
        "strategy=transfer_frozen",
        f"init_from={pretrained}",
        f"augmentation={augmentation}",
        "debug=tiny",
        *CLIPPED_AND_SMOOTHED,
    )
    assert run(outputs / "a", *overrides) == 0
    initial, frozen = load_classifier(pretrained), load_stage_weights(outputs / "a", "frozen")
    compare(frozen.backbone, initial.backbone, rtol=0, atol=0)
    assert frozen.spec.mean == (0.5,)  # the weights' own normalisation
    control = load_stage_weights(outputs / "a", "control")
    assert control.spec.mean == (0.305,)
    assert not torch.equal(control.backbone[0].weight, initial.backbone[0].weight)
    record = json.loads((only_run(outputs / "a") / "run.json").read_text())
    assert [entry["steps"] for entry in record["stages"]] == [4, 4]
    assert record["result"] == record["stages"][0]["result"]
    assert run(outputs / "b", *overrides, before=kill_after("frozen", 2)) == -signal.SIGKILL
    assert run(outputs / "b", *overrides) == 0
    assert outcome(outputs / "a") == outcome(outputs / "b")


def test_cached_features_give_the_same_weights_as_the_live_backbone(outputs, pretrained):
    from dataclasses import replace

    from tutelage.strategies.transfer import method

    def live():
        train_head = method.train_head
        method.train_head = lambda *arguments: replace(
            train_head(*arguments), module=lambda network: network, teacher=None
        )

    overrides = (*SMALL, "strategy=transfer_frozen", f"init_from={pretrained}", "augmentation=none", "debug=tiny")
    assert run(outputs / "kept", *overrides, "schedule.steps=30") == 0
    assert run(outputs / "live", *overrides, "schedule.steps=30", before=live) == 0
    cached, live_head = (load_stage_weights(outputs / name, "frozen") for name in ("kept", "live"))
    compare(cached, live_head, rtol=1e-4, atol=1e-5)


def test_a_gradual_run_goes_on_with_the_head_that_it_trained(outputs, pretrained):
    overrides = (*SMALL, "strategy=transfer_gradual", f"init_from={pretrained}", "debug=tiny", "schedule.steps=6")
    overrides = (*overrides, "optimizer.lr=1e-9", "augmentation=basic", *CLIPPED_AND_SMOOTHED)
    assert run(outputs, *overrides) == 0
    head, whole = load_stage_weights(outputs, "head"), load_stage_weights(outputs, "whole")
    torch.testing.assert_close(whole.head.weight, head.head.weight, atol=1e-6, rtol=0)
    assert whole.spec.mean == (0.5,)
    assert not torch.equal(whole.backbone[1].running_mean, head.backbone[1].running_mean)  # it learns again


def test_a_run_with_more_frozen_layers_than_there_are_writes_nothing(outputs, pretrained, capfd):
    overrides = (
        *SMALL,
        "strategy=transfer_finetune",
        "model.frozen_layers=99",
        f"init_from={pretrained}",
        "debug=tiny",
    )
    assert run(outputs, *overrides) != 0
    assert "stage finetuned: model.frozen_layers=99: this network's backbone has" in capfd.readouterr().err
    assert not list(outputs.rglob("run.json"))
