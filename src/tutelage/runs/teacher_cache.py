"""What frozen networks answer to a stage's images: once, before it trains, and then from a file; or in each step."""

import hashlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from filelock import FileLock, Timeout
from torch import Tensor

from tutelage.config import Config, FrozenTeacherConfig
from tutelage.data import (
    ANSWERS,
    CLASSES,
    CachedLogits,
    CachedLogitsWriter,
    StageData,
    Stream,
    mapped,
    packed,
    row_dtype,
    unpacked,
    views_shown,
)
from tutelage.errors import UserError
from tutelage.models import ImageClassifier, Teacher, load_classifier, make_classifier, weight_hash
from tutelage.randomness import Key
from tutelage.runs.identity import IDENTITY_VERSION
from tutelage.runs.weight_sources import network_file
from tutelage.storage import digest, remove_partials, write_json
from tutelage.strategies import TeacherSpec, TrainStage

if TYPE_CHECKING:
    from tutelage.runs.context import RunContext

TEACHERS = "strategy.teachers"
FOLDER = ".answers"  # beside the runs, which share it
ASKED_AT_ONCE = 128  # images, where they need not come as the stage shows them
CHECKED, CHECKED_AT_ONCE = 64, 8  # answers that are computed again at the start of a stage
TOLERANCE = 0.01  # of a logit or feature, relative to 1 and itself; another batch's rounding is a hundredth of it
TOLERANCE_LOWER = 0.1  # where a lower precision computed it
TOLERANCE_PROBABILITY = 0.01  # of a lower precision's softmax: that of kept answers is off by up to half of it
NEAR_TIE = 0.05  # of the largest probability: rounding may decide between classes as near as that
SAVE_SECONDS = 10.0  # of answers that a killed process may lose
LOOK_SECONDS = 1.0  # between two looks whether another process is done
PACKAGES = ("torch", "numpy", "albumentations", "opencv-python-headless", "tutelage")  # that decide over answers
LOWER = {"16-mixed": torch.float16, "bf16-mixed": torch.bfloat16}
HASH_LENGTH = 32
CHOICE = {"batch_size", "validation", "labels", "labels_per_class", "split_seed", "limit", "balance"}  # of entries


def teacher_of(context: "RunContext", teaching: TeacherSpec) -> Teacher:
    """Return the networks that answer.

    Raises:
        UserError: they are not there, or do not go together.
    """
    if isinstance(teaching.networks, str):
        return Teacher([context.network(teaching.networks)])
    networks = {path: load_classifier(network_file(str(path), TEACHERS)) for path in teaching.networks}
    if several := next((path for path, network in networks.items() if network.spec.tasks), None):
        raise UserError(f"{TEACHERS}={several}: it has a head a task; name a network that has one for all its classes")
    return Teacher(list(networks.values()))


def check_given(config: Config) -> None:
    """Raise a UserError unless the teachers that a config names are networks of runs."""
    if isinstance(config.strategy, FrozenTeacherConfig):
        for given in config.strategy.teachers:
            network_file(given, TEACHERS)


def check(context: "RunContext", stage: TrainStage) -> None:
    """Raise a UserError unless the stage can be taught; say what is done otherwise than asked."""
    if stage.teacher is None:
        return
    if not stage.teacher.features:
        _check_networks(context, stage, stage.teacher)
    if context.config.augmentation.mix is not None and stage.teacher.cached_views is not None:
        context.observer.say(
            f"note: stage {stage.name}: images are mixed with others in each step: the teacher's answers are kept for "
            "every step, not for views that repeat"
        )


def _check_networks(context: "RunContext", stage: TrainStage, teaching: TeacherSpec) -> None:
    """Raise a UserError unless a stage's module takes the networks that it will be made of; here without weights."""
    teacher = outline(context, teaching)
    with torch.random.fork_rng(devices=[]), torch.device("meta"):
        stage.module(make_classifier(stage.model.arguments(), context.spec), teacher)


