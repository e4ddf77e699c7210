"""Noisy student: its losses, its stages, and its runs."""

import json
import os
import signal
from functools import cache

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from helpers.configs import data_config
from helpers.networks import make_spec
from helpers.runs import only_run, outcome, run
from helpers.sources import make_source
from tutelage.config.compose import compose
from tutelage.data import UNKNOWN, Labels, StreamBatch, split
from tutelage.errors import UserError
from tutelage.models import LeNet5, Teacher, load_classifier, make_classifier
from tutelage.runs import main_stage_name, run_identity
from tutelage.strategies import PseudoLabelStage, StageContext, TrainStage
from tutelage.strategies.noisy_student import NoisyStudentStrategy, StudentConfig
from tutelage.strategies.noisy_student.method import LiveNoisyStudent, NoisyStudent
from tutelage.testing import kill_after


def test_the_loss_is_the_sum_of_both_cross_entropies_in_one_forward():
    torch.manual_seed(0)
    student = LeNet5(make_spec())
    calls = []
    student.backbone.register_forward_hook(lambda module, args, out: calls.append(len(args[0])))
    labelled = StreamBatch(torch.randint(0, 256, (4, 1, 28, 28), dtype=torch.uint8), torch.randint(0, 10, (4,)))
    pool = StreamBatch(torch.randint(0, 256, (9, 1, 28, 28), dtype=torch.uint8), torch.rand(9, 10).softmax(1))
    parts = NoisyStudent(student).training_step({"labelled": labelled, "pool": pool}, 0)
    assert calls == [13]
    on_labelled = functional.nll_loss(student(labelled.images).log_softmax(1), labelled.targets)
    on_pool = -(pool.targets * student(pool.images).log_softmax(1)).sum(1).mean()
    torch.testing.assert_close(parts["loss"], on_labelled + on_pool)
    torch.testing.assert_close(parts["loss_pool"], on_pool)


@pytest.mark.parametrize("selected", [6, 2])
@pytest.mark.parametrize(("soft", "temperature"), [(True, 1.0), (True, 0.5), (False, 1.0)])
def test_live_labels_are_the_teachers_predictions_for_the_images_without_augmentation(selected, soft, temperature):
    torch.manual_seed(0)
    student, teacher = LeNet5(make_spec()), LeNet5(make_spec())
    plain, views = torch.randint(0, 256, (2, 6, 1, 28, 28), dtype=torch.uint8)
    labelled = StreamBatch(torch.randint(0, 256, (4, 1, 28, 28), dtype=torch.uint8), torch.randint(0, 10, (4,)))
    pool = StreamBatch(torch.cat([plain, views]), torch.full((12,), UNKNOWN))
    logits = teacher(plain).detach()
    certainty = logits.softmax(1).amax(1)
    confidence = 0.0 if selected == 6 else float(certainty.sort().values[-selected] - 1e-6)
    pseudo_labels = functional.one_hot(logits.argmax(1), 10).float() if not soft else (logits / temperature).softmax(1)
    losses = -(pseudo_labels * student(views).log_softmax(1)).sum(1)
    on_pool = losses[certainty >= confidence].sum() / 6  # the mean is over all
    changes = {"confidence": confidence, "target_type": "soft" if soft else "hard", "temperature": temperature}
    config = NoisyStudentStrategy.from_arguments(
        {"students": [StudentConfig()], "label_source": "live", "balance": False, **changes}
    )
    parts = LiveNoisyStudent(student, Teacher([teacher]), config).training_step({"labelled": labelled, "pool": pool}, 0)
    torch.testing.assert_close(parts["loss_pool"], on_pool.detach())
    on_labelled = functional.cross_entropy(student(labelled.images), labelled.targets)
    torch.testing.assert_close(parts["loss"], on_labelled + on_pool)
    assert parts["mask_rate"].item() == pytest.approx(selected / 6)
    parts["loss"].backward()
    assert all(parameter.grad is None for parameter in teacher.parameters())


def plan_stages(*overrides: str, results=None, **data):
    config = compose(["strategy=noisy_student", "schedule.epochs=null", "schedule.steps=10", *overrides])
    source = make_source(np.repeat(np.arange(4), 30), test=8, unlabelled=0)
    return config, config.strategy.stages(
        StageContext(config, source, split(source, data_config(labels_per_class=3, **data)), results or {})
    )


