"""Data and code of others: what changed since a finished run was made is not passed over."""

import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from helpers.commands import command
from helpers.configs import data_config
from helpers.overrides import QUIET
from helpers.runs import only_run
from tutelage.app.job import _show_result, locate_run
from tutelage.config import foreign_code
from tutelage.config.compose import compose
from tutelage.config.foreign_code import describe_code, list_foreign_packages
from tutelage.data import fingerprint
from tutelage.data.files import contents, scan
from tutelage.errors import UserError
from tutelage.runs import RunFolder
from tutelage.runs.code import describe_current_code, describe_other_code
from tutelage.runs.folder import SCHEMA_VERSION, VERSION_KEY

OWN_DATA = """
import numpy as np

from tutelage.data import Digits, ImageDataModule
from tutelage.data.source import IndexNames, Source


class Arrays(ImageDataModule):
    def read(self):
        labels = np.load(self.config.root + "/labels.npy")
        images = np.load(self.config.root + "/images.npy")
        every = np.arange(len(labels))
        train, test, none = every[::2], every[1::2], every[:0]
        return Source(images, labels, ("a", "b"), train, test, none, none, IndexNames(len(labels)))


class Numbered(Arrays):
    def fingerprint(self):
        return "version 2"


class MyDigits(Digits):
    pass
"""


@pytest.fixture(autouse=True)
def forget_descriptions() -> Iterator[None]:
    describe_code.cache_clear()
    yield
    describe_code.cache_clear()


@pytest.fixture
def owndata(tmp_path, monkeypatch) -> Path:
    """A package of datasets that may be named, and a folder of arrays."""
    import numpy as np

    (tmp_path / "owndata.py").write_text(OWN_DATA)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("TUTELAGE_ALLOW", "owndata")
    monkeypatch.delitem(sys.modules, "owndata", raising=False)
    folder = tmp_path / "arrays"
    (folder / "more").mkdir(parents=True)
    np.save(folder / "images.npy", np.random.default_rng(0).integers(0, 256, (40, 28, 28, 1), dtype=np.uint8))
    np.save(folder / "labels.npy", np.arange(40) % 2)
    return folder


def own_config(root: Path | None, name: str = "Arrays", **changes):
    return data_config(_target_=f"owndata.{name}", root=None if root is None else str(root), **changes)


def test_a_dataset_of_ones_own_is_identified_by_the_names_and_contents_of_its_files(owndata, tmp_path):
    first = fingerprint(own_config(owndata))
    assert fingerprint(own_config(owndata)) == first
    owndata.rename(tmp_path / "elsewhere")
    elsewhere = tmp_path / "elsewhere"
    assert fingerprint(own_config(elsewhere)) == first
    (elsewhere / ".hidden").write_text("of the file system's")
    assert fingerprint(own_config(elsewhere)) == first
    seen = {first}
    labels = elsewhere / "labels.npy"
    content = bytearray(labels.read_bytes())
    content[-8] ^= 1  # of the same size
    for change in (
        lambda: labels.write_bytes(content),
        lambda: labels.rename(elsewhere / "more" / "labels.npy"),
        lambda: (elsewhere / "more" / "new").write_text(""),
    ):
        change()
        seen.add(fingerprint(own_config(elsewhere)))
    assert len(seen) == 4
    (tmp_path / "pool.bin").write_bytes(b"1")
    with_pool = [fingerprint(own_config(elsewhere, unlabelled=str(tmp_path / "pool.bin")))]
    (tmp_path / "pool.bin").write_bytes(b"2")
    with_pool.append(fingerprint(own_config(elsewhere, unlabelled=str(tmp_path / "pool.bin"))))
    assert len({*seen, *with_pool}) == 6
    url = "https://host/a.tar"
    assert fingerprint(own_config(elsewhere, unlabelled=url)) not in {*seen, *with_pool}


