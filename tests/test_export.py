"""Networks as files that need no Tutelage: they answer as the run's network does, and the card says how to use them."""

import json
import re
import resource
import signal
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.numpy import load_file

from helpers.configs import data_config
from helpers.forks import call_in_fork, return_from_fork
from helpers.images import smooth_image
from helpers.networks import make_spec
from helpers.runs import only_run, run
from tutelage.app.export import FORMATS as TYPED_FORMATS
from tutelage.app.export import run_export
from tutelage.config.compose import compose
from tutelage.data import data_module
from tutelage.data.files.decoding import read_pixels
from tutelage.data.fitting import fit_image
from tutelage.errors import UserError
from tutelage.inference.classifier import load_networks
from tutelage.inference.export import FORMATS
from tutelage.inference.export.exporting import TOLERANCE, check_files, take_network
from tutelage.inference.export.formats import LoadedFiles
from tutelage.inference.export.origin import find_origin
from tutelage.inference.export.reading import reading_lines
from tutelage.inference.loading import LoadedNetwork
from tutelage.inference.network import PlainNetwork
from tutelage.models import make_classifier
from tutelage.models.weights.published import INSTALLED
from tutelage.options import list_options
from tutelage.runs import Health, RunFolder, inspect_run, read_config
from tutelage.runs.predictions import read_predictions
from tutelage.storage import write_folder

PERCEPTRON = {"_target_": "tutelage.models.Perceptron"}
TINY = {
    "lenet5": ({"_target_": "tutelage.models.LeNet5"}, make_spec(1, 28)),
    "resnet": ({"_target_": "tutelage.models.ResNet", "width": 8, "depth": 1}, make_spec(3, 8)),
    "timm": ({"_target_": "tutelage.models.Timm", "name": "test_resnet"}, make_spec(1, 32, 3)),
}
SIZES = {"alexnet": 67, "vgg": 32, "efficientnet_lite0": 64, "convnext_tiny": 64, "vit_small_dinov2": 98}  # pixels
ARCHITECTURES = sorted(set(list_options()["model"]) - {"nearest_neighbours"})
OF_TIMM = ("convnext_tiny", "efficientnet_lite0", "timm", "vit_small_dinov2")
EXPORTS = [(option, name) for option in ARCHITECTURES for name in TYPED_FORMATS if name != "timm" or option in OF_TIMM]


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    """A finished run of a perceptron on digits."""
    outputs = tmp_path_factory.mktemp("export")
    overrides = ["model=perceptron", "debug=tiny", "trainer=cpu", "data.image_size=8", "callbacks.report=false"]
    assert run(outputs, *overrides) == 0
    return only_run(outputs)


def export(folder, name, *more):
    return return_from_fork(lambda: list(run_export([str(folder), "--format", name, *more])))


def python_blocks(card):
    return "\n".join(re.findall(r"```python\n(.*?)```", card.read_text(), flags=re.DOTALL))


def random_network(model, spec):
    torch.manual_seed(0)
    return make_classifier(model, spec).eval()


def assert_exports(network, name, folder, columns=None):
    """Write a network to a folder, and compare what its files give with the network, as an export does."""
    config = data_config(image_size=network.spec.image_size, channels=network.spec.channels)
    member = LoadedNetwork("network", network, columns, config, None)
    folder.mkdir()
    shape = (3, network.spec.channels, *2 * (network.spec.image_size,))
    images = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)

    def write_and_check():
        FORMATS[name].write(take_network(member), "crop", folder)
        return check_files(FORMATS[name].load(folder), PlainNetwork.of(network, columns), member.classes, images, name)

    return_from_fork(write_and_check)


