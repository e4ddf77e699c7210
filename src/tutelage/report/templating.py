"""Pages from the jinja2 templates in ``templates/``: each is one self-contained file, written whole or not at all.

A page's template extends ``base.html.j2`` and is put together by the macros of ``macros.html.j2``, whose arguments are
the classes here. Everything that a page shows is escaped.
"""

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tutelage.report.palette import DARK, LIGHT, css_variables
from tutelage.storage import write_text
from tutelage.terminal.intervals import format_percent

if TYPE_CHECKING:
    from jinja2 import Environment

TEMPLATES = Path(__file__).parent / "templates"
SMALL_SIDE = 64  # pixels; up to it images are enlarged without smoothing and embedded without loss
MAX_SIDE = 224  # pixels of an embedded image
JPEG_QUALITY = 85


@dataclass(frozen=True)
class Number:
    """One of the few numbers that a page begins with: its name, the number, and what is to be known about it."""

    name: str
    value: str
    detail: str = ""


@dataclass(frozen=True)
class Share:
    """A cell of a table with a share from 0 to 1, which gets a bar."""

    value: float


@dataclass(frozen=True)
class Column:
    """A column of a table: its heading, and whether it holds text, which stands on the left."""

    name: str
    is_text: bool = False


@dataclass(frozen=True)
class Table:
    """A table.

    Attributes:
        name: what it holds, for readers that do not see it.
        columns: from left to right.
        rows: their cells, each a text or a ``Share``.
        best: the first cell of the row that is bold; None for no row.
    """

    name: str
    columns: Sequence[Column]
    rows: Sequence[Sequence[str | Share]]
    best: str | None = None


@dataclass(frozen=True)
class Drawing:
    """A picture with a section of its own.

    Attributes:
        heading: of the section.
        caption: what the picture shows and how it is read.
        source: the picture as a ``data:`` address, such as ``vector.encode_figure`` returns.
        alt: what the picture says, for readers that do not see it.
        is_wide: it needs the page's whole width.
    """

    heading: str
    caption: str
    source: str
    alt: str
    is_wide: bool = False


@dataclass(frozen=True)
class Tile:
    """A small image among others, with lines below it.

    Attributes:
        source: the image as a ``data:`` address (``encode_image``).
        lines: the first stands out.
        is_small: it has few pixels, which are to be seen as they are.
        is_wrong: the first line is an error.
    """

    source: str
    lines: Sequence[str] = field(default_factory=tuple)
    is_small: bool = False
    is_wrong: bool = False


def encode_image(image: np.ndarray) -> str:
    """Return an image (H, W, C) uint8, grey or RGB, as a ``data:`` address; large ones are shrunk and become JPEG."""
    from PIL import Image

    picture, file = Image.fromarray(image.squeeze(-1) if image.shape[-1] == 1 else image), io.BytesIO()
    kind = "png" if is_small(image) else "jpeg"
    picture.thumbnail((MAX_SIDE, MAX_SIDE))
    picture.save(file, format=kind, quality=JPEG_QUALITY)
    return f"data:image/{kind};base64,{base64.b64encode(file.getvalue()).decode()}"


def is_small(image: np.ndarray) -> bool:
    """Return whether an image (H, W, C) has so few pixels that they are to be seen as they are."""
    height, width = image.shape[:2]
    return max(int(height), int(width)) <= SMALL_SIDE


def write_page(file: Path, template: str, **values: Any) -> None:
    """Write the page that a template makes of values."""
    write_html(file, _environment().get_template(template).render(**values))


def write_html(file: Path, text: str) -> None:
    """Write a page; bytes that are not UTF-8, as paths may hold, become escapes."""
    write_text(file, text.encode(errors="backslashreplace").decode())


@cache
def _environment() -> "Environment":
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["percent"] = format_percent
    environment.tests["share"] = lambda cell: isinstance(cell, Share)
    environment.globals.update(light=LIGHT, dark=DARK, css_variables=css_variables)
    return environment
