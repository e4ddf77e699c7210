"""Which parts of a network learn, and how fast against one another."""

from collections.abc import Iterator
from dataclasses import dataclass

from torch import nn

from tutelage.errors import UserError

BACKBONE = "backbone."


@dataclass(frozen=True)
class FineTuning:
    """Which parts of a network learn, and how fast against one another.

    Attributes:
        frozen_layers: so many of the lowest layers of the backbone stay as they are; None for the whole backbone.
        backbone_lr_scale: the learning rate of the backbone's highest layer as a share of the head's.
        layer_decay: the learning rate of each layer of the backbone as a share of the one above it.
    """

    frozen_layers: int | None = 0
    backbone_lr_scale: float = 1.0
    layer_decay: float = 1.0


ALL_ALIKE = FineTuning()


def layers(backbone: nn.Module) -> dict[str, int]:
    """Return the layer, from 0 at the images, that each parameter of a backbone belongs to.

    timm says of its networks what their layers are (usually blocks). In any other each parameter of two or more
    dimensions opens a layer, to which the biases and norms that follow it belong.
    """
    of_timm = next(((name, m) for name, m in backbone.named_modules() if hasattr(m, "group_matcher")), None)
    if of_timm is not None:
        from timm.models import group_parameters

        prefix, network = of_timm
        found: dict[str, int] = group_parameters(network, network.group_matcher(coarse=False), reverse=True)
        return {f"{prefix}.{name}" if prefix else name: layer for name, layer in found.items()}
    layer, of_own = -1, {}
    for name, parameter in backbone.named_parameters():
        layer += parameter.ndim > 1
        of_own[name] = max(0, layer)
    return of_own


def freeze(backbone: nn.Module, tuning: FineTuning) -> None:
    """Let the lowest layers of a backbone, or the whole of it, no longer learn.

    Raises:
        UserError: it has fewer layers.
    """
    if tuning.frozen_layers is None:
        backbone.requires_grad_(False)
    elif tuning.frozen_layers:
        of = layers(backbone)
        count = len(set(of.values()))
        if tuning.frozen_layers > count:
            raise UserError(
                f"strategy.frozen_layers={tuning.frozen_layers}: this network's backbone has {count} layers; "
                f"strategy=transfer_frozen freezes all of them"
            )
        for name, parameter in backbone.named_parameters():
            if of[name] < tuning.frozen_layers:
                parameter.requires_grad_(False)


def frozen_modules(network: nn.Module) -> Iterator[nn.Module]:
    """Return the modules that have parameters, none of which learns: their statistics and dropout stand still too."""
    for module in network.modules():
        learns = [parameter.requires_grad for parameter in module.parameters()]
        if learns and not any(learns):
            yield module


def lr_scales(network: nn.Module, tuning: FineTuning) -> dict[str, float]:
    """Return the learning rate of each parameter of a network as a share of the optimizer's.

    The head has all of it; a layer of the backbone ``backbone_lr_scale * layer_decay ** depth``, its depth counted from
    the highest layer (as in BEiT, Bao et al. 2021, where the head lies one layer above that).
    """
    shares = dict.fromkeys((name for name, _ in network.named_parameters()), 1.0)
    if tuning.layer_decay == 1:
        return shares | {name: tuning.backbone_lr_scale for name in shares if name.startswith(BACKBONE)}
    of = layers(network.get_submodule(BACKBONE.rstrip(".")))
    highest = max(of.values())
    decayed = {layer: tuning.backbone_lr_scale * tuning.layer_decay ** (highest - layer) for layer in of.values()}
    return shares | {f"{BACKBONE}{name}": decayed[layer] for name, layer in of.items()}
