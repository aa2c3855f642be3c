"""Writing a run directory. There is one writer: the driver side of the run."""

from __future__ import annotations

import io
import json
import os
import platform
import re
import threading
import time
from typing import Any

import pyarrow.parquet as pq
import yaml

from ftray.events import EvaluationEnded, Event, Log, Progress
from ftray.record.narrator import log_line
from ftray.record.storage import Storage

__all__ = ["DONE", "PART", "RecordWriter", "side_of", "weights_key"]

DONE = ("FINISHED", "FAILED", "STOPPED")
PART = re.compile(r"^part-(\d+)\.jsonl$")

FIRST_FLUSH_S = 1.0
FLUSH_SHARE = 0.02


def side_of(event: EvaluationEnded) -> str:
    """Under which key `examples.json` holds the examples of an evaluation."""
    if event.when == "before" and not event.weights:
        return "before"
    return weights_key(event.global_step, event.weights)


def weights_key(global_step: int, weights: str = "") -> str:
    """`step-000006`, or of weights derived from those of that step `step-000006-alpha-0.4`."""
    name = re.sub(r"[^\w.+-]+", "-", weights)
    return f"step-{global_step:06d}" + (f"-{name}" if weights else "")


class RecordWriter:
    """Takes events and keeps the run directory true.

    Events go to `events/part-NNNNN.jsonl`, each part written whole (object stores cannot append):
    at once for milestones, else every second at first and less often as the run gets long.

    Args:
        storage: the run directory, which exists.
    """

    def __init__(self, storage: Storage) -> None:
        self.storage = storage
        self._lock = threading.RLock()
        self._lines: list[str] = []
        numbers = [int(m[1]) for m in map(PART.match, storage.names("events")) if m]
        self._part = max(numbers, default=-1) + 1
        self._opened = self._flushed = time.monotonic()
        self._log = storage.read_text("logs.txt") if storage.exists("logs.txt") else ""
        self._examples: dict[str, Any] = {}
        if storage.exists("examples.json"):
            self._examples = _read(storage, "examples.json")
        self._pictures: dict[str, dict[str, str]] = {}
        if storage.exists("pictures.json"):
            self._pictures = _read(storage, "pictures.json")
        self._status: dict[str, Any] = {}
        if storage.exists("status.json"):
            former = _read(storage, "status.json")
            self._status = {k: former[k] for k in ("created_s",) if k in former}

    def describe(self, facts: dict[str, Any]) -> None:
        """Write `run.yaml`: configuration, versions, fingerprints."""
        text = yaml.safe_dump(facts, sort_keys=False, allow_unicode=True, width=100)
        self.storage.write_text("run.yaml", text)

    def describe_resumed(self, facts: dict[str, Any]) -> None:
        """Add to `run.yaml` what another attempt runs with; what stands there stays.

        Of its configuration the options are kept that are not those of the first attempt.
        """
        first = yaml.safe_load(self.storage.read_text("run.yaml"))
        was, now = first.get("config", {}), facts["config"]
        attempt = {
            "started_s": time.time(),
            "config": {k: v for k, v in now.items() if k not in was or was[k] != v},
            "environment": facts["environment"],
        }
        self.describe({**first, "resumed": [*first.get("resumed", []), attempt]})

    def status(self, status: str, details: str = "") -> None:
        """Write `status.json`: CREATED, STARTED, FINISHED, FAILED or STOPPED."""
        with self._lock:
            now = time.time()
            self._status.setdefault("created_s", now)
            if status == "STARTED":
                self._status.setdefault("started_s", now)
            if status in DONE:
                self._status["ended_s"] = now
            self._status.update(
                status=status, details=details, pid=os.getpid(), host=platform.node()
            )
            self._write_status()

    def beat(self) -> None:
        """Show that the run is alive, and write what is waiting; to be called now and then."""
        with self._lock:
            if self._status.get("status") in ("CREATED", "STARTED"):
                self.flush()
                self._write_status()

    def _write_status(self) -> None:
        self._status["seen_s"] = time.time()
        self.storage.write_text("status.json", json.dumps(self._status, indent=2))

    def __call__(self, event: Event) -> None:
        """Take an event; safe to call from several threads."""
        if isinstance(event, Progress):
            return
        with self._lock:
            if isinstance(event, EvaluationEnded):
                self._keep_evaluation(event)
            if isinstance(event, Log):
                self._log += log_line(event) + "\n"
            self._lines.append(event.to_json())
            if event.milestone or time.monotonic() - self._flushed > self._interval():
                self.flush()

    def _interval(self) -> float:
        return max(FIRST_FLUSH_S, FLUSH_SHARE * (time.monotonic() - self._opened))

    def flush(self) -> None:
        """Write what is waiting."""
        with self._lock:
            if self._lines:
                name = f"events/part-{self._part:05d}.jsonl"
                self.storage.write_text(name, "\n".join(self._lines) + "\n")
                self._part += 1
                self._lines = []
                self.storage.write_text("logs.txt", self._log)
            self._flushed = time.monotonic()

    def close(self, status: str, details: str = "") -> None:
        """Write everything; the status comes last."""
        self.flush()
        self.status(status, details)

    def _keep_evaluation(self, event: EvaluationEnded) -> None:
        if event.per_query is not None:
            buffer = io.BytesIO()
            pq.write_table(event.per_query, buffer)
            key = weights_key(event.global_step, event.weights)
            name = f"evaluations/{event.name}-{key}.parquet"
            self.storage.write_bytes(name, buffer.getvalue())
        if event.examples is not None:
            self._examples.setdefault(event.name, {})[side_of(event)] = event.examples
            text = json.dumps(self._examples, ensure_ascii=False, indent=1)
            self.storage.write_text("examples.json", text)
        if event.query_images:
            self._pictures.setdefault(event.name, {}).update(event.query_images)
            self.storage.write_text("pictures.json", json.dumps(self._pictures, indent=1))


def _read(storage: Storage, name: str) -> dict[str, Any]:
    """What a former attempt wrote; nothing, if that was damaged."""
    try:
        found = json.loads(storage.read_text(name))
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}
