"""Architectures, losses, optimizers and schedules, against independent definitions."""

import copy
import math
from functools import partial
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import (
    accuracy_score,
    balanced_accuracy_score,
    confusion_matrix,
    f1_score,
    top_k_accuracy_score,
)
from torch import nn
from torch.nn import functional

from helpers.networks import count_parameters, make_spec
from tutelage.config import OptimizerConfig, SchedulerConfig
from tutelage.config.compose import compose
from tutelage.data import Predictions
from tutelage.errors import UserError
from tutelage.models import (
    MLP,
    LeNet5,
    OptimizationConfig,
    ResNet,
    Timm,
    compute_confusion_matrix,
    compute_metrics,
    count_classes,
    cross_entropy,
    load_classifier,
    load_pretrained,
    make_classifier,
    save_classifier,
    weight_hash,
)
from tutelage.models.optimization import lr_factor, make_optimizer
from tutelage.options import list_options
from tutelage.storage import write_checked


def test_lenet5_has_the_papers_61706_parameters():
    assert count_parameters(LeNet5(make_spec(size=32))) == 61_706
    assert count_parameters(LeNet5(make_spec(size=28))) == 61_706  # padded to 32


def test_resnet_20_has_the_papers_size():
    # He 2016, table 6: 0.27 M. Ours has projection shortcuts: 2 * (16*32 + 2*32) + (32*64 + 2*64), less one each.
    network = ResNet(make_spec(3, 32), width=16, depth=3)
    assert count_parameters(network) == 272_474
    assert sum(isinstance(m, nn.Conv2d) and m.kernel_size == (3, 3) for m in network.modules()) + 1 == 20


def test_an_mlp_is_its_matrix_products():
    torch.manual_seed(0)
    network = MLP(make_spec(size=8), width=5, depth=2).eval()
    images = torch.randint(0, 256, (3, 1, 8, 8), dtype=torch.uint8)
    x = ((images / 255 - 0.3) / 0.2).reshape(3, 64)
    first, second = (m for m in network.backbone if isinstance(m, nn.Linear))
    x = (x @ first.weight.T + first.bias).clamp(min=0)
    x = (x @ second.weight.T + second.bias).clamp(min=0)
    expected = x @ network.head.weight.T + network.head.bias
    torch.testing.assert_close(network(images), expected, atol=1e-5, rtol=1e-5)


def test_lenet5_is_its_layers_written_out():
    torch.manual_seed(0)
    network = LeNet5(make_spec()).eval()
    c1, c3, c5, f6 = (m for m in network.backbone if isinstance(m, nn.Conv2d | nn.Linear))
    images = torch.randint(0, 256, (2, 1, 28, 28), dtype=torch.uint8)
    x = functional.pad((images / 255 - 0.3) / 0.2, (2, 2, 2, 2))
    x = functional.max_pool2d(functional.conv2d(x, c1.weight, c1.bias).relu(), 2)
    x = functional.max_pool2d(functional.conv2d(x, c3.weight, c3.bias).relu(), 2).flatten(1)
    x = functional.linear(functional.linear(x, c5.weight, c5.bias).relu(), f6.weight, f6.bias).relu()
    expected = functional.linear(x, network.head.weight, network.head.bias)
    torch.testing.assert_close(network(images), expected, atol=1e-5, rtol=1e-5)


def test_stochastic_depth_is_off_in_eval_mode_and_on_in_training():
    network = ResNet(make_spec(3, 16), width=8, depth=2, stochastic_depth=0.9)
    images = torch.randint(0, 256, (16, 3, 16, 16), dtype=torch.uint8)
    network.eval()
    assert torch.equal(network(images), network(images))
    network.train()
    assert not torch.equal(network(images), network(images))


@pytest.mark.parametrize("size", [12, 28, 32, 64])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(
    "build",
    [partial(MLP, width=800, depth=2), LeNet5, partial(ResNet, width=16, depth=3)],
    ids=["mlp", "lenet5", "resnet"],
)
def test_architectures_take_any_sensible_size(build, channels, size):
    network = build(make_spec(channels, size, classes=4)).eval()
    images = torch.randint(0, 256, (2, channels, size, size), dtype=torch.uint8)
    features = network.backbone(images.float())
    assert features.ndim == 2
    assert network.head.in_features == features.shape[1]
    assert network(images).shape == (2, 4)


