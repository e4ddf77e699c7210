"""k nearest neighbours (Cover & Hart 1967): the labelled images are the model.

Beside scikit-learn's ``KNeighborsClassifier``: it holds all training images in memory; here they are a memory-mapped
file that is read in blocks, on a GPU too.
"""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from tutelage.config import NearestNeighboursConfig
from tutelage.data import EvalBatch
from tutelage.errors import UserError
from tutelage.models.base import ImageClassifier, ImageSpec
from tutelage.models.weights.files import make_classifier
from tutelage.storage import sound_digest, write_checked

BANK_FILES = BANK, BANK_LABELS = ("bank.npy", "bank_labels.npy")
BLOCK_BYTES = 8 << 20  # of a block of the bank, and of its distances; larger ones do not fit the processor's caches
EXTRA_CANDIDATES = 11  # beyond k, so that float32 rounding cannot hide a neighbour
QUERY_BYTES = 24 << 20  # of a block of queries, as float64
NO_VOTE = 1e-6  # the fraction of votes that stands for none: its logarithm is finite
UNIT_ROUNDOFF = float(np.finfo(np.float32).eps) / 2


class NearestNeighbours(ImageClassifier):
    """The fraction of each class among the ``k`` labelled images that are nearest in Euclidean distance.

    Raw pixels are compared, or a backbone's features of them; images are stored as they are, without augmentation. The
    bank of images is a file beside the checkpoint, memory-mapped and read in blocks: memory does not grow with it. In a
    tie the class of the lowest index wins. Arguments: ``NearestNeighboursConfig``.
    """

    head: "Votes"
    bank_sha256: Tensor

    def __init__(self, spec: ImageSpec, **arguments: Any) -> None:
        super().__init__(spec)
        config = NearestNeighboursConfig.from_arguments(arguments)
        backbone = config.backbone
        self._on_pixels = backbone is None
        self.backbone = nn.Flatten() if backbone is None else make_classifier(backbone.arguments(), spec).backbone
        self.head = Votes(config.k, len(spec.classes))
        self.register_buffer("bank_sha256", torch.zeros(len(BANK_FILES), 32, dtype=torch.uint8))

    def features(self, images: Tensor) -> Tensor:
        """Return what is compared: pixels (B, D) uint8, or features (B, D) float32."""
        return images.flatten(1) if self._on_pixels else super().features(images)

    def memorise(
        self,
        batches: Iterable[EvalBatch],
        count: int,
        folder: Path,
        after_batch: Callable[[int], None] = lambda images: None,
    ) -> None:
        """Write the bank of ``count`` images in one pass, whole or absent, and use it from then on.

        Args:
            batches: the labelled images, un-augmented.
            count: number of images.
            folder: where the bank is written.
            after_batch: called with the number of images of each batch; may raise to stop.
        """
        labels: list[np.ndarray] = []

        def write_rows(file: Any) -> None:
            for batch in batches:
                rows = np.ascontiguousarray(self.features(batch.images.to(self.device)).cpu().numpy())
                if not labels:
                    header = {"descr": rows.dtype.str, "fortran_order": False, "shape": (count, rows.shape[1])}
                    np.lib.format.write_array_header_1_0(file, header)
                file.write(rows.tobytes())
                labels.append(batch.labels.numpy())
                after_batch(len(rows))

        self.eval()
        with torch.inference_mode():
            bank_digest = write_checked(folder / BANK, write_rows)
        label_digest = write_checked(folder / BANK_LABELS, lambda file: np.save(file, np.concatenate(labels)))
        digests = [
            torch.frombuffer(bytearray.fromhex(digest), dtype=torch.uint8) for digest in (bank_digest, label_digest)
        ]
        self.bank_sha256.copy_(torch.stack(digests))
        self.attach(folder)

    def attach(self, folder: Path) -> None:
        """Memory-map the bank in ``folder``.

        Raises:
            UserError: the bank is missing or damaged, or belongs to another network.
        """
        for name, expected in zip(BANK_FILES, self.bank_sha256, strict=True):
            if sound_digest(folder / name) != bytes(expected.cpu().numpy()).hex():
                raise UserError(
                    f"{folder / name}: missing or damaged (its checksum differs); the run's command makes it again"
                )
        bank = np.load(folder / BANK, mmap_mode="r", allow_pickle=False)
        self.head.set_bank(bank, np.load(folder / BANK_LABELS, allow_pickle=False))


class Votes(nn.Module):
    """The logarithms of the classes' fractions among the labels of the ``k`` nearest rows of a bank."""

    def __init__(self, k: int, classes: int) -> None:
        super().__init__()
        self._k = k
        self._classes = classes
        self._bank: np.ndarray | None = None
        self._labels = torch.empty(0, dtype=torch.int64)

    def set_bank(self, bank: np.ndarray, labels: np.ndarray) -> None:
        """Compare with the rows of ``bank`` (N, D) and use their ``labels`` (N,) from now on."""
        self._bank, self._labels = bank, torch.from_numpy(labels)

    def forward(self, features: Tensor) -> Tensor:
        """Return log-fractions (B, C) float32 of the classes among the neighbours of features (B, D)."""
        if self._bank is None:  # without a bank all classes get the same logit
            return 0 * features.float().sum(dim=1, keepdim=True).expand(-1, self._classes)
        neighbours = find_nearest(features, self._bank, self._k)
        votes = torch.nn.functional.one_hot(self._labels[neighbours], self._classes).float().mean(dim=1)
        return votes.clamp(min=NO_VOTE).log().to(features.device)


