"""The schema of ``conf/model/``."""

from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import ConfigDict, Discriminator, Field, Tag, field_validator, model_validator

from tutelage.config.section import PartOf, Positive, Targeted

Width = Annotated[float, Field(gt=0, le=64)]  # multiplies the channels of every layer


class ArchitectureConfig(Targeted):
    """What every model has: the class of its network, and how many of its layers keep the weights they start with.

    Attributes:
        frozen_layers: the number of the backbone's lowest layers that do not learn in a stage that starts from trained
            weights. It is a key of the framework's, not an argument of the class.
    """

    frozen_layers: Annotated[int, Field(ge=0)] = 0

    def arguments(self) -> dict[str, Any]:
        """Return ``_target_`` and the arguments of its class, as plain containers."""
        return self.model_dump(exclude={"frozen_layers"})


class PerceptronConfig(ArchitectureConfig):
    """One fully connected layer on all pixels of an image."""

    target: Literal["tutelage.models.Perceptron"] = Field(alias="_target_")


class MLPConfig(ArchitectureConfig):
    """Fully connected layers."""

    target: Literal["tutelage.models.MLP"] = Field(alias="_target_")
    width: Annotated[int, Field(ge=1, le=65536)]
    depth: Annotated[int, Field(ge=1, le=64)]
    dropout: PartOf = 0.0


class LeNet5Config(ArchitectureConfig):
    """LeNet-5; ``width`` multiplies the channels of every layer."""

    smallest: ClassVar = 12  # pixels; two convolutions and poolings leave nothing of a smaller image
    target: Literal["tutelage.models.LeNet5"] = Field(alias="_target_")
    width: Width = 1.0
    dropout: PartOf = 0.0


class AlexNetConfig(ArchitectureConfig):
    """AlexNet, its convolutions in two groups as in the paper."""

    smallest: ClassVar = 67  # pixels; the first convolution and three poolings leave nothing of a smaller image
    target: Literal["tutelage.models.AlexNet"] = Field(alias="_target_")
    width: Width = 1.0
    norm: Literal["lrn", "batch", "none"] = "lrn"
    pool: Literal["flatten", "average"] = "flatten"
    dropout: PartOf = 0.5


class VGGConfig(ArchitectureConfig):
    """VGG of 11, 13, 16 or 19 layers."""

    smallest: ClassVar = 32  # pixels; halved five times
    target: Literal["tutelage.models.VGG"] = Field(alias="_target_")
    depth: Literal[11, 13, 16, 19]
    batch_norm: bool = False
    width: Width = 1.0
    pool: Literal["flatten", "average"] = "flatten"
    dropout: PartOf = 0.5


class SmallVGGConfig(ArchitectureConfig):
    """A VGG for small images: three blocks of two convolutions."""

    smallest: ClassVar = 8  # pixels; halved three times
    target: Literal["tutelage.models.SmallVGG"] = Field(alias="_target_")
    width: Width = 1.0
    dropout: PartOf = 0.0


class ResNetConfig(ArchitectureConfig):
    """A residual network with a stem for small images."""

    target: Literal["tutelage.models.ResNet"] = Field(alias="_target_")
    width: Annotated[int, Field(ge=8, le=4096)]  # below 8, torch 2.15 corrupts its memory on some CPUs
    depth: Annotated[int, Field(ge=1, le=64)]
    dropout: PartOf = 0.0
    stochastic_depth: PartOf = 0.0


class TimmConfig(ArchitectureConfig):
    """An architecture of timm, by its name in timm.

    Attributes:
        feature_layers: the names of layers whose outputs are features too, beside the highest ones.
    """

    target: Literal["tutelage.models.Timm"] = Field(alias="_target_")
    name: str
    dropout: PartOf = 0.0
    stochastic_depth: PartOf = 0.0
    feature_layers: list[str] = Field(default_factory=list)


class TorchvisionConfig(ArchitectureConfig):
    """A classifier of torchvision, by its name in torchvision."""

    target: Literal["tutelage.models.Torchvision"] = Field(alias="_target_")
    name: str
    dropout: PartOf = 0.0


class NearestNeighboursConfig(ArchitectureConfig):
    """k nearest neighbours among the labelled images, by pixels or by the features of a backbone."""

    target: Literal["tutelage.models.NearestNeighbours"] = Field(alias="_target_")
    k: Positive
    backbone: "ModelConfig | None" = None

    @field_validator("backbone", mode="before")
    @classmethod
    def _refuse_option_name(cls, value: Any) -> Any:
        if isinstance(value, str):
            raise ValueError(f"a model is composed into a key by +model@model.backbone={value}")
        return value

    @model_validator(mode="after")
    def _check_frozen_layers(self) -> Self:
        if self.frozen_layers or (self.backbone is not None and self.backbone.frozen_layers):
            raise ValueError(
                "model.frozen_layers: nearest neighbours train no layer, nor one of their backbone's; leave it at 0"
            )
        return self


class OtherModelConfig(ArchitectureConfig):
    """A user's own architecture; its arguments, ``frozen_layers`` not among them, are checked when it is built."""

    model_config = ConfigDict(extra="allow")


OWN_MODELS = frozenset(
    {"Perceptron", "MLP", "LeNet5", "AlexNet", "VGG", "SmallVGG", "ResNet", "Torchvision", "Timm", "NearestNeighbours"}
)


def _find_model_tag(value: Any) -> str:
    """Return the tag in ``ModelConfig`` of a model, given as a mapping or as a section."""
    target = value.get("_target_", "") if isinstance(value, dict) else getattr(value, "target", "")
    module, _, name = str(target).rpartition(".")
    return name if module == "tutelage.models" and name in OWN_MODELS else "other"


ModelConfig = Annotated[
    Annotated[PerceptronConfig, Tag("Perceptron")]
    | Annotated[MLPConfig, Tag("MLP")]
    | Annotated[LeNet5Config, Tag("LeNet5")]
    | Annotated[AlexNetConfig, Tag("AlexNet")]
    | Annotated[VGGConfig, Tag("VGG")]
    | Annotated[SmallVGGConfig, Tag("SmallVGG")]
    | Annotated[ResNetConfig, Tag("ResNet")]
    | Annotated[TorchvisionConfig, Tag("Torchvision")]
    | Annotated[TimmConfig, Tag("Timm")]
    | Annotated[NearestNeighboursConfig, Tag("NearestNeighbours")]
    | Annotated[OtherModelConfig, Tag("other")],
    Discriminator(_find_model_tag),
]
