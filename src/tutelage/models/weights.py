"""A network's weights in one file, with all that is needed to build it again."""

import hashlib
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tutelage.errors import UserError
from tutelage.models.base import ImageClassifier, ImageSpec
from tutelage.storage import is_sound, write_checked
from tutelage.targets import build

COUNTERS = "num_batches_tracked"  # of batch norm; older files lack them
MOST_PREFIXES = 3  # modules of ours around another library's network
MOST_NAMED = 3
SAFE = ".safetensors"


def make_classifier(model: dict[str, Any], spec: ImageSpec) -> ImageClassifier:
    """Return the architecture of a ``model`` config, with random weights from torch's generator.

    Raises:
        UserError: the config names no architecture, or one that refuses it.
    """
    network: ImageClassifier = build(model, ImageClassifier, "model", spec=spec)
    return network


def save_classifier(network: ImageClassifier, model: dict[str, Any], path: Path) -> None:
    """Write weights, architecture and image spec, whole or absent."""
    content = {"state_dict": network.state_dict(), "model": model, "spec": network.spec.plain()}
    write_checked(path, lambda file: torch.save(content, file))


def load_classifier(path: Path) -> ImageClassifier:
    """Return the network that ``save_classifier`` wrote.

    Nothing in the file is executed: it is read by torch's restricted loader, and its target must be an architecture
    from an allowed package.

    Raises:
        UserError: the file is missing or damaged.
    """
    if not is_sound(path):
        raise UserError(f"{path}: missing or damaged (its checksum differs); the run's command makes it again")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise UserError(f"{path}: cannot be read as weights ({type(error).__name__})") from None
    network = make_classifier(content["model"], ImageSpec.of(content["spec"]))
    network.load_state_dict(content["state_dict"])
    network.attach(path.parent)
    return network


def start_from(network: ImageClassifier, file: Path) -> str:
    """Copy the tensors of a weights file into ``network`` and return what was done, as a sentence.

    Tensors are matched by their names, less what our own modules put before them; else by their order, where all the
    backbone's shapes agree. A head of other shapes (for other classes) starts anew.

    Args:
        network: on any device; on the meta device the fit is checked and nothing copied.
        file: ``.safetensors``, or what ``torch.save`` wrote of a state dict; one of our own checkpoints too.

    Raises:
        UserError: the file cannot be read, or does not fit.
    """
    given = _tensors(file)
    own = {n: t for n, t in network.state_dict().items() if not n.endswith(COUNTERS)}
    backbone = [name for name in own if name.startswith("backbone.")]
    head = [name for name in own if name.startswith("head.")]
    source = _by_name(own, given, backbone) or dict(zip(backbone, given, strict=False))
    wrong = [
        f"{name} {_shape(own[name])} against {source.get(name, 'nothing')} {_shape(given.get(source.get(name, '')))}"
        for name in backbone
        if name not in source or given[source[name]].shape != own[name].shape
    ]
    if wrong:
        unordered = " (a .safetensors file has no order: its names must agree)" if file.suffix == SAFE else ""
        more = f" and {len(wrong) - MOST_NAMED} more" if len(wrong) > MOST_NAMED else ""
        raise UserError(
            f"init_from={file}: {len(given)} tensors that do not fit the network's {len(own)}: "
            f"{'; '.join(wrong[:MOST_NAMED])}{more}; model, data.channels, data.image_size are to be theirs{unordered}"
        )
    left = [name for name in given if name not in set(source.values())]
    found = _head(own, given, head, left)
    source |= found
    if not any(tensor.is_meta for tensor in own.values()):
        network.load_state_dict({name: given[other] for name, other in source.items()}, strict=False)
    told = f"init_from: {len(source)} tensors of {file}"
    return told if len(found) == len(head) else f"{told}; the head of {len(network.spec.classes)} classes starts anew"


def _head(own: dict[str, Tensor], given: dict[str, Tensor], head: list[str], left: list[str]) -> dict[str, str]:
    """Return which of the tensors left over fill the head, the last ones that fit; empty where one is missing."""
    free, found = list(left), {}
    for name in reversed(head):
        match = next((other for other in reversed(free) if given[other].shape == own[name].shape), None)
        if match is None:
            return {}
        free.remove(match)
        found[name] = match
    return found


def _tensors(file: Path) -> dict[str, Tensor]:
    """Return the tensors of a weights file in its order, less counters of batches."""
    if not file.is_file():
        what = "a folder: name a file, such as checkpoints/final.ckpt" if file.is_dir() else "no such file"
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
    for wrapper in ("state_dict", "model"):
        if isinstance(content, dict) and isinstance(content.get(wrapper), dict):
            content = content[wrapper]
    found = {str(n): t for n, t in content.items() if isinstance(t, Tensor)} if isinstance(content, dict) else {}
    if not found:
        raise UserError(f"init_from={file}: holds no tensors by name; save a state dict")
    return {name: tensor for name, tensor in found.items() if not name.endswith(COUNTERS)}


def _by_name(own: dict[str, Tensor], given: dict[str, Tensor], backbone: list[str]) -> dict[str, str]:
    """Return the file's name for each of the backbone's tensors; empty where names do not agree."""
    for dropped in range(MOST_PREFIXES + 1):
        names = {name: ".".join(name.split(".")[dropped:]) for name in backbone}
        if all(other in given and given[other].shape == own[name].shape for name, other in names.items()):
            return names
    return {}


def _shape(tensor: Tensor | None) -> str:
    return "" if tensor is None else "x".join(map(str, tensor.shape)) or "scalar"


def weight_hash(network: torch.nn.Module) -> str:
    """Return the SHA-256 of all entries of the state dict: names, types, shapes and bytes."""
    whole = hashlib.sha256()
    for name, value in sorted(network.state_dict().items()):
        tensor = value.detach().cpu().contiguous()
        whole.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        whole.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes() if tensor.numel() else b"")
    return whole.hexdigest()
