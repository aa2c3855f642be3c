"""One trial of a sweep, in its process: a fit like any other, whose epochs are reported."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from ftray.errors import StorageError
from ftray.events import CheckpointSaved, EpochEnded, EvaluationEnded, Event, FitEnded
from ftray.launch.drive import drive
from ftray.launch.start import made_ready
from ftray.record.reader import RecordReader
from ftray.record.session import RunSession
from ftray.record.storage import Storage
from ftray.sweeps.config import CHANGED_IN_TRAINING, SweepConfig
from ftray.sweeps.record import trial_name
from ftray.sweeps.sweep import is_sweep

if TYPE_CHECKING:
    from ftray.cluster.tuning import Report
    from ftray.training.job import Job

__all__ = ["CLOSING_FILE", "EpochReports", "TrialRun"]

CLOSING_FILE = "control/closing"
"""In the sweep's folder: no trial begins any more."""
WAIT_S = 1.0


@dataclass(frozen=True, kw_only=True)
class TrialRun:
    """Runs a trial; see `ftray.cluster.tuning.TrialFunction`.

    Attributes:
        sweep: the configuration.
        name: of the sweep.
        metric: that it looks at.
        late: whether that is measured while training goes on.
        done: trials that came to their end before the sweep was resumed.
        folder: where the sweep was begun; relative paths are meant from there.
    """

    sweep: SweepConfig
    name: str
    metric: str
    late: bool
    done: frozenset[int]
    folder: str

    def __call__(
        self,
        number: int,
        values: Mapping[str, Any],
        shared: Job | None,
        report: Report,
        handed: Path | None,
    ) -> None:
        """Train; what the run has done already is reported anew, for the scheduler to know."""
        from ftray.training.handover import take_over

        if os.path.isdir(self.folder):
            os.chdir(self.folder)
        sweep = Storage(self.sweep.storage_path).under(self.name)
        _check_storage(sweep)
        if sweep.exists(CLOSING_FILE):
            return
        run = sweep.under(trial_name(number))
        reader = RecordReader(run)
        hands_on = self.sweep.scheduler == "pbt"
        reports = EpochReports(self.metric, report, run if hands_on else None, late=self.late)
        over = number in self.done or reader.status()["status"] == "FINISHED"
        if over or not hands_on:
            reports.replay(reader)
        if over:
            return
        _wait_until_free(reader)
        note = () if handed is None else take_over(run, handed)
        config = self.sweep.fit_config(values, self.name, run.name)
        may_differ = CHANGED_IN_TRAINING if hands_on else ()
        with made_ready(config, known=shared, may_differ=may_differ, notes=note) as start:
            drive(start, [reports], reports.opened)


def _check_storage(sweep: Storage) -> None:
    if not is_sweep(sweep):
        raise StorageError(
            f"The node {platform.node()} cannot see the sweep {sweep.uri}. On several nodes "
            "storage_path must be a folder that all of them share, or a URI such as s3://bucket/runs"
        )


def _wait_until_free(reader: RecordReader) -> None:
    """Wait for the process that had the run before, on a lost machine perhaps, to be gone for sure.

    A run has one trial, and Tune one process for each: nobody else is at it.
    """
    while reader.exists() and reader.status()["status"] in ("CREATED", "STARTED"):
        time.sleep(WAIT_S)


class EpochReports:
    """Listens to a run, and reports the metrics of each epoch once they are complete.

    That is when the epoch's checkpoint is there, and the metric too: it may come later, where the
    evaluation overlaps training.

    Args:
        metric: that the sweep looks at.
        report: takes a row: every metric, `epoch` from 1, `global_step`.
        run: whose checkpoints are handed on with the reports, or None.
        late: whether the metric may come after its epoch.
    """

    def __init__(
        self, metric: str, report: Report, run: Storage | None = None, *, late: bool = False
    ) -> None:
        self._metric = metric
        self._report = report
        self._run = run
        self._late = late
        self._measured: dict[int, dict[str, float]] = {}
        self._waiting: dict[int, dict[str, float]] = {}
        self._saved = -1
        self._session: RunSession | None = None

    def opened(self, session: RunSession) -> None:
        """The run is on record; see `drive`."""
        self._session = session

    def __call__(self, event: Event) -> None:
        """Take an event of the run."""
        if isinstance(event, EvaluationEnded) and not event.weights:
            values = {event.keys[name]: value for name, value in event.metrics.items()}
            self._measured.setdefault(event.global_step, {}).update(values)
        elif isinstance(event, EpochEnded):
            step = event.global_step
            self._waiting[step] = {**event.metrics, "epoch": event.epoch + 1, "global_step": step}
        elif isinstance(event, CheckpointSaved):
            self._saved = max(self._saved, event.global_step)
        self._flush(last=isinstance(event, FitEnded))

    def replay(self, reader: RecordReader) -> None:
        """Report what a run has done already."""
        if reader.exists():
            for event in reader.events():
                if isinstance(event, EvaluationEnded | EpochEnded):
                    self(event)
            self._flush(last=True)

    def _flush(self, *, last: bool) -> None:
        for step in sorted(self._waiting):
            row = {**self._measured.get(step, {}), **self._waiting[step]}
            known = self._metric in row
            if not last and (step > self._saved or (self._late and not known)):
                return  # later epochs wait as well
            del self._waiting[step]
            if known:
                self._send(row)

    def _send(self, row: dict[str, float]) -> None:
        if self._run is None:
            self._report(row, None)
        else:
            from ftray.training.handover import hand_on

            with TemporaryDirectory(prefix="ftray-") as place:
                hand_on(self._run, Path(place))
                self._report(row, Path(place))
        if self._session is not None:
            self._session.stop.look()  # the answer to this report may be to stop