def test_an_image_too_small_for_lenet5_is_an_error():
    with pytest.raises(UserError, match="needs images of 12 pixels or more, not data.image_size=8"):
        LeNet5(make_spec(size=8))


def test_a_misspelt_timm_name_is_an_error_with_a_hint():
    with pytest.raises(UserError, match=r"model.name=resnet_18: timm has no such architecture; did you mean .*resnet"):
        Timm(make_spec(3, 32), name="resnet_18")


@pytest.mark.parametrize("name", ["mobilenetv3_small_100", "vit_tiny_patch16_224"])
def test_timm_networks_of_odd_widths_and_fixed_sizes_fit(name):
    spec = make_spec(3, 32)
    with torch.device("meta"):
        network = Timm(spec, name=name).eval()
        assert network(torch.empty(2, 3, 32, 32, dtype=torch.uint8)).shape == (2, 10)


def test_timms_logits_are_its_features_under_our_head():
    import timm

    torch.manual_seed(0)
    network = Timm(make_spec(3, 32), name="resnet10t", stochastic_depth=0.2).eval()
    reference = timm.create_model("resnet10t", num_classes=0, in_chans=3).eval()
    reference.load_state_dict(network.backbone[0].state_dict())
    images = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)
    expected = functional.linear(reference((images / 255 - 0.3) / 0.2), network.head.weight, network.head.bias)
    torch.testing.assert_close(network(images), expected, atol=1e-5, rtol=1e-5)


def test_cross_entropy_of_probabilities_is_the_formula_and_of_classes_its_special_case():
    torch.manual_seed(0)
    logits, soft = torch.randn(6, 4), torch.rand(6, 4).softmax(dim=1)
    classes = torch.randint(0, 4, (6,))
    expected = -(soft * (logits - logits.exp().sum(1, keepdim=True).log())).sum(1).mean()
    torch.testing.assert_close(cross_entropy(logits, soft), expected)
    one_hot = functional.one_hot(classes, 4).float()
    torch.testing.assert_close(cross_entropy(logits, classes), cross_entropy(logits, one_hot))


def test_norms_and_biases_are_not_decayed_and_frozen_parts_not_trained():
    network = ResNet(make_spec(), width=8, depth=1)
    network.head.weight.requires_grad_(False)
    optimizer = make_optimizer(network, OptimizerConfig(name="adamw", lr=0.1, weight_decay=0.3))
    groups = {group["weight_decay"]: group["params"] for group in optimizer.param_groups}
    assert {p.ndim for p in groups[0.3]} == {4}
    assert {p.ndim for p in groups[0.0]} == {1}
    assert not any(p is network.head.weight for group in groups.values() for p in group)


def test_the_cosine_schedule_warms_up_and_ends_near_zero():
    optimization = OptimizationConfig(
        OptimizerConfig(name="sgd", lr=1.0), SchedulerConfig(name="cosine", warmup=0.1), steps=100
    )
    rates = [lr_factor(step, optimization) for step in range(101)]
    assert rates[:10] == pytest.approx([(i + 1) / 11 for i in range(10)])
    assert rates[10] == 1.0
    assert rates[55] == pytest.approx(0.5)
    assert rates[100] == pytest.approx(0.0, abs=1e-9)
    assert all(a >= b for a, b in pairwise(rates[10:]))


def test_the_step_schedule_falls_at_its_milestones():
    config = SchedulerConfig(name="step", milestones=[0.5, 0.75], factor=0.1)
    optimization = OptimizationConfig(OptimizerConfig(name="sgd", lr=1.0), config, steps=8)
    assert [lr_factor(step, optimization) for step in range(8)] == pytest.approx([1, 1, 1, 1, 0.1, 0.1, 0.01, 0.01])


