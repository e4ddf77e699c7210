"""A sheet of image tiles and text, laid out to the pixel, so that the pixels of small images stay unchanged."""

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from tutelage.report.pictures import write_png

DPI = 128  # a power of two: pixels over DPI are exact, and no tile falls between two pixels
POINTS = 72 / DPI  # a pixel in points
WIDTH, MARGIN = 1776, 36
ROW_LABELS = 104  # pixels left of a grid, for the labels of its rows
SECTION_GAP = 44  # pixels above a section
TITLE, HEADING, TEXT, CAPTION = 26, 19, 14, 12  # font sizes in pixels
LINE_SPACING = 1.45  # in font sizes
CHARACTERS = 215  # in a line of TEXT of the whole width
WHITE, FRAME = 255, 205
DARK_GREY, LIGHT_GREY = "#222222", "#666666"


@dataclass(frozen=True)
class Grid:
    """Rows of images, with labels of rows and columns.

    Attributes:
        rows: a label and the images (H, W, C) uint8 of each row.
        side: the largest height and width of an image, in pixels.
        heads: the text above each column.
        feet: the text below each column; may have several lines.
        marked: the head that is printed in bold.
    """

    rows: Sequence[tuple[str, Sequence[np.ndarray]]]
    side: int
    heads: Sequence[str] = ()
    feet: Sequence[str] = ()
    marked: str = ""


@dataclass(frozen=True)
class Section:
    """A part of the sheet: its title, lines of text, and rows of grids; the grids of a row stand side by side."""

    title: str
    lines: Sequence[str]
    grids: Sequence[Sequence[Grid]] = ()


def fit_image(image: np.ndarray, side: int) -> np.ndarray:
    """Return an image (H, W, C) as RGB, resized to fit a square; a small one by a whole factor: pixels stay squares."""
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
    """The tiles and texts that were laid out so far, at their pixels from the top left."""

    y: int = MARGIN
    tiles: list[tuple[int, int, np.ndarray]] = field(default_factory=list)
    texts: list[tuple[float, float, str, dict[str, Any]]] = field(default_factory=list)

    def add_text(self, x: float, y: float, words: str, pixels: int = CAPTION, **style: Any) -> int:
        """Add lines of text from (x, y) down and return the y below them."""
        style = {"color": DARK_GREY, "fontsize": pixels * POINTS, "parse_math": False, **style}
        lines = words.split("\n")
        for number, line in enumerate(lines):
            self.texts.append((x, y + round(pixels * (1 + LINE_SPACING * number)), line, style))
        return round(y + pixels * LINE_SPACING * len(lines))

    def add_line(self, words: str, pixels: int, **style: Any) -> None:
        """Add a line across the page, broken where it is too long."""
        for part in textwrap.wrap(words, CHARACTERS * TEXT // pixels):
            self.y = self.add_text(MARGIN, self.y, part, pixels, **style)

    def add_grids(self, grids: Sequence[Grid]) -> None:
        """Add grids side by side."""
        width = (WIDTH - 2 * MARGIN) // len(grids)
        self.y = max(self._add_grid(grid, MARGIN + n * width, self.y) for n, grid in enumerate(grids))

    def _add_grid(self, grid: Grid, left: int, y: int) -> int:
        """Add a grid with its top left corner at (left, y) and return the y below it."""
        pitch = grid.side + 2 + max(6, grid.side // 12)
        columns = max(len(images) for _, images in grid.rows)
        centres = [left + ROW_LABELS + pitch * column + grid.side / 2 for column in range(columns)]
        tops = [y]
        for x, head in zip(centres, grid.heads, strict=False):
            weight = "bold" if head == grid.marked else "normal"
            tops.append(self.add_text(x, y, head, ha="center", weight=weight))
        y = max(tops) + 2
        for label, images in grid.rows:
            tiles = [_add_frame(fit_image(image, grid.side)) for image in images]
            height = max(len(tile) for tile in tiles)
            lines = label.count("\n") + 1
            middle = y + (height - round(lines * CAPTION * LINE_SPACING)) / 2
            self.add_text(left + ROW_LABELS - 10, middle, label, ha="right")
            for x, tile in zip(centres, tiles, strict=False):
                self.tiles.append((round(x - tile.shape[1] / 2), y + (height - len(tile)) // 2, tile))
            y += height + 6
        return max([self.add_text(x, y, foot, ha="center") for x, foot in zip(centres, grid.feet, strict=False)] + [y])


def _add_frame(tile: np.ndarray) -> np.ndarray:
    return np.pad(tile, ((1, 1), (1, 1), (0, 0)), constant_values=FRAME)


def draw_sheet(title: str, lines: Sequence[str], sections: Sequence[Section]) -> Figure:
    """Draw a sheet: a title, lines of text, and sections below each other."""
    page = _Page()
    page.add_line(title, TITLE, weight="bold")
    for line in lines:
        page.add_line(line, TEXT, color=LIGHT_GREY)
    for section in sections:
        page.y += SECTION_GAP
        page.add_line(section.title, HEADING, weight="bold")
        for line in section.lines:
            page.add_line(line, TEXT, color=LIGHT_GREY)
        for grids in section.grids:
            page.y += CAPTION
            page.add_grids(grids)
    height = page.y + MARGIN
    canvas = np.full((height, WIDTH, 3), WHITE, dtype=np.uint8)
    for x, y, tile in page.tiles:
        canvas[y : y + tile.shape[0], x : x + tile.shape[1]] = tile
    figure = Figure(figsize=(WIDTH / DPI, height / DPI), dpi=DPI)
    figure.figimage(canvas, origin="upper")
    for text_x, text_y, words, style in page.texts:
        figure.text(text_x / WIDTH, 1 - text_y / height, words, **style)
    return figure


def save_sheet(figure: Figure, file: Path) -> None:
    """Write a sheet as a PNG file, whole or not at all."""
    write_png(figure, file, dpi=DPI)