@pytest.mark.slow
def test_a_network_in_onnx_answers_as_its_run_did_where_neither_torch_nor_tutelage_is(digits, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    first, *_ = export(digits, "onnx")
    out = tmp_path / f"{digits.name}-onnx"
    assert first == f"export: {out.name}: README.md, model.onnx"
    classifier = load_networks([digits], device="cpu")
    tested, images = read_predictions(RunFolder(digits).test_file), data_module(classifier.data).images
    pictures = [images[index] for index in tested.indices[:3].tolist()]
    for number, picture in enumerate(pictures):
        Image.fromarray(picture[..., 0]).save(out / f"{number}.png")
    code = python_blocks(out / "README.md").replace("session = ", 'picture = read("0.png")\nsession = ', 1)
    code += """
import json, sys
assert not {"torch", "tutelage"} & set(sys.modules)
pictures = np.stack([read(f"{number}.png") for number in range(3)])
several = session.run(None, {"images": pictures})
print(json.dumps([probabilities.tolist(), several[0].tolist(), several[1].tolist(),
                  session.get_modelmeta().custom_metadata_map["classes"]]))
"""
    child = subprocess.run([sys.executable, "-I", "-c", code], cwd=out, capture_output=True, text=True, check=True)
    one, several, logits, classes = json.loads(child.stdout)
    assert several == pytest.approx(tested.probabilities[:3], abs=1e-6)
    assert one[0] == pytest.approx(several[0], abs=1e-6)
    exponentials = np.exp(np.array(logits))
    assert several == pytest.approx(exponentials / exponentials.sum(axis=1, keepdims=True), abs=1e-6)
    assert tuple(json.loads(classes)) == classifier.classes


def test_a_card_tells_what_the_network_is_and_no_paths_of_the_machine(digits, tmp_path):
    export(digits, "safetensors", "--out", str(tmp_path / "out"))
    card = (tmp_path / "out" / "README.md").read_text()
    record = json.loads((digits / "run.json").read_text())
    assert card.startswith("---\nlibrary_name: tutelage\n")  # random weights have no licence
    assert f"- accuracy: {100 * record['result']['test/accuracy']:.1f} % (" in card
    assert f"error (15 bins): {100 * record['result']['test/calibration_error']:.1f} %" in card
    assert f"- labels: {record['stages'][0]['labels']}\n" in card
    assert "- began from: random weights" in card
    assert str(tmp_path) not in card
    assert str(digits.parent) not in card
    assert inspect_run(RunFolder(digits), check_digests=True).health is Health.WHOLE


def test_a_run_with_an_export_below_its_folder_is_whole(digits):
    lines = export(digits, "pt2", "--out", str(digits / "export"))
    assert "model.pt2" in lines[0]
    assert "of the test set" in lines[1]
    assert inspect_run(RunFolder(digits), check_digests=True).health is Health.WHOLE
    assert (digits / "export" / "model.pt2").stat().st_mode & 0o777 == 0o644


@pytest.mark.parametrize(
    ("change_classes", "change_logits", "message"),
    [
        (tuple, lambda logits: logits + 1e-3, "checked on 32 pictures, its logits differ"),
        (tuple, lambda logits: logits * np.nan, "checked on 32 pictures, its logits differ"),
        (tuple, lambda logits: logits[:, :7], r"its logits are \(32, 7\), the network's \(32, 10\)"),
        (lambda classes: classes[::-1], np.asarray, r"its classes are \['9', .* the network's \['0', "),
    ],
)
def test_an_export_that_answers_otherwise_is_not_there(
    digits, tmp_path, monkeypatch, change_classes, change_logits, message
):
    chosen = FORMATS["safetensors"]
    load = chosen.load

    def load_changed(self, folder):
        classes, compute = load(folder)
        return LoadedFiles(change_classes(classes), lambda images: {"logits": change_logits(compute(images)["logits"])})

    monkeypatch.setattr(type(chosen), "load", load_changed)
    with pytest.raises(UserError, match=f"{message}.* nothing was written"):
        export(digits, "safetensors", "--out", str(tmp_path / "out"))
    assert not list(tmp_path.iterdir())


def test_a_difference_of_a_class_or_above_the_tolerance_ends_the_check():
    network = PlainNetwork.of(random_network(PERCEPTRON, make_spec(1, 8, 2)))
    classes, images = network.spec.classes, np.zeros((2, 1, 8, 8), np.uint8)
    with torch.no_grad():
        logits = network(torch.from_numpy(images)).numpy()

    def check(logits):
        loaded = LoadedFiles(classes, lambda batch: {"logits": logits[: len(batch)]})
        return check_files(loaded, network, classes, images, "it")

    assert check(logits + np.float32(TOLERANCE / 2)) == pytest.approx(TOLERANCE / 2, rel=0.01)
    with pytest.raises(UserError, match="differ"):
        check(logits + np.float32(2 * TOLERANCE))
    with torch.no_grad():
        network.head.weight.zero_()
        network.head.bias.copy_(torch.tensor([0.0, 1e-6]))
    with pytest.raises(UserError, match="another class"):
        check(np.zeros((2, 2), np.float32))


def test_the_weights_in_safetensors_give_the_run_s_answers_by_numpy_alone(digits, tmp_path):
    export(digits, "safetensors", "--out", str(tmp_path / "out"))
    weights = load_file(tmp_path / "out" / "model.safetensors")
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    tested = read_predictions(RunFolder(digits).test_file)
    pixels = data_module(read_config(RunFolder(digits)).data).images[tested.indices]  # (N, H, W, 1) uint8
    mean, std = config["pretrained_cfg"]["mean"][0], config["pretrained_cfg"]["std"][0]
    logits = (pixels.reshape(len(pixels), -1) / 255 - mean) / std @ weights["head.weight"].T + weights["head.bias"]
    exponentials = np.exp(logits - logits.max(axis=1, keepdims=True))
    np.testing.assert_allclose(exponentials / exponentials.sum(axis=1, keepdims=True), tested.probabilities, atol=1e-6)
    assert config["label_names"] == list("0123456789")


def test_what_cannot_be_exported_is_refused_in_one_line(digits, tmp_path, monkeypatch):
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "file").touch()
    run_name = str(digits)
    cases = {
        ("--format", "onnx"): "one run's folder, not 0",
        (run_name, run_name, "--format", "onnx"): "one run's folder, not 2",
        (run_name,): "no --format; the formats are onnx, pt2, safetensors, timm",
        (run_name, "--format", "tflite"): "--format tflite; the formats are",
        (run_name, "--format", "onnx", "--size", "3"): "unrecognized arguments: --size",
        (run_name, "--format", "onnx", "--task", "x"): "invalid int value: 'x'",
        (run_name, "--format", "onnx", "--task", "1"): "has one task; leave it out",
        (run_name, "--format", "onnx", "--stage", "student-7"): "no network of a stage 'student-7'",
        (run_name, "--format", "onnx", "--out", str(tmp_path / "taken")): "there already",
        (run_name, "--format", "timm", "--out", str(tmp_path / "out")): "Perceptron is no network of model=timm",
        (f"{run_name}/run.json", "--format", "onnx"): "no folder of a run",
        (str(tmp_path / "taken"), "--format", "onnx"): "no run",
    }
    for arguments, message in cases.items():
        with pytest.raises(UserError, match=message) as error:
            list(run_export([*arguments]))
        assert "\n" not in str(error.value)
    monkeypatch.setattr("tutelage.inference.export.formats.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"onnx is not installed; pip install 'tutelage\[export\]'"):
        export(digits, "onnx", "--out", str(tmp_path / "out"))
    assert {path.name for path in tmp_path.iterdir()} == {"taken"}
    assert tuple(FORMATS) == TYPED_FORMATS


def test_features_of_several_layers_and_neighbours_have_no_place_in_a_format():
    model = {"_target_": "tutelage.models.Timm", "name": "test_resnet", "feature_layers": ["layer3"]}
    with pytest.raises(UserError, match="model.feature_layers.*take --format onnx, pt2 or safetensors"):
        FORMATS["timm"].check_network(random_network(model, make_spec(3, 32)))
    neighbours = random_network({"_target_": "tutelage.models.NearestNeighbours", "k": 1}, make_spec(1, 8))
    with pytest.raises(UserError, match="tutelage predict uses it where its run lies"):
        PlainNetwork.of(neighbours)


@pytest.mark.parametrize("option", TINY)
def test_a_tiny_network_is_written_and_answers_the_same(option, tmp_path):
    assert_exports(random_network(*TINY[option]), "safetensors", tmp_path / "out")


def test_timm_loads_its_folder_with_the_classes(tmp_path):
    import timm

    assert_exports(random_network(*TINY["timm"]), "timm", tmp_path / "out")
    loaded = timm.create_model(f"local-dir:{tmp_path / 'out'}", pretrained=True)
    assert loaded.pretrained_cfg["label_names"] == ["0", "1", "2"]
    assert loaded.pretrained_cfg["input_size"] == (1, 32, 32)
    assert timm.data.resolve_model_data_config(loaded)["crop_pct"] == 1.0


def test_one_task_of_several_is_exported_with_its_classes(tmp_path):
    network = random_network(TINY["resnet"][0], replace(make_spec(3, 8, 5), tasks=((3, 0), (4, 2))))
    network.head.learned[:] = True
    assert_exports(network, "safetensors", tmp_path / "out", columns=(4, 2))
    assert json.loads((tmp_path / "out" / "config.json").read_text())["label_names"] == ["4", "2"]


def write_picture(file, mode, shape, number):
    """Write a picture of a mode, turned by its EXIF orientation; return its file."""
    pixels = smooth_image((*shape, 4), seed=number)
    if mode == "I;16":
        image = Image.fromarray(pixels[..., 0].astype(np.uint16) * 257 + 3)
    else:
        image = Image.fromarray(pixels if mode == "RGBA" else pixels[..., :3]).convert(mode)
    exif = Image.Exif()
    exif[0x0112] = 1 + number % 8
    file = file.with_suffix(".jpg" if mode == "L" else ".png")
    image.save(file, exif=exif)
    return file


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("fit", ["crop", "pad", "stretch"])
def test_the_lines_of_a_card_read_pictures_to_the_pixel(fit, channels, tmp_path):
    """Smaller and larger, by whole factors and others; every mode, orientation, and a transparent background."""
    sizes = [(64, 64), (96, 128), (32, 32), (33, 70), (100, 41), (20, 25), (7, 90), (160, 128)]
    modes = ["RGB", "RGBA", "L", "P", "I;16", "LA", "RGB", "1"]
    files = {"_target_": "tutelage.data.ImageFolder", "root": "pictures", "background": [10, 200, 90]}
    config = data_config(image_size=32, channels=channels, fit=fit, **files)
    lines = {}
    exec(reading_lines(config), lines)
    for number, (mode, shape) in enumerate(zip(modes, sizes, strict=True)):
        file = write_picture(tmp_path / str(number), mode, shape, number)
        expected = fit_image(read_pixels(file, channels, config.background, config.max_pixels), config)
        np.testing.assert_array_equal(lines["read"](file), expected.transpose(2, 0, 1), f"{mode} {shape}")


def test_the_licence_of_weights_follows_through_the_runs_that_began_from_them(digits, tmp_path):
    network, config = random_network(*TINY["timm"]), read_config(RunFolder(digits))

    def origin(init_from):
        changed = config.model_copy(update={"init_from": init_from})
        return find_origin(LoadedNetwork("network", network, None, data_config(), changed))

    assert origin(None) == ("random weights", None, False)
    assert origin(INSTALLED).license == "apache-2.0"
    assert origin("timm:resnet18.a1_in1k") == ("`timm:resnet18.a1_in1k`", "apache-2.0", True)
    assert origin("torchvision:resnet18") == ("`torchvision:resnet18`", None, True)
    assert origin(str(digits)) == (f"the run `{digits.name}`, which began from random weights", None, False)
    later = tmp_path / "later"
    later.mkdir()
    (later / "run.json").touch()
    (later / "config.yaml").write_text(
        (digits / "config.yaml").read_text().replace("init_from: null", f"init_from: {INSTALLED}")
    )
    assert origin(str(later)).license == "apache-2.0"
    (tmp_path / "weights.pth").touch()
    assert origin(str(tmp_path / "weights.pth")) == ("the file or run `weights.pth`", None, True)


@pytest.mark.slow
@pytest.mark.parametrize(("option", "name"), EXPORTS)
def test_every_architecture_is_exported(option, name, tmp_path):
    """A new YAML file in conf/model is tested without a change here."""
    config = compose([f"model={option}", f"data.image_size={SIZES.get(option, 32)}"])
    model = config.model.arguments()
    if name == "timm":
        model.pop("feature_layers")  # timm has no place for them
    spec = make_spec(config.data.channels, config.data.image_size)
    assert_exports(random_network(model, spec), name, tmp_path / "out")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["onnx", "pt2"])
