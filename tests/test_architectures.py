"""The published architectures against their papers, torchvision and gradients; and their summaries."""

import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torchvision import models

from helpers.networks import count_parameters, make_spec
from tutelage.config.compose import compose
from tutelage.errors import UserError
from tutelage.explain.summary import Layer, print_summary, summarize_layers
from tutelage.models import (
    VGG,
    AlexNet,
    ImageClassifier,
    LeNet5,
    Perceptron,
    ResNet,
    Timm,
    Torchvision,
    load_pretrained,
    make_classifier,
)
from tutelage.runs.network_size import measure_network

NAMES = models.list_models(module=models)
SMALLEST_OF_EACH_KIND = {  # the smallest; others differ in depth and width alone
    *("alexnet", "convnext_tiny", "densenet121", "efficientnet_b0", "efficientnet_v2_s", "googlenet", "inception_v3"),
    *("maxvit_t", "mnasnet0_5", "mobilenet_v2", "mobilenet_v3_small", "regnet_x_400mf", "regnet_y_400mf", "resnet18"),
    *("resnext50_32x4d", "shufflenet_v2_x0_5", "squeezenet1_1", "swin_t", "swin_v2_t", "vgg11", "vgg11_bn", "vit_b_32"),
}
CLOSE = {"atol": 1e-5, "rtol": 1e-5}


def random_images(channels: int, size: int, count: int = 2) -> Tensor:
    return torch.randint(0, 256, (count, channels, size, size), dtype=torch.uint8)


def normalise(images: Tensor) -> Tensor:
    return (images / 255 - 0.3) / 0.2


def build_on_meta(kind: type[ImageClassifier], *arguments, **options) -> ImageClassifier:
    with torch.device("meta"):
        return kind(*arguments, **options).eval()


def compare_gradients(network: nn.Module, expected_logits: Tensor, logits: Tensor, parameters) -> None:
    """Check that both logits' squares have the same gradients for the network's parameters and for ``parameters``."""
    expected_gradients = torch.autograd.grad(expected_logits.square().mean(), parameters)
    gradients = torch.autograd.grad(logits.square().mean(), list(network.parameters()))
    for a, b in zip(gradients, expected_gradients, strict=True):
        torch.testing.assert_close(a, b, atol=1e-5 * float(b.abs().max()), rtol=1e-5)


# ---------------------------------------------------------------------------------------------------------- sizes


@pytest.mark.parametrize(
    ("network", "parameters"),
    [
        (lambda: LeNet5(make_spec(1, 32)), 61_706),
        (lambda: AlexNet(make_spec(3, 227, 1000)), 60_965_224),
        (lambda: VGG(make_spec(3, 224, 1000), depth=11), 132_863_336),
        (lambda: VGG(make_spec(3, 224, 1000), depth=13), 133_047_848),
        (lambda: VGG(make_spec(3, 224, 1000), depth=16), 138_357_544),
        (lambda: VGG(make_spec(3, 224, 1000), depth=19), 143_667_240),
        (lambda: Perceptron(make_spec(1, 28)), 7_850),
    ],
)
def test_the_architectures_have_their_papers_parameters(network, parameters):
    with torch.device("meta"):
        assert count_parameters(network()) == parameters


@pytest.mark.parametrize("batch_norm", [False, True])
@pytest.mark.parametrize("depth", [11, 13, 16, 19])
def test_vggs_tensors_have_torchvisions_order(depth, batch_norm):
    tensors = build_on_meta(VGG, make_spec(3, 224, 1000), depth=depth, batch_norm=batch_norm).state_dict()
    with torch.device("meta"):
        torchvision_tensors = models.get_model(f"vgg{depth}{'_bn' if batch_norm else ''}").state_dict()
    assert [(k.rpartition(".")[2], v.shape) for k, v in tensors.items()] == [
        (k.rpartition(".")[2], v.shape) for k, v in torchvision_tensors.items()
    ]


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size", [67, 70, 99, 130])
@pytest.mark.parametrize("norm", ["lrn", "batch", "none"])
@pytest.mark.parametrize("pool", ["flatten", "average"])
def test_alexnet_takes_images_of_67_pixels_or_more(pool, norm, size, channels):
    network = AlexNet(make_spec(channels, size, 4), width=0.03, norm=norm, pool=pool).eval()
    assert network.backbone(random_images(channels, size).float()).shape == (2, network.head.in_features)
    assert network(random_images(channels, size)).shape == (2, 4)
    convolutions = [m for m in network.modules() if isinstance(m, nn.Conv2d)]
    assert [m.groups for m in convolutions] == [1, 2, 1, 2, 2]
    assert sum(isinstance(m, nn.BatchNorm2d) for m in network.modules()) == (5 if norm == "batch" else 0)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size", [32, 33, 63, 97])
