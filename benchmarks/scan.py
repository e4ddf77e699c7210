"""Measure the scan of a folder of 50,000 small files: seconds of the first scan, and of a second without changed files.

The script ends with an error if the first takes 60 s or more, or the second 3 s or more.
"""

import os
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

from lengths import length

FILES, CLASSES, SIDE = length(50_000, 5_000), 50, 64
FIRST_LIMIT, SECOND_LIMIT = length(60.0, 5.0), length(3.0, 0.6)


def main() -> None:
    """Write the folder and scan it twice; end with an error if a scan takes too long."""
    with tempfile.TemporaryDirectory() as top:
        os.environ["XDG_CACHE_HOME"] = f"{top}/cache"
        from tutelage.config.compose import compose
        from tutelage.data.datasets.image_files import image_files
        from tutelage.data.files.folders import list_folder

        config = compose(["data=image_folder", f"data.root={top}/images"]).data

        rng = np.random.default_rng(0)
        pictures = [Image.fromarray(rng.integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)) for _ in range(20)]
        for number in range(FILES):
            folder = Path(top, "images", f"{number % CLASSES:02}")
            folder.mkdir(parents=True, exist_ok=True)
            kind = "jpg" if number % 2 else "png"
            pictures[number % len(pictures)].save(folder / f"{number}.{kind}")

        def scan() -> float:
            started = time.perf_counter()
            listing = list_folder(f"{top}/images")
            listing.fingerprint()
            assert len(image_files(listing, config).labels) == FILES
            return time.perf_counter() - started

        first, second = scan(), scan()
    print(f"scan of {FILES:,} files: {first:.1f} s, again {second:.2f} s")
    if first >= FIRST_LIMIT or second >= SECOND_LIMIT:
        sys.exit(f"scan: too slow (limits: {FIRST_LIMIT:.0f} s, {SECOND_LIMIT} s again)")


if __name__ == "__main__":
    main()
