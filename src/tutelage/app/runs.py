"""``tutelage runs``: the runs below a folder, filtered and sorted; ``tutelage runs clean`` is in ``app.clean``."""

import argparse
import dataclasses
import json
import shutil
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from tutelage.app.arguments import ArgumentParser
from tutelage.errors import UserError
from tutelage.runs.folder import FAILED, FINISHED, RUNNING
from tutelage.runs.integrity import STOPPED, UNREADABLE
from tutelage.runs.listing import list_summaries
from tutelage.runs.summary import INCOMPLETE, RunSummary
from tutelage.storage import format_size
from tutelage.terminal.run_table import (
    MOST_ROWS,
    find_accuracy,
    find_interval,
    fold_experiments,
    format_rows,
    layout_rows,
)

CLEAN = "clean"
OUTPUTS, OUTPUTS_KEY = "outputs", "paths.outputs="
STATUSES = (FINISHED, RUNNING, STOPPED, FAILED, INCOMPLETE, UNREADABLE)
SORTS: dict[str, Callable[[RunSummary], Any]] = {
    "age": lambda run: run.started,
    "result": lambda run: (run.test_accuracy is not None, find_accuracy(run) or 0.0),
    "labels": lambda run: run.labels or 0,
    "size": lambda run: run.size,
    "run": lambda run: str(run.path),
}
MOST_REASONS = 3  # that are printed below the table
WORDS = "[clean] [DIR] [OPTIONS]"
DESCRIPTION = """List the runs below a folder (outputs/), the newest last; or remove those that are good for nothing.

  tutelage runs                                       all runs
  tutelage runs outputs/digits --sort result          those of an experiment, the best last
  tutelage runs --strategy fixmatch --status finished --match cifar
  tutelage runs --json | jq '.[].test_accuracy'
  tutelage runs clean                                 list what did not finish or lacks files, ask, remove it
  tutelage runs clean --status failed --yes           failed runs alone, without a question
  tutelage runs clean outputs/digits --status finished
"""
EPILOG = """interval: Wilson's 95 % interval over the images that the result is over; val: not tested yet.
On a terminal columns that do not fit are left out, and an experiment of many runs is one row; --sort lists each.
clean: stopped, failed and incomplete runs go, and what killed commands left behind; others where --status names them.
A run that is in use stays, whatever is typed.
"""


def run_command(arguments: Sequence[str]) -> None:
    """Print the runs below a folder as a table, or as JSON; or clean up.

    Raises:
        UserError: an argument is wrong, or there is no such folder.
    """
    options = make_parser().parse_intermixed_args(list(arguments))
    if options.words[:1] == [CLEAN]:
        from tutelage.app.clean import clean_runs

        clean_runs(find_root(options.words[1:]), options)
        return
    if options.yes:
        raise UserError("runs: --yes goes with clean: tutelage runs clean --yes")
    root = find_root(options.words)
    runs = list_summaries(root)
    chosen = choose_runs(runs, options)
    if options.sort:
        chosen.sort(key=SORTS[options.sort])
    if options.json:
        print(json.dumps([_to_json(run) for run in chosen], indent=2))
    elif not chosen:
        print(f"no runs below {root}" + (f" are of this kind; there are {len(runs):,} others" if runs else ""))
    else:
        _print_table(chosen, folds=not options.sort)


def make_parser() -> ArgumentParser:
    """Return the parser of the command's arguments."""
    parser = ArgumentParser("runs", WORDS, DESCRIPTION, EPILOG)
    add = parser.add_argument
    add(
        "words",
        nargs="*",
        metavar="clean, DIR",
        help="DIR: outputs, an experiment's folder, a run's, paths.outputs=DIR",
    )
    add("--status", metavar="STATUS,...", help=f"only these: {', '.join(STATUSES)}")
    add("--strategy", metavar="STRATEGY,...", help="only runs of these strategies")
    add("--match", metavar="TEXT", help="only runs whose folder's path has this text")
    add("--sort", choices=SORTS, help="what the last row has most of; age: the newest last")
    add("--json", action="store_true", help="print a JSON list: sizes in bytes, accuracies from 0 to 1")
    add("--yes", action="store_true", help="with clean: do not ask")
    return parser


def find_root(words: Sequence[str]) -> Path:
    """Return the folder whose runs are meant.

    Raises:
        UserError: several are named.
    """
    if len(words) > 1:
        raise UserError(f"runs takes one folder, not {len(words)}: tutelage runs {WORDS}")
    return Path((words or [OUTPUTS])[0].removeprefix(OUTPUTS_KEY)).expanduser()


def choose_runs(
    runs: Sequence[RunSummary], options: argparse.Namespace, statuses: Sequence[str] = STATUSES
) -> list[RunSummary]:
    """Return the runs that the options choose; ``statuses`` are those that are meant where none is typed.

    Raises:
        UserError: there is no such status.
    """
    typed = options.status.split(",") if options.status else statuses
    if unknown := sorted(set(typed) - set(STATUSES)):
        raise UserError(f"--status {unknown[0]}: no status; there are {', '.join(STATUSES)}")
    strategies = options.strategy.split(",") if options.strategy else None
    return [
        run
        for run in runs
        if run.status in typed
        and (strategies is None or run.strategy in strategies)
        and (options.match or "") in str(run.path)
    ]


def _to_json(run: RunSummary) -> dict[str, Any]:
    ends = find_interval(run)
    return {
        **dataclasses.asdict(run),
        "path": str(run.path),
        "interval": None if ends is None else [ends.low, ends.high],
    }


def _print_table(runs: Sequence[RunSummary], folds: bool) -> None:
    """Print runs as a table, and why those that cannot be used are so."""
    is_terminal = sys.stdout.isatty()
    rows = fold_experiments(runs) if is_terminal and folds else format_rows(runs)
    width = shutil.get_terminal_size().columns if is_terminal else None
    print(*layout_rows(rows, width), sep="\n", flush=True)
    if is_terminal and len(runs) > MOST_ROWS:
        print(f"{len(runs):,} runs, {format_size(sum(run.size for run in runs))}; --sort age lists each")
    reasons = [run.reason for run in runs if run.reason]
    for reason in reasons[:MOST_REASONS]:
        print(f"note: {reason}", file=sys.stderr)
    if len(reasons) > MOST_REASONS:
        print(f"note: {len(reasons) - MOST_REASONS:,} more cannot be used; --json has each reason", file=sys.stderr)