def name_stages(*overrides: str, **accuracies: float) -> list[str]:
    """Return the stages of a run until validation, given some accuracies; rejected students are in brackets."""
    results = {name.replace("_", "-"): {"val/accuracy": value} for name, value in accuracies.items()}
    _, plan = plan_stages("strategy.until=validation", *overrides, results=results, validation="outside:20")
    return [f"({stage.name})" if getattr(stage, "rejected", False) else stage.name for stage in plan]


def test_the_stages_are_those_of_the_paper_and_the_control():
    students = "strategy.students=[{model:{width:2},length:2.0},{model:{width:3,dropout:0.5},length:1.0}]"
    config, plan = plan_stages(students, "strategy.teacher_length=0.5", "data.batch_size=8")
    assert [stage.name for stage in plan] == ["teacher", "labels-1", "student-1", "labels-2", "student-2", "control"]
    fits = {stage.name: stage for stage in plan if isinstance(stage, TrainStage)}
    assert {name: fit.steps for name, fit in fits.items()} == {
        "teacher": 5, "student-1": 20, "student-2": 10, "control": 35,
    }  # fmt: skip
    assert [stage.teacher for stage in plan if isinstance(stage, PseudoLabelStage)] == ["teacher", "student-1"]
    assert (
        fits["control"].model
        == fits["student-2"].model
        == config.strategy.student_model(config.strategy.students[1], config)
    )
    assert fits["control"].model.dropout == 0.5
    assert fits["student-1"].images_per_step == 8 + 24
    spec_sizes = [
        sum(p.numel() for p in make_network(fits[n]).parameters()) for n in ("teacher", "student-1", "student-2")
    ]
    assert spec_sizes == sorted(set(spec_sizes))


def test_each_round_labels_the_pool_again_and_is_compared_with_the_round_before():
    _, plan = plan_stages("strategy.rounds=3", "strategy.tta_views=mirrored")
    labels = [stage for stage in plan if isinstance(stage, PseudoLabelStage)]
    assert [(stage.teacher, stage.previous, stage.tta_views) for stage in labels] == [
        ("teacher", None, "mirrored"), ("student-1", "labels-1", "mirrored"), ("student-2", "labels-2", "mirrored"),
    ]  # fmt: skip


def test_more_rounds_than_students_repeat_the_last_one_and_fewer_leave_some_out():
    students = "strategy.students=[{model:{width:1.5},length:2.0},{model:{width:2},length:1.0}]"
    for rounds, widths in ((1, [1.0, 1.5]), (2, [1.0, 1.5, 2.0]), (4, [1.0, 1.5, 2.0, 2.0, 2.0])):
        _, plan = plan_stages(students, f"strategy.rounds={rounds}", "strategy.control=false")
        assert [stage.model.width for stage in plan if isinstance(stage, TrainStage)] == widths


@pytest.mark.parametrize(
    ("first", "second", "equal"),
    [
        ("strategy.rounds=2", "strategy.rounds=null", True),  # two are listed
        ("strategy.rounds=3", "strategy.students=[{},{},{}]", True),
        ("strategy.rounds=2", "strategy.rounds=3", False),
        ("strategy.until=validation", "strategy.rounds=null", False),
        ("strategy.start=teacher", "strategy.rounds=null", False),
        ("strategy.target_type=hard", "strategy.target_type=hard strategy.temperature=2", True),
    ],
)
def test_equivalent_overrides_give_one_identity(first, second, equal):
    identities = [
        run_identity(compose(["strategy=noisy_student", *overrides.split()]), "") for overrides in (first, second)
    ]
    assert (identities[0] == identities[1]) == equal


def test_stages_until_validation_follow_from_the_results_alone():
    rounds = ["teacher", "labels-1", "student-1", "labels-2", "student-2"]
    assert name_stages() == [*rounds, "control"]  # as if all gained
    assert name_stages(teacher=0.5) == [*rounds, "control"]
    assert name_stages(teacher=0.5, student_1=0.6) == [*rounds, "control"]
    assert name_stages(teacher=0.5, student_1=0.5) == ["teacher", "labels-1", "(student-1)", "control"]
    assert name_stages(teacher=0.5, student_1=0.6, student_2=0.6) == [*rounds[:4], "(student-2)", "control"]
    third_round = ["labels-3", "student-3"]  # the list of students is no limit
    assert name_stages(teacher=0.5, student_1=0.6, student_2=0.7) == [*rounds, *third_round, "control"]
    limit = "strategy.rounds=2"
    assert name_stages(limit, teacher=0.5, student_1=0.6, student_2=0.7) == [*rounds, "control"]
    assert name_stages(teacher=0.5, student_1=0.6) == name_stages(student_1=0.6, teacher=0.5)


