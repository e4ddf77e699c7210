"""Every write is whole or absent; locks name the process that holds them."""

import errno
import json
import os
import signal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from helpers.forks import call_in_fork
from tutelage.errors import UserError
from tutelage.storage import PARTIAL_PREFIX, digest, hold_lock, remove_partials, write_folder, write_json, write_whole


def test_a_write_that_is_killed_leaves_the_old_content(tmp_path):
    file = tmp_path / "run.json"
    write_json(file, {"old": True})

    def die_while_writing() -> int:
        def write(out) -> None:
            out.write(b"half of the new")
            out.flush()
            os.kill(os.getpid(), signal.SIGKILL)

        write_whole(file, write)
        return 0

    assert call_in_fork(die_while_writing) == -signal.SIGKILL
    assert json.loads(file.read_text()) == {"old": True}
    assert list(tmp_path.glob(f"{PARTIAL_PREFIX}*"))
    remove_partials(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["run.json"]


def test_a_write_that_fails_leaves_nothing_behind(tmp_path):
    def fail(out) -> None:
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        write_whole(tmp_path / "deep" / "file", fail)
    assert not list((tmp_path / "deep").iterdir())


def test_a_folder_that_cannot_be_filled_is_not_there_and_one_line_says_why(tmp_path):
    def fail(folder) -> None:
        (folder / "half").touch()
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.raises(UserError, match=r"out: cannot be written \(No space left on device\); make room for it"):
        write_folder(tmp_path / "out", fail)
    assert not list(tmp_path.iterdir())


def test_what_a_killed_process_left_of_a_folder_is_removed_by_the_next(tmp_path):
    def die(folder) -> None:
        (folder / "half").touch()
        os.kill(os.getpid(), signal.SIGKILL)

    for name in ("out", "other"):
        assert call_in_fork(lambda name=name: write_folder(tmp_path / name, die)) == -signal.SIGKILL
    old, others = sorted(tmp_path.iterdir(), key=lambda path: "other" in path.name)
    os.utime(others, (0, 0))
    write_folder(tmp_path / "out", lambda folder: (folder / "whole").touch())
    assert old.is_dir()  # a live process may be filling it
    os.utime(old, (0, 0))
    write_folder(tmp_path / "out-2", lambda folder: (folder / "whole").touch())
    assert old.is_dir()  # it is another target's
    (tmp_path / "out" / "whole").unlink()
    write_folder(tmp_path / "out", lambda folder: (folder / "whole").touch())
    assert sorted(tmp_path.iterdir()) == sorted([others, tmp_path / "out", tmp_path / "out-2"])
    remove_partials(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "out-2"]


def test_a_lock_is_free_again_when_its_holder_was_killed(tmp_path):
    lock = tmp_path / "a.lock"

    def hold_and_die() -> int:
        with hold_lock(lock, "it"):
            os.kill(os.getpid(), signal.SIGKILL)
        return 0

    assert call_in_fork(hold_and_die) == -signal.SIGKILL
    with hold_lock(lock, "it"):
        pass


def test_a_held_lock_is_refused_by_another_process(tmp_path):
    lock = tmp_path / "a.lock"

    def try_lock() -> int:
        try:
            with hold_lock(lock, "run x"):
                return 1
        except UserError as error:
            return 0 if f"run x is in use by process {os.getppid()} " in str(error) else 2

    with hold_lock(lock, "run x"):
        assert call_in_fork(try_lock) == 0


@given(st.dictionaries(st.text(), st.integers() | st.floats(allow_nan=False) | st.text(), max_size=6))
def test_a_digest_does_not_depend_on_the_order_of_keys(value):
    assert digest(value) == digest(dict(reversed(value.items())))
