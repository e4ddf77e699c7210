"""``tutelage evaluate``: finished runs on another test set, under shifts of their own, and several as one."""

import json
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tutelage.app.arguments import ArgumentParser
from tutelage.errors import UserError
from tutelage.runs import RunFolder, is_tested, main_stage_name, open_finished_run, open_tested_run, read_config

if TYPE_CHECKING:
    from tutelage.config import DataConfig, Shift
    from tutelage.inference.evaluate import Evaluation

Run = tuple[RunFolder, Mapping[str, Any]]  # a finished run's folder, and its ledger

PREDICTIONS = "predictions.parquet"
MAX_NAME_LENGTH = 40  # characters of the data's name in that of a page's folder
DIGEST_LENGTH = 8
MAX_CLASSES = 30  # that the terminal shows
MAX_CONFUSIONS = 5
NO_VALUE = "-"


@dataclass(frozen=True)
class Request:
    """What a command asks for.

    Attributes:
        runs: the folders of the runs, as typed.
        overrides: ``KEY=VALUE``.
        config_dirs: users' own config folders.
        stage: whose network is meant; None for the last.
        task: of networks with several; None where there is one.
        as_json: print one JSON object.
    """

    runs: Sequence[str]
    overrides: Sequence[str]
    config_dirs: Sequence[str]
    stage: str | None
    task: int | None
    as_json: bool

    @property
    def values(self) -> dict[str, str]:
        """The values of the overrides, by key."""
        return dict(override.split("=", 1) for override in self.overrides)


def evaluate(arguments: Sequence[str]) -> None:
    """Measure finished runs as the arguments of the command say, and print what was measured.

    Raises:
        UserError: there are no such runs, or the arguments ask for what there is not.
    """
    request = parse_arguments(arguments)
    if "shift" not in request.values and request.values.keys() & {"data", "data.root"}:
        evaluate_elsewhere(request)
    elif request.stage is not None or request.task is not None or request.as_json:
        raise UserError("--stage, --task and --json go with another test set: give data.root=FOLDER or data.root=TABLE")
    elif len(request.runs) > 1 and not request.overrides:
        evaluate_ensemble(request.runs)
    else:
        evaluate_shifts(request)


def parse_arguments(arguments: Sequence[str]) -> Request:
    """Return what the arguments of the command ask for.

    Raises:
        UserError: they cannot be read.
    """
    from tutelage.config.compose import split_config_dirs

    words, config_dirs = split_config_dirs(arguments)
    parser = ArgumentParser(prog="tutelage evaluate", add_help=False, allow_abbrev=False)
    parser.add_argument("--stage")
    parser.add_argument("--task", type=int)
    parser.add_argument("--json", action="store_true", dest="as_json")
    parser.add_argument("words", nargs="*")
    flags = parser.parse_intermixed_args(words)
    runs = [word for word in flags.words if "=" not in word or Path(word).is_dir()]
    overrides = [word for word in flags.words if word not in runs]
    return Request(runs, overrides, config_dirs, flags.stage, flags.task, flags.as_json)


def evaluate_ensemble(names: Sequence[str]) -> None:
    """Print the test accuracy of finished runs, and that of the mean of their probabilities."""
    from tutelage.report.ensembles import combine_runs
    from tutelage.terminal.intervals import CONFIDENCE_LEVEL, format_accuracy

    runs = [open_tested_run(name) for name in names]
    ensemble = combine_runs(runs)
    whole = "all as one"
    width = max(len(whole), *(len(folder.path.name) for folder, _ in runs))
    for (folder, _), accuracy in zip(runs, ensemble.accuracies, strict=True):
        print(f"{folder.path.name:<{width}}  {100 * accuracy:.1f} %")
    print(f"{whole:<{width}}  {format_accuracy(ensemble.interval)}")
    print(f"Test: {ensemble.images:,} images; in brackets Wilson's {CONFIDENCE_LEVEL:.0%} interval over these images.")