@cache
def make_case():
    config = compose(["strategy=noisy_student", "strategy.until=validation"])
    source = make_source(np.repeat(np.arange(4), 30), test=8, unlabelled=0)
    return config, source, split(source, data_config(labels_per_class=3, validation="outside:20"))


@settings(deadline=None)
@given(st.lists(st.integers(0, 5), min_size=1, max_size=7), st.one_of(st.none(), st.integers(1, 4)))
def test_the_stages_up_to_a_finished_one_do_not_change(accuracies, rounds):
    config, source, splits = make_case()
    strategy = config.strategy.model_copy(update={"rounds": rounds})
    config, results = config.model_copy(update={"strategy": strategy}), {}

    def names():
        return [stage.name for stage in config.strategy.stages(StageContext(config, source, splits, results))]

    train_stages = ["teacher", *(f"student-{number}" for number in range(1, len(accuracies)))]
    for fit, accuracy in zip(train_stages, accuracies, strict=True):
        names_before = names()
        if fit not in names_before:
            break
        results[fit] = {"val/accuracy": accuracy / 5}
        names_after, finished = names(), names_before.index(fit) + 1
        assert names_after[:finished] == names_before[:finished]
        assert (names_after[-1], names_after.count("control")) == ("control", 1)


def test_the_student_that_did_not_gain_is_neither_teacher_nor_finetuned_nor_the_controls_model():
    students = "strategy.students=[{model:{width:2},length:1.0},{model:{width:3},length:1.0}]"
    finetune = "strategy.finetune={length:0.5,lr_scale:0.1}"
    results = {"teacher": {"val/accuracy": 0.5}, "student-1": {"val/accuracy": 0.6}, "student-2": {"val/accuracy": 0.4}}
    overrides = ("strategy.until=validation", students, finetune)
    _, plan = plan_stages(*overrides, results=results, validation="outside:20")
    fits = {stage.name: stage for stage in plan if isinstance(stage, TrainStage)}
    assert fits["finetune"].starts_from == "student-1"
    assert fits["finetune"].model == fits["control"].model == fits["student-1"].model
    assert fits["control"].steps == 10 + 10 + 10 + 5


def test_the_student_that_did_not_gain_is_judged_by_the_monitored_metric():
    worse = {"val/accuracy": 0.6, "val/f1": 0.4}
    results = {"teacher": {"val/accuracy": 0.5, "val/f1": 0.5}, "student-1": worse}
    for monitor, rejected in (("val/accuracy", False), ("val/f1", True)):
        _, stages = plan_stages(
            "strategy.until=validation", f"callbacks.monitor={monitor}", results=results, validation="outside:30"
        )
        assert next(stage for stage in stages if stage.name == "student-1").rejected is rejected


def test_a_student_starts_from_scratch_or_from_its_teacher():
    for start, begins in (("scratch", [None, None, None, None]), ("teacher", [None, "teacher", "student-1", None])):
        _, plan = plan_stages(f"strategy.start={start}")
        assert [stage.starts_from for stage in plan if isinstance(stage, TrainStage)] == begins


def test_live_labels_need_no_stage_and_the_whole_pool_is_shown_beside_its_views():
    _, plan = plan_stages("strategy.label_source=live", "strategy.balance=false")
    assert [stage.name for stage in plan] == ["teacher", "student-1", "student-2", "control"]
    student = plan[2]
    assert (student.teacher.networks, student.teacher.live) == ("student-1", True)
    labelled, pool = student.streams({})
    assert (labelled.beside, pool.beside) == ("", "plain")
    assert set(pool.targets.tolist()) == {UNKNOWN}


def test_the_finetune_sees_the_labels_as_they_are_at_its_own_size():
    _, plan = plan_stages("strategy.finetune={image_size:32,length:0.5,lr_scale:0.1,frozen_layers:1}")
    assert [stage.name for stage in plan][-2:] == ["finetune", "control"]
    last = plan[-2]
    assert (last.steps, last.image_size, last.augmented, last.lr_scale) == (5, 32, False, 0.1)
    assert last.fine_tuning.frozen_layers == 1
    assert [stream.name for stream in last.streams({})] == ["labelled"]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            "strategy.label_source=live",
            "strategy.label_source=live .* no classes to balance: set strategy.balance=false",
        ),
        (
            "strategy.label_source=live strategy.balance=false strategy.tta_views=mirrored",
            "goes with strategy.label_source=stored",
        ),
        ("strategy.label_source=live strategy.balance=false augmentation=weak_strong", r"augmentation.strong=\[\]"),
        ("strategy.label_source=live strategy.balance=false augmentation=mixup", "augmentation.mix=null"),
        ("strategy.balance=false strategy.per_class=9", "strategy.per_class goes with strategy.balance=true"),
        ("strategy.start=teacher strategy.students=[{model:{width:2}}]", "strategy.start=teacher: .*start=scratch"),
        ("strategy.until=validation data.validation=none", "strategy.until=validation needs validation images"),
        (
            "strategy.finetune={image_size:20,length:1,lr_scale:0.1}",
            "strategy.finetune.image_size=20 is smaller than data.image_size=28",
        ),
        ("strategy.tta_views=all", "strategy.*tta_views"),
    ],
)
def test_options_that_do_not_fit_together_are_an_error_of_one_line(overrides, message):
    with pytest.raises(UserError, match=message) as raised:
        compose(["strategy=noisy_student", *overrides.split()])
    assert "\n" not in str(raised.value)


