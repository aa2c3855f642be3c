"""A sweep: what is tried, one run for each trial, and what came of it on record."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from ftray.callbacks.monitor import check_monitor, resolve_mode
from ftray.errors import ConfigError, RunExistsError, RunFailedError, RunNotFoundError, StorageError
from ftray.launch.start import job_of
from ftray.launch.trial import TrialRun
from ftray.record.names import fresh_name
from ftray.record.reader import RecordReader, artifact_value
from ftray.record.session import STOP_FILE, StopRequests
from ftray.record.storage import Storage
from ftray.record.writer import DONE
from ftray.sweeps.config import SweepConfig, sweep_facts
from ftray.sweeps.record import FOLDER, SweepRecord, SweepState, Trial, read_state, read_sweep_facts
from ftray.sweeps.space import active_values, drawn_points
from ftray.sweeps.sweep import Sweep, is_sweep
from ftray.sweeps.tables import value_text
from ftray.training.job import metric_keys
from ftray.words import counted

if TYPE_CHECKING:
    from ftray.cluster.tuning import Suggested

__all__ = ["Supervisor", "sweep_here"]

BEAT_EVERY_S = 20.0
PAGE_EVERY_S = 30.0
POLL_S = 0.25
SAME_ON_RESUME = ("fit", "space", "metric", "mode", "search", "scheduler", "seed")
INTERRUPTED = "the sweep was stopped"


def sweep_here(sweep: SweepConfig, say: Callable[[str], None]) -> Sweep:
    """Run a sweep to its end.

    Args:
        sweep: what to try.
        say: takes lines for people.

    Raises:
        FtrayError: for whatever the user got wrong, before any trial begins.
        RunFailedError: if no trial came to an end.
        KeyboardInterrupt: after Ctrl-C, once the sweep is closed as STOPPED; it can be resumed.
        SystemExit: with code 143 after SIGTERM, likewise.
    """
    storage, state = _find_place(sweep)
    points = None if sweep.search == "optuna" else sweep.points()
    first = points or drawn_points(sweep.parsed_space, 1, sweep.seed)
    configs = [sweep.fit_config(point, storage.name, "trial") for point in first]
    job = job_of(configs[0])
    state.metric = check_monitor("The sweep", sweep.metric, metric_keys(job), configs[0].model)
    state.mode = resolve_mode(state.metric, sweep.mode)
    from ftray.cluster.sweep import prepare_tuning

    tuning = prepare_tuning(sweep, state, configs)
    facts = sweep_facts(sweep)
    record = SweepRecord(storage, state)
    stops = StopRequests(storage)
    supervisor = Supervisor(sweep, record, points, stops, say)
    trial = TrialRun(sweep=sweep, name=storage.name, metric=state.metric, done=supervisor.done)
    storage.create()
    storage.check_writable()
    storage.delete(STOP_FILE)
    record.open(facts)
    many = "" if points is None else f": {counted(len(points), 'trial')}"
    say(f"Sweep '{storage.name}' in {storage.uri}{many}")
    shared = job if sweep.shares_data else None
    try:
        with stops.on_signals(say):
            folder = storage.under(FOLDER, "tune")
            _in_thread(lambda: tuning.run(trial, shared, supervisor, folder.uri), stops)
            folder.delete("")
        supervisor.close_rest()
    except KeyboardInterrupt:
        record.close("STOPPED", "interrupted")
        raise
    except BaseException as error:
        record.close("FAILED", str(error) or type(error).__name__)
        raise
    return _closed(record, supervisor, stops, say)


def _in_thread(work: Callable[[], None], stops: StopRequests) -> None:
    """Work in a thread; this one hears signals, a second of which is raised at once."""
    outcome: list[BaseException] = []

    def run() -> None:
        try:
            work()
        except BaseException as error:
            outcome.append(error)

    thread = threading.Thread(target=run, name="ftray-sweep", daemon=True)
    thread.start()
    while thread.is_alive():
        thread.join(POLL_S)
        stops()
    if outcome:
        raise outcome[0]


def _closed(
    record: SweepRecord, supervisor: Supervisor, stops: StopRequests, say: Callable[[str], None]
) -> Sweep:
    """Say how it ended, on record and to the caller."""
    state, sweep = record.state, Sweep(record.storage)
    failed = [trial for trial in state.trials if trial.outcome == "failed"]
    if supervisor.stopped_from_outside:
        record.close("STOPPED", supervisor.closing)
        say(f"Stopped. To go on: the same again with name: {sweep.name} and resume: auto")
    elif not state.ranked():
        why = failed[0].reason if failed else supervisor.closing or "no trial was made"
        record.close("FAILED", f"no trial came to an end: {why}")
    else:
        record.close("FINISHED", supervisor.closing)
    with suppress(Exception):  # a page that cannot be written must not cost the sweep
        say(f"Report: {sweep.report()}")
    if stops.signal is not None:
        if stops.signal.name == "SIGTERM":
            raise SystemExit(143)
        raise KeyboardInterrupt
    if state.status == "FAILED":
        raise RunFailedError(f"Sweep '{sweep.name}': {state.details}")
    return sweep


# ---------------------------------------------------------------- where it is


def _find_place(sweep: SweepConfig) -> tuple[Storage, SweepState]:
    """The sweep's folder, and its state if it is resumed; makes nothing.

    Raises:
        FtrayError: for a place where it cannot be.
    """
    root = Storage(sweep.storage_path)
    if sweep.name is None:
        if sweep.resume == "must":
            raise ConfigError("resume = 'must' needs the name of the sweep to go on with")
        return root.under(fresh_name(root.exists)), SweepState()
    storage = root.under(sweep.name)
    if not storage.exists() or not storage.names():
        if sweep.resume == "must":
            raise RunNotFoundError(f"resume = 'must', but there is no sweep {storage.uri}")
        return storage, SweepState()
    if not is_sweep(storage):
        raise RunExistsError(f"The folder {storage.uri} holds other things than a sweep")
    if sweep.resume == "never":
        raise RunExistsError(
            f"The sweep {storage.uri} exists. Give another name, or none for a fresh one; "
            "resume: auto goes on with one that was stopped or cut off."
        )
    state = read_state(storage)
    _check_goes_on(sweep, storage, state)
    return storage, state


def _check_goes_on(sweep: SweepConfig, storage: Storage, state: SweepState) -> None:
    if state.status == "STARTED":
        ago = max(0.0, time.time() - state.seen_s)
        raise RunExistsError(
            f"The sweep {storage.uri} is running (process {state.pid} on {state.host}, last sign "
            f"{ago:.0f} s ago): stop it first, or give another name"
        )
    was, now = read_sweep_facts(storage)["config"], sweep_facts(sweep)["config"]
    for key in SAME_ON_RESUME:
        if was.get(key) != now[key]:
            raise ConfigError(
                f"The sweep {storage.uri} was started with {key} = {was.get(key)!r}, not "
                f"{now[key]!r}: a sweep goes on with what it began with (num_samples may grow)"
            )
    more = len(state.trials) < (
        sweep.num_samples if sweep.search == "optuna" else len(sweep.points())
    )
    open_ones = [t for t in state.trials if t.outcome not in ("finished", "stopped")]
    if not more and not open_ones:
        raise RunExistsError(
            f"The sweep {storage.uri} is {state.status}, and all of its trials are done: there is "
            "nothing to go on with. A larger num_samples adds trials"
        )


# ---------------------------------------------------------------- what happens


class Supervisor:
    """Says what is tried, keeps the record, and ends trials that are to end.

    Tune calls it from one thread.

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
        self._began = self._beaten = self._drawn = time.monotonic()
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

    def suggest(self, ask: Callable[[], Mapping[str, Any] | None] | None) -> Suggested | None:
        """The next trial: those on record first."""
        from ftray.cluster.tuning import Suggested

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

    def started(self, number: int, values: Mapping[str, Any]) -> None:
        """A trial runs, for the first time or again."""
        trial = self._trials[number]
        if number in self.done:
            return
        if values != trial.values:  # under PBT
            epoch = int(trial.epochs[-1]["epoch"]) if trial.epochs else 0
            trial.history.append({"epoch": epoch, "values": dict(trial.values)})
            self._say(f"{trial.name} takes over from a better one: {_listed(values)}")
            trial.values = dict(values)
        elif trial.outcome != "running":
            self._say(f"{trial.name} starts: {_listed(values)}")
        trial.outcome, trial.reason = "running", ""
        self._record.write()

    def reported(self, number: int, row: Mapping[str, float]) -> None:
        """An epoch of a trial is over."""
        if number in self.done:
            return
        trial, metric = self._trials[number], self._record.state.metric
        trial.add(dict(row))
        trial.score = row[metric]
        self._say(f"{trial.name} epoch {row['epoch']:g}: {metric} = {row[metric]:.5g}")
        if self.closing:
            self._ask(number)
        self._record.write()

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
        if error:
            trial.outcome, trial.reason, trial.score = "failed", error, None
        elif status["status"] == "STOPPED":
            interrupted = trial.reason in ("", INTERRUPTED) and bool(self.closing)
            trial.outcome = "interrupted" if interrupted else "stopped"
            trial.reason = trial.reason or status["details"]
        else:
            trial.outcome, trial.reason = "finished", status["details"]
        value = None if error else artifact_value(reader, self._record.state.metric)
        if value is not None:  # else the newest: workers may have made a step more
            trial.score = value
        self._say(_end_words(trial, self._record.state.metric))
        self._record.write()

    def close_rest(self) -> None:
        """Tune has ended: no trial runs any more, whatever we heard of it."""
        for trial in self._trials:
            if trial.outcome == "running":
                status = RecordReader(self._record.storage.under(trial.name)).status()["status"]
                self.ended(trial.number, "" if status in DONE else "its process was lost")

    def tick(self, stopper: str) -> None:
        """Show that the sweep goes on; end it where it is to end."""
        now = time.monotonic()
        if now - self._beaten > BEAT_EVERY_S:
            self._beaten = now
            self._record.write()
        if now - self._drawn > PAGE_EVERY_S:
            with suppress(Exception):  # a page that cannot be written must not cost the sweep
                Sweep(self._record.storage).report()
            self._drawn = time.monotonic()
        if self.closing:
            return
        budget = self._sweep.time_budget_s
        if self._stops():
            self.stopped_from_outside = True
            self._close(INTERRUPTED)
        elif stopper:
            self._close(f"{stopper} ended the sweep")
        elif budget is not None and now - self._began > budget:
            self._close(f"the time budget of {budget:g} s is used up")

    def _close(self, reason: str) -> None:
        self.closing = reason
        self._say(f"No more trials: {reason}")
        for trial in self._trials:
            if trial.outcome == "running":
                self.ask_to_stop(trial.number, reason)


def _listed(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} = {value_text(value)}" for name, value in values.items())


def _end_words(trial: Trial, metric: str) -> str:
    score = "" if trial.score is None else f", {metric} = {trial.score:.5g}"
    reason = f" ({trial.reason})" if trial.reason else ""
    return f"{trial.name} {trial.outcome}{reason}{score}"
