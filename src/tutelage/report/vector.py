"""Figures of matplotlib as SVG for a page: sharp at any size, with the page's colours in light and dark."""

import base64
import io
import re
from typing import Any

import matplotlib.pyplot as plt
from matplotlib.figure import Figure

from tutelage.report.palette import DARK, LIGHT, css_variables
from tutelage.report.pictures import COLORS, LINE_COLOR, REFERENCE_COLOR, SHARES, TEXT_COLOR, missing_glyphs_unsaid

# What stands for the colours that figures are drawn with; other colours stay as they are.
VARIABLES = {
    "#000000": "ink",
    TEXT_COLOR: "ink",
    REFERENCE_COLOR: "soft",
    LINE_COLOR: "rule",
    "#b0b0b0": "rule",  # of matplotlib's grid
    COLORS[0]: "accent",
}
IMAGE_DPI = 200  # of what stays pixels in the SVG
SETTINGS: Any = {"svg.fonttype": "none", "svg.hashsalt": "tutelage", "savefig.transparent": True}
STYLE = (
    f"<style>:root {{ {css_variables(LIGHT)} }} text {{ fill: var(--ink); }} "
    f"@media (prefers-color-scheme: dark) {{ :root {{ {css_variables(DARK)} }} "
    f"[id={SHARES}] {{ filter: brightness(1.5); }} }}</style>"  # what is faint on white is fainter on black
)


def encode_figure(figure: Figure) -> str:
    """Return a figure as SVG in a ``data:`` address for an ``img``, and close it.

    Text stays text, so that the browser finds the characters of any script; the same figure gives the same SVG.
    """
    file = io.BytesIO()
    with plt.rc_context(SETTINGS), missing_glyphs_unsaid():
        figure.savefig(file, format="svg", bbox_inches="tight", dpi=IMAGE_DPI, metadata={"Date": None})
    plt.close(figure)
    text = file.getvalue().decode()
    for colour, name in VARIABLES.items():
        text = re.sub(rf"(fill|stroke): {colour}\b", rf"\1: var(--{name})", text)
    text = text.replace("stroke: #ffffff", "stroke: var(--paper)")  # around dots; white text is on dark cells
    text = re.sub(r"(<svg[^>]*>)", lambda match: match[1] + STYLE, text, count=1)
    return f"data:image/svg+xml;base64,{base64.b64encode(text.encode()).decode()}"
