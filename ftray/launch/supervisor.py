"""What a sweep decides while it goes on, and its record: which trial begins, which is to end."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from ftray.errors import StorageError
from ftray.launch.trial import CLOSING_FILE
from ftray.record.reader import RecordReader, artifact_value
from ftray.record.session import STOP_FILE, StopRequests
from ftray.record.writer import DONE
from ftray.sweeps.config import SweepConfig
from ftray.sweeps.record import Outcome, SweepRecord, SweepState, Trial
from ftray.sweeps.space import active_values
from ftray.sweeps.sweep import Sweep
from ftray.sweeps.tables import value_text
from ftray.words import counted

if TYPE_CHECKING:
    from ftray.cluster.tuning import Suggested

__all__ = ["Supervisor"]

BEAT_EVERY_S = 20.0
PAGE_EVERY_S = 30.0
ASK_EVERY_S = 3.0
INTERRUPTED = "the sweep was stopped"


class Supervisor:
    """Says what is tried, keeps the record, and ends trials that are to end.

    Ray Tune calls it from one thread; `look` is for the thread that waits.

    Args:
        sweep: the configuration.
        record: of the sweep, with the trials that there are already.
        points: what the trials vary, by number; None where Optuna decides.
        stops: whether somebody wants the sweep to end.
        say: takes lines for people.
    """

    def __init__(
        self,
        sweep: SweepConfig,
        record: SweepRecord,
        points: list[dict[str, Any]] | None,
        stops: StopRequests,
        say: Callable[[str], None],
    ) -> None:
        self._sweep = sweep
        self._record = record
        self._points = points
        self._stops = stops
        self._say = say
        self._next = 0
        self._began = self._beaten = self._drawn = self._asked = time.monotonic()
        self._mute = False
        self.closing = ""
        """Why the sweep ends before everything was tried."""
        self.stopped_from_outside = False
        self.done = frozenset(
            t.number for t in self._trials if t.outcome in ("finished", "stopped")
        )
        """Trials that came to their end before the sweep was resumed."""

    @property
    def _trials(self) -> list[Trial]:
        return self._record.state.trials

    def __reduce__(self) -> tuple[Any, ...]:
        """Tune pickles what it calls, for a resume of its own that we do not use."""
        return (_Nobody, ())

    def open(self, facts: dict[str, Any]) -> None:
        """The sweep goes on record, and begins."""
        storage = self._record.storage
        storage.create()
        storage.check_writable()
        for name in (STOP_FILE, CLOSING_FILE):
            storage.delete(name)
        self._record.open(facts)
        many = "" if self._points is None else f": {counted(len(self._points), 'trial')}"
        self._say(f"Sweep '{storage.name}' in {storage.uri}{many}")

    def look(self) -> None:
        """Hear signals and stop requests, and draw the page now and then."""
        self._stops()
        if time.monotonic() - self._drawn > PAGE_EVERY_S:
            with suppress(Exception):  # a page that cannot be written must not cost the sweep
                Sweep(self._record.storage).report()
            self._drawn = time.monotonic()

    def suggest(self, ask: Callable[[], Mapping[str, Any] | None] | None) -> Suggested | None:
        """The next trial: those on record first, of which schedulers are to know."""
        from ftray.cluster.tuning import Suggested

        while self._next in self.done and self._sweep.scheduler not in ("asha", "median"):
            self._next += 1
        number = self._next
        if self.closing:
            return None
        if number == len(self._trials):
            values = self._new_values(number, ask)
            if values is None:
                return None
            self._trials.append(Trial(number=number, values=values))
        self._next += 1
        return Suggested(number=number, values=dict(self._trials[number].values))

    def _new_values(
        self, number: int, ask: Callable[[], Mapping[str, Any] | None] | None
    ) -> dict[str, Any] | None:
        if self._points is not None:
            return self._points[number] if number < len(self._points) else None
        assert ask is not None
        values = ask() if number < self._sweep.num_samples else None
        return None if values is None else active_values(self._sweep.parsed_space, values)

    def started(self, number: int, values: Mapping[str, Any], donor: str = "") -> None:
        """A trial runs, for the first time or again.

        Args:
            number: of the trial.
            values: that it has from now on.
            donor: name of the trial whose weights it has, under PBT; "" = it begins anew.
        """
        trial = self._trials[number]
        if number in self.done:
            return
        epoch = int(trial.epochs[-1]["epoch"]) if trial.epochs else 0
        known = bool(trial.history) and trial.history[-1]["epoch"] == epoch  # it starts once more
        others = values != trial.values or (donor not in ("", trial.name) and not known)
        if self._sweep.scheduler == "pbt" and others:
            trial.history.append({"epoch": epoch, "values": dict(trial.values)})
            self._say(f"{trial.name} takes over from a better one: {_listed(values)}")
            trial.values = dict(values)
        elif trial.outcome != "running":
            self._say(f"{trial.name} starts: {_listed(values)}")
        trial.outcome, trial.reason = "running", ""
        self._write()

    def reported(self, number: int, row: Mapping[str, float]) -> None:
        """An epoch of a trial is over."""
        if number in self.done:
            return
        trial, metric = self._trials[number], self._record.state.metric
        trial.add(dict(row))
        trial.score = row[metric]
        self._write()  # what is said is on record, should the process be killed
        self._say(f"{trial.name} epoch {row['epoch']:g}: {metric} = {row[metric]:.5g}")

    def ask_to_stop(self, number: int, reason: str) -> None:
        """End a trial at its next step."""
        if number not in self.done:
            self._trials[number].reason = self._trials[number].reason or reason
            self._ask(number)

    def _ask(self, number: int) -> None:
        trial = self._trials[number]
        run = self._record.storage.under(trial.name)
        with suppress(StorageError, OSError):  # it ends by itself some time
            run.write_text(STOP_FILE, trial.reason)

    def ended(self, number: int, error: str) -> None:
        """A trial is over; `error` is empty unless it failed."""
        trial = self._trials[number]
        if number in self.done:
            return
        reader = RecordReader(self._record.storage.under(trial.name))
        status = reader.status()
        trial.outcome, trial.reason = self._outcome(trial, status, error)
        if trial.outcome in ("failed", "waiting"):
            trial.score = None
        else:  # where it is not known, the newest stands: workers may have made a step more
            value = artifact_value(reader, self._record.state.metric)
            trial.score = trial.score if value is None else value
        self._say(_end_words(trial, self._record.state.metric))
        self._write()

    def _outcome(self, trial: Trial, status: Mapping[str, Any], error: str) -> tuple[Outcome, str]:
        details = str(status["details"])
        if error or status["status"] == "FAILED":
            return "failed", error or details
        if status["status"] == "FINISHED":
            return "finished", details
        if status["status"] != "STOPPED":
            return "waiting", ""  # it had not begun
        reason = trial.reason or details
        interrupted = bool(self.closing) and reason in ("", INTERRUPTED)
        return ("interrupted" if interrupted else "stopped"), reason

    def cut_off(self, error: BaseException) -> None:
        """The sweep ends in the midst: trials are asked to end, and nothing more is written."""
        for trial in self._trials:
            if trial.outcome == "running":
                self.ask_to_stop(trial.number, INTERRUPTED)
        stopped = isinstance(error, KeyboardInterrupt)
        said = "interrupted" if stopped else str(error) or type(error).__name__
        with suppress(StorageError, OSError):
            self._record.close("STOPPED" if stopped else "FAILED", said)
        self._mute = True

    def close(self) -> SweepState:
        """Tune has ended; no trial runs any more, whatever we heard of it. How it stands."""
        state = self._record.state
        for trial in self._trials:
            if trial.outcome == "running":
                reader = RecordReader(self._record.storage.under(trial.name))
                over = reader.status()["status"] in DONE
                self.ended(trial.number, "" if over else "its process was lost")
        failed = [trial for trial in state.trials if trial.outcome == "failed"]
        if self.stopped_from_outside:
            self._record.close("STOPPED", self.closing)
            name = self._record.storage.name
            self._say(f"Stopped. To go on: the same again with name: {name} and resume: auto")
        elif state.best is None:
            why = failed[0].reason if failed else self.closing or "no trial was made"
            self._record.close("FAILED", f"no trial came to an end: {why}")
        else:
            self._record.close("FINISHED", self.closing)
        with suppress(Exception):
            self._say(f"Report: {Sweep(self._record.storage).report()}")
        return state

    def _write(self) -> None:
        if not self._mute:
            self._record.write()

    def tick(self, stopper: str) -> None:
        """Show that the sweep goes on; end it where it is to end."""
        now = time.monotonic()
        if now - self._beaten > BEAT_EVERY_S:
            self._beaten = now
            self._write()
        budget = self._sweep.time_budget_s
        if self.closing:
            if now - self._asked > ASK_EVERY_S:  # a run that was just beginning has not seen it
                self._ask_all()
        elif self._stops():
            self.stopped_from_outside = True
            self._close(INTERRUPTED)
        elif stopper:
            self._close(f"{stopper} ended the sweep")
        elif budget is not None and now - self._began > budget:
            self._close(f"the time budget of {budget:g} s is used up")

    def _close(self, reason: str) -> None:
        self.closing = reason
        self._say(f"No more trials: {reason}")
        with suppress(StorageError, OSError):
            self._record.storage.write_text(CLOSING_FILE, reason)
        self._ask_all()

    def _ask_all(self) -> None:
        self._asked = time.monotonic()
        for trial in self._trials:
            if trial.outcome == "running":
                self.ask_to_stop(trial.number, self.closing)


class _Nobody:
    """What is left of a supervisor that was pickled."""


def _listed(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} = {value_text(value)}" for name, value in values.items())


def _end_words(trial: Trial, metric: str) -> str:
    score = "" if trial.score is None else f", {metric} = {trial.score:.5g}"
    reason = f" ({trial.reason})" if trial.reason else ""
    return f"{trial.name} {trial.outcome}{reason}{score}"
