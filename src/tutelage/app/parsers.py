"""The arguments of the commands whose module has no parser of its own: for their help, and for tab completion."""

from collections.abc import Callable, Mapping

from tutelage.app.arguments import ArgumentParser

OVERRIDES, RUN = "OVERRIDES", "RUN"  # metavars of what is completed alike for all commands
RECIPE = """Print the settings that Tutelage chooses for your pictures, each with its reason; or save them to edit them.

  tutelage recipe data=image_folder data.root=photos
  tutelage recipe data=image_folder data.root=photos --save photos      writes conf/experiment/photos.yaml
  tutelage train experiment=photos --config-dir conf                    trains with it
"""
FETCH = """Bring the weights and the datasets of a config to this machine's cache, for machines without network.

  tutelage fetch experiment=oquab2014_transfer
  tutelage fetch data=cifar10 model=convnext_tiny
  tutelage fetch -m data=cifar10,svhn                                   of all jobs of a sweep
"""
PREVIEW = """Draw what the network will see of the images: views, operations, mixed pairs; and measure how fast that is.

  tutelage preview data=digits augmentation=randaugment
  tutelage preview experiment=fashion_few_labels
"""
LABEL = """Help a run to label its pool, at the same time as the run itself: from another terminal, GPU or machine.

  tutelage label outputs/EXPERIMENT/RUN
  CUDA_VISIBLE_DEVICES=1 tutelage label outputs/EXPERIMENT/RUN          another GPU
  tutelage label outputs/EXPERIMENT/RUN data.root=/scratch/images       another machine, the data elsewhere
"""
REPORT = """Write the reports of finished runs again.

  tutelage report outputs/EXPERIMENT/RUN
  tutelage report outputs/EXPERIMENT/*
  tutelage report outputs/EXPERIMENT/RUN data.root=/data/photos         where its data lie now
"""
COMPLETION = """Print a script that completes tutelage's commands, options, runs and overrides by the Tab key.

  eval "$(tutelage completion bash)"          in ~/.bashrc
  eval "$(tutelage completion zsh)"           in ~/.zshrc, below compinit
  tutelage completion fish | source           in ~/.config/fish/config.fish
"""


def _take_overrides(command: str, description: str) -> ArgumentParser:
    parser = ArgumentParser(command, f"[{OVERRIDES}]", description)
    add = parser.add_argument
    add("overrides", nargs="*", metavar=OVERRIDES, help="GROUP=OPTION and KEY=VALUE, as 'tutelage train' takes them")
    add("--config-dir", action="append", metavar="DIR", help="a folder of options of your own")
    add("--allow", action="append", metavar="PACKAGE", help="a package whose classes the config may name")
    add("-m", "--multirun", action="store_true", help="several runs: KEY=VALUE,VALUE")
    return parser


def _train() -> ArgumentParser:
    parser = _take_overrides("train", "")  # its help lists every option, too
    parser.add_argument("--cfg", choices=("job", "hydra", "all"), help="print the config")
    return parser


def _recipe() -> ArgumentParser:
    parser = _take_overrides("recipe", RECIPE)
    parser.add_argument("--save", metavar="NAME", help="write the experiment NAME into --config-dir, or into conf")
    return parser


def _label() -> ArgumentParser:
    parser = ArgumentParser("label", "RUN [data.root=DIR] [data.unlabelled=POOL]", LABEL)
    parser.add_argument("words", nargs="+", metavar=RUN, help="the folder of a run that labels its pool")
    return parser


def _report() -> ArgumentParser:
    parser = ArgumentParser("report", "RUN... [data.root=DIR]", REPORT)
    parser.add_argument("words", nargs="+", metavar=RUN, help="folders of finished runs")
    return parser


def _completion() -> ArgumentParser:
    parser = ArgumentParser("completion", "bash|zsh|fish", COMPLETION)
    parser.add_argument("shell", choices=("bash", "zsh", "fish"), help="the shell that is to complete")
    return parser


PARSERS: Mapping[str, Callable[[], ArgumentParser]] = {
    "train": _train,
    "recipe": _recipe,
    "fetch": lambda: _take_overrides("fetch", FETCH),
    "preview": lambda: _take_overrides("preview", PREVIEW),
    "label": _label,
    "report": _report,
    "completion": _completion,
}
