"""The rows in W&B's offline files: it buffers them, so that a killed process leaves fewer than it has logged."""

import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

BLOCK, HEADER = 1 << 15, 7  # bytes, of LevelDB's log format; the file's own header is as long as that of a part
FULL, FIRST, LAST = 1, 2, 4  # kinds of parts; the others are middle ones


def read_history(file: Path) -> Iterator[dict[str, Any]]:
    """Yield the values of each row in a ``.wandb`` file, as far as it was written."""
    from wandb.proto.wandb_internal_pb2 import Record

    for content in _read_records(file.read_bytes()):
        record = Record()
        record.ParseFromString(content)
        if record.WhichOneof("record_type") == "history":
            yield {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in record.history.item}


def _read_records(content: bytes) -> Iterator[bytes]:
    """Yield the records of a log: blocks of parts, each behind its checksum, length and kind."""
    position, record = HEADER, b""
    while position + HEADER <= len(content):
        left = BLOCK - position % BLOCK
        if left < HEADER:  # too little of the block for a part
            position += left
            continue
        length, kind = struct.unpack_from("<HB", content, position + 4)
        position += HEADER + length
        part = content[position - length : position]
        if not kind or len(part) < length:  # where writing ended
            return
        record = part if kind in (FULL, FIRST) else record + part
        if kind in (FULL, LAST):
            yield record