@pytest.mark.parametrize("batch_norm", [False, True])
@pytest.mark.parametrize("pool", ["flatten", "average"])
def test_vgg_takes_images_of_32_pixels_or_more(pool, batch_norm, size, channels):
    network = VGG(make_spec(channels, size, 4), depth=13, width=0.05, batch_norm=batch_norm, pool=pool).eval()
    assert network.backbone(random_images(channels, size).float()).shape == (2, network.head.in_features)
    assert network(random_images(channels, size)).shape == (2, 4)


@pytest.mark.parametrize(("channels", "size"), [(1, 1), (1, 8), (3, 7)])
def test_a_perceptron_is_one_matrix_product(channels, size):
    network = Perceptron(make_spec(channels, size, 4))
    images = random_images(channels, size)
    expected = normalise(images).reshape(2, -1) @ network.head.weight.T + network.head.bias
    torch.testing.assert_close(network(images), expected, **CLOSE)


@pytest.mark.parametrize(
    ("kind", "size", "name", "arguments"), [(AlexNet, 66, "alexnet", {}), (VGG, 31, "vgg", {"depth": 11})]
)
def test_too_small_an_image_is_an_error(kind, size, name, arguments):
    message = f"model={name} needs images of {size + 1} pixels or more, not data.image_size={size}"
    with pytest.raises(UserError, match=message):
        kind(make_spec(3, size), **arguments)


@pytest.mark.parametrize("option", ["perceptron", "alexnet", "vgg", "torchvision"])
def test_the_configs_build_what_they_name(option):
    config = compose([f"model={option}", "data.image_size=67"]).model
    network = make_classifier(config.arguments(), make_spec(1, 67))
    assert network(random_images(1, 67)).shape == (2, 10)
    assert type(network).__name__.lower() == option


# ------------------------------------------------------------------------------------------- forward and backward


def test_lenet5s_logits_and_gradients_equal_those_of_its_layers_written_out():
    torch.manual_seed(0)
    network, images = LeNet5(make_spec(1, 32)), random_images(1, 32)
    p = [parameter.detach().clone().requires_grad_() for parameter in network.parameters()]
    x = functional.max_pool2d(functional.conv2d(normalise(images), p[0], p[1]).relu(), 2)
    x = functional.max_pool2d(functional.conv2d(x, p[2], p[3]).relu(), 2).flatten(1)
    x = functional.linear(functional.linear(x, p[4], p[5]).relu(), p[6], p[7]).relu()
    expected, logits = functional.linear(x, p[8], p[9]), network(images)
    torch.testing.assert_close(logits, expected, **CLOSE)
    compare_gradients(network, expected, logits, p)


def test_alexnets_logits_and_gradients_equal_those_of_its_layers_written_out():
    torch.manual_seed(0)
    network, images = AlexNet(make_spec(3, 227)).eval(), random_images(3, 227)
    p = [parameter.detach().clone().requires_grad_() for parameter in network.parameters()]

    def normalise_response(x: Tensor) -> Tensor:  # section 3.3, over channels one by one
        squares = functional.pad(x**2, (0, 0, 0, 0, 2, 2)).unfold(1, 5, 1).sum(-1)
        return x / (2 + 1e-4 * squares) ** 0.75

    x = normalise_response(functional.conv2d(normalise(images), p[0], p[1], stride=4).relu())
    x = functional.max_pool2d(x, 3, 2)
    x = normalise_response(functional.conv2d(x, p[2], p[3], padding=2, groups=2).relu())
    x = functional.max_pool2d(x, 3, 2)
    x = functional.conv2d(x, p[4], p[5], padding=1).relu()
    x = functional.conv2d(x, p[6], p[7], padding=1, groups=2).relu()
    x = functional.conv2d(x, p[8], p[9], padding=1, groups=2).relu()
    x = functional.max_pool2d(x, 3, 2).flatten(1)
    x = functional.linear(functional.linear(x, p[10], p[11]).relu(), p[12], p[13]).relu()
    expected, logits = functional.linear(x, p[14], p[15]), network(images)
    torch.testing.assert_close(logits, expected, **CLOSE)
    compare_gradients(network, expected, logits, p)


