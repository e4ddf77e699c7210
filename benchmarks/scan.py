"""Measure the scan of a folder of 50,000 small files: the first, one without changed files, and one of a copied folder.

A scan lists, reads, hashes and checks every file and looks for duplicates. In the same run the same files are listed
and decoded in threads and no more: the floor of any check.

The script ends with an error if the first scan takes more than 1.5 times as long as that, a scan without changed files
more than 2 s, or the first one of a copied folder more than 3 s.
"""

import os
import shutil
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image

from lengths import length

FILES, CLASSES, SIDE = length(50_000, 5_000), 50, 64
FILES_A_TASK, MIB = 64, 1 << 20
MOST_RATIO, MOST_UNCHANGED, MOST_COPIED = length(1.5, 2.5), length(2.0, 0.6), length(3.0, 1.0)
SETTLED_SECONDS = 2.5  # files changed later than that before a scan are not remembered


def write_files(top: Path) -> None:
    """Write JPEGs and PNGs of noise, all different, into folders of classes."""
    rng = np.random.default_rng(0)
    for number in range(FILES):
        folder = top / f"{number % CLASSES:02}"
        folder.mkdir(parents=True, exist_ok=True)
        picture = Image.fromarray(rng.integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8))
        picture.save(folder / f"{number}.{'jpg' if number % 2 else 'png'}")


def decode_files(top: Path) -> float:
    """List the files and decode each in threads, without hashes; return the seconds."""
    from tutelage.data.files.folders import list_folder
    from tutelage.data.loading.shared_memory import count_cores

    def decode(paths: list[str]) -> None:
        for path in paths:
            with Image.open(path) as image:
                image.draft(None, (1, 1))
                image.load()

    started = time.perf_counter()
    paths = [entry.path for entry in list_folder(str(top)).entries]
    with ThreadPoolExecutor(count_cores()) as executor:
        list(executor.map(decode, [paths[start : start + FILES_A_TASK] for start in range(0, FILES, FILES_A_TASK)]))
    return time.perf_counter() - started


def scan(top: Path) -> float:
    """List a folder, and do with the list what a run does for its name and for its images; return the seconds."""
    from tutelage.config.compose import compose
    from tutelage.data.datasets.image_files import LISTINGS, fingerprint, image_files

    config = compose(["data=image_folder", "recipe=none", f"data.root={top}"]).data
    started = time.perf_counter()
    listing = LISTINGS["ImageFolder"](config)
    fingerprint(listing, config)
    assert len(image_files(listing, config).labels) == FILES
    return time.perf_counter() - started


def main() -> None:
    """Write the folder, scan it and its copy; end with an error if a scan takes too long."""
    with tempfile.TemporaryDirectory() as name:
        top, copy = Path(name, "images"), Path(name, "copy")
        os.environ["XDG_CACHE_HOME"] = f"{name}/cache"
        write_files(top)
        time.sleep(SETTLED_SECONDS)
        decode_files(top)  # a first time for imports, and for what the system caches
        decoded, first, unchanged = decode_files(top), scan(top), scan(top)
        shutil.copytree(top, copy)
        time.sleep(SETTLED_SECONDS)
        copied = scan(copy)
        cached = sum(file.stat().st_size for file in Path(name, "cache").rglob("*") if file.is_file()) / MIB
    print(f"scan of {FILES:,} files: decoding alone {decoded:.1f} s, first scan {first:.1f} s ({first / decoded:.2f})")
    print(f"again {unchanged:.2f} s, copied folder {copied:.2f} s, cache {cached:.0f} MiB")
    if first > MOST_RATIO * decoded or unchanged > MOST_UNCHANGED or copied > MOST_COPIED:
        sys.exit(f"scan: too slow (limits: {MOST_RATIO}, {MOST_UNCHANGED} s, {MOST_COPIED} s)")


if __name__ == "__main__":
    main()
