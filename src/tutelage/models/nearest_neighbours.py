"""k nearest neighbours (Cover & Hart 1967): the labelled images are the model."""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from tutelage.data import EvalBatch
from tutelage.errors import UserError
from tutelage.models.base import ImageClassifier, ImageSpec
from tutelage.models.weights.files import make_classifier
from tutelage.storage import sound_digest, write_checked

BANK_FILES = BANK, BANK_LABELS = ("bank.npy", "bank_labels.npy")
BLOCK_BYTES = 8 << 20  # of the bank, and of distances to it, that are held at once; larger ones leave the caches
SPARE = 11  # candidates beyond k, so that rounding of float32 cannot hide a neighbour
QUERY_BYTES = 24 << 20  # of questions, as float64, that are answered at once
NO_VOTE = 1e-6  # the share that stands for none: its logarithm is finite
UNIT_ROUNDOFF = float(np.finfo(np.float32).eps) / 2


class NearestNeighbours(ImageClassifier):
    """The share of each class among the ``k`` labelled images that are nearest in Euclidean distance.

    Compared are raw pixels, or a backbone's features of them; images are stored as they are, without augmentation.
    The bank is a file beside the checkpoint, memory-mapped and read in blocks: memory does not grow with it. Equal
    votes go to the class of the lower index.
    """

    head: "Votes"
    bank_sha256: Tensor

    def __init__(self, spec: ImageSpec, *, k: int = 5, backbone: dict[str, Any] | None = None) -> None:
        super().__init__(spec)
        self._on_pixels = backbone is None
        self.backbone = nn.Flatten() if backbone is None else make_classifier(backbone, spec).backbone
        self.head = Votes(k, len(spec.classes))
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
        """Write the bank of ``count`` images in one pass, whole or absent, and use it from then on."""
        labels: list[np.ndarray] = []

        def write(file: Any) -> None:
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
            digest = write_checked(folder / BANK, write)
        of_labels = write_checked(folder / BANK_LABELS, lambda file: np.save(file, np.concatenate(labels)))
        digests = [torch.frombuffer(bytearray.fromhex(one), dtype=torch.uint8) for one in (digest, of_labels)]
        self.bank_sha256.copy_(torch.stack(digests))
        self.attach(folder)

    def attach(self, folder: Path) -> None:
        """Map the bank that lies in ``folder``.

        Raises:
            UserError: it is missing or damaged, or another network's.
        """
        for name, expected in zip(BANK_FILES, self.bank_sha256, strict=True):
            if sound_digest(folder / name) != bytes(expected.cpu().numpy()).hex():
                raise UserError(
                    f"{folder / name}: missing or damaged (its checksum differs); the run's command makes it again"
                )
        bank = np.load(folder / BANK, mmap_mode="r", allow_pickle=False)
        self.head.hold(bank, np.load(folder / BANK_LABELS, allow_pickle=False))


class Votes(nn.Module):
    """The labels of the ``k`` nearest entries of a bank, as log-shares of the classes."""

    def __init__(self, k: int, classes: int) -> None:
        super().__init__()
        self._k = k
        self._classes = classes
        self._bank: np.ndarray | None = None
        self._labels = torch.empty(0, dtype=torch.int64)

    def hold(self, bank: np.ndarray, labels: np.ndarray) -> None:
        """Compare with the rows of ``bank`` (N, D) and their ``labels`` (N,) from now on."""
        self._bank, self._labels = bank, torch.from_numpy(labels)

    def forward(self, features: Tensor) -> Tensor:
        """Return log-shares (B, C) float32 of the classes among the neighbours of features (B, D)."""
        if self._bank is None:  # nothing is known yet: every class alike
            return 0 * features.float().sum(dim=1, keepdim=True).expand(-1, self._classes)
        found = nearest(features, self._bank, self._k)
        votes = torch.nn.functional.one_hot(self._labels[found], self._classes).float().mean(dim=1)
        return votes.clamp(min=NO_VOTE).log().to(features.device)


def nearest(queries: Tensor, bank: np.ndarray, k: int) -> Tensor:
    """Return the indices (B, min(k, N)) int64, on the CPU, of each query's nearest rows of the bank, nearest first.

    Candidates are found in float32, by blocks of the bank, and put in order by their distances in float64. A query
    whose last candidate is not farther than its k-th neighbour by more than float32 can err (Higham 2002, section 3.1)
    is looked up in float64 throughout.

    Args:
        queries: (B, D), of the bank's type, on any device.
        bank: (N, D), possibly memory-mapped.
        k: how many.
    """
    at_once = max(1, QUERY_BYTES // (8 * bank.shape[1]))
    return torch.cat([_nearest(some, bank, min(k, len(bank))) for some in torch.split(queries, at_once)])


def _nearest(queries: Tensor, bank: np.ndarray, k: int) -> Tensor:
    wanted = min(k + SPARE, len(bank))
    plain = queries.cpu().double()
    beyond, candidates, longest = _candidates(queries.float(), bank, wanted)
    found, distances = _in_order(plain, bank, candidates, k)
    if wanted < len(bank):
        lengths = plain.norm(dim=1)
        may_err = (plain.shape[1] + 2) * UNIT_ROUNDOFF * longest * (longest + 2 * lengths)
        unsure = torch.nonzero(beyond + lengths.square() - may_err <= distances[:, -1]).flatten()
        if len(unsure):
            found[unsure] = _in_order(plain[unsure], bank, _candidates(plain[unsure], bank, wanted)[1], k)[0]
    return found


def _candidates(queries: Tensor, bank: np.ndarray, count: int) -> tuple[Tensor, Tensor, float]:
    """Return, in the precision of ``queries`` (B, D), what the ``count`` nearest rows of the bank are.

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
        kept = merged.topk(min(count, merged.shape[1]), largest=False)
        values, indices = kept.values, torch.cat([indices, best.indices + start], dim=1).gather(1, kept.indices)
    return values[:, -1].double().cpu(), indices.sort(dim=1).values.cpu(), longest**0.5


def _in_order(queries: Tensor, bank: np.ndarray, candidates: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Return the ``k`` nearest of each query's candidates, nearest first, and their squared distances in float64."""
    pairs = candidates.flatten()
    asker = torch.arange(len(queries)).repeat_interleave(candidates.shape[1])
    distances = torch.empty(len(pairs), dtype=torch.float64)
    at_once = max(1, BLOCK_BYTES // (8 * bank.shape[1]))
    for start in range(0, len(pairs), at_once):
        some = slice(start, start + at_once)
        rows = torch.from_numpy(bank[pairs[some].numpy()]).double()
        distances[some] = rows.sub_(queries[asker[some]]).square_().sum(dim=1)
    by_distance = distances.view(candidates.shape).sort(dim=1, stable=True)
    return candidates.gather(1, by_distance.indices[:, :k]), by_distance.values[:, :k]
