"""``tutelage explain``: its arguments, and the page or the table that they ask for."""

import shlex
import signal
from collections.abc import Sequence
from pathlib import Path

from tutelage.app.arguments import STAGE_HELP, TASK_HELP, ArgumentParser
from tutelage.errors import BY_SIGNAL, UserError
from tutelage.runs import RunFolder, main_stage_name, open_finished_run, read_config
from tutelage.terminal.display import create_display

WORDS = "RUN [PATHS...] [--stage NAME] [--task N], or --summary RUN|OVERRIDES"
DESCRIPTION = """Show what the network of a finished run has learned: a page with pictures, or a table of its layers.

  tutelage explain RUN                       a page, on a few pictures of the run's test set
  tutelage explain RUN photos/ cat.jpg       the same on pictures of your own
  tutelage explain RUN --stage teacher       the network of another stage
  tutelage explain --summary RUN             its layers: receptive field, multiply-adds, parameters
  tutelage explain --summary model=vgg data=digits
"""
EPILOG = """The page has weights or first filters, activation maps, receptive fields, Grad-CAM, soft labels, teacher and
student, nearest training pictures and a map of the features, each where it applies. It lies in RUN/report/explain/,
for pictures of your own in a folder beside it.
"""


def explain(arguments: Sequence[str]) -> int:
    """Write the page, or print the table, that the arguments ask for; return the exit code.

    Raises:
        UserError: they name no run, or what cannot be read.
    """
    if "--summary" in arguments and not {"-h", "--help"} & set(arguments):
        print_layers([argument for argument in arguments if argument != "--summary"])
        return 0
    options = make_parser().parse_intermixed_args(list(arguments))
    if not options.names:
        raise UserError(f"explain needs the folder of a finished run: tutelage explain {WORDS}")
    run, *paths = options.names
    if not RunFolder(Path(run).expanduser()).record_file.is_file():
        raise UserError(f"explain: {run}: no run's folder ('tutelage runs' lists them): tutelage explain {WORDS}")
    observer = create_display(wanted=True)
    observer.loading()
    try:
        from tutelage.explain.page import write_explanation
        from tutelage.explain.subject import load_subject
        from tutelage.runs.torch_setup import lightning_silenced

        subject = load_subject(run, paths, options.stage, options.task, observer.reading)
        for note in subject.notes:
            observer.say(f"note: {note}")
        with lightning_silenced():
            file = write_explanation(subject, shlex.join(["tutelage", "explain", *arguments]), observer)
    except KeyboardInterrupt:
        from tutelage.data.loading.workers import kill_workers

        kill_workers()
        observer.say("stopped")
        return BY_SIGNAL + signal.SIGINT
    finally:
        observer.end()
    print(f"page: {file}")
    return 0


def make_parser() -> ArgumentParser:
    """Return the parser of the command's arguments."""
    parser = ArgumentParser("explain", WORDS, DESCRIPTION, EPILOG)
    add = parser.add_argument
    add(
        "names",
        nargs="*",
        metavar="RUN, PATHS",
        help="the folder of a finished run; then pictures, named as 'tutelage predict' takes them",
    )
    add("--stage", metavar="NAME", help=STAGE_HELP)
    add("--task", type=int, metavar="N", help=f"{TASK_HELP}; else the last one")
    add("--summary", action="store_true", help="print a table of the layers instead")
    return parser


def print_layers(words: Sequence[str]) -> None:
    """Print the layers of a run's network, or of the network that a config describes."""
    from tutelage.config.compose import compose, split_config_dirs

    if len(words) == 1 and Path(words[0]).is_dir():
        folder, record = open_finished_run(words[0])
        data, classes = read_config(folder).data, record.get("data", {}).get("classes")
        model = next(entry["model"] for entry in record["stages"] if entry["name"] == main_stage_name(record))
    else:
        config = compose(*split_config_dirs(words))
        data, model, classes = config.data, config.model.arguments(), None
    from tutelage.explain.summary import build_meta_network, print_summary

    print_summary(build_meta_network(model, data, classes))
