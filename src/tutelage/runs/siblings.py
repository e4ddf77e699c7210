"""Finished runs that differ from a new one in the length of their schedule alone. Needs no torch."""

import json
from collections.abc import Mapping
from heapq import nlargest
from pathlib import Path
from typing import Any

from tutelage.runs.folder import FINISHED, RunFolder

MOST_RUNS = 200  # that are looked at, the newest ones
SCHEDULE = "schedule"  # in a run's identity


def find_other_schedule(folder: RunFolder, identity: Mapping[str, Any]) -> Path | None:
    """Return the newest finished run beside a run that differs from it in its schedule alone; None if there is none.

    Folders that cannot be read are passed over.

    Args:
        folder: of the run, which need not exist.
        identity: the scientific part of the run's config.
    """
    science = _without_schedule(identity)
    for record_file in nlargest(MOST_RUNS, folder.path.parent.glob("*/run.json"), key=_modified):
        try:
            record = json.loads(record_file.read_text())
            is_finished, other = record["status"] == FINISHED, dict(record["identity"])
        except (OSError, ValueError, KeyError, TypeError):
            continue
        if is_finished and other != identity and _without_schedule(other) == science:
            return record_file.parent
    return None


def _without_schedule(identity: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in identity.items() if key != SCHEDULE}


def _modified(file: Path) -> float:
    try:
        return file.stat().st_mtime
    except OSError:
        return 0.0