def test_metrics_are_scikit_learns():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 8, 500)
    probabilities = rng.dirichlet(np.ones(8), 500).astype(np.float32)
    probabilities[np.arange(500), labels] += 0.2
    probabilities /= probabilities.sum(axis=1, keepdims=True)
    predictions = Predictions(probabilities, labels, np.arange(500))
    result = compute_metrics(predictions, [f"c{i}" for i in range(8)], "test")
    predicted = probabilities.argmax(axis=1)
    assert result["test/accuracy"] == pytest.approx(accuracy_score(labels, predicted), abs=1e-6)
    assert result["test/f1"] == pytest.approx(f1_score(labels, predicted, average="macro"), abs=1e-6)
    assert result["test/balanced_accuracy"] == pytest.approx(balanced_accuracy_score(labels, predicted), abs=1e-6)
    assert result["test/top5"] == pytest.approx(top_k_accuracy_score(labels, probabilities, k=5), abs=1e-6)
    matrix = confusion_matrix(labels, predicted)
    assert (compute_confusion_matrix(predictions) == matrix).all()
    assert result["test/accuracy/c3"] == pytest.approx(matrix[3, 3] / matrix[3].sum(), abs=1e-6)
    confidence = probabilities.max(axis=1)
    bins = np.minimum((confidence * 15).astype(int), 14)
    ece = sum(
        (bins == b).mean() * abs((predicted == labels)[bins == b].mean() - confidence[bins == b].mean())
        for b in np.unique(bins)
    )
    assert result["test/calibration_error"] == pytest.approx(ece, abs=1e-5)


@pytest.mark.filterwarnings("ignore::UserWarning:sklearn")
@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 4)), min_size=1, max_size=12))
def test_classes_without_images_or_predictions_count_as_in_scikit_learn(pairs):
    labels, predicted = map(list, zip(*pairs, strict=True))
    measures = count_classes(functional.one_hot(torch.tensor(predicted), 6).float(), torch.tensor(labels)).measures()
    assert measures["accuracy"] == pytest.approx(accuracy_score(labels, predicted))
    assert measures["balanced_accuracy"] == pytest.approx(balanced_accuracy_score(labels, predicted))
    assert measures["f1"] == pytest.approx(f1_score(labels, predicted, average="macro"))


def test_top5_is_left_out_where_it_says_nothing():
    predictions = Predictions(np.eye(5, dtype=np.float32), np.arange(5), np.arange(5))
    assert "test/top5" not in compute_metrics(predictions, list("abcde"), "test")


def test_stored_weights_give_the_same_network_and_nothing_is_executed(tmp_path):
    model = compose(["model=resnet", "model.width=8", "model.depth=1"]).model.arguments()
    network = make_classifier(model, make_spec()).eval()
    save_classifier(network, model, tmp_path / "final.ckpt")
    again = load_classifier(tmp_path / "final.ckpt").eval()
    images = torch.randint(0, 256, (2, 1, 28, 28), dtype=torch.uint8)
    assert torch.equal(network(images), again(images))
    assert weight_hash(network) == weight_hash(again)
    again.head.bias.data[0] += 1e-7
    assert weight_hash(network) != weight_hash(again)


def test_weights_of_which_a_bit_was_flipped_are_refused(tmp_path):
    model = compose(["model=mlp", "model.width=4"]).model.arguments()
    file = tmp_path / "final.ckpt"
    save_classifier(make_classifier(model, make_spec()), model, file)
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    with pytest.raises(UserError, match="missing or damaged"):
        load_classifier(file)


def test_weights_that_name_a_function_are_refused(tmp_path):
    content = {"model": {"_target_": "os.system", "command": "true"}, "spec": make_spec().to_dict(), "state_dict": {}}
    write_checked(tmp_path / "evil.ckpt", lambda file: torch.save(content, file))
    with pytest.raises(UserError, match="outside the allowed packages"):
        load_classifier(tmp_path / "evil.ckpt")


