"""How good networks are: asked about images, with progress shown and signals heeded; the test at the end."""

import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from tutelage.data import ImageDataModule
from tutelage.models import Answers, ImageClassifier, answers, measure, measure_tasks
from tutelage.runs.context import Run
from tutelage.storage import write_whole
from tutelage.strategies import Fit


def test(this: Run) -> None:
    """Measure every network on the test sets, once, after the last stage, and finish the record."""
    result: dict[str, float] = {}
    fits, splits = [stage for stage in this.plan if isinstance(stage, Fit)], this.data.splits
    others = {f"test-{name}": indices for name, indices in splits.others.items()}
    for number, stage in enumerate(fits):
        entry = this.record.stage(stage.name)
        assert entry is not None  # noqa: S101 - every stage was finished before
        network, started = this.network(stage.name), time.monotonic()
        data = this.data_of(stage)
        found = answers_of(this, network, data, splits.test, lambda share, done=number: (done + share) / len(fits))  # type: ignore[misc]
        entry["answer_seconds"] = round(time.monotonic() - started, 3)
        _write_answers(this.place(stage).test_file, found)
        entry["result"] |= measure(found, network.spec.classes, "test") | measure_tasks(found, network, "test")
        if this.older is not None and len(this.older.test):
            images = this.older.images(len(this.data.source.classes))
            found = answers(network, images, this.device, lambda count: this.answer())
            entry["result"] |= measure_tasks(found, network, "test")
        for name, indices in others.items():
            found = answers_of(this, network, data, indices, lambda share, done=number: (done + 1) / len(fits))  # type: ignore[misc]
            entry["result"] |= measure(found, network.spec.classes, name) | measure_tasks(found, network, name)
        this.record.finish_stage(entry)
        if not stage.control and not stage.rejected:
            result = entry["result"]
    this.record.finish(result, [stage.name for stage in this.plan])


def leave_untested(this: Run) -> None:
    """Finish the record with what validation says; the test set stays untouched."""
    last = [stage for stage in this.plan if isinstance(stage, Fit) and not stage.control and not stage.rejected][-1]
    entry = this.record.stage(last.name)
    assert entry is not None  # noqa: S101 - every stage was finished before
    seen = {key: value for key, value in entry["result"].items() if not key.startswith("test")}
    this.record.finish(seen, [stage.name for stage in this.plan])


def answers_of(
    this: Run, network: ImageClassifier, data: ImageDataModule, indices: np.ndarray, of_stage: Callable[[float], float]
) -> Answers:
    """Return a network's answers; progress is shown, signals are heeded."""
    return answers(network, data.plain(indices), this.device, heed(this, len(indices), of_stage))


def heed(this: Run, images: int, of_stage: Callable[[float], float]) -> Callable[[int], None]:
    """Return what to call after each batch of images: shows progress, heeds signals."""
    done = 0

    def after_batch(just_done: int) -> None:
        nonlocal done
        done += just_done
        this.observer.progress(of_stage(done / images), {"images": f"{done}/{images}"})
        this.answer()

    return after_batch


def _write_answers(file: Path, found: Answers) -> None:
    write_whole(
        file,
        lambda out: np.savez(
            out, probabilities=found.probabilities.astype(np.float16), labels=found.labels, indices=found.indices
        ),
    )