def comparable_features(network: ImageClassifier, features: Tensor) -> Tensor:
    """Return features (B, D) of a network so that their Euclidean distance says how alike it finds two images.

    Nearest neighbours compare them as they are. Other networks compare directions: of features of unit length the
    nearest are those of the largest cosine.
    """
    if isinstance(network, NearestNeighbours):
        return features
    return torch.nn.functional.normalize(features.float().flatten(1))


def find_nearest(queries: Tensor, bank: np.ndarray, k: int) -> Tensor:
    """Return the indices (B, min(k, N)) int64, on the CPU, of each query's nearest rows of the bank, nearest first.

    Candidates are found in float32, by blocks of the bank, and sorted by their distances in float64. Where the last
    candidate of a query is not farther than its k-th neighbour by more than the error of float32 (Higham 2002, section
    3.1), the query is compared with the whole bank in float64.

    Args:
        queries: (B, D), of the bank's type, on any device.
        bank: (N, D), possibly memory-mapped.
        k: number of neighbours.
    """
    block = max(1, QUERY_BYTES // (8 * bank.shape[1]))
    return torch.cat([_find_nearest(part, bank, min(k, len(bank))) for part in torch.split(queries, block)])


def _find_nearest(queries: Tensor, bank: np.ndarray, k: int) -> Tensor:
    """Return what ``find_nearest`` does, for queries that are computed at once."""
    count = min(k + EXTRA_CANDIDATES, len(bank))
    exact = queries.cpu().double()
    last_distance, candidates, longest = _find_candidates(queries.float(), bank, count)
    neighbours, distances = _sort_candidates(exact, bank, candidates, k)
    if count < len(bank):
        lengths = exact.norm(dim=1)
        error = (exact.shape[1] + 2) * UNIT_ROUNDOFF * longest * (longest + 2 * lengths)
        unsure = torch.nonzero(last_distance + lengths.square() - error <= distances[:, -1]).flatten()
        if len(unsure):
            candidates = _find_candidates(exact[unsure], bank, count)[1]
            neighbours[unsure] = _sort_candidates(exact[unsure], bank, candidates, k)[0]
    return neighbours


def _find_candidates(queries: Tensor, bank: np.ndarray, count: int) -> tuple[Tensor, Tensor, float]:
    """Find the ``count`` nearest rows of the bank in the precision of ``queries`` (B, D).

    Returns:
        the squared distance of the last of them, less the query's squared length (B,) float64; their indices
        (B, count) in the order of the bank; the length of the longest row.
    """
    rows = max(1, BLOCK_BYTES // (queries.element_size() * max(bank.shape[1], len(queries))))
    values = torch.empty(len(queries), 0, dtype=queries.dtype, device=queries.device)
    indices = torch.empty(len(queries), 0, dtype=torch.int64, device=queries.device)
    doubled, longest = -2 * queries, 0.0
    for start in range(0, len(bank), rows):
        block = torch.from_numpy(np.array(bank[start : start + rows])).to(queries.device, queries.dtype)
        squares = block.square().sum(dim=1)
        longest = max(longest, float(squares.max()))
        distances = torch.mm(doubled, block.T).add_(squares)
        best = distances.topk(min(count, len(block)), largest=False)
        merged = torch.cat([values, best.values], dim=1)
        nearest = merged.topk(min(count, merged.shape[1]), largest=False)
        values, indices = nearest.values, torch.cat([indices, best.indices + start], dim=1).gather(1, nearest.indices)
    return values[:, -1].double().cpu(), indices.sort(dim=1).values.cpu(), longest**0.5


def _sort_candidates(queries: Tensor, bank: np.ndarray, candidates: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Return the ``k`` nearest of each query's candidates, nearest first, and their squared distances in float64."""
    pairs = candidates.flatten()
    query_of_pair = torch.arange(len(queries)).repeat_interleave(candidates.shape[1])
    distances = torch.empty(len(pairs), dtype=torch.float64)
    block = max(1, BLOCK_BYTES // (8 * bank.shape[1]))
    for start in range(0, len(pairs), block):
        part = slice(start, start + block)
        rows = torch.from_numpy(bank[pairs[part].numpy()]).double()
        distances[part] = rows.sub_(queries[query_of_pair[part]]).square_().sum(dim=1)
    by_distance = distances.view(candidates.shape).sort(dim=1, stable=True)
    return candidates.gather(1, by_distance.indices[:, :k]), by_distance.values[:, :k]
