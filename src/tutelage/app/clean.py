"""``tutelage runs clean``: lists what could go, asks, and removes it; a run that is in use stays."""

import argparse
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from tutelage.app.runs import choose_runs
from tutelage.errors import UserError
from tutelage.runs.folder import FAILED, RUNNING, RunFolder
from tutelage.runs.integrity import STOPPED
from tutelage.runs.listing import list_summaries
from tutelage.runs.summary import INCOMPLETE, RunSummary, find_run_folders, measure_folder, summarize_run
from tutelage.storage import REMOVED_PREFIX, find_old_partials, format_size, hold_lock, is_held, remove, remove_folder
from tutelage.terminal.run_table import escape_path, format_rows, layout_rows

SHARD_LOCKS = "stages/*/labels/.locks/*"  # of the label stores of a run
REMOVED = (STOPPED, FAILED, INCOMPLETE)  # statuses of runs that go where none is typed


def clean_runs(root: Path, options: argparse.Namespace) -> None:
    """List runs that could go, ask, and remove them.

    Raises:
        UserError: an option is wrong, or there is nobody to ask.
    """
    if options.json or options.sort:
        raise UserError("runs clean: it takes neither --sort nor --json; 'tutelage runs' without clean lists")
    chosen = [run for run in choose_runs(list_summaries(root), options, REMOVED) if run.status != RUNNING]
    has_filter = options.status or options.strategy or options.match
    leftovers = {} if has_filter else {path: _measure(path) for path in _find_leftovers(root)}
    if not chosen and not leftovers:
        print(f"nothing to clean below {root}")
        return
    size = sum(run.size for run in chosen) + sum(leftovers.values())
    _print_list(chosen, leftovers)
    what = _count(len(chosen), len(leftovers))
    if not options.yes and not _agrees(f"Remove {what}, {format_size(size)}? [y/N] "):
        print("nothing was removed")
        return
    removed_runs = [run for run in chosen if _remove_run(run, root)]
    removed_leftovers = [path for path in leftovers if _remove_leftover(path)]
    freed = sum(run.size for run in removed_runs) + sum(leftovers[path] for path in removed_leftovers)
    print(f"removed {_count(len(removed_runs), len(removed_leftovers))}, {format_size(freed)}")


def _print_list(runs: Sequence[RunSummary], leftovers: Mapping[Path, int]) -> None:
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
    if runs:
        print(*layout_rows(format_rows(runs), width), sep="\n")
    for path, size in leftovers.items():
        print(f"left behind by a command that was killed: {escape_path(path)}  {format_size(size)}")


def _count(runs: int, leftovers: int) -> str:
    texts = [f"{runs:,} run{'' if runs == 1 else 's'}", f"{leftovers:,} leftover{'' if leftovers == 1 else 's'}"]
    return " and ".join(text for number, text in zip((runs, leftovers), texts, strict=True) if number) or texts[0]


def _agrees(question: str) -> bool:
    """Ask; return whether the answer is yes.

    Raises:
        UserError: there is nobody to ask.
    """
    if not sys.stdin.isatty():
        raise UserError("runs clean: it asks before it removes, and there is no terminal; --yes removes without asking")
    try:
        return input(question).strip().lower() in {"y", "yes"}
    except EOFError:
        print()
        return False


def _remove_run(run: RunSummary, root: Path) -> bool:
    """Remove a run under its lock; return whether it is gone, and say why it stays where it does."""
    folder = RunFolder(run.path)
    try:
        if (link := _find_link(run.path, root)) is not None:
            raise UserError(f"{link}: a link; remove it, or what it points to, yourself")
        with hold_lock(folder.lock_file, f"run {folder.path}"):
            status = summarize_run(run.path, run.size)[0].status
            if (STOPPED if status == RUNNING else status) != run.status:  # running: under the lock that is held here
                raise UserError(f"{run.path}: {status} since it was listed")
            if any(map(is_held, run.path.glob(SHARD_LOCKS))):
                raise UserError(f"{run.path}: another process labels its pool")
            remove_folder(run.path)
    except (UserError, OSError) as error:
        print(f"left alone: {error}", file=sys.stderr)
        return False
    return True


def _remove_leftover(path: Path) -> bool:
    """Remove a leftover; return whether it is gone, and say why it stays where it does."""
    try:
        remove(path)
    except OSError as error:
        print(f"left alone: {error}", file=sys.stderr)
        return False
    return True


def _find_link(path: Path, root: Path) -> Path | None:
    """Return the link that leads from a folder to one below it, or to itself; None where there is none."""
    parts = [path, *path.parents]
    return next((part for part in parts[: parts.index(root) or 1] if part.is_symlink()), None)


def _find_leftovers(root: Path) -> Iterator[Path]:
    """Yield what killed commands left: runs that were being removed, and files that were being written.

    What lies behind a link is passed over.
    """
    folders = [path for path in root.iterdir() if path.is_dir() and not path.name.startswith(".")]
    for folder in [root, *(folder for folder in folders if not folder.is_symlink())]:
        yield from sorted(folder.glob(f"{REMOVED_PREFIX}*"))
        yield from find_old_partials(folder)
    for path in map(Path, find_run_folders(root)):
        if _find_link(path, root) is None and not is_held(RunFolder(path).lock_file):
            for below in measure_folder(str(path)).changed:
                yield from find_old_partials(Path(f"{path}{below}"))


def _measure(path: Path) -> int:
    if path.is_dir() and not path.is_symlink():
        return measure_folder(str(path)).size
    with suppress(OSError):  # it is gone
        return path.lstat().st_size
    return 0
