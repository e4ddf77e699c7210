"""The folder of the configs and the options of its groups, read without Hydra."""

from collections.abc import Sequence
from pathlib import Path

BASE = "base"  # a file of this name is what the options of its group begin with, and no option itself


def conf_dir() -> Path:
    """Return the folder of the configs: inside the installed package, or at the top of the checkout."""
    packaged = Path(__file__).parent / "conf"
    return packaged if packaged.is_dir() else Path(__file__).parents[2] / "conf"


def list_options(config_dirs: Sequence[str] = ()) -> dict[str, dict[str, str]]:
    """Return, for each group, the names of its options with the first comment line of each file.

    Args:
        config_dirs: users' own config folders, whose options follow ours.
    """
    groups: dict[str, dict[str, str]] = {}
    for folder in (conf_dir(), *map(Path, config_dirs)):
        for file in [*sorted(folder.glob("*/*.yaml")), *sorted(folder.glob("hydra/*/*.yaml"))]:
            if file.stem == BASE:
                continue
            lines = file.read_text(errors="replace").splitlines()
            comments = [line[1:].strip() for line in lines if line.startswith("#")]
            summary = next((line for line in comments if not line.startswith("@")), "")
            groups.setdefault(file.parent.relative_to(folder).as_posix(), {})[file.stem] = summary
    return groups
