"""The teacher cache: a frozen network's logits, or features, computed once before a stage trains and read from a file.

The cache lies beside the runs, in ``outputs/.cached_logits/``, under a digest of everything that decides over the
logits; runs that need the same logits share them.
"""

import hashlib
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock, Timeout
from torch import Tensor, nn

from tutelage.data import (
    CLASSES,
    LOGITS_FILE,
    CachedLogits,
    CachedLogitsWriter,
    StageData,
    Stream,
    count_views,
    map_rows,
    pack_rows,
    row_dtype,
    unpack_rows,
)
from tutelage.errors import UserError
from tutelage.models import ImageClassifier, ImageSpec, Teacher, weight_hash
from tutelage.randomness import Key
from tutelage.runs.context import RunContext
from tutelage.runs.identity import IDENTITY_VERSION
from tutelage.storage import digest, remove_partials, write_json
from tutelage.strategies import TeacherSpec, TrainStage

CACHE_FOLDER = ".cached_logits"  # beside the runs, which share it
BATCH_SIZE = 128  # of forwards, where images need not come as the stage sees them
CHECKED_ROWS, CHECKED_BATCH_SIZE = 64, 8  # rows that are computed again at the start of a stage
TOLERANCE = 0.01  # of a logit or feature, relative to 1 and itself; another batch's rounding is a hundredth of it
LOWER_TOLERANCE = 0.1  # where a lower precision computed it
SAVE_SECONDS = 10.0  # of computation that a killed process may lose
POLL_SECONDS = 1.0  # between two looks whether another process is done
PACKAGES = ("torch", "numpy", "albumentations", "opencv-python-headless", "tutelage")  # that decide over logits
HASH_LENGTH = 32
BUDGET_KEYS = {  # of the data's identity: they decide over which images are in the stream, whose digest stands instead
    "batch_size",
    "validation",
    "labels",
    "labels_per_class",
    "split_seed",
    "group",
    "folds",
    "fold",
    "limit",
    "balance",
}


