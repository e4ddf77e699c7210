"""Weights of another training: read from a file, or downloaded by timm or torchvision by their tag.

Beside timm's and torchvision's own loading: the tensors come with what is known of the images and classes that they
were trained on, and a failed download ends in one line.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tutelage.errors import UserError

COUNTERS = "num_batches_tracked"  # of batch norm; older files lack them
SAFETENSORS = ".safetensors"
TIMM, TORCHVISION = "timm:", "torchvision:"


@dataclass(frozen=True)
class Pretrained:
    """Weights, and what is known of the images and classes that they were trained on.

    Attributes:
        source: the file or tag, for messages.
        tensors: in the order of their file, without batch norm's counters.
        mean: mean of each channel, on a scale from 0 to 1, by which images were normalised; empty if unknown.
        std: standard deviations, likewise.
        classes: names of the classes; None if unknown.
    """

    source: str
    tensors: Mapping[str, Tensor]
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    classes: tuple[str, ...] | None = None

    @property
    def unordered(self) -> bool:
        """Whether the order of the tensors has no meaning."""
        return self.source.endswith(SAFETENSORS)


def read_pretrained(source: Path | str) -> Pretrained:
    """Read weights from a file, or by ``timm:NAME[.TAG]`` or ``torchvision:NAME[/WEIGHTS]``.

    Nothing in a file is executed: it is read by torch's restricted loader. timm and torchvision download weights that
    are not in their caches.

    Raises:
        UserError: there are none, or they cannot be read.
    """
    if isinstance(source, str) and source.startswith(TIMM):
        return _call_library(source, lambda: _read_timm(source))
    if isinstance(source, str) and source.startswith(TORCHVISION):
        return _call_library(source, lambda: _read_torchvision(source))
    return _read_file(Path(source))


def _call_library(source: str, read: Callable[[], Pretrained]) -> Pretrained:
    """Return what ``read`` gets from a library; an error of the library or the download becomes one line."""
    try:
        with torch.random.fork_rng(devices=[]):  # building a network draws weights
            return read()
    except UserError:
        raise
    except Exception as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"init_from={source}: cannot be had ({type(error).__name__}: {reason}); "
            "without a network, give a file of the weights"
        ) from None


def _read_timm(source: str) -> Pretrained:
    import timm

    name = source.removeprefix(TIMM)
    architecture = name.partition(".")[0]
    if not timm.is_model(architecture):
        raise UserError(f"init_from={source}: timm has no such architecture; timm.list_pretrained() lists its tags")
    network = timm.create_model(name, pretrained=True)
    config: Any = network.pretrained_cfg
    return Pretrained(source, _drop_counters(network.state_dict()), tuple(config["mean"]), tuple(config["std"]))


def _read_torchvision(source: str) -> Pretrained:
    from torchvision import models

    name, _, version = source.removeprefix(TORCHVISION).partition("/")
    if name not in models.list_models(module=models):
        raise UserError(
            f"init_from={source}: torchvision has no such classifier; torchvision.models.list_models() lists them"
        )
    versions = models.get_model_weights(name)
    names = list(versions.__members__)
    if version and version not in names:
        raise UserError(f"init_from={source}: {name} has the weights {', '.join(names)}; or leave out /{version}")
    weights = versions[version or "DEFAULT"]
    preset = weights.transforms()
    tensors = _drop_counters(weights.get_state_dict(progress=False))
    return Pretrained(source, tensors, tuple(preset.mean), tuple(preset.std))


def _read_file(file: Path) -> Pretrained:
    """Read the tensors of a file; from our own checkpoints also how images are normalised, and the classes."""
    if not file.is_file():
        reason = "a folder: name a run, or a file" if file.is_dir() else "no such file"
        raise UserError(f"init_from={file}: {reason}")
    try:
        if file.suffix == SAFETENSORS:
            from safetensors.torch import load_file

            content: Any = load_file(file)
        else:
            content = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:
        raise UserError(
            f"init_from={file}: cannot be read as weights ({type(error).__name__}); save a state dict"
        ) from None
    spec = content.get("spec", {}) if isinstance(content, dict) else {}
    for wrapper in ("state_dict", "model"):
        if isinstance(content, dict) and isinstance(content.get(wrapper), dict):
            content = content[wrapper]
    state = {str(n): t for n, t in content.items() if isinstance(t, Tensor)} if isinstance(content, dict) else {}
    if not state:
        raise UserError(f"init_from={file}: holds no tensors by name; save a state dict")
    tensors = _drop_counters(state)
    if not isinstance(spec, dict) or not {"mean", "std", "classes"} <= set(spec):
        return Pretrained(str(file), tensors)
    return Pretrained(str(file), tensors, tuple(spec["mean"]), tuple(spec["std"]), tuple(spec["classes"]))


def _drop_counters(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in tensors.items() if not name.endswith(COUNTERS)}