def test_a_pickle_is_refused_as_a_weights_file(tmp_path):
    import pickle

    write_checked(tmp_path / "evil.ckpt", lambda file: file.write(pickle.dumps(math.sqrt)))
    with pytest.raises(UserError, match="cannot be read as weights"):
        load_classifier(tmp_path / "evil.ckpt")


SMALL = {
    "timm": ["model.name=test_resnet"],
    "torchvision": ["model.name=squeezenet1_1"],
    "alexnet": ["data.image_size=67", "model.width=0.125"],
    "vgg": ["data.image_size=32", "model.width=0.125"],
    "convnext_tiny": ["data.image_size=32", "model.name=test_convnext"],
    "vit_small_dinov2": ["data.image_size=32", "model.name=test_vit"],
}
OF_TIMM = {"convnext_tiny", "efficientnet_lite0", "vit_small_dinov2"}  # networks of timm, tested as model=timm is
WITHOUT_STEPS = {"nearest_neighbours"}  # learns in one pass; tests of its own


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
@pytest.mark.parametrize(
    "option",
    [
        pytest.param(option, marks=pytest.mark.slow if option in OF_TIMM else ())
        for option in sorted(set(list_options()["model"]) - WITHOUT_STEPS)
    ],
)
def test_every_architecture_trains_and_resumes(option, device, outputs):
    """A new YAML file in conf/model is tested without a change here: trained, saved and resumed."""
    import signal

    from helpers.runs import outcome, run
    from tutelage.testing import kill_after

    overrides = [f"model={option}", "debug=tiny", f"trainer={'gpu' if device == 'cuda' else 'cpu'}"]
    overrides += SMALL.get(option, [])
    assert run(outputs / "a", *overrides) == 0
    assert run(outputs / "b", *overrides, before=kill_after("supervised", 2)) == -signal.SIGKILL
    assert run(outputs / "b", *overrides) == 0
    assert outcome(outputs / "a") == outcome(outputs / "b")


def test_class_weights_are_scikit_learns_and_scale_each_images_loss():
    from sklearn.utils.class_weight import compute_class_weight

    from tutelage.data import class_weights

    labels = np.repeat([0, 1, 2], [60, 30, 10])
    weights_of_classes = class_weights(labels, 3)
    assert weights_of_classes == pytest.approx(compute_class_weight("balanced", classes=np.arange(3), y=labels))
    assert class_weights(labels, 4)[3] == 0.0
    torch.manual_seed(0)
    logits, targets = torch.randn(5, 3), torch.tensor([0, 1, 2, 2, 0])
    weight = torch.tensor(weights_of_classes)
    expected = (weight[targets] * functional.cross_entropy(logits, targets, reduction="none")).mean()
    torch.testing.assert_close(cross_entropy(logits, targets, weight), expected)
    one_hot = functional.one_hot(targets, 3).float()
    torch.testing.assert_close(cross_entropy(logits, one_hot, weight), expected)


def save_weights(network: nn.Module, file) -> None:
    if file.suffix == ".safetensors":
        from safetensors.torch import save_file

        save_file(network.state_dict(), file)
    else:
        torch.save(network.state_dict(), file)


@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
@pytest.mark.parametrize("classes", [10, 7])
def test_timm_starts_from_a_local_weights_file(tmp_path, suffix, classes):
    import timm

    torch.manual_seed(0)
    reference = timm.create_model("resnet10t", num_classes=10, in_chans=3).eval()
    file = tmp_path / f"weights.{suffix}"
    save_weights(reference, file)
    network = Timm(make_spec(3, 32, classes), name="resnet10t").eval()
    message = load_pretrained(network, file)
    assert ("starts anew" in message) == (classes == 7)
    images = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)
    normalised = (images / 255 - 0.3) / 0.2
    torch.testing.assert_close(
        network.features(images), reference.forward_head(reference.forward_features(normalised), pre_logits=True)
    )
    if classes == 10:
        torch.testing.assert_close(network(images), reference(normalised))


