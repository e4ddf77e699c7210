"""Weights of another training: read from a file, or downloaded by timm or torchvision by their tag.

Beside timm's and torchvision's own loading: the tensors come with what is known of the images and classes that they
were trained on, and a failed download ends in one line.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tutelage.errors import UserError, quote_error
from tutelage.models.weights.published import (
    TIMM,
    TORCHVISION,
    fetch_weights,
    find_torchvision_weights,
)

COUNTERS = "num_batches_tracked"  # of batch norm; older files lack them
SAFETENSORS = ".safetensors"


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
    if isinstance(source, str) and source.startswith((TIMM, TORCHVISION)):
        file = fetch_weights(source)
        try:
            return _read_timm(source, file) if source.startswith(TIMM) else _read_torchvision(source, file)
        except Exception as error:  # of a library
            reason = f"{type(error).__name__}: {quote_error(error)}"
            raise UserError(
                f"init_from={source}: {file} cannot be read ({reason}); remove it to fetch it again"
            ) from None
    return _read_file(Path(source))


def _read_timm(source: str, file: Path) -> Pretrained:
    """Read timm's weights by way of timm's network, which renames tensors of other codes."""
    import timm

    origin = {"file": str(file), "custom_load": False}  # files of others' formats come converted from the hub
    with torch.random.fork_rng(devices=[]):  # building a network draws weights
        network = timm.create_model(source.removeprefix(TIMM), pretrained=True, pretrained_cfg_overlay=origin)
    config: Any = network.pretrained_cfg
    return Pretrained(source, _drop_counters(network.state_dict()), tuple(config["mean"]), tuple(config["std"]))


def _read_torchvision(source: str, file: Path) -> Pretrained:
    preset = find_torchvision_weights(source).transforms()
    tensors = _drop_counters(torch.load(file, map_location="cpu", weights_only=True))
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
