"""Frozen networks as a teacher, and the layers that a student takes hints from."""

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
NEARLY_ALL = 0.95  # fraction of a module's parameters in one child, whose siblings are then a dropout or a stem


class Teacher:
    """Networks in eval mode and without gradients, whose logits are averaged.

    The softened mean of logits is the geometric mean of the softened predictions (Hinton et al. 2015, section 2). A
    teacher is no ``nn.Module``: a module that holds one neither trains it, nor saves it, nor changes its mode.

    Attributes:
        networks: the networks, all with the same classes.
        classes: the names of the classes.
        autocast_dtype: the lower precision that CUDA computes in, once it was checked; None for float32.
    """

    def __init__(self, networks: Sequence[ImageClassifier]) -> None:
        """Freeze the networks.

        Raises:
            UserError: their classes differ.
        """
        self.networks = [network.eval().requires_grad_(False) for network in networks]
        self.classes = networks[0].spec.classes
        self.autocast_dtype: torch.dtype | None = None
        for network in networks:
            if network.spec.classes != self.classes:
                first, other = len(self.classes), len(network.spec.classes)
                raise UserError(
                    f"strategy.teachers: their classes differ ({first} and {other}, by name or order), so that their "
                    "logits have no mean; name teachers of the same classes"
                )

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return self  # weight averaging copies the module that holds the teacher

    def to(self, device: torch.device) -> Self:
        """Move the networks to a device."""
        for network in self.networks:
            network.to(device)
        return self

    def __call__(self, images: Tensor) -> Tensor:
        """Return logits (B, C) float32 of uint8 images (B, C', H, W) of any size, grey or RGB."""
        with torch.inference_mode(), self._precision(images):
            logits = [network(adapt_images(images, network.spec)).float() for network in self.networks]
            mean = logits[0] if len(logits) == 1 else torch.stack(logits).mean(dim=0)
        return mean.clone()  # an inference tensor cannot be saved for backward

    def layer_output(self, layer: str, images: Tensor) -> Tensor:
        """Return the output, float32, of a module of the first network, such as ``backbone.6``, for images."""
        network = self.networks[0]
        with torch.inference_mode(), self._precision(images):
            output = layer_output(network, layer, adapt_images(images, network.spec))
        return output.float().clone()

    def _precision(self, images: Tensor) -> Any:
        """Return the context of ``autocast_dtype``; else of float32, whatever the training step around it uses."""
        device = images.device.type
        if not torch.amp.autocast_mode.is_autocast_available(device):  # the meta device
            return nullcontext()
        dtype = self.autocast_dtype if device == "cuda" else None
        return torch.autocast(device, dtype, enabled=dtype is not None)


def adapt_images(images: Tensor, spec: ImageSpec) -> Tensor:
    """Return images (B, C, H, W) uint8 in a network's size and channels: grey is repeated, RGB becomes grey."""
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


class _LayerReached(BaseException):  # no Exception, which a network's own code may catch
    """The end of a forward pass at the layer whose output is needed."""

    def __init__(self, output: Any) -> None:
        self.output = output


def layer_output(network: ImageClassifier, layer: str, images: Tensor) -> Tensor:
    """Return the output of a module of a network's backbone for images, at the module's first call.

    The forward pass ends there, so that the layers above stay unchanged, the statistics of batch norms too.

    Raises:
        UserError: the module is not called, or its output is no tensor.
    """

    def end_forward(module: nn.Module, inputs: Any, output: Any) -> None:
        raise _LayerReached(output)

    output = None
    hook = network.get_submodule(layer).register_forward_hook(end_forward)
    try:
        network.features(images)
    except _LayerReached as reached:
        output = reached.output
    finally:
        hook.remove()
    if not isinstance(output, Tensor):
        reason = "is not used as a whole" if output is None else "gives no single tensor"
        raise UserError(f"strategy.hints: {layer} of {type(network).__name__} {reason}; name another layer")
    return output


def middle_layer(network: ImageClassifier) -> str:
    """Return the name of the layer in the middle of a backbone, whose output is FitNets' hint.

    The layers are the children with parameters, of the backbone or of the module in it that has nearly all of its
    parameters.

    Raises:
        UserError: there are fewer than two layers.
    """
    name, layers = "backbone", _parameter_counts(network.backbone)
    while layers:
        largest = max(layers, key=lambda child: layers[child])
        inner = _parameter_counts(network.get_submodule(f"{name}.{largest}"))
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


def _parameter_counts(module: nn.Module) -> dict[str, int]:
    """Return the number of parameters of each child of a module that has any, by the child's name."""
    counts = {name: sum(p.numel() for p in child.parameters()) for name, child in module.named_children()}
    return {name: count for name, count in counts.items() if count}


class Regressor(nn.Module):
    """Maps the output of a student's layer to the shape of a teacher's (Romero et al. 2015, section 2.1: W_r).

    Feature maps are mapped to the teacher's channels by a 1x1 convolution and resized to its height and width
    bilinearly; where either layer's output is a vector, feature maps are flattened and a linear layer follows.
    """

    def __init__(self, student: torch.Size, teacher: torch.Size) -> None:
        """Make the layer for the shapes, (B, C, H, W) or (B, D), of both layers' outputs."""
        super().__init__()
        self._teacher_shape = teacher[1:]
        self._are_maps = len(student) == len(teacher) == 4  # noqa: PLR2004 - (B, C, H, W)
        if self._are_maps:
            self.map: nn.Module = nn.Conv2d(student[1], teacher[1], 1)
        else:
            self.map = nn.Linear(student[1:].numel(), teacher[1:].numel())

    def forward(self, output: Tensor) -> Tensor:
        """Return a student's output (B, ...) in the shape of the teacher's."""
        if self._are_maps:
            maps: Tensor = self.map(output)
            return functional.interpolate(maps, tuple(self._teacher_shape[1:]), mode="bilinear", antialias=False)
        vectors: Tensor = self.map(output.flatten(1))
        return vectors.view(len(output), *self._teacher_shape)
