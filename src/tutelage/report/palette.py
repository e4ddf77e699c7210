"""The colours of pages and of the drawings in them, for light and for dark surroundings."""

from collections.abc import Mapping

LIGHT = {
    "paper": "#ffffff",
    "panel": "#f4f6f8",
    "wash": "#e8f1fa",  # behind the most important number
    "ink": "#1b2026",
    "soft": "#56616d",  # of what is read second
    "line": "#d9dfe5",
    "rule": "#aab3bd",  # of lines in drawings
    "accent": "#0a5aa0",
    "amber": "#c27c0e",
    "bad": "#b3261e",
    "good": "#2a7a2a",
}
DARK = {
    "paper": "#14171b",
    "panel": "#1d2127",
    "wash": "#17293a",
    "ink": "#e7eaee",
    "soft": "#9ea8b3",
    "line": "#343b44",
    "rule": "#59636e",
    "accent": "#74b6f2",
    "amber": "#e0a64a",
    "bad": "#ff8f85",
    "good": "#7cc67c",
}

# Of lines in charts: Okabe and Ito's, safe for colour-blind readers; on black the same hues, lighter.
LINES_LIGHT = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#8a6d00", "#56b4e9", "#7b4fa3", "#5f6a72")
LINES_DARK = ("#5ab0ea", "#ff8c42", "#2fcf9f", "#e8a3c8", "#e0c04a", "#a5dbff", "#bd9be0", "#b3bcc4")


def css_variables(colours: Mapping[str, str]) -> str:
    """Return colours as custom properties of CSS, such as ``--ink: #1b2026;``."""
    return " ".join(f"--{name}: {colour};" for name, colour in colours.items())
