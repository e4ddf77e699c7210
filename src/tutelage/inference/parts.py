"""Rows on their way to a file: parts of some thousand rows in a folder beside it, each whole or absent.

A command that was killed and is typed again makes the parts that are missing.
"""

import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pyarrow as pa

from tutelage.errors import UserError
from tutelage.inference.rows import FORMATS
from tutelage.storage import hold_lock, is_sound, remove_partials, write_checked, write_json, write_whole

METADATA, LOCK = "inputs.json", "lock"


class Parts:
    """The parts of one output file, in the folder ``.NAME.parts`` beside it.

    Attributes:
        out: the file that they become.
        missing: the numbers of the parts that are not written yet, ascending.
    """

    def __init__(self, out: Path, count: int, metadata: Mapping[str, Any]) -> None:
        """Begin the parts, or go on with them; their lock is held already.

        Args:
            out: the file.
            count: of its parts.
            metadata: what the rows depend on, each thing by the name that a message calls it by.

        Raises:
            UserError: the file exists, or the parts in its folder depend on something else.
        """
        self.out, self._count, self._folder = out, count, parts_folder(out)
        wanted, stored = {**metadata, "parts": count}, _read_metadata(self._folder)
        if stored is None:
            write_json(self._folder / METADATA, wanted)
        elif stored != wanted:
            other = [name for name in wanted if stored.get(name) != wanted[name]]
            raise UserError(
                f"--out {out}: {self._folder} has rows that were made with other {', '.join(other)}; remove that "
                "folder to begin anew, or name another --out"
            )
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
        """Write the file, whole or not at all, and remove the folder of the parts.

        Raises:
            UserError: there is no room.
        """
        with _write_errors(self.out):
            write_whole(self.out, lambda file: FORMATS[self.out.suffix.lower()](self.read(), file))
        (self._folder / METADATA).unlink()  # first: see open_parts
        shutil.rmtree(self._folder)

    def _file(self, number: int) -> Path:
        return self._folder / f"{number:06d}.arrow"


def parts_folder(out: Path) -> Path:
    """Return the folder of a file's parts."""
    return out.with_name(f".{out.name}.parts")


def require_new(out: Path) -> bool:
    """Return whether a file is still to be written: False if it was finished just before its command was killed.

    Raises:
        UserError: it exists, and no parts of it, or it has no suffix of a format.
    """
    if out.suffix.lower() not in FORMATS:
        raise UserError(f"--out {out}: its name ends in {', '.join(FORMATS)}")
    folder = parts_folder(out)
    if not out.exists() or (folder / METADATA).exists():
        return True
    if folder.is_dir():  # only its metadata is removed before the rest of it
        shutil.rmtree(folder)
        return False
    raise UserError(f"--out {out}: exists already; remove it, or name another file")


@contextmanager
def hold_parts(out: Path) -> Iterator[None]:
    """Hold the lock of a file's parts while the block runs.

    Raises:
        UserError: another process holds it, or its folder cannot be made.
    """
    folder = parts_folder(out)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--out {out}: {folder} cannot be made ({error.strerror}); name a file elsewhere") from None
    with hold_lock(folder / LOCK, f"--out {out}"):
        yield


def _read_metadata(folder: Path) -> Any:
    """Return what the parts in a folder depend on; None if nothing is known of it."""
    with suppress(OSError, ValueError):
        return json.loads((folder / METADATA).read_text())
    return None


@contextmanager
def _write_errors(out: Path) -> Iterator[None]:
    """Raise the errors of writing as a UserError of one line; broken pipes and the like do not come up here."""
    try:
        yield
    except OSError as error:
        raise UserError(
            f"--out {out}: cannot be written ({error.strerror}); free some room: the same command goes on from here"
        ) from None