def test_until_validation_needs_validation_images():
    with pytest.raises(UserError, match="strategy.until=validation: there are no validation images"):
        plan_stages("strategy.until=validation")


def make_network(fit: TrainStage):
    return make_classifier(fit.model.arguments(), make_spec())


def test_without_unlabelled_images_it_is_an_error():
    config = compose(["strategy=noisy_student"])
    source = make_source(np.repeat(np.arange(4), 30), test=8, unlabelled=0)
    with pytest.raises(UserError, match="strategy=noisy_student: no unlabelled images; use fewer labels"):
        config.strategy.stages(StageContext(config, source, split(source, data_config())))


def test_a_confidence_that_nothing_reaches_is_an_error():
    _, plan = plan_stages("strategy.confidence=0.99")
    _, labels, student, *_ = plan
    with pytest.raises(UserError, match=r"strategy.confidence=0.99: no pool image reaches it"):
        student.streams({"labels-1": labels.select(Labels.from_array(np.full((108, 4), 0.25, dtype=np.float32)))})


TINY = (
    "strategy=noisy_student",
    "schedule.epochs=null",
    "schedule.steps=4",
    "data.limit=120",
    "data.batch_size=8",
    "data.labels_per_class=3",
    "callbacks.report=false",
)
UNTIL = (
    *TINY,
    "strategy.until=validation",
    "data.validation=outside:30",
    "strategy.finetune={length:0.5,lr_scale:0.5}",
)


def read_record(outputs) -> dict:
    return json.loads((only_run(outputs) / "run.json").read_text())


def report_accuracies(accuracies):
    """Return a trap that makes validation report the accuracy given for each stage."""

    def trap() -> None:
        from tutelage.runs import callbacks

        end, init, current = callbacks.EpochTable.on_validation_epoch_end, callbacks.StepRandomness.__init__, {}

        def remember(self, key):
            current["stage"] = key.stage
            init(self, key)

        def find(self, trainer, module):
            self._validation = [(torch.zeros(100, 10), torch.zeros(100).long())]
            right = accuracies[current["stage"]]
            self._validation[0][0][:, 1] = 1.0
            self._validation[0][0][:right, 0] = 2.0
            end(self, trainer, module)

        callbacks.StepRandomness.__init__, callbacks.EpochTable.on_validation_epoch_end = remember, find

    return trap


GAINED = {"teacher": 50, "student-1": 60, "student-2": 70, "student-3": 70, "finetune": 10, "control": 90}


@pytest.fixture(scope="module")
def run_until_validation(tmp_path_factory):
    outputs = tmp_path_factory.mktemp("until")
    assert run(outputs, *UNTIL, before=report_accuracies(GAINED)) == 0
    return outputs


def test_a_run_goes_on_beyond_the_listed_students_until_validation_no_longer_gains(run_until_validation):
    record = read_record(run_until_validation)
    rounds = [name for number in (1, 2, 3) for name in (f"labels-{number}", f"student-{number}")]
    assert [entry["name"] for entry in record["stages"]] == ["teacher", *rounds, "finetune", "control"]
    assert [entry["name"] for entry in record["stages"] if entry.get("rejected")] == ["student-3"]
    assert record["stages"][-2]["starts_from"] == "student-2"
    assert main_stage_name(record) == "finetune"
    assert record["result"] == record["stages"][-2]["result"]
    for number, entry in enumerate(record["stages"], 1):
        assert (only_run(run_until_validation) / "stages" / f"{number}-{entry['name']}").is_dir()


