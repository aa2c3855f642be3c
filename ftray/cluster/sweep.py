"""The trials of a sweep on Ray Tune: as many at a time as find room, each in a process of its own.

A trial with `num_workers: 0` trains in that process. Others drive their Ray Train workers from it;
it needs no CPU then.
"""

from __future__ import annotations

import logging
import os
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import ray
from ray import tune
from ray.tune.search import Searcher

from ftray.cluster.connect import connected
from ftray.cluster.placement import free_slots, place, worker_bundle
from ftray.cluster.stoppers import as_stopper
from ftray.cluster.tune_options import make_scheduler, make_searcher
from ftray.cluster.tuning import (
    ROW,
    VALUES,
    Asking,
    Report,
    Reporter,
    Suggestions,
    Supervisor,
    number_of,
    trial_name_of,
)
from ftray.cluster.weights import SharedModel, job_here, share_model
from ftray.config import FitConfig
from ftray.errors import ClusterError
from ftray.sweeps.config import SweepConfig
from ftray.sweeps.record import SweepState

__all__ = ["TrialFunction", "Tuning", "prepare_tuning"]

HANDED_ON = 4
"""States of each trial that PBT keeps at hand: another may just be taking the one before."""
QUIET = {
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # we keep the record
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
    "TUNE_GLOBAL_CHECKPOINT_S": "1000000",  # a sweep goes on from its own record
    "RAY_AIR_NEW_OUTPUT": "0",  # it prints at verbose=0
}


class TrialFunction(Protocol):
    """Runs one trial; cloudpickled to where it runs."""

    def __call__(
        self,
        number: int,
        values: Mapping[str, Any],
        shared: Any,
        report: Report,
        handed: Path | None,
    ) -> None:
        """Train.

        Args:
            number: of the trial.
            values: what it varies.
            shared: what all trials share.
            report: takes the metrics of an epoch, and under PBT a folder to hand on.
            handed: the folder that another trial handed on, under PBT.
        """


@dataclass(frozen=True, kw_only=True)
class Tuning:
    """A sweep that is ready to run.

    Attributes:
        sweep: what is asked for.
        metric, mode: what is better, as resolved.
        config: of a trial; what it needs is what all need.
        scheduler, searcher, stoppers: as the options say.
        count: the most trials there can be.
    """

    sweep: SweepConfig
    metric: str
    mode: str
    config: FitConfig
    scheduler: Any
    searcher: Searcher | None
    stoppers: Sequence[Any]
    count: int

    def run(self, train: TrialFunction, shared: Any, supervisor: Supervisor, folder: str) -> None:
        """Run trials until there are none left, or the supervisor ends the sweep.

        Args:
            train: runs one.
            shared: the job whose model and data they share, or None; it goes to the object store
                once.
            supervisor: says what is tried, and hears of everything.
            folder: where Tune keeps what trials hand on; nobody needs it afterwards.

        Raises:
            ClusterError: if there is no cluster, or no room for a trial.
        """

        def trial(config: dict[str, Any], kept: Any = None) -> None:
            _run_trial(config, kept[0], kept[1])

        with _quiet(), connected():
            pbt = self.sweep.scheduler == "pbt"
            model = None if shared is None else share_model(shared)
            room = room_for(self.sweep, self.config)
            function = tune.with_parameters(trial, kept=[ray.put((train, shared)), model])
            asking = Asking(
                self.sweep.scheduler,
                self.config.epochs,
                self.scheduler,
                self.stoppers,
                supervisor,
            )
            tuner = tune.Tuner(
                tune.with_resources(function, room.resources),
                tune_config=tune.TuneConfig(
                    metric=self.metric,
                    mode=self.mode,
                    num_samples=self.count,
                    max_concurrent_trials=None if pbt else room.at_once,  # it needs all to wait
                    search_alg=Suggestions(supervisor, self.searcher),
                    scheduler=asking,
                    trial_name_creator=trial_name_of,
                    trial_dirname_creator=trial_name_of,
                    reuse_actors=True,  # it takes seconds to import torch
                ),
                run_config=tune.RunConfig(
                    name="tune",
                    storage_path=folder,
                    verbose=0,
                    progress_reporter=tune.CLIReporter(),  # another clears notebook cells
                    callbacks=[Reporter(supervisor, asking)],
                    failure_config=tune.FailureConfig(max_failures=self.sweep.max_failures),
                    checkpoint_config=tune.CheckpointConfig(num_to_keep=HANDED_ON),
                ),
            )
            tuner.fit()