def test_alexnets_response_norm_is_torchs():
    from tutelage.models.alexnet import ResponseNorm

    x = 30 * torch.randn(2, 7, 4, 5)
    expected = functional.local_response_norm(x, 5, alpha=5e-4, beta=0.75, k=2.0)
    torch.testing.assert_close(ResponseNorm()(x), expected, **CLOSE)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["vgg11", "vgg11_bn"])
def test_vgg_with_torchvisions_weights_has_torchvisions_logits_and_gradients(name, tmp_path):
    torch.manual_seed(0)
    network = VGG(make_spec(3, 224), depth=11, batch_norm=name.endswith("bn")).eval()
    reference = models.get_model(name, num_classes=10).eval()
    for module in reference.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_mean, -0.5, 0.5)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
    file = tmp_path / "weights.pth"
    torch.save(reference.state_dict(), file)
    load_pretrained(network, file)
    file.unlink()  # half a gigabyte
    images = random_images(3, 224)
    pixels = (images.float() - network.mean) * network.scale  # exact: a rounding may move a maximum
    logits, expected = network(images), reference(pixels)
    torch.testing.assert_close(logits, expected, **CLOSE)
    compare_gradients(network, expected, logits, list(reference.parameters()))


@pytest.mark.parametrize(
    ("network", "size"),
    [(lambda: VGG(make_spec(3, 32), depth=19, width=0.25), 32), (lambda: AlexNet(make_spec(3, 67), width=0.25), 67)],
)
def test_a_signal_neither_dies_nor_explodes_in_a_deep_plain_network(network, size):
    torch.manual_seed(0)
    features = network().eval().backbone(torch.randn(8, 3, size, size))
    assert 0.05 < float(features.detach().square().mean().sqrt()) < 20


def test_plain_networks_start_from_he_initialisation():
    torch.manual_seed(0)
    network = VGG(make_spec(3, 32), depth=11, width=0.5, batch_norm=True)
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            assert float(module.weight.detach().std()) == pytest.approx(
                math.sqrt(2 / module.weight[0].numel()), rel=0.1
            )
            assert not module.bias.any()
        elif isinstance(module, nn.BatchNorm2d):
            assert (module.weight == 1).all()
            assert not module.bias.any()


# ---------------------------------------------------------------------------------------------------- torchvision


def test_torchvision_knows_eighty_classifiers():
    assert len(NAMES) >= 80


def test_the_quick_tests_have_a_network_of_each_of_torchvisions_files():
    files = {name: models.get_model_builder(name).__module__ for name in NAMES}
    assert {files[name] for name in SMALLEST_OF_EACH_KIND} == set(files.values())


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name in SMALLEST_OF_EACH_KIND else pytest.mark.slow) for name in NAMES]
)
def test_every_classifier_of_torchvision_is_built_and_summarised(name):
    size = 299 if name == "inception_v3" else 224
    for channels in (1, 3):
        network = build_on_meta(Torchvision, make_spec(channels, size), name=name)
        images = torch.empty(2, channels, size, size, dtype=torch.uint8, device="meta")
        features = network.backbone(images.float())
        assert features.ndim == 2
        assert network.head(features).shape == network(images).shape == (2, 10)
    rows = summarize_layers(network)
    assert sum(row.parameters for row in rows) == count_parameters(network)
    assert sum(row.multiply_adds for row in rows) > 0
    assert rows[-1].output == (10,)
    assert rows[-1].receptive_field is None


