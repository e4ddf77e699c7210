"""The runs below a folder. Of ten thousand, those that are as they were are taken from a cache. Needs no torch.

The cache holds finished runs that are whole, and for each what its row is made of: when ``run.json`` and the folders in
the run's folder have changed last, and the sizes of the files that the run needs. If anything differs, the run is read
again. Whatever cannot be read or written of the cache is done without.
"""

import json
import os
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tutelage import __version__
from tutelage.runs.folder import RunFolder
from tutelage.runs.integrity import Health, needed_sizes
from tutelage.runs.summary import ODD, RunSummary, find_run_folders, local_time, measure_folder, summarize_run
from tutelage.storage import cache_folder, digest, write_text

FORMAT = [1, __version__]  # of the cache; the number rises where its entries change
KEY_LENGTH = 16
SETTLED_NS = 2 * 10**9  # since the last change: a file system's clock may be so coarse that a later one looks the same
NOT_CACHED = ("path", "started", "status", "reason")  # of a summary: known without it, or told in local time


def list_summaries(root: Path) -> list[RunSummary]:
    """Return what there is to say of the runs below a folder, the one that was started last at the end.

    Raises:
        UserError: there is no such folder.
    """
    folders = list(find_run_folders(root))
    file = cache_file(root)
    entries, kept, summaries = _read_cache(file), {}, []
    prefix = len(os.path.join(root, ""))  # noqa: PTH118 - with the slash
    for folder in folders:
        name = folder[prefix:]
        entry = entries.get(name)
        summary = None if entry is None else _recall(folder, entry)
        if summary is None:
            summary, entry = _summarize(folder)
        if entry is not None:
            kept[name] = entry
        summaries.append(summary)
    if kept != entries:
        with suppress(OSError):
            write_text(file, json.dumps({"format": FORMAT, "runs": kept}, separators=(",", ":")))
    return sorted(summaries, key=lambda summary: summary.started)


def cache_file(root: Path) -> Path:
    """Return the file of the cache for the runs below a folder; it may not exist."""
    return cache_folder("runs") / f"{digest(str(root.resolve()))[:KEY_LENGTH]}.json"


def _read_cache(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_bytes())
        return dict(content["runs"]) if content["format"] == FORMAT else {}
    except (OSError, *ODD):
        return {}


def _recall(folder: str, entry: Mapping[str, Any]) -> RunSummary | None:
    """Return the summary of a run that is as it was when the entry was made; None where anything has changed."""
    try:
        if _sign(folder) != entry["record"]:
            return None
        for name, changed in entry["folders"].items():
            if os.stat(folder + name).st_mtime_ns != changed:  # noqa: PTH116
                return None
        for name, size in entry["files"].items():
            if os.stat(f"{folder}/{name}").st_size != size:  # noqa: PTH116
                return None
        return RunSummary(Path(folder), local_time(entry["started"]), "finished", **entry["row"])
    except (OSError, *ODD):
        return None


def _sign(folder: str) -> list[int]:
    """Return by what ``run.json`` is known: it is written by renaming a new file to it."""
    status = os.stat(f"{folder}/run.json")  # noqa: PTH116
    return [status.st_mtime_ns, status.st_size, status.st_ino]


def _summarize(folder: str) -> tuple[RunSummary, dict[str, Any] | None]:
    """Return the summary of a run, and its entry in the cache; None for a run that may change yet."""
    now, signature = time.time_ns(), None
    with suppress(OSError):
        signature = _sign(folder)
    size, folders = measure_folder(folder)
    summary, state = summarize_run(Path(folder), size)
    if state.health is not Health.WHOLE or signature is None or max(signature[0], *folders.values()) > now - SETTLED_NS:
        return summary, None
    row = {key: value for key, value in asdict(summary).items() if key not in NOT_CACHED}
    files = needed_sizes(RunFolder(Path(folder)), state.record)
    started = state.record.get("started")
    return summary, {"record": signature, "folders": folders, "files": files, "started": started, "row": row}
