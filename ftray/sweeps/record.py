"""What a sweep keeps: one folder that holds its trials, which are runs, and its own record.

<storage_path>/<name>/sweep/sweep.yaml     what was asked for
<storage_path>/<name>/sweep/state.json     every trial: what it varied, and its metrics by epoch
<storage_path>/<name>/sweep/report.html
<storage_path>/<name>/trial-000/           a run, as those of `ftray.fit`
"""

from __future__ import annotations

import json
import math
import os
import platform
import time
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import yaml

from ftray.errors import StorageError
from ftray.record.reader import process_seems_alive
from ftray.record.storage import Storage

__all__ = ["FOLDER", "SweepRecord", "SweepState", "Trial", "read_state", "read_sweep_facts"]
__all__ += ["trial_name"]

FOLDER = "sweep"
STATE = "state.json"
Outcome = Literal["waiting", "running", "finished", "stopped", "interrupted", "failed"]


def trial_name(number: int) -> str:
    """The name of a trial's run."""
    return f"trial-{number:03d}"


@dataclass(kw_only=True)
class Trial:
    """One trial as the sweep sees it.

    Attributes:
        number: in order of creation.
        values: what it varies. Under PBT those that it has now.
        outcome: "stopped" where the scheduler, a stopper or a budget ended it early; "interrupted"
            where it was stopped with the sweep, and goes on when that is resumed.
        reason: why it was stopped, or what went wrong.
        score: the metric of the weights that its artifact holds; while it runs, the newest value.
        epochs: its metrics at the end of each epoch, with `epoch` from 1.
        history: under PBT, what it was before it took over from another: values, and until which
            epoch.
    """

    number: int
    values: dict[str, Any]
    outcome: Outcome = "waiting"
    reason: str = ""
    score: float | None = None
    epochs: list[dict[str, float]] = field(default_factory=list)
    history: list[dict[str, Any]] = field(default_factory=list)

    @property
    def name(self) -> str:
        """The name of its run."""
        return trial_name(self.number)

    @property
    def has_score(self) -> bool:
        """Whether its score is a finite number."""
        return self.score is not None and math.isfinite(self.score)

    def series(self, metric: str) -> list[tuple[int, float]]:
        """(epoch, value) of a metric, where it is finite."""
        found = [(int(row["epoch"]), row[metric]) for row in self.epochs if metric in row]
        return [(epoch, value) for epoch, value in found if math.isfinite(value)]

    def add(self, row: dict[str, float]) -> None:
        """Take the metrics of an epoch; those of the same epoch and later ones are replaced."""
        self.epochs = [known for known in self.epochs if known["epoch"] < row["epoch"]]
        self.epochs.append(row)


@dataclass(kw_only=True)
class SweepState:
    """How a sweep stands: what `state.json` holds.

    Attributes:
        status: "STARTED", "FINISHED", "STOPPED" or "FAILED", as of a run.
        details: why it ended, unless it was for want of anything to try.
        metric, mode: what is best.
        started_s, ended_s: seconds since 1970.
    """

    status: str = "STARTED"
    details: str = ""
    metric: str = ""
    mode: str = "max"
    started_s: float = 0.0
    ended_s: float | None = None
    seen_s: float = 0.0
    pid: int = 0
    host: str = ""
    trials: list[Trial] = field(default_factory=list)

    def ordered(self) -> list[Trial]:
        """The best trial first, of equal ones the earlier; those without a score last."""
        sign = -1 if self.mode == "max" else 1
        scored = [trial for trial in self.trials if trial.has_score]
        ranked = sorted(scored, key=lambda trial: (sign * (trial.score or 0.0), trial.number))
        return [*ranked, *(trial for trial in self.trials if not trial.has_score)]

    @property
    def best(self) -> Trial | None:
        """The best trial that has an artifact."""
        over = ("finished", "stopped", "interrupted")
        found = (t for t in self.ordered() if t.has_score and t.outcome in over)
        return next(found, None)


def read_state(storage: Storage) -> SweepState:
    """The state of the sweep in a folder; one whose process is gone is FAILED.

    Args:
        storage: the sweep's folder, which holds its trials.

    Raises:
        StorageError: if it is damaged.
    """
    try:
        values = json.loads(storage.read_text(f"{FOLDER}/{STATE}"))
        trials = [Trial(**trial) for trial in values.pop("trials")]
        state = SweepState(**values, trials=trials)
    except (ValueError, TypeError, KeyError) as error:
        raise StorageError(f"{storage.path(f'{FOLDER}/{STATE}')} is damaged: {error}") from None
    facts = {"pid": state.pid, "host": state.host, "seen_s": state.seen_s}
    if state.status == "STARTED" and not process_seems_alive(facts):
        state.status = "FAILED"
        state.details = (
            f"the process that ran it ({state.pid} on {state.host}) is gone; resume: auto goes on"
        )
    return state


def read_sweep_facts(storage: Storage) -> dict[str, Any]:
    """The content of `sweep.yaml`.

    Args:
        storage: the sweep's folder.
    """
    facts: dict[str, Any] = yaml.safe_load(storage.read_text(f"{FOLDER}/sweep.yaml"))
    return facts


class SweepRecord:
    """Writes the record of a sweep; only the process that runs it does.

    Args:
        storage: the sweep's folder.
        state: how it stands.
    """

    def __init__(self, storage: Storage, state: SweepState) -> None:
        self.storage = storage
        self.state = state

    def open(self, facts: dict[str, Any]) -> None:
        """Say what is asked for, and that the sweep goes on."""
        self.state.status, self.state.details, self.state.ended_s = "STARTED", "", None
        self.state.pid, self.state.host = os.getpid(), platform.node()
        self.state.started_s = self.state.started_s or time.time()
        if not self.storage.exists(f"{FOLDER}/sweep.yaml"):
            text = yaml.safe_dump(facts, sort_keys=False, allow_unicode=True)
            self.storage.write_text(f"{FOLDER}/sweep.yaml", text)
        self.write()

    def write(self) -> None:
        """Write the state as it is now."""
        self.state.seen_s = time.time()
        text = json.dumps(asdict(self.state), ensure_ascii=False, default=str)
        self.storage.write_text(f"{FOLDER}/{STATE}", text)

    def close(self, status: str, details: str) -> None:
        """The sweep is over."""
        self.state.status, self.state.details = status, details
        self.state.ended_s = time.time()
        self.write()
