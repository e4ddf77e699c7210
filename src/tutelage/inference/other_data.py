"""Another test set: which dataset the user's words name, read as a network sees pictures."""

from collections.abc import Sequence
from pathlib import Path

from tutelage.config import DataConfig
from tutelage.config.compose import compose
from tutelage.config.data import FILES, KNOWN_TO, OPTIONS
from tutelage.config.path_values import override_key
from tutelage.errors import UserError

TABLE, FOLDER = "Table", "ImageFolder"  # classes that read files
TYPED = ("data", "data.root", "data.layout", "data.limit", "data.on_bad_image", "data.num_workers")
# of the network's data: how pictures are read and brought to size
SEEN = ("image_size", "channels", "mean", "std", "fit", "background", "white", "max_pixels")


def compose_other_data(network_data: DataConfig, overrides: Sequence[str], config_dirs: Sequence[str]) -> DataConfig:
    """Return the config of the dataset that a network is tested on.

    Args:
        network_data: how the network sees pictures.
        overrides: ``data=`` and keys of it. Without ``data=``, a file is a table; a folder is read as that of the
            network's run where it was one of people's own pictures, else as ``image_folder``.
        config_dirs: users' own config folders.

    Raises:
        UserError: the config is refused, or a key is not one of ``TYPED``.
    """
    keys = {override_key(override): override.partition("=")[2] for override in overrides}
    if unknown := sorted(set(keys) - set(TYPED)):
        raise UserError(
            f"{unknown[0]}: no key of a test set; there are {', '.join(TYPED)}. How pictures are brought to size is "
            "the network's"
        )
    target = _guess_target(network_data, keys.get("data.root", ""))
    option = [] if "data" in keys else [f"data={OPTIONS.get(target.rpartition('.')[2], 'image_folder')}"]
    composed = compose([*option, *overrides, "recipe=none"], config_dirs).data
    values = composed.model_dump(by_alias=True)
    if option:
        values["_target_"] = target
    name = values["_target_"].rpartition(".")[2]
    for key in SEEN:
        if name in KNOWN_TO.get(key, (name,)):
            values[key] = getattr(network_data, key)
    if "data.num_workers" not in keys:
        values["num_workers"] = network_data.num_workers
    return DataConfig.model_validate(values | {"validation": "none", "balance": "none"})


def _guess_target(network_data: DataConfig, root: str) -> str:
    """Return the class that reads ``data.root`` where ``data=`` is not typed."""
    name, target = network_data.target.rpartition(".")[2], network_data.target
    is_file = Path(root).expanduser().is_file()
    if network_data.is_ours and (name not in OPTIONS or (name in FILES and is_file != (name == TABLE))):
        return f"tutelage.data.{TABLE if is_file else FOLDER}"
    return target
