"""What all parts of the schema share: sections, targets, ranges.

A default in the schema is a key's *neutral* value: the one under which a run is what it was before the key existed.
Identities leave neutral values out, so a new key leaves the names of old runs alone. The values that users get by
default stand in ``conf/``.
"""

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Self, get_args

from pydantic import BaseModel, ConfigDict, Field

Fraction = Annotated[float, Field(ge=0, le=1)]
PartOf = Annotated[float, Field(ge=0, lt=1)]  # a probability under which something is left
Positive = Annotated[int, Field(ge=1)]
Ratio = Annotated[float, Field(gt=0, le=1000)]  # of the schedule, or of another batch's size


def too_small(model: str, needed: int, given: int) -> str:
    """Return what is said of images that are too small for a model."""
    return f"model={model.lower()} needs images of {needed} pixels or more, not data.image_size={given}"


class Section(BaseModel):
    """A group of keys; unknown ones are errors."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, populate_by_name=True, serialize_by_alias=True, allow_inf_nan=False
    )


class Targeted(Section):
    """A group whose ``_target_`` names the class to build."""

    smallest: ClassVar[int] = 1  # side in pixels of the smallest image that it takes
    target: str = Field(alias="_target_")

    @classmethod
    def from_arguments(cls, arguments: Mapping[str, Any]) -> Self:
        """Return the section of a class's keyword arguments; its one ``_target_`` is filled in.

        Raises:
            ValueError: an argument is missing, unknown or out of range (pydantic's ``ValidationError``).
        """
        (target,) = get_args(cls.model_fields["target"].annotation)
        return cls.model_validate({"_target_": target, **arguments})

    def arguments(self) -> dict[str, Any]:
        """Return ``_target_`` and what its class is built with, as plain containers."""
        return self.model_dump()