@pytest.mark.parametrize(
    "name",
    ["alexnet", "googlenet", "maxvit_t", "mobilenet_v3_small", "resnet18", "squeezenet1_1", "swin_t", "vit_b_16"],
)
def test_torchvisions_tensors_keep_their_order_and_logits(name):
    torch.manual_seed(0)
    size = 96 if name not in {"maxvit_t", "vit_b_16"} else 224
    options = {"aux_logits": False, "init_weights": False} if name == "googlenet" else {}
    reference = models.get_model(name, num_classes=10, **options).eval()
    network = Torchvision(make_spec(3, size), name=name, dropout=0.3).eval()
    torchvision_tensors = reference.state_dict()
    assert [(k.rpartition(".")[2], v.shape) for k, v in network.state_dict().items()] == [
        (k.rpartition(".")[2], v.shape) for k, v in torchvision_tensors.items()
    ]
    network.load_state_dict(dict(zip(network.state_dict(), torchvision_tensors.values(), strict=True)))
    images = random_images(3, size)
    torch.testing.assert_close(network(images), reference(normalise(images)), **CLOSE)


def test_torchvisions_extra_dropout_is_on_in_training_alone():
    network, images = Torchvision(make_spec(1, 32), name="squeezenet1_1", dropout=0.9), random_images(1, 32, 4)
    network.backbone[0].eval()
    assert not torch.equal(network.backbone(images.float()), network.backbone(images.float()))
    network.eval()
    assert torch.equal(network(images), network(images))


def test_a_misspelt_torchvision_name_is_an_error_with_a_suggestion():
    with pytest.raises(UserError, match=r"model.name=resnet_18: torchvision has no such .* did you mean .*resnet18"):
        Torchvision(make_spec(3, 32), name="resnet_18")
    with pytest.raises(UserError, match=r"torchvision has no such architecture; .*list_models\(\) lists them"):
        Torchvision(make_spec(3, 32), name="xyz")


@pytest.mark.parametrize(
    ("name", "size", "message"),
    [
        ("inception_v3", 64, "model inception_v3 does not take data.image_size=64: "),
        ("densenet121", 16, "model densenet121 does not take data.image_size=16: "),
        ("vgg11", 16, "model vgg11 does not take data.image_size=16: "),
        ("vit_b_16", 100, "model.name=vit_b_16: torchvision refuses data.image_size=100: .*indivisible"),
        ("maxvit_t", 128, "model.name=maxvit_t: torchvision refuses data.image_size=128: .*not divisible"),
    ],
)
def test_an_image_size_that_a_torchvision_network_refuses_is_an_error_of_one_line(name, size, message):
    config = compose(["model=torchvision", f"model.name={name}"]).model
    with pytest.raises(UserError, match=message) as refused:
        measure_network(config.arguments(), make_spec(3, size))
    assert "\n" not in str(refused.value)


# -------------------------------------------------------------------------------------------------------- summary


def find_layer(network: ImageClassifier, name: str) -> Layer:
    return next(layer for layer in summarize_layers(network) if layer.name == name)


def test_lenet5s_summary_is_what_one_computes_by_hand():
    rows = [row for row in summarize_layers(LeNet5(make_spec(1, 32))) if row.kind not in {"ReLU", "Dropout", "Flatten"}]
    assert rows == [
        Layer("backbone.0", "Conv2d", (6, 28, 28), 5, 1, 28 * 28 * 6 * 25, 156),
        Layer("backbone.2", "MaxPool2d", (6, 14, 14), 6, 2, 0, 0),
        Layer("backbone.3", "Conv2d", (16, 10, 10), 14, 2, 10 * 10 * 16 * 6 * 25, 2_416),
        Layer("backbone.5", "MaxPool2d", (16, 5, 5), 16, 4, 0, 0),
        Layer("backbone.8", "Linear", (120,), None, None, 400 * 120, 48_120),
        Layer("backbone.11", "Linear", (84,), None, None, 120 * 84, 10_164),
        Layer("head", "Linear", (10,), None, None, 84 * 10, 850),
    ]


