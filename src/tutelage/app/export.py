"""``tutelage export``: its arguments, what it refuses before torch is loaded, and the lines that it prints."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from tutelage.app.arguments import ArgumentParser
from tutelage.errors import UserError
from tutelage.runs import main_stage_name, open_finished_run
from tutelage.storage import refuse_taken_folder

FORMATS = ("onnx", "pt2", "safetensors", "timm")
USAGE = f"tutelage export RUN --format {'|'.join(FORMATS)} [--out DIR] [--stage NAME] [--task N]"


def run_export(arguments: Sequence[str]) -> Iterator[str]:
    """Export the network of a run; yield what was written.

    Raises:
        UserError: the arguments are wrong, or the network cannot be exported.
    """
    parser = ArgumentParser(prog="tutelage export", add_help=False, allow_abbrev=False)
    parser.add_argument("runs", nargs="*")
    parser.add_argument("--format")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--stage")
    parser.add_argument("--task", type=int)
    options = parser.parse_args(arguments)
    if len(options.runs) != 1:
        raise UserError(f"export takes one run's folder, not {len(options.runs)}: {USAGE}")
    if options.format not in FORMATS:
        given = "no --format" if options.format is None else f"--format {options.format}"
        raise UserError(f"export: {given}; the formats are {', '.join(FORMATS)}")
    (run,) = options.runs
    if not Path(run).expanduser().is_dir():
        raise UserError(f"{run}: no folder of a run; export needs one ('tutelage runs' lists them)")
    folder, record = open_finished_run(run)
    stage = "" if options.stage in {None, main_stage_name(record)} else f"-{options.stage}"
    task = "" if options.task is None else f"-task-{options.task}"
    out = options.out or Path(f"{folder.path.resolve().name}{stage}{task}-{options.format}")
    refuse_taken_folder(out)
    from tutelage.inference.export import export_network

    exported = export_network(run, options.format, out.expanduser(), options.stage, options.task)
    yield f"export: {out}: {', '.join(exported.files)}"
    yield (
        f"checked on {exported.pictures} pictures, {exported.pictures_note}: logits differ from the run's network's by "
        f"{exported.difference:.1e} at most, and the classes are the same"
    )
    yield f"{out / 'README.md'} says how pictures are brought to size, and how the files are used"
