"""Networks on another test set, as the terminal shows them."""

from collections.abc import Sequence

from rich.table import Table
from rich.text import Text

from tutelage.inference.evaluate import Evaluation
from tutelage.terminal.intervals import CONFIDENCE_LEVEL, format_accuracy, format_percent
from tutelage.terminal.table import print_uncut

MAX_CLASSES = 30  # that are shown
MAX_CONFUSIONS = 5


def print_evaluation(evaluation: Evaluation, warnings: Sequence[str], own_accuracy: float | None) -> None:
    """Print accuracy, classes, confusions and calibration.

    Args:
        evaluation: what is printed.
        warnings: what is to be known about the numbers.
        own_accuracy: the accuracy on the run's own test set; None where it is not known.
    """
    print(
        f"accuracy {format_accuracy(evaluation.accuracy)} on {evaluation.images:,} images; in brackets Wilson's "
        f"{CONFIDENCE_LEVEL:.0%} interval"
    )
    if own_accuracy is not None:
        print(f"on the run's own test set, without pictures that it has learned from: {format_percent(own_accuracy)}")
    scores = evaluation.score_classes()
    shown = scores
    if len(scores) > MAX_CLASSES:
        shown = sorted((s for s in scores if s.recall is not None), key=lambda s: s.recall or 0.0)[:MAX_CLASSES]
        print(f"the {len(shown)} classes with the lowest recall of {len(scores):,}; the page has all:")
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    table.add_column("class", no_wrap=True)
    for heading in ("images", "recall", "precision"):
        table.add_column(heading, justify="right", no_wrap=True)
    for score in shown:
        table.add_row(Text(score.name), f"{score.images:,}", *map(format_percent, (score.recall, score.precision)))
    print_uncut(table)
    for each in evaluation.find_confusions(MAX_CONFUSIONS):
        share = f"{each.count:,} of {each.images:,}, {format_percent(each.count / each.images)}"
        print(f"{each.truth} taken for {each.predicted}: {share}")
    print(
        f"calibration error {format_percent(evaluation.metrics['calibration_error'])}: "
        f"{format_percent(evaluation.confidence)} confident on average, right for "
        f"{format_percent(evaluation.accuracy.value)}"
    )
    for line in warnings:
        print(f"note: {line}")
