"""Which code a run was made by: this package's, and that of other packages whose classes its config names."""

import subprocess
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from tutelage import __version__
from tutelage.config.foreign_code import DIGEST, describe_code

SHOWN_LENGTH = 10  # characters of a digest in a line
FOREIGN_CODE = "foreign_code"  # the record's key
OURS = "tutelage"


def describe_current_code(packages: Iterable[str]) -> dict[str, Any]:
    """Return the record's entries on the code that runs now.

    Args:
        packages: the top-level packages outside ours that the config's classes may be in.
    """
    foreign = {package: describe_code(package) for package in packages}
    return {"version": __version__, "git": git_commit(), FOREIGN_CODE: foreign}


def describe_other_code(record: Mapping[str, Any]) -> str:
    """Return the code that made a run in any of its sessions and is not today's, beside today's; empty if none is.

    A package that cannot be found now is not compared.
    """
    sessions = [_describe_packages(session) for session in record.get("sessions") or [record]]
    packages = sorted({package for session in sessions for package in session} - {OURS})
    lines = []
    for package, now in _describe_packages(describe_current_code(packages)).items():
        others = dict.fromkeys(made_by for session in sessions if (made_by := session.get(package)) not in {None, now})
        if others and now:
            lines.append(f"{package} {' and '.join(others)} (now {now})")
    return ", ".join(lines)


def _describe_packages(code: Mapping[str, Any]) -> dict[str, str]:
    """Return a short description of each package in a record's entries on code."""
    git = code["git"]
    commit = "" if git is None else f" ({git[:SHOWN_LENGTH]}{'+' if git.endswith('+') else ''})"
    foreign = {package: _shorten(text, package) for package, text in code.get(FOREIGN_CODE, {}).items()}
    return {OURS: f"{code['version']}{commit}", **foreign}


def _shorten(description: str, package: str) -> str:
    """Return what ``describe_code`` says of a package: its version without its name, or the start of its digest."""
    kind, _, digest = description.partition(" ")
    return f"{kind} {digest[:SHOWN_LENGTH]}" if kind == DIGEST else description.removeprefix(f"{package} ")


@cache
def git_commit() -> str | None:
    """Return the git commit of the code, with a + where files were changed since; None outside a checkout."""
    root = Path(__file__).parents[3]
    if not (root / ".git").exists():  # installed from a wheel: a repository around it is not ours
        return None
    try:
        head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=root, capture_output=True, text=True, check=True)  # noqa: S607
        changed = subprocess.run(["git", "status", "--porcelain"], cwd=root, capture_output=True, text=True, check=True)  # noqa: S607
    except (OSError, subprocess.CalledProcessError):
        return None
    return head.stdout.strip() + ("+" if changed.stdout.strip() else "")
