"""The section ``data`` of the schema: a dataset, its label budget and its splits, and how its images are read."""

import re
from typing import Annotated, Any, Literal, Self

from pydantic import Field, PrivateAttr, field_validator, model_validator

from tutelage.config.section import PartOf, PathText, Positive, Section

RGB = 3
PERCENT = 100.0
SHARE = re.compile(r"[0-9]+(\.[0-9]+)?%")
MAX_WORKERS = 256
WHOLE_RANGE = 65535  # the largest value of 16 bits
# options of data, by their classes
FOLDERS = {"ImageFolder": "image_folder", "ImageNet": "imagenet"}
FILES = FOLDERS | {"Table": "table"}
OPTIONS = FILES | {"HuggingFace": "huggingface"}
# the classes of ours that know a key; classes from outside know those in KNOWN_TO_OTHERS
KNOWN_TO = {
    "layout": FOLDERS,
    "unlabelled": FILES,
    "group": FILES,
    "pack": FILES,
    "fit": OPTIONS,
    "white": OPTIONS,
    "duplicates": OPTIONS,
}
KNOWN_TO_OTHERS = ("unlabelled", "group", "duplicates")


class DataConfig(Section):
    """A dataset, its label budget, and how its images are read and given to the network."""

    target: str = Field(alias="_target_")
    image_size: Annotated[int, Field(ge=1, le=4096)]
    channels: Literal[1, 3]
    mean: list[float]
    std: list[Annotated[float, Field(gt=0)]]
    mirror: PartOf = 0.0
    root: PathText | None = None
    labels_per_class: Positive | None = None
    labels: int | str | None = None
    split_seed: int = 0
    group: PathText | None = None
    validation: str = "auto"
    folds: Annotated[int, Field(ge=2)] | None = None
    fold: Annotated[int, Field(ge=0)] | None = None
    limit: Positive | None = None
    balance: Literal["none", "weights", "sampling"] = "none"
    unlabelled: PathText | None = None
    fit: Literal["crop", "pad", "stretch"] = "crop"
    background: list[Annotated[int, Field(ge=0, le=255)]] = Field(default_factory=lambda: [255, 255, 255])
    max_pixels: Positive = 178_956_970
    on_bad_image: Literal["stop", "skip"] = "stop"
    layout: Literal["auto", "classes", "splits"] = "auto"
    batch_size: Positive
    pack: bool = False
    white: Annotated[int, Field(ge=1, le=WHOLE_RANGE)] | None = None
    duplicates: Literal["report", "drop", "stop"] = "report"
    num_workers: int | Literal["auto"] = 0
    _takes_one_class: bool = PrivateAttr(default=False)

    @field_validator("num_workers", mode="before")
    @classmethod
    def _check_num_workers(cls, value: Any) -> Any:
        if value == "auto" or (type(value) is int and 0 <= value <= MAX_WORKERS):
            return value
        raise ValueError(f"allowed are auto and numbers from 0 to {MAX_WORKERS}")

    @field_validator("labels", mode="before")
    @classmethod
    def _check_labels(cls, value: Any) -> Any:
        if value is None or (type(value) is int and value > 0):
            return value
        if isinstance(value, str) and SHARE.fullmatch(value) and 0 < float(value[:-1]) <= PERCENT:
            return f"{float(value[:-1]):.12g}%"
        raise ValueError("type a share of all labels as 10%, or a number of labels as a whole number from 1")

    @field_validator("white")
    @classmethod
    def _leave_out_whole_range(cls, value: int | None) -> int | None:
        return None if value == WHOLE_RANGE else value  # both ways to say so are one run

    @field_validator("validation")
    @classmethod
    def _check_validation(cls, value: str) -> str:
        kind, _, count = value.partition(":")
        if value in {"auto", "none", "inside"} or (kind == "outside" and count.isdigit() and int(count) > 0):
            return value
        raise ValueError("allowed are auto, none, inside and outside:N (N images beside the label budget)")

    @model_validator(mode="before")
    @classmethod
    def _repeat_single_value(cls, values: Any) -> Any:
        """Let a single mean or deviation hold for all channels."""
        if not isinstance(values, dict) or values.get("channels") != RGB:
            return values
        single = [key for key in ("mean", "std") if isinstance(values.get(key), list) and len(values[key]) == 1]
        return values | {key: RGB * values[key] for key in single}

    @property
    def takes_one_class(self) -> bool:
        """Whether a single class is enough, as the strategy says; else two are needed."""
        return self._takes_one_class

    def take_one_class(self) -> None:
        """Let a single class be enough."""
        self._takes_one_class = True

    @property
    def is_ours(self) -> bool:
        """Whether the class that reads it is one of Tutelage's."""
        return self.target.startswith("tutelage.data.")

    @property
    def labels_share(self) -> float | None:
        """The label budget as a share of all labels, above 0 and up to 1; None where ``labels`` is no share."""
        return float(self.labels[:-1]) / PERCENT if isinstance(self.labels, str) else None

    @model_validator(mode="after")
    def _check_data(self) -> Self:
        if self.labels is not None and self.labels_per_class is not None:
            raise ValueError("data.labels and data.labels_per_class exclude each other: set one of them to null")
        if len(self.mean) != self.channels or len(self.std) != self.channels:
            grey = ", such as data.mean=[0.449] data.std=[0.226]" if self.channels == 1 else ""
            raise ValueError(
                f"data.mean and data.std need one value, or one for each of the {self.channels} channels{grey}"
            )
        if len(self.background) != RGB:
            raise ValueError("data.background needs three values, red, green and blue, such as [255,255,255]")
        return self

    @model_validator(mode="after")
    def _check_dataset(self) -> Self:
        """Refuse keys that the dataset's class does not know, but for the neutral values."""
        name = self.target.rpartition(".")[2]
        for key, classes in KNOWN_TO.items():
            value, neutral = getattr(self, key), type(self).model_fields[key].default
            is_known = name in classes if self.is_ours else key in KNOWN_TO_OTHERS
            if value != neutral and not is_known:
                options = ", ".join(OPTIONS[name] for name in classes)
                raise ValueError(
                    f"data.{key}={_as_typed(value)} goes with data={options}, not with {self.target}: "
                    f"set it to {_as_typed(neutral)}"
                )
        if self.group is not None and self.is_ours and name != "Table":  # of a table it may be a column's name
            try:
                re.compile(self.group)
            except (re.error, OverflowError, RecursionError) as error:
                raise ValueError(f"data.group={self.group}: no regular expression ({error}); correct it") from None
        return self

    @model_validator(mode="after")
    def _check_folds(self) -> Self:
        if (self.folds is None) != (self.fold is None):
            raise ValueError(
                f"data.folds={_as_typed(self.folds)} and data.fold={_as_typed(self.fold)}: give both, as in "
                "-m data.folds=5 'data.fold=range(5)', or neither"
            )
        if self.folds is not None and self.fold is not None and self.fold >= self.folds:
            raise ValueError(
                f"data.fold={self.fold}: with data.folds={self.folds}, folds are numbered from 0 to {self.folds - 1}"
            )
        return self


def _as_typed(value: Any) -> str:
    """Return a value as it is typed on the command line."""
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