def test_unchanged_files_are_read_once_and_changed_ones_again_also_if_their_size_and_time_are_the_old_ones(
    owndata, monkeypatch
):
    monkeypatch.setattr(contents, "SETTLED_NS", -1)
    reports = []
    first = fingerprint(own_config(owndata), lambda *report: reports.append(report))
    assert reports[-1] == (f"reading data.root={owndata}", 1.0)
    with monkeypatch.context() as patch:
        patch.setattr(scan, "BLOCK", "no number")  # reading a file fails
        assert fingerprint(own_config(owndata)) == first
    labels, state = owndata / "labels.npy", (owndata / "labels.npy").stat()
    content = bytearray(labels.read_bytes())
    content[-8] ^= 1
    labels.write_bytes(content)
    os.utime(labels, ns=(state.st_atime_ns, state.st_mtime_ns))  # as rsync does
    assert fingerprint(own_config(owndata)) != first


def test_a_file_that_changed_just_now_is_not_remembered(owndata, monkeypatch):
    fingerprint(own_config(owndata))
    monkeypatch.setattr(scan, "BLOCK", "no number")
    with pytest.raises(UserError, match="TypeError"):
        fingerprint(own_config(owndata))


def test_own_data_trains_and_makes_another_run_once_it_has_changed(owndata, tmp_path):
    (tmp_path / "conf" / "data").mkdir(parents=True)
    fields = own_config(owndata).model_dump(mode="json")
    (tmp_path / "conf" / "data" / "arrays.yaml").write_text(json.dumps(fields))
    overrides = [*QUIET, "data=arrays", "debug=tiny", f"paths.outputs={tmp_path / 'outputs'}"]
    arguments = ["--config-dir=conf", "--allow=owndata", *overrides]
    process = command("tutelage.train", *arguments, cwd=tmp_path)
    assert process.returncode == 0, process.stderr
    config = compose(overrides, [str(tmp_path / "conf")])
    assert locate_run(config).folder.path == only_run(tmp_path / "outputs")
    (owndata / "labels.npy").write_bytes(b"another")
    assert locate_run(config).folder.path != only_run(tmp_path / "outputs")


@pytest.mark.parametrize(
    ("name", "root", "unlabelled", "message"),
    [
        ("Arrays", None, None, r"data.root=null: .*set data.root to its folder.*or define fingerprint\(\) in Arrays"),
        ("MyDigits", None, None, r"data.root=null: .*or define fingerprint\(\) in MyDigits"),
        ("Arrays", "nowhere", None, "data.root=nowhere: no such file or folder"),
        ("Arrays", ".", "nowhere", "data.unlabelled=nowhere: no such file or folder"),
    ],
)
def test_own_data_that_nothing_identifies_is_refused_in_one_line(owndata, name, root, unlabelled, message):
    with pytest.raises(UserError, match=message) as refused:
        fingerprint(own_config(root, name, unlabelled=unlabelled))
    assert "\n" not in str(refused.value)


def test_a_fingerprint_of_ones_own_counts_and_needs_no_root(owndata):
    assert fingerprint(own_config(None, "Numbered")) == "version 2"


def write_package(folder: Path) -> Path:
    """Write a package with a sub-package and a file that is no code; return it."""
    package = folder / "strangers"
    (package / "nets").mkdir(parents=True)
    for name in ("__init__.py", "nets/__init__.py", "nets/wide.py"):
        (package / name).write_text(f"# {name}\n")
    (package / "weights.bin").write_bytes(b"0")
    return package


def describe_anew(name: str) -> str:
    describe_code.cache_clear()
    return describe_code(name)


