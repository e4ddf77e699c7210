"""Every YAML composes and validates; what a user gets wrong is one line with the way out."""

import csv
import json
import os
import re

import pytest
from omegaconf import OmegaConf

from helpers.commands import command, loaded_packages
from tutelage.config import Config
from tutelage.config.compose import compose
from tutelage.errors import UserError
from tutelage.options import conf_dir, list_options
from tutelage.runs import run_identity, run_path

EVERY_OPTION = [(group, option) for group, entries in list_options().items() for option in entries]
WITH_WEIGHTS = ["init_from=weights.pth"]
REQUIRED_OVERRIDES = {
    "alexnet": ["data.image_size=67"],
    "vgg": ["data.image_size=32"],
    **{f"transfer_{kind}": WITH_WEIGHTS for kind in ("frozen", "finetune", "gradual")},
}


@pytest.mark.parametrize(("group", "option"), EVERY_OPTION)
def test_every_option_of_every_group_composes_and_validates(group, option):
    config = compose([f"{group}={option}", *REQUIRED_OVERRIDES.get(option, [])])
    assert isinstance(config, Config)


@pytest.mark.parametrize(("group", "option"), EVERY_OPTION)
def test_every_option_opens_with_a_line_that_says_what_it_is(group, option):
    summary = list_options()[group][option]
    assert 5 < len(summary) < 120


@pytest.mark.parametrize("name", sorted(list_options()["experiment"]))
def test_every_experiment_has_its_own_name_says_its_command_and_shrinks(name):
    config = compose([f"experiment={name}", "debug=tiny"])
    assert config.name == name
    assert config.schedule.steps == 4
    assert config.data.limit == 200
    text = (conf_dir() / "experiment" / f"{name}.yaml").read_text()
    assert f"tutelage train experiment={name}" in text
    for heading in ("Shows:", "Command:", "Cost:", "Result:"):
        assert heading in text


def test_every_key_of_the_schema_stands_in_the_configs():
    """Users find keys in the YAML files only."""
    composed = compose([]).model_dump()
    assert set(composed) == set(Config.model_fields)
    keys = set()
    for file in conf_dir().rglob("*.yaml"):
        keys |= set(OmegaConf.to_container(OmegaConf.load(file)))
    for section in ("loss", "optimizer", "scheduler", "trainer", "callbacks", "data"):
        fields = type(getattr(compose([]), section)).model_fields
        assert {field.alias or name for name, field in fields.items()} <= keys, section


