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
    StepsDiscarded,
    event_from_json,
)
from ftray.record.storage import Storage
from ftray.record.writer import PART, weights_key

__all__ = ["RecordReader", "artifact_value", "final_evaluations", "first_evaluations"]
__all__ += ["process_seems_alive"]

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
        if status["status"] in ("CREATED", "STARTED") and not process_seems_alive(status):
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
        """The content of `examples.json`: evaluation → side → query → matches.

        A side is "before", or names the weights, as in `step-000006` and `step-000006-alpha-0.4`.
        """
        if not self.storage.exists("examples.json"):
            return {}
        examples: dict[str, dict[str, Any]] = json.loads(self.storage.read_text("examples.json"))
        return examples

    def query_images(self) -> dict[str, dict[str, str]]:
        """The content of `pictures.json`: evaluation → query → a small picture, a data URI."""
        if not self.storage.exists("pictures.json"):
            return {}
        pictures: dict[str, dict[str, str]] = json.loads(self.storage.read_text("pictures.json"))
        return pictures

    def per_query(self, evaluation: str, global_step: int, weights: str = "") -> pa.Table:
        """One row per query: its metrics in one evaluation."""
        name = f"evaluations/{evaluation}-{weights_key(global_step, weights)}.parquet"
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

        What a lost attempt did beyond the point where the next one continued is left out, and so
        are steps that were discarded. Of an evaluation that another attempt repeated the newer one
        counts.
        """
        kept: list[Event] = []
        evaluated: dict[tuple[Any, ...], EvaluationEnded] = {}
        for event in self.all_events():
            if isinstance(event, EvaluationEnded):
                key = (event.name, event.when, event.global_step, event.weights)
                if (former := evaluated.get(key)) is not None:
                    kept = [e for e in kept if e is not former]
                evaluated[key] = event
            if isinstance(event, FitStarted):
                kept = [e for e in kept if not _repeated(e, event)]
            elif isinstance(event, StepsDiscarded):
                at = (event.epoch, event.step)
                kept = [e for e in kept if not _beyond(e, at, event.global_step)]
            kept.append(event)
        return kept

    def metrics(self) -> dict[str, dict[str, float]]:
        """Metrics before training, and of the weights that the artifact holds.

        While the run goes on, "after" holds the newest ones.
        """
        events = self.events()
        before, after = first_evaluations(events), final_evaluations(events)
        return {"before": _by_key(before), "after": _by_key(after)}

    def metrics_by_evaluation(self) -> dict[str, dict[str, dict[str, float]]]:
        """The same for each evaluation by name: its caption, or "evaluation"."""
        events = self.events()
        sides = {"before": first_evaluations(events), "after": final_evaluations(events)}
        names = dict.fromkeys(e.name for found in sides.values() for e in found)
        return {
            name: {
                side: _by_key([e for e in found if e.name == name]) for side, found in sides.items()
            }
            for name in names
        }

    def first_evaluations(self) -> list[EvaluationEnded]:
        """The evaluations of the given weights, before training."""
        return first_evaluations(self.events())

    def final_evaluations(self) -> list[EvaluationEnded]:
        """The newest evaluation of each name, of the very weights that the artifact holds.

        An evaluation that never saw these weights (the run was stopped in mid-epoch, say) is
        missing; those before training are of the artifact's weights if nothing was trained. While
        the run goes on there is no artifact, and the newest ones are given. Weights that were
        derived from those of a step count only where the artifact holds them.
        """
        return final_evaluations(self.events())

    def history(self) -> pa.Table:
        """One row per training step and per evaluation or epoch, in order of arrival.

        Columns: `kind` ("step", "evaluation", "epoch"), `time_s` (seconds since 1970), `epoch` and
        `step` (from 0), `global_step` (steps done), `loss`, `learning_rate`, `grad_norm`, `rows`,
        `tokens`, `weights` and `alpha`, and one column for each metric; null where a row has no
        such value. `weights` is null but for an evaluation of weights that were derived from those
        of its step: it names them, and `alpha` is that of an interpolation. Leave such rows out of
        a learning curve. An evaluation that overlapped training has the `global_step` that it
        belongs to, though it arrived later.
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
    "weights": pa.string(),
    "alpha": pa.float64(),
}