def test_a_packages_code_is_all_its_python_files_and_nothing_else(tmp_path, monkeypatch):
    package = write_package(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    first = describe_anew("strangers")
    assert first.startswith("sha256 ")
    (package / "weights.bin").write_bytes(b"1")
    (package / "nets" / "__pycache__").mkdir()
    (package / "nets" / "__pycache__" / "wide.cpython-311.pyc").write_bytes(b"1")
    (package / ".#wide.py").symlink_to("an editor's lock")
    assert describe_anew("strangers") == first
    (package / "nets" / "wide.py").write_text("# wider\n")
    changed = describe_anew("strangers")
    assert changed != first
    (package / "nets" / "wide.py").rename(package / "nets" / "wider.py")
    assert describe_anew("strangers") not in {first, changed}
    assert "strangers" not in sys.modules


def test_a_module_of_one_file_is_that_file_and_one_that_does_not_exist_is_nothing(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    module = tmp_path / "lonely.py"
    module.write_text("a = 1\n")
    first = describe_anew("lonely")
    (tmp_path / "other.py").write_text("a = 2\n")
    assert describe_anew("lonely") == first
    module.write_text("a = 2\n")
    assert describe_anew("lonely") not in {first, ""}
    assert describe_anew("no_such_module") == ""


def test_an_installed_package_is_its_version_and_an_editable_one_its_code(tmp_path, monkeypatch):
    import timm

    assert describe_anew("timm") == f"timm {timm.__version__}"
    write_package(tmp_path / "work")
    monkeypatch.syspath_prepend(tmp_path / "work")  # what the .pth file of an editable install does
    monkeypatch.setattr(foreign_code, "packages_distributions", lambda: {"strangers": ["strangers"]})
    assert describe_anew("strangers").startswith("sha256 ")


def test_the_packages_of_every_target_are_found_and_ours_are_not_among_them():
    config = {
        "model": {"_target_": "mymodels.nets.Wide", "backbone": {"_target_": "others.Net"}},
        "augmentation": {"transforms": [{"_target_": "albumentations.Rotate"}, {"_target_": "mine.Rotate"}]},
        "data": {"_target_": "tutelage.data.Digits"},
        "name": "_target_",
    }
    assert list_foreign_packages(config) == ["mine", "mymodels", "others"]
    assert list_foreign_packages(compose([]).model_dump()) == []


def test_a_result_in_one_line_says_so_too(tmp_path, capsys):
    now = describe_current_code([])
    for version, said in ((now["version"], ""), ("0.1", "; made by other code, attempt=2 makes it anew")):
        record = {VERSION_KEY: SCHEMA_VERSION, "result": {"val/accuracy": 0.5}, **now, "version": version}
        (tmp_path / "run.json").write_text(json.dumps(record))
        _show_result(compose([]), RunFolder(tmp_path), one_line=True)
        assert capsys.readouterr().out == f"  val 50.0 %{said}\n"


def test_other_code_in_any_session_is_named_beside_todays(tmp_path, monkeypatch):
    (tmp_path / "lonely.py").write_text("a = 1\n")
    monkeypatch.syspath_prepend(tmp_path)
    now = describe_current_code(["lonely"])
    assert now["foreign_code"] == {"lonely": describe_code("lonely")}
    assert describe_other_code({**now, "sessions": [now, now]}) == ""
    before = {"version": "0.1", "git": "0123456789abcdef+", "foreign_code": {"lonely": "sha256 fedcba9876543210"}}
    line = describe_other_code({**now, "sessions": [before, now]})
    assert line.startswith("tutelage 0.1 (0123456789+) (now ")
    assert f"lonely sha256 fedcba9876 (now {now['foreign_code']['lonely'][:17]})" in line
    older = {**now, "foreign_code": {"lonely": "lonely 1.0"}}
    assert "lonely 1.0 and sha256 fedcba9876 (now" in describe_other_code({"sessions": [older, before, now]})
    describe_code.cache_clear()
    (tmp_path / "lonely.py").unlink()
    assert describe_other_code({"sessions": [older, now]}) == ""  # where the code is not at hand there is no other
    assert describe_other_code({"version": now["version"], "git": now["git"]}) == ""