CONFIG_ERRORS = [
    (["experiment=[why_cnn,why_augment]"], "experiment takes one name; several are a sweep: -m experiment=ONE,OTHER"),
    (["strategy=fixmatch", "augmentation=none"], "strategy=fixmatch needs two different views of an image"),
    (["model=nearest_neighbours", "loss.label_smoothing=0.1"], "loss does nothing for nearest neighbours; set loss="),
    (
        ["strategy=lwf", "strategy.tasks=[[0,1],[2,3]]", "loss._target_=mine.Focal"],
        "strategy=lwf takes cross-entropy within the head of each task, not mine.Focal: set loss=cross_entropy",
    ),
    (["loss.label_smoothing=1"], "loss.label_smoothing=1: input should be less than 1"),
    (["optimizer.clip_norm=-1"], "optimizer.clip_norm=-1: input should be greater than or equal to 0"),
    (["modle.width=2"], "unknown key 'modle.width' in 'modle.width=2': did you mean 'model.width'?"),
    (["model.widht=2"], "unknown key 'model.widht' in 'model.widht=2': did you mean 'model.width'?"),
    (["dta=digits"], "unknown key 'dta' in 'dta=digits': did you mean 'data'?"),
    (["+model.depth=2"], "unknown key 'model.depth'"),
    (
        ["model=lenet6"],
        "did you mean 'lenet5'? Allowed: alexnet, convnext_tiny, efficientnet_lite0, lenet5, mlp, nearest_neighbours, ",
    ),
    (["experiment=nothing"], "experiment=nothing: no such option"),
    (["model.width=-2"], "model.width=-2: input should be greater than 0"),
    (["model.width=wide"], "model.width=wide: input should be a valid number"),
    (["model=mlp", "model.width=2.5"], "model.width=2.5: input should be a valid integer"),
    (["model.dropout=1"], "model.dropout=1: input should be less than 1"),
    (["seed=-1"], "seed=-1: input should be greater than or equal to 0"),
    (["seed=null"], "seed=None: input should be a valid integer"),
    (["name=../up"], "name=../up: string should match pattern"),
    (["data.labels=1.5"], "data.labels=1.5: type a share of all labels as 10%, or a number of labels as a whole"),
    (["data.labels=0.1"], "data.labels=0.1: type a share of all labels as 10%"),
    (["data.labels=0"], "data.labels=0: type a share"),
    (["data.labels=101%"], "data.labels=101%: type a share"),
    (
        ["+data.group=p1"],
        "data.group=p1 goes with data=image_folder, imagenet, table, not with tutelage.data.Digits: set it to null",
    ),
    (
        ["data=image_folder", "recipe=none", "data.group='p[0-9'"],
        "data.group=p[0-9: no regular expression (unterminated",
    ),
    (["data.folds=5"], "data.folds=5 and data.fold=null: give both, as in -m data.folds=5 'data.fold=range(5)'"),
    (["data.fold=1"], "data.folds=null and data.fold=1: give both"),
    (["data.folds=5", "data.fold=5"], "data.fold=5: with data.folds=5, folds are numbered from 0 to 4"),
    (["data.folds=1", "data.fold=0"], "data.folds=1: input should be greater than or equal to 2"),
    (["data.labels=10%", "data.labels_per_class=2"], "data.labels and data.labels_per_class exclude each other"),
    (["data.validation=some"], "data.validation=some: allowed are auto, none, inside and outside:N"),
    (["data.validation=outside:0"], "data.validation=outside:0: allowed are"),
    (["data.mean=[0.4,0.5]"], "data.mean and data.std need one value, or one for each of the 1 channels"),
    (["schedule.steps=3", "schedule.epochs=2"], "set exactly one of schedule.epochs and schedule.steps"),
    (["schedule.epochs=0"], "schedule.epochs=0: input should be greater than 0"),
    (["optimizer.momentum=0.9"], "unknown key 'optimizer.momentum'"),
    (["optimizer=sgd", "optimizer.momentum=0"], "optimizer.nesterov needs optimizer.momentum above 0"),
    (["trainer=cpu", "trainer.precision=16-mixed"], "trainer.precision=16-mixed needs a GPU"),
    (["trainer.precision=8"], "trainer.precision=8: input should be '32-true', '16-mixed' or 'bf16-mixed'"),
    (["strategy=noisy_student", "strategy.students=[]"], "strategy.students: List should have at least 1 item"),
    (["strategy=noisy_student", "strategy.students=[{model:{depht:2}}]"], "unknown key 'depht': did you mean 'depth'?"),
    (["strategy=distillation", "strategy.alpha=2"], "strategy.alpha=2: input should be less than or equal to 1"),
    (["strategy=distillation", "strategy.target_type=hard", "strategy.decoupled={}"], "decoupled weighs soft targets"),
    (["strategy=distillation", "strategy.temperature=0"], "strategy.temperature=0: input should be greater than 0"),
    (["strategy=distillation", "strategy.teacher=vgg"], "composed into a key by model@strategy.teacher=vgg"),
    (["strategy=distillation", "model@strategy.teacher=vgg"], "strategy.teacher: model=vgg needs images of 32 pixels"),
    (["strategy=teacher_student", "strategy.teacher=null"], "name finished runs by strategy.teachers=[RUN]"),
    (["strategy=distillation", "augmentation=weak_strong"], "strategy=distillation takes one view of an image"),
    (["strategy=distillation", "strategy.teacher.widht=2"], "did you mean 'strategy.teacher.width'?"),
    (
        ["strategy=pseudo_label", "strategy.ramp_begins=0.7"],
        "strategy.ramp_begins must not be greater than strategy.ramp_ends",
    ),
    (["strategy=pseudo_label", "model=nearest_neighbours"], "does not go with strategy=pseudo_label"),
    (["strategy=lwf", "strategy.tasks=[[0,1],[1,2]]"], "each with classes of its own"),
    (["strategy=lwf", "strategy.tasks=[[0,1]]"], "two tasks or more are needed"),
    (["strategy=lwf", "strategy.tasks=[[0,1],[2]]"], "a task of one class has nothing to tell it from: give [2] a"),
    (
        ["strategy=transfer_frozen"],
        "strategy=transfer_frozen starts from trained weights: give init_from=RUN, FILE, timm:NAME",
    ),
    (
        ["strategy=transfer_frozen", "init_from=x", "optimizer.layer_decay=0.5"],
        "strategy=transfer_frozen trains no layer of the backbone: set optimizer.backbone_lr_scale=1 optimizer.layer_",
    ),
    (["optimizer.layer_decay=0"], "optimizer.layer_decay=0: input should be greater than 0"),
    (["strategy=transfer_finetune", "strategy.layer_decay=0.5"], "did you mean 'optimizer.layer_decay'?"),
    (["strategy=transfer_gradual", "strategy.backbone_lr_scale=1"], "did you mean 'optimizer.backbone_lr_scale'?"),
    (["strategy=transfer_finetune", "init_from=x", "+strategy.frozen_layers=1"], "did you mean 'model.frozen_layers'?"),
    (["model=nearest_neighbours", "+model.frozen_layers=1"], "model.frozen_layers: nearest neighbours train no layer"),
    (["data.root=${nowhere}"], "${nowhere} in the config refers to a key that does not exist"),
    (["augmentation.transforms=[{p:1}]"], "each entry needs a _target_"),
    (["model.width"], "'model.width' is not KEY=VALUE"),
    (["paths.outputs="], "paths.outputs=: string should have at least 1 character"),
    (["+augmentation.magnitud=3"], "unknown key 'augmentation.magnitud'"),
    (["augmentation=randaugment", "+augmentation.num_op=3"], "'augmentation.num_op': did you mean 'num_ops'?"),
    (["augmentation=null"], "augmentation"),
    (["~augmentation"], "augmentation"),
    (["model=null"], "model"),
    (["model=[1]"], "model"),
    (["optimizer.lr=inf"], "optimizer.lr=inf: input should be a finite number"),
]


