"""A sweep, run to its end: found ready, driven, closed. See `supervisor` for what it decides."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from ftray.callbacks.evaluation import EvaluationCallback
from ftray.callbacks.monitor import check_monitor, resolve_mode
from ftray.errors import ConfigError, RunExistsError, RunFailedError, RunNotFoundError, StorageError
from ftray.launch.start import job_of
from ftray.launch.supervisor import Supervisor
from ftray.launch.trial import TrialRun
from ftray.record.facts import plain
from ftray.record.names import fresh_name
from ftray.record.session import StopRequests
from ftray.record.storage import Storage
from ftray.report.notebook import without_widgets
from ftray.sweeps.config import SweepConfig, sweep_facts
from ftray.sweeps.record import FOLDER, SweepRecord, SweepState, read_state, read_sweep_facts
from ftray.sweeps.space import drawn_points
from ftray.sweeps.sweep import Sweep, is_sweep
from ftray.training.job import Job, metric_keys

__all__ = ["sweep_here"]

POLL_S = 0.25
SAME_ON_RESUME = ("fit", "space", "metric", "mode", "search", "scheduler", "seed")


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
    without_widgets()
    # trials may run in another folder
    sweep = sweep.model_copy(update={"storage_path": Storage(sweep.storage_path).uri})
    storage, state = _find_place(sweep)
    points = None if sweep.search == "optuna" else sweep.points()
    first = points or drawn_points(sweep.parsed_space, 1, sweep.seed)
    configs = [sweep.fit_config(point, storage.name, "trial") for point in first]
    job = job_of(configs[0])
    keys = metric_keys(job)
    state.metric = check_monitor("The sweep", sweep.metric, keys, configs[0].model)
    state.mode = resolve_mode(state.metric, sweep.mode)
    from ftray.cluster.sweep import prepare_tuning

    tuning = prepare_tuning(sweep, state, configs[0], keys, trials=len(first))
    facts = {**sweep_facts(sweep), "data": plain(job.provenance)[0]}
    _check_same_data(sweep, storage, facts["data"])
    stops = StopRequests(storage)
    supervisor = Supervisor(sweep, SweepRecord(storage, state), points, stops, say)
    trial = TrialRun(
        sweep=sweep,
        name=storage.name,
        metric=state.metric,
        late=_comes_late(job, state.metric),
        done=supervisor.done,
        folder=os.getcwd(),
    )
    supervisor.open(facts)
    place = storage.under(FOLDER, "tune")
    shared = job if sweep.shares_data else None
    try:
        with stops.on_signals(say):
            _in_thread(lambda: tuning.run(trial, shared, supervisor, place.uri), supervisor)
    except BaseException as error:
        supervisor.cut_off(error)
        raise
    with suppress(OSError, StorageError):  # nobody needs it, and it must not cost the sweep
        place.delete("")
    return _closed(supervisor, storage, stops)


def _comes_late(job: Job, metric: str) -> bool:
    """Whether a metric is measured while training goes on, so that it comes after its epoch."""
    callbacks = [c for c in job.callbacks if isinstance(c, EvaluationCallback)]
    found = zip(callbacks, job.evaluations, strict=True)
    return any(spec.overlap and metric in callback.metric_keys() for callback, spec in found)


def _in_thread(work: Callable[[], None], supervisor: Supervisor) -> None:
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
        supervisor.look()
    if outcome:
        raise outcome[0]


def _closed(supervisor: Supervisor, storage: Storage, stops: StopRequests) -> Sweep:
    """Say how it ended, on record and to the caller."""
    state = supervisor.close()
    sweep = Sweep(storage)
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


def _check_same_data(sweep: SweepConfig, storage: Storage, data: Any) -> None:
    """Refuse to go on with other data; trials that are done were compared on the old ones."""
    if not sweep.shares_data or not is_sweep(storage):
        return
    was = read_sweep_facts(storage).get("data", data)
    for name in data:
        if was.get(name, {}).get("fingerprint") != data[name].get("fingerprint"):
            raise ConfigError(f"{name} is not what the sweep {storage.uri} was started with")
