"""Every command of the README runs."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from conftest import ROOT
from test_data import write_images

BLOCKS = re.findall(r"```sh\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
COMMANDS = [line.split("  #")[0].strip() for block in BLOCKS for line in block.splitlines() if line.strip()]
TUTELAGE = [command for command in COMMANDS if command.startswith("tutelage ")]
ELSEWHERE = {"make experiment", "make test", "source .venv/bin/activate"}  # .ci/run types these, or does without


def test_every_command_is_run_here_or_by_ci():
    assert len(TUTELAGE) >= 5
    assert set(COMMANDS) - set(TUTELAGE) == ELSEWHERE
    ci = (ROOT / ".ci" / "run").read_text().splitlines()
    assert {"make test", "make experiment"} <= set(ci)


@pytest.mark.parametrize("command", TUTELAGE)
def test_a_command_of_the_readme_runs(command, tmp_path):
    """As it stands, but small: training commands get debug=tiny."""
    words = command.split()
    if words[1] == "train" and "--help" not in words:
        words += ["debug=tiny", "trainer.threads=1"]
    if words[1] == "runs":
        (tmp_path / "outputs").mkdir()
    for label in ("cat", "dog"):
        write_images(tmp_path / "photos" / "train" / label, 4)
    write_images(tmp_path / "photos" / "unlabelled", 4)
    words[0] = str(Path(sys.executable).with_name("tutelage"))
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, env={**os.environ, "COLUMNS": "120"})
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()


def test_what_the_readme_links_to_exists():
    for target in re.findall(r"\]\(([^)]+)\)", (ROOT / "README.md").read_text()):
        assert (ROOT / target).is_file(), target


def test_the_method_tables_name_every_option():
    from tutelage.compose import options

    text = (ROOT / "README.md").read_text()
    for group in ("strategy", "data", "model", "augmentation"):
        for option in options()[group]:
            assert f"`{option}`" in text, f"{group}={option}"
