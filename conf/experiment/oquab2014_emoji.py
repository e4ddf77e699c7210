"""Writes the image folder of oquab2014_transfer: emoji of two vendors, from npm's ``emoji-datasource`` packages.

    python conf/experiment/oquab2014_emoji.py PACKAGES FOLDER

PACKAGES is where ``npm install --prefix PACKAGES emoji-datasource-google emoji-datasource-twitter`` has installed them
(Henderson, github.com/iamcal/emoji-data). FOLDER gets ``train/CLASS/``, ``test/CLASS/`` with Google's drawings, and
``test-twitter/CLASS/`` with Twitter's drawings of the test concepts; what is there already is left as it is.

A class is a sub-category with 20 concepts or more. Ten concepts of each class, the same for every seed, are the test
set. Variants of a concept (a woman, a man, a person running) are never in both parts; skin tones, and signs (symbols,
flags), are left out.
"""

import json
import shutil
import sys
import tempfile
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from tutelage.randomness import Key

TRAINED, OTHER = "google", "twitter"  # vendors: of the training and test images, and of the further test set
SIDE = 64  # pixels
TEST_CONCEPTS = 10  # of each class
SIGNS = frozenset({"Symbols", "Flags"})  # categories that are no pictures of things
FEWEST_CONCEPTS = 20  # of a class: ten to learn from, ten to test
# parts of a code that change the person or the direction, not the concept: joiner, variant, sexes, arrow
VARIANTS = frozenset({"200D", "FE0F", "2640", "2642", "27A1"})
PEOPLE = frozenset({"1F468", "1F469", "1F9D1"})  # man, woman, person: before a joiner they say who does something


class Emoji(NamedTuple):
    """A drawing: the name of its file, its class, and the concept that it shares with its variants."""

    file: str
    category: str
    concept: str


def write_folder(packages: Path, folder: Path) -> None:
    """Write the image folder, whole or not at all."""
    if folder.is_dir():
        return
    drawings = {vendor: find_package(packages, vendor) / "img" / vendor / str(SIDE) for vendor in (TRAINED, OTHER)}
    emoji = list_emoji(find_package(packages, TRAINED), drawings)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".partial-") as partial:
        whole = Path(partial, folder.name)
        held_out = {c: held_out_concepts(emoji, c) for c in sorted({each.category for each in emoji})}
        for each in emoji:
            is_test = each.concept in held_out[each.category]
            copies = [("test" if is_test else "train", TRAINED)] + ([(f"test-{OTHER}", OTHER)] if is_test else [])
            for part, vendor in copies:
                target = whole / part / each.category / each.file
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(drawings[vendor] / each.file, target)
        whole.rename(folder)


def find_package(packages: Path, vendor: str) -> Path:
    """Return the folder of a vendor's package; end with one line where it is missing."""
    package = packages.expanduser() / "node_modules" / f"emoji-datasource-{vendor}"
    if not (package / "emoji.json").is_file():
        names = " ".join(f"emoji-datasource-{each}" for each in (TRAINED, OTHER))
        sys.exit(f"{package}: missing; npm install --prefix {packages} {names}")
    return package


def list_emoji(package: Path, drawings: dict[str, Path]) -> list[Emoji]:
    """Return the emoji of all classes that are large enough and drawn by both vendors, in the order of their codes."""
    entries: list[dict[str, Any]] = json.loads((package / "emoji.json").read_text())
    by_class: dict[str, list[Emoji]] = defaultdict(list)
    for entry in sorted(entries, key=lambda entry: str(entry["unified"])):
        is_drawn = all((folder / entry["image"]).is_file() for folder in drawings.values())
        if entry["category"] in SIGNS or "obsoleted_by" in entry or not is_drawn:
            continue  # an obsolete emoji is drawn like the one that replaces it
        category = str(entry["subcategory"])
        by_class[category].append(Emoji(str(entry["image"]), category, find_concept(str(entry["unified"]))))
    large = [emoji for emoji in by_class.values() if len({each.concept for each in emoji}) >= FEWEST_CONCEPTS]
    return sorted((each for emoji in large for each in emoji), key=lambda each: each.file)


def find_concept(code: str) -> str:
    """Return the code of an emoji without the parts that make it a variant of another."""
    parts = [part for part in code.split("-") if part not in VARIANTS]
    if len(parts) > 1 and parts[0] in PEOPLE:
        parts = parts[1:]
    return "-".join(parts) or code


def held_out_concepts(emoji: Iterable[Emoji], category: str) -> set[str]:
    """Return the concepts of a class that make the test set."""
    emoji = list(emoji)
    number = sorted({each.category for each in emoji}).index(category)
    concepts = sorted({each.concept for each in emoji if each.category == category})
    order = Key(0, "emoji", "test").generator("order within class", index=number).permutation(concepts)
    return set(order[:TEST_CONCEPTS].tolist())


if __name__ == "__main__":
    write_folder(Path(sys.argv[1]), Path(sys.argv[2]).expanduser())
