"""What the report is made of: everything that the record says, read once."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from ftray.errors import StorageError
from ftray.events import (
    CheckpointSaved,
    EpochEnded,
    EvaluationEnded,
    Event,
    FitEnded,
    FitStarted,
    StepEnded,
)
from ftray.record.reader import RecordReader, final_evaluations, first_evaluations
from ftray.record.writer import DONE

__all__ = ["Best", "Contents", "Steps", "read_contents"]

Floats = npt.NDArray[np.float64]
E = TypeVar("E", bound=Event)


@dataclass(frozen=True, kw_only=True)
class Steps:
    """The training steps, `(S,)` each.

    Attributes:
        at: global steps, from 1.
        loss, learning_rate: of each step.
        tokens, processed: of all steps together; processed counts padding too.
        wall_s: time in steps, data not counted.
    """

    at: Floats
    loss: Floats
    learning_rate: Floats
    tokens: int
    processed: int
    wall_s: float

    @property
    def not_finite(self) -> list[int]:
        """Steps whose loss is NaN or infinite."""
        return [int(step) for step in self.at[~np.isfinite(self.loss)]]


@dataclass(frozen=True, kw_only=True)
class Best:
    """Whose weights the artifact holds, or is to hold as things stand."""

    global_step: int
    monitor: str = ""
    value: float | None = None


@dataclass(frozen=True, kw_only=True)
class Contents:
    """A run, as its record has it.

    Attributes:
        name, path: of the run.
        status, details: as `RecordReader.status` has them. times: created_s, started_s, ended_s.
        written_s: when this was read.
        facts: `run.yaml`, empty where there is none.
        logs: the log's text.
        steps: the training steps.
        epochs: the ends of epochs.
        evaluations: all of them, those of derived weights (WiSE-FT) too.
        final: the newest of each name for the artifact's weights.
        started: the newest start of workers. ended: the end of the loop, where it got there.
        best: None while nothing is marked.
        examples: `examples.json`. query_images: `pictures.json`.
        reader: for the tables of single queries.
    """

    name: str
    path: str
    status: str
    details: str
    times: dict[str, float]
    written_s: float
    facts: dict[str, Any]
    logs: str
    steps: Steps
    epochs: list[EpochEnded]
    evaluations: list[EvaluationEnded]
    final: list[EvaluationEnded]
    started: FitStarted | None
    ended: FitEnded | None
    best: Best | None
    examples: dict[str, dict[str, Any]]
    query_images: dict[str, dict[str, str]]
    reader: RecordReader

    @property
    def config(self) -> dict[str, Any]:
        """The configuration as it was resolved."""
        config: dict[str, Any] = self.facts.get("config") or {}
        return config

    @property
    def running(self) -> bool:
        """Whether the run goes on, so that the page is not the last one."""
        return self.status not in DONE

    @property
    def step(self) -> int:
        """The global step that the run has come to."""
        if self.ended is not None:
            return self.ended.global_step
        seen = [*self.steps.at[-1:].astype(int).tolist(), *(e.global_step for e in self.epochs)]
        return max([*seen, *(e.global_step for e in self.evaluations)], default=0)

    def names(self) -> list[str]:
        """The names of the evaluations, in the order in which they came."""
        return list(dict.fromkeys(event.name for event in self.evaluations))

    def curve(self, name: str) -> list[EvaluationEnded]:
        """The evaluations of a name over the steps: of the weights that were trained."""
        found = {e.global_step: e for e in self.evaluations if e.name == name and not e.weights}
        return [found[step] for step in sorted(found)]

    def before(self, name: str) -> EvaluationEnded | None:
        """The evaluation of a name before training."""
        found = [e for e in first_evaluations(self.evaluations) if e.name == name]
        return found[-1] if found else None

    def after(self, name: str) -> EvaluationEnded | None:
        """The evaluation of a name that belongs to the artifact; while the run goes on, the newest.

        Of a run that was cut off the newest as well: its checkpoint has these weights.
        """
        found = [e for e in self.final if e.name == name]
        return found[-1] if found else None


def read_contents(reader: RecordReader) -> Contents:
    """Read a record; what is damaged or missing is left out.

    Args:
        reader: of the run.
    """
    status = reader.status()
    try:
        facts = reader.config()
    except StorageError as error:
        facts = {"damaged": str(error)}
    try:
        examples = reader.examples()
    except ValueError:  # of a writer that was killed on an object store
        examples = {}
    try:
        query_images = reader.query_images()
    except ValueError:
        query_images = {}
    events = reader.events()
    ended = _last(events, FitEnded)
    return Contents(
        name=reader.storage.name,
        path=reader.storage.uri,
        status=str(status["status"]),
        details=str(status.get("details") or ""),
        times={
            k: float(v) for k, v in status.items() if k in ("created_s", "started_s", "ended_s")
        },
        written_s=time.time(),
        facts=facts,
        logs=reader.logs(),
        steps=_steps([event for event in events if isinstance(event, StepEnded)]),
        epochs=[event for event in events if isinstance(event, EpochEnded)],
        evaluations=[event for event in events if isinstance(event, EvaluationEnded)],
        final=final_evaluations(events),
        started=_last(events, FitStarted),
        ended=ended,
        best=_best(ended, [event for event in events if isinstance(event, CheckpointSaved)]),
        examples=examples,
        query_images=query_images,
        reader=reader,
    )


def _last(events: Sequence[Event], kind: type[E]) -> E | None:
    found = [event for event in events if isinstance(event, kind)]
    return found[-1] if found else None


def _steps(events: Sequence[StepEnded]) -> Steps:
    table = np.array(
        [(e.global_step, _number(e.loss), _number(e.learning_rate)) for e in events], float
    ).reshape(-1, 3)
    table = table[np.argsort(table[:, 0], kind="stable")]
    return Steps(
        at=table[:, 0],
        loss=table[:, 1],
        learning_rate=table[:, 2],
        tokens=sum(event.tokens for event in events),
        processed=sum(event.processed_tokens for event in events),
        wall_s=sum(event.step_s for event in events),
    )


def _number(value: Any) -> float:
    return float("nan") if value is None else float(value)


def _best(ended: FitEnded | None, checkpoints: Sequence[CheckpointSaved]) -> Best | None:
    if ended is not None:
        if ended.best is None:
            return None
        best = ended.best
        return Best(
            global_step=int(best.get("global_step", ended.artifact_step)),
            monitor=str(best.get("monitor", "")),
            value=best.get("value"),
        )
    marked = [event.global_step for event in checkpoints if event.best]
    return Best(global_step=marked[-1]) if marked else None
