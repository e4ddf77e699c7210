"""A folder with modules that a command started in it must not import, and one that it may."""

import subprocess
import sys
from pathlib import Path

SHADOWS = ("pydantic", "random", "signal", "sitecustomize", "hydra_plugins/sent")
OWN_CODE = """
import multiprocessing

from tutelage.data import Digits
from tutelage.models import MLP

multiprocessing.set_start_method("forkserver", force=True)  # a worker of the loader then imports all that it uses


class Net(MLP):
    pass


class Data(Digits):
    def fingerprint(self):
        return ""
"""


def leave_mark(marker: Path) -> str:
    """Return the code of a module that writes a file when it is imported."""
    return f"import pathlib\npathlib.Path({str(marker)!r}).touch()\n"


def write_shadows(folder: Path) -> Path:
    """Write modules with names that a run imports into a folder; return the file that each writes when imported."""
    for name in SHADOWS:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / f"{name}.py").write_text(leave_mark(folder / "marker"))
    return folder / "marker"


def write_own_code(folder: Path) -> list[str]:
    """Write a network and a dataset, in the module ``mycode``, into a folder; return what makes a run use them."""
    (folder / "mycode.py").write_text(OWN_CODE)
    (folder / "conf" / "model").mkdir(parents=True)
    (folder / "conf" / "model" / "own.yaml").write_text("_target_: mycode.Net\nwidth: 4\ndepth: 1\n")
    return ["--config-dir=conf", "model=own", "data._target_=mycode.Data"]


def run_installed(folder: Path, *words: str, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """Run the installed program ``tutelage``, as a person does who has just changed into a folder."""
    program = str(Path(sys.executable).with_name("tutelage"))
    return subprocess.run([program, *words], cwd=folder, capture_output=True, text=True, env=env)