@dataclass(frozen=True)
class _Request:
    """The images of a stream whose logits are needed, view after view, or step after step.

    Attributes:
        stream: ordered such that the logits of its first image are the first row, and so on.
        views: number of views of each image; None for the images of every step.
        rows: number of rows of logits.
        stage_data: produces the images.
    """

    stream: Stream
    views: int | None
    rows: int
    stage_data: StageData

    @classmethod
    def of_stage(cls, context: RunContext, stage: TrainStage, spec: TeacherSpec) -> "_Request":
        (stream,) = (each for each in stage.streams(context.selections) if each.name == spec.stream)
        views, augmentation = spec.cached_views, context.config.augmentation
        if augmentation.mix is not None:
            views = None
        elif not augmentation.transforms:
            views = 1  # all are alike
        rows = stage.steps * stream.batch_size
        if views is not None:
            views = count_views(stream, stage.steps, views)
            rows = views * len(stream.indices)
            stream = replace(stream, batch_size=BATCH_SIZE, copies=np.empty(0, np.int64), even=False, shuffled=False)
        return cls(stream, views, rows, replace(context.stage_data(stage), streams=[stream]))

    def with_batch_size(self, batch_size: int) -> "_Request":
        """Return the same request in batches of another size."""
        stream = replace(self.stream, batch_size=batch_size)
        return replace(self, stream=stream, stage_data=replace(self.stage_data, streams=[stream]))

    @property
    def steps(self) -> int:
        """Number of batches."""
        return -(-self.rows // self.stream.batch_size)


def count_logits(context: RunContext, stage: TrainStage) -> int:
    """Return the number of rows of logits to be cached before a stage trains."""
    if stage.teacher is None or stage.teacher.live:
        return 0
    return _Request.of_stage(context, stage, stage.teacher).rows


def caching_part(stage: TrainStage) -> str:
    """Return the name of the part of the run in which a stage's logits are cached."""
    caches_features = stage.teacher is not None and stage.teacher.features
    return f"{stage.name}: {'backbone features' if caches_features else 'teacher logits'}"


def cache_logits(
    context: RunContext, stage: TrainStage, spec: TeacherSpec, network: ImageClassifier, teacher: Teacher | None
) -> CachedLogits:
    """Return the cached logits for a stage's images, or features; rank 0 computes those that are missing."""
    data, request = context.config.data, _Request.of_stage(context, stage, spec)
    forward: Callable[[Tensor], Tensor] = teacher or partial(_features, network.to(context.device))
    size = (1, data.channels, data.image_size, data.image_size)
    width = forward(torch.zeros(size, dtype=torch.uint8, device=context.device)).shape[1]
    has_task_heads = teacher is not None and any(each.spec.tasks for each in teacher.networks)
    dtype = row_dtype(width, exact=teacher is None, whole=has_task_heads)
    metadata = {
        **_metadata(context, stage, request),
        "networks": _describe_networks(teacher or network),
        "kind": str(dtype),
    }
    folder = Path(context.config.paths.outputs) / CACHE_FOLDER / digest(metadata)[:HASH_LENGTH]
    cache = _Cache(context, stage, request, forward, dtype, width)

    def fill() -> None:
        with _lock(context, stage, folder.with_suffix(".lock")):
            if not cache.is_valid(folder):
                cache.fill(folder, metadata)

    context.group.broadcast_from_rank0(fill)
    context.show_part(stage.name)
    return CachedLogits(folder / LOGITS_FILE, width, request.views, replaces_images=spec.features)


def _features(network: ImageClassifier, images: Tensor) -> Tensor:
    """Return the features (B, D) float32 of images, in eval mode."""
    was_training = network.training
    network.eval()
    with torch.inference_mode():
        features = network.features(images).float()
    network.train(was_training)
    return features


@dataclass(frozen=True)
class _Cache:
    """Computes the logits of a request, and checks a sample of those in a file."""

    context: RunContext
    stage: TrainStage
    request: _Request
    forward: Callable[[Tensor], Tensor]
    dtype: np.dtype[Any]
    width: int

    def is_valid(self, folder: Path) -> bool:
        """Return whether the file is complete and a sample of its rows is as computed now; else remove it."""
        stored = map_rows(folder / LOGITS_FILE, self.dtype, self.request.rows)
        if stored is None:
            return False
        if all(self._agree(rows, stored[first : first + len(rows)]) for first, rows in self._compute_sample()):
            return True
        self.context.observer.say(
            f"warning: {folder} holds other logits than those of stage {self.stage.name}'s teacher: computed again"
        )
        (folder / LOGITS_FILE).unlink(missing_ok=True)
        return False

    def fill(self, folder: Path, metadata: dict[str, Any]) -> None:
        """Compute all logits that are not in the file yet."""
        context, request = self.context, self.request
        remove_partials(folder)
        writer = CachedLogitsWriter(folder, self.dtype, request.rows)
        write_json(folder / "about.json", metadata)
        context.observer.progress(writer.fraction, {})
        saved_at = time.monotonic()
        try:
            for images in self._images(request, range(writer.batches, request.steps)):
                writer.add(self._rows(images))
                done = round(writer.fraction * request.rows)
                context.observer.progress(writer.fraction, {"images": f"{done}/{request.rows}"})
                context.check_signals()
                if time.monotonic() - saved_at > SAVE_SECONDS:
                    writer.save()
                    saved_at = time.monotonic()
        except BaseException:
            writer.save()
            raise
        writer.finish()

    def _agree(self, computed: np.ndarray, stored: np.ndarray) -> bool:
        """Return whether rows (N,) hold the same logits, within rounding that may decide which class is largest."""
        is_lower = self.context.config.trainer.precision != "32-true" and self.context.device.type == "cuda"
        tolerance = LOWER_TOLERANCE if is_lower else TOLERANCE
        values, expected = (unpack_rows(rows, self.width) for rows in (computed, stored))
        if CLASSES in (self.dtype.names or ()):
            values, expected = (torch.from_numpy(logits).softmax(dim=1).numpy() for logits in (values, expected))
        values, expected = values.astype(np.float32), expected.astype(np.float32)
        return bool((np.abs(values - expected) <= tolerance * (1 + np.abs(expected))).all())

    def _compute_sample(self) -> Iterator[tuple[int, np.ndarray]]:
        """Yield rows (N,) that are computed now, and the number of the first of them in the file."""
        request, key = self.request, Key(self.context.config.seed, self.stage.name, self.request.stream.name)
        if request.views is not None:  # logits do not depend on the batch
            request = request.with_batch_size(CHECKED_BATCH_SIZE)
        count = max(1, CHECKED_ROWS // request.stream.batch_size)
        steps = np.sort(key.generator("checked answers").permutation(request.steps)[:count]).tolist()
        for step, images in zip(steps, self._images(request, steps), strict=True):
            first = step * request.stream.batch_size
            yield first, self._rows(images[: min(CHECKED_ROWS, request.rows - first)])

    def _images(self, request: _Request, steps: Sequence[int]) -> Iterator[Tensor]:
        for batch in self.context.data.train_batches(request.stage_data, steps):
            yield batch[request.stream.name].images

    def _rows(self, images: Tensor) -> np.ndarray:
        """Return the rows (B,) of the logits of images (B, C, H, W).

        Raises:
            UserError: a logit is not finite.
        """
        logits = self.forward(images).cpu().numpy()
        if not np.isfinite(logits).all():
            raise UserError(f"stage {self.stage.name}: the teacher's logits are not finite; its weights are unusable")
        return pack_rows(logits, self.dtype)


def _metadata(context: RunContext, stage: TrainStage, request: _Request) -> dict[str, Any]:
    """Return everything that decides which images go through the networks, and in which precision."""
    config, stream = context.config, request.stream
    data = context.record.content["identity"]["data"]
    arrays = [stream.indices, stream.copies, *([stream.targets] if stream.even else [])]
    is_drawn = bool(config.augmentation.transforms) or request.views is None  # else images come as they are
    return {
        "identity_version": IDENTITY_VERSION,
        "packages": {name: version(name) for name in PACKAGES},
        "data": {key: value for key, value in data.items() if key not in BUDGET_KEYS},
        "entries": [hashlib.sha256(array.tobytes()).hexdigest() for array in arrays],
        "draws": [config.seed, stage.name, stream.name] if is_drawn else None,
        "views": request.views,
        "rows": request.rows,
        "batch_size": stream.batch_size if request.views is None else None,
        "augmentation": config.augmentation.model_dump(mode="json"),
        "precision": config.trainer.precision,
        "device": context.device.type,
    }


def _describe_networks(source: Teacher | ImageClassifier) -> list[dict[str, Any]]:
    """Return weights, architecture and image spec of the networks whose logits, or features, are cached."""
    modules: list[tuple[nn.Module, ImageSpec]] = (
        [(source.backbone, source.spec)] if isinstance(source, ImageClassifier) else []
    )
    if isinstance(source, Teacher):
        modules = [(network, network.spec) for network in source.networks]
    return [
        {"weights_sha256": weight_hash(module), "architecture": digest(str(module)), "spec": spec.to_dict()}
        for module, spec in modules
    ]


@contextmanager
def _lock(context: RunContext, stage: TrainStage, path: Path) -> Iterator[None]:
    """Hold a lock, once the process that holds it is done; check signals meanwhile."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lock, has_waited = FileLock(path), False
    while not lock.is_locked:
        try:
            lock.acquire(timeout=POLL_SECONDS)
        except Timeout:
            context.check_signals()
            if not has_waited:
                context.observer.say(
                    f"note: stage {stage.name}: another process computes the same logits; waiting for it"
                )
            has_waited = True
    try:
        yield
    finally:
        lock.release()
