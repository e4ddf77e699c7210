"""What says which code of others, named by a config, a run was made by. Imports none of that code."""

import hashlib
import sysconfig
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from importlib.machinery import ModuleSpec
from importlib.metadata import packages_distributions, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from tutelage.config.allowed_folder import NO_PACKAGES, list_flag_packages

OWN_PACKAGES = frozenset({"tutelage", "albumentations"})
RECORDED_PACKAGES = OWN_PACKAGES | {"pytorch_lightning"}  # a run's record has their versions
DIGEST = "sha256"  # begins the description of a package that is no installed one


def list_foreign_packages(config: Any) -> list[str]:
    """Return the top-level packages, sorted, of every ``_target_`` in nested containers that is not ours."""
    return sorted({target.partition(".")[0] for target in _find_targets(config)} - RECORDED_PACKAGES)


def list_code_packages(config: Mapping[str, Any]) -> list[str]:
    """Return the top-level packages outside ours, sorted, that a run of a config may get its result from.

    Those that its classes are in, and the others of ``--allow``, which may be imported by them; what only a logger's
    class is in decides nothing.
    """
    named = list_foreign_packages({key: value for key, value in config.items() if key != "logger"})
    of_loggers = {*list_foreign_packages(config.get("logger", {}))} - {*named}
    return sorted({*named, *list_flag_packages()} - NO_PACKAGES - RECORDED_PACKAGES - of_loggers)


def _find_targets(tree: Any) -> Iterator[str]:
    """Yield the values of ``_target_`` in nested mappings and sequences."""
    if isinstance(tree, Mapping):
        if isinstance(target := tree.get("_target_"), str):
            yield target
        tree = list(tree.values())
    if isinstance(tree, Sequence) and not isinstance(tree, str | bytes):
        for part in tree:
            yield from _find_targets(part)


@cache
def describe_code(package: str) -> str:
    """Return what identifies the code of a top-level package: the version of an installed one, else a digest.

    The digest is SHA-256 over the names and contents of all its .py files. An empty string stands for a package that
    does not exist.
    """
    try:
        spec = find_spec(package)
    except (ImportError, ValueError):
        spec = None
    if spec is None:
        return ""
    folder = _folder_of(spec)
    if folder is not None and _is_installed(folder):
        names = packages_distributions().get(package, ())
        if names:
            return " ".join(f"{name} {version(name)}" for name in sorted(set(names)))
    return f"{DIGEST} {_digest_code(spec)}"


def _folder_of(spec: ModuleSpec) -> Path | None:
    """Return the folder that holds a top-level module; None for a built-in one."""
    locations = spec.submodule_search_locations
    if locations is not None:
        return next((Path(location).parent for location in locations), None)
    return Path(spec.origin).parent if spec.has_location and spec.origin else None


def _is_installed(folder: Path) -> bool:
    """Return whether a folder is one of this Python's site-packages."""
    return folder.resolve() in {Path(sysconfig.get_path(name)).resolve() for name in ("purelib", "platlib")}


def _digest_code(spec: ModuleSpec) -> str:
    """Return a hex digest over the names and contents of a top-level module's .py files."""
    if spec.submodule_search_locations is None:
        files = [(Path(spec.origin or "").name, Path(spec.origin or ""))] if spec.has_location else []
    else:
        files = sorted(
            (file.relative_to(folder).as_posix(), file)
            for folder in map(Path, spec.submodule_search_locations)
            for file in folder.rglob("*.py")
            if file.is_file()  # editors make links to nothing
        )
    code = hashlib.sha256()
    for name, file in files:
        content = file.read_bytes()
        code.update(f"{name}\0{len(content)}\0".encode())
        code.update(content)
    return code.hexdigest()
