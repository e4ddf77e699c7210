"""Checks of an architecture, a strategy, a dataset or a loss of your own, as ours are checked. Needs pytest.

A test class names a run; pytest does the rest:

    from tutelage.testing import RunTests

    class TestMine(RunTests):
        overrides = ("model=mine",)
        config_dirs = ("conf",)
        packages = ("mymodels",)
"""

import csv
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch

from tutelage.config import Config
from tutelage.config.compose import compose
from tutelage.config.targets import ALLOW_FLAG, apply_allow_flags
from tutelage.data import StageData, data_module
from tutelage.models import OptimizationConfig, load_classifier, make_classifier
from tutelage.randomness import Key
from tutelage.runs import RunFolder, stage_folders, train_entries, weights_files
from tutelage.runs.context import make_image_spec
from tutelage.runs.predictions import read_predictions
from tutelage.strategies import StageContext, TrainStage

QUIET = ("callbacks=quiet", "logger=csv", "trainer=cpu", "trainer.threads=1")
COMPARED, ROUNDING = 8, 1e-4  # images; of probabilities, which depends on the size of the batch
KILLED_AFTER = 1  # step; a stage has about four under debug=tiny


class RunTests:
    """Tests of a run of four steps a stage, on the CPU.

    Attributes:
        overrides: what is typed behind ``tutelage train``; data=digits unless they say otherwise.
        config_dirs: folders of your own configs, as after ``--config-dir``.
        packages: your packages, as after ``--allow``; they are imported as in any other process, for example by
            PYTHONPATH.
    """

    overrides: ClassVar[Sequence[str]] = ()
    config_dirs: ClassVar[Sequence[str]] = ()
    packages: ClassVar[Sequence[str]] = ()

    @pytest.fixture(scope="class")
    @classmethod
    def undisturbed(cls, tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
        """The folder of the run, trained without a disturbance."""
        outputs = tmp_path_factory.mktemp("undisturbed")
        assert cls._train(outputs) == 0
        return _find_run(outputs)

    def test_one_step_gives_every_trained_weight_a_gradient(self) -> None:
        """One step of the first stage without a teacher: the loss is finite, and depends on all trained weights."""
        module, parts = _take_step(self._compose())
        assert torch.isfinite(parts["loss"]), f"the loss is {parts['loss']}"
        parts["loss"].backward()  # type: ignore[no-untyped-call]
        trained = {name: weight for name, weight in module.named_parameters() if weight.requires_grad}
        lacking = [name for name, weight in trained.items() if weight.grad is None]
        assert not lacking, f"no gradient for {lacking}: the loss does not depend on them"

    def test_a_saved_network_gives_the_predictions_of_the_run(self, undisturbed: RunFolder) -> None:
        """Every loss in the tables is finite; networks read from their files predict what the run has stored."""
        record = json.loads(undisturbed.record_file.read_text())
        folders = stage_folders(undisturbed, record)
        data = data_module(self._compose().data)
        for name, file in weights_files(undisturbed, record).items():
            losses = [float(row["train/loss"]) for row in _read_table(folders[name]) if row.get("train/loss")]
            assert np.isfinite(losses).all(), f"stage {name}: losses {losses}"
            network = load_classifier(file).eval()
            stored = read_predictions(folders[name].test_file)
            with torch.no_grad():
                batch = next(iter(data.eval_dataloader(stored.indices[:COMPARED], COMPARED)))
                probabilities = network(batch.images).softmax(dim=1).numpy()
                np.testing.assert_allclose(probabilities, stored.probabilities[: len(probabilities)], atol=ROUNDING)

    def test_a_killed_run_ends_with_the_same_weights(self, undisturbed: RunFolder, tmp_path: Path) -> None:
        """Killed with -9 in each stage of several steps and resumed, the run ends with the same weights and tables."""
        expected = json.loads(undisturbed.record_file.read_text())
        names = [entry["name"] for entry in train_entries(expected) if entry["steps"] > KILLED_AFTER]
        assert names, "no stage has two steps"
        for name in names:
            assert self._train(tmp_path, kill_in=name) == -signal.SIGKILL
        assert self._train(tmp_path) == 0
        resumed = _find_run(tmp_path)
        record = json.loads(resumed.record_file.read_text())
        for key in ("weights_sha256", "result"):
            assert [entry.get(key) for entry in train_entries(record)] == [
                entry.get(key) for entry in train_entries(expected)
            ], f"{key} of the stages differ"
        folders = (stage_folders(undisturbed, expected), stage_folders(resumed, record))
        for name in folders[0]:
            assert _read_table(folders[0][name]) == _read_table(folders[1][name]), f"stage {name}: metrics.csv differs"

    def test_a_finished_run_is_not_trained_again(self, undisturbed: RunFolder) -> None:
        """The same command again leaves the run as it is."""
        before = undisturbed.record_file.read_bytes()
        assert self._train(undisturbed.path.parents[1]) == 0
        assert undisturbed.record_file.read_bytes() == before

    @classmethod
    def _compose(cls) -> Config:
        apply_allow_flags([f"{ALLOW_FLAG}={package}" for package in cls.packages])
        return compose([*QUIET, "debug=tiny", *cls.overrides], cls.config_dirs)

    @classmethod
    def _train(cls, outputs: Path, kill_in: str = "") -> int:
        """Train in a process of its own; return its exit code, -9 where it is to be killed in the stage ``kill_in``."""
        flags = [f"{ALLOW_FLAG}={package}" for package in cls.packages]
        flags += [f"--config-dir={Path(folder).resolve()}" for folder in cls.config_dirs]
        overrides = [*QUIET, "debug=tiny", f"paths.outputs={outputs}", *cls.overrides]
        return subprocess.call([sys.executable, "-m", __name__, kill_in, *flags, *overrides])  # noqa: S603


def kill_after(stage: str, step: int, when: str = "on_train_batch_end") -> Callable[[], None]:
    """Return a function that makes this process save at every step, and die by -9 after ``step`` of ``stage``."""

    def trap() -> None:
        from tutelage.runs import callbacks, checkpoints

        current = {}
        seeded = callbacks.StepRandomness.__init__
        hook = getattr(checkpoints.Checkpoints, when)

        def remember(self: Any, key: Key) -> None:
            current["stage"] = key.stage
            seeded(self, key)

        def save_then_die(self: Any, trainer: Any, *rest: Any) -> None:
            self._seconds = 0.0
            hook(self, trainer, *rest)
            if current["stage"] == stage and trainer.global_step == step:
                os.kill(os.getpid(), signal.SIGKILL)

        callbacks.StepRandomness.__init__ = remember  # type: ignore[method-assign]
        setattr(checkpoints.Checkpoints, when, save_then_die)

    return trap


def _take_step(config: Config) -> tuple[Any, dict[str, torch.Tensor]]:
    """Return the module of a run's first training stage, and what its first training step returns."""
    data = data_module(config.data)
    stages = config.strategy.stages(StageContext(config, data.source, data.splits))
    alone = [stage for stage in stages if isinstance(stage, TrainStage) and not (stage.teacher or stage.one_pass)]
    if not alone:
        pytest.skip("every stage has a teacher, or needs no step")
    stage = alone[0]
    torch.manual_seed(config.seed)
    spec = make_image_spec(config.data, data.source.classes)
    tasks = tuple(map(tuple, config.strategy.task_classes))
    spec = replace(spec, tasks=tasks, image_size=stage.image_size or spec.image_size)
    network = make_classifier(stage.model.arguments(), spec)
    optimization = OptimizationConfig(
        config.optimizer, config.scheduler, stage.steps, None, stage.fine_tuning, loss=config.loss
    )
    network.configure_training(optimization)
    module: Any = stage.module(network)
    stage_data = StageData(
        streams=stage.streams({}),
        transforms=config.augmentation.transforms,
        strong=config.augmentation.strong,
        key=partial(Key, config.seed, stage.name),
        steps=stage.steps,
        mix=config.augmentation.mix,
    )
    return module, module.training_step(next(data.train_batches(stage_data, [0])), 0)


def _find_run(outputs: Path) -> RunFolder:
    (record,) = outputs.glob("*/*/run.json")
    return RunFolder(record.parent)


def _read_table(folder: RunFolder) -> list[dict[str, str]]:
    """Return the rows of a stage's metrics.csv, without its time column; none where the stage has no table."""
    if not folder.metrics_file.is_file():
        return []
    with folder.metrics_file.open() as lines:
        return [{key: value for key, value in row.items() if key != "seconds"} for row in csv.DictReader(lines)]


def _main() -> None:
    """Train by the arguments behind the first, which names the stage to die in; empty for none."""
    from tutelage import train

    if sys.argv[1]:
        kill_after(sys.argv[1], KILLED_AFTER)()
    sys.argv[1:2] = []
    train.main()


if __name__ == "__main__":
    _main()
