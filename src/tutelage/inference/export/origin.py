"""Which weights a network began from, and under which licence these are."""

from pathlib import Path
from typing import NamedTuple

from tutelage.errors import UserError
from tutelage.inference.loading import LoadedNetwork
from tutelage.models.weights.published import INSTALLED, INSTALLED_LICENSE, TIMM, TORCHVISION, find_timm_config
from tutelage.runs import RunFolder, read_config
from tutelage.runs.weight_sources import PACKAGE, find_run_around


class Origin(NamedTuple):
    """What a network began from.

    Attributes:
        text: its name, without a machine's paths.
        license: of the weights, as the Hub calls it; None where it is not known, or where there are none.
        has_weights: whether it began from weights, not from random ones.
    """

    text: str
    license: str | None
    has_weights: bool


def find_origin(member: LoadedNetwork) -> Origin:
    """Return what a run's network began from."""
    return _describe(None if member.config is None else member.config.init_from)


def _describe(init_from: str | None) -> Origin:
    if init_from is None:
        return Origin("random weights", None, has_weights=False)
    if init_from == INSTALLED:
        return Origin(f"ImageNet's weights of EfficientNet-Lite0, `{init_from}`", INSTALLED_LICENSE, has_weights=True)
    if init_from.startswith((TIMM, TORCHVISION, PACKAGE)):
        return Origin(f"`{init_from}`", _find_license(init_from), has_weights=True)
    path = Path(init_from).expanduser()
    around = find_run_around(path)
    if around is None:
        return Origin(f"the file or run `{path.name}`", None, has_weights=True)
    try:
        before = _describe(read_config(RunFolder(around)).init_from)
    except UserError:  # its config is of another version
        before = Origin("weights that are not known", None, has_weights=True)
    return Origin(f"the run `{around.name}`, which began from {before.text}", before.license, before.has_weights)


def _find_license(tag: str) -> str | None:
    """Return the licence that timm knows of weights; torchvision and packages name none."""
    try:
        name: str | None = getattr(find_timm_config(tag), "license", None) if tag.startswith(TIMM) else None
    except UserError:  # timm has no such weights any more
        return None
    return name
