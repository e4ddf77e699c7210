"""The way from the command to Lightning's ``fit``, and the architecture page that describes it."""

import importlib
import json
import os
import re
import runpy
import sys
import traceback

import pytest

from helpers import fork_server
from helpers.forks import call_in_fork
from helpers.overrides import QUIET
from helpers.paths import ROOT

MOST_FRAMES = 7
PAGE = (ROOT / "docs" / "architecture.md").read_text()
NAMES = sorted({name for name in re.findall(r"`([a-z_][\w.]*)`", PAGE) if "." in name})
OTHER_NAMES = {"run.json"}


def test_at_most_seven_frames_of_ours_lead_from_the_command_to_fit(outputs, tmp_path):
    fork_server.preload()

    def train() -> int:
        import pytorch_lightning

        def fit(*arguments, **options):
            frames = [frame for frame in traceback.extract_stack() if f"{os.sep}tutelage{os.sep}" in frame.filename]
            (tmp_path / "frames.json").write_text(json.dumps([frame.name for frame in frames]))
            os._exit(0)

        pytorch_lightning.Trainer.fit = fit
        sys.argv = ["tutelage.train", *QUIET, f"paths.outputs={outputs}", "debug=tiny", "model=perceptron"]
        runpy.run_module("tutelage.train", run_name="__main__")
        return 1

    assert call_in_fork(train) == 0
    frames = json.loads((tmp_path / "frames.json").read_text())
    assert frames[:2] == ["<module>", "main"]
    assert frames[-1] == "fit_stage"
    assert len(frames) <= MOST_FRAMES
    assert len(set(frames)) == len(frames)
    for name in frames[1:]:
        assert f".{name}`" in PAGE, f"docs/architecture.md does not name {name}"


@pytest.mark.parametrize("name", [name for name in NAMES if name not in OTHER_NAMES])
def test_every_name_on_the_architecture_page_exists(name):
    parts = name.split(".")
    for cut in range(len(parts), 0, -1):
        try:
            target = importlib.import_module(".".join(["tutelage", *parts[:cut]]))
        except ModuleNotFoundError:
            continue
        for part in parts[cut:]:
            target = getattr(target, part)
        return
    pytest.fail(f"tutelage.{name}: no such module")


def test_every_part_of_the_house_stands_on_the_architecture_page():
    source = ROOT / "src" / "tutelage"
    wings = {path.stem for path in source.iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()}
    assert not [wing for wing in wings - {"__init__"} if f"`{wing}`" not in PAGE]


def test_the_glossary_is_short():
    rows = [line for line in PAGE.partition("## Glossary")[2].splitlines() if line.startswith("| ")]
    assert len(rows) - 1 <= 15
