"""The time left: right where work is as fast as expected, soon right where it is not; what a run reports for it."""

import json
import math
import signal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from helpers.overrides import DISTILLATION, QUIET
from helpers.runs import run
from tutelage.config.compose import compose
from tutelage.models import make_classifier, save_classifier
from tutelage.runs.observer import Observer, Part, Work
from tutelage.terminal.time_left import MIN_MEASURED_SECONDS, START_SECONDS, TimeLeft
from tutelage.testing import kill_after

TRAINING, PREDICTION = ("training",), ("prediction", "small")
KINDS = (TRAINING, PREDICTION, ("prediction", "large"))
WORK = st.builds(Work, st.sampled_from(KINDS), st.floats(0, 1e6))
PARTS = st.lists(st.builds(Part, st.just("part"), st.lists(WORK, min_size=1, max_size=3)), min_size=1, max_size=4)


class Clock:
    """A clock that a test sets forward."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def play(parts, slowness=lambda kind: 1.0, start=START_SECONDS, reports=10, resumed_at=0.0, first_start=None):
    """Yield the estimate and the true seconds left after each report of a run; each kind of work has a constant speed.

    Args:
        parts: of the run; the works of a part are done one after another.
        slowness: how many times as long as expected work of a kind takes.
        start: seconds before a part's first report, and after the last part.
        reports: of each work.
        resumed_at: the fraction of the first part's first work that an earlier process has done.
        first_start: seconds before the first report of all, where they are others.
    """
    clock = Clock()
    time_left = TimeLeft(clock)
    time_left.begin(parts)
    first = parts[0].work[0]
    done_before = resumed_at * first.seconds * slowness(first.kind)
    seconds = [work.seconds * slowness(work.kind) for part in parts for work in part.work]
    first_start = start if first_start is None else first_start
    end = clock.now + sum(seconds) + first_start + start * len(parts) - done_before
    for number, part in enumerate(parts, 1):
        time_left.part(number)
        clock.now += first_start if number == 1 else start
        for index, work in enumerate(part.work):
            begun_at = resumed_at if number == 1 and index == 0 else 0.0
            for report in range(reports + 1):
                fraction = begun_at + (1 - begun_at) * report / reports
                clock.now += work.seconds * slowness(work.kind) * (1 - begun_at) / reports * (report > 0)
                time_left.progress(fraction, index)
                yield time_left.estimate(), end - clock.now


@given(PARTS)
def test_the_time_left_is_exact_where_all_work_is_as_fast_as_expected(parts):
    for estimate, true in play(parts):
        assert estimate is None or estimate == pytest.approx(true, rel=1e-6, abs=1e-3)


@given(PARTS)
def test_what_is_done_once_as_a_run_starts_says_nothing_of_later_parts(parts):
    for estimate, true in play(parts, first_start=60.0):
        assert estimate is None or estimate == pytest.approx(true, rel=1e-6, abs=1e-3)


@given(PARTS, st.data())
def test_whatever_is_reported_the_time_left_is_none_or_a_number_of_seconds(parts, data):
    clock = Clock()
    time_left = TimeLeft(clock)
    time_left.begin(parts)
    assert time_left.estimate() is None
    for number, part in enumerate(parts, 1):
        time_left.part(number)
        works = st.integers(0, len(part.work) - 1)
        for work, fraction, seconds in data.draw(
            st.lists(st.tuples(works, st.floats(0, 1), st.floats(0, 1e6)), max_size=6)
        ):
            clock.now += seconds
            time_left.progress(fraction, work)
            estimate = time_left.estimate()
            assert estimate is None or (math.isfinite(estimate) and estimate >= 0)
            assert 0 <= time_left.fraction_done <= 1 + 1e-9


@pytest.mark.parametrize("slow", [0.02, 1.0, 50.0])
def test_a_machine_of_any_speed_is_known_from_the_first_tenth_on(slow):
    training, prediction = Work(TRAINING, 600.0), Work(PREDICTION, 60.0)
    parts = [Part("teacher", [training, prediction]), Part("labels", [prediction]), Part("student", [training])]
    moments = list(play(parts, lambda kind: slow))
    whole = moments[0][1]
    compared = [(estimate, true) for estimate, true in moments if 0.05 * whole < true < 0.9 * whole]
    assert len(compared) > 25
    assert all(1 / 1.2 < estimate / true < 1.2 for estimate, true in compared)


def test_work_that_was_measured_is_no_longer_judged_by_work_of_another_kind():
    parts = [Part(name, [Work(TRAINING, 30.0), Work(PREDICTION, 1.0)]) for name in ("teacher", "student", "control")]
    moments = list(play(parts, {TRAINING: 0.5, PREDICTION: 40.0}.__getitem__))
    after_first_validation = moments[14:-2]
    assert all(1 / 1.3 < estimate / true < 1.3 for estimate, true in after_first_validation)


def test_work_that_was_not_measured_is_judged_by_the_most_similar_work():
    parts = [Part("teacher", [Work(TRAINING, 100.0)]), Part("labels", [Work(PREDICTION, 10.0)])]
    parts.append(Part("test", [Work(("prediction", "large"), 200.0)]))
    moments = list(play(parts, lambda kind: 5.0 if kind == TRAINING else 0.2))
    assert all(1 / 1.3 < estimate / true < 1.3 for estimate, true in moments[15:-2])


def test_what_was_done_before_a_resume_is_no_speed():
    parts = [Part("supervised", [Work(TRAINING, 1000.0)]), Part("test", [Work(PREDICTION, 10.0)])]
    moments = list(play(parts, lambda kind: 3.0, start=2.0, first_start=20.0, resumed_at=0.9))
    assert moments[0][0] is None  # 90 % in 20 seconds were not measured
    assert all(1 / 1.3 < estimate / true < 1.3 for estimate, true in moments[1:10])


def test_nothing_is_said_before_a_second_is_measured():
    work = 95 * MIN_MEASURED_SECONDS  # a report for each 0.095 seconds
    moments = list(play([Part("supervised", [Work(TRAINING, work)])], start=60.0, reports=1000))
    assert [estimate is None for estimate, true in moments[:13]] == [True] * 11 + [False] * 2


class Reports(Observer):
    """Writes what a run reports to a file, a JSON list a line."""

    def __init__(self, file) -> None:
        self._file = file
        self._number = 0

    def _write(self, *items) -> None:
        with self._file.open("a") as lines:
            lines.write(json.dumps(items) + "\n")

    def begin(self, parts) -> None:
        self._write("begin", {part.name: [[work.kind, work.seconds] for work in part.work] for part in parts})

    def part(self, number) -> None:
        self._number = number

    def progress(self, fraction, values, work=0) -> None:
        self._write("progress", self._number, work, fraction)

    def say(self, line) -> None:
        pass


def read_reports(outputs, file, *overrides, before=lambda: None, code=0):
    """Run a config and return the parts that it plans, and its reports: part (from 1), work, fraction."""

    def record():
        import tutelage.terminal.display

        tutelage.terminal.display.create_display = lambda wanted: Reports(file)
        before()

    assert run(outputs, *overrides, before=record) == code
    (_, parts), *reports = (json.loads(line) for line in file.read_text().splitlines())
    return parts, [tuple(report[1:]) for report in reports]


def test_a_run_reports_each_work_of_each_part_to_its_end_and_a_resumed_one_where_it_goes_on(tmp_path):
    overrides = (*DISTILLATION, "schedule.steps=8", "data.validation=inside")
    trap = kill_after("student", 6)
    parts, reports = read_reports(tmp_path, tmp_path / "first", *overrides, before=trap, code=-signal.SIGKILL)
    assert list(parts) == ["teacher", "student: teacher logits", "student", "control", "test"]
    resumed_parts, resumed = read_reports(tmp_path, tmp_path / "second", *overrides)
    assert {name: len(works) for name, works in resumed_parts.items()} == {
        **dict.fromkeys(parts, 2),
        "student: teacher logits": 1,
        "test": 3,
    }
    by_work = {}
    for part, work, fraction in [*reports, *resumed]:
        by_work.setdefault((part, work), []).append(fraction)
    assert set(by_work) == {(n, w) for n, works in enumerate(parts.values(), 1) for w in range(len(works))}
    for key, fractions in by_work.items():
        assert fractions == sorted(fractions), key
        assert fractions[-1] == 1, key
    finished = max(fraction for part, work, fraction in reports if (part, work) == (3, 1))
    assert resumed[0] == (3, 1, finished) and 0 < finished < 1
    assert resumed[1] == (3, 0, 7 / 8)


@pytest.fixture(scope="module")
def expected(tmp_path_factory):
    """Return a function from overrides to the seconds that the works of a run's parts are expected to take."""
    from tutelage.data import data_module
    from tutelage.runs import RunFolder
    from tutelage.runs.cluster.signals import Signals
    from tutelage.runs.context import RunContext, make_image_spec
    from tutelage.runs.cost import stage_costs
    from tutelage.runs.folder import Record

    folder, common = tmp_path_factory.mktemp("costs"), ["model=resnet", "schedule.epochs=null", "schedule.steps=100"]
    common += [*QUIET, "data.labels_per_class=20", "data.validation=none", "data.batch_size=100"]
    data = data_module(compose(common).data)

    def plan(*overrides):
        config = compose([*common, *overrides])
        run_folder = RunFolder(folder)
        context = RunContext(config, run_folder, Record(run_folder), data, Signals(), Observer())
        context.follow_results()
        return {part.name: [work.seconds for work in part.work] for part in stage_costs(context)}

    config = compose(common)
    network = make_classifier(config.model.arguments(), make_image_spec(config.data, data.source.classes))
    save_classifier(network, config.model.arguments(), folder / "network.ckpt")
    plan.given = ["strategy=transfer_frozen", f"init_from={folder / 'network.ckpt'}"]
    return plan


def test_cached_features_and_a_frozen_backbone_cost_less_than_training(expected):
    cached = expected(*expected.given, "augmentation=none")
    assert list(cached) == ["frozen: backbone features", "frozen", "control", "test"]
    (control,) = cached["control"]
    (forwards,) = cached["frozen: backbone features"]
    assert forwards == pytest.approx(control / 3 * 200 / (100 * 100), rel=0.1)  # 200 images, not 100 steps of 100
    assert cached["frozen"][0] < control / 50
    augmented = expected(*expected.given, "augmentation=flip")
    assert augmented["frozen"][0] == pytest.approx(augmented["control"][0] / 3, rel=0.15)
    assert augmented["control"][0] > control
