"""Reading a run directory: in a new process, on another machine, without Ray or torch."""

from __future__ import annotations

import json
import os
import platform
import time
from collections.abc import Iterator, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from ftray.errors import StorageError
from ftray.events import (
    EpochEnded,
    EvaluationEnded,
    Event,
    FitEnded,
    FitStarted,
    RankStep,
    StepEnded,
    event_from_json,
)
from ftray.record.storage import Storage
from ftray.record.writer import PART

__all__ = ["RecordReader"]

GONE_AFTER_S = 180.0


class RecordReader:
    """Answers questions about one run.

    Args:
        storage: the run directory.
    """

    def __init__(self, storage: Storage) -> None:
        self.storage = storage

    def exists(self) -> bool:
        """Whether the folder holds a run: what it is, and how it stands."""
        return self.storage.exists("run.yaml") and self.storage.exists("status.json")

    def status(self) -> dict[str, Any]:
        """The content of `status.json`.

        A run that says STARTED is reported FAILED if its process, on this machine, is gone, or if
        it has not shown itself for three minutes, on whatever machine (`seen_s` is written every
        half minute, by that machine's clock).
        """
        if not self.storage.exists("status.json"):
            return {"status": "CREATED", "details": ""}
        try:
            status: dict[str, Any] = json.loads(self.storage.read_text("status.json"))
        except ValueError as error:
            return {"status": "FAILED", "details": f"status.json is damaged: {error}"}
        if status["status"] in ("CREATED", "STARTED") and not _alive(status):
            status.update(
                status="FAILED",
                details=f"the process that ran it ({status.get('pid')} on {status.get('host')}) is "
                "gone without closing the record; continue with resume: auto",
                ended_s=status.get("seen_s", status.get("started_s", 0.0)),
            )
        return status

    def config(self) -> dict[str, Any]:
        """The content of `run.yaml`.

        Raises:
            StorageError: if it is damaged.
        """
        if not self.storage.exists("run.yaml"):
            return {}
        try:
            facts = yaml.safe_load(self.storage.read_text("run.yaml"))
        except (yaml.YAMLError, ValueError) as error:
            said = " ".join(str(error).split())
            raise StorageError(f"{self.storage.path('run.yaml')} is damaged: {said}") from None
        return facts if isinstance(facts, dict) else {}

    def logs(self) -> str:
        """The log as text."""
        return self.storage.read_text("logs.txt") if self.storage.exists("logs.txt") else ""

    def examples(self) -> dict[str, dict[str, Any]]:
        """The content of `examples.json`: evaluation → "before" or "step-N" → query → matches."""
        if not self.storage.exists("examples.json"):
            return {}
        examples: dict[str, dict[str, Any]] = json.loads(self.storage.read_text("examples.json"))
        return examples

    def per_query(self, evaluation: str, global_step: int) -> pa.Table:
        """One row per query: its metrics in one evaluation."""
        name = f"evaluations/{evaluation}-step-{global_step:06d}.parquet"
        return pq.read_table(pa.BufferReader(self.storage.read_bytes(name)))

    def all_events(self) -> Iterator[Event]:
        """Every event in order of arrival, those of lost attempts too."""
        for name in filter(PART.match, self.storage.names("events")):
            try:
                text = self.storage.read_text(f"events/{name}")
            except FileNotFoundError:  # the run was deleted meanwhile
                continue
            for line in filter(None, text.split("\n")):  # splitlines also cuts at U+2028
                event = event_from_json(line)
                if event is not None:
                    yield event

    def events(self) -> list[Event]:
        """The events of the run as it stands.

        What a lost attempt did beyond the point where the next one continued is left out.
        """
        kept: list[Event] = []
        for event in self.all_events():
            if isinstance(event, FitStarted):
                kept = [e for e in kept if not _beyond(e, event)]
            kept.append(event)
        return kept

    def metrics(self) -> dict[str, dict[str, float]]:
        """Metrics before training, and of the weights that the artifact holds.

        While the run goes on, "after" holds the newest ones.
        """
        events = self.events()
        before = [e for e in events if isinstance(e, EvaluationEnded) and e.when == "before"]
        return {"before": _by_key(before), "after": _by_key(_final(events))}

    def final_evaluations(self) -> list[EvaluationEnded]:
        """The newest evaluation of each name, of the very weights that the artifact holds.

        An evaluation that never saw these weights (the run was stopped in mid-epoch, say) is
        missing; those before training are of the artifact's weights if nothing was trained. While
        the run goes on there is no artifact, and the newest ones are given.
        """
        return _final(self.events())

    def history(self) -> pa.Table:
        """One row per training step and per evaluation or epoch, in order.

        Columns: `kind` ("step", "evaluation", "epoch"), `time_s`, `epoch` and `step` (from 0),
        `global_step`, `loss`, `learning_rate`, `grad_norm`, `rows`, `tokens`, and one column for
        each metric; null where a row has no such value.
        """
        rows = [row for event in self.events() if (row := _history_row(event)) is not None]
        names: dict[str, None] = dict.fromkeys(_HISTORY)
        for row in rows:
            names.update(dict.fromkeys(row))
        return pa.table(
            {
                name: pa.array(
                    [row.get(name) for row in rows], type=_HISTORY.get(name, pa.float64())
                )
                for name in names
            }
        )


