"""The schema of ``hydra.sweeper``: by what a sweep goes through what it varies, and by what it judges."""

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from tutelage.config.section import Positive, Section

OBJECTIVES = ("val/accuracy", "val/loss")
FALLING = ("val/loss",)  # the lower the better


class SweeperConfig(Section):
    """What all sweepers know; with nothing more it is a grid."""

    target: str = Field(alias="_target_")
    params: dict[str, Any] | None = None
    objective: str = OBJECTIVES[0]

    @model_validator(mode="before")
    @classmethod
    def _without_those_of_others(cls, given: dict[str, Any]) -> dict[str, Any]:
        """A prepared sweep may be gone through by another sweeper: what only its own one knows has no meaning then."""
        unknown = set(OptunaSweeperConfig.model_fields) - set(cls.model_fields)
        return {key: value for key, value in given.items() if key not in unknown}

    @field_validator("objective")
    @classmethod
    def _seen_by_validation(cls, value: str) -> str:
        if value not in OBJECTIVES:
            raise ValueError(f"a search goes by what validation says: allowed are {' and '.join(OBJECTIVES)}")
        return value

    @property
    def searches(self) -> bool:
        """Whether it draws from what is varied, so that it must not see the test set."""
        return False


class RandomSweeperConfig(SweeperConfig):
    """Independent draws."""

    trials: Positive
    seed: Annotated[int, Field(ge=0)]

    @property
    def searches(self) -> bool:
        """Whether it draws from what is varied, so that it must not see the test set."""
        return True


class OptunaSweeperConfig(RandomSweeperConfig):
    """Draws that follow from what the trials before gave; only the best of a rung go on to the next, longer one."""

    sampler: Literal["tpe", "random"]
    at_once: Positive
    rungs: Positive
    factor: Annotated[int, Field(ge=2)]


SWEEPERS: dict[str, type[SweeperConfig]] = {
    "hydra_plugins.tutelage_sweepers.grid.GridSweeper": SweeperConfig,
    "hydra_plugins.tutelage_sweepers.random.RandomSweeper": RandomSweeperConfig,
    "hydra_plugins.tutelage_sweepers.optuna.OptunaSweeper": OptunaSweeperConfig,
}