def test_weights_with_other_names_are_loaded_by_their_order(tmp_path):
    torch.manual_seed(0)
    network, source = LeNet5(make_spec()), LeNet5(make_spec())
    renamed = {f"module.layer{n}": tensor for n, tensor in enumerate(source.state_dict().values())}
    torch.save({"state_dict": renamed}, tmp_path / "w.pth")
    load_pretrained(network, tmp_path / "w.pth")
    assert weight_hash(network) == weight_hash(source)


def test_a_runs_checkpoint_can_be_loaded_as_pretrained_weights(tmp_path):
    model = compose(["model=mlp", "model.width=4"]).model.arguments()
    network, source = make_classifier(model, make_spec()), make_classifier(model, make_spec())
    save_classifier(source, model, tmp_path / "final.ckpt")
    load_pretrained(network, tmp_path / "final.ckpt")
    assert weight_hash(network) == weight_hash(source)


def test_weights_that_do_not_fit_are_refused_with_a_list(tmp_path):
    torch.save(LeNet5(make_spec(), width=2).state_dict(), tmp_path / "wide.pth")
    with pytest.raises(UserError, match=r"do not fit .* backbone.0.weight 6x1x5x5 against backbone.0.weight 12x1x5x5"):
        load_pretrained(LeNet5(make_spec()), tmp_path / "wide.pth")
    torch.save({"a": 3}, tmp_path / "none.pth")
    with pytest.raises(UserError, match="holds no tensors by name"):
        load_pretrained(LeNet5(make_spec()), tmp_path / "none.pth")
    (tmp_path / "junk.pth").write_bytes(b"junk")
    with pytest.raises(UserError, match="cannot be read as weights"):
        load_pretrained(LeNet5(make_spec()), tmp_path / "junk.pth")
    with pytest.raises(UserError, match="no such file"):
        load_pretrained(LeNet5(make_spec()), tmp_path / "nowhere.pth")


def test_a_run_starts_from_weights_and_its_name_follows_their_content(outputs, tmp_path):
    from helpers.runs import only_run, run

    model = compose(["model=mlp", "model.width=8"]).model.arguments()
    for name, seed in (("one", 0), ("two", 1)):
        torch.manual_seed(seed)
        save_classifier(make_classifier(model, make_spec()), model, tmp_path / f"{name}.ckpt")
    (tmp_path / "copy.ckpt").write_bytes((tmp_path / "one.ckpt").read_bytes())
    overrides = ["model=mlp", "model.width=8", "debug=tiny", "optimizer.lr=1e-9"]
    for name in ("one", "copy"):
        assert run(outputs, *overrides, f"init_from={tmp_path / name}.ckpt") == 0
    folder = only_run(outputs)
    trained = load_classifier(next((folder / "checkpoints").glob("[bf]*.ckpt")))
    initial = load_classifier(tmp_path / "one.ckpt")
    torch.testing.assert_close(trained.head.weight, initial.head.weight, atol=1e-6, rtol=0)
    assert run(outputs, *overrides, f"init_from={tmp_path / 'two'}.ckpt") == 0
    assert len(list(outputs.glob("*/*/run.json"))) == 2


def test_features_of_further_layers_are_means_over_places_and_each_depth_has_unit_length():
    arguments = {"_target_": "tutelage.models.Timm", "name": "tf_efficientnet_lite0", "feature_layers": ["blocks.5"]}
    network = make_classifier(arguments, make_spec(3, 32, classes=2)).eval()
    images = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)
    plain = network.backbone[0].network
    with torch.no_grad():
        pixels = (images / 255 - 0.3) / 0.2
        inner = plain.blocks[:6](plain.bn1(plain.conv_stem(pixels)))
        expected = [plain(pixels), inner.mean((2, 3))]
        expected = torch.cat([features / features.square().sum(1, keepdim=True).sqrt() for features in expected], 1)
        torch.testing.assert_close(network.features(images), expected)
        torch.testing.assert_close(copy.deepcopy(network).features(images), expected)
    assert network(images).shape == (2, 2)
    with pytest.raises(UserError, match=r"no layer 'blocks.9'; its last blocks are .*blocks.6"):
        make_classifier(arguments | {"feature_layers": ["blocks.9"]}, network.spec)
