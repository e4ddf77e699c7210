"""Any classification network of torchvision."""

import difflib
import math
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from tutelage.config import TorchvisionConfig
from tutelage.errors import UserError
from tutelage.models.base import ImageClassifier, ImageSpec

RGB = 3


class Unflatten(nn.Module):
    """The inverse of flattening square feature maps: (B, D) to (B, ``channels``, H, W) with H equal to W."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.channels = channels

    def forward(self, x: Tensor) -> Tensor:
        """Return the feature maps."""
        side = math.isqrt(x.shape[1] // self.channels)
        return x.reshape(-1, self.channels, side, side)  # of no fixed batch, as exporters ask for


class _TensorsOnCPU(TorchFunctionMode):
    """Creates tensors of numbers on the CPU while a network is built on the meta device.

    RegNets compute their widths with tensors, which have no values on the meta device.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        device = {"device": "cpu"} if func in {torch.arange, torch.tensor} else {}
        return func(*args, **{**(kwargs or {}), **device})


class Torchvision(ImageClassifier):
    """The architecture that torchvision calls ``name``, with random weights; its last layer is our ``head``.

    The state dict's tensors are in torchvision's order. ``dropout`` is applied in addition to the architecture's own.
    Arguments: ``TorchvisionConfig``.
    """

    def __init__(self, spec: ImageSpec, **arguments: Any) -> None:
        super().__init__(spec)
        config = TorchvisionConfig.from_arguments(arguments)
        network = self._create(config.name, spec)
        if spec.channels != RGB:
            _replace_first_convolution(network, spec.channels)
        if config.name.startswith("squeezenet"):  # its classifier is a convolution over the whole image
            self.backbone = nn.Sequential(network.features, nn.Flatten(), nn.Dropout(config.dropout))
            self.head = nn.Sequential(Unflatten(network.classifier[1].in_channels), network.classifier, nn.Flatten())
        else:
            head = _take_last_linear(network)
            self.backbone = nn.Sequential(network, nn.Dropout(config.dropout))
            self.head = head

    @staticmethod
    def _create(name: str, spec: ImageSpec) -> Any:
        """Return torchvision's network, built for the spec's image size where it needs one."""
        from torchvision import models

        names = models.list_models(module=models)
        if name not in names:
            close = difflib.get_close_matches(name, names, n=5)
            hint = f"did you mean {', '.join(close)}?" if close else "torchvision.models.list_models() lists them"
            raise UserError(f"model.name={name}: torchvision has no such architecture; {hint}")
        arguments: dict[str, Any] = {"num_classes": len(spec.classes)}
        if name.startswith("vit"):
            arguments["image_size"] = spec.image_size
        elif name.startswith("maxvit"):
            arguments["input_size"] = (spec.image_size, spec.image_size)
        elif name in {"googlenet", "inception_v3"}:  # no auxiliary heads; without init_weights they warn
            arguments |= {"aux_logits": False, "init_weights": False}
        try:
            with _TensorsOnCPU() if name.startswith("regnet") else nullcontext():
                return models.get_model(name, weights=None, **arguments)
        except (TypeError, ValueError, RuntimeError, AssertionError) as error:
            reason = " ".join(str(error).split())
            raise UserError(
                f"model.name={name}: torchvision refuses data.image_size={spec.image_size}: {reason}"
            ) from None


def _replace_first_convolution(network: nn.Module, channels: int) -> None:
    name, old = next((name, m) for name, m in network.named_modules() if isinstance(m, nn.Conv2d))
    new = nn.Conv2d(
        channels,
        old.out_channels,
        old.kernel_size,  # type: ignore[arg-type]
        stride=old.stride,  # type: ignore[arg-type]
        padding=old.padding,  # type: ignore[arg-type]
        bias=old.bias is not None,
    )
    network.set_submodule(name, new)


def _take_last_linear(network: nn.Module) -> nn.Module:
    name, last = [(name, m) for name, m in network.named_modules() if isinstance(m, nn.Linear)][-1]
    network.set_submodule(name, nn.Identity())
    return last