@pytest.mark.parametrize(
    ("overrides", "message"), CONFIG_ERRORS, ids=lambda value: " ".join(value) if isinstance(value, list) else ""
)
def test_a_config_error_is_one_line(overrides, message):
    with pytest.raises(UserError) as error:
        compose(overrides)
    line = str(error.value)
    assert message in line
    assert "\n" not in line
    assert len(line) < 480


LIBRARY_ERRORS = [
    (
        ["strategy=noisy_student", "data.labels_per_class=2", "model=mlp", "strategy.students=[{model:{width:2}}]"],
        "strategy.students: student-1 would have 1,606 weights, fewer than the 1,276,810 of its teacher",
    ),
    (["trainer=gpu"], "trainer.accelerator=gpu: no CUDA device is visible"),
    (["trainer.precision=16-mixed"], "trainer.precision=16-mixed: no CUDA device is visible"),
    (["data=image_folder"], "data=image_folder needs data.root=FOLDER"),
    (["augmentation.transforms=[{_target_:albumentations.Rotat}]"], "'albumentations.Rotat' does not exist"),
    (["augmentation.transforms=[{_target_:os.system}]"], "'os.system' is outside the allowed packages"),
    (["augmentation.transforms=[{_target_:albumentations.Resize,height:3,width:3}]"], "came out as (3, 3, 1)"),
    (["model=timm", "model.name=resnet_18"], "model.name=resnet_18: timm has no such architecture"),
    (["data.image_size=8"], "model=lenet5 needs images of 12 pixels or more"),
    (["strategy=noisy_student"], "strategy=noisy_student: no unlabelled images"),
    (["data.limit=100", "data.validation=outside:50"], "data.validation=outside:50: only 0 images"),
    (["model=timm", "model.name=vgg11"], "model vgg11 does not take data.image_size=28"),
    (["paths.outputs=/proc/x"], "/proc/x"),
    (["data.labels_per_class=500"], "data.labels_per_class=500: class '0' has"),
    (["data=fashion_mnist", "data.root=/proc/nowhere"], "data.root=/proc/nowhere: no such folder"),
]


