"""Code that nobody asked for does not run: not what a config makes Hydra build, nor what lies in the current folder."""

import os
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from helpers.commands import command
from helpers.overrides import QUIET
from helpers.shadows import leave_mark, run_installed, write_own_code, write_shadows
from tutelage.config.compose import compose, hydra_initialized
from tutelage.config.targets import apply_allow_flags, list_allowed_packages
from tutelage.errors import UserError

CALLBACK = """
from hydra.experimental.callback import Callback


class Own(Callback):
    def on_multirun_start(self, config, **rest):
        print("the callback has run")
"""
OWN_CALLBACK = "callbacks: {mine: {_target_: mycode.Own}}"


@pytest.fixture
def marker(tmp_path, monkeypatch):
    """Return the file that ``mycode`` writes when it is imported; the test and its commands can import it."""
    (tmp_path / "mycode.py").write_text(leave_mark(tmp_path / "marker") + CALLBACK)
    monkeypatch.delenv("PYTHONSAFEPATH", raising=False)  # python -m imports from the current folder
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "mycode", raising=False)
    return tmp_path / "marker"


def write_option(folder: Path, option: str, hydra: str, others: str = "") -> None:
    """Write an option of a group, such as ``experiment/sent``, with a section for Hydra."""
    file = folder / "conf" / f"{option}.yaml"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(f"# @package _global_\n{others}\nhydra:\n  {hydra}\n")


def refusal(folder: Path, *overrides: str) -> str:
    with pytest.raises(UserError) as refused:
        compose(overrides, [str(folder / "conf")])
    assert "\n" not in str(refused.value)
    return str(refused.value)


@pytest.mark.parametrize(
    ("hydra", "key", "way_out"),
    [
        (OWN_CALLBACK, "hydra.callbacks.mine._target_: 'mycode.Own'", "--allow mycode"),
        ("callbacks: {mine: {_target_: joblib.load, filename: x}}", "hydra.callbacks.mine._target_", "--allow joblib"),
        ("callbacks: {mine: {_target_: tutelage.config.Config}}", "hydra.callbacks.mine._target_", "is no Callback"),
        ("callbacks: {mine: {a: [{_target_: mycode.Own}]}}", "hydra.callbacks.mine.a.0._target_", "--allow mycode"),
        ("callbacks: {mine: {_target_: '${oc.env:X,mycode.Own}'}}", "hydra.callbacks.mine._target_", "write it out"),
        ("callbacks: {mine: '${built}'}", "hydra.callbacks.mine=${built}", "write it out"),
        ("callbacks: '${all_built}'", "hydra.callbacks=${all_built}", "write it out"),
        ("callbacks: {mine: '${oc.create:{_target_:mycode.Own}}'}", "hydra.callbacks.mine", "write it out"),
        ("callbacks: {mine: '${${oc.env:X,built}}'}", "hydra.callbacks.mine", "write it out"),
        ("launcher: {_target_: mycode.Own}", "hydra.launcher._target_: 'mycode.Own'", "--allow mycode"),
        ("sweeper: {_target_: mycode.Own}", "hydra.sweeper._target_: 'mycode.Own'", "--allow mycode"),
        ("sweeper: {params: {a: {_target_: mycode.Own}}}", "hydra.sweeper.params.a._target_", "--allow mycode"),
        ("job_logging: {formatters: {a: {(): mycode.Own}}}", "hydra.job_logging={'formatters': {'a'", "=none"),
        ("hydra_logging: {root: {handlers: [a]}}", "hydra.hydra_logging={'root': {'handlers'", "=none"),
        ("job_logging: '${built}'", "hydra.job_logging=${built}", "=none"),
        ("job: {env_set: {LD_PRELOAD: x.so}}", "hydra.job.env_set={'LD_PRELOAD': 'x.so'}", "before the command"),
        ("job: {env_copy: [PATH]}", "hydra.job.env_copy=['PATH']", "leave it out"),
        ("overrides: {hydra: [hydra.job.env_set.A=b]}", "hydra.overrides=", "leave it out"),
    ],
)
def test_what_hydra_would_run_or_apply_is_refused(tmp_path, marker, hydra, key, way_out):
    built = "built: {_target_: mycode.Own}\nall_built: {mine: {_target_: mycode.Own}}"
    write_option(tmp_path, "experiment/sent", hydra, built)
    line = refusal(tmp_path, "experiment=sent")
    assert line.startswith(key)
    assert way_out in line
    assert not marker.exists()


@pytest.mark.parametrize(
    ("override", "key"),
    [
        ("+hydra.callbacks.mine={_target_:mycode.Own}", "hydra.callbacks.mine._target_"),
        ("+hydra.job.env_set.A=b", "hydra.job.env_set={'A': 'b'}"),
        ("hydra/job_logging=default", "hydra.job_logging="),
        ("hydra.searchpath=[pkg://mycode]", "hydra.searchpath=pkg://mycode"),
    ],
)
def test_so_is_what_the_command_line_says(tmp_path, marker, override, key):
    (tmp_path / "conf").mkdir()
    with pytest.raises(UserError, match="^" + key.replace("{", r"\{")):
        compose([override])
    assert not marker.exists()


