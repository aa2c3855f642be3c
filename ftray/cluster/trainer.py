"""A fit on Ray: a `TorchTrainer`, watched from the driver."""

from __future__ import annotations

import json
import os
import threading
from contextlib import ExitStack
from itertools import chain
from typing import Any

import ray
import ray.train
from ray.train import CheckpointConfig, FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchConfig, TorchTrainer
from ray.train.v2._internal.exceptions import WorkerGroupStartupTimeoutError

from ftray import errors
from ftray.callbacks.best_model import BestModelCheckpoint
from ftray.cluster import inventory
from ftray.cluster.actors import SCORE_TIMEOUT_S, start_scorers
from ftray.cluster.bridge import heard, open_mailbox
from ftray.cluster.connect import DEFAULTS, START_TIMEOUT, connected
from ftray.cluster.evaluators import start_evaluators
from ftray.cluster.failures import FailAtOnce, find_fatal
from ftray.cluster.nodes import node_here
from ftray.cluster.placement import Placement, place
from ftray.cluster.shards import start_shards
from ftray.cluster.watch import NodeWatch
from ftray.cluster.weights import SharedModel, share_model
from ftray.cluster.worker import train_worker
from ftray.errors import RunFailedError, StorageError
from ftray.events import FitEnded
from ftray.record.session import RunSession
from ftray.record.storage import Storage
from ftray.runtime.process_group import LostWorkersError
from ftray.training.job import Job
from ftray.words import counted

__all__ = ["fit_on_ray"]

POLL_S = 0.25
COLLECTIVE_TIMEOUT_S = int(SCORE_TIMEOUT_S) + 300
"""Ranks wait for each other while rank 0 waits for the scores."""
START_ATTEMPTS = 5
"""Each waits `connect.START_TIMEOUT` for room on the nodes."""
PREEMPTIONS = 100
WIND_DOWN_S = 30.0
SNAPSHOT = "checkpoints/checkpoint_manager_snapshot.json"


class TrainerWithoutCleaner(TorchTrainer):  # type: ignore[misc]
    """A trainer for a Ray session without a dashboard.

    Ray's placement-group cleaner asks the dashboard for its data: without one it warns once a
    second and cleans nothing. The groups end with the driver's job all the same.
    """

    def _create_default_callbacks(self) -> list[Any]:
        callbacks = super()._create_default_callbacks()
        return [c for c in callbacks if type(c).__name__ != "PlacementGroupCleanerCallback"]


def fit_on_ray(job: Job, session: RunSession) -> FitEnded:
    """Train on Ray and return how it ended.

    Raises:
        ClusterError: if the cluster cannot give what was asked for.
        FtrayError: what a worker raised.
        RunFailedError: if workers were lost more often than `max_failures`.
    """
    with connected() as dashboard, ExitStack() as ending:
        overlapped = sum(spec.overlap for spec in job.evaluations)
        placement = place(job.config, overlapped)
        if dashboard:
            session.say(f"Ray dashboard: {dashboard}")

        def kept(*started: Any) -> None:
            for actor in started:
                ending.callback(ray.kill, actor)

        mailbox = open_mailbox()
        ending.callback(_try_to_tidy, session)
        kept(mailbox)
        scorers = start_scorers(len(job.evaluations))
        kept(*scorers)
        shards = start_shards(job.config.index_shards, job.evaluations)
        kept(*chain(*shards.values()))
        for number, actors in shards.items():
            where = f"the index of '{job.evaluations[number].name}'"
            session.say(f"index_shards: {where} is in {counted(len(actors), 'shard')}")
        evaluators = start_evaluators(job, placement)
        kept(*evaluators.values())
        setup = {
            "driver": node_here(),
            "job": ray.put(job),
            "model": _shared(job, session),
            "mailbox": mailbox,
            "scorers": scorers,
            "shards": shards,
            "evaluators": evaluators,
        }
        session.storage.delete(SNAPSHOT)  # we continue from our own record
        trainer = _trainer(
            job, setup, placement, cleaner=dashboard is not None and not _in_an_actor()
        )
        return _watch(trainer, mailbox, session, placement)


def _shared(job: Job, session: RunSession) -> SharedModel | None:
    """The base model for other nodes."""
    model = share_model(job)
    if model is not None and len(inventory.alive()) > 1:
        size = f"{model.size / 1e6:,.1f} MB"
        session.say(f"The model's folder ({size}) reaches other nodes through the object store")
    return model


def _patience_s() -> float:
    """How long the workers wait for room on the nodes, over all attempts."""
    return START_ATTEMPTS * float(os.environ.get(START_TIMEOUT, DEFAULTS[START_TIMEOUT]))


def _then(placement: Placement) -> str:
    """What follows when workers were lost."""
    return (
        f"from the newest checkpoint again, as soon as there is room for {placement} "
        f"(waiting for at most {_patience_s():g} s)"
    )


def _in_an_actor() -> bool:
    """Whether this is a trial of a sweep: it is always ended in good order, with its groups."""
    return ray.get_runtime_context().get_actor_id() is not None


def _try_to_tidy(session: RunSession) -> None:
    """How the run ended is known by then, and stays."""
    try:
        _tidy_snapshot(session.storage)
    except (StorageError, OSError, KeyError, ValueError) as error:
        session.say(
            f"Ray's own list of checkpoints, {SNAPSHOT}, still names those that were pruned: "
            f"{type(error).__name__}: {error}",
            "WARNING",
        )


