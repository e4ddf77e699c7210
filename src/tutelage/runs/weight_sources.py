"""Where the weights lie that a config names. Needs no torch."""

from importlib.util import find_spec
from pathlib import Path

from tutelage.config import DataConfig
from tutelage.data import fingerprint
from tutelage.errors import UserError
from tutelage.runs.folder import RunFolder, is_finished, last_fit, read_record, state, stored_config, trained
from tutelage.storage import file_digest, has_checksum

PACKAGE = "package:"
TAGS = ("timm:", "torchvision:")


def weights(given: str, key: str) -> Path | str:
    """Return the file of the weights that ``given`` stands for; a tag of timm's or torchvision's as it is.

    Args:
        given: a finished run's folder (its last network), a file, ``package:PACKAGE/FILE`` or a tag.
        key: the config's, for messages.

    Raises:
        UserError: there is no such run or package.
    """
    return given if given.startswith(TAGS) else weights_file(given, key)


def weights_file(given: str, key: str) -> Path:
    """Return the file of the weights that ``given``, which is no tag, stands for (see ``weights``)."""
    if given.startswith(PACKAGE):
        return _in_package(given, key)
    path = Path(given).expanduser()
    if not path.is_dir():
        return path
    folder = RunFolder(path)
    if not is_finished(folder):
        raise UserError(f"{key}={given}: {state(folder).status}; finish the run by its command, or name a file of it")
    record = read_record(folder) or {}
    return trained(folder, record)[last_fit(record)]


def network_file(given: str, key: str) -> Path:
    """Return the file of the network that ``given``, a finished run or a checkpoint that one left, stands for.

    Raises:
        UserError: it is neither.
    """
    tag = given.startswith(TAGS)
    file = Path(given) if tag else weights_file(given, key)
    if tag or not (Path(given).expanduser().is_dir() or has_checksum(file)):
        raise UserError(
            f"{key}={given}: no network that a run left; name a finished run, or a checkpoint of one (weights of "
            f"others become a run's by strategy=transfer_frozen init_from={given})"
        )
    return file


def weights_identity(given: str, key: str) -> str:
    """Return what the weights *are*: the digest of their file, or their tag."""
    found = weights(given, key)
    return found if isinstance(found, str) else file_digest(found, key)


def _in_package(given: str, key: str) -> Path:
    """Return a file inside an installed package, which is not imported."""
    name, _, inside = given.removeprefix(PACKAGE).partition("/")
    if not (name.isidentifier() and inside):
        raise UserError(f"{key}={given}: write package:PACKAGE/FILE, the package by the name it is imported by")
    spec = find_spec(name)
    places = list(spec.submodule_search_locations or ()) if spec else []
    if not places:
        raise UserError(f"{key}={given}: no package {name} is installed here; pip install it, or name a file")
    found = next((path for place in places if (path := Path(place, inside)).is_file()), None)
    if found is None:
        raise UserError(f"{key}={given}: {places[0]} has no file {inside}")
    return found


def first_data(given: str) -> tuple[DataConfig | None, str]:
    """Return the data that the run ``given`` learned from, if it is at hand and as it was; else None and why not."""
    folder = RunFolder(Path(given).expanduser())
    if not folder.config_file.is_file():
        return None, f"{given} is no run's folder"
    data = stored_config(folder).data
    recorded = (read_record(folder) or {}).get("identity", {}).get("data", {}).get("fingerprint", "")
    try:
        changed = recorded != fingerprint(data)
    except UserError as error:
        return None, str(error)
    return (None, "its data has changed since") if changed else (data, "")
