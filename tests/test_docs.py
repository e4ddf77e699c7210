"""The pages of docs/: commands compose, links lead somewhere, the notebook and what the pages list are true."""

import json
import re
import shlex
from pathlib import Path

import pytest

from helpers.images import write_images
from helpers.paths import ROOT
from tutelage.cli import format_help

PAGES = sorted(page.relative_to(ROOT).as_posix() for page in [ROOT / "README.md", *(ROOT / "docs").glob("*.md")])
RUN_BY_A_TEST = {
    "README.md": "test_readme.py",
    "docs/first_steps.md": "test_readme.py",
    "docs/self_training.md": "test_readme.py",
    "docs/sweeps.md": "test_readme.py",
    "docs/your_pictures.md": "test_readme.py",
    "docs/after_training.md": "test_going_on.py",
    "docs/extending.md": "test_extending.py",
}
COMPOSED = {"train", "preview", "fetch"}  # commands that begin with a config
OTHERS = {  # what no test of the pages runs, and why
    "aws": "needs a bucket",
    "docker": "needs Docker",
    "export": "sets a variable",
    "make": "typed by .ci/run, or by hand on a GPU",
    "npm": "typed by .ci/run",
    "pip": "typed by .ci/run, for the extras that its tests need",
    "python": "benchmarks and experiments' scripts: typed by make bench-short, and by test_experiments.py",
    "tutelage label": "needs a run that labels its pool: test_label_stage.py",
}
FOREIGN = "mypackage"  # stands for a package of the reader's
SCRIPT = "train.sbatch"  # of docs/clusters.md: its arguments are those of tutelage train


def read_commands(page: str) -> list[str]:
    """Return the commands of a page: of the blocks in a shell's language, without comments, lines joined."""
    blocks = re.findall(r"^```(?:sh|bash)\n(.*?)^```", (ROOT / page).read_text(), re.MULTILINE | re.DOTALL)
    lines = [line for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    return [line for line in lines if line.strip() and not line.lstrip().startswith("#")]


def split_command(line: str) -> tuple[str, list[str]]:
    """Return what a line runs, such as ``tutelage train`` or ``pip``, and its arguments."""
    words = [word for word in shlex.split(line, comments=True) if not re.match(r"[A-Z_]+=", word)]
    if words[0] == "torchrun":
        return "tutelage train", words[words.index("tutelage.train") + 1 :]
    if words[0] == "sbatch":
        return "tutelage train", words[words.index(SCRIPT) + 1 :]
    if words[0] in {"docker", "srun"} and "train" in words:
        return "tutelage train", [word for word in words[words.index("train") + 1 :] if word != "$@"]
    return (" ".join(words[:2]), words[2:]) if words[0] == "tutelage" else (words[0], words[1:])


COMMANDS = [split_command(line) for page in PAGES if page not in RUN_BY_A_TEST for line in read_commands(page)]
CONFIGS = sorted({shlex.join(words) for name, words in COMMANDS if name.partition(" ")[2] in COMPOSED})


def test_each_command_of_the_pages_is_run_or_composed_or_named_with_a_reason():
    assert len(CONFIGS) > 40
    names = {name for name, _ in COMMANDS if name.partition(" ")[2] not in COMPOSED}
    assert names == set(OTHERS)
    for page, file in RUN_BY_A_TEST.items():
        text = (ROOT / "tests" / file).read_text()
        assert f'"{page}"' in text or f'"docs" / "{Path(page).name}"' in text, page
    for command in {name for name, _ in COMMANDS if name.startswith("tutelage ")}:
        assert f"  {command} " in format_help(), command


@pytest.mark.slow
@pytest.mark.parametrize("typed", CONFIGS)
def test_a_config_of_the_pages_composes(typed, tmp_path, monkeypatch):
    """Every value of a sweep but its seeds, as before its first job."""
    from tutelage.config.targets import apply_allow_flags
    from tutelage.sweeps.overrides import compose_sweep_values, find_config_sweep

    if FOREIGN in typed:
        pytest.skip(f"{FOREIGN} stands for a package of the reader's")
    monkeypatch.chdir(tmp_path)
    for label in ("cat", "dog"):
        write_images(tmp_path / "photos" / label, 5)
    words = [word for word in shlex.split(typed) if word != "-m" and not word.startswith("seed=")]
    words = apply_allow_flags([*words, "seed=0"])
    configs, _ = compose_sweep_values([*words, *(find_config_sweep(words) or [])])
    assert configs


@pytest.mark.parametrize("page", PAGES)
def test_what_a_page_links_to_exists(page):
    """Files, and headings in them; the files that a page shows are in the tree."""
    for target in re.findall(r"\]\(([^)\s]+)\)", (ROOT / page).read_text()):
        if target.startswith("https://"):
            continue
        name, _, heading = target.partition("#")
        file = (ROOT / page).parent / name if name else ROOT / page
        assert file.is_file(), target
        assert not heading or heading in list_anchors(file), target


def list_anchors(file: Path) -> set[str]:
    """Return the anchors of a page's headings, as forges and MyST make them."""
    headings = re.findall(r"^#+ (.*)$", file.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.replace("`", "").lower()).strip().replace(" ", "-") for heading in headings}


