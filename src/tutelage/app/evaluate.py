"""``tutelage evaluate``: finished runs on another test set, under shifts of their own, and several as one."""

import json
import shlex
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tutelage.app.arguments import STAGE_HELP, TASK_HELP, ArgumentParser
from tutelage.errors import UserError
from tutelage.runs import open_finished_run, open_tested_run, read_config

if TYPE_CHECKING:
    from tutelage.config import Shift
    from tutelage.inference.evaluate import FinishedRun
    from tutelage.inference.evaluation_page import Measurement

WORDS = "RUN... [data.root=FOLDER|TABLE] [shift=NAME,...] [OPTIONS]"
DESCRIPTION = """Measure finished runs on other pictures of their classes, under shifts of their test images, or as one.

  tutelage evaluate RUN data.root=last_week               a folder: CLASS/*.jpg, or test/CLASS/*.jpg
  tutelage evaluate RUN data.root=last_week.csv --json    a table: columns path and label
  tutelage evaluate RUN RUN2 data=mnist                   a public dataset; the mean of two runs' probabilities
  tutelage evaluate RUN shift=translate,crop              the run's own test images, moved or cropped
  tutelage evaluate RUN RUN2                              stored predictions of several runs as one
"""
EPILOG = """Further keys of other pictures: data.layout, data.limit, data.on_bad_image, data.num_workers.
Without shift= a run alone is measured under translate, crop, rotate and brightness.
"""


@dataclass(frozen=True)
class Request:
    """What a command asks for.

    Attributes:
        arguments: all of them, as typed.
        runs: the folders of the runs.
        overrides: ``KEY=VALUE``.
        config_dirs: users' own config folders.
        stage: whose network is meant; None for the last.
        task: of networks with several; None where there is one.
        as_json: print one JSON object.
    """

    arguments: Sequence[str]
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
    flags = make_parser().parse_intermixed_args(words)
    runs = [word for word in flags.words if "=" not in word or Path(word).is_dir()]
    overrides = [word for word in flags.words if word not in runs]
    return Request(arguments, runs, overrides, config_dirs, flags.stage, flags.task, flags.as_json)


def make_parser() -> ArgumentParser:
    """Return the parser of the command's arguments."""
    parser = ArgumentParser("evaluate", WORDS, DESCRIPTION, EPILOG)
    add = parser.add_argument
    add("words", nargs="*", metavar="RUN, KEY=VALUE", help="folders of finished runs; what they are measured on")
    add("--stage", metavar="NAME", help=f"{STAGE_HELP} (on other pictures)")
    add("--task", type=int, metavar="N", help=f"{TASK_HELP} (on other pictures)")
    add("--json", action="store_true", dest="as_json", help="print one JSON object (on other pictures)")
    add("--config-dir", action="append", metavar="DIR", help="a folder of options of your own")  # read before
    return parser


def evaluate_ensemble(names: Sequence[str]) -> None:
    """Print the test accuracy of finished runs, and that of the mean of their probabilities."""
    from tutelage.report.ensembles import combine_runs
    from tutelage.terminal.intervals import CONFIDENCE_LEVEL, format_accuracy, format_percent

    runs = [open_tested_run(name) for name in names]
    ensemble = combine_runs(runs)
    whole = "all as one"
    width = max(len(whole), *(len(folder.path.name) for folder, _ in runs))
    for (folder, _), accuracy in zip(runs, ensemble.accuracies, strict=True):
        print(f"{folder.path.name:<{width}}  {format_percent(accuracy)}")
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
    shifts, config = parse_shifts(options.get("shift")), read_config(folder, options.get("data.root"))
    from tutelage.data import DataRuntime, data_module
    from tutelage.report.curves import print_curve
    from tutelage.report.run_report import write_report
    from tutelage.report.shifts import measure_curve
    from tutelage.runs.torch_setup import available_threads, set_up_torch
    from tutelage.runs.weight_sources import check_run_data
    from tutelage.terminal.display import create_display

    set_up_torch(config.trainer.threads or available_threads(1))
    observer = create_display(sys.stderr.isatty())
    try:
        check_run_data(folder, record, config.data, observer.reading)
        data = data_module(config.data, DataRuntime(on_progress=observer.reading))
        observer.say(f"{len(data.splits.test):,} test images under {', '.join(shifts)}; shift=NAME measures one alone")
        for shift in shifts:
            curve = measure_curve(folder, record, data, shift)
            observer.end()
            print_curve(curve)
    finally:
        observer.end()
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
        measured = _measure(request, runs, observer.reading)
        from tutelage.inference.evaluation_page import write_measurement

        write_measurement(measured, shlex.join(["tutelage", "evaluate", *request.arguments]))
    finally:
        observer.end()
    if not request.as_json:
        from tutelage.inference.evaluation_text import print_evaluation

        print_evaluation(measured.evaluation, measured.warnings, measured.own_accuracy)
        print(f"page: {measured.page}")
        return
    config = measured.config
    where = {"runs": [str(folder.path) for folder, _ in runs], "dataset": config.target, "root": config.root}
    files = {"page": str(measured.page), "predictions": str(measured.predictions)}
    print(json.dumps({**where, **measured.evaluation.to_json(), "notes": measured.warnings, **files}, indent=2))


def _measure(
    request: Request, runs: "Sequence[FinishedRun]", on_progress: Callable[[str, float], None]
) -> "Measurement":
    """Return what the runs' networks answer."""
    from tutelage.data import DataRuntime
    from tutelage.inference.classifier import load_networks, set_up_inference
    from tutelage.inference.evaluate import evaluate_classifier, find_own_accuracy
    from tutelage.inference.evaluation_page import Measurement
    from tutelage.inference.other_data import compose_other_data, describe_own_data, read_evaluation_set

    stage, task = request.stage, request.task
    classifier = load_networks(request.runs, stage, task)
    set_up_inference(classifier)
    config = compose_other_data(classifier.data, request.overrides, request.config_dirs)
    runtime = DataRuntime(device=classifier.device, on_progress=on_progress, only_test=True)
    images = read_evaluation_set(config, runtime)
    evaluation = evaluate_classifier(classifier, images, on_progress)
    own = [line for folder, record in runs for line in describe_own_data(folder.path.name, record, images)]
    warnings = [*own, *evaluation.describe_classes(), *evaluation.notes]
    own_accuracy = find_own_accuracy(runs, stage, task)
    return Measurement([folder for folder, _ in runs], stage, task, config, evaluation, warnings, own_accuracy)
