"""Frozen layers, and the learning rates of the others against one another.

Beside timm's ``param_groups_layer_decay``: that one needs a network of timm, freezes nothing and has no learning rate
for the backbone against the head. Where a network is timm's, its own division into layers is used.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from torch import nn

from tutelage.errors import UserError

BACKBONE = "backbone."


@dataclass(frozen=True)
class FineTuning:
    """The parts of a network that learn, and their learning rates against one another.

    Attributes:
        frozen_layers: number of the lowest layers of the backbone that are frozen; None for the whole backbone.
        backbone_lr_scale: the learning rate of the backbone's highest layer as a fraction of the head's.
        layer_decay: the learning rate of each layer of the backbone as a fraction of the one above it.
    """

    frozen_layers: int | None = 0
    backbone_lr_scale: float = 1.0
    layer_decay: float = 1.0


ALL_ALIKE = FineTuning()


def layer_of_parameters(backbone: nn.Module) -> dict[str, int]:
    """Return the layer of each parameter of a backbone by the parameter's name, counted from 0 at the images.

    For networks of timm these are timm's layers (usually blocks). In any other network each parameter of two or more
    dimensions opens a layer, to which the biases and norms that follow it belong.
    """
    timm_network = next(((name, m) for name, m in backbone.named_modules() if hasattr(m, "group_matcher")), None)
    if timm_network is not None:
        from timm.models import group_parameters

        prefix, network = timm_network
        timm_layers: dict[str, int] = group_parameters(network, network.group_matcher(coarse=False), reverse=True)
        return {f"{prefix}.{name}" if prefix else name: layer for name, layer in timm_layers.items()}
    layer, layers = -1, {}
    for name, parameter in backbone.named_parameters():
        layer += parameter.ndim > 1
        layers[name] = max(0, layer)
    return layers


def freeze(backbone: nn.Module, fine_tuning: FineTuning) -> None:
    """Freeze the lowest layers of a backbone, or the whole of it: their parameters need no gradient.

    Raises:
        UserError: the backbone has fewer layers.
    """
    if fine_tuning.frozen_layers is None:
        backbone.requires_grad_(False)
    elif fine_tuning.frozen_layers:
        layers = layer_of_parameters(backbone)
        count = len(set(layers.values()))
        if fine_tuning.frozen_layers > count:
            raise UserError(
                f"model.frozen_layers={fine_tuning.frozen_layers}: this network's backbone has {count} layers; "
                f"give {count} or fewer"
            )
        for name, parameter in backbone.named_parameters():
            if layers[name] < fine_tuning.frozen_layers:
                parameter.requires_grad_(False)


def frozen_modules(network: nn.Module) -> Iterator[nn.Module]:
    """Yield the modules whose parameters are all frozen; their statistics and dropout are to be frozen too.

    Modules without parameters are not among them.
    """
    for module in network.modules():
        learns = [parameter.requires_grad for parameter in module.parameters()]
        if learns and not any(learns):
            yield module


def lr_scales(network: nn.Module, fine_tuning: FineTuning) -> dict[str, float]:
    """Return the learning rate of each parameter of a network as a fraction of the optimizer's.

    The head has the full rate; a layer of the backbone ``backbone_lr_scale * layer_decay ** depth``, its depth counted
    from the highest layer (as in BEiT, Bao et al. 2021, where the head lies one layer above that).
    """
    scales = dict.fromkeys((name for name, _ in network.named_parameters()), 1.0)
    if fine_tuning.layer_decay == 1:
        return scales | {name: fine_tuning.backbone_lr_scale for name in scales if name.startswith(BACKBONE)}
    layers = layer_of_parameters(network.get_submodule(BACKBONE.rstrip(".")))
    highest = max(layers.values(), default=0)
    scale_of_layer = {
        layer: fine_tuning.backbone_lr_scale * fine_tuning.layer_decay ** (highest - layer) for layer in layers.values()
    }
    return scales | {f"{BACKBONE}{name}": scale_of_layer[layer] for name, layer in layers.items()}
