"""The page of networks on another test set, and the table of their predictions beside it."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import numpy as np

from tutelage import __version__
from tutelage.config import DataConfig
from tutelage.inference.evaluate import Evaluation
from tutelage.report.answer_parts import make_answers
from tutelage.report.asked import name_data
from tutelage.report.mistakes import make_mistakes
from tutelage.report.templating import Number, write_page
from tutelage.runs import RunFolder
from tutelage.runs.predictions import write_predictions
from tutelage.storage import digest
from tutelage.terminal.intervals import CONFIDENCE_LEVEL, format_percent

PREDICTIONS = "predictions.parquet"
MAX_NAME_LENGTH = 40  # characters of the data's name in that of a page's folder
DIGEST_LENGTH = 8


@dataclass(frozen=True)
class Measurement:
    """Networks on another test set, with all that makes one page differ from another.

    Attributes:
        runs: whose networks answered as one.
        stage: whose network of each run was meant; None for the last one.
        task: of networks with several the one that was meant; None where there is one.
        config: of the data.
        evaluation: what was measured.
        warnings: what is to be known before the numbers are believed.
        own_accuracy: the accuracy on the run's own test set; None where it is not known.
    """

    runs: Sequence[RunFolder]
    stage: str | None
    task: int | None
    config: DataConfig
    evaluation: Evaluation
    warnings: Sequence[str]
    own_accuracy: float | None

    @property
    def folder(self) -> Path:
        """The folder of the page, below the report of the first run."""
        return self.runs[0].report / name_page(self.runs, self.stage, self.task, self.config)

    @property
    def page(self) -> Path:
        """The page."""
        return self.folder / "index.html"

    @property
    def predictions(self) -> Path:
        """The table of the predictions."""
        return self.folder / PREDICTIONS


def name_page(runs: Sequence[RunFolder], stage: str | None, task: int | None, config: DataConfig) -> str:
    """Return the name of a page's folder: the data's name, and a digest of all that may change a number on it."""
    root = None if config.root is None else str(Path(config.root).expanduser().resolve())
    data = config.model_dump(exclude={"num_workers"}) | {"root": root}
    others = sorted(str(folder.path.resolve()) for folder in runs[1:])
    name = re.sub(r"[^\w.-]+", "-", name_data(config))[:MAX_NAME_LENGTH]
    return f"evaluate-{name}-{digest([data, stage, task, others])[:DIGEST_LENGTH]}"


def write_measurement(measured: Measurement, command: str) -> None:
    """Write the page and the table of the predictions; ``command`` makes them again."""
    evaluation, config = measured.evaluation, measured.config
    write_predictions(measured.predictions, evaluation.predictions, evaluation.classes, evaluation.source)
    facts = {
        "data": config.root or name_data(config),
        "runs": ", ".join(str(folder.path) for folder in measured.runs),
        "predictions": str(measured.predictions),
        "command": command,
        "made": f"{datetime.now().astimezone():%Y-%m-%d %H:%M} by tutelage {__version__}",
    }
    names = [folder.path.name for folder in measured.runs]
    heading, warnings = name_data(config), measured.warnings
    write_evaluation_page(measured.page, evaluation, heading, names, warnings, measured.own_accuracy, facts)


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
    write_page(
        file,
        "evaluation.html.j2",
        heading=heading,
        runs=runs,
        warnings=warnings,
        numbers=_list_numbers(evaluation, own_accuracy),
        answers=make_answers(evaluation.predictions, evaluation.classes),
        tiles=make_mistakes(evaluation.predictions, evaluation.classes, evaluation.source),
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