def prepare_tuning(
    sweep: SweepConfig, state: SweepState, config: FitConfig, keys: Iterable[str], trials: int
) -> Tuning:
    """Make the objects of Tune, so that wrong options are found before anything is written.

    Args:
        sweep: what is asked for.
        state: with the metric and the mode as resolved, and the trials that there are.
        config: of a trial.
        keys: of all metrics that runs will have.
        trials: how many there will be; with Optuna as many as are asked for.

    Raises:
        ConfigError: for options that a scheduler, a stopper or Optuna refuses.
    """
    optuna = sweep.search == "optuna"
    return Tuning(
        sweep=sweep,
        metric=state.metric,
        mode=state.mode,
        config=config,
        scheduler=make_scheduler(sweep),
        searcher=make_searcher(sweep, state) if optuna else None,
        stoppers=[as_stopper(each, keys, config.model) for each in sweep.stop],
        count=sweep.num_samples if optuna else trials,
    )


# ---------------------------------------------------------------- room


@dataclass(frozen=True, kw_only=True)
class Room:
    """What a trial's process reserves, and how many trials run at a time."""

    resources: dict[str, float]
    at_once: int


def room_for(sweep: SweepConfig, config: FitConfig) -> Room:
    """The room for trials in the connected cluster.

    Args:
        sweep: what is asked for.
        config: of a trial.

    Raises:
        ClusterError: if there is none for a single one.
    """
    if config.num_workers == 0:
        resources = dict(sweep.resources_per_trial or _one_process(config))
        bundles = [resources]
    else:
        resources = {"node:__internal_head__": 0.001}  # it only drives its workers
        workers = config.num_workers
        count = place(config).num_workers if workers == "auto" else workers
        bundles = [worker_bundle(config)] * count
    slots = free_slots(bundles, config)
    if not slots:
        raise ClusterError(
            f"A trial needs {bundles}, for which the Ray cluster has no room: it has "
            f"{ray.cluster_resources()}"
        )
    wanted = sweep.max_concurrent_trials
    return Room(resources=resources, at_once=slots if wanted == "auto" else min(slots, wanted))


def _one_process(config: FitConfig) -> dict[str, float]:
    has_gpu = config.device != "cpu" and ray.cluster_resources().get("GPU", 0) > 0
    return {"CPU": 1.0, **({"GPU": 1.0} if has_gpu else {})}


@contextmanager
def _quiet() -> Iterator[None]:
    before = {name: os.environ.get(name) for name in QUIET}
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    loggers = [logging.getLogger(name) for name in ("ray.tune", "ray.train")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
        for name, old in before.items():
            if old is None:
                os.environ.pop(name, None)


# ---------------------------------------------------------------- in the trial's process


def _run_trial(config: dict[str, Any], kept: Any, model: SharedModel | None) -> None:
    """What Tune runs."""
    # Tune waits so long for a trial that it paused to close its run, before it uses the process
    os.environ["TUNE_FUNCTION_THREAD_TIMEOUT_S"] = "60"
    for name in ("ray.train", "ray.tune"):
        logging.getLogger(name).setLevel(logging.ERROR)
    context = tune.get_context()
    handed = tune.get_checkpoint()

    def report(row: dict[str, float], to_hand_on: Path | None) -> None:
        checkpoint = None if to_hand_on is None else tune.Checkpoint(str(to_hand_on))
        try:
            tune.report({**row, ROW: row}, checkpoint=checkpoint)
        except SystemExit:  # Tune paused the trial; the run is closed as after Ctrl-C
            raise KeyboardInterrupt from None

    assert context is not None
    train, shared = ray.get(kept)
    try:
        with (
            tempfile.TemporaryDirectory(prefix="ftray-") as place,
            job_here(shared, model) as job,
        ):
            folder = None
            if handed is not None:
                folder = Path(handed.to_directory(f"{place}/handed"))
            number = number_of(context.get_trial_name())
            train(number, config[VALUES], job, report, folder)
    except KeyboardInterrupt:
        sys.exit(0)
