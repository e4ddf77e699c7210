"""Weights that another training left: read from a file, or had by a tag of timm's or torchvision's."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tutelage.errors import UserError

COUNTERS = "num_batches_tracked"  # of batch norm; older files lack them
SAFE = ".safetensors"
TIMM, TORCHVISION = "timm:", "torchvision:"


@dataclass(frozen=True)
class Pretrained:
    """Weights and what is known of them.

    Attributes:
        where: where they come from, for messages.
        tensors: in the order of their file, less counters of batches.
        mean: of each channel, on a scale from 0 to 1, by which images were normalised; empty where it is not known.
        std: likewise the deviations.
        classes: the names of the classes; None where they are not known.
    """

    where: str
    tensors: Mapping[str, Tensor]
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    classes: tuple[str, ...] | None = None

    @property
    def unordered(self) -> bool:
        """Whether the order of the tensors says nothing."""
        return self.where.endswith(SAFE)


def pretrained(given: Path | str) -> Pretrained:
    """Return weights by their file, or by ``timm:NAME[.TAG]`` or ``torchvision:NAME[/WEIGHTS]``.

    Nothing in a file is executed: it is read by torch's restricted loader. timm and torchvision download what their
    caches lack.

    Raises:
        UserError: there are none, or they cannot be read.
    """
    if isinstance(given, str) and given.startswith(TIMM):
        return _had(given, lambda: _of_timm(given))
    if isinstance(given, str) and given.startswith(TORCHVISION):
        return _had(given, lambda: _of_torchvision(given))
    return _of_file(Path(given))


def _had(given: str, get: Callable[[], Pretrained]) -> Pretrained:
    """Return what a library gives; whatever goes wrong in it, or on its way to the network, becomes one line."""
    try:
        with torch.random.fork_rng(devices=[]):  # a network that is built draws weights
            return get()
    except UserError:
        raise
    except Exception as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"init_from={given}: cannot be had ({type(error).__name__}: {reason}); "
            "without a network, give a file of the weights"
        ) from None


def _of_timm(given: str) -> Pretrained:
    import timm

    name = given.removeprefix(TIMM)
    architecture = name.partition(".")[0]
    if not timm.is_model(architecture):
        raise UserError(f"init_from={given}: timm has no such architecture; timm.list_pretrained() lists its tags")
    network = timm.create_model(name, pretrained=True)
    told: Any = network.pretrained_cfg
    return Pretrained(given, _counted_out(network.state_dict()), tuple(told["mean"]), tuple(told["std"]))


def _of_torchvision(given: str) -> Pretrained:
    from torchvision import models

    name, _, version = given.removeprefix(TORCHVISION).partition("/")
    if name not in models.list_models(module=models):
        raise UserError(
            f"init_from={given}: torchvision has no such classifier; torchvision.models.list_models() lists them"
        )
    known = models.get_model_weights(name)
    names = list(known.__members__)
    if version and version not in names:
        raise UserError(f"init_from={given}: {name} has the weights {', '.join(names)}; or leave out /{version}")
    weights = known[version or "DEFAULT"]
    shown = weights.transforms()
    return Pretrained(given, _counted_out(weights.get_state_dict(progress=False)), tuple(shown.mean), tuple(shown.std))


def _of_file(file: Path) -> Pretrained:
    """Return the tensors of a file; of our own checkpoints also how images are normalised and what the classes are."""
    if not file.is_file():
        what = "a folder: name a run, or a file" if file.is_dir() else "no such file"
        raise UserError(f"init_from={file}: {what}")
    try:
        if file.suffix == SAFE:
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
    found = {str(n): t for n, t in content.items() if isinstance(t, Tensor)} if isinstance(content, dict) else {}
    if not found:
        raise UserError(f"init_from={file}: holds no tensors by name; save a state dict")
    if not isinstance(spec, dict) or not {"mean", "std", "classes"} <= set(spec):
        return Pretrained(str(file), _counted_out(found))
    return Pretrained(str(file), _counted_out(found), tuple(spec["mean"]), tuple(spec["std"]), tuple(spec["classes"]))


def _counted_out(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in tensors.items() if not name.endswith(COUNTERS)}
