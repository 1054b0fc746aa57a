"""Read an offline W&B run back: its log is a LevelDB log of protobuf records."""

from __future__ import annotations

import json
import struct
import time
from collections.abc import Iterator
from pathlib import Path

from wandb.proto import wandb_internal_pb2

BLOCK, HEADER = 32768, 7


def records(folder: Path, wait_s: float = 30.0) -> list[wandb_internal_pb2.Record]:
    """Return every record of the offline run in ``folder``.

    W&B's own process may still be writing when ``wandb.finish`` returns: waits for its last record.
    """
    (path,) = folder.glob("offline-run-*/run-*.wandb")
    deadline = time.monotonic() + wait_s
    while True:
        kept = list(_read(path))
        if any(record.WhichOneof("record_type") == "exit" for record in kept):
            return kept
        assert time.monotonic() < deadline, f"{path} does not end"
        time.sleep(0.1)


def _read(path: Path) -> Iterator[wandb_internal_pb2.Record]:
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


def config(folder: Path) -> dict[str, object]:
    """Return the run's configuration."""
    (run,) = [r.run for r in records(folder) if r.WhichOneof("record_type") == "run"]
    return {item.key: json.loads(item.value_json) for item in run.config.update}


def summary(folder: Path) -> dict[str, object]:
    """Return the run's summary."""
    return {
        ".".join(item.nested_key) or item.key: json.loads(item.value_json)
        for record in records(folder)
        if record.WhichOneof("record_type") == "summary"
        for item in record.summary.update
    }
