"""k nearest neighbours among 60,000 Fashion-MNIST images: the same answers as scikit-learn's, memory, and time.

Prints whether all 10,000 answers agree; by how much memory grew in storing and answering (the peak of a process of its
own, the images not counted); and the median ratio of the times over ten thousands of questions, which both sides answer
in turn, with as many threads, scikit-learn on float32 (its fastest). Ends with an error where answers differ or memory
grew by 1 GB.
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
AT_ONCE, TURN = 512, 1000  # images of a batch, questions of a turn
ASKED = length(10_000, 2_000)
FOLDER = sys.argv[1] if len(sys.argv) > 1 else None
MEASURES_MEMORY = "NEIGHBOURS_MEMORY"  # set in the environment of the process that does


def dataset() -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Return training images (N, 1, 28, 28) and labels, test images and labels."""
    from tutelage.data.datasets.fashion_mnist import fashion_mnist

    source = fashion_mnist(FOLDER, 28, 1)
    images = np.stack([source.images[i].transpose(2, 0, 1) for i in range(len(source.labels))])
    train, test = source.train, source.test[:ASKED]
    return images[train], source.labels[train], images[test], source.labels[test]


def ours(images: np.ndarray, labels: np.ndarray, folder: str) -> Callable[[np.ndarray], np.ndarray]:
    """Store the images, and return what answers."""
    import torch

    from tutelage.data import EvalBatch
    from tutelage.models import ImageSpec, NearestNeighbours

    def batches() -> Iterator[EvalBatch]:
        for start in range(0, len(images), AT_ONCE):
            some = slice(start, start + AT_ONCE)
            numbers = torch.arange(len(labels[some]))
            yield EvalBatch(torch.from_numpy(images[some]), torch.from_numpy(labels[some]), numbers)

    network = NearestNeighbours(ImageSpec(1, 28, tuple(map(str, range(10))), (0.3,), (0.3,)), k=K)
    network.memorise(batches(), len(images), Path(folder))

    def answer(asked: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            pieces = [torch.from_numpy(asked[start : start + AT_ONCE]) for start in range(0, len(asked), AT_ONCE)]
            return torch.cat([network(piece).argmax(dim=1) for piece in pieces]).numpy()

    return answer


def timed(work: Callable[[], np.ndarray]) -> tuple[np.ndarray, float]:
    """Return what ``work`` gives, and its seconds."""
    started = time.perf_counter()
    found = work()
    return found, time.perf_counter() - started


def memory() -> None:
    """Print by how many bytes this process grew in storing and answering."""
    import torch  # noqa: F401 - before the first look

    import tutelage.models  # noqa: F401

    images, labels, asked, _ = dataset()
    with suppress(OSError):  # where the kernel does not offer it, an earlier peak counts too
        Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here on
    before = resident("VmRSS")
    with tempfile.TemporaryDirectory() as folder:
        ours(images, labels, folder)(asked)
    print(resident("VmHWM") - before)


def resident(what: str) -> int:
    """Return the bytes of memory that this process has now (VmRSS), or had at its peak (VmHWM)."""
    status = Path("/proc/self/status").read_text()
    return 1024 * int(next(line.split()[1] for line in status.splitlines() if line.startswith(what)))


def main() -> None:
    """Compare."""
    from sklearn.neighbors import KNeighborsClassifier

    command = [sys.executable, __file__, *sys.argv[1:]]
    environment = {**os.environ, MEASURES_MEMORY: "1"}
    grown = int(subprocess.run(command, capture_output=True, check=True, env=environment).stdout)
    images, labels, asked, _ = dataset()
    flat, questions = (part.reshape(len(part), -1).astype(np.float32) for part in (images, asked))
    theirs = KNeighborsClassifier(K, algorithm="brute", n_jobs=-1).fit(flat, labels)
    same, ratios, seconds = 0, [], np.zeros(2)
    with tempfile.TemporaryDirectory() as folder:
        answer = ours(images, labels, folder)
        answer(asked[:AT_ONCE])
        for start in range(0, len(asked), TURN):
            turn = slice(start, start + TURN)
            found, own = timed(lambda turn=turn: answer(asked[turn]))
            expected, other = timed(lambda turn=turn: theirs.predict(questions[turn]))
            same += int((found == expected).sum())
            ratios.append(own / other)
            seconds += own, other
    print(f"answers as scikit-learn's   {same:,} of {len(asked):,}")
    print(f"peak memory grew by         {grown / 1e6:.0f} MB")
    print(f"seconds, scikit-learn's     {seconds[0]:.1f}, {seconds[1]:.1f}")
    print(f"median ratio                {np.median(ratios):.2f} (aim: below 1)")
    if same < len(asked) or grown > LIMIT_BYTES:
        sys.exit("neighbours: not equal, or not small")


if __name__ == "__main__":
    memory() if os.environ.get(MEASURES_MEMORY) else main()
