"""Noisy student: what is selected, and what is minimised."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional

from test_data import data_config, source_of
from tutelage.compose import compose
from tutelage.config import NoisyStudentConfig, StudentConfig
from tutelage.data import Shown, split
from tutelage.errors import UserError
from tutelage.models import LeNet5, make_classifier
from tutelage.strategies import Fit, Label, NoisyStudent, stages
from tutelage.strategies.noisy_student import select


def recipe(**changes) -> NoisyStudentConfig:
    return NoisyStudentConfig(name="noisy_student", students=[StudentConfig()], **changes)


PROBABILITIES = np.array([[0.9, 0.1], [0.6, 0.4], [0.2, 0.8], [0.7, 0.3], [0.55, 0.45], [0.8, 0.2]], dtype=np.float32)


def test_by_hand_balance_keeps_the_most_confident_and_duplicates_the_rare():
    chosen = select(PROBABILITIES, recipe())
    # six answers, two classes: three each. Class 0: images 0, 5, 3. Class 1: image 2, three times.
    assert chosen.entries.tolist() == [0, 5, 3, 2, 2, 2]
    assert chosen.copies.tolist() == [0, 0, 0, 0, 1, 2]
    assert (chosen.targets == PROBABILITIES[chosen.entries]).all()


def test_by_hand_the_confidence_filter_comes_first():
    chosen = select(PROBABILITIES, recipe(confidence=0.65))
    assert chosen.entries.tolist() == [0, 5, 2, 2]


def test_by_hand_without_balance_each_kept_image_stands_once():
    chosen = select(PROBABILITIES, recipe(balance=False, confidence=0.58))
    assert chosen.entries.tolist() == [0, 1, 2, 3, 5]
    assert not chosen.copies.any()


def test_hard_labels_are_the_answers():
    chosen = select(PROBABILITIES, recipe(soft_labels=False, balance=False))
    assert chosen.targets.tolist() == [[1, 0], [1, 0], [0, 1], [1, 0], [1, 0], [1, 0]]


@given(st.integers(1, 60), st.integers(2, 6), st.integers(0, 99), st.floats(0, 0.99), st.booleans())
def test_a_selection_is_balanced_confident_and_deterministic(count, classes, seed, confidence, soft):
    probabilities = np.random.default_rng(seed).dirichlet(np.full(classes, 0.5), count).astype(np.float32)
    config = recipe(confidence=confidence, soft_labels=soft)
    chosen, again = select(probabilities, config), select(probabilities, config)
    assert (chosen.entries == again.entries).all()
    answers = probabilities.argmax(axis=1)
    assert (probabilities.max(axis=1)[chosen.entries] >= confidence).all()
    per_class = np.bincount(answers[chosen.entries], minlength=classes)
    assert len(set(per_class[per_class > 0])) <= 1
    pairs = set(zip(chosen.entries.tolist(), chosen.copies.tolist(), strict=True))
    assert len(pairs) == len(chosen.entries)  # no draw twice
    assert chosen.targets.dtype == np.float32
    assert chosen.targets.sum(axis=1) == pytest.approx(np.ones(len(chosen.entries)), abs=1e-5)


def test_the_loss_is_the_sum_of_both_cross_entropies_in_one_forward():
    from test_models import spec_of

    torch.manual_seed(0)
    student = LeNet5(spec_of())
    calls = []
    student.backbone.register_forward_hook(lambda module, args, out: calls.append(len(args[0])))
    labelled = Shown(torch.randint(0, 256, (4, 1, 28, 28), dtype=torch.uint8), torch.randint(0, 10, (4,)))
    pool = Shown(torch.randint(0, 256, (9, 1, 28, 28), dtype=torch.uint8), torch.rand(9, 10).softmax(1))
    parts = NoisyStudent(student).training_step({"labelled": labelled, "pool": pool}, 0)
    assert calls == [13]
    on_labelled = functional.nll_loss(student(labelled.images).log_softmax(1), labelled.targets)
    on_pool = -(pool.targets * student(pool.images).log_softmax(1)).sum(1).mean()
    torch.testing.assert_close(parts["loss"], on_labelled + on_pool)
    torch.testing.assert_close(parts["loss_pool"], on_pool)


def plan_of(*overrides: str):
    config = compose(["strategy=noisy_student", "schedule.epochs=null", "schedule.steps=10", *overrides])
    source = source_of(np.repeat(np.arange(4), 30), test=8, unlabelled=0)
    return config, stages(config, source, split(source, data_config(labels_per_class=3)))


def test_the_stages_are_the_papers_and_then_the_control():
    students = "strategy.students=[{model:{width:2},length:2.0},{model:{width:3,dropout:0.5},length:1.0}]"
    config, plan = plan_of(students, "strategy.teacher_length=0.5", "data.batch_size=8")
    assert [stage.name for stage in plan] == ["teacher", "labels-1", "student-1", "labels-2", "student-2", "control"]
    fits = {stage.name: stage for stage in plan if isinstance(stage, Fit)}
    assert {name: fit.steps for name, fit in fits.items()} == {
        "teacher": 5, "student-1": 20, "student-2": 10, "control": 35,
    }  # fmt: skip
    assert [stage.teacher for stage in plan if isinstance(stage, Label)] == ["teacher", "student-1"]
    assert fits["control"].model == fits["student-2"].model == config.grown(config.strategy.students[1])
    assert fits["control"].model.dropout == 0.5
    assert fits["student-1"].images_per_step == 8 + 24
    spec_sizes = [
        sum(p.numel() for p in make_network(fits[n]).parameters()) for n in ("teacher", "student-1", "student-2")
    ]
    assert spec_sizes == sorted(set(spec_sizes))


def make_network(fit: Fit):
    from test_models import spec_of

    return make_classifier(fit.model.arguments(), spec_of())


def test_without_unlabelled_images_it_is_an_error():
    config = compose(["strategy=noisy_student"])
    source = source_of(np.repeat(np.arange(4), 30), test=8, unlabelled=0)
    with pytest.raises(UserError, match="strategy=noisy_student: no unlabelled images; use fewer labels"):
        stages(config, source, split(source, data_config()))


def test_a_confidence_that_nothing_reaches_is_an_error():
    _, plan = plan_of("strategy.confidence=0.99")
    student = next(stage for stage in plan if stage.name == "student-1")
    with pytest.raises(UserError, match=r"strategy.confidence=0.99: no pool image reaches it"):
        student.streams({"labels-1": select(PROBABILITIES, recipe(confidence=0.99))})
