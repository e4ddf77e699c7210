"""Tab completion: the script for a shell, and what may follow the words that were typed. Needs neither torch nor Hydra.

The shell runs ``tutelage`` at each Tab; argcomplete finds which argument is meant, and quotes for the shell.
"""

import argparse
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import argcomplete
from argcomplete.shell_integration import shellcode

from tutelage.app.export import FORMATS
from tutelage.app.parsers import OVERRIDES, PARSERS, RUN
from tutelage.app.runs import STATUSES
from tutelage.options import BASE, conf_dir, list_options

OUTPUTS = "outputs"
PATH_KEYS = ("data.root", "data.unlabelled", "init_from", "paths.outputs")  # whose values are completed as paths
KEY = re.compile(r"^(?P<indent> *)(?P<key>[A-Za-z]\w*): *(?P<value>[^#\n]*)", re.MULTILINE)
NO_KEYS = ("defaults", "hydra")  # of a config file
INDENT = 2  # of the second level of a config file


def print_script(arguments: Sequence[str]) -> None:
    """Print the script that makes a shell complete ``tutelage``."""
    options = PARSERS["completion"]().parse_args(list(arguments))
    print(shellcode(["tutelage"], shell=options.shell))


def complete(modules: Mapping[str, str]) -> None:
    """Answer the shell that asks what may follow the words in its environment, and exit.

    Args:
        modules: of all commands, by their names; that of a command without an entry in ``PARSERS`` has ``make_parser``.
    """
    words = os.environ["COMP_LINE"].split()
    parser = argparse.ArgumentParser(prog="tutelage", add_help=False)
    commands = parser.add_subparsers()
    for name, module in modules.items():
        parents = [_make_parser(name, module)] if words[1:2] == [name] else []  # no other command's module is imported
        commands.add_parser(name, parents=parents, add_help=False)
    argcomplete.autocomplete(parser, always_complete_options=False)


def _make_parser(command: str, module: str) -> argparse.ArgumentParser:
    """Return the parser of a command, whose arguments know how they are completed: that follows from their metavar."""
    make = PARSERS.get(command) or import_module(module).make_parser
    parser: argparse.ArgumentParser = make()
    for action in parser._actions:
        names = re.findall(r"\w+", str(action.metavar))
        if completers := [COMPLETERS[name] for name in names if name in COMPLETERS]:
            vars(action)["completer"] = partial(_complete_by_all, completers)
    return parser


def _complete_by_all(
    completers: "Sequence[Completer]", prefix: str, parsed_args: argparse.Namespace, **_: Any
) -> list[str]:
    return list(dict.fromkeys(word for completer in completers for word in completer(prefix, parsed_args)))


def complete_overrides(prefix: str, parsed: argparse.Namespace) -> Iterator[str]:
    """Yield Hydra's overrides that begin with a prefix: GROUP=OPTION, KEY= and, of some keys, a path."""
    config_dirs = getattr(parsed, "config_dir", None) or []
    groups = list_options(config_dirs)
    key, has_value, value = prefix.partition("=")
    if not has_value:
        yield from (f"{name}=" for name in (*groups, *_list_keys(conf_dir() / "config.yaml")) if name not in NO_KEYS)
        if "." in key:
            yield from (f"{name}=" for name in _list_keys_of_group(key.partition(".")[0], parsed, config_dirs))
    elif key in groups:
        earlier, comma, _ = value.rpartition(",")  # of a sweep: GROUP=OPTION,OPTION
        yield from (f"{key}={earlier}{comma}{option}" for option in groups[key])
    elif key in PATH_KEYS:
        yield from (f"{key}={path}" for path in _complete_path(value))


def _list_keys_of_group(group: str, parsed: argparse.Namespace, config_dirs: Sequence[str]) -> Iterator[str]:
    """Yield the keys of the option of a group that was typed before, or of the default one."""
    config = (conf_dir() / "config.yaml").read_text()
    default = re.search(rf"^  - {re.escape(group)}: (\w+)", config, re.MULTILINE)
    words = [word for words in vars(parsed).values() if isinstance(words, list) for word in words]
    typed = [word.partition("=")[2] for word in words if str(word).startswith(f"{group}=")]
    options = [*typed[-1:], *([] if typed or default is None else [default[1]]), BASE]
    for folder in (conf_dir(), *map(Path, config_dirs)):
        for option in options:
            file = folder / group / f"{option}.yaml"
            if file.is_file():
                whole = "@package _global_" in file.read_text()
                yield from (key if whole else f"{group}.{key}" for key in _list_keys(file))


def _list_keys(file: Path) -> Iterator[str]:
    """Yield the dotted keys of a config file, to the second level, without reading YAML: that takes time."""
    section = ""
    for match in KEY.finditer(file.read_text()):
        key = match["key"]
        if not match["indent"]:
            section = key
            yield from [key] if match["value"].strip() else []
        elif len(match["indent"]) == INDENT and section not in NO_KEYS:
            yield f"{section}.{key}"


def _complete_path(prefix: str, only_folders: bool = False) -> Iterator[str]:
    """Yield the files and folders whose path begins with a prefix; folders that are no run end in a slash."""
    folder, name = os.path.split(prefix)
    with suppress(OSError), os.scandir(os.path.expanduser(folder) or ".") as entries:  # noqa: PTH111
        for entry in sorted(entries, key=lambda each: each.name):
            if entry.name.startswith(name) and (name or not entry.name.startswith(".")):
                path = os.path.join(folder, entry.name)  # noqa: PTH118 - as it was typed
                if not entry.is_dir():
                    yield from [] if only_folders else [path]
                else:
                    yield path if os.path.exists(f"{entry.path}/run.json") else f"{path}/"  # noqa: PTH110


def complete_runs(prefix: str, _: argparse.Namespace) -> Iterator[str]:
    """Yield folders, from experiments to runs; those below outputs/ where nothing is typed yet."""
    begun = prefix or (f"{OUTPUTS}/" if Path(OUTPUTS).is_dir() else "")
    yield from _complete_path(begun, only_folders=True)


Completer = Callable[[str, argparse.Namespace], Iterable[str]]
COMPLETERS: Mapping[str, Completer] = {
    OVERRIDES: complete_overrides,
    RUN: complete_runs,
    "clean": lambda prefix, _: ["clean"],
    "FORMAT": lambda prefix, _: FORMATS,
    "STATUS": lambda prefix, _: STATUSES,
    "STRATEGY": lambda prefix, _: list_options()["strategy"],
    "DIR": lambda prefix, _: _complete_path(prefix, only_folders=True),
    "FILE": lambda prefix, _: _complete_path(prefix),
    "PATHS": lambda prefix, _: _complete_path(prefix),
}
