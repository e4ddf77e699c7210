"""``tutelage predict``: its arguments, and what it says beside the rows. torch is imported once they are understood."""

import argparse
import io
import os
import re
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from tutelage.app.arguments import STAGE_HELP, TASK_HELP, ArgumentParser
from tutelage.errors import BY_SIGNAL, UserError
from tutelage.runs import RunFolder
from tutelage.runs.observer import Observer
from tutelage.terminal.display import create_display

if TYPE_CHECKING:
    from tutelage.inference.classifier import Classifier
    from tutelage.inference.inputs import Inputs

CHECKPOINT_SUFFIX = ".ckpt"
PATTERN = re.compile(r"[*?\[{]|://|pipe:|^-$")  # what a path has that names other files, or none on this machine
VIEWS = ("one", "mirrored", "shifted", "mirrored_shifted")  # of TTA_VIEWS, whose module needs torch
DESCRIPTION = """Label pictures by the network of a finished run, or by the mean of several runs' probabilities.

  tutelage predict RUN photos/ > labels.csv
  tutelage predict RUN photos/ 'more/*.jpg' table.csv pool.tar --out labels.parquet --top 3
  find photos -name '*.png' | tutelage predict RUN - --out labels.csv
  tutelage predict RUN --pool --out pool.csv
"""
EPILOG = """With --out a command that was stopped goes on where it was, typed again. A picture that cannot be
read is a row with the reason. Pictures are read as those of the run were; the first line on stderr says how.
"""


def predict(arguments: Sequence[str]) -> int:
    """Label pictures as the arguments say; return the exit code.

    Raises:
        UserError: they name no run, or no pictures, or contradict each other.
    """
    options = make_parser().parse_intermixed_args(list(arguments))
    runs = [name for name in options.names if _is_run(name)]
    paths = [name for name in options.names if not _is_run(name)]
    _check(options, runs, paths)
    if options.out is not None:
        from tutelage.inference.parts import require_new

        require_new(options.out)
    observer = create_display(options.out is not None or not sys.stdout.isatty())  # rows and a bar would mix
    observer.loading()
    try:
        _label(options, runs, paths, observer)
    except KeyboardInterrupt:
        from tutelage.data.loading.workers import kill_workers

        kill_workers()
        observer.say("stopped" if options.out is None else "stopped; the same command goes on from here")
        return BY_SIGNAL + signal.SIGINT
    finally:
        observer.end()
    return 0


def make_parser() -> ArgumentParser:
    """Return the parser of the command's arguments."""
    parser = ArgumentParser("predict", "RUN... PATHS... [OPTIONS]", DESCRIPTION, EPILOG)
    add = parser.add_argument
    add(
        "names",
        nargs="*",
        metavar="RUN, PATHS",
        help="folders of finished runs or their .ckpt files; folders, patterns and files of pictures, lists (.txt, or "
        "- for standard input), tables with a column path (.csv, .parquet), shards (.tar, .parquet)",
    )
    add("--out", type=Path, metavar="FILE", help="x.csv, x.parquet or x.jsonl; without it CSV on standard output")
    add("--top", type=int, default=1, metavar="K", help="name the K likeliest classes: label_2, confidence_2, ...")
    add("--probabilities", action="store_true", help="a column for each class")
    add("--tta", choices=VIEWS, default="one", help="the mean over several views of each picture")
    add("--embed", action="store_true", help="a column of the network's features (Parquet alone, one run)")
    add("--stage", metavar="NAME", help=STAGE_HELP)
    add("--task", type=int, metavar="N", help=TASK_HELP)
    add("--pool", action="store_true", help="label the pool of the run itself")
    return parser


def _is_run(name: str) -> bool:
    path = Path(name).expanduser()
    return path.suffix == CHECKPOINT_SUFFIX or RunFolder(path).record_file.is_file()


def _check(options: argparse.Namespace, runs: Sequence[str], paths: Sequence[str]) -> None:
    """Raise a UserError where the arguments do not fit each other."""
    usage = "tutelage predict RUN... PATHS..."
    if not runs:
        absent = next((path for path in paths if not (PATTERN.search(path) or os.path.lexists(path))), None)
        others = f"{', '.join(paths)}: no run's folder and no .ckpt file" if paths else "no run is named"
        named = others if absent is None else f"{absent}: no such file or folder"
        raise UserError(f"predict: {named}: {usage}")
    if not paths and not options.pool:
        raise UserError(f"predict: no pictures are named: {usage}, or --pool for the run's own")
    if options.pool and (paths or len(runs) > 1):
        raise UserError(f"--pool: it labels the pool of one run, and nothing else; leave out {[*paths, *runs[1:]][0]}")
    for path in (*runs, *paths):
        if not (PATTERN.search(path) or os.path.lexists(os.path.expanduser(path))):  # noqa: PTH111
            raise UserError(f"{path}: no such file or folder")
    if options.top < 1:
        raise UserError(f"--top {options.top}: name a number from 1 on")
    if options.embed and (options.out is None or options.out.suffix.lower() != ".parquet"):
        raise UserError("--embed: features are a column of lists, which Parquet alone has; name --out FILE.parquet")
    if options.embed and len(runs) > 1:
        raise UserError(f"--embed: features are of one run, and {len(runs)} are named; name one")


def _label(options: argparse.Namespace, runs: Sequence[str], paths: Sequence[str], observer: Observer) -> None:
    """Label the pictures, and say what is done with them and how many could not be read."""
    from tutelage.data import DataRuntime
    from tutelage.inference.classifier import load_networks, set_up_inference
    from tutelage.inference.inputs import find_inputs, find_pool
    from tutelage.inference.predict import Labeller, predict_to_file, predict_to_stream
    from tutelage.inference.rows import Columns

    classifier = load_networks(runs, options.stage, options.task)
    set_up_inference(classifier)
    runtime = DataRuntime(device=classifier.device, on_progress=observer.reading)
    if options.pool:
        inputs = find_pool(runs[0], classifier.data.image_size, runtime)
    else:
        inputs = find_inputs(paths, classifier.data, observer.reading)
    columns = Columns(options.top, options.probabilities, options.tta, options.embed)
    labeller = Labeller(classifier, inputs, columns, runtime)
    for line in (_describe(classifier, inputs), *(f"note: {note}" for note in inputs.notes)):
        observer.say(line)
    if options.out is None:
        if isinstance(sys.stdout, io.TextIOWrapper):
            sys.stdout.reconfigure(encoding="utf-8")  # whatever the terminal's is: names have characters of all kinds
        predict_to_stream(labeller, sys.stdout, observer)
    elif not predict_to_file(labeller, options.out, observer):
        observer.say(f"{options.out}: finished already")
        return
    unreadable = f"; {labeller.unreadable:,} cannot be read (column reason)" if labeller.unreadable else ""
    labelled = len(inputs) - labeller.unreadable
    observer.say(f"{_count(labelled)} labelled{unreadable}" + (f": {options.out}" if options.out else ""))


def _describe(classifier: "Classifier", inputs: "Inputs") -> str:
    """Return what there is to do: how many pictures, and what the network sees of each."""
    networks = len(classifier.members)
    by = f"; the mean of {networks} networks" if networks > 1 else ""
    return f"{_count(len(inputs))}; each becomes {classifier.members[0].describe_form()}{by}"


def _count(pictures: int) -> str:
    return "1 picture" if pictures == 1 else f"{pictures:,} pictures"