@pytest.mark.parametrize(("stage", "step"), [("student-2", 4), ("student-3", 2), ("finetune", 1), ("control", 2)])
def test_a_killed_run_until_validation_ends_with_the_same_stages_and_weights(
    run_until_validation, outputs, stage, step
):
    def set_traps() -> None:
        report_accuracies(GAINED)()
        kill_after(stage, step, "on_validation_end" if step == 4 else "on_train_batch_end")()

    assert run(outputs, *UNTIL, before=set_traps) == -signal.SIGKILL
    assert run(outputs, *UNTIL, before=report_accuracies(GAINED)) == 0
    assert outcome(outputs) == outcome(run_until_validation)


def test_a_run_killed_before_it_recorded_a_rejected_student_records_it_on_resume(run_until_validation, outputs):
    def die_in_between() -> None:
        from tutelage.runs import runner

        report_accuracies(GAINED)()
        mark_rejected = runner._mark_rejected

        def trap(context):
            if context.record.stage_entry("student-3") is not None:
                os.kill(os.getpid(), signal.SIGKILL)
            mark_rejected(context)

        runner._mark_rejected = trap

    assert run(outputs, *UNTIL, before=die_in_between) == -signal.SIGKILL
    assert "rejected" not in read_record(outputs)["stages"][-1]
    assert run(outputs, *UNTIL, before=report_accuracies(GAINED)) == 0
    assert [entry.get("rejected") for entry in read_record(outputs)["stages"]] == [
        entry.get("rejected") for entry in read_record(run_until_validation)["stages"]
    ]


def test_a_killed_run_with_live_labels_that_starts_from_its_teacher_ends_with_the_same_weights(outputs, tmp_path):
    live = (
        *TINY,
        "strategy.label_source=live",
        "strategy.balance=false",
        "strategy.start=teacher",
        "strategy.rounds=1",
    )
    live = (*live, "augmentation=affine_randaugment", "strategy.confidence=0.1", "strategy.control=false")
    assert run(outputs, *live) == 0
    assert run(tmp_path, *live, before=kill_after("student-1", 2)) == -signal.SIGKILL
    assert run(tmp_path, *live) == 0
    assert outcome(tmp_path) == outcome(outputs)
    teacher, student = read_record(outputs)["stages"]
    assert student["starts_from"] == "teacher"
    assert student["teacher_sha256"] == [teacher["weights_sha256"]]


LARGER = (*TINY, "model=resnet", "model.width=8", "model.depth=1", "strategy.rounds=1", "strategy.control=false")


def test_a_finetuned_network_is_trained_and_measured_at_its_own_size(outputs):
    file = outputs / "shown.json"

    def watch() -> None:
        from tutelage.models import ImageClassifier

        forward, sizes = ImageClassifier.features, set()

        def note(self, images):
            if not images.is_meta:
                sizes.add((self.spec.image_size, images.shape[-1], self.training))
                file.write_text(json.dumps(sorted(sizes)))
            return forward(self, images)

        ImageClassifier.features = note

    outputs.mkdir()
    finetune = "strategy.finetune={image_size:40,length:0.5,lr_scale:0.1,frozen_layers:1}"
    assert run(outputs, *LARGER, finetune, before=watch) == 0
    assert json.loads(file.read_text()) == [[28, 28, False], [28, 28, True], [40, 40, False], [40, 40, True]]
    last = read_record(outputs)["stages"][-1]
    assert (last["image_size"], last["starts_from"], last["labels"]) == (40, "student-1", 30)
    student, finetuned = (
        load_classifier(only_run(outputs) / "stages" / folder / "checkpoints/final.ckpt")
        for folder in ("3-student-1", "4-finetune")
    )
    assert (student.spec.image_size, finetuned.spec.image_size) == (28, 40)
    finetuned_weights, student_weights = dict(finetuned.named_parameters()), dict(student.named_parameters())
    first, *_ = finetuned_weights
    assert torch.equal(finetuned_weights[first], student_weights[first])  # shallow layers stay
    assert not torch.equal(finetuned_weights["head.weight"], student_weights["head.weight"])


def test_a_network_whose_weights_depend_on_the_size_of_the_image_refuses_another_one(outputs, capfd):
    assert run(outputs, *TINY, "strategy.finetune={image_size:40,length:0.5,lr_scale:0.1}") != 0
    assert "strategy.finetune.image_size=40: the weights of model lenet5 depend on" in capfd.readouterr().err
    assert run(outputs, *LARGER, "strategy.finetune={length:0.5,lr_scale:0.1,frozen_layers:99}") != 0
    assert "strategy.finetune.frozen_layers=99" in capfd.readouterr().err
    assert not list(outputs.glob("*/*/run.json"))
