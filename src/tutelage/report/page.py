"""What report pages are made of: a style, tables, and pictures that the page itself holds."""

import base64
import html
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tutelage.storage import write_text

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TEMPLATES = "templates.png"  # of a perceptron's report
TEMPLATES_TOLD = (
    "A perceptron's weights as images, one a class: red speaks for the class, blue against it, white says nothing."
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
    """A picture of a page: its PNG file, its heading and what it shows."""

    file: Path
    heading: str
    told: str


def picture(file: Path, figure: "Figure", heading: str, told: str) -> Picture:
    """Write a figure to ``file`` and return it as a part of a page."""
    from tutelage.report import pictures

    pictures.save(figure, file)
    return Picture(file, heading, told)


def table(head: Sequence[str], rows: Sequence[Sequence[str]], best: str | None = None) -> str:
    """Return a table as HTML; the row that begins with ``best`` is bold."""
    cells = "".join(f"<th>{html.escape(name)}</th>" for name in head)
    body = "".join(
        f"<tr{' class=best' if row[0] == best else ''}>" + "".join(f"<td>{html.escape(v)}</td>" for v in row) + "</tr>"
        for row in rows
    )
    return f"<table><tr>{cells}</tr>{body}</table>"


def notes(lines: Sequence[str]) -> str:
    """Return lines of small print as HTML."""
    return "".join(f"<p class=note>{html.escape(line)}</p>" for line in lines)


def figures(shown: Sequence[Picture]) -> str:
    """Return pictures as HTML that holds them."""
    return "".join(
        f"<h2>{html.escape(one.heading)}</h2>{notes([one.told])}"
        f'<img alt="{html.escape(one.heading)}" src="data:image/png;base64,{_encoded(one.file)}">'
        for one in shown
    )


def write(file: Path, title: str, heading: str, body: str) -> None:
    """Write a page, whole or absent."""
    write_text(
        file,
        "<!doctype html><html lang=en><meta charset=utf-8>"
        f"<title>{html.escape(title)}</title><style>{STYLE}</style><h1>{html.escape(heading)}</h1>{body}</html>\n",
    )


def _encoded(file: Path) -> str:
    return base64.b64encode(file.read_bytes()).decode()
