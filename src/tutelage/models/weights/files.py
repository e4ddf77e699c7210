"""A network's weights in one file, with all values that are needed to build the network again."""

import hashlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from tutelage.config.targets import build
from tutelage.errors import UserError
from tutelage.models.base import ImageClassifier, ImageSpec
from tutelage.models.heads import Heads
from tutelage.models.imprinting import ImprintedHead
from tutelage.storage import is_sound, write_checked


def make_classifier(model: dict[str, Any], spec: ImageSpec) -> ImageClassifier:
    """Build the architecture of a ``model`` config, with random weights from torch's generator.

    Where the spec has tasks, a head for each task replaces the architecture's head; where it has added classes, the
    head is that of the others within an ``ImprintedHead``.

    Raises:
        UserError: the config names no architecture, its arguments are wrong, or its head cannot be replaced.
    """
    trained = replace(spec, classes=spec.classes[spec.added :], added=0)  # without the added classes
    network: ImageClassifier = build(model, ImageClassifier, "model", spec=trained)
    if missing := [name for name in ("backbone", "head") if not hasattr(network, name)]:
        raise UserError(
            f"model: {type(network).__name__} has no self.{missing[0]}: its __init__ sets self.backbone (images to "
            "features) and self.head (features to logits)"
        )
    if spec.tasks or spec.added:
        if not isinstance(network.head, nn.Linear):
            name = model.get("name", model["_target_"])
            raise UserError(f"model {name}: its head is no single linear layer; strategy=lwf needs another model")
        if spec.tasks:
            network.head = Heads(network.head.in_features, spec.tasks, len(spec.classes))
        else:
            network.head = ImprintedHead(network.head, spec.added)
            network.spec = replace(network.spec, classes=spec.classes, added=spec.added)
    network.model_config = model
    return network


def save_classifier(
    network: ImageClassifier, model: dict[str, Any], path: Path, state: dict[str, Any] | None = None
) -> None:
    """Write weights, architecture and image spec to a file, whole or absent.

    Args:
        network: the network to write.
        model: the config that the network was built from.
        path: the file.
        state: the whole state dict, where the network holds a part of it; None for the network's own.
    """
    content = {"state_dict": network.state_dict() if state is None else state, "model": model}
    content["spec"] = network.spec.to_dict()
    write_checked(path, lambda file: torch.save(content, file))


def load_classifier(path: Path) -> ImageClassifier:
    """Read the network that ``save_classifier`` wrote.

    Nothing in the file is executed: it is read by torch's restricted loader, and its target must be an architecture
    from an allowed package.

    Raises:
        UserError: the file is missing or damaged, or holds no network.
    """
    if not is_sound(path):
        raise UserError(f"{path}: missing or damaged (its checksum differs); the run's command makes it again")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise UserError(f"{path}: cannot be read as weights ({type(error).__name__})") from None
    if not (isinstance(content, dict) and {"state_dict", "model", "spec"} <= set(content)):
        raise UserError(f"{path}: holds no network alone; name the run's folder, or its best.ckpt or final.ckpt")
    network = make_classifier(content["model"], ImageSpec.from_dict(content["spec"]))
    network.load_state_dict(content["state_dict"])
    network.attach(path.parent)
    return network


def weight_hash(network: torch.nn.Module) -> str:
    """Return the SHA-256 of all entries of the state dict: names, types, shapes and bytes."""
    digest = hashlib.sha256()
    for name, value in sorted(network.state_dict().items()):
        tensor = value.detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes() if tensor.numel() else b"")
    return digest.hexdigest()