def _history_row(event: Event) -> dict[str, Any] | None:
    if isinstance(event, StepEnded):
        names = ("epoch", "step", "global_step", "loss", "learning_rate", "grad_norm", "rows")
        row = {name: getattr(event, name) for name in (*names, "tokens")}
        return {"kind": "step", "time_s": event.time_s, **row, **event.scalars}
    if not isinstance(event, EvaluationEnded | EpochEnded):
        return None
    row = {"time_s": event.time_s, "epoch": event.epoch, "global_step": event.global_step}
    if isinstance(event, EpochEnded):
        return {"kind": "epoch", **row, **event.metrics}
    values = {event.keys[name]: value for name, value in event.metrics.items()}
    other = {"weights": event.weights, "alpha": event.alpha} if event.weights else {}
    return {"kind": "evaluation", **row, **other, **values}


def first_evaluations(events: Sequence[Event]) -> list[EvaluationEnded]:
    """What `RecordReader.first_evaluations` gives, of events that were read already."""
    found = [event for event in events if isinstance(event, EvaluationEnded)]
    return [event for event in found if event.when == "before" and not event.weights]


def final_evaluations(events: Sequence[Event]) -> list[EvaluationEnded]:
    """What `RecordReader.final_evaluations` gives, of events that were read already."""
    ended = [event for event in events if isinstance(event, FitEnded)]
    newest: dict[str, EvaluationEnded] = {}
    for event in events:
        if isinstance(event, EvaluationEnded):
            if ended:
                of = ended[-1].artifact_step, ended[-1].artifact_weights
                final = (event.global_step, event.weights) == of
            else:
                final = event.when != "before" and not event.weights
            if final:
                newest[event.name] = event
    return list(newest.values())


def artifact_value(reader: RecordReader, metric: str) -> float | None:
    """A metric of the very weights that a run's artifact holds; None where it is not known.

    Args:
        reader: of a run that is over.
        metric: its key: of an evaluation, or `val_loss` or `train_loss` of an epoch.
    """
    events = reader.events()
    value = _by_key(final_evaluations(events)).get(metric)
    ended = next((e for e in reversed(events) if isinstance(e, FitEnded)), None)
    if value is not None or ended is None or ended.artifact_weights:
        return value
    epochs = [e for e in events if isinstance(e, EpochEnded) and metric in e.metrics]
    of_step = [e.metrics[metric] for e in epochs if e.global_step == ended.artifact_step]
    return of_step[-1] if of_step else None


def _by_key(evaluations: Sequence[EvaluationEnded]) -> dict[str, float]:
    return {e.keys[name]: value for e in evaluations for name, value in e.metrics.items()}


def _repeated(event: Event, started: FitStarted) -> bool:
    """Whether an event belongs to what the attempt that starts here does again."""
    if isinstance(event, EvaluationEnded) and event.when == "before" and started.global_step == 0:
        return True
    at = (started.first_epoch, started.first_step)
    return isinstance(event, FitEnded) or _beyond(event, at, started.global_step)


def _beyond(event: Event, at: tuple[int, int], global_step: int) -> bool:
    """Whether an event lies beyond where the run stands.

    Args:
        event: of an earlier time.
        at: the epoch and the step that come next.
        global_step: steps done until there; an evaluation of that very step is not beyond.
    """
    if isinstance(event, StepEnded | RankStep):
        return (event.epoch, event.step) >= at
    if isinstance(event, EpochEnded):
        return event.epoch >= at[0]
    return isinstance(event, EvaluationEnded) and event.global_step > global_step


def process_seems_alive(status: dict[str, Any]) -> bool:
    """Whether the process that wrote `pid`, `host` and `seen_s` goes on, as far as one can tell."""
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