@pytest.mark.parametrize(
    ("settings", "key"),
    [
        ("setup: [./sent.sh]", "hydra.launcher.setup.0=./sent.sh"),
        ("sbatch: {export: LD_PRELOAD=x.so}", "hydra.launcher.sbatch.export=LD_PRELOAD=x.so"),
        ('slurm_account: "a\\n./sent.sh"', "hydra.launcher.slurm_account=a ./sent.sh"),
        ("a: {_target_: mycode.Own}", "hydra.launcher.a._target_: 'mycode.Own'"),
    ],
)
def test_code_in_a_file_for_a_launcher_is_refused(tmp_path, marker, settings, key):
    file = tmp_path / "conf" / "hydra" / "launcher" / "site.yaml"
    file.parent.mkdir(parents=True)
    file.write_text(f"defaults: [slurm]\nslurm_partition: few\n{settings}\n")
    assert refusal(tmp_path, "hydra/launcher=site").startswith(key)
    assert not marker.exists()


def test_a_launchers_code_may_be_typed_or_allowed(tmp_path, monkeypatch):
    typed = ["hydra/launcher=slurm", "hydra.launcher.setup=[module load cuda]", "+hydra.launcher.sbatch.qos=few"]
    compose(typed)
    compose(["hydra/launcher=ray", "hydra.launcher.init.address=auto"])
    file = tmp_path / "conf" / "hydra" / "launcher" / "site.yaml"
    file.parent.mkdir(parents=True)
    file.write_text("defaults: [slurm]\nsetup: [module load cuda]\n")
    assert "--allow launcher" in refusal(tmp_path, "hydra/launcher=site")
    monkeypatch.setenv("TUTELAGE_ALLOW", "launcher")
    compose(["hydra/launcher=site"], [str(tmp_path / "conf")])


@pytest.mark.parametrize(
    "words",
    [
        ["train", "experiment=sent"],
        ["train", "-m", "experiment=sent", "seed=0,1"],
        ["train", "-m", "experiment=why_cnn,sent"],
        ["train", "-m", "seed=0,1", "sent=later"],
        ["train", "experiment=sent", "--cfg", "job"],
        ["train", "experiment=sent", "--info", "config"],
        ["preview", "experiment=sent"],
        ["explain", "--summary", "experiment=sent"],
    ],
)
def test_every_command_refuses_it_in_one_line(tmp_path, marker, words):
    write_option(tmp_path, "experiment/sent", OWN_CALLBACK)
    if words[-1] == "sent=later":  # no job has this option, but what Hydra composes for all jobs has it
        words = words[:-1]
        write_option(tmp_path, "experiment/settings/None-supervised", OWN_CALLBACK)
    words = ["tutelage.train", *words[1:]] if words[0] == "train" else ["tutelage.cli", *words]
    process = command(*words, "--config-dir", "conf", "debug=tiny", cwd=tmp_path)
    assert (process.returncode, process.stderr.count("\n")) == (2, 1), process.stderr
    assert "hydra.callbacks.mine._target_: 'mycode.Own' is outside the allowed packages" in process.stderr
    assert not marker.exists()


def test_an_allowed_callback_runs(tmp_path, marker):
    write_option(tmp_path, "experiment/own", OWN_CALLBACK)
    words = ["-m", "--allow", "mycode", "--config-dir", "conf", "experiment=own", "seed=0", "debug=tiny"]
    process = command("tutelage.cli", "train", *words, *QUIET, "model=perceptron", cwd=tmp_path)
    assert process.returncode == 0, process.stderr
    assert process.stdout.startswith("the callback has run\n")


@pytest.mark.slow
def test_a_job_whose_values_together_choose_such_a_config_does_not_begin(tmp_path, marker):
    for seed, name in enumerate(("one", "other")):
        write_option(tmp_path, f"experiment/{name}", "mode: null", f"seed: {seed}")
    write_option(tmp_path, "experiment/settings/other-pseudo_label", "job: {env_set: {A: b}}")
    words = ["-m", "--config-dir=conf", "experiment=one,other", "strategy=supervised,pseudo_label", "debug=tiny"]
    words += ["data.labels_per_class=2", "data.validation=none"]
    process = command("tutelage.cli", "train", *words, *QUIET, "model=perceptron", cwd=tmp_path)
    assert process.returncode == 1
    assert process.stderr.count("hydra.job.env_set={'A': 'b'}: a config sets no environment variables") == 1
    assert len(list(tmp_path.glob("outputs/*/*/run.json"))) == 3


