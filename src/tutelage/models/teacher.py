"""Frozen networks that answer together."""

from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn import functional

from tutelage.data.source import GREY
from tutelage.errors import UserError
from tutelage.models.base import ImageClassifier, ImageSpec

LUMA = (0.299, 0.587, 0.114)  # of red, green and blue, ITU-R 601


class Teacher:
    """Networks in eval mode and without gradients, whose logits are averaged.

    The softened mean of logits is the geometric mean of the softened predictions (Hinton et al. 2015, section 2). It
    is no ``nn.Module``: what holds one neither trains it, nor saves it, nor puts it into another mode.

    Attributes:
        networks: all with the same classes.
        classes: their names.
        lower: the type that CUDA computes in where it is right; None for float32.
    """

    def __init__(self, networks: Sequence[ImageClassifier]) -> None:
        """Freeze the networks.

        Raises:
            UserError: they tell other classes apart.
        """
        self.networks = [network.eval().requires_grad_(False) for network in networks]
        self.classes = networks[0].spec.classes
        self.lower: torch.dtype | None = None
        for network in networks:
            if network.spec.classes != self.classes:
                ours, theirs = len(self.classes), len(network.spec.classes)
                raise UserError(
                    f"strategy.teachers: they tell other classes apart ({ours} and {theirs}, by name or order), so "
                    "that their logits have no mean; name teachers of the same classes"
                )

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return self  # averaged weights are a copy of the module that holds it

    def to(self, device: torch.device) -> Self:
        """Move to a device."""
        for network in self.networks:
            network.to(device)
        return self

    def __call__(self, images: Tensor) -> Tensor:
        """Return logits (B, C) float32 of uint8 images (B, C', H, W) of any size, grey or RGB."""
        with torch.inference_mode(), self._precision(images):
            found = [network(adapted(images, network.spec)).float() for network in self.networks]
            mean = found[0] if len(found) == 1 else torch.stack(found).mean(dim=0)
        return mean.clone()  # an inference tensor cannot be kept for a backward

    def output_of(self, layer: str, images: Tensor) -> Tensor:
        """Return what a module of the first network, such as ``backbone.6``, gives for images."""
        network = self.networks[0]
        with torch.inference_mode(), self._precision(images):
            found = output_of(network, layer, adapted(images, network.spec))
        return found.float().clone()

    def _precision(self, images: Tensor) -> Any:
        if self.lower is None or images.device.type != "cuda":
            return nullcontext()
        return torch.autocast("cuda", self.lower)


def adapted(images: Tensor, spec: ImageSpec) -> Tensor:
    """Return images (B, C, H, W) uint8 in a network's own size and colours: grey is repeated, RGB becomes grey."""
    channels, size = images.shape[1], spec.image_size
    if channels != spec.channels:
        if spec.channels == GREY:
            weights = torch.tensor(LUMA, device=images.device).view(1, -1, 1, 1)
            images = (images.float() * weights).sum(dim=1, keepdim=True)
        else:
            images = images.expand(-1, spec.channels, -1, -1)
    if images.shape[-2:] != (size, size):
        images = functional.interpolate(images.float(), (size, size), mode="bilinear", antialias=True)
    return images


def output_of(network: ImageClassifier, layer: str, images: Tensor) -> Tensor:
    """Return what a module of a network gives on the way of images to the features."""
    found: list[Tensor] = []
    hook = network.get_submodule(layer).register_forward_hook(lambda module, given, output: found.append(output))
    try:
        network.features(images)
    finally:
        hook.remove()
    return found[-1]


def middle(network: ImageClassifier) -> str:
    """Return the name of the module in the middle of a backbone, which FitNets' hint comes from.

    Raises:
        UserError: the backbone is one module.
    """
    names = [name for name, _ in network.backbone.named_children()]
    if not names:
        raise UserError(
            f"strategy.hints: {type(network).__name__} has no layers in its backbone to choose from; "
            "set strategy.hints=null"
        )
    return f"backbone.{names[(len(names) - 1) // 2]}"


class Regressor(nn.Module):
    """Makes a student's layer comparable with a teacher's (Romero et al. 2015, section 2.1: W_r).

    Maps become maps of the teacher's size by a bilinear change of size, and of its channels by a 1x1 convolution;
    where either layer gives vectors, maps are flattened and a linear layer follows.
    """

    def __init__(self, student: torch.Size, teacher: torch.Size) -> None:
        """Take shapes (B, C, H, W) or (B, D) of both layers' outputs."""
        super().__init__()
        self._shape = teacher[1:]
        self._maps = len(student) == len(teacher) == 4  # noqa: PLR2004 - (B, C, H, W)
        if self._maps:
            self.map: nn.Module = nn.Conv2d(student[1], teacher[1], 1)
        else:
            self.map = nn.Linear(student[1:].numel(), teacher[1:].numel())

    def forward(self, output: Tensor) -> Tensor:
        """Return a student's output in the shape of the teacher's."""
        if self._maps:
            found: Tensor = self.map(output)
            return functional.interpolate(found, tuple(self._shape[1:]), mode="bilinear", antialias=False)
        found = self.map(output.flatten(1))
        return found.view(len(output), *self._shape)
