"""Compare k nearest neighbours among 60,000 Fashion-MNIST images with scikit-learn: predictions, memory and time.

Prints how many of 10,000 predictions agree; by how much memory grew in storing the training images and predicting (the
peak of a separate process, without the images); and the median ratio of the times for each 1,000 test images, in which
the two take turns with the same number of threads, scikit-learn on float32 (its fastest). The script ends with an error
if predictions differ or memory grew by 1 GB.
"""

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import numpy as np

from lengths import length

K = 5
LIMIT_BYTES = 10**9
BATCH, TURN = 512, 1000  # images in a batch, test images in a turn
TEST_IMAGES = length(10_000, 2_000)
FOLDER = sys.argv[1] if len(sys.argv) > 1 else None
MEASURES_MEMORY = "NEIGHBOURS_MEMORY"  # set in the environment of the process that measures it


def read_dataset() -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Read training images (N, 1, 28, 28) and labels, test images and labels."""
    from tutelage.data.datasets.fashion_mnist import fashion_mnist

    source = fashion_mnist(FOLDER, 28, 1)
    images = np.stack([source.images[i].transpose(2, 0, 1) for i in range(len(source.labels))])
    train, test = source.train, source.test[:TEST_IMAGES]
    return images[train], source.labels[train], images[test], source.labels[test]


def store_images(images: np.ndarray, labels: np.ndarray, folder: str) -> Callable[[np.ndarray], np.ndarray]:
    """Store the training images and return the function that predicts the classes of test images (N, 1, 28, 28)."""
    import torch

    from tutelage.data import EvalBatch
    from tutelage.models import ImageSpec, NearestNeighbours

    def batches() -> Iterator[EvalBatch]:
        for start in range(0, len(images), BATCH):
            rows = slice(start, start + BATCH)
            numbers = torch.arange(len(labels[rows]))
            yield EvalBatch(torch.from_numpy(images[rows]), torch.from_numpy(labels[rows]), numbers)

    network = NearestNeighbours(ImageSpec(1, 28, tuple(map(str, range(10))), (0.3,), (0.3,)), k=K)
    network.memorise(batches(), len(images), Path(folder))

    def predict(images: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            pieces = [torch.from_numpy(images[start : start + BATCH]) for start in range(0, len(images), BATCH)]
            return torch.cat([network(piece).argmax(dim=1) for piece in pieces]).numpy()

    return predict


def time_call(predict: Callable[[], np.ndarray]) -> tuple[np.ndarray, float]:
    """Return the result of ``predict`` and its seconds."""
    started = time.perf_counter()
    predictions = predict()
    return predictions, time.perf_counter() - started


def print_memory_growth() -> None:
    """Print by how many bytes this process's memory grew in storing the training images and predicting."""
    import torch  # noqa: F401 - before the memory is first read

    import tutelage.models  # noqa: F401

    images, labels, test_images, _ = read_dataset()
    with suppress(OSError):  # a kernel without it counts an earlier peak too
        Path("/proc/self/clear_refs").write_text("5")  # resets the peak
    bytes_before = read_memory("VmRSS")
    with tempfile.TemporaryDirectory() as folder:
        store_images(images, labels, folder)(test_images)
    print(read_memory("VmHWM") - bytes_before)


def read_memory(field: str) -> int:
    """Return the bytes of memory that this process has now (``VmRSS``) or had at its peak (``VmHWM``)."""
    status = Path("/proc/self/status").read_text()
    return 1024 * int(next(line.split()[1] for line in status.splitlines() if line.startswith(field)))


def main() -> None:
    """Print the comparison; end with an error if predictions differ or memory grew too much."""
    from sklearn.neighbors import KNeighborsClassifier

    command = [sys.executable, __file__, *sys.argv[1:]]
    environment = {**os.environ, MEASURES_MEMORY: "1"}
    growth = int(subprocess.run(command, capture_output=True, check=True, env=environment).stdout)
    images, labels, test_images, _ = read_dataset()
    flat_images, flat_test_images = (part.reshape(len(part), -1).astype(np.float32) for part in (images, test_images))
    reference = KNeighborsClassifier(K, algorithm="brute", n_jobs=-1).fit(flat_images, labels)
    equal, ratios, seconds = 0, [], np.zeros(2)
    with tempfile.TemporaryDirectory() as folder:
        predict = store_images(images, labels, folder)
        predict(test_images[:BATCH])
        for start in range(0, len(test_images), TURN):
            turn = slice(start, start + TURN)
            predictions, own_seconds = time_call(lambda turn=turn: predict(test_images[turn]))
            expected, reference_seconds = time_call(lambda turn=turn: reference.predict(flat_test_images[turn]))
            equal += int((predictions == expected).sum())
            ratios.append(own_seconds / reference_seconds)
            seconds += own_seconds, reference_seconds
    print(f"predictions that agree      {equal:,} of {len(test_images):,}")
    print(f"peak memory grew by         {growth / 1e6:.0f} MB")
    print(f"seconds, scikit-learn's     {seconds[0]:.1f}, {seconds[1]:.1f}")
    print(f"median ratio                {np.median(ratios):.2f} (aim: below 1)")
    if equal < len(test_images) or growth > LIMIT_BYTES:
        sys.exit(f"neighbours: predictions differ, or memory grew by more than {LIMIT_BYTES / 1e6:.0f} MB")


if __name__ == "__main__":
    print_memory_growth() if os.environ.get(MEASURES_MEMORY) else main()
