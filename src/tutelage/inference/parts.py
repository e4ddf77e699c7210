"""Rows on their way to a file: parts of some thousand rows in a folder beside it, each whole or absent.

A command that was killed and is typed again makes the parts that are missing. The parts become the file in the same
folder; a link then gives that file its name, which fails if the name is taken.
"""

import errno
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import pyarrow as pa

from tutelage.errors import UserError
from tutelage.inference.rows import FORMATS
from tutelage.storage import flush_folder, hold_lock, is_sound, remove_partials, write_checked, write_json, write_whole

METADATA, LOCK, WHOLE, PART_SUFFIX = "inputs.json", "lock", "whole", ".arrow"
NO_ROOM = {errno.ENOSPC, errno.EDQUOT}
NO_LINKS = {errno.EPERM, errno.ENOTSUP, errno.ENOSYS}  # of file systems that have no hard links


class Parts:
    """The parts of one output file, in the folder ``.NAME.parts`` beside it.

    Attributes:
        out: the file that they become.
        missing: the numbers of the parts that are not written yet, ascending.
        is_finished: whether the file is there already: its command was killed before it removed the parts.
    """

    def __init__(self, out: Path, count: int, metadata: Mapping[str, Any]) -> None:
        """Begin the parts, or go on with them; their lock is held already.

        Args:
            out: the file.
            count: of its parts.
            metadata: what the rows depend on, each thing by the name that a message calls it by.

        Raises:
            UserError: the parts in the folder depend on something else, or nothing can be written there.
        """
        self.out, self._count, self._folder = out, count, parts_folder(out)
        self._inputs, stored = {**metadata, "parts": count}, _read_metadata(self._folder).get("inputs")
        if stored is not None and stored != self._inputs:
            other = [name for name in self._inputs if stored.get(name) != self._inputs[name]]
            raise UserError(
                f"--out {out}: {self._folder} has rows that were made with other {', '.join(other)}; remove that "
                "folder to begin anew, or name another --out"
            )
        self.is_finished = stored is not None and _is_result(self._folder, out)
        with _write_errors(out):
            if stored is None:
                for part in self._folder.glob(f"*{PART_SUFFIX}"):  # nobody knows of what
                    part.unlink()
                self._write_metadata(None)
            remove_partials(self._folder)
        self.missing = [number for number in range(count) if not is_sound(self._file(number))]

    def write(self, number: int, rows: pa.Table) -> None:
        """Write a part, whole or not at all.

        Raises:
            UserError: there is no room.
        """
        buffer = pa.BufferOutputStream()
        with pa.ipc.new_stream(buffer, rows.schema) as stream:
            stream.write_table(rows)
        with _write_errors(self.out):
            write_checked(self._file(number), lambda file: file.write(buffer.getvalue()))

    def read(self) -> Iterator[pa.Table]:
        """Yield the rows of all parts, in their order; all are written."""
        for number in range(self._count):
            with pa.memory_map(str(self._file(number))) as file, pa.ipc.open_stream(file) as stream:
                yield stream.read_all()

    def finish(self) -> None:
        """Write the file, whole or not at all, unless it is finished, and remove the folder of the parts.

        Raises:
            UserError: there is no room, or there is another file by now.
        """
        with _write_errors(self.out):
            if not self.is_finished:
                whole = self._folder / WHOLE
                write_whole(whole, lambda file: FORMATS[self.out.suffix.lower()](self.read(), file))
                self._write_metadata(_identify(whole))
                _publish(whole, self.out)
            for file in self._folder.iterdir():
                if file.name != METADATA:
                    file.unlink()
            (self._folder / METADATA).unlink()  # last: it tells that the file is the result of this folder
            self._folder.rmdir()

    def _write_metadata(self, result: list[int] | None) -> None:
        """Write what the rows depend on, and which file they became (see ``_identify``)."""
        write_json(self._folder / METADATA, {"inputs": self._inputs, "result": result})

    def _file(self, number: int) -> Path:
        return self._folder / f"{number:06d}{PART_SUFFIX}"


def parts_folder(out: Path) -> Path:
    """Return the folder of a file's parts."""
    return out.with_name(f".{out.name}.parts")


def require_new(out: Path) -> None:
    """Check, before anything is loaded, that a file can be written.

    Raises:
        UserError: it exists, and is not what its parts became; its folder does not; or its suffix is of no format.
    """
    if out.suffix.lower() not in FORMATS:
        raise UserError(f"--out {out}: its name must end in {' or '.join(FORMATS)}")
    if not out.parent.is_dir():
        raise UserError(f"--out {out}: there is no folder {out.parent}; make it first, or name another")
    folder = parts_folder(out)
    if os.path.lexists(out) and not _is_result(folder, out):
        with suppress(OSError):
            folder.rmdir()  # empty where a command was killed at its very end
        raise _taken(out)


@contextmanager
def hold_parts(out: Path) -> Iterator[None]:
    """Hold the lock of a file's parts while the block runs; their folder is made.

    Raises:
        UserError: another process holds it, or nothing can be written there.
    """
    folder = parts_folder(out)
    with ExitStack() as stack:
        with _write_errors(out):
            folder.mkdir(exist_ok=True)
            stack.enter_context(hold_lock(folder / LOCK, f"--out {out}"))
        yield


def _read_metadata(folder: Path) -> dict[str, Any]:
    """Return what the parts in a folder depend on and what they became; empty if nothing is known of it."""
    with suppress(OSError, ValueError):
        return dict(json.loads((folder / METADATA).read_text()))
    return {}


def _identify(file: Path) -> list[int]:
    """Return what stays the same when a file gets another name."""
    state = file.stat()
    return [state.st_ino, state.st_size, state.st_mtime_ns]


def _is_result(folder: Path, out: Path) -> bool:
    """Return whether a file is what the parts in a folder became."""
    return out.is_file() and _read_metadata(folder).get("result") == _identify(out)


def _publish(whole: Path, out: Path) -> None:
    """Give a finished file its name, at once.

    Raises:
        UserError: the name is taken.
    """
    try:
        out.hardlink_to(whole)
    except FileExistsError:
        raise _taken(out) from None
    except OSError as error:
        if error.errno not in NO_LINKS:
            raise
        if os.path.lexists(out):
            raise _taken(out) from None
        whole.rename(out)
    flush_folder(out.parent)


def _taken(out: Path) -> UserError:
    return UserError(f"--out {out}: exists already; remove it, or name another file")


@contextmanager
def _write_errors(out: Path) -> Iterator[None]:
    """Raise the errors of writing as a UserError of one line; broken pipes and the like do not come up here."""
    try:
        yield
    except OSError as error:
        if error.errno in NO_ROOM:
            remedy = "free some room: the same command goes on from here"
        else:
            remedy = f"see to the folder {out.parent}, or name a file elsewhere"
        raise UserError(f"--out {out}: cannot be written ({error.strerror}); {remedy}") from None
