"""The parts of a page on a network's answers: its classes, what it takes for what, and how sure it is."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tutelage.data import Predictions
from tutelage.models import compute_confusion_matrix
from tutelage.report.answers import bin_by_confidence, find_confusions, score_classes
from tutelage.report.palette import LIGHT
from tutelage.report.panels import CALIBRATION_CAPTION, Panel, draw_reliability, lowest_confidence
from tutelage.report.templating import Column, Share, Table, encode_image
from tutelage.terminal.intervals import NO_VALUE

MAX_NAMED_CLASSES = 25  # of more a matrix is an image, one pixel a cell
MAX_CLASSES_IN_COLUMN = 10  # of a matrix that can be read in half the page's width
MAX_LYING_NAME = 4  # characters
SEARCHED_ROWS = 15  # more of them are searched
CONFUSIONS = 100
CELL_SHARE, WRONG_BASE = 48, 8  # percent of colour of a cell of all images; and of wrong ones, however few, at least
CONFUSION_CAPTION = "Images by true class (rows) and predicted class (columns). The diagonal is right."
CLASSES_NOTE = (
    "Recall: the share of the class's images that are recognised. Precision: the share of the answers with this class "
    "that are right."
)
CLASS_COLUMNS = (Column("class", is_text=True), Column("images"), Column("recall"), Column("precision"))
CONFUSION_COLUMNS = (
    Column("shows", is_text=True),
    Column("taken for", is_text=True),
    Column("images"),
    Column("share"),
)


@dataclass(frozen=True)
class MatrixCell:
    """A cell of a matrix: its text, how much of its colour it has, in percent, and what it says in words."""

    text: str
    strength: int
    title: str


@dataclass(frozen=True)
class Matrix:
    """A confusion matrix.

    Attributes:
        classes: the names of rows and columns.
        rows: the cells of each row; empty where there are so many classes that the matrix is an image.
        image: the matrix as a ``data:`` address where it is an image, one pixel a cell; else empty.
        alt: what it says.
    """

    classes: Sequence[str]
    rows: Sequence[Sequence[MatrixCell]]
    image: str
    alt: str

    @property
    def is_wide(self) -> bool:
        """Whether it needs the page's whole width."""
        return not self.image and len(self.classes) > MAX_CLASSES_IN_COLUMN

    @property
    def is_upright(self) -> bool:
        """Whether the names of columns are so long that they stand upright."""
        return max(map(len, self.classes)) > MAX_LYING_NAME


@dataclass(frozen=True)
class Answers:
    """What a page shows of a network's answers: its parts, and how they are read."""

    matrix: Matrix
    confusions: Table
    classes: Table
    calibration: Panel
    confusion_caption: str = CONFUSION_CAPTION
    classes_note: str = CLASSES_NOTE
    calibration_caption: str = CALIBRATION_CAPTION


def make_answers(predictions: Predictions, classes: Sequence[str]) -> Answers:
    """Return what a page shows of predictions with known labels."""
    confusion, bins = compute_confusion_matrix(predictions), bin_by_confidence(predictions)
    return Answers(
        make_matrix(confusion, classes),
        make_confusion_table(confusion, classes),
        make_class_table(confusion, classes),
        draw_reliability("test images", bins, lowest_confidence([(bins.edges, bins.known)])),
    )


def make_class_table(confusion: np.ndarray, classes: Sequence[str]) -> Table:
    """Return recall and precision of each class, by counts (C, C) of true (rows) and predicted classes."""
    rows = [
        (
            score.name,
            f"{score.images:,}",
            NO_VALUE if score.recall is None else Share(score.recall),
            NO_VALUE if score.precision is None else Share(score.precision),
        )
        for score in score_classes(confusion, classes)
    ]
    return Table("per class", CLASS_COLUMNS, rows, is_searchable=len(rows) > SEARCHED_ROWS)


def make_confusion_table(confusion: np.ndarray, classes: Sequence[str]) -> Table:
    """Return the largest confusions, by counts (C, C) of true (rows) and predicted classes."""
    rows = [
        (each.truth, each.predicted, f"{each.count:,}", Share(each.count / each.images))
        for each in find_confusions(confusion, classes, CONFUSIONS)
    ]
    return Table("largest confusions", CONFUSION_COLUMNS, rows, is_searchable=len(rows) > SEARCHED_ROWS)


def make_matrix(confusion: np.ndarray, classes: Sequence[str]) -> Matrix:
    """Return the matrix of counts (C, C): rows are true classes, columns predicted ones."""
    right = int(confusion.diagonal().sum())
    alt = f"Confusion matrix of {len(classes)} classes: {right:,} of {int(confusion.sum()):,} images are right."
    shares = confusion / np.maximum(1, confusion.sum(axis=1, keepdims=True))
    if len(classes) > MAX_NAMED_CLASSES:
        return Matrix(classes, (), _draw_matrix(shares), alt)
    rows = [
        [
            _make_cell(int(confusion[row, column]), float(shares[row, column]), truth, predicted, row == column)
            for column, predicted in enumerate(classes)
        ]
        for row, truth in enumerate(classes)
    ]
    return Matrix(classes, rows, "", alt)


def _make_cell(count: int, share: float, truth: str, predicted: str, is_right: bool) -> MatrixCell:
    if not count:
        return MatrixCell("", 0, "")
    strength = CELL_SHARE * share if is_right else WRONG_BASE + (CELL_SHARE - WRONG_BASE) * share
    return MatrixCell(f"{count:,}", round(strength), f"{truth} taken for {predicted}: {count:,}, {share:.1%}")


def _draw_matrix(shares: np.ndarray) -> str:
    """Return shares (C, C) as an image, one pixel a cell: a rare confusion is faint, and still to be seen."""
    is_right = np.eye(len(shares), dtype=bool)
    pixels = np.empty((*shares.shape, 4), dtype=np.uint8)
    for cells, name in ((is_right, "accent"), (~is_right, "bad")):
        pixels[cells, :3] = list(bytes.fromhex(LIGHT[name].removeprefix("#")))
    pixels[..., 3] = np.round(255 * np.sqrt(shares))
    return encode_image(pixels)
