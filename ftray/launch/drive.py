"""Driving a run: one process trains, or drives the workers on Ray, and writes the record."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from contextlib import closing
from typing import TYPE_CHECKING

from ftray.collector import collector_paused
from ftray.config import FitConfig
from ftray.errors import ConfigError, DataError, RunFailedError, StorageError
from ftray.events import Log
from ftray.launch.places import MODEL, take
from ftray.launch.start import Start, made_ready
from ftray.record.session import RunSession
from ftray.report.live import reported
from ftray.run import Run

if TYPE_CHECKING:
    from ftray.events import Event, FitEnded

__all__ = ["drive", "fit_here"]

Opened = Callable[[RunSession], None]


def fit_here(config: FitConfig, listeners: Sequence[Callable[[Event], None]]) -> Run:
    """Make a fit ready and drive it to its end."""
    with made_ready(config) as start:
        return drive(start, listeners)


def drive(
    start: Start, listeners: Sequence[Callable[[Event], None]], opened: Opened | None = None
) -> Run:
    """Take the place and train.

    Args:
        start: the fit, made ready.
        listeners: called with every event.
        opened: called once the run is on record.

    Raises:
        FtrayError: before the run is on record, for what could not be known earlier.
        RunFailedError: if the run failed.
        KeyboardInterrupt: after Ctrl-C, once the run is closed as STOPPED.
        SystemExit: with code 143 after SIGTERM, once the run is closed as STOPPED.
    """
    config = start.job.config
    session = RunSession(start.place.storage, config.model, listeners)
    with closing(session):
        if config.num_workers == 0:  # it takes seconds, and nothing is on record yet
            session.show(Log(message=f"Loading the model {config.model}"))
        with collector_paused():
            train = _trainer(start, session)
        with reported(session), session.stop.on_signals(session.say):
            take(start.place, config)
            _keep_model(start)
            return _run(start, session, train, opened)


def _trainer(start: Start, session: RunSession) -> Callable[[], FitEnded]:
    """What trains.

    In this process the model is loaded here, so that no run is on record if it cannot be; on Ray
    the workers load it.
    """
    job = start.job
    if job.config.num_workers == 0:
        import torch

        from ftray.runtime.local import LocalRuntime, local_device
        from ftray.training.loop import Loop
        from ftray.training.overlap import ThreadEvaluator

        device = local_device(job.config.device)
        if device.type == "cuda" and not torch.cuda.is_available():
            raise ConfigError("device = 'cuda', but torch sees no GPU here: 'cpu', or 'auto'")
        evaluator = ThreadEvaluator(job, device)
        runtime = LocalRuntime(device, job.evaluations, session.emit, session.stop, evaluator)
        # the run directory has a model object's copy only once the run is taken
        return Loop(job, runtime, str(start.model_copy) if start.model_copy else None).run
    from ftray.cluster.trainer import fit_on_ray

    return lambda: fit_on_ray(job, session)


def _keep_model(start: Start) -> None:
    """Put the copy of a model object into the run directory, unless a resumed run has it."""
    storage = start.place.storage
    if start.model_copy is None:
        return
    if not (start.place.resumed and storage.exists(f"{MODEL}/ftray.json")):
        storage.upload(start.model_copy, MODEL)
    shutil.rmtree(start.model_copy, ignore_errors=True)  # it need not lie there all the while


def _run(
    start: Start, session: RunSession, train: Callable[[], FitEnded], opened: Opened | None
) -> Run:
    name = session.storage.name

    def describe() -> None:
        from ftray.report.card import write_card  # matplotlib comes with it

        write_card(session.storage)

    try:
        session.open(start.facts, resumed=start.place.resumed)
        if opened is not None:
            opened(session)
        session.say(f"Run '{name}' in {session.storage.uri}")
        for note in start.job.notes:
            session.say(note)
        ended = train()
        if ended.status == "STOPPED":
            session.say(f"To go on: the same again with run_name: {name} and resume: auto")
        session.finish(ended, describe)
    except KeyboardInterrupt:
        session.interrupted(describe)
        raise
    except BaseException as error:
        session.fail(error, describe)
        # a disk that is full, embeddings that are no numbers: no mistakes in the input
        if isinstance(error, StorageError | DataError):
            raise RunFailedError(str(error)) from error
        raise
    if session.stop.signal is not None:  # heard too late to stop anything, it still counts
        if session.stop.signal.name == "SIGTERM":
            raise SystemExit(143)
        raise KeyboardInterrupt
    return Run(session.storage)
