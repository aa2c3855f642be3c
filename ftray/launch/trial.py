"""One trial of a sweep, in its process: a fit like any other, whose epochs are reported."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from ftray.events import CheckpointSaved, EpochEnded, EvaluationEnded, Event, FitEnded
from ftray.launch.drive import drive
from ftray.launch.start import made_ready
from ftray.record.reader import RecordReader
from ftray.record.session import RunSession
from ftray.record.storage import Storage
from ftray.sweeps.config import CHANGED_IN_TRAINING, SweepConfig
from ftray.sweeps.record import trial_name

if TYPE_CHECKING:
    from ftray.cluster.tuning import Report
    from ftray.training.job import Job

__all__ = ["EpochReports", "TrialRun"]


@dataclass(frozen=True, kw_only=True)
class TrialRun:
    """Runs a trial; see `ftray.cluster.tuning.TrialFunction`.

    Attributes:
        sweep: the configuration.
        name: of the sweep.
        metric: that it looks at.
        done: trials that came to their end before the sweep was resumed.
    """

    sweep: SweepConfig
    name: str
    metric: str
    done: frozenset[int]

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

        run = Storage(self.sweep.storage_path).under(self.name, trial_name(number))
        hands_on = self.sweep.scheduler == "pbt"
        note = () if handed is None else take_over(run, handed)
        reports = EpochReports(self.metric, report, run if hands_on else None)
        over = number in self.done or RecordReader(run).status()["status"] == "FINISHED"
        if over or not hands_on:
            reports.replay(RecordReader(run))
        if over:
            return
        config = self.sweep.fit_config(values, self.name, run.name)
        may_differ = CHANGED_IN_TRAINING if hands_on else ()
        with made_ready(config, known=shared, may_differ=may_differ, notes=note) as start:
            drive(start, [reports], reports.opened)


class EpochReports:
    """Listens to a run, and reports the metrics of each epoch once they are complete.

    That is when the epoch's checkpoint is there, and the metric too: it may come later, where the
    evaluation overlaps training.

    Args:
        metric: that the sweep looks at.
        report: takes a row: every metric, `epoch` from 1, `global_step`.
        run: whose checkpoints are handed on with the reports, or None.
    """

    def __init__(self, metric: str, report: Report, run: Storage | None = None) -> None:
        self._metric = metric
        self._report = report
        self._run = run
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
            if not last and not (known and step <= self._saved):
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