@pytest.mark.parametrize(
    ("overrides", "message"), LIBRARY_ERRORS, ids=lambda value: " ".join(value) if isinstance(value, list) else ""
)
def test_errors_that_only_the_libraries_find_come_before_anything_is_written(overrides, message, outputs):
    from helpers.overrides import QUIET
    from tutelage.app.job import run_job

    with pytest.raises(UserError) as error:
        run_job(compose([*QUIET, f"paths.outputs={outputs}", *overrides]))
    assert message in str(error.value)
    assert "\n" not in str(error.value)
    assert not [path for path in outputs.rglob("*") if path.is_file() and ".locks" not in path.parts]


def run_name(*overrides: str) -> str:
    return run_path(compose(list(overrides)), "").name


def test_a_runs_name_depends_on_its_science_alone():
    base = run_name()
    for override in (
        "paths.outputs=/elsewhere",
        "trainer.threads=7",
        "trainer=cpu",
        "data.num_workers=4",
        "logger=csv",
        "callbacks=quiet",
        "callbacks.checkpoint_minutes=1",
        "data.root=/x",
    ):
        assert run_name(override) == base, override
    others = [
        "seed=1",
        "attempt=2",
        "debug=tiny",
        "data=fashion_mnist",
        "data.labels=50%",
        "data.split_seed=5",
        "data.validation=inside",
        "data.batch_size=65",
        "data.image_size=32",
        "model=mlp",
        "model.dropout=0.1",
        "augmentation=none",
        "optimizer.lr=0.1",
        "optimizer.ema_decay=0.9",
        "optimizer.clip_norm=1",
        "loss.label_smoothing=0.1",
        "scheduler=constant",
        "schedule.epochs=11",
        "strategy=noisy_student",
        "trainer.precision=bf16-mixed",
    ]
    names = [base, *map(run_name, others)]
    assert len(set(names)) == len(names)


def test_a_key_at_its_neutral_value_does_not_enter_so_old_runs_keep_their_names():
    keys = run_identity(compose([]), "")
    assert "ema_decay" not in keys["optimizer"]
    assert "dropout" not in keys["model"]
    assert "attempt" not in keys
    assert keys["seed"] == 0
    assert keys["identity_version"] == 5


@pytest.mark.parametrize(
    ("override", "equivalent"),
    [
        ("strategy.students=[{model:{width:2}}]", "strategy.students=[{model:{width:2.0,dropout:0.0},length:1}]"),
        ("optimizer.lr=1", "optimizer.lr=1.0"),
        ("data.mirror=0.0", "data.mirror=0.4"),
        ("optimizer.clip_norm=null", "optimizer.clip_norm=0"),
    ],
)
def test_another_way_to_write_the_same_is_the_same_run(override, equivalent):
    overrides = ["strategy=noisy_student", "augmentation=affine"]
    assert run_name(*overrides, override) == run_name(*overrides, equivalent)


