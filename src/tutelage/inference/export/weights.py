"""Networks as weights beside a description from which they are built again: for this project, and for timm."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from tutelage.errors import UserError
from tutelage.inference.export.formats import LOGITS, Format, LoadedFiles, quietly
from tutelage.inference.network import PlainNetwork
from tutelage.models import ImageClassifier, ImageSpec, Timm, create_timm, make_classifier
from tutelage.models.base import PIXEL_MAX
from tutelage.models.timm import WithFeatureLayers

WEIGHTS, CONFIG = "model.safetensors", "config.json"  # as timm and the Hub call them
CROP_MODES = {"crop": "center", "pad": "border", "stretch": "squash"}  # timm's names, by data.fit
OTHERS = "take --format onnx, pt2 or safetensors"


class Safetensors(Format):
    """Weights and ``config.json``, in the Hub's layout, from which this project builds the network again."""

    name, file, library = "safetensors", WEIGHTS, "tutelage"
    usage = """import torch
from tutelage.inference.export import read_safetensors

network = read_safetensors(".")
logits = network(torch.from_numpy(picture)[None]).detach().numpy()"""

    def write(self, network: ImageClassifier, fit: str, folder: Path) -> None:
        """Write ``model.safetensors`` and ``config.json``."""
        config = _describe(network, fit) | {
            "architecture": network.model_config.get("name", type(network).__name__),
            "num_features": getattr(network.head, "in_features", None),
            "tutelage": {"model": network.model_config, "spec": network.spec.to_dict()},
        }
        _write(network.state_dict(), config, folder)

    def load(self, folder: Path) -> LoadedFiles:
        """Return what the network that ``read_safetensors`` builds computes, and its classes."""
        network = read_safetensors(folder)
        return LoadedFiles(
            network.spec.classes, lambda images: {LOGITS: _run_without_gradients(network, torch.from_numpy(images))}
        )


def read_safetensors(folder: str | Path) -> PlainNetwork:
    """Return the network that ``tutelage export --format safetensors`` has written, a plain module in eval mode.

    Args:
        folder: of ``model.safetensors`` and ``config.json``.

    Raises:
        UserError: one of them is missing or damaged, or the config names no architecture of an allowed package.
    """
    from safetensors.torch import load_file

    folder = Path(folder)
    try:
        about = json.loads((folder / CONFIG).read_text(encoding="utf-8"))["tutelage"]
        spec, state = ImageSpec.from_dict(about["spec"]), load_file(folder / WEIGHTS)
    except Exception as error:  # of the file system, of JSON or of safetensors
        raise UserError(
            f"{folder}: {WEIGHTS} and {CONFIG} of an export cannot be read ({type(error).__name__}: {error}); export "
            "the network again"
        ) from None
    network = make_classifier(about["model"], spec)
    network.load_state_dict(state)
    return PlainNetwork.of(network)


class TimmLayout(Format):
    """Weights and ``config.json`` that ``timm.create_model("local-dir:...", pretrained=True)`` loads."""

    name, file, library = "timm", WEIGHTS, "timm"
    usage = """import timm
import torch

network = timm.create_model("local-dir:.", pretrained=True).eval()
mean, std = (torch.tensor(values)[:, None, None] for values in (MEAN, STD))
logits = network(((torch.from_numpy(picture) / 255 - mean) / std)[None]).detach().numpy()"""

    def check_network(self, network: ImageClassifier) -> None:
        """Raise a UserError where timm cannot build the network: it is none of timm's, or has features of ours."""
        _find_timm_network(network)

    def write(self, network: ImageClassifier, fit: str, folder: Path) -> None:
        """Write ``model.safetensors`` and ``config.json``, the weights by the names that timm has for them."""
        state = _find_timm_network(network).state_dict()
        name, spec = network.model_config["name"], network.spec
        with torch.random.fork_rng(devices=[]):
            model, arguments = create_timm(name, spec, len(spec.classes))
        classifier = model.get_classifier()
        prefix = next((prefix for prefix, module in model.named_modules() if module is classifier), "")
        state |= {f"{prefix}.{key}": value for key, value in network.head.state_dict().items()}
        if {key: value.shape for key, value in state.items()} != {k: v.shape for k, v in model.state_dict().items()}:
            raise UserError(f"--format timm: the head of timm's {name} is no single linear layer; {OTHERS}")
        config = _describe(network, fit) | {"architecture": name, "num_features": model.num_features}
        config["model_args"] = {key: value for key, value in arguments.items() if key != "num_classes"}
        known = model.pretrained_cfg
        config["pretrained_cfg"] |= {key: known[key] for key in ("first_conv", "classifier") if key in known}
        config["pretrained_cfg"]["fixed_input_size"] = bool(known.get("fixed_input_size"))
        _write(state, config, folder)

    def load(self, folder: Path) -> LoadedFiles:
        """Return what timm's network of the folder computes of images that are normalised as its config says."""
        import timm

        with quietly():
            network = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
        config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        mean, std = (torch.tensor(config["pretrained_cfg"][key])[:, None, None] for key in ("mean", "std"))

        def compute(images: np.ndarray) -> dict[str, np.ndarray]:
            return {LOGITS: _run_without_gradients(network, (torch.from_numpy(images) / PIXEL_MAX - mean) / std)}

        return LoadedFiles(tuple(config["label_names"]), compute)


def _find_timm_network(network: ImageClassifier) -> nn.Module:
    """Return timm's network without its head; raise a UserError where there is none that timm builds too."""
    if not isinstance(network, Timm):
        raise UserError(f"--format timm: {type(network).__name__} is no network of model=timm; {OTHERS}")
    if isinstance(network.timm_network, WithFeatureLayers):
        raise UserError(
            "--format timm: this network's head reads several layers (model.feature_layers), for which timm has no "
            f"place; {OTHERS}"
        )
    return network.timm_network


def _describe(network: ImageClassifier, fit: str) -> dict[str, Any]:
    """Return the part of ``config.json`` that all networks have."""
    spec = network.spec
    return {
        "num_classes": len(spec.classes),
        "label_names": list(spec.classes),
        "pretrained_cfg": {
            "input_size": [spec.channels, spec.image_size, spec.image_size],
            "mean": list(spec.mean),
            "std": list(spec.std),
            "interpolation": "bilinear",
            "crop_pct": 1.0,
            "crop_mode": CROP_MODES[fit],
            "num_classes": len(spec.classes),
        },
    }


def _write(state: dict[str, Tensor], config: dict[str, Any], folder: Path) -> None:
    from safetensors.torch import save

    content = save({name: value.contiguous().clone() for name, value in state.items()}, {"format": "pt"})
    (folder / WEIGHTS).write_bytes(content)  # save_file's own errors, of a full disk too, are no OSError
    (folder / CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def _run_without_gradients(network: nn.Module, images: Tensor) -> np.ndarray:
    with torch.no_grad():
        logits: np.ndarray = network(images).numpy()
    return logits