def outline(context: "RunContext", teaching: TeacherSpec) -> Teacher:
    """Return the networks that answer as they are without their weights, on the meta device; files are read once.

    Raises:
        UserError: they are not there, or do not go together.
    """
    answering, without = teaching.networks, torch.device("meta")
    known = context.outlines.get(answering)
    if known is None and isinstance(answering, str):
        model = next(one.model for one in context.plan if isinstance(one, TrainStage) and one.name == answering)
        with torch.random.fork_rng(devices=[]), without:
            known = Teacher([make_classifier(model.arguments(), context.spec)])
    elif known is None:
        known = teacher_of(context, teaching).to(without)
    context.outlines[answering] = known
    return known


def teach(
    context: "RunContext", stage: TrainStage, teaching: TeacherSpec, network: ImageClassifier, teacher: Teacher | None
) -> Mapping[str, CachedLogits]:
    """Make a stage's teacher ready to be asked in its steps, or ask it now; return what is kept, by stream.

    Args:
        this: the run.
        stage: the stage.
        teaching: what is asked.
        network: the stage's network as it begins, whose features are asked for where there is no teacher.
        teacher: the networks that answer.

    Raises:
        Stopped: a signal asked for it; what was computed is saved.
        UserError: the disk has no room, or answers are not finite.
    """
    if teacher is not None:
        teacher.to(context.device)
        lower = torch.float16 if teaching.live else LOWER.get(context.config.trainer.precision)
        teacher.autocast_dtype = None
        if lower is not None and context.device.type == "cuda":
            right = context.group.broadcast_from_rank0(lambda: _is_right(context, teacher, lower))
            teacher.autocast_dtype = lower if right else None
    if teaching.live:
        return {}
    kept = _keep(context, stage, teaching, network, teacher)
    if teacher is not None:
        teacher.to(torch.device("cpu"))
    return {teaching.stream: kept}


def _is_right(context: "RunContext", teacher: Teacher, lower: torch.dtype) -> bool:
    """Return whether a precision gives the probabilities and, but for near-ties, the answers of float32.

    It is tried on some of the images.
    """
    images = next(iter(context.data.plain(context.data.splits.labelled[:CHECKED]))).images.to(context.device)
    expected = teacher(images).softmax(dim=1)
    teacher.autocast_dtype = lower
    found = teacher(images).softmax(dim=1)
    its_answers = expected.gather(1, found.argmax(dim=1, keepdim=True))
    same = its_answers >= (1 - NEAR_TIE) * expected.amax(dim=1, keepdim=True)
    return bool((found - expected).abs().max() <= TOLERANCE_PROBABILITY and same.all())


def answers_asked(context: "RunContext", stage: TrainStage) -> int:
    """Return how many answers are to be computed before a stage trains."""
    if stage.teacher is None or stage.teacher.live:
        return 0
    return _Question.of(context, stage, stage.teacher).rows