def test_receptive_fields_are_the_published_ones():
    assert find_layer(build_on_meta(AlexNet, make_spec(3, 227)), "backbone.14").receptive_field == 195
    vgg = [row for row in summarize_layers(build_on_meta(VGG, make_spec(3, 224), depth=16)) if row.kind == "MaxPool2d"]
    assert [row.receptive_field for row in vgg] == [6, 16, 44, 100, 212]
    assert [row.stride for row in vgg] == [2, 4, 8, 16, 32]
    resnet = build_on_meta(Torchvision, make_spec(3, 224), name="resnet50")
    assert find_layer(resnet, "backbone.0.layer4.2.conv3").receptive_field == 427  # 483 where conv1 has the stride


@pytest.mark.parametrize("kernel", [1, 3, 5, 7])
@pytest.mark.parametrize("pool", [1, 2, 3])
def test_the_receptive_field_of_a_convolution_and_pooling_is_the_sum_of_their_sizes_minus_one(kernel, pool):
    rows = summarize_layers(Small(nn.Conv2d(3, 2, kernel), nn.MaxPool2d(pool)))
    assert [row.receptive_field for row in rows[:2]] == [kernel, pool + kernel - 1]


@pytest.mark.parametrize(
    ("network", "multiply_adds"),
    [
        (lambda: LeNet5(make_spec(1, 32)), 416_520),
        (lambda: AlexNet(make_spec(3, 227, 1000)), 724_406_816),
        (lambda: VGG(make_spec(3, 224, 1000), depth=16), 15_470_264_320),
        (lambda: Torchvision(make_spec(3, 224, 1000), name="resnet18"), 1_814_073_344),
        (lambda: Torchvision(make_spec(3, 224, 1000), name="vit_b_16"), 17_564_000_000),
        (lambda: Torchvision(make_spec(3, 224, 1000), name="swin_t"), 4_491_000_000),
        (lambda: Torchvision(make_spec(3, 224, 1000), name="shufflenet_v2_x1_0"), 145_000_000),
    ],
)
def test_the_multiply_adds_are_the_published_ones(network, multiply_adds):
    with torch.device("meta"):
        built = network()
    rows = summarize_layers(built)
    assert sum(row.multiply_adds for row in rows) == pytest.approx(
        multiply_adds, abs=0 if multiply_adds % 1000 else 5e5
    )
    assert sum(row.parameters for row in rows) == count_parameters(built)


class Small(ImageClassifier):
    """Some layers under a head, for images of 3x32x32."""

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__(make_spec(3, 32))
        self.backbone = nn.Sequential(*layers, nn.Flatten())
        with torch.no_grad():
            features = self.backbone(torch.zeros(1, 3, 32, 32)).shape[1]
        self.head = nn.Linear(features, 10)


