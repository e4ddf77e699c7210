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
NEARLY_ALL = 0.95  # of a module's parameters in one child: what is beside it, a dropout or a stem, is no half of it


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
            found = [network(adapt_images(images, network.spec)).float() for network in self.networks]
            mean = found[0] if len(found) == 1 else torch.stack(found).mean(dim=0)
        return mean.clone()  # an inference tensor cannot be kept for a backward

    def layer_output(self, layer: str, images: Tensor) -> Tensor:
        """Return what a module of the first network, such as ``backbone.6``, gives for images."""
        network = self.networks[0]
        with torch.inference_mode(), self._precision(images):
            found = layer_output(network, layer, adapt_images(images, network.spec))
        return found.float().clone()

    def _precision(self, images: Tensor) -> Any:
        """Return the context of ``lower``; without it float32, whatever the training step around it computes in."""
        device = images.device.type
        if not torch.amp.autocast_mode.is_autocast_available(device):  # the meta device
            return nullcontext()
        lower = self.lower if device == "cuda" else None
        return torch.autocast(device, lower, enabled=lower is not None)


def adapt_images(images: Tensor, spec: ImageSpec) -> Tensor:
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


class _Reached(BaseException):  # no Exception, which a network's own code may catch
    """The way through a network has come to the layer that is asked for."""

    def __init__(self, output: Any) -> None:
        self.output = output


def layer_output(network: ImageClassifier, layer: str, images: Tensor) -> Tensor:
    """Return what a module of a network gives, when it is first used, on the way of images to the features.

    The way ends there, so that what lies above it stays as it is, the statistics of batch norms too.

    Raises:
        UserError: the module is not used, or gives no tensor.
    """

    def end(module: nn.Module, given: Any, output: Any) -> None:
        raise _Reached(output)

    output = None
    hook = network.get_submodule(layer).register_forward_hook(end)
    try:
        network.features(images)
    except _Reached as reached:
        output = reached.output
    finally:
        hook.remove()
    if not isinstance(output, Tensor):
        told = "is not used as a whole" if output is None else "gives no single tensor"
        raise UserError(f"strategy.hints: {layer} of {type(network).__name__} {told}; name another layer")
    return output


def middle_layer(network: ImageClassifier) -> str:
    """Return the name of the layer in the middle of a backbone, which FitNets' hint comes from.

    Layers are the children with parameters, of the backbone or of the module within it that is nearly all of it.

    Raises:
        UserError: there are fewer than two.
    """
    name, layers = "backbone", _layers(network.backbone)
    while layers:
        largest = max(layers, key=lambda child: layers[child])
        inner = _layers(network.get_submodule(f"{name}.{largest}"))
        if not inner or layers[largest] < NEARLY_ALL * sum(layers.values()):
            break
        name, layers = f"{name}.{largest}", inner
    if len(layers) < 2:  # noqa: PLR2004 - one is no middle
        raise UserError(
            f"strategy.hints: the backbone of {type(network).__name__} has {len(layers)} layers with weights, and no "
            "middle; name layers, such as strategy.hints={teacher: backbone.1, student: backbone.1}, or "
            "strategy.hints=null"
        )
    return f"{name}.{list(layers)[(len(layers) - 1) // 2]}"


def _layers(module: nn.Module) -> dict[str, int]:
    """Return how many parameters each child of a module holds that holds any."""
    counts = {name: sum(p.numel() for p in child.parameters()) for name, child in module.named_children()}
    return {name: count for name, count in counts.items() if count}


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
