"""What W&B wrote: the transaction log of an offline run, read back."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

BLOCK_BYTES = 32 * 1024
HEADER = struct.Struct("<4sHB")
FULL, FIRST, MIDDLE, LAST = 1, 2, 3, 4


def _chunks(data: bytes) -> Iterator[bytes]:
    """The records of a LevelDB log: blocks, in which records of (checksum, length, kind) stand."""
    magic, version, _ = HEADER.unpack_from(data)
    assert magic == b":W&B" and version == 0xBEE1
    place, parts = HEADER.size, []
    while place + HEADER.size <= len(data):
        if (left := BLOCK_BYTES - place % BLOCK_BYTES) < HEADER.size:
            place += left
            continue
        _, length, kind = HEADER.unpack_from(data, place)
        place += HEADER.size
        if kind == 0:
            break
        parts.append(data[place : place + length])
        place += length
        if kind in (FULL, LAST):
            yield b"".join(parts)
            parts = []


class WandBFiles:
    """An offline run: its records by kind.

    Args:
        folder: `offline-run-<time>-<id>`.
    """

    def __init__(self, folder: Path) -> None:
        from wandb.proto.wandb_internal_pb2 import Record

        self.folder = folder
        (log,) = folder.glob("*.wandb")
        self.records = [Record.FromString(chunk) for chunk in _chunks(log.read_bytes())]

    def of(self, kind: str) -> list[Any]:
        """The records of a kind, such as "run", "exit", "metric"."""
        return [getattr(r, kind) for r in self.records if r.WhichOneof("record_type") == kind]

    @property
    def history(self) -> list[dict[str, Any]]:
        """What was logged, row by row; without W&B's own columns."""
        rows: list[dict[str, Any]] = []
        for record in self.of("history"):
            rows.append({})
            for item in record.item:
                *outer, key = item.nested_key or [item.key]
                place = rows[-1]
                for name in outer:
                    place = place.setdefault(name, {})
                place[key] = json.loads(item.value_json)
        return [{k: v for k, v in row.items() if not k.startswith("_")} for row in rows]

    def series(self, key: str) -> list[tuple[float, float]]:
        """(global step, value) of every row that has the key."""
        return [(row["global_step"], row[key]) for row in self.history if key in row]

    @property
    def config(self) -> dict[str, Any]:
        """The run's configuration."""
        return {
            item.key: json.loads(item.value_json)
            for record in self.of("run")
            for item in record.config.update
            if item.key != "_wandb"
        }

    def tables(self, name: str) -> list[dict[str, Any]]:
        """Each state of a table: {columns, data}, in the order in which it was logged."""
        logged = [row[name] for row in self.history if name in row]
        return [json.loads((self.folder / "files" / t["path"]).read_text()) for t in logged]


def offline_runs(folder: Path) -> list[WandBFiles]:
    """The offline runs below a folder, in the order in which they began."""
    import wandb

    wandb.teardown()  # waits until what was logged is in the files
    return [WandBFiles(path) for path in sorted((folder / "wandb").glob("offline-run-*"))]
