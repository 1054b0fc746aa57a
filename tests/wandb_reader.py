"""Read an offline W&B run back: its log is a LevelDB log of protobuf records."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from pathlib import Path

from wandb.proto import wandb_internal_pb2

BLOCK, HEADER = 32768, 7


def records(folder: Path) -> Iterator[wandb_internal_pb2.Record]:
    """Yield every record of the offline run in ``folder``."""
    (path,) = folder.glob("offline-run-*/run-*.wandb")
    data = path.read_bytes()
    assert data[:4] == b":W&B"
    place, whole = HEADER, b""
    while place + HEADER <= len(data):
        room = BLOCK - place % BLOCK
        if room < HEADER:
            place += room
            continue
        _, size, kind = struct.unpack("<IHB", data[place : place + HEADER])
        if kind == 0:
            place += room
            continue
        whole += data[place + HEADER : place + HEADER + size]
        place += HEADER + size
        if kind in (1, 4):  # a whole record, or the last piece of one
            record = wandb_internal_pb2.Record()
            record.ParseFromString(whole)
            whole = b""
            yield record


def history(folder: Path) -> list[dict[str, object]]:
    """Return the logged rows."""
    return [
        {".".join(i.nested_key) or i.key: json.loads(i.value_json) for i in record.history.item}
        for record in records(folder)
        if record.WhichOneof("record_type") == "history"
    ]
