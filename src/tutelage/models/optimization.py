"""Where a network's optimizer is built, and its learning rate over the steps of a stage.

Beside torch's LR schedulers and timm's parameter groups (``param_groups_weight_decay``, ``param_groups_layer_decay``):
here the learning rate is a pure function of the step, so that a resumed run needs no scheduler's state and any number
of steps cuts the schedule at the same fractions; and one set of groups serves frozen layers, a learning rate per layer
and no weight decay on norms and biases, in networks of timm and others alike.
"""

import math
from dataclasses import dataclass

import torch
from torch import nn

from tutelage.config import PLAIN_CROSS_ENTROPY, OptimizerConfig, SchedulerConfig, Targeted
from tutelage.models.parameter_groups import ALL_ALIKE, FineTuning, lr_scales


@dataclass(frozen=True)
class OptimizationConfig:
    """How a network is trained: the parts of the config that the optimizer and the loss need, for one stage.

    Attributes:
        optimizer: the update rule.
        scheduler: the learning rate over the steps.
        steps: optimizer steps of the stage.
        class_weights: the weight of each class in the cross-entropy (C,); None for equal weights.
        fine_tuning: which parts of the network learn, and at which fraction of the learning rate.
        loss: the loss against labels.
    """

    optimizer: OptimizerConfig
    scheduler: SchedulerConfig
    steps: int
    class_weights: tuple[float, ...] | None = None
    fine_tuning: FineTuning = ALL_ALIKE
    loss: Targeted = PLAIN_CROSS_ENTROPY


def make_optimizer(
    network: nn.Module, config: OptimizerConfig, fine_tuning: FineTuning = ALL_ALIKE, *extra_modules: nn.Module
) -> torch.optim.Optimizer:
    """Return the optimizer of the parameters that are not frozen; norms' scales and biases get no weight decay.

    There is one parameter group for each pair of learning rate and weight decay that occurs.

    Args:
        network: the network; ``fine_tuning`` sets the learning rates of its layers.
        config: the update rule.
        fine_tuning: which parts learn how fast.
        extra_modules: modules that are trained with the network, at the full learning rate.
    """
    scale_of_name = lr_scales(network, fine_tuning)
    scaled = [(parameter, scale_of_name[name]) for name, parameter in network.named_parameters()]
    scaled += [(parameter, 1.0) for module in extra_modules for parameter in module.parameters()]
    scaled = [(parameter, scale) for parameter, scale in scaled if parameter.requires_grad]
    groups = []
    for scale in dict.fromkeys(scale for _, scale in scaled):
        parameters = [parameter for parameter, parameter_scale in scaled if parameter_scale == scale]
        matrices, vectors = [p for p in parameters if p.ndim > 1], [p for p in parameters if p.ndim <= 1]
        groups += [
            {"params": members, "weight_decay": decay, "lr": scale * config.lr}
            for members, decay in ((matrices, config.weight_decay), (vectors, 0.0))
            if members
        ]
    if config.name == "sgd":
        return torch.optim.SGD(groups, lr=config.lr, momentum=config.momentum, nesterov=config.nesterov)
    optimizer_class = torch.optim.AdamW if config.name == "adamw" else torch.optim.Adam
    return optimizer_class(groups, lr=config.lr)


def lr_factor(step: int, optimization: OptimizationConfig) -> float:
    """Return the learning rate at ``step`` (from 0) as a fraction of ``optimizer.lr``: warm-up, then the schedule."""
    scheduler = optimization.scheduler
    warmup_steps = round(scheduler.warmup * optimization.steps)
    if step < warmup_steps:
        return (step + 1) / (warmup_steps + 1)
    progress = (step - warmup_steps) / max(1, optimization.steps - warmup_steps)
    if scheduler.name == "cosine":
        return 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
    if scheduler.name == "step":
        return float(scheduler.factor ** sum(progress >= milestone for milestone in scheduler.milestones))
    return 1.0