class Branches(nn.Module):
    """Branches side by side, as in Inception, then a sum with a shortcut of stride 2."""

    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Conv2d(4, 2, (1, 7), stride=2, padding=(0, 3))
        self.two = nn.Sequential(nn.Conv2d(4, 3, 3, dilation=2, padding=2), nn.AvgPool2d(2))
        self.wide = nn.Conv2d(5, 6, 3, padding=1, groups=1)
        self.short = nn.Conv2d(4, 6, 1, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        return self.wide(torch.cat([self.one(x), self.two(x)], dim=1)) + self.short(x)


class Folded(nn.Module):
    """Space to depth: 2x2 pixels become channels."""

    def forward(self, x: Tensor) -> Tensor:
        b, c, h, w = x.shape
        return x.view(b, c, h // 2, 2, w // 2, 2).permute(0, 3, 5, 1, 2, 4).reshape(b, 4 * c, h // 2, w // 2)


class Tokens(nn.Module):
    """Patches as tokens (B, N, D) under a layer that acts on each of them."""

    def __init__(self, mixed: bool) -> None:
        super().__init__()
        self.mixed, self.layer = mixed, nn.Linear(64, 64)

    def forward(self, x: Tensor) -> Tensor:
        tokens = x.flatten(2)
        return self.layer(tokens) if self.mixed else self.layer(tokens.mT.contiguous()).mT


class Squeezed(nn.Module):
    """Squeeze and excitation: every pixel is scaled by what the whole image says."""

    def forward(self, x: Tensor) -> Tensor:
        return x * x.mean(dim=(2, 3), keepdim=True).sigmoid()


class ChannelNorm(nn.Module):
    """Layer normalisation over channels, written out."""

    def forward(self, x: Tensor) -> Tensor:
        return (x - x.mean(dim=1, keepdim=True)) * (x.var(dim=1, keepdim=True) + 1e-5).rsqrt()


class ReachedError(Exception):
    """Ends a forward pass."""


def measure_receptive_field(network: nn.Module, module: nn.Module, image: Tensor, at: int | None = None) -> int:
    """Return the side of the square of pixels on which a unit of ``module``'s first output depends.

    The unit is that in the middle, or that in row and column ``at``.
    """
    outputs = []

    def stop(module, inputs, output):
        outputs.append(output)
        raise ReachedError

    handle = module.register_forward_hook(stop)
    image = image.to(next(network.parameters()).dtype).requires_grad_()
    with pytest.raises(ReachedError):
        network(image)
    handle.remove()
    channels_last = outputs[0].shape[1] == outputs[0].shape[2]
    output = outputs[0].movedim(3, 1) if channels_last else outputs[0]
    rows, columns = (length // 2 if at is None else at for length in output.shape[2:])
    unit = output[0, :, rows, columns]
    (gradient,) = torch.autograd.grad(unit @ torch.rand_like(unit), image)  # norms sum to 0 over channels
    touched = gradient[0].abs().sum(0) != 0
    return max(int(line.nonzero().max() - line.nonzero().min()) + 1 for line in (touched.any(0), touched.any(1)))


def open_paths(network: nn.Module) -> nn.Module:
    """Return the network with positive weights and averages in place of maxima: no path is blocked or cancelled."""
    for module in list(network.modules()):
        if isinstance(module, nn.Conv2d):
            nn.init.constant_(module.weight, 1 / module.weight[0].numel())
            if module.bias is not None:
                nn.init.constant_(module.bias, 0.1)
        for name, child in module.named_children():
            if isinstance(child, nn.MaxPool2d):
                mean = nn.AvgPool2d(child.kernel_size, child.stride, child.padding, child.ceil_mode)
                setattr(module, name, mean)
    return network.double().eval()


@pytest.mark.parametrize(
    ("network", "shape"),
    [
        (lambda: LeNet5(make_spec(1, 32)), (1, 32, 32)),
        (lambda: AlexNet(make_spec(3, 227), width=0.05), (3, 67, 451)),
        (lambda: VGG(make_spec(3, 224), depth=11, width=0.1), (3, 32, 320)),
        (lambda: ResNet(make_spec(3, 32), width=8, depth=2), (3, 96, 96)),
        (lambda: Torchvision(make_spec(3, 224), name="resnet18"), (3, 1, 640)),
        (lambda: Torchvision(make_spec(3, 224), name="googlenet"), (3, 33, 512)),
        (lambda: Torchvision(make_spec(3, 224), name="squeezenet1_1"), (3, 33, 320)),
        (lambda: Torchvision(make_spec(3, 224), name="shufflenet_v2_x0_5"), (3, 1, 640)),
        (
            lambda: Small(nn.Conv2d(3, 4, 3, padding=1), Branches(), nn.Conv2d(6, 6, 3, padding=1, groups=3)),
            (3, 64, 64),
        ),
        (lambda: Small(nn.Conv2d(3, 4, 3, padding=1), Folded(), nn.Conv2d(16, 4, 3), nn.AvgPool2d(2)), (3, 64, 64)),
        (lambda: Small(nn.ZeroPad2d(2), nn.Conv2d(3, 4, 5, stride=3), nn.Conv2d(4, 4, 2, dilation=3)), (3, 96, 96)),
    ],
)
def test_a_unit_sees_the_pixels_where_its_gradient_is_not_zero(network, shape):
    torch.manual_seed(0)
    built = network()
    rows = [row for row in summarize_layers(built) if row.name.startswith("backbone") and len(row.output) == 3]
    rows = [row for row in rows if row.receptive_field and row.kind != "Folded"]  # its channels see four positions
    fields = {row.name: row.receptive_field for row in reversed(rows)}  # a module's first call counts
    modules = dict(open_paths(built).named_modules())
    names = [*list(fields)[:: max(1, len(fields) // 8)], "backbone.0"][:12]
    for name in [name for name in names if name in fields]:
        assert measure_receptive_field(built.backbone, modules[name], torch.rand(1, *shape)) == fields[name], name


def test_receptive_fields_follow_windows_of_attention():
    torch.manual_seed(0)
    network = Torchvision(make_spec(3, 224), name="swin_t").eval()
    image = torch.rand(1, 3, 224, 224)
    # in windows, in shifted windows, four patches as one where two windows meet
    for name, at, side in (("1.0.attn", 28, 28), ("1.1.attn", 28, 56), ("2.reduction", 8, 84)):
        assert find_layer(network, f"backbone.0.features.{name}").receptive_field == side
        module = network.get_submodule(f"backbone.0.features.{name}")
        assert measure_receptive_field(network.backbone, module, image, at) == side


def test_a_layer_that_mixes_all_positions_sees_the_whole_image():
    patches = nn.Conv2d(3, 64, 4, stride=4)
    assert find_layer(Small(patches, Tokens(mixed=False)), "backbone.1.layer").receptive_field == 4
    assert find_layer(Small(patches, Tokens(mixed=True)), "backbone.1.layer").receptive_field is None
    assert find_layer(Small(patches, Squeezed(), nn.Conv2d(64, 8, 3)), "backbone.2").receptive_field is None
    assert find_layer(Small(patches, ChannelNorm(), nn.Conv2d(64, 8, 3)), "backbone.2").receptive_field == 12
    vit = summarize_layers(build_on_meta(Torchvision, make_spec(3, 224), name="vit_b_16"))
    first = next(number for number, row in enumerate(vit) if row.kind == "MultiheadAttention")
    assert {row.receptive_field for row in vit[:first]} == {16}
    assert {row.receptive_field for row in vit[first:]} == {None}


def test_a_summary_leaves_the_network_as_it_was():
    network = LeNet5(make_spec(1, 32), dropout=0.5)
    network.backbone[0].eval()
    initial = {name: value.clone() for name, value in network.state_dict().items()}
    modes = [module.training for module in network.modules()]
    assert summarize_layers(network) == summarize_layers(build_on_meta(LeNet5, make_spec(1, 32), dropout=0.5))
    assert modes == [module.training for module in network.modules()]
    assert all(torch.equal(value, initial[name]) for name, value in network.state_dict().items())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in network.modules())


def test_timms_networks_are_summarised():
    network = build_on_meta(Timm, make_spec(3, 64), name="efficientnet_b0")
    rows = summarize_layers(network)
    assert sum(row.parameters for row in rows) == count_parameters(network)
    assert next(row for row in rows if row.kind == "BatchNormAct2d").receptive_field == 3


@pytest.mark.parametrize(
    "network",
    [
        lambda: LeNet5(make_spec(1, 32)),
        lambda: VGG(make_spec(3, 224, 1000), depth=19),
        lambda: Torchvision(make_spec(3, 224, 1000), name="resnet18"),
    ],
)
def test_the_printed_summary_is_complete_and_fits_100_columns(network, capsys):
    with torch.device("meta"):
        built = network()
    print_summary(built)
    lines = capsys.readouterr().out.splitlines()
    rows = summarize_layers(built)
    assert len(lines) == 2 + len(rows)
    assert max(map(len, lines)) <= 100
    assert lines[0].split() == ["layer", "kind", "output", "sees", "stride", "multiply-adds", "parameters"]
    assert lines[-1].split() == [
        "total",
        f"{sum(row.multiply_adds for row in rows):,}",
        f"{count_parameters(built):,}",
    ]
    for line, row in zip(lines[1:], rows, strict=False):
        assert line.split()[:2] == [row.name.removeprefix("backbone."), row.kind]
        assert "whole image" in line if row.receptive_field is None else f"{row.receptive_field} x" in line
        assert f"{row.multiply_adds:,}" in line or not row.multiply_adds
        assert f"{row.parameters:,}" in line or not row.parameters
