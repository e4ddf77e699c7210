"""Train on a folder with six pictures of 169 million pixels beside small ones, and on one with small ones alone.

LeNet-5 at 64 pixels with the crops of `basic`, loader workers as `num_workers=auto` chooses them. Each run is a new
process with an empty cache, so it checks, decodes and shrinks every picture. Memory is the sum of the proportional set
sizes (PSS: shared pages count once) of the run's process and all its descendants, sampled every 100 ms from start to
end. The second epoch is timed by the run's own table; both folders have as many pictures, so as many steps. Of the
rounds the fastest counts: what else the machine does only adds time.

The script ends with an error if memory is above 2.5 GB, or if the second epoch takes more than 1.1 times as long as
without large pictures, by which these times vary.

    make bench
"""

import csv
import os
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path

import numpy as np
from PIL import Image

from lengths import length

LARGE, SIDE = length(6, 1), length(13_000, 5_800)
SMALL, SMALL_SIDE, CLASSES = length(3_000, 60), 64, 2
ROUNDS, SAMPLE_SECONDS, GB = length(3, 1), 0.1, 1e9
MOST_BYTES, MOST_RATIO = 2.5 * GB, length(1.1, 3.0)
WITH, WITHOUT = "with", "without"
OVERRIDES = [
    "data=image_folder",
    "recipe=none",
    "data.batch_size=32",
    "model=lenet5",
    "augmentation=basic",
    "schedule.epochs=2",
]
OVERRIDES += ["trainer=cpu", "data.num_workers=auto", "logger=csv", "callbacks=quiet"]


def write_folder(top: Path, large: int) -> None:
    """Write ``SMALL`` PNGs of noise and ``LARGE`` more, of which ``large`` are large, into folders of classes."""
    rng = np.random.default_rng(0)
    for number in range(SMALL + LARGE):
        folder = top / str(number % CLASSES)
        folder.mkdir(parents=True, exist_ok=True)
        pixels = rng.integers(0, 256, (SMALL_SIDE, SMALL_SIDE, 3), dtype=np.uint8)
        if number < large:
            tiles = -(-SIDE // SMALL_SIDE)
            pixels = np.tile(pixels, (tiles, tiles, 1))[:SIDE, :SIDE]
        Image.fromarray(pixels).save(folder / f"{number}.png", compress_level=1)


def list_tree(process: int) -> list[int]:
    """Return the numbers of a process and of all its descendants."""
    found = [process]
    for parent in found:
        for file in Path(f"/proc/{parent}/task").glob("*/children"):
            with suppress(OSError):  # it has ended
                found += map(int, file.read_text().split())
    return found


def read_pss(process: int) -> int:
    """Return the proportional set size of a process in bytes; 0 if it has ended."""
    with suppress(OSError):
        for line in Path(f"/proc/{process}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return 1024 * int(line.split()[1])
    return 0


def run(root: Path, top: Path) -> tuple[float, float]:
    """Train on a folder; return the peak of memory in bytes and the seconds of the second epoch."""
    top.mkdir()
    environment = {**os.environ, "XDG_CACHE_HOME": str(top / "cache")}
    command = [sys.executable, "-m", "tutelage.train", *OVERRIDES, f"data.root={root}", f"paths.outputs={top}"]
    peak = 0
    with (top / "log").open("w") as log, subprocess.Popen(command, stdout=log, stderr=log, env=environment) as process:
        while process.poll() is None:
            peak = max(peak, sum(map(read_pss, list_tree(process.pid))))
            time.sleep(SAMPLE_SECONDS)
    if process.returncode:
        raise SystemExit(f"large_files: exit code {process.returncode}:\n{(top / 'log').read_text()}")
    (table,) = top.glob("*/*/metrics.csv")
    first, second = (float(row["seconds"]) for row in csv.DictReader(table.open()))
    return peak, second - first


def main() -> None:
    """Print every round, the most memory and the fastest epochs' ratio; end with an error if a limit is passed."""
    with tempfile.TemporaryDirectory() as name:
        top = Path(name)
        roots = {WITH: top / "images-with", WITHOUT: top / "images-without"}
        write_folder(roots[WITH], LARGE)
        write_folder(roots[WITHOUT], 0)
        peaks, seconds = ({side: list[float]() for side in roots} for _ in range(2))
        for number in range(ROUNDS):
            for side in list(roots) if number % 2 else list(roots)[::-1]:
                peak, duration = run(roots[side], top / f"{number}-{side}")
                peaks[side].append(peak)
                seconds[side].append(duration)
            figures = ", ".join(f"{side} {peaks[side][-1] / GB:.2f} GB, {seconds[side][-1]:.2f} s" for side in roots)
            print(f"round {number + 1}: {figures}", flush=True)
    peak, ratio = max(peaks[WITH]), min(seconds[WITH]) / min(seconds[WITHOUT])
    pictures = f"{LARGE} PNGs of {SIDE} x {SIDE} beside {SMALL} of {SMALL_SIDE} x {SMALL_SIDE}"
    print(
        f"{pictures}: at most {peak / GB:.2f} GB over all processes (aim: {MOST_BYTES / GB}), "
        f"{max(peaks[WITHOUT]) / GB:.2f} GB without them; the second epoch takes {ratio:.2f} times as long as without "
        "them (aim: 1)"
    )
    if peak > MOST_BYTES or ratio > MOST_RATIO:
        sys.exit(f"large_files: too much memory, or too slow (limits: {MOST_BYTES / GB} GB, {MOST_RATIO})")


if __name__ == "__main__":
    main()
