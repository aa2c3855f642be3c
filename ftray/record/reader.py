"""Reading a run directory: in a new process, on another machine, without Ray or torch."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import yaml

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

__all__ = ["RecordReader"]


class RecordReader:
    """Answers questions about one run.

    Args:
        storage: the run directory.
    """

    def __init__(self, storage: Storage) -> None:
        self.storage = storage

    def status(self) -> dict[str, Any]:
        """The content of `status.json`.

        A run that says STARTED while its process, on this machine, is gone is reported FAILED.
        """
        if not self.storage.exists("status.json"):
            return {"status": "CREATED", "details": ""}
        status: dict[str, Any] = json.loads(self.storage.read_text("status.json"))
        if status["status"] in ("CREATED", "STARTED") and not _alive(status):
            status.update(
                status="FAILED",
                details=f"the process that ran it ({status['pid']}) is gone without closing the "
                "record; continue with resume: auto",
            )
        return status

    def config(self) -> dict[str, Any]:
        """The content of `run.yaml`."""
        if not self.storage.exists("run.yaml"):
            return {}
        facts: dict[str, Any] = yaml.safe_load(self.storage.read_text("run.yaml"))
        return facts

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
        for name in self.storage.names("events"):
            for line in self.storage.read_text(f"events/{name}").splitlines():
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
        before: dict[str, float] = {}
        after: dict[str, float] = {}
        events = self.events()
        last_step = self.artifact_step()
        for event in events:
            if not isinstance(event, EvaluationEnded):
                continue
            values = {event.keys[name]: value for name, value in event.metrics.items()}
            if event.when == "before":
                before.update(values)
            elif last_step is None or event.global_step <= last_step:
                after.update(values)
        return {"before": before, "after": after}

    def artifact_step(self) -> int | None:
        """The global step whose weights the artifact holds; None while the run goes on."""
        ended = [event for event in self.events() if isinstance(event, FitEnded)]
        return ended[-1].artifact_step if ended else None

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
    if status.get("host") != platform.node() or "pid" not in status:
        return True
    try:
        os.kill(int(status["pid"]), 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
