"""Pages from the jinja2 templates in ``templates/``: each is one self-contained file, written whole or not at all.

A page's template extends ``base.html.j2`` and is put together by the macros of ``macros.html.j2``, whose arguments are
the classes here. Everything that a page shows is escaped.
"""

import base64
import io
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tutelage.report.palette import DARK, LIGHT, LINES_DARK, LINES_LIGHT, css_variables
from tutelage.storage import write_text
from tutelage.terminal.intervals import format_percent

if TYPE_CHECKING:
    from jinja2 import Environment
    from markupsafe import Markup

TEMPLATES, VENDOR = Path(__file__).parent / "templates", Path(__file__).parent / "vendor"
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
class Bar:
    """A cell of a table with a bar for a share of something, in a lighter bar for a larger share, and a text.

    Attributes:
        text: beside the bar; the table is sorted by the number that it begins with.
        inner, outer: shares from 0 to 1 of the bar's full width; the inner one is the smaller one.
    """

    text: str
    inner: float
    outer: float


@dataclass(frozen=True)
class Value:
    """A cell of a table that is sorted by a number beside its text; None comes last."""

    text: str
    number: float | None


@dataclass(frozen=True)
class Link:
    """A cell of a table that leads elsewhere."""

    text: str
    address: str


@dataclass(frozen=True)
class Links:
    """A cell of a table that leads to several places; ``rest`` says how many more there are."""

    links: Sequence[Link]
    rest: str = ""


@dataclass(frozen=True)
class Column:
    """A column of a table: its heading, and whether it holds text, which stands on the left."""

    name: str
    is_text: bool = False


Cell = str | Share | Bar | Value | Link | Links


@dataclass(frozen=True)
class Table:
    """A table; a reader sorts it by the headings.

    Attributes:
        name: what it holds, for readers that do not see it.
        columns: from left to right.
        rows: their cells; texts that are numbers are sorted as such.
        best: the first cell of the row that is bold; None for no row.
        is_searchable: it has so many rows that a reader may want to search them.
    """

    name: str
    columns: Sequence[Column]
    rows: Sequence[Sequence[Cell]]
    best: str | None = None
    is_searchable: bool = False


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
class Line:
    """A line of a chart.

    Attributes:
        name: in the legend; empty for what belongs to the line before it and is hidden with it, such as dots.
        x: rising; of dots, several may have the same.
        y: a value for each x; None or NaN where there is none.
        low, high: the limits of a band around the line; None without one.
        color: the number of its colour; None for the line's place among the lines.
        is_dashed: such as a validation's beside a training's.
        is_dots: only dots, without a line between them.
        is_reference: others are compared with it; it is grey.
    """

    name: str
    x: Sequence[float]
    y: Sequence[float | None]
    low: Sequence[float] | None = None
    high: Sequence[float] | None = None
    color: int | None = None
    is_dashed: bool = False
    is_dots: bool = False
    is_reference: bool = False


@dataclass(frozen=True)
class Chart:
    """A chart with a section of its own: lines, the values under the cursor, and a legend that hides a line on a click.

    Attributes:
        heading: of the section.
        caption: what the chart shows and how it is read.
        x_name: of the horizontal axis.
        lines: from the first in the legend to the last.
        is_share: y is shares from 0 to 1, shown in percent.
        has_log_x, has_log_y: the axis is logarithmic.
        x_ticks: the values that are named on the horizontal axis; None for those that fit.
        x_labels: their names, such as those of stages; None for the values themselves.
        height: in CSS pixels.
        is_wide: it needs the page's whole width.
    """

    heading: str
    caption: str
    x_name: str
    lines: Sequence[Line]
    is_share: bool = False
    has_log_x: bool = False
    has_log_y: bool = False
    x_ticks: Sequence[float] | None = None
    x_labels: Sequence[str] | None = None
    height: int = 300
    is_wide: bool = False

    @property
    def data(self) -> dict[str, Any]:
        """What the page's script draws."""
        return asdict(self)


@dataclass(frozen=True)
class Tile:
    """A small image among others, with lines below it.

    Attributes:
        source: the image as a ``data:`` address (``encode_image``).
        lines: the first stands out.
        is_small: it has few pixels, which are to be seen as they are.
        is_wrong: the first line is an error.
        keys: what a reader sorts tiles by (numbers, the largest first) and filters them by (texts); the same for all.
        others: smaller images below the lines, such as its nearest neighbours.
        others_name: what these are.
    """

    source: str
    lines: Sequence[str] = field(default_factory=tuple)
    is_small: bool = False
    is_wrong: bool = False
    keys: Mapping[str, str | float] = field(default_factory=dict)
    others: Sequence["Tile"] = ()
    others_name: str = ""


def encode_image(image: np.ndarray, max_side: int = MAX_SIDE) -> str:
    """Return an image (H, W, C) uint8 as a ``data:`` address; large ones are shrunk and become JPEG.

    Args:
        image: grey, RGB, or RGB with opacity, which is never changed.
        max_side: pixels of a larger image's longer side.
    """
    from PIL import Image

    picture, file = Image.fromarray(image.squeeze(-1) if image.shape[-1] == 1 else image), io.BytesIO()
    is_exact = picture.mode == "RGBA" or is_small(image)
    kind = "png" if is_exact else "jpeg"
    if not is_exact:
        picture.thumbnail((max_side, max_side))
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
    environment.policies["json.dumps_function"] = _dump_json
    kinds = {"share": Share, "bar": Bar, "value": Value, "link": Link, "links": Links}
    tests: dict[str, Any] = {name: partial(_is_a, kind) for name, kind in kinds.items()}
    environment.tests.update(tests)
    environment.globals.update(light=LIGHT, dark=DARK, css_variables=css_variables, vendored=_read_vendored)
    environment.globals.update(
        light_lines=_line_colours(LIGHT, LINES_LIGHT), dark_lines=_line_colours(DARK, LINES_DARK)
    )
    return environment


def _dump_json(value: Any, **options: Any) -> str:
    """Return JSON that a browser can read: numbers that are not finite are null."""
    return json.dumps(_without_nan(value), allow_nan=False, **options)


def _without_nan(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _without_nan(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _is_a(kind: type, cell: object) -> bool:
    return isinstance(cell, kind)


def _line_colours(colours: Mapping[str, str], lines: Sequence[str]) -> dict[str, Any]:
    return {"lines": lines, "reference": colours["rule"], "soft": colours["soft"], "line": colours["line"]}


def _read_vendored(name: str) -> "Markup":
    """Return a file of another project as it is."""
    from markupsafe import Markup

    return Markup((VENDOR / name).read_text())  # noqa: S704 - a file of ours
