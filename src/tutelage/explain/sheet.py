"""A sheet of image tiles and text, laid out to the pixel, so that the pixels of small images stay what they are."""

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

DPI = 128  # a power of two: pixels over DPI are exact, and no tile falls between two pixels
POINTS = 72 / DPI  # a pixel in points
WIDTH, MARGIN = 1776, 36
LABELS = 104  # pixels left of a grid, for what its rows are called
BETWEEN = 44  # pixels above a section
TITLE, HEADING, TEXT, CAPTION = 26, 19, 14, 12  # pixels of a line of letters
LEADING = 1.45
CHARACTERS = 215  # of TEXT in a line of the whole width
WHITE, FRAME = 255, 205
INK, FAINT = "#222222", "#666666"


@dataclass(frozen=True)
class Grid:
    """Images in rows, with what rows and columns are called.

    Attributes:
        rows: a label and the images (H, W, C) uint8 of each row.
        side: the pixels that an image may take each way.
        heads: what stands above each column.
        feet: what stands below each column; may have several lines.
        marked: a head that is to be seen first.
    """

    rows: Sequence[tuple[str, Sequence[np.ndarray]]]
    side: int
    heads: Sequence[str] = ()
    feet: Sequence[str] = ()
    marked: str = ""


@dataclass(frozen=True)
class Section:
    """A part of the sheet: its title, lines on it, and rows of grids that stand abreast."""

    title: str
    told: Sequence[str]
    grids: Sequence[Sequence[Grid]] = ()


def fitted(image: np.ndarray, side: int) -> np.ndarray:
    """Return an image (H, W, C) as RGB that fits a square; a small one by whole multiples: pixels stay squares."""
    import cv2

    longest = max(image.shape[:2])
    if side >= 2 * longest:
        image = image.repeat(side // longest, axis=0).repeat(side // longest, axis=1)
    elif longest != side:
        shape = [max(1, round(length * side / longest)) for length in image.shape[1::-1]]
        shrinks = longest > side
        image = cv2.resize(image, shape, interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_CUBIC)
    rgb: np.ndarray = np.broadcast_to(image.reshape(*image.shape[:2], -1), (*image.shape[:2], 3))
    return rgb


@dataclass
class _Page:
    """What was laid out so far: tiles and texts at their pixels, from the top left."""

    y: int = MARGIN
    tiles: list[tuple[int, int, np.ndarray]] = field(default_factory=list)
    texts: list[tuple[float, float, str, dict[str, Any]]] = field(default_factory=list)

    def text(self, x: float, y: float, words: str, pixels: int = CAPTION, **style: Any) -> int:
        """Add lines of text from (x, y) down and return where they end."""
        style = {"color": INK, "fontsize": pixels * POINTS, "parse_math": False, **style}
        lines = words.split("\n")
        for number, line in enumerate(lines):
            self.texts.append((x, y + round(pixels * (1 + LEADING * number)), line, style))
        return round(y + pixels * LEADING * len(lines))

    def line(self, words: str, pixels: int, **style: Any) -> None:
        """Add a line across the page, broken where it is too long."""
        for part in textwrap.wrap(words, CHARACTERS * TEXT // pixels):
            self.y = self.text(MARGIN, self.y, part, pixels, **style)

    def abreast(self, grids: Sequence[Grid]) -> None:
        """Add grids side by side."""
        room = (WIDTH - 2 * MARGIN) // len(grids)
        top = self.y
        bottoms = []
        for place, grid in enumerate(grids):
            bottoms.append(self._grid(grid, MARGIN + place * room, top))
        self.y = max(bottoms)

    def _grid(self, grid: Grid, left: int, y: int) -> int:
        """Add a grid with its corner at (left, y) and return where it ends."""
        pitch = grid.side + 2 + max(6, grid.side // 12)
        centres = [
            left + LABELS + pitch * column + grid.side / 2 for column in range(max(len(r) for _, r in grid.rows))
        ]
        tops = [y]
        for x, head in zip(centres, grid.heads, strict=False):
            weight = "bold" if head == grid.marked else "normal"
            tops.append(self.text(x, y, head, ha="center", weight=weight))
        y = max(tops) + 2
        for label, images in grid.rows:
            tiles = [_framed(fitted(image, grid.side)) for image in images]
            height = max(len(tile) for tile in tiles)
            lines = label.count("\n") + 1
            middle = y + (height - round(lines * CAPTION * LEADING)) / 2
            self.text(left + LABELS - 10, middle, label, ha="right")
            for x, tile in zip(centres, tiles, strict=False):
                self.tiles.append((round(x - tile.shape[1] / 2), y + (height - len(tile)) // 2, tile))
            y += height + 6
        return max([self.text(x, y, foot, ha="center") for x, foot in zip(centres, grid.feet, strict=False)] + [y])


def _framed(tile: np.ndarray) -> np.ndarray:
    return np.pad(tile, ((1, 1), (1, 1), (0, 0)), constant_values=FRAME)


def draw(title: str, told: Sequence[str], sections: Sequence[Section]) -> Figure:
    """Draw a sheet of sections below each other."""
    page = _Page()
    page.line(title, TITLE, weight="bold")
    for words in told:
        page.line(words, TEXT, color=FAINT)
    for section in sections:
        page.y += BETWEEN
        page.line(section.title, HEADING, weight="bold")
        for words in section.told:
            page.line(words, TEXT, color=FAINT)
        for grids in section.grids:
            page.y += CAPTION
            page.abreast(grids)
    height = page.y + MARGIN
    canvas = np.full((height, WIDTH, 3), WHITE, dtype=np.uint8)
    for x, y, tile in page.tiles:
        canvas[y : y + tile.shape[0], x : x + tile.shape[1]] = tile
    figure = Figure(figsize=(WIDTH / DPI, height / DPI), dpi=DPI)
    figure.figimage(canvas, origin="upper")
    for across, down, words, style in page.texts:
        figure.text(across / WIDTH, 1 - down / height, words, **style)
    return figure


def save(figure: Figure, file: Path) -> None:
    """Write a sheet as PNG, whole or absent."""
    from tutelage.storage import write_whole

    write_whole(file, lambda out: figure.savefig(out, format="png", dpi=DPI))
