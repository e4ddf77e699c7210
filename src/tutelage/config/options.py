"""The folder of the configs and the options of its groups, read without Hydra."""

from pathlib import Path


def conf_dir() -> Path:
    """Return the folder of the configs: inside the installed package, or at the top of the checkout."""
    packaged = Path(__file__).parents[1] / "conf"
    return packaged if packaged.is_dir() else Path(__file__).parents[3] / "conf"


def list_options() -> dict[str, dict[str, str]]:
    """Return, for each group, the names of its options with the first comment line of each file."""
    groups: dict[str, dict[str, str]] = {}
    for file in [*sorted(conf_dir().glob("*/*.yaml")), *sorted(conf_dir().glob("hydra/*/*.yaml"))]:
        comments = [line[1:].strip() for line in file.read_text().splitlines() if line.startswith("#")]
        summary = next((line for line in comments if not line.startswith("@")), "")
        groups.setdefault(file.parent.relative_to(conf_dir()).as_posix(), {})[file.stem] = summary
    return groups