def evaluate_shifts(request: Request) -> None:
    """Test a finished run under shifts of its test images, print the accuracies, and add the curves to its report."""
    options = request.values
    if len(request.runs) != 1:
        raise UserError("evaluate needs one run's folder: tutelage evaluate outputs/EXPERIMENT/RUN shift=translate")
    if unknown := set(options) - {"shift", "data.root"}:
        raise UserError(
            f"{min(unknown)}: unknown option; evaluate takes shift=NAME,... and data.root=FOLDER, and for another test "
            "set data=OPTION, too"
        )
    folder, record = open_tested_run(request.runs[0])
    shifts, config = parse_shifts(options.get("shift")), read_config(folder)
    if "data.root" in options:
        data_config = config.data.model_copy(update={"root": options["data.root"]})
        config = config.model_copy(update={"data": data_config})
    from tutelage.data import data_module
    from tutelage.report.curves import print_curve
    from tutelage.report.run_report import write_report
    from tutelage.report.shifts import measure_curve

    data = data_module(config.data)
    for shift in shifts:
        print_curve(measure_curve(folder, record, data, shift))
    write_report(folder, config)
    print(f"report: {folder.report / 'index.html'}")


def parse_shifts(names: str | None) -> "Sequence[Shift]":
    """Return the shifts that ``shift=...`` names; all of them for None."""
    from tutelage.config import SHIFTS

    if names is None:
        return SHIFTS
    unknown = sorted(set(names.split(",")) - set(SHIFTS))
    if unknown:
        raise UserError(f"shift={unknown[0]}: no such shift; allowed are {', '.join(SHIFTS)}")
    return [shift for shift in SHIFTS if shift in names.split(",")]


def evaluate_elsewhere(request: Request) -> None:
    """Test finished runs on another test set, print the numbers, and write a page below the report of the first."""
    from tutelage.terminal.display import create_display

    runs = [open_finished_run(name) for name in request.runs]
    if not runs:
        raise UserError("evaluate needs a run's folder: tutelage evaluate outputs/EXPERIMENT/RUN data.root=FOLDER")
    if len({folder.path.resolve() for folder, _ in runs}) < len(runs):
        raise UserError("evaluate takes each run once: the same one is named twice")
    observer = create_display(sys.stderr.isatty())
    observer.loading()
    try:
        evaluation, config, warnings = _measure(request, runs, observer.reading)
        page = _write_files(request, runs, evaluation, config, warnings)
    finally:
        observer.end()
    names = [str(folder.path) for folder, _ in runs]
    if request.as_json:
        where = {"runs": names, "dataset": config.target, "root": config.root}
        files = {"page": str(page), "predictions": str(page.with_name(PREDICTIONS))}
        print(json.dumps({**where, **evaluation.to_json(), "notes": warnings, **files}, indent=2))
        return
    print_evaluation(evaluation, warnings, find_own_accuracy(request, runs))
    print(f"page: {page}")


def _measure(
    request: Request, runs: Sequence[Run], on_progress: Callable[[str, float], None]
) -> "tuple[Evaluation, DataConfig, list[str]]":
    """Return what the runs' networks answer, the config of the data, and what is to be known about the numbers."""
    from tutelage.data import DataRuntime
    from tutelage.inference.classifier import load_networks
    from tutelage.inference.evaluate import describe_own_data, evaluate_classifier, read_evaluation_set
    from tutelage.inference.test_data import compose_test_data

    classifier = load_networks(request.runs, request.stage, request.task)
    config = compose_test_data(classifier.data, request.overrides, request.config_dirs)
    runtime = DataRuntime(device=classifier.device, on_progress=on_progress, only_test=True)
    images = read_evaluation_set(config, runtime)
    evaluation = evaluate_classifier(classifier, images, on_progress)
    own = [line for folder, record in runs for line in describe_own_data(folder.path.name, record, images)]
    return evaluation, config, [*own, *evaluation.describe_classes(), *evaluation.notes]


