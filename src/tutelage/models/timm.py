"""Any architecture of timm."""

import re
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from tutelage.config import TimmConfig
from tutelage.errors import UserError
from tutelage.models.base import ImageClassifier, ImageSpec

FEATURE_MAP, TOKENS = 4, 3  # number of dimensions of a layer's output
BLOCK, MAX_NAMED_LAYERS = re.compile(r"\w+\.\d+"), 8  # layers that a message names, and how many


class WithFeatureLayers(nn.Module):
    """A network whose features are those of some of its layers too (Head2Toe, Evci et al. 2022, without selection).

    A linear head on features of several depths fits images of another kind than those of the weights better than one on
    the highest features alone. The features (B, D) of each depth are scaled to unit length, so that none outweighs the
    others, and joined; the output of a layer is averaged over its places first.
    """

    def __init__(self, network: nn.Module, layers: Sequence[str]) -> None:
        super().__init__()
        self.network = network
        self.layers = tuple(layers)

    def forward(self, images: Tensor) -> Tensor:
        """Return the features (B, D) of images (B, C, H, W)."""
        outputs: list[Tensor] = []
        hooks = [
            self.network.get_submodule(name).register_forward_hook(lambda _, __, output: outputs.append(output))
            for name in self.layers
        ]
        try:
            highest = self.network(images)
        finally:
            for hook in hooks:
                hook.remove()
        return torch.cat([functional.normalize(each) for each in (highest, *map(average_places, outputs))], dim=1)


def average_places(output: Tensor) -> Tensor:
    """Return the mean (B, D) of a layer's output over its places: (B, D, H, W), or tokens (B, N, D)."""
    if output.ndim == FEATURE_MAP:
        return output.mean(dim=(2, 3))
    return output.mean(dim=1) if output.ndim == TOKENS else output


class Timm(ImageClassifier):
    """The architecture that timm calls ``name``, with random weights and our linear head. Arguments: ``TimmConfig``."""

    def __init__(self, spec: ImageSpec, **arguments: Any) -> None:
        super().__init__(spec)
        config = TimmConfig.from_arguments(arguments)
        name = config.name
        import timm

        if not timm.is_model(name):
            close = timm.list_models(f"*{name.split('_', maxsplit=1)[0]}*")[:5]
            hint = f"did you mean {', '.join(close)}?" if close else "timm.list_models() lists them"
            raise UserError(f"model.name={name}: timm has no such architecture; {hint}")
        try:
            network, _ = create_timm(name, spec, stochastic_depth=config.stochastic_depth)
        except (TypeError, ValueError, RuntimeError, AssertionError) as error:
            raise UserError(f"model.name={name}: timm refuses it: {' '.join(str(error).split())}") from None
        width = getattr(network, "head_hidden_size", network.num_features)
        if config.feature_layers:
            network = self._with_feature_layers(network, config.feature_layers, name)
            width = count_features(network, spec)
        self.backbone = nn.Sequential(network, nn.Dropout(config.dropout))
        self.head = nn.Linear(width, len(spec.classes))

    @staticmethod
    def _with_feature_layers(network: nn.Module, layers: Sequence[str], name: str) -> WithFeatureLayers:
        """Return a network whose features are those of some layers too.

        Raises:
            UserError: it has no layer of one of these names.
        """
        names = [layer for layer, _ in network.named_modules()]
        if missing := [layer for layer in layers if layer not in names[1:]]:
            blocks = [layer for layer in names if BLOCK.fullmatch(layer)][-MAX_NAMED_LAYERS:]
            raise UserError(
                f"model.feature_layers: {name} has no layer {missing[0]!r}; its last blocks are {', '.join(blocks)}"
            )
        return WithFeatureLayers(network, layers)

    @property
    def timm_network(self) -> nn.Module:
        """The network of timm without its head, or the same with further features (``WithFeatureLayers``)."""
        return self.backbone.get_submodule("0")


def create_timm(
    name: str, spec: ImageSpec, classes: int = 0, stochastic_depth: float = 0.0
) -> tuple[Any, dict[str, Any]]:
    """Return timm's network, built for the spec's image size where it needs one, and the arguments it was built by.

    Args:
        name: its name in timm.
        spec: of its images.
        classes: of its head; 0 for none.
        stochastic_depth: the share of dropped blocks.
    """
    import timm

    arguments: dict[str, Any] = {"num_classes": classes, "in_chans": spec.channels}
    if stochastic_depth:
        arguments["drop_path_rate"] = stochastic_depth
    with_size = {**arguments, "img_size": spec.image_size}
    try:
        return timm.create_model(name, **with_size), with_size
    except TypeError:  # it has no such argument: it takes any size
        return timm.create_model(name, **arguments), arguments


@torch.no_grad()
def count_features(network: nn.Module, spec: ImageSpec) -> int:
    """Return the number of features that a network has for an image."""
    is_training = network.training
    image = torch.zeros(1, spec.channels, spec.image_size, spec.image_size)
    width = network.eval()(image).shape[1]
    network.train(is_training)
    return int(width)
