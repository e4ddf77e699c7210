"""The schema of ``conf/loss/``."""

from typing import Annotated, Any, Final, Literal

from pydantic import ConfigDict, Discriminator, Field, Tag

from tutelage.config.section import PartOf, Targeted

CROSS_ENTROPY: Final = "tutelage.models.CrossEntropy"


class CrossEntropyConfig(Targeted):
    """Cross-entropy with smoothed labels."""

    target: Literal["tutelage.models.CrossEntropy"] = Field(default=CROSS_ENTROPY, alias="_target_")
    label_smoothing: PartOf = 0.0


PLAIN_CROSS_ENTROPY = CrossEntropyConfig()


class OtherLossConfig(Targeted):
    """A user's own loss; its arguments are checked when it is built."""

    model_config = ConfigDict(extra="allow")


OWN_LOSSES = frozenset({"CrossEntropy"})


def _find_loss_tag(value: Any) -> str:
    """Return the tag in ``LossConfig`` of a loss, given as a mapping or as a section."""
    target = value.get("_target_", CROSS_ENTROPY) if isinstance(value, dict) else getattr(value, "target", "")
    return "CrossEntropy" if target == CROSS_ENTROPY else "other"


LossConfig = Annotated[
    Annotated[CrossEntropyConfig, Tag("CrossEntropy")] | Annotated[OtherLossConfig, Tag("other")],
    Discriminator(_find_loss_tag),
]