def find_own_accuracy(request: Request, runs: Sequence[Run]) -> float | None:
    """Return the accuracy of the one network that is meant on its run's own test set; None where there is none."""
    (_, record), *others = runs
    if others or request.task is not None or not is_tested(record):
        return None
    name = main_stage_name(record) if request.stage is None else request.stage
    entry: Mapping[str, Any] = next(entry for entry in record["stages"] if entry["name"] == name)
    accuracy: float | None = entry["result"].get("test/accuracy")
    return accuracy


def _write_files(
    request: Request,
    runs: Sequence[Run],
    evaluation: "Evaluation",
    config: "DataConfig",
    warnings: Sequence[str],
) -> Path:
    """Write the page and the table of the predictions below the report of the first run; return the page."""
    from tutelage import __version__
    from tutelage.inference.evaluation_page import write_evaluation_page
    from tutelage.runs.predictions import write_predictions

    folder = runs[0][0].report / name_page(request, runs, config)
    write_predictions(folder / PREDICTIONS, evaluation.predictions, evaluation.classes, evaluation.source)
    facts = {
        "data": config.root or config.target.rpartition(".")[2],
        "runs": ", ".join(str(folder.path) for folder, _ in runs),
        "predictions": str(folder / PREDICTIONS),
        "command": " ".join(["tutelage evaluate", *request.runs, *request.overrides]),
        "made": f"{datetime.now().astimezone():%Y-%m-%d %H:%M} by tutelage {__version__}",
    }
    page = folder / "index.html"
    names = [folder.path.name for folder, _ in runs]
    heading = Path(config.root).name if config.root else config.target.rpartition(".")[2]
    write_evaluation_page(page, evaluation, heading, names, warnings, find_own_accuracy(request, runs), facts)
    return page


def name_page(request: Request, runs: Sequence[Run], config: "DataConfig") -> str:
    """Return the name of a page's folder: the data's name, and a digest of all that makes another page."""
    from tutelage.storage import digest

    root = None if config.root is None else str(Path(config.root).expanduser().resolve())
    others = sorted(str(folder.path.resolve()) for folder, _ in runs[1:])
    parts = [config.target, root, config.layout, config.limit, request.stage, request.task, others]
    name = re.sub(r"[^\w.-]+", "-", Path(root).name if root else config.target.rpartition(".")[2])[:MAX_NAME_LENGTH]
    return f"evaluate-{name}-{digest(parts)[:DIGEST_LENGTH]}"


def print_evaluation(evaluation: "Evaluation", warnings: Sequence[str], own_accuracy: float | None) -> None:
    """Print accuracy, classes, confusions and calibration."""
    from rich.table import Table
    from rich.text import Text

    from tutelage.terminal.intervals import CONFIDENCE_LEVEL, format_accuracy
    from tutelage.terminal.table import print_uncut

    print(
        f"accuracy {format_accuracy(evaluation.accuracy)} on {evaluation.images:,} images; in brackets Wilson's "
        f"{CONFIDENCE_LEVEL:.0%} interval"
    )
    if own_accuracy is not None:
        print(f"on the run's own test set it was {100 * own_accuracy:.1f} %")
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
        table.add_row(Text(score.name), f"{score.images:,}", *map(_format_share, (score.recall, score.precision)))
    print_uncut(table)
    for each in evaluation.find_confusions(MAX_CONFUSIONS):
        share = f"{each.count:,} of {each.images:,}, {100 * each.count / each.images:.1f} %"
        print(f"{each.truth} taken for {each.predicted}: {share}")
    print(
        f"calibration error {100 * evaluation.metrics['calibration_error']:.1f} %: "
        f"{100 * evaluation.confidence:.1f} % confident on average, right for {100 * evaluation.accuracy.value:.1f} %"
    )
    for line in warnings:
        print(f"note: {line}")


def _format_share(share: float | None) -> str:
    return NO_VALUE if share is None else f"{100 * share:.1f} %"