def test_names_of_runs_are_for_ever():
    """If this fails, users' finished runs are trained again: raise IDENTITY_VERSION only on purpose."""
    assert run_path(compose(["experiment=digits_noisy_student"]), "").name == DIGITS_NAME


DIGITS_NAME = "digits-lenet5-noisy_student-s0-2b70be563c"


def test_the_folders_fingerprint_is_part_of_a_run():
    config = compose(["data=image_folder", "recipe=none", "data.root=x"])
    assert run_path(config, "aaa") != run_path(config, "bbb")


def test_seed_zero_is_a_seed():
    assert run_identity(compose(["seed=0"]), "")["seed"] == 0
    assert compose(["seed=3"]).data.split_seed == 3


def test_a_users_own_configs_join_ours(tmp_path):
    (tmp_path / "model").mkdir()
    text = "_target_: tutelage.models.MLP\nwidth: 7\ndepth: 1\n"
    (tmp_path / "model" / "mine.yaml").write_text(text)
    assert compose(["model=mine"], [str(tmp_path)]).model.width == 7


@pytest.mark.parametrize(
    ("arguments", "unwanted"),
    [
        (["tutelage.cli", "--help"], ("torch", "hydra", "omegaconf", "pydantic")),
        (["tutelage.train", "modle.width=2"], ("torch", "albumentations", "pytorch_lightning")),
        (["tutelage.train", "--help"], ("torch", "hydra")),
        (["tutelage.cli", "export", "--help"], ("torch", "albumentations")),
    ],
)
def test_help_and_config_errors_load_nothing_heavy(arguments, unwanted):
    _, loaded = loaded_packages(*arguments)
    assert "tutelage" in loaded
    assert not loaded & set(unwanted)


def test_an_error_is_one_line_on_stderr_with_exit_code_2():
    process = command("tutelage.cli", "train", "data=digits", "model=lenet5", "modle.width=2")
    assert process.returncode == 2
    assert process.stdout == ""
    assert process.stderr.count("\n") == 1
    assert "did you mean 'model.width'?" in process.stderr


@pytest.mark.parametrize("override", ["modle.width=3", "model.width=1,2,-3", "data=digits,digitz"])
def test_a_sweep_with_a_wrong_job_is_refused_before_any_runs(override, outputs):
    process = command("tutelage.train", "-m", "debug=tiny", f"paths.outputs={outputs}", "seed=0,1", override)
    assert process.returncode == 2
    assert process.stderr.count("\n") == 1
    assert not outputs.exists()


def test_help_lists_every_group_and_option_with_a_line_on_each():
    process = command("tutelage.cli", "train", "--help")
    assert process.returncode == 0
    for group, entries in list_options().items():
        assert f"{group}=" in process.stdout
        for option, summary in entries.items():
            assert option in process.stdout
            assert summary in process.stdout


OWN_CLASSES = """
from torch import nn
from torch.nn.functional import cross_entropy

from tutelage.models import ImageClassifier, LabelLoss


class Linear(ImageClassifier):
    def __init__(self, spec, *, bias=True):
        super().__init__(spec)
        self.backbone = nn.Flatten()
        self.head = nn.Linear(spec.channels * spec.image_size**2, len(spec.classes), bias=bias)


class Nothing(LabelLoss):
    def __init__(self, scale):
        super().__init__()
        self.scale = scale

    def forward(self, logits, targets, weights):
        return self.scale * cross_entropy(logits, targets, weights)
"""


