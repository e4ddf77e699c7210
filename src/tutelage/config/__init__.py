"""What a run is, typed and checked, without torch."""

from tutelage.config.schema import (
    AugmentationConfig,
    CallbacksConfig,
    Config,
    DataConfig,
    LoggerConfig,
    ModelConfig,
    NoisyStudentConfig,
    OptimizerConfig,
    ScheduleConfig,
    SchedulerConfig,
    Section,
    StrategyConfig,
    StudentConfig,
    SupervisedConfig,
    TrainerConfig,
)

__all__ = [
    "AugmentationConfig",
    "CallbacksConfig",
    "Config",
    "DataConfig",
    "LoggerConfig",
    "ModelConfig",
    "NoisyStudentConfig",
    "OptimizerConfig",
    "ScheduleConfig",
    "SchedulerConfig",
    "Section",
    "StrategyConfig",
    "StudentConfig",
    "SupervisedConfig",
    "TrainerConfig",
]
