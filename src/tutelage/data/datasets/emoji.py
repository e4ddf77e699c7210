"""Emoji as drawn by two vendors, out of npm's ``emoji-datasource`` packages (Henderson, github.com/iamcal/emoji-data).

What was learned from one vendor's drawings is tested on others by the same hand, and on those by another hand.
"""

import json
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from tutelage.config import DataConfig
from tutelage.data.datasets.download import cache_folder
from tutelage.data.files.decoding import BadImage, read_pixels
from tutelage.data.source import Source, empty_indices, resize_center_crop
from tutelage.errors import UserError
from tutelage.randomness import Key

OWN, OTHER = "google", "twitter"  # vendors: of the training and test images, and of the further test set
PACKAGES = {vendor: f"emoji-datasource-{vendor}" for vendor in (OWN, OTHER)}
MODULES = "node_modules"  # where npm puts packages
SIDE = 64  # pixels
TEST_CONCEPTS = 10  # of each class
SIGNS = frozenset({"Symbols", "Flags"})  # categories that are no pictures of things
FEWEST_CONCEPTS = 20  # of a class: ten to learn from beside those of the test
# parts of an emoji's code that change who is drawn, or which way it looks, and not what: joiner, variant, sexes, arrow
VARIANTS = frozenset({"200D", "FE0F", "2640", "2642", "27A1"})
PEOPLE = frozenset({"1F468", "1F469", "1F9D1"})  # man, woman, person: before a joiner they only say who does it


class Emoji(NamedTuple):
    """A drawing: its file's name, its class, and the concept that it shares with variants of itself."""

    image: str
    category: str
    concept: str


def emoji(config: DataConfig) -> Source:
    """Return the emoji whose sub-category has 20 concepts or more, at the config's size, on its background.

    Ten concepts of each class make the test set, the same for every seed: Google's drawings of them, and as a further
    test set ``twitter`` Twitter's. Variants of a concept (a woman, a man, a person running) are never in both parts;
    skin tones, and signs (symbols, flags), are left out.

    Raises:
        UserError: the packages are not there, or damaged.
    """
    folders = {vendor: package(config.root, vendor) for vendor in PACKAGES}
    drawn = _drawn_by_both(folders)
    classes = tuple(sorted({one.category for one in drawn}))
    held = {
        (name, concept)
        for c, name in enumerate(classes)
        for concept in _held_out([one.concept for one in drawn if one.category == name], c)
    }
    tested = [one for one in drawn if (one.category, one.concept) in held]
    images = [*_read(folders[OWN] / "img" / OWN, drawn, config), *_read(folders[OTHER] / "img" / OTHER, tested, config)]
    everything = [*drawn, *tested]
    is_test = np.array([one in tested for one in drawn])
    return Source(
        images=np.stack(images),
        labels=np.array([classes.index(one.category) for one in everything], dtype=np.int64),
        classes=classes,
        train=np.flatnonzero(~is_test),
        test=np.flatnonzero(is_test),
        val=empty_indices(),
        unlabelled=empty_indices(),
        names=[f"{OWN}/{one.image}" for one in drawn] + [f"{OTHER}/{one.image}" for one in tested],
        further_tests={OTHER: np.arange(len(drawn), len(everything))},
    )


def package(root: str | None, vendor: str) -> Path:
    """Return the folder of a vendor's package below ``root``, or below our cache.

    Raises:
        UserError: it is not there.
    """
    top = Path(root).expanduser() if root is not None else cache_folder("emoji")
    for folder in (top / MODULES / PACKAGES[vendor], top / PACKAGES[vendor]):
        if (folder / "emoji.json").is_file():
            return folder
    command = f"npm install --prefix {top} {' '.join(PACKAGES.values())}"
    raise UserError(f"data=emoji: no {PACKAGES[vendor]} below {top}; {command}; or give data.root")


def versions(root: str | None) -> str:
    """Return the packages' versions: what the data is.

    Raises:
        UserError: they are not there, or damaged.
    """
    return " ".join(str(_json(package(root, vendor) / "package.json")["version"]) for vendor in PACKAGES)


def _drawn_by_both(folders: dict[str, Path]) -> list[Emoji]:
    """Return the emoji of all classes that are large enough, in the order of their codes."""
    listed = _json(folders[OWN] / "emoji.json")
    there = [{path.name for path in (folders[v] / "img" / v / str(SIDE)).glob("*.png")} for v in PACKAGES]
    drawn: dict[str, list[Emoji]] = defaultdict(list)
    for entry in sorted(listed, key=lambda entry: str(entry["unified"])):
        if entry["category"] in SIGNS or "obsoleted_by" in entry or not all(entry["image"] in names for names in there):
            continue  # what is obsolete is drawn as what replaces it
        name = str(entry["subcategory"])
        drawn[name].append(Emoji(str(entry["image"]), name, _concept(str(entry["unified"]))))
    large = [ones for ones in drawn.values() if len({one.concept for one in ones}) >= FEWEST_CONCEPTS]
    if len(large) < 2:  # noqa: PLR2004 - one class is nothing to tell apart
        raise UserError(f"{folders[OWN]}: no drawings in common with {folders[OTHER]}; npm install both again")
    return sorted((one for ones in large for one in ones), key=lambda one: one.image)


def _concept(code: str) -> str:
    """Return the code of an emoji without what makes it a variant of another."""
    parts = [part for part in code.split("-") if part not in VARIANTS]
    if len(parts) > 1 and parts[0] in PEOPLE:
        parts = parts[1:]
    return "-".join(parts) or code


def _held_out(concepts: Iterable[str], c: int) -> set[str]:
    """Return the concepts of a class that make the test set."""
    order = Key(0, "emoji", "test").generator("order within class", index=c).permutation(sorted(set(concepts)))
    return set(order[:TEST_CONCEPTS].tolist())


def _read(folder: Path, drawn: Sequence[Emoji], config: DataConfig) -> list[np.ndarray]:
    """Return the pixels (H, W, C) uint8 of drawings."""
    found = []
    for one in drawn:
        file = folder / str(SIDE) / one.image
        try:
            pixels = read_pixels(file, config.channels, config.background, config.max_pixels)
        except BadImage as error:
            raise UserError(f"{file}: {error}; npm install its package again") from None
        found.append(resize_center_crop(pixels, config.image_size))
    return found


def _json(file: Path) -> Any:
    try:
        return json.loads(file.read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"{file}: cannot be read ({error}); npm install its package again") from None
