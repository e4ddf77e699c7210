"""The base classes of the schema's sections, and the ranges that several of them use.

A default in the schema is a key's *neutral* value: with it a run is what it was before the key existed. A run's
identity leaves neutral values out, so that a new key does not rename old runs. The defaults that users get are in
``conf/``.
"""

import re
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Self, get_args

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

FOLDER_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")  # what a strategy and its stages are called: folders bear it
INIT_FROM_FORMS = "init_from=RUN, FILE, timm:NAME, torchvision:NAME or package:PACKAGE/FILE"  # for error lines
Fraction = Annotated[float, Field(ge=0, le=1)]
PartOf = Annotated[float, Field(ge=0, lt=1)]  # a fraction that is never the whole, such as a dropout rate
Positive = Annotated[int, Field(ge=1)]
Temperature = Annotated[float, Field(gt=0, le=1000)]  # divides logits
Weight = Annotated[float, Field(ge=0, le=1000)]  # of a loss beside others
Ratio = Annotated[float, Field(gt=0, le=1000)]  # to the length of the schedule, or to the size of another batch


def _number_as_text(value: Any) -> Any:
    """Return a whole number as a text: a config file may name a folder ``2024``."""
    return str(value) if type(value) is int else value


# A path, or another name of files, of a pool or of a run, or a pattern of paths. config/path_values.py names all keys
# that have such a value.
PathText = Annotated[str, Field(min_length=1), BeforeValidator(_number_as_text)]


def describe_too_small_image(model: str, min_size: int, image_size: int) -> str:
    """Return the error line for images that are too small for a model; sizes are sides in pixels."""
    return f"model={model.lower()} needs images of {min_size} pixels or more, not data.image_size={image_size}"


class Section(BaseModel):
    """A group of keys; a key that the group does not have is an error."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, populate_by_name=True, serialize_by_alias=True, allow_inf_nan=False
    )


class Targeted(Section):
    """A group of keys whose ``_target_`` names the class to build."""

    smallest: ClassVar[int] = 1  # side in pixels of the smallest image that the class takes
    target: str = Field(alias="_target_")

    @classmethod
    def from_arguments(cls, arguments: Mapping[str, Any]) -> Self:
        """Return the section of a class's keyword arguments, with its one ``_target_`` or its own path filled in.

        Raises:
            ValueError: an argument is missing, unknown or out of range (pydantic's ``ValidationError``).
        """
        allowed = get_args(cls.model_fields["target"].annotation)
        target = allowed[0] if allowed else f"{cls.__module__}.{cls.__qualname__}"
        return cls.model_validate({"_target_": target, **arguments})

    def arguments(self) -> dict[str, Any]:
        """Return ``_target_`` and the arguments of its class, as plain containers."""
        return self.model_dump()
