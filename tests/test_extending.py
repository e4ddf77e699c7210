"""The examples of docs/extending.md, word for word, in an empty folder."""

import importlib
import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from helpers.commands import command
from helpers.paths import ROOT

PAGE = (ROOT / "docs" / "extending.md").read_text()
MAX_LINES = 40  # of an example


def read_sections() -> dict[str, list[tuple[str, str]]]:
    """Return the code blocks of each section: language and text."""
    sections = {}
    for section in re.split(r"^## ", PAGE, flags=re.MULTILINE)[1:]:
        blocks = re.findall(r"^```(\w+)\n(.*?)^```", section, flags=re.MULTILINE | re.DOTALL)
        sections[section.partition("\n")[0]] = blocks
    return sections


SECTIONS = read_sections()
EXAMPLES = [name for name, blocks in SECTIONS.items() if any(language == "sh" for language, _ in blocks)]
OTHERS = [name for name in EXAMPLES if name != "A strategy"]


def write_files(folder: Path, *sections: str) -> None:
    """Write the blocks that begin with a file's name."""
    for section in sections:
        for language, text in SECTIONS[section]:
            if language in {"python", "yaml"}:
                name, _, content = text.removeprefix("# ").partition("\n")
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                (folder / name).write_text(content)


def type_commands(section: str, folder: Path) -> list[str]:
    """Type the section's commands, and return what each printed."""
    printed = []
    for _, text in (block for block in SECTIONS[section] if block[0] == "sh"):
        for program, *arguments in map(shlex.split, text.splitlines()):
            if program == "python":
                subprocess.run([sys.executable, *arguments], cwd=folder, check=True)
                continue
            assert program == "tutelage"
            process = command("tutelage.cli", *arguments, cwd=folder)
            assert process.returncode == 0, process.stderr
            printed.append(process.stdout)
    return printed


def read_records(folder: Path) -> list[dict]:
    return [json.loads(file.read_text()) for file in sorted(folder.glob("outputs/*/*/run.json"))]


def test_each_example_is_short():
    blocks = [text for blocks in SECTIONS.values() for language, text in blocks if language == "python"]
    assert len(blocks) == 7
    assert max(text.count("\n") for text in blocks) < MAX_LINES


@pytest.mark.parametrize("section", OTHERS)
def test_an_example_works_as_it_stands(section, tmp_path):
    write_files(tmp_path, section)
    check_example(tmp_path, type_commands(section, tmp_path))


def check_example(folder: Path, printed: list[str]) -> None:
    """Check what an example printed and left: finished runs with their code, a report, its lines in --help."""
    records = read_records(folder)
    assert records
    assert all(record["status"] == "finished" for record in records)
    assert "report: outputs/" in printed[0]
    (code,) = {json.dumps(record["foreign_code"]) for record in records}
    assert "sha256" in code
    listed = command("tutelage.cli", "train", "--help", "--config-dir", "conf", cwd=folder).stdout
    for file in folder.glob("conf/*/*.yaml"):
        assert re.search(rf"^  {file.stem} +\S", listed, re.MULTILINE), "its line in --help"


@pytest.mark.slow
def test_the_strategy_of_the_page_has_all_that_ours_have(tmp_path):
    write_files(tmp_path, "A strategy")
    first, other = type_commands("A strategy", tmp_path)
    check_example(tmp_path, [first, other])
    assert re.search(r"^entropy .*%", first, re.MULTILINE)
    assert re.search(r"^control .*%", first, re.MULTILINE)
    assert "Control: the same network and augmentation on the labels alone" in first
    assert len(read_records(tmp_path)) == 2, "another weight is another run"
    before = [file.stat().st_mtime_ns for file in sorted(tmp_path.glob("outputs/*/*/run.json"))]
    assert type_commands("A strategy", tmp_path) == [first, other], "a finished run shows its result"
    assert [file.stat().st_mtime_ns for file in sorted(tmp_path.glob("outputs/*/*/run.json"))] == before
    for record in read_records(tmp_path):
        assert record["identity"]["strategy"]["_target_"] == "entropy.EntropyStrategy"
    assert all("-entropy-" in file.parent.name for file in tmp_path.glob("outputs/*/*/run.json"))