@dataclass(frozen=True)
class _Question:
    """What is asked: the images of a stream, view after view, or step after step.

    Attributes:
        stream: as it is asked: the answer to its first image is the first row, and so on.
        views: how many views of each image; None for the images of every step.
        rows: how many answers.
        training: shows the images.
    """

    stream: Stream
    views: int | None
    rows: int
    training: StageData

    @classmethod
    def of(cls, context: "RunContext", stage: TrainStage, teaching: TeacherSpec) -> "_Question":
        (stream,) = (one for one in stage.streams(context.selections) if one.name == teaching.stream)
        views, augmentation = teaching.cached_views, context.config.augmentation
        if augmentation.mix is not None:
            views = None
        elif not augmentation.transforms:
            views = 1  # all are alike
        rows = stage.steps * stream.batch_size
        if views is not None:
            views = views_shown(stream, stage.steps, views)
            rows = views * len(stream.indices)
            stream = replace(stream, batch_size=ASKED_AT_ONCE, copies=np.empty(0, np.int64), even=False, shuffled=False)
        return cls(stream, views, rows, replace(context.training(stage), streams=[stream]))

    def asked_by(self, at_once: int) -> "_Question":
        """Return the same question in batches of another size."""
        stream = replace(self.stream, batch_size=at_once)
        return replace(self, stream=stream, training=replace(self.training, streams=[stream]))

    @property
    def steps(self) -> int:
        """Batches of images."""
        return -(-self.rows // self.stream.batch_size)


def _keep(
    context: "RunContext", stage: TrainStage, teaching: TeacherSpec, network: ImageClassifier, teacher: Teacher | None
) -> CachedLogits:
    """Return the kept answers to a stage's images; those that are not there yet the first process computes now."""
    data, question = context.config.data, _Question.of(context, stage, teaching)
    ask: Callable[[Tensor], Tensor] = teacher or partial(_features, network.to(context.device))
    nothing = torch.zeros(1, data.channels, data.image_size, data.image_size, dtype=torch.uint8, device=context.device)
    width = ask(nothing).shape[1]
    heads_apart = teacher is not None and any(one.spec.tasks for one in teacher.networks)
    kind = row_dtype(width, exact=teacher is None, whole=heads_apart)
    about = {**_about(context, stage, question), "networks": _who(teacher or network), "kind": str(kind)}
    folder = Path(context.config.paths.outputs) / FOLDER / digest(about)[:HASH_LENGTH]
    keeper = _Keeper(context, stage, question, ask, kind, width)

    def compute() -> None:
        with _turn(context, stage, folder.with_suffix(".lock")):
            if not keeper.are_there(folder):
                keeper.compute(folder, about)

    context.group.broadcast_from_rank0(compute)
    return CachedLogits(folder / ANSWERS, width, question.views, instead=teaching.features)


def _features(network: ImageClassifier, images: Tensor) -> Tensor:
    """Return the features (B, D) float32 of images, as in evaluation."""
    learns = network.training
    network.eval()
    with torch.inference_mode():
        found = network.features(images).float()
    network.train(learns)
    return found


@dataclass(frozen=True)
class _Keeper:
    """Computes answers and looks at those that are there."""

    context: "RunContext"
    stage: TrainStage
    question: _Question
    ask: Callable[[Tensor], Tensor]
    kind: np.dtype[Any]
    width: int

    def are_there(self, folder: Path) -> bool:
        """Return whether answers are there and a sample of them is as it is computed now."""
        rows = mapped(folder / ANSWERS, self.kind, self.question.rows)
        if rows is None:
            return False
        if all(self._same(found, rows[first : first + len(found)]) for first, found in self._some()):
            return True
        self.context.observer.say(
            f"warning: {folder} holds other answers than the teacher of stage {self.stage.name} gives: computed again"
        )
        (folder / ANSWERS).unlink(missing_ok=True)
        return False

    def _same(self, found: np.ndarray, stored: np.ndarray) -> bool:
        """Return whether rows (N,) hold the same answers within rounding, which may decide over the largest."""
        lower = self.context.config.trainer.precision != "32-true" and self.context.device.type == "cuda"
        ours, theirs = (unpacked(rows, self.width) for rows in (found, stored))
        if CLASSES in (self.kind.names or ()):
            ours, theirs = (torch.from_numpy(answers).softmax(dim=1).numpy() for answers in (ours, theirs))
        return _agree(ours, theirs, TOLERANCE_LOWER if lower else TOLERANCE)

    def _some(self) -> Iterator[tuple[int, np.ndarray]]:
        """Yield rows (N,) of some answers, computed now, and which row of all the first of them is."""
        question, key = self.question, Key(self.context.config.seed, self.stage.name, self.question.stream.name)
        if question.views is not None:  # any batch will do: what is asked is the same in batches of any size
            question = question.asked_by(CHECKED_AT_ONCE)
        count = max(1, CHECKED // question.stream.batch_size)
        steps = np.sort(key.generator("checked answers").permutation(question.steps)[:count]).tolist()
        for step, images in zip(steps, self._images(question, steps), strict=True):
            first = step * question.stream.batch_size
            some = images[: min(CHECKED, question.rows - first)]
            yield first, self._answers(some)

    def compute(self, folder: Path, about: dict[str, Any]) -> None:
        """Compute all answers that are not there yet."""
        context, question = self.context, self.question
        remove_partials(folder)
        keeping = CachedLogitsWriter(folder, self.kind, question.rows)
        write_json(folder / "about.json", about)
        context.show(asking(self.stage))
        saved = time.monotonic()
        try:
            steps = range(keeping.done, question.steps)
            for images in self._images(question, steps):
                keeping.add(self._answers(images))
                context.observer.progress(
                    keeping.share, {"images": f"{round(keeping.share * question.rows)}/{question.rows}"}
                )
                context.answer()
                if time.monotonic() - saved > SAVE_SECONDS:
                    keeping.save()
                    saved = time.monotonic()
        except BaseException:
            keeping.save()
            raise
        keeping.finish()
        context.show(self.stage.name)

    def _images(self, question: _Question, steps: Sequence[int]) -> Iterator[Tensor]:
        for batch in self.context.data.shown(question.training, steps):
            yield batch[question.stream.name].images

    def _answers(self, images: Tensor) -> np.ndarray:
        """Return the rows (B,) of the answers to images (B, C, H, W).

        Raises:
            UserError: one is not finite.
        """
        found = self.ask(images).cpu().numpy()
        if not np.isfinite(found).all():
            raise UserError(f"stage {self.stage.name}: the teacher's answers are not finite; its weights are no good")
        return packed(found, self.kind)


def asking(stage: TrainStage) -> str:
    """Return what the work before a stage is called."""
    features = stage.teacher is not None and stage.teacher.features
    return f"{stage.name}: {'the features of its backbone' if features else 'the answers of its teacher'}"


def _agree(ours: np.ndarray, theirs: np.ndarray, tolerance: float) -> bool:
    ours, theirs = ours.astype(np.float32), theirs.astype(np.float32)
    return bool((np.abs(ours - theirs) <= tolerance * (1 + np.abs(theirs))).all())


def _about(context: "RunContext", stage: TrainStage, question: _Question) -> dict[str, Any]:
    """Return all that decides over which images are asked, and how exactly they are answered."""
    config, stream = context.config, question.stream
    data = context.record.content["identity"]["data"]
    order = [stream.indices, stream.copies, *([stream.targets] if stream.even else [])]
    drawn = bool(config.augmentation.transforms) or question.views is None  # else images are shown as they are
    return {
        "identity_version": IDENTITY_VERSION,
        "packages": {name: version(name) for name in PACKAGES},
        "data": {key: value for key, value in data.items() if key not in CHOICE},
        "entries": [hashlib.sha256(array.tobytes()).hexdigest() for array in order],
        "draws": [config.seed, stage.name, stream.name] if drawn else None,
        "views": question.views,
        "rows": question.rows,
        "batch_size": stream.batch_size if question.views is None else None,
        "augmentation": config.augmentation.model_dump(mode="json"),
        "precision": config.trainer.precision,
        "device": context.device.type,
    }


def _who(asked: Teacher | ImageClassifier) -> list[dict[str, Any]]:
    """Return what the networks are that answer: weights, architecture, and how they see images."""
    networks = asked.networks if isinstance(asked, Teacher) else [asked.backbone]
    seen = asked.networks if isinstance(asked, Teacher) else [asked]
    return [
        {"weights_sha256": weight_hash(network), "architecture": digest(str(network)), "spec": one.spec.to_dict()}
        for network, one in zip(networks, seen, strict=True)
    ]


@contextmanager
def _turn(context: "RunContext", stage: TrainStage, path: Path) -> Iterator[None]:
    """Hold a lock, once whoever holds it is done; signals are heeded."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lock, told = FileLock(path), False
    while not lock.is_locked:
        try:
            lock.acquire(timeout=LOOK_SECONDS)
        except Timeout:
            context.answer()
            if not told:
                context.observer.say(
                    f"note: stage {stage.name}: another process computes the same answers; waiting for it"
                )
            told = True
    try:
        yield
    finally:
        lock.release()