def test_every_page_is_in_the_table_of_contents():
    contents = re.findall(r"^(\w+)$", (ROOT / "docs" / "index.md").read_text(), re.MULTILINE)
    pages = {file.stem for suffix in ("md", "rst", "ipynb") for file in (ROOT / "docs").glob(f"*.{suffix}")}
    assert sorted(contents) == sorted(pages - {"index"})


def test_the_reference_documents_what_is_public():
    """Both are what ``docs/extending.md`` promises to keep."""
    table = (ROOT / "docs" / "extending.md").read_text().partition("## What is public")[2]
    public = set()
    for module, names in re.findall(r"^\| `(tutelage[\w.]*)` \| (.*) \|$", table, re.MULTILINE):
        public |= {f"{module}.{name}" for name in re.findall(r"`(\w+)`", names)}
    reference = (ROOT / "docs" / "api.rst").read_text()
    documented = set(re.findall(r"^\.\. (?:auto\w+|py:data):: ([\w.]+)$", reference, re.MULTILINE))
    assert len(public) > 30
    assert documented - public == {"tutelage.inference.classifier.Classifier"}  # what load returns
    assert public <= documented


def test_the_dockerfile_copies_what_there_is_and_types_what_the_makefile_has():
    (text,) = re.findall(r"^```dockerfile\n(.*?)^```", (ROOT / "docs" / "clusters.md").read_text(), re.M | re.DOTALL)
    copied = [word for line in re.findall(r"^COPY (.*)$", text, re.MULTILINE) for word in line.split()[:-1]]
    assert {"pyproject.toml", "constraints.txt", "Makefile", "src", "conf"} <= set(copied)
    assert all((ROOT / name).exists() for name in copied)
    (target,) = re.findall(r"^RUN make (\w+)$", text, re.MULTILINE)
    assert re.search(rf"^{target}:.*## ", (ROOT / "Makefile").read_text(), re.MULTILINE)
    (python,) = re.findall(r"^FROM python:3\.(\d+)-slim$", text, re.MULTILINE)
    assert 11 <= int(python) <= 13
    runs = [line for line in read_commands("docs/clusters.md") if line.startswith("docker run ")]
    assert runs and all(" --shm-size=8g " in line for line in runs)


def test_papers_names_files_that_there_are():
    text = (ROOT / "docs" / "papers.md").read_text()
    files = set(re.findall(r"`([\w/]+(?:\.py|/))`", text)) - {"src/tutelage/"}
    assert len(files) > 20
    assert all((ROOT / "src" / "tutelage" / file).exists() for file in files)
    for name in re.findall(r"`(\w+[12]\d{3}\w*)`", text):
        assert (ROOT / "conf" / "experiment" / f"{name}.yaml").is_file(), name


def test_the_notebook_is_as_it_ran_and_says_nothing_of_the_machine():
    file = ROOT / "docs" / "tour.ipynb"
    cells = [cell for cell in json.loads(file.read_text())["cells"] if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    outputs = [output for cell in cells for output in cell["outputs"]]
    assert sum("image/png" in output.get("data", {}) for output in outputs) == 3
    assert {output["output_type"] for output in outputs} <= {"stream", "display_data", "execute_result"}  # no errors
    assert not [output for output in outputs if output.get("name") == "stderr"]
    assert all(cell["metadata"] == {} for cell in cells)
    assert "/tmp" not in file.read_text() and "site-packages" not in file.read_text()
    assert file.stat().st_size < 300_000
