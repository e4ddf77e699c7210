"""A digest of a dataset's files: what identifies the data beyond its config. Our own datasets need no torch for it."""

from tutelage.config import DataConfig
from tutelage.config.targets import failures_as_user_errors
from tutelage.data.datasets import huggingface, image_files
from tutelage.data.datasets.download import OnProgress, ignore_progress
from tutelage.data.datasets.image_files import LISTINGS
from tutelage.data.files.listing import find_path
from tutelage.data.files.names import printable
from tutelage.data.files.scan import digest_contents
from tutelage.data.shards.pools import is_remote
from tutelage.errors import UserError
from tutelage.storage import digest

# datasets that their names identify: they have no fingerprint
NAMED_DATA = {
    "CIFAR10",
    "CIFAR100",
    "Digits",
    "FashionMNIST",
    "MNIST",
    "STL10",
    "SVHN",
}


def fingerprint(config: DataConfig, on_progress: OnProgress = ignore_progress) -> str:
    """Return a digest of the data beyond its config; empty for a dataset that its name identifies.

    Args:
        config: the data.
        on_progress: called during long reads.

    Raises:
        UserError: the data is not there.
    """
    module, _, name = config.target.rpartition(".")
    if module == "tutelage.data" and name in LISTINGS:
        return image_files.fingerprint(LISTINGS[name](config), config, on_progress)
    if module == "tutelage.data" and name == "HuggingFace":
        return huggingface.content_fingerprint(config, on_progress)
    if module == "tutelage.data" and name in NAMED_DATA:
        return default_fingerprint(config, on_progress)
    from tutelage.data.modules import DataRuntime
    from tutelage.data.named_datasets import data_module

    data = data_module(config, DataRuntime(on_progress=on_progress))
    with failures_as_user_errors(type(data), f"data: {name}.fingerprint() for data.root={config.root}"):
        value: object = data.fingerprint()
        if not isinstance(value, str):
            raise TypeError(f"a string is to be returned, not a {type(value).__name__}")
        return value


def default_fingerprint(config: DataConfig, on_progress: OnProgress = ignore_progress) -> str:
    """Return the fingerprint of a dataset whose class does not compute one: a digest of all files of the data.

    Those at ``data.root`` and ``data.unlabelled``: their names and contents. A URL stands for what is there.

    Raises:
        UserError: there is no such path, or ``data.root`` is not set.
    """
    module, _, name = config.target.rpartition(".")
    if module == "tutelage.data" and name in NAMED_DATA:
        setting = f"data.root={printable(config.root or '')}"
        if config.root is not None and not find_path(config.root, setting).is_dir():
            raise UserError(f"{setting}: no such folder")
        return ""
    if config.root is None:
        raise UserError(
            f"data.root=null: nothing says which data {config.target} reads, and changed data would get an old result; "
            f"set data.root to its folder or file, or define fingerprint() in {name}"
        )
    return digest(
        [
            location if location is None or is_remote(location) else _digest_path(key, location, on_progress)
            for key, location in (("data.root", config.root), ("data.unlabelled", config.unlabelled))
        ]
    )


def _digest_path(key: str, location: str, on_progress: OnProgress) -> str:
    setting = f"{key}={printable(location)}"
    return digest_contents(find_path(location, setting), setting, on_progress)
