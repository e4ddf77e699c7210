"""The parts of a report page: its style, tables, and pictures that are embedded in the page itself."""

import base64
import html
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tutelage.report.templating import write_html

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TEMPLATES_FILE = "templates.png"  # in a perceptron's report
TEMPLATES_CAPTION = (
    "The perceptron's weights as images, one per class. Bright pixels raise the class's score where the weight is red "
    "and lower it where it is blue; white is zero."
)
STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem; color: #222; }
h1 { font-size: 1.5rem; margin-bottom: 0; } h2 { font-size: 1.1rem; margin-top: 2.2rem; }
table { border-collapse: collapse; } th, td { padding: .25rem .8rem .25rem 0; text-align: right; }
th { border-bottom: 1px solid #888; font-weight: 600; } th:first-child, td:first-child { text-align: left; }
th:nth-child(2), td:nth-child(2) { text-align: left; }
tr.best td { font-weight: 600; } .note { color: #666; font-size: .9rem; } img { max-width: 100%; }
code { background: #f3f3f3; padding: .1rem .3rem; }
"""


@dataclass(frozen=True)
class Picture:
    """A picture of a page: its PNG file, its heading and its caption."""

    file: Path
    heading: str
    caption: str


def save_picture(file: Path, figure: "Figure", heading: str, caption: str) -> Picture:
    """Write a figure to ``file`` as PNG and return it as a part of a page."""
    from tutelage.report import pictures

    pictures.save_figure(figure, file)
    return Picture(file, heading, caption)


def render_table(head: Sequence[str], rows: Sequence[Sequence[str]], best: str | None = None) -> str:
    """Return a table as HTML; the row whose first cell is ``best`` is bold."""
    head_cells = "".join(f"<th>{html.escape(name)}</th>" for name in head)
    body = "".join(
        f"<tr{' class=best' if row[0] == best else ''}>"
        + "".join(f"<td>{html.escape(cell)}</td>" for cell in row)
        + "</tr>"
        for row in rows
    )
    return f"<table><tr>{head_cells}</tr>{body}</table>"


def render_notes(lines: Sequence[str]) -> str:
    """Return lines of small print as HTML."""
    return "".join(f"<p class=note>{html.escape(line)}</p>" for line in lines)


def render_pictures(pictures: Sequence[Picture]) -> str:
    """Return pictures as HTML, each with its heading, its caption and its embedded PNG."""
    return "".join(
        f"<h2>{html.escape(picture.heading)}</h2>{render_notes([picture.caption])}"
        f'<img alt="{html.escape(picture.heading)}" src="data:image/png;base64,{_encode_file(picture.file)}">'
        for picture in pictures
    )


def write_page(file: Path, title: str, heading: str, body: str) -> None:
    """Write a page (see ``write_html``)."""
    text = (
        "<!doctype html><html lang=en><meta charset=utf-8>"
        f"<title>{html.escape(title)}</title><style>{STYLE}</style><h1>{html.escape(heading)}</h1>{body}</html>\n"
    )
    write_html(file, text)


def _encode_file(file: Path) -> str:
    return base64.b64encode(file.read_bytes()).decode()
