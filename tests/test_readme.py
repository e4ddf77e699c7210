"""Every command of the README and of first steps runs, and of some pages of docs/; test_docs.py has the other pages."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from helpers.commands import command
from helpers.images import write_images
from helpers.paths import ROOT


def commands_of(page: str) -> list[str]:
    blocks = re.findall(r"```sh\n(.*?)```", (ROOT / page).read_text(), re.DOTALL)
    return [line.split("  #")[0].strip() for block in blocks for line in block.splitlines() if line.strip()]


COMMANDS = list(dict.fromkeys(commands_of("README.md") + commands_of("docs/first_steps.md")))
TUTELAGE = [command for command in COMMANDS if command.startswith("tutelage ")]
PAGES = ("docs/self_training.md", "docs/sweeps.md", "docs/your_pictures.md")
OF_FINISHED_RUNS = "tutelage evaluate outputs/runs/RUN1 "  # test_ensembles.py
OF_DOCS = [
    command
    for page in PAGES
    for command in commands_of(page)
    if command.startswith("tutelage ") and not command.startswith(OF_FINISHED_RUNS) and command not in TUTELAGE
]
LONG = ("experiment=", "sweep=", "-m ", "strategy=noisy_student")  # sweeps, experiments with reports, several rounds
ELSEWHERE = {"make experiment", "make test", "source .venv/bin/activate"}  # .ci/run types these, or does without


def test_every_command_is_run_here_or_by_ci():
    assert len(TUTELAGE) >= 5
    assert set(COMMANDS) - set(TUTELAGE) == ELSEWHERE
    ci = (ROOT / ".ci" / "run").read_text()
    assert re.search(r'^part "make test" \d+ make test$', ci, re.MULTILINE)
    assert ci.count("\n  make experiment\n") == 2  # to its end, and once more


def marked(typed: str):
    marks = [pytest.mark.slow] if typed in OF_DOCS or any(word in typed for word in LONG) else []
    return pytest.param(typed, marks=marks, id=typed)


@pytest.mark.parametrize("typed", map(marked, TUTELAGE + OF_DOCS))
def test_a_command_of_the_readme_runs(typed, tmp_path):
    """Commands run as written but small: training gets debug=tiny, and sweeps over seeds one seed."""
    words = shlex.split(typed)
    if words[1] == "train" and "--help" not in words:
        words += ["debug=tiny", "trainer.threads=1"]
    if "experiment=label_efficiency" in typed:
        words += ["seed=0", "callbacks=quiet", "data.num_workers=0"]
    if "sweep=randaugment_grid" in typed:
        words += ["augmentation.num_ops=1,2", "augmentation.magnitude=9", "seed=0", "callbacks=quiet"]
    if words[1] == "runs":
        (tmp_path / "outputs").mkdir()
    for label in ("cat", "dog"):
        write_images(tmp_path / "photos" / "train" / label, 5)
    write_images(tmp_path / "photos" / "unlabelled", 4)
    program = str(Path(sys.executable).with_name("tutelage"))
    environment = {**os.environ, "COLUMNS": "120"}
    if "--help" in words:
        process = subprocess.run(
            [program, *words[1:]], cwd=tmp_path, capture_output=True, text=True, env=environment, check=False
        )
    else:
        process = command("tutelage.cli", *words[1:], cwd=tmp_path, env=environment)
    assert process.returncode == 0, process.stderr
    assert process.stdout.strip()


def test_the_tables_name_every_option():
    from tutelage.options import list_options

    readme, first_steps = ((ROOT / page).read_text() for page in ("README.md", "docs/first_steps.md"))
    for group in ("recipe", "strategy", "data", "model", "augmentation"):
        for option in list_options()[group]:
            assert f"`{option}`" in (readme if group == "strategy" else first_steps), f"{group}={option}"


def test_the_readme_is_short_and_its_pictures_are_there():
    text = (ROOT / "README.md").read_text()
    assert text.count("\n") < 90
    assert all((ROOT / picture).is_file() for picture in re.findall(r"!\[[^]]+\]\(([^)]+)\)", text))
