"""k nearest neighbours among 60,000 Fashion-MNIST images: the same answers as scikit-learn's, memory, and time.

Prints whether all 10,000 answers agree, how much memory the whole of it took beyond what was there before (the peak of
a process of its own, the images not counted), and the ratio of the times, scikit-learn on float32 (its fastest) with
as many threads. Ends with an error where answers differ, memory grew by 1 GB, or scikit-learn was faster.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from resource import RUSAGE_SELF, getrusage

import numpy as np

K = 5
LIMIT_BYTES = 10**9
FOLDER = sys.argv[1] if len(sys.argv) > 1 else None


def images_and_labels() -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Return training images (N, 1, 28, 28) and labels, test images and labels."""
    from tutelage.data.fashion_mnist import fashion_mnist

    source = fashion_mnist(FOLDER, 28, 1)
    images = np.stack([source.images[i] for i in range(len(source.labels))]).transpose(0, 3, 1, 2)
    images = np.ascontiguousarray(images)
    return images[source.train], source.labels[source.train], images[source.test], source.labels[source.test]


def ours() -> None:
    """In a process of its own: answer, and print what it took."""
    import torch

    from tutelage.data import Plain
    from tutelage.models import ImageSpec, NearestNeighbours

    train, labels, test, _ = images_and_labels()
    network = NearestNeighbours(ImageSpec(1, 28, tuple(map(str, range(10))), (0.3,), (0.3,)), k=K)
    before = getrusage(RUSAGE_SELF).ru_maxrss
    started = time.perf_counter()
    pieces = [slice(start, start + 512) for start in range(0, len(train), 512)]
    batches = (
        Plain(torch.from_numpy(train[some]), torch.from_numpy(labels[some]), torch.arange(len(labels[some])))
        for some in pieces
    )
    with tempfile.TemporaryDirectory() as folder, torch.inference_mode():
        network.memorise(batches, len(train), Path(folder))
        stored = time.perf_counter()
        answers = [
            network(torch.from_numpy(test[start : start + 512])).argmax(dim=1) for start in range(0, 10_000, 512)
        ]
    answered = time.perf_counter()
    print(
        json.dumps(
            {
                "store": stored - started,
                "answer": answered - stored,
                "bytes": (getrusage(RUSAGE_SELF).ru_maxrss - before) * 1024,
                "answers": torch.cat(answers).tolist(),
            }
        )
    )


def main() -> None:
    """Compare."""
    from sklearn.neighbors import KNeighborsClassifier

    train, labels, test, truth = images_and_labels()
    command = [sys.executable, __file__, *sys.argv[1:]]
    found = json.loads(subprocess.run(command, capture_output=True, check=True, env={**os.environ, "OURS": "1"}).stdout)
    flat, asked = (images.reshape(len(images), -1).astype(np.float32) for images in (train, test))
    reference = KNeighborsClassifier(K, algorithm="brute", n_jobs=-1).fit(flat, labels)
    started = time.perf_counter()
    expected = reference.predict(asked)
    theirs = time.perf_counter() - started
    same = int((np.array(found["answers"]) == expected).sum())
    print(f"answers as scikit-learn's   {same:,} of {len(expected):,}  (accuracy {(expected == truth).mean():.4f})")
    print(f"peak memory grew by         {found['bytes'] / 1e6:.0f} MB")
    print(f"seconds to store, answer    {found['store']:.2f}, {found['answer']:.2f}")
    print(f"scikit-learn's seconds      {theirs:.2f}")
    print(f"ratio                       {found['answer'] / theirs:.2f}")
    if same < len(expected) or found["bytes"] > LIMIT_BYTES or found["answer"] > theirs:
        sys.exit("neighbours: not equal, not small, or not faster")


if __name__ == "__main__":
    ours() if os.environ.get("OURS") else main()
