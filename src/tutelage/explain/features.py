"""Features of pictures of the run's data: of training, pool and test images, and of augmented views."""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor

from tutelage.augmentation import Pipeline
from tutelage.data import UNKNOWN, ImageDataModule
from tutelage.data.fitting import fit_image
from tutelage.data.loading.batches import channels_first
from tutelage.explain.subject import Subject
from tutelage.models.nearest_neighbours import comparable_features, find_nearest
from tutelage.randomness import Key

MAX_POINTS = 200  # of each kind
MIN_POINTS = 40
MAX_CANDIDATES = 2000  # training images among which neighbours are looked for
BUDGET = 4e11  # multiply-adds that features may cost: some ten seconds of two cores
KINDS = 4  # train, pool, test and augmented points
LABELLED = "labelled"  # the stream whose draws the views are


@dataclass(frozen=True)
class Points:
    """Features of some images.

    Attributes:
        indices: (N,) of the images in the data.
        features: (N, D) float32, of unit length; of nearest neighbours as they are compared.
        labels: (N,) int64, their classes as indices into the data's; ``UNKNOWN`` where that is not known.
    """

    indices: np.ndarray
    features: np.ndarray
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.indices)

    def first(self, count: int) -> "Points":
        """Return the first ``count`` points."""
        return Points(self.indices[:count], self.features[:count], self.labels[:count])


@dataclass(frozen=True)
class Features:
    """What a network makes of the run's images.

    Attributes:
        pictures: (B, D) features of the pictures that are explained.
        candidates: training images, drawn at random where there are many.
        candidate_total: training images in all.
        train: the first of the candidates, at most ``MAX_POINTS``.
        pool: images of the pool.
        test: images of the test set.
        views: augmented views of ``train``, as the first passes of training draw them; empty without augmentation.
    """

    pictures: np.ndarray
    candidates: Points
    candidate_total: int
    train: Points
    pool: Points
    test: Points
    views: Points


def compute_features(subject: Subject, data: ImageDataModule) -> Features:
    """Return the features of the pictures, and of some of the run's images of each kind; the same at each call."""
    affordable = int(BUDGET / subject.multiply_adds)
    count = int(np.clip(affordable // (2 * KINDS), MIN_POINTS, MAX_POINTS))
    draw = partial(_draw, seed=subject.member.config.seed if subject.member.config else 0)
    labelled, splits = data.splits.labelled, data.splits
    candidates = _embed_indices(
        subject, data, draw(labelled, int(np.clip(affordable // 2, count, MAX_CANDIDATES)), "train")
    )
    train = candidates.first(count)
    return Features(
        pictures=_embed(subject, [subject.images]),
        candidates=candidates,
        candidate_total=len(labelled),
        train=train,
        pool=_embed_indices(subject, data, draw(splits.pool, count, "pool"), are_labelled=False),
        test=_embed_indices(subject, data, draw(splits.test, count, "test")),
        views=_embed_views(subject, data, train, count),
    )


def _draw(indices: np.ndarray, count: int, purpose: str, seed: int) -> np.ndarray:
    chosen: np.ndarray = Key(seed, "explain").generator(purpose).permutation(len(indices))[:count]
    drawn: np.ndarray = indices[chosen].astype(np.int64)
    return drawn


def _embed_indices(subject: Subject, data: ImageDataModule, indices: np.ndarray, are_labelled: bool = True) -> Points:
    labels = data.source.labels[indices] if are_labelled else np.full(len(indices), UNKNOWN)
    batches = data.eval_dataloader(indices, subject.classifier.batch_size) if len(indices) else ()
    return Points(indices, _embed(subject, [batch.images for batch in batches]), labels.astype(np.int64))


def _embed_views(subject: Subject, data: ImageDataModule, train: Points, count: int) -> Points:
    """Return the points of views of the training images: as many passes as give ``count`` points."""
    config, entry = subject.member.config, subject.entry
    is_augmented = config is not None and config.augmentation.transforms and entry.get("steps")
    if config is None or not is_augmented or not len(train):
        return train.first(0)
    pipeline = Pipeline(config.augmentation.transforms, Key(config.seed, subject.stage, LABELLED))
    indices = np.resize(train.indices, max(count, len(train)))
    passes = np.arange(len(indices)) // len(train)
    read = data.images.picture if pipeline.takes_any_size else data.images.__getitem__
    views = [
        fit_image(pipeline(read(index), number, index), data.config)
        for index, number in zip(indices.tolist(), passes.tolist(), strict=True)
    ]
    size = subject.classifier.batch_size
    batches = [channels_first(np.stack(views[first : first + size])) for first in range(0, len(views), size)]
    labels = np.resize(train.labels, len(indices))
    return Points(indices, _embed(subject, batches), labels)


def _embed(subject: Subject, batches: Iterable[Tensor]) -> np.ndarray:
    """Return what the network compares of the images of batches (B, C, S, S), as rows (N, D) float32."""
    features = [comparable_features(subject.network, subject.classifier.compute_features(each)) for each in batches]
    rows: np.ndarray = torch.cat(features).numpy() if features else np.empty((0, 0), np.float32)
    return rows


def nearest_distances(queries: np.ndarray, bank: np.ndarray) -> np.ndarray:
    """Return the Euclidean distance (N,) of each query (N, D) to its nearest row of the bank (M, D)."""
    distances: np.ndarray = torch.cdist(torch.from_numpy(queries), torch.from_numpy(bank)).amin(dim=1).numpy()
    return distances


def find_neighbours(queries: np.ndarray, bank: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the rows (N, K) of the bank (M, D) that are nearest to each query (N, D), and their distances (N, K)."""
    nearest = find_nearest(torch.from_numpy(queries), bank, count).numpy()
    return nearest, np.linalg.norm(bank[nearest] - queries[:, None], axis=2)