@pytest.mark.parametrize("flag", ["--experimental-rerun=x", "--config-name=x", "--config-path=x", "--run"])
def test_flags_of_hydra_that_load_other_files_are_unknown(flag):
    process = command("tutelage.cli", "train", flag)
    assert (process.returncode, process.stderr.split(";")[0]) == (2, f"tutelage: unknown flag {flag.split('=')[0]}")


@pytest.mark.parametrize(
    ("words", "message"),
    [(["-m", "--cfg", "job"], "--cfg shows one config: leave out -m"), (["-p", "model"], "-p goes with --cfg job")],
)
def test_flags_that_do_not_go_together_are_named(words, message):
    process = command("tutelage.cli", "train", *words)
    assert (process.returncode, process.stderr.count("\n")) == (2, 1)
    assert message in process.stderr


def test_a_config_is_shown(tmp_path):
    write_option(tmp_path, "experiment/own", "mode: null", "seed: 7")
    process = command(
        *("tutelage.cli", "train", "--config-dir=conf", "experiment=own", "--cfg", "job", "-p", "seed"), cwd=tmp_path
    )
    assert (process.returncode, process.stdout, process.stderr) == (0, "7\n", "")


def test_every_config_that_hydra_loads_is_checked():
    from hydra.core.plugins import Plugins
    from hydra.types import RunMode

    with hydra_initialized() as hydra:
        for mode in RunMode:
            with pytest.raises(UserError, match=r"^hydra\.job\.env_set="):
                hydra.compose_config("config", ["+hydra.job.env_set.A=b"], mode)
        master = hydra.compose_config("config", [], RunMode.MULTIRUN)
        with pytest.raises(UserError, match=r"^hydra\.job\.env_set="):
            hydra.config_loader.load_sweep_config(master, ["+hydra.job.env_set.A=b"])
    assert Plugins.instance()


@pytest.mark.parametrize("word", ["train", "preview"])
def test_a_command_imports_nothing_from_the_current_folder(tmp_path, word):
    marker = write_shadows(tmp_path)
    process = run_installed(tmp_path, word, "model=nope")
    assert process.returncode == 2, process.stderr
    assert "model=nope: no such option" in process.stderr
    assert not marker.exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    "words",
    [
        ["data.num_workers=1"],
        ["trainer=ddp_cpu", "data.num_workers=1"],
        ["-m", "hydra/launcher=joblib", "hydra.launcher.n_jobs=2", "seed=0,1"],
    ],
)
def test_no_process_of_a_run_does_except_what_is_allowed(tmp_path, words):
    marker = write_shadows(tmp_path)
    words = [*words, *QUIET, "debug=tiny", *write_own_code(tmp_path)]
    refused = run_installed(tmp_path, "train", *words)
    assert refused.returncode in {1, 2}
    assert "--allow mycode" in refused.stderr
    process = run_installed(tmp_path, "train", "--allow", "mycode", *words)
    assert process.returncode == 0, process.stderr
    assert not marker.exists()


def test_a_preview_finds_what_is_allowed_in_the_current_folder(tmp_path):
    words, safe_path = ["preview", *write_own_code(tmp_path)], {**os.environ, "PYTHONSAFEPATH": "1"}
    refused = command("tutelage.cli", *words, cwd=tmp_path, env=safe_path)
    assert (refused.returncode, "--allow mycode" in refused.stderr) == (2, True)
    process = command("tutelage.cli", *words, "--allow=mycode", cwd=tmp_path, env=safe_path)
    assert process.returncode == 0, process.stderr


def allow_in(folder: Path, monkeypatch: pytest.MonkeyPatch, *packages: str) -> None:
    monkeypatch.setenv("TUTELAGE_ALLOW", "")
    monkeypatch.setenv("TUTELAGE_ALLOW_FOLDER", "")
    monkeypatch.chdir(folder)
    apply_allow_flags([f"--allow={package}" for package in packages])


def test_an_allowed_package_is_found_in_the_folder_of_the_command(tmp_path, monkeypatch):
    (tmp_path / "mypackage").mkdir()
    for file in ("mypackage/__init__.py", "mypackage/nets.py", "mymodule.py", "json.py", "pydantic.py", "launcher.py"):
        (tmp_path / file).touch()
    allow_in(tmp_path, monkeypatch, "mypackage", "json", "pydantic", "launcher")
    monkeypatch.chdir("/")  # as a worker's folder may be another
    assert find_spec("mypackage").origin == str(tmp_path / "mypackage" / "__init__.py")
    assert find_spec("mypackage.nets").origin == str(tmp_path / "mypackage" / "nets.py")
    assert find_spec("mymodule") is None  # nobody allowed it
    assert find_spec("launcher") is None  # the word stands for a launcher's settings
    assert "launcher" not in list_allowed_packages()
    for installed in ("json", "pydantic"):
        assert not Path(find_spec(installed).origin).is_relative_to(tmp_path)
    allow_in(tmp_path, monkeypatch)
    monkeypatch.delitem(sys.modules, "mypackage")
    assert find_spec("mypackage") is None