def test_a_task_and_a_head_of_convolutions_are_exported_as_graphs(name, tmp_path):
    squeezenet = {"_target_": "tutelage.models.Torchvision", "name": "squeezenet1_1"}
    assert_exports(random_network(squeezenet, make_spec(3, 64)), name, tmp_path / "squeezenet")
    network = random_network(TINY["resnet"][0], replace(make_spec(3, 8, 5), tasks=((3, 0), (4, 2))))
    network.head.learned[:] = True
    assert_exports(network, name, tmp_path / "task", columns=(4, 2))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["pt2", "timm"])
def test_a_card_s_lines_classify_where_tutelage_is_not(name, tmp_path, outputs):
    overrides = ["model=timm", "model.name=test_resnet", "debug=tiny", "trainer=cpu", "callbacks.report=false"]
    assert run(outputs, *overrides) == 0
    export(only_run(outputs), name, "--out", str(tmp_path / "out"))
    Image.fromarray(smooth_image((40, 30, 1))[..., 0]).save(tmp_path / "out" / "picture.png")
    first, usage = re.findall(r"```python\n(.*?)```", (tmp_path / "out" / "README.md").read_text(), flags=re.DOTALL)
    code = f"""{first}
picture = read("picture.png")
{usage}
import sys
assert "tutelage" not in sys.modules
np.save("logits.npy", logits)
"""
    subprocess.run([sys.executable, "-I", "-c", code], cwd=tmp_path / "out", check=True)
    classifier = load_networks([only_run(outputs)], device="cpu")
    pixels = read_pixels(tmp_path / "out" / "picture.png", 1, (255, 255, 255), 10**6)
    picture = torch.from_numpy(fit_image(pixels, classifier.data).transpose(2, 0, 1).copy())
    with torch.no_grad():
        expected = classifier.network(picture[None]).numpy()
    np.testing.assert_allclose(np.load(tmp_path / "out" / "logits.npy"), expected, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("name", TYPED_FORMATS)
def test_a_disk_that_fills_up_ends_in_one_line_and_leaves_nothing(name, tmp_path):
    network = random_network(*TINY["timm"])

    def export_to_a_full_disk() -> int:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, 30_000))  # bytes of a file, fewer than its weights have
        try:
            write_folder(tmp_path / "out", lambda folder: FORMATS[name].write(network, "crop", folder))
        except UserError as error:
            return 0 if "out: cannot be written (File too large); make room" in str(error) else 2
        return 1

    assert call_in_fork(export_to_a_full_disk) == 0
    assert not list(tmp_path.iterdir())