def _tidy_snapshot(storage: Storage) -> None:
    """Take the checkpoints that we have pruned out of Ray's own list of them.

    With them `ray.train.Result.from_path` refuses the folder. Those that it needs, the newest and
    the best, are never pruned.
    """
    if not storage.exists(SNAPSHOT):
        return
    snapshot = json.loads(storage.read_text(SNAPSHOT))
    pairs = [
        (result, index)
        for result, index in zip(
            snapshot["checkpoint_results"], snapshot["checkpoint_report_indices"], strict=True
        )
        if storage.exists(f"checkpoints/{result['checkpoint_dir_name']}/state.json")
    ]
    snapshot["checkpoint_results"] = [result for result, _ in pairs]
    snapshot["checkpoint_report_indices"] = [index for _, index in pairs]
    storage.write_text(SNAPSHOT, json.dumps(snapshot))


def _trainer(
    job: Job, setup: dict[str, Any], placement: Placement, *, cleaner: bool
) -> TorchTrainer:
    best = [c for c in job.callbacks if isinstance(c, BestModelCheckpoint)]
    scoring = (
        {
            "checkpoint_score_attribute": best[-1].monitor,
            "checkpoint_score_order": best[-1].mode,
        }
        if best
        else {}
    )
    cls = TorchTrainer if cleaner else TrainerWithoutCleaner
    return cls(
        train_worker,
        train_loop_config=setup,
        torch_config=TorchConfig(timeout_s=COLLECTIVE_TIMEOUT_S),
        scaling_config=ScalingConfig(
            num_workers=placement.num_workers,
            use_gpu=placement.use_gpu,
            resources_per_worker=placement.bundle,
            accelerator_type=job.config.accelerator_type,
            label_selector=placement.label_selector,
        ),
        run_config=RunConfig(
            name="checkpoints",
            storage_path=job.run_uri,
            checkpoint_config=CheckpointConfig(**scoring),
            failure_config=FailureConfig(
                max_failures=job.config.max_failures,
                max_preemption_failures=PREEMPTIONS,
                controller_failure_limit=START_ATTEMPTS - 1,
            ),
            callbacks=[FailAtOnce(setup["mailbox"], job.config.max_failures, _then(placement))],
            logging_config=ray.train.LoggingConfig(log_level="CRITICAL"),
        ),
    )


def _watch(
    trainer: TorchTrainer, mailbox: Any, session: RunSession, placement: Placement
) -> FitEnded:
    """Run the trainer in a thread; this thread hears signals and passes events on."""
    outcome: dict[str, Any] = {}

    def work() -> None:
        try:
            outcome["result"] = trainer.fit()
        except BaseException as error:
            outcome["error"] = error

    thread = threading.Thread(target=work, name="ftray-trainer", daemon=True)
    thread.start()
    nodes = NodeWatch(mailbox, session.say, placement.num_workers)
    try:
        while thread.is_alive():
            thread.join(POLL_S)
            _pass_on(mailbox, session)
            nodes.look()
    except BaseException:
        # the workers must not go on without a driver: this session may outlive the run
        mailbox.drain.remote("the driver was cut off")
        thread.join(WIND_DOWN_S)
        raise
    _pass_on(mailbox, session)
    if "error" in outcome:
        nodes.look(now=True)
        raise _readable(outcome["error"], placement)
    ended: FitEnded = outcome["result"].return_value
    return ended


def _pass_on(mailbox: Any, session: RunSession) -> None:
    """Events from the workers to the record; a stop request the other way."""
    for event in heard(mailbox.drain.remote(session.stop())):
        session.emit(event)


def _readable(error: BaseException, placement: Placement) -> Exception:
    fatal = find_fatal(error)
    if fatal is not None:
        cls = getattr(errors, fatal.kind, RunFailedError) if fatal.kind else RunFailedError
        readable: Exception = cls(fatal.message)
        return readable
    if isinstance(getattr(error, "controller_failure", None), WorkerGroupStartupTimeoutError):
        return RunFailedError(
            f"There was no room for {placement} within {_patience_s():g} s: the Ray cluster has "
            f"{inventory.present()}. What was trained is kept; resume: auto continues, also with "
            f"another num_workers. {START_TIMEOUT} sets how long each of {START_ATTEMPTS} attempts "
            "waits"
        )
    if isinstance(error, Exception):
        return RunFailedError(
            f"The workers were lost: {_told(error).rstrip('.')}. "
            "The last checkpoint is kept; continue with resume: auto"
        )
    return RunFailedError(f"The run was cut off: {type(error).__name__}")


def _told(error: BaseException) -> str:
    """What Ray Train's error is about, in one line."""
    cause = _unwrapped(error)
    lines = [line for line in str(cause).splitlines() if line.strip()]
    if isinstance(cause, ray.exceptions.RayError):  # the indented lines are ids
        return " ".join(line for line in lines if not line[0].isspace()) or type(cause).__name__
    return ": ".join([type(cause).__name__, *lines[:1]])


def _unwrapped(error: BaseException) -> BaseException:
    """The failure inside Ray's wrappings; of several the first that tells of itself.

    Others only tell that they miss a worker.
    """
    if failures := getattr(error, "worker_failures", None):
        causes = [_unwrapped(failure) for failure in failures.values()]
        return min(causes, key=lambda cause: isinstance(cause, LostWorkersError))
    for name in ("controller_failure", "health_check_failure", "_base_exc", "cause"):
        inner = getattr(error, name, None)
        if isinstance(inner, BaseException) and inner is not error:
            return _unwrapped(inner)
    return error
