"""Imports from the current folder: only the packages that ``--allow`` names, and only where none is installed.

Importing this module installs the finder: every process of a run has it before it unpickles anything of the user's.
"""

import os
import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType

ALLOW_VARIABLE = "TUTELAGE_ALLOW"
FOLDER_VARIABLE = "TUTELAGE_ALLOW_FOLDER"  # the current folder of the command: a worker's may be another
SAFE_PATH_VARIABLE = "PYTHONSAFEPATH"  # Python's own: set, no process looks for modules in its current folder

NO_PACKAGES = frozenset({"pipe", "launcher"})  # what else --allow allows: commands of a pool, a launcher's settings


def list_flag_packages() -> list[str]:
    """Return what ``--allow`` named."""
    return os.environ.get(ALLOW_VARIABLE, "").split()


def read_flag_state() -> dict[str, str]:
    """Return the environment variables that tell another process of ``--allow``."""
    return {ALLOW_VARIABLE: " ".join(list_flag_packages()), FOLDER_VARIABLE: _command_folder()}


def _command_folder() -> str:
    return os.environ.get(FOLDER_VARIABLE) or os.getcwd()  # noqa: PTH109 - imported at every start: no pathlib


def lies_in_command_folder(package: str) -> bool:
    """Return whether the folder where the command was typed has a top-level module of this name."""
    return PathFinder.find_spec(package, [_command_folder()]) is not None


class AllowedFolderFinder(MetaPathFinder):
    """The last of Python's finders: finds the packages of ``--allow`` in the folder where the command was typed."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Return the spec of a top-level module that ``--allow`` names; None for any other."""
        if path is not None or fullname not in {*list_flag_packages()} - NO_PACKAGES:
            return None
        return PathFinder.find_spec(fullname, [_command_folder()], target)


sys.meta_path.append(AllowedFolderFinder())
