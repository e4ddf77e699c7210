"""Where the weights lie that a config names by ``init_from`` or ``strategy.teachers``. Needs no torch."""

from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from tutelage.config import Config, DataConfig
from tutelage.data import fingerprint
from tutelage.data.datasets.download import OnProgress, ignore_progress
from tutelage.errors import UserError
from tutelage.runs.folder import FINISHED, RunFolder, main_stage_name, read_config, read_record, weights_files
from tutelage.runs.integrity import UNREADABLE, inspect_run
from tutelage.storage import file_digest, has_checksum, require_file

PACKAGE = "package:"
TEST_IDENTITY = "test_identity"  # key in run.json: digests of all labelled images and of the test set
MAX_DEPTH = 5  # folders from a file of weights up to its run
TAGS = ("timm:", "torchvision:")


def find_weights(name: str, key: str) -> Path | str:
    """Return the file of the weights that a config names; a tag of timm's or torchvision's as it is.

    Args:
        name: a finished run's folder (its last network), a file, ``package:PACKAGE/FILE`` or a tag.
        key: the config key, for messages.

    Raises:
        UserError: there is no such run or package, or a device or a pipe is named.
    """
    return name if name.startswith(TAGS) else _find_file(name, key)


def _find_file(name: str, key: str) -> Path:
    """Return the file of weights that are no tag (see ``find_weights``)."""
    if name.startswith(PACKAGE):
        return _find_package_file(name, key)
    path = Path(name).expanduser()
    if not path.is_dir():
        require_file(path, key)
        return path
    folder = RunFolder(path)
    state = inspect_run(folder)
    if state.status == UNREADABLE:
        raise UserError(f"{key}={name}: {state.reason}")
    if state.status != FINISHED:
        raise UserError(f"{key}={name}: {state.status}; finish the run by its command, or name a file of it")
    weights = weights_files(folder, state.record)[main_stage_name(state.record)]
    if problem := next((problem for problem in state.problems if path / problem.file == weights), None):
        raise UserError(
            f"{key}={name}: {problem.file} is {problem.reason}; the run's command makes it again, by {problem.remedy}"
        )
    return weights


def find_network(name: str, key: str) -> Path:
    """Return the file of a network that a run trained: of a finished run, or a checkpoint named by its path.

    Raises:
        UserError: it is neither.
    """
    is_tag = name.startswith(TAGS)
    file = Path(name) if is_tag else _find_file(name, key)
    if is_tag or not (Path(name).expanduser().is_dir() or has_checksum(file)):
        raise UserError(
            f"{key}={name}: no network that a run left; name a finished run, or a checkpoint of one (weights of "
            f"others become a run's by strategy=transfer_frozen init_from={name})"
        )
    return file


def weights_identity(name: str, key: str) -> str:
    """Return the digest of the weights' file, or their tag: their part of a run's identity."""
    source = find_weights(name, key)
    return source if isinstance(source, str) else file_digest(source, key)


def _find_package_file(name: str, key: str) -> Path:
    """Return a file inside an installed package, which is not imported."""
    package, _, inside = name.removeprefix(PACKAGE).partition("/")
    if not (package.isidentifier() and inside):
        raise UserError(f"{key}={name}: write package:PACKAGE/FILE, the package by the name it is imported by")
    spec = find_spec(package)
    locations = list(spec.submodule_search_locations or ()) if spec else []
    if not locations:
        raise UserError(
            f"{key}={name}: no package {package} is installed here; pip install {package.replace('_', '-')}, or name a "
            "file, or null"
        )
    file = next((path for location in locations if (path := Path(location, inside)).is_file()), None)
    if file is None:
        raise UserError(f"{key}={name}: {locations[0]} has no file {inside}")
    return file


def find_run_data(name: str) -> tuple[DataConfig | None, str]:
    """Return the data of a run, where it is still there and unchanged; else None and the reason."""
    folder = RunFolder(Path(name).expanduser())
    if not folder.config_file.is_file():
        return None, f"{name} is no run's folder"
    data = read_config(folder).data
    try:
        has_changed = _has_changed(read_record(folder) or {}, data)
    except UserError as error:
        return None, str(error)
    return (None, "its data has changed since") if has_changed else (data, "")


def check_run_data(
    folder: RunFolder, record: Mapping[str, Any], data: DataConfig, on_progress: OnProgress = ignore_progress
) -> None:
    """Raise a UserError if data is not what a run has learned from and was tested on, or is not there.

    Args:
        folder: the run's.
        record: its ledger.
        data: its data, which may be at another place now.
        on_progress: called during long reads.
    """
    if _has_changed(record, data, on_progress):
        raise UserError(
            f"{folder.path}: the run's data has changed since it was trained; if the unchanged data is now elsewhere, "
            "give data.root=FOLDER"
        )


def _has_changed(record: Mapping[str, Any], data: DataConfig, on_progress: OnProgress = ignore_progress) -> bool:
    recorded = record.get("identity", {}).get("data", {}).get("fingerprint", "")
    return bool(recorded != fingerprint(data, on_progress))


def check_tested_by_sources(config: Config, own: tuple[str, str]) -> None:
    """Raise a UserError if ``init_from`` or a teacher is a run that has learned from test images of this run.

    Args:
        config: of a run.
        own: what identifies its labelled images and its test set (see ``ImageDataModule.test_identity``).
    """
    names = [("init_from", config.init_from or ""), *(("strategy.teachers", n) for n in config.strategy.given_teachers)]
    for key, name in names:
        images, test = _read_record_around(name).get("data", {}).get(TEST_IDENTITY, [None, None])
        if images == own[0] and test != own[1]:
            raise UserError(
                f"{key}={name}: it has another test set out of the same images, so it has learned from some that this "
                "run tests; name a run with the same data.folds, data.fold and data.group, or leave it out"
            )


def _read_record_around(name: str) -> dict[str, Any]:
    """Return the ledger of the run whose folder, or a file in it, is called so; an empty one where there is none."""
    path = Path(name).expanduser()
    folder = find_run_around(path) if name else None
    return {} if folder is None else read_record(RunFolder(folder)) or {}


def find_run_around(path: Path) -> Path | None:
    """Return the folder of the run that a path is of, or lies in; None where there is none."""
    if not path.exists():
        return None
    path = path.resolve()
    folders = (path, *path.parents)[:MAX_DEPTH]
    return next((folder for folder in folders if RunFolder(folder).record_file.is_file()), None)
