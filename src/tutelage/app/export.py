"""``tutelage export``: its arguments, what it refuses before torch is loaded, and the lines that it prints."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from tutelage.app.arguments import STAGE_HELP, TASK_HELP, ArgumentParser
from tutelage.errors import UserError
from tutelage.runs import main_stage_name, open_finished_run
from tutelage.storage import refuse_taken_folder

FORMATS = ("onnx", "pt2", "safetensors", "timm")
WORDS = f"RUN --format {'|'.join(FORMATS)} [--out DIR] [--stage NAME] [--task N]"
DESCRIPTION = """Write the network of a finished run to files that need no Tutelage, with a model card.

  tutelage export RUN --format onnx
  tutelage export RUN --format safetensors --out my_network --stage teacher
"""
EPILOG = """The files are checked against the network before the folder appears, whole or not at all.
"""


def export(arguments: Sequence[str]) -> None:
    """Write a run's network to files that need no Tutelage; print where they are and how they were checked."""
    for line in run_export(arguments):
        print(line)


def run_export(arguments: Sequence[str]) -> Iterator[str]:
    """Export the network of a run; yield what was written.

    Raises:
        UserError: the arguments are wrong, or the network cannot be exported.
    """
    options = make_parser().parse_intermixed_args(list(arguments))
    if len(options.runs) != 1:
        raise UserError(f"export takes one run's folder, not {len(options.runs)}: tutelage export {WORDS}")
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


def make_parser() -> ArgumentParser:
    """Return the parser of the command's arguments."""
    parser = ArgumentParser("export", WORDS, DESCRIPTION, EPILOG)
    add = parser.add_argument
    add("runs", nargs="*", metavar="RUN", help="the folder of a finished run")
    add(
        "--format",
        metavar="FORMAT",
        help="onnx: a graph for onnxruntime and others; pt2: torch.export's; safetensors: weights for Tutelage; "
        "timm: weights for timm.create_model",
    )
    add("--out", type=Path, metavar="DIR", help="the folder to make; else RUN-FORMAT in the current folder")
    add("--stage", metavar="NAME", help=STAGE_HELP)
    add("--task", type=int, metavar="N", help=TASK_HELP)
    return parser