def test_a_users_own_architecture_and_loss_train_once_their_package_is_allowed(tmp_path):
    (tmp_path / "mymodels.py").write_text(OWN_CLASSES)
    for group, content in (("model/linear", "Linear\nbias: false"), ("loss/nothing", "Nothing\nscale: 0.0")):
        (tmp_path / "conf" / group).parent.mkdir(parents=True)
        (tmp_path / "conf" / f"{group}.yaml").write_text(f"_target_: mymodels.{content}\n")
    arguments = ["--config-dir", "conf", "model=linear", "loss=nothing", "debug=tiny", "callbacks=quiet"]
    process = command("tutelage.train", *arguments, cwd=tmp_path)
    assert process.returncode == 2
    assert "'mymodels.Linear' is outside the allowed packages" in process.stderr
    assert "--allow mymodels allows a package that you trust" in process.stderr
    process = command("tutelage.cli", "train", "--allow", "mymodels", *arguments, cwd=tmp_path)
    assert process.returncode == 0, process.stderr
    assert "7,840" in process.stdout  # 28 * 28 * 10 weights, no bias
    (record,) = tmp_path.glob("outputs/*/*/run.json")
    content = json.loads(record.read_text())
    assert content["command"].startswith("tutelage train --allow=mymodels --config-dir conf")
    assert content["identity"]["loss"] == {"_target_": "mymodels.Nothing", "scale": 0}
    with (record.parent / "metrics.csv").open() as file:
        assert {float(row["train/loss"]) for row in csv.DictReader(file)} == {0.0}
    made_by = content["foreign_code"]["mymodels"]
    assert content["sessions"][0]["foreign_code"] == {"mymodels": made_by}

    # The finished run is answered without its classes, and says that they have changed since.
    process, loaded = loaded_packages("tutelage.train", "--allow", "mymodels", *arguments, cwd=tmp_path)
    assert "7,840" in process.stdout
    assert "other code" not in process.stdout + process.stderr
    assert not loaded & {"torch", "mymodels"}
    (tmp_path / "mymodels.py").write_text(OWN_CLASSES + "\n# another\n")
    process = command("tutelage.train", "--allow", "mymodels", *arguments, cwd=tmp_path)
    said = " ".join(process.stdout.split())
    assert re.search(rf"Made by other code: mymodels {made_by[:17]} \(now sha256 \w+\). attempt=2 makes it anew", said)

    # A run that is not finished goes on, with a warning, and records both.
    record.write_text(json.dumps({**content, "status": "running"}))
    process = command("tutelage.train", "--allow", "mymodels", *arguments, cwd=tmp_path)
    assert process.returncode == 0, process.stderr
    assert f"warning: begun by other code, goes on: mymodels {made_by[:17]} (now sha256 " in process.stderr
    content = json.loads(record.read_text())
    codes = [session["foreign_code"]["mymodels"] for session in content["sessions"]]
    assert codes == [made_by, content["foreign_code"]["mymodels"]]
    assert len(set(codes)) == 2
    safe_path = {**os.environ, "PYTHONSAFEPATH": "1"}  # as the installed program: nothing but --allow finds the module
    run = str(record.parent)
    for words in (["explain", "--summary", run], ["evaluate", run, "shift=translate"]):
        process = command("tutelage.cli", *words, cwd=tmp_path, env=safe_path)
        assert (process.returncode, "--allow mymodels allows a package" in process.stderr) == (2, True)
        process = command("tutelage.cli", *words, "--allow=mymodels", cwd=tmp_path, env=safe_path)
        assert process.returncode == 0, process.stderr


def test_allow_without_a_package_is_an_error():
    process = command("tutelage.cli", "train", "--allow", "data=digits")
    assert process.returncode == 2
    assert "--allow data=digits: give the name of a top-level package" in process.stderr


def test_an_unknown_key_in_a_config_file_is_named(tmp_path):
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "odd.yaml").write_text("defaults:\n  - override /dat: digits\n")
    with pytest.raises(UserError, match="unknown key 'dat' in a config file: did you mean 'data'"):
        compose(["experiment=odd"], [str(tmp_path)])


def test_a_hint_knows_the_users_own_configs(tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "mine.yaml").write_text("_target_: mymodels.Net\nblocks: 3\n")
    with pytest.raises(UserError, match="did you mean 'model.blocks'"):
        compose(["model=mine", "model.blokcs=4"], [str(tmp_path)])
