"""What is installed from the wheel, away from the checkout, is whole."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from helpers.paths import ROOT
from tutelage.options import conf_dir


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    top = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(top), str(ROOT)]
    subprocess.run(build, check=True, capture_output=True)
    (wheel,) = top.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(top / "site")
    return top / "site"


def test_the_wheel_holds_every_config(installed):
    packed = {
        path.relative_to(installed / "tutelage" / "conf") for path in (installed / "tutelage").rglob("conf/**/*.yaml")
    }
    assert packed == {path.relative_to(conf_dir()) for path in conf_dir().rglob("*.yaml")}


def test_the_wheel_holds_every_template(installed):
    templates = sorted((ROOT / "src" / "tutelage" / "report" / "templates").iterdir())
    assert len(templates) >= 4
    for template in templates:
        assert (installed / template.relative_to(ROOT / "src")).read_bytes() == template.read_bytes()


@pytest.mark.slow
def test_an_installed_wheel_trains_outside_the_checkout(installed, tmp_path):
    environment = {**os.environ, "PYTHONPATH": str(installed)}
    program = "import tutelage; print(tutelage.__file__)"
    location = subprocess.run(
        [sys.executable, "-P", "-c", program], capture_output=True, text=True, cwd=tmp_path, env=environment, check=True
    )
    assert str(installed) in location.stdout
    command = [sys.executable, "-P", "-m", "tutelage.train", "experiment=digits_noisy_student", "debug=tiny"]
    training = subprocess.run(
        [*command, "callbacks.display=false"], capture_output=True, text=True, cwd=tmp_path, env=environment
    )
    assert training.returncode == 0, training.stderr
    assert "control" in training.stdout
    assert len(list(tmp_path.glob("outputs/digits_noisy_student/*/report/index.html"))) == 1
