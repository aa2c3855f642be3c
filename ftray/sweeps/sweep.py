"""A sweep, as seen from its record: in the process that ran it, or in another one years later."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pyarrow as pa

from ftray.errors import FtrayError, RunNotFoundError, nearest
from ftray.record.session import STOP_FILE
from ftray.record.storage import Storage
from ftray.run import Run
from ftray.sweeps.record import FOLDER, SweepState, Trial, read_state, read_sweep_facts

if TYPE_CHECKING:
    import pandas as pd  # type: ignore[import-untyped]

__all__ = ["Sweep", "find_sweep", "find_sweeps", "is_sweep", "sweep_named"]


class Sweep:
    """Trials that were compared by one metric. Each is a run.

    Args:
        storage: the sweep's folder.
    """

    def __init__(self, storage: Storage) -> None:
        self._storage = storage

    def __repr__(self) -> str:
        return f"Sweep('{self.name}', {self.status()}, path='{self.path}')"

    @property
    def name(self) -> str:
        """The sweep's name: also the `experiment_name` of its trials."""
        return self._storage.name

    @property
    def path(self) -> str:
        """The sweep's folder: a path or a URI."""
        return self._storage.uri

    @property
    def state(self) -> SweepState:
        """How it stands: every trial with its values, outcome and metrics by epoch."""
        return read_state(self._storage)

    @property
    def config(self) -> dict[str, Any]:
        """What was asked for: the content of `sweep.yaml`."""
        return read_sweep_facts(self._storage)

    @property
    def metric(self) -> str:
        """What decides which trial is best."""
        return self.state.metric

    @property
    def mode(self) -> str:
        """Which way is better: "min" or "max"."""
        return self.state.mode

    def status(self) -> str:
        """STARTED, FINISHED, STOPPED or FAILED."""
        return self.state.status

    @property
    def trials(self) -> list[Trial]:
        """All trials, by number."""
        return self.state.trials

    def run(self, number: int) -> Run:
        """The run of a trial.

        Raises:
            RunNotFoundError: if it has none: it waits, or it failed before it began.
        """
        for trial in self.trials:
            storage = self._storage.under(trial.name)
            if trial.number == number and storage.exists("run.yaml"):
                return Run(storage)
        raise RunNotFoundError(f"Sweep '{self.name}' has no run of trial {number}")

    @property
    def best(self) -> Run:
        """The run whose artifact has the best value of the metric.

        Raises:
            FtrayError: if no trial has an artifact.
        """
        best = self.state.best
        if best is None:
            raise FtrayError(f"No trial of sweep '{self.name}' ({self.status()}) has an artifact")
        return self.run(best.number)

    @property
    def errors(self) -> dict[int, str]:
        """What went wrong, by number of trial."""
        return {t.number: t.reason for t in self.trials if t.outcome == "failed"}

    def to_arrow(self) -> pa.Table:
        """One row per trial, by number.

        Columns: `trial`, `run`, `outcome`, `epochs`, the metric (of the weights that the artifact
        holds), a column for each value that is varied (null where its condition is not met), and
        `reason`.
        """
        state = self.state
        names = list(dict.fromkeys(name for trial in state.trials for name in trial.values))
        rows = [
            {
                "trial": trial.number,
                "run": trial.name,
                "outcome": trial.outcome,
                "epochs": len(trial.epochs),
                state.metric: trial.score,
                **{name: trial.values.get(name) for name in names},
                "reason": trial.reason,
            }
            for trial in state.trials
        ]
        columns = ["trial", "run", "outcome", "epochs", state.metric, *names, "reason"]
        return pa.table({name: _column([row[name] for row in rows]) for name in columns})

    def to_pandas(self) -> pd.DataFrame:
        """The same as a pandas frame.

        Raises:
            ImportError: if pandas is not installed.
        """
        return self.to_arrow().to_pandas()

    def display(self) -> None:
        """Show the trials, the best first: in a notebook as a table of it."""
        from ftray.report.tables import show
        from ftray.sweeps.tables import sweep_sheet

        show(sweep_sheet(self.name, self.state))

    def report(self) -> str:
        """The path of `report.html`, written anew; in it the table and two figures."""
        from ftray.sweeps.page import write_sweep_report

        return write_sweep_report(self._storage)

    def stop(self) -> None:
        """Ask the sweep to end: no trial begins, and those that run end at their next step.

        With `resume` it goes on, and these trials with it.
        """
        self._storage.write_text(STOP_FILE, "")


def _column(values: list[Any]) -> pa.Array:
    try:
        return pa.array(values)
    except (pa.ArrowInvalid, pa.ArrowTypeError):  # of several kinds
        return pa.array([None if value is None else str(value) for value in values])


def is_sweep(storage: Storage) -> bool:
    """Whether a folder is that of a sweep."""
    return storage.exists(f"{FOLDER}/state.json")


def find_sweep(name: str, storage_path: str = "runs") -> Sweep:
    """The sweep of a name.

    Args:
        name: its name, or the path of its folder.
        storage_path: under which folder or URI.

    Raises:
        RunNotFoundError: with the nearest name.
    """
    if "/" in name and is_sweep(Storage(name)):
        return Sweep(Storage(name))
    known = [each.name for each in find_sweeps(storage_path)]
    if name in known:
        return Sweep(Storage(storage_path).under(name))
    hint = nearest(name, known) if known else " There are no sweeps there."
    raise RunNotFoundError(f"There is no sweep '{name}' under '{storage_path}'.{hint}")


def find_sweeps(storage_path: str = "runs") -> list[Sweep]:
    """All sweeps on record, by name."""
    root = Storage(storage_path)
    return [Sweep(root.under(name)) for name in sorted(root.names()) if is_sweep(root.under(name))]


def sweep_named(name: str, storage_path: str = "runs") -> Sweep | None:
    """The sweep of a name or path, if it is one; for verbs that take runs and sweeps."""
    storage = Storage(name) if "/" in name else Storage(storage_path).under(name)
    return Sweep(storage) if is_sweep(storage) else None
