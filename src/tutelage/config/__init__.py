"""The typed schema of a run's config, checked without torch."""

from tutelage.config.data import DataConfig
from tutelage.config.losses import OWN_LOSSES, PLAIN_CROSS_ENTROPY, CrossEntropyConfig, LossConfig
from tutelage.config.models import (
    OWN_MODELS,
    AlexNetConfig,
    LeNet5Config,
    MLPConfig,
    ModelConfig,
    NearestNeighboursConfig,
    ResNetConfig,
    SmallVGGConfig,
    TimmConfig,
    TorchvisionConfig,
    VGGConfig,
)
from tutelage.config.schema import (
    SHIFTS,
    AugmentationConfig,
    CallbacksConfig,
    Config,
    MixConfig,
    OptimizerConfig,
    ScheduleConfig,
    SchedulerConfig,
    Shift,
    TrainerConfig,
)
from tutelage.config.section import Section, Targeted, describe_too_small_image
from tutelage.config.strategy import Strategy
from tutelage.config.sweepers import (
    MINIMIZED_OBJECTIVES,
    OBJECTIVES,
    SWEEPERS,
    OptunaSweeperConfig,
    RandomSweeperConfig,
    SweeperConfig,
)

__all__ = [
    "MINIMIZED_OBJECTIVES",
    "OBJECTIVES",
    "OWN_LOSSES",
    "OWN_MODELS",
    "PLAIN_CROSS_ENTROPY",
    "SHIFTS",
    "SWEEPERS",
    "AlexNetConfig",
    "AugmentationConfig",
    "CallbacksConfig",
    "Config",
    "CrossEntropyConfig",
    "DataConfig",
    "LeNet5Config",
    "LossConfig",
    "MLPConfig",
    "MixConfig",
    "ModelConfig",
    "NearestNeighboursConfig",
    "OptimizerConfig",
    "OptunaSweeperConfig",
    "RandomSweeperConfig",
    "ResNetConfig",
    "ScheduleConfig",
    "SchedulerConfig",
    "Section",
    "Shift",
    "SmallVGGConfig",
    "Strategy",
    "SweeperConfig",
    "Targeted",
    "TimmConfig",
    "TorchvisionConfig",
    "TrainerConfig",
    "VGGConfig",
    "describe_too_small_image",
]