_HISTORY = {
    "kind": pa.string(),
    "time_s": pa.float64(),
    "epoch": pa.int64(),
    "step": pa.int64(),
    "global_step": pa.int64(),
    "loss": pa.float64(),
    "learning_rate": pa.float64(),
    "grad_norm": pa.float64(),
    "rows": pa.int64(),
    "tokens": pa.int64(),
}


def _history_row(event: Event) -> dict[str, Any] | None:
    if isinstance(event, StepEnded):
        names = ("epoch", "step", "global_step", "loss", "learning_rate", "grad_norm", "rows")
        row = {name: getattr(event, name) for name in (*names, "tokens")}
        return {"kind": "step", "time_s": event.time_s, **row, **event.scalars}
    if isinstance(event, EvaluationEnded):
        values = {event.keys[name]: value for name, value in event.metrics.items()}
    elif isinstance(event, EpochEnded):
        values = dict(event.metrics)
    else:
        return None
    return {
        "kind": "evaluation" if isinstance(event, EvaluationEnded) else "epoch",
        "time_s": event.time_s,
        "epoch": event.epoch,
        "global_step": event.global_step,
        **values,
    }


def _final(events: Sequence[Event]) -> list[EvaluationEnded]:
    ended = [event.artifact_step for event in events if isinstance(event, FitEnded)]
    newest: dict[str, EvaluationEnded] = {}
    for event in events:
        if isinstance(event, EvaluationEnded):
            final = event.global_step == ended[-1] if ended else event.when != "before"
            if final:
                newest[event.name] = event
    return list(newest.values())


def _by_key(evaluations: Sequence[EvaluationEnded]) -> dict[str, float]:
    return {e.keys[name]: value for e in evaluations for name, value in e.metrics.items()}


def _beyond(event: Event, started: FitStarted) -> bool:
    """Whether an event of an earlier attempt lies behind the point where `started` continues."""
    at = (started.first_epoch, started.first_step)
    if isinstance(event, StepEnded | RankStep):
        return (event.epoch, event.step) >= at
    if isinstance(event, EpochEnded):
        return event.epoch >= started.first_epoch
    if isinstance(event, EvaluationEnded):
        return event.global_step > started.global_step or (
            event.when == "before" and started.global_step == 0
        )
    return isinstance(event, FitEnded)


def _alive(status: dict[str, Any]) -> bool:
    if time.time() - status.get("seen_s", 0.0) > GONE_AFTER_S:
        return False  # also where another process has the pid by now
    if status.get("host") != platform.node() or "pid" not in status:
        return True
    try:
        os.kill(int(status["pid"]), 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return not _is_zombie(int(status["pid"]))


def _is_zombie(pid: int) -> bool:
    """Whether a process is over and only waits for its parent to take note (known on Linux)."""
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as file:
            return file.read().rpartition(")")[2].split()[:1] == ["Z"]
    except OSError:
        return False
