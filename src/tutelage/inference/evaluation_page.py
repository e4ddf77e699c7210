"""The page of networks on another test set."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from tutelage.inference.evaluate import Evaluation
from tutelage.models.evaluation import CALIBRATION_BINS
from tutelage.report import pictures
from tutelage.report.round_pictures import MIN_BIN_IMAGES, draw_reliability
from tutelage.report.templating import (
    Column,
    Drawing,
    Number,
    Share,
    Table,
    Tile,
    encode_image,
    is_small,
    write_page,
)
from tutelage.report.vector import encode_figure
from tutelage.terminal.intervals import CONFIDENCE_LEVEL, NO_VALUE, format_percent

MISTAKES = 24  # that are shown
CONFUSIONS = 10
MAX_CLASSES_IN_COLUMN = 12  # of a confusion matrix that can be read in half the page's width
CLASS_COLUMNS = (Column("class", is_text=True), Column("images"), Column("recall"), Column("precision"))
CONFUSION_COLUMNS = (
    Column("shows", is_text=True),
    Column("taken for", is_text=True),
    Column("images"),
    Column("share"),
)
CONFUSION_CAPTION = (
    "Images by true class (rows) and predicted class (columns). The diagonal is correct; a darker cell is a larger "
    "share of its row."
)
CALIBRATION_CAPTION = (
    "How often answers are right (upwards) by how confident they are (to the right). On the dashed line they are right "
    "as often as they claim; below it they are too sure of themselves. A larger dot is more images, a faint one fewer "
    f"than {MIN_BIN_IMAGES}."
)


def write_evaluation_page(
    file: Path,
    evaluation: Evaluation,
    heading: str,
    runs: Sequence[str],
    warnings: Sequence[str],
    own_accuracy: float | None,
    facts: dict[str, str],
) -> None:
    """Write the page, whole or not at all.

    Args:
        file: the page.
        evaluation: what it shows.
        heading: the name of the data.
        runs: the names of the runs whose networks answered.
        warnings: what is to be known before the numbers are believed.
        own_accuracy: the accuracy on the run's own test set; None where it is not known.
        facts: how the page was made, by name.
    """
    confusions = Table(
        "largest confusions",
        CONFUSION_COLUMNS,
        [
            (each.truth, each.predicted, f"{each.count:,}", Share(each.count / each.images))
            for each in evaluation.find_confusions(CONFUSIONS)
        ],
    )
    write_page(
        file,
        "evaluation.html.j2",
        heading=heading,
        runs=runs,
        warnings=warnings,
        numbers=_list_numbers(evaluation, own_accuracy),
        classes=_make_class_table(evaluation),
        confusions=confusions,
        drawings=_draw(evaluation),
        tiles=_make_tiles(evaluation),
        wrong=evaluation.images - int(np.trace(evaluation.confusion)),
        images=evaluation.images,
        facts=facts,
    )


def _list_numbers(evaluation: Evaluation, own_accuracy: float | None) -> list[Number]:
    value, low, high = evaluation.accuracy
    metrics, confidence = evaluation.metrics, f"{format_percent(evaluation.confidence)} confident on average"
    interval = f"{format_percent(low)} to {format_percent(high)}, Wilson's {CONFIDENCE_LEVEL:.0%} interval"
    numbers = [Number("accuracy", format_percent(value), interval)]
    if own_accuracy is not None:
        difference = f"{100 * (value - own_accuracy):+.1f} points here"
        numbers.append(Number("own test set of the run", format_percent(own_accuracy), difference))
    classes = len(evaluation.classes) - len(evaluation.missing)
    return [
        *numbers,
        Number("balanced accuracy", format_percent(metrics["balanced_accuracy"]), "mean recall of the classes"),
        Number("calibration error", format_percent(metrics["calibration_error"]), confidence),
        Number("images", f"{evaluation.images:,}", f"of {classes:,} {'class' if classes == 1 else 'classes'}"),
    ]


def _make_class_table(evaluation: Evaluation) -> Table:
    rows = [
        (
            score.name,
            f"{score.images:,}",
            NO_VALUE if score.recall is None else Share(score.recall),
            NO_VALUE if score.precision is None else Share(score.precision),
        )
        for score in evaluation.score_classes()
    ]
    return Table("per class", CLASS_COLUMNS, rows)


def _draw(evaluation: Evaluation) -> list[Drawing]:
    confusion = pictures.draw_confusion_matrix(evaluation.confusion, evaluation.classes)
    calibration = draw_reliability({"all images": count_by_confidence(evaluation)})
    accuracy, error = format_percent(evaluation.accuracy.value), evaluation.metrics["calibration_error"]
    return [
        Drawing(
            "Confusion",
            CONFUSION_CAPTION,
            encode_figure(confusion),
            f"Confusion matrix of {len(evaluation.classes)} classes; {accuracy} of the images are on its diagonal.",
            is_wide=len(evaluation.classes) > MAX_CLASSES_IN_COLUMN,
        ),
        Drawing(
            "Calibration",
            CALIBRATION_CAPTION,
            encode_figure(calibration),
            f"Reliability diagram; the expected calibration error is {format_percent(error)}.",
        ),
    ]


def count_by_confidence(evaluation: Evaluation) -> dict[str, np.ndarray]:
    """Return what ``draw_reliability`` draws: images and correct ones in bins of equal width of confidence."""
    probabilities = evaluation.predictions.probabilities
    edges = np.linspace(0.0, 1.0, CALIBRATION_BINS + 1)
    confidence = probabilities.max(axis=1)
    is_correct = probabilities.argmax(axis=1) == evaluation.predictions.labels
    known, right = (np.histogram(part, edges)[0] for part in (confidence, confidence[is_correct]))
    return {"edges": edges, "known": known, "right": right}


def _make_tiles(evaluation: Evaluation) -> list[Tile]:
    """Return the most confident mistakes."""
    source, predictions = evaluation.source, evaluation.predictions
    tiles = []
    for position in evaluation.find_mistakes(MISTAKES).tolist():
        probabilities, index = predictions.probabilities[position], int(predictions.indices[position])
        predicted, image = int(probabilities.argmax()), source.images[index]
        lines = [
            f"{evaluation.classes[predicted]}, {probabilities[predicted]:.0%}",
            f"shows {evaluation.classes[predictions.labels[position]]}",
            *([source.names[index]] if source.has_file_names else []),
        ]
        tiles.append(Tile(encode_image(image), lines, is_small(image), is_wrong=True))
    return tiles
