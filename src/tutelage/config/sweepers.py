"""The schema of ``hydra.sweeper``: how a sweep draws its jobs, and the objective by which it ranks them."""

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from tutelage.config.schema import MONITORS
from tutelage.config.section import Positive, Section

OBJECTIVES = (*MONITORS, "val/loss")
MAX_TRIALS = 100_000  # more is a slip of the pen
MINIMIZED_OBJECTIVES = ("val/loss",)


class SweeperConfig(Section):
    """The keys of all sweepers, and the only ones of a grid."""

    target: str = Field(alias="_target_")
    params: dict[str, Any] | None = None
    objective: str = OBJECTIVES[0]

    @model_validator(mode="before")
    @classmethod
    def _drop_keys_of_other_sweepers(cls, settings: dict[str, Any]) -> dict[str, Any]:
        """Return the settings without keys of other sweepers: a prepared sweep that names them may run as a grid."""
        foreign = set(OptunaSweeperConfig.model_fields) - set(cls.model_fields)
        return {key: value for key, value in settings.items() if key not in foreign}

    @field_validator("objective")
    @classmethod
    def _check_objective(cls, value: str) -> str:
        if value not in OBJECTIVES:
            raise ValueError(f"a search ranks its jobs by validation: allowed are {', '.join(OBJECTIVES)}")
        return value

    @property
    def is_search(self) -> bool:
        """Whether the jobs are drawn, so that the sweep must not see the test set."""
        return False


class RandomSweeperConfig(SweeperConfig):
    """Independent draws, ``trials`` of them."""

    trials: Annotated[int, Field(ge=1, le=MAX_TRIALS)]
    seed: Annotated[int, Field(ge=0)]

    @property
    def is_search(self) -> bool:
        """Whether the jobs are drawn, so that the sweep must not see the test set."""
        return True


class OptunaSweeperConfig(RandomSweeperConfig):
    """Draws that depend on the results of earlier trials; only the best of a rung go on to the next, longer one."""

    sampler: Literal["tpe", "random"]
    at_once: Positive
    rungs: Positive
    factor: Annotated[int, Field(ge=2)]


SWEEPERS: dict[str, type[SweeperConfig]] = {
    "hydra_plugins.tutelage_sweepers.grid.GridSweeper": SweeperConfig,
    "hydra_plugins.tutelage_sweepers.random.RandomSweeper": RandomSweeperConfig,
    "hydra_plugins.tutelage_sweepers.optuna.OptunaSweeper": OptunaSweeperConfig,
}
