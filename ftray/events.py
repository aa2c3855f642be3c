"""The typed events of a run.

The training loop speaks to the outside through these and nothing else (see the bridge in
docs/architecture.md). Every event is a frozen dataclass; `to_json` gives the line that stands in
the run's record, `from_json` reads it back. Times are seconds since the epoch (`time_s`) or
durations in seconds (`*_s`).
"""

from __future__ import annotations

import dataclasses
import json
import time
from dataclasses import dataclass, field
from typing import Any, ClassVar

__all__ = [
    "CheckpointRemoved",
    "CheckpointSaved",
    "EpochEnded",
    "EvaluationEnded",
    "Event",
    "FitEnded",
    "FitStarted",
    "Log",
    "Progress",
    "RankStep",
    "StepEnded",
    "StepsDiscarded",
    "event_from_json",
]

_KINDS: dict[str, type[Event]] = {}


@dataclass(frozen=True, kw_only=True)
class Event:
    """Base of all events."""

    kind: ClassVar[str] = "event"
    milestone: ClassVar[bool] = False
    """Whether the record is flushed as soon as the event arrives."""

    time_s: float = field(default_factory=time.time)

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        _KINDS[cls.kind] = cls

    def to_json(self) -> str:
        """One line of JSON: the event's kind and its fields, attachments left out."""
        values = {
            f.name: getattr(self, f.name)
            for f in dataclasses.fields(self)
            if not f.metadata.get("attachment")
        }
        return json.dumps({"kind": self.kind, **values}, ensure_ascii=False, default=str)


def event_from_json(line: str) -> Event | None:
    """Read one line of a record; None for a kind that this version does not know."""
    values = json.loads(line)
    cls = _KINDS.get(values.pop("kind", ""))
    if cls is None:
        return None
    known = {f.name for f in dataclasses.fields(cls)}
    return cls(**{name: value for name, value in values.items() if name in known})


@dataclass(frozen=True, kw_only=True)
class Log(Event):
    """A line for people: what `run.logs()` and the console show."""

    kind: ClassVar[str] = "log"
    level: str = "INFO"
    message: str


@dataclass(frozen=True, kw_only=True)
class FitStarted(Event):
    """Workers are up and the plan is made; sent again after every restart.

    What the record holds beyond `global_step` when this arrives belongs to a lost attempt.
    """

    kind: ClassVar[str] = "fit_started"
    milestone: ClassVar[bool] = True
    world_size: int
    where: str = ""
    device: str
    epochs: int
    steps_per_epoch: int
    batch_size: int
    first_epoch: int
    first_step: int
    global_step: int
    hardware: dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class StepEnded(Event):
    """One optimizer step. `step` counts from 0 within the epoch, `global_step` over the run."""

    kind: ClassVar[str] = "step"
    epoch: int
    step: int
    global_step: int
    loss: float
    learning_rate: float
    grad_norm: float
    rows: int
    items: int
    tokens: int
    processed_tokens: int
    data_s: float
    step_s: float
    scalars: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class RankStep(Event):
    """What one rank encoded in one step: sent by every rank when `log_rows` is on."""

    kind: ClassVar[str] = "rank_step"
    epoch: int
    step: int
    rank: int
    rows: list[int]
    items: list[str]


@dataclass(frozen=True, kw_only=True)
class Progress(Event):
    """How far a long task is; for progress bars, never written to the record."""

    kind: ClassVar[str] = "progress"
    task: str
    done: int
    total: int


@dataclass(frozen=True, kw_only=True)
class EvaluationEnded(Event):
    """One evaluation: metrics over all its data, and what a report needs of the single ones.

    `when` is "before" (training), "step" (in mid-epoch), "epoch", or "final" (after training);
    `global_step` is the step whose weights were evaluated. `weights` is empty for the weights of
    that step; otherwise it names others that were derived from them: an interpolation between the
    pre-trained and the trained ones (WiSE-FT) has its `alpha`. `overlapped`: training went on
    meanwhile. `metrics` carries no caption; `keys` maps each metric to the
    key under which callbacks and `run.metrics()` know it. `per_query` is a pyarrow.Table with one
    row per query, or per scored pair: the record keeps it as Parquet beside the events. A retrieval
    has queries and documents, an evaluation with scored pairs has pairs.
    """

    kind: ClassVar[str] = "evaluation"
    milestone: ClassVar[bool] = True
    name: str
    caption: str | None
    when: str
    epoch: int
    global_step: int
    metrics: dict[str, float]
    keys: dict[str, str]
    queries: int = 0
    documents: int = 0
    pairs: int = 0
    queries_without_relevant: int = 0
    rows_encoded: list[int]
    examples: Any = field(default=None, metadata={"attachment": True}, compare=False)
    query_images: Any = field(default=None, metadata={"attachment": True}, compare=False)
    wall_s: float
    weights: str = ""
    alpha: float | None = None
    overlapped: bool = False
    per_query: Any = field(default=None, metadata={"attachment": True}, compare=False)


@dataclass(frozen=True, kw_only=True)
class EpochEnded(Event):
    """An epoch is over: its mean losses, metrics, and where the time went (seconds)."""

    kind: ClassVar[str] = "epoch"
    milestone: ClassVar[bool] = True
    epoch: int
    global_step: int
    metrics: dict[str, float]
    seconds: dict[str, float]
    texts_per_rank: list[int]
    rows_left_out: int = 0


@dataclass(frozen=True, kw_only=True)
class CheckpointSaved(Event):
    """A checkpoint to continue from is complete in the run directory."""

    kind: ClassVar[str] = "checkpoint"
    milestone: ClassVar[bool] = True
    name: str
    epoch: int
    step: int
    global_step: int
    best: bool
    metrics: dict[str, float]


@dataclass(frozen=True, kw_only=True)
class CheckpointRemoved(Event):
    """A checkpoint was deleted because newer or better ones replaced it."""

    kind: ClassVar[str] = "checkpoint_removed"
    name: str


@dataclass(frozen=True, kw_only=True)
class StepsDiscarded(Event):
    """Training went on while an evaluation overlapped it, which then said to stop earlier.

    The run stands at this epoch and step (the next ones to train); what the record holds beyond is
    not part of it.
    """

    kind: ClassVar[str] = "steps_discarded"
    milestone: ClassVar[bool] = True
    epoch: int
    step: int
    global_step: int
    reason: str


@dataclass(frozen=True, kw_only=True)
class FitEnded(Event):
    """The loop is over; `artifact_step` is the global step whose weights the artifact holds.

    `artifact_weights` names the weights that were derived from those, as in `EvaluationEnded`.
    """

    kind: ClassVar[str] = "fit_ended"
    milestone: ClassVar[bool] = True
    status: str
    reason: str
    epochs_done: int
    global_step: int
    artifact_step: int
    artifact_weights: str = ""
    best: dict[str, Any] | None
    seconds: dict[str, float]
