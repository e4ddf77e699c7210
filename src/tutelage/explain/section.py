"""The sections of the page: pictures in rows, drawings, tables, and below each two sentences on how it is read."""

from collections.abc import Sequence
from dataclasses import dataclass

from tutelage.explain.subject import Picture, Subject
from tutelage.report.pictures import shorten_path
from tutelage.report.templating import Drawing, Table, Tile, encode_image, is_small


@dataclass(frozen=True)
class Strip:
    """Small pictures in a row, with a title before them.

    Attributes:
        title: of the row.
        tiles: the pictures.
        detail: what else is to be known of the row.
        are_large: the pictures need more room than maps of a few pixels.
    """

    title: str
    tiles: Sequence[Tile]
    detail: str = ""
    are_large: bool = False


@dataclass(frozen=True)
class Group:
    """What belongs to one picture, which stands before it.

    Attributes:
        picture: the picture.
        strips: rows of small pictures.
        figure: a drawing as a ``data:`` address, which has its own width; empty for none.
        alt: what the drawing says.
    """

    picture: Tile
    strips: Sequence[Strip] = ()
    figure: str = ""
    alt: str = ""


@dataclass(frozen=True)
class Section:
    """A section of the page.

    Attributes:
        heading: of the section.
        reading: how the pictures are read, as two sentences.
        finding: what they say, before them; empty where they speak for themselves.
        strips: rows of pictures.
        groups: rows of pictures by the picture that they belong to.
        drawings: figures.
        table: a table.
        is_folded: the table is shown on demand.
    """

    heading: str
    reading: str
    strips: Sequence[Strip] = ()
    groups: Sequence[Group] = ()
    drawings: Sequence[Drawing] = ()
    table: Table | None = None
    finding: str = ""
    is_folded: bool = False


def make_tile(picture: Picture, lines: Sequence[str], is_wrong: bool = False) -> Tile:
    """Return a picture with lines below it."""
    return Tile(encode_image(picture.pixels), lines, is_small(picture.pixels), is_wrong)


def describe_answer(subject: Subject, position: int) -> list[str]:
    """Return lines on what the network says of a picture: the class with its probability, the truth where known."""
    picture, predicted = subject.pictures[position], int(subject.predicted[position])
    truth = [] if picture.label in {None, predicted} else [f"shows {subject.classes[picture.label or 0]}"]
    answer = f"{subject.classes[predicted]}, {subject.probabilities[position, predicted]:.0%}"
    return [answer, *truth, shorten_path(picture.name)]


def is_wrong(subject: Subject, position: int) -> bool:
    """Return whether the network is known to be wrong about a picture."""
    return subject.pictures[position].label not in {None, int(subject.predicted[position])}


def make_picture_tiles(subject: Subject) -> list[Tile]:
    """Return the pictures with the network's answers."""
    return [
        make_tile(picture, describe_answer(subject, position), is_wrong(subject, position))
        for position, picture in enumerate(subject.pictures)
    ]