ODD = """
from pathlib import Path
from tutelage.data import ImageDataModule
from tutelage.strategies import Strategy, StudentModule

class OddStrategy(Strategy):
    fails: str
    def check(self, config):
        self.fails == "check" and {}["x"]
    def identity(self, config):
        return {"key": Path("x")} if self.fails == "identity" else super().identity(config)
    def stages(self, context):
        streams = (lambda selections: selections["y"]) if self.fails == "streams" else lambda _: [context.labelled]
        length = context.length(1.0, context.labelled)
        trained = "second" if self.fails == "list" and context.results else "first"
        stage = context.supervised_stage(trained, length, context.labelled, module=Module, streams=streams)
        if self.fails == "list":
            stage = context.supervised_stage(trained, length, context.labelled)
        if self.fails == "stages":
            return {}["x"]
        return None if self.fails == "nothing" else [stage]

class Module(StudentModule):
    def training_step(self, batch, batch_idx):
        return {"loss": batch["pool"].images.sum()}

class Odd(ImageDataModule):
    def fingerprint(self):
        return 3
    def read(self):
        return 3
"""


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["strategy=entropy"], "--allow entropy allows a package that you trust"),
        (["--allow=entropy", "strategy=entropy", "strategy.weight=much"], "strategy.weight=much: input should be"),
        (["--allow=entropy", "strategy=entropy", "+strategy.wait=1"], "unknown key 'strategy.wait'"),
        (
            ["--allow=entropy", "strategy=entropy", "strategy._target_=entropy.Nothing"],
            "'entropy.Nothing' does not exist",
        ),
        (["--allow=entropy", "strategy=entropy", "strategy._target_=entropy.EntropyMinimisation"], "is no Strategy"),
        (["--allow=mymodel", "model=mixer", "model.hidden=abc"], "Mixer(hidden=abc): TypeError: "),
        (["--allow=mymodel", "model=mixer", "+model.hiden=3"], "unexpected keyword argument 'hiden'"),
        (["--allow=arrays", "data=arrays"], "data.root needs a value: give data.root=..."),
        (["--allow=arrays", "data=arrays", "data.root=nowhere.npz"], "nowhere.npz"),
        (["--allow=arrays", "data=arrays", "data.root=null"], "data.root"),
        (["--allow=broken", "model=broken"], "'broken.Model' cannot be imported: NameError: name 'undefined' is not"),
        (["model=nothing"], "--config-dir DIR adds your own"),
        (["model=malformed"], "is not valid YAML: mapping values are not allowed here in"),
        (
            ["--allow=helped", "model=helped"],
            "No module named 'helper_of_mine': --allow helper_of_mine allows the one in",
        ),
        (["--allow=odd", "strategy=odd"], "strategy=odd: check(): KeyError: 'x' ("),
        (["--allow=odd", "strategy=odd", "strategy.fails=identity"], "strategy=odd: identity(): TypeError: "),
        (["--allow=odd", "strategy=odd", "strategy.fails=stages"], "strategy=odd: stages(): KeyError: 'x' ("),
        (["--allow=odd", "strategy=odd", "strategy.fails=nothing"], "stages() returned a NoneType, not a list of"),
        (
            ["--allow=odd", "strategy=odd", "strategy.fails=step", "debug=tiny"],
            "stage first: Module: KeyError: 'pool' (",
        ),
        (
            ["--allow=odd", "strategy=odd", "strategy.fails=streams", "debug=tiny"],
            "stage first: its streams: KeyError: 'y'",
        ),
        (
            ["--allow=odd", "strategy=odd", "strategy.fails=list", "debug=tiny"],
            "returned second after first: finished stages",
        ),
        (
            ["--allow=entropy", "strategy=entropy", "strategy.unlabelled_ratio=2"],
            "type +strategy.unlabelled_ratio=2, or add",
        ),
        (["--allow=arrays", "data=arrays", "data.root=."], "data.root=. holds paths.outputs=outputs"),
        (["--allow=odd", "data=odd"], "data: Odd.fingerprint() for data.root=x: TypeError: a string is to be returned"),
    ],
)
def test_a_mistake_on_the_way_is_one_line_that_says_where_to_go(tmp_path_factory, arguments, reason):
    folder = tmp_path_factory.mktemp("mistakes")
    write_files(folder, *EXAMPLES)
    (folder / "broken.py").write_text("import os\n\nundefined.Model\n")
    (folder / "conf/model/broken.yaml").write_text("_target_: broken.Model\n")
    (folder / "conf/model/malformed.yaml").write_text("a: b: c\n")
    (folder / "helped.py").write_text("import helper_of_mine\n")
    (folder / "helper_of_mine.py").touch()
    (folder / "conf/model/helped.yaml").write_text("_target_: helped.Model\n")
    (folder / "odd.py").write_text(ODD)
    (folder / "conf/strategy/odd.yaml").write_text("_target_: odd.OddStrategy\nfails: check\n")
    (folder / "conf/data/odd.yaml").write_text((folder / "conf/data/arrays.yaml").read_text() + "root: x\n")
    text = (folder / "conf/data/odd.yaml").read_text()
    (folder / "conf/data/odd.yaml").write_text(text.replace("arrays.Arrays", "odd.Odd"))
    process = command("tutelage.cli", "train", "--config-dir=conf", *arguments, cwd=folder)
    *progress, line = process.stderr.splitlines()
    assert process.returncode == 2, process.stderr
    assert reason in line
    assert line.startswith("tutelage: ")
    assert not progress or "debug=tiny" in arguments, "training had begun"
    assert "Traceback" not in process.stderr


@pytest.mark.parametrize(
    ("module", "names"),
    re.findall(r"^\| `(tutelage\.\w+)` \| (.*?) \|$", PAGE, flags=re.MULTILINE),
)
def test_what_is_public_exists(module, names):
    for name in re.findall(r"`(\w+)`", names):
        assert hasattr(importlib.import_module(module), name), name


@pytest.mark.slow
def test_the_tests_of_the_page_pass(tmp_path):
    write_files(tmp_path, "A model", "A strategy", "Testing it")
    process = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": "."},
        capture_output=True,
        text=True,
    )
    assert process.returncode == 0, process.stdout
    assert "4 passed" in process.stdout
