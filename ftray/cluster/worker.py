"""What runs inside a Ray Train worker: the loop, with Ray as its runtime."""

from __future__ import annotations

import gc
import logging
import platform
import traceback
from collections.abc import Mapping, Sequence
from typing import Any

import ray
import ray.train
import ray.train.torch
import torch
from ray.train.v2._internal.execution import context as reports

from ftray.cluster.actors import ActorScorer, load_scorers
from ftray.cluster.bridge import Sender
from ftray.cluster.evaluators import ActorEvaluator
from ftray.cluster.failures import as_fatal
from ftray.cluster.nodes import naming_node, node_here, node_name
from ftray.cluster.weights import job_here
from ftray.collector import collector_paused
from ftray.errors import FtrayError, StorageError
from ftray.events import Event, Log
from ftray.record.storage import Storage
from ftray.runtime.base import Collectives
from ftray.runtime.process_group import (
    LostWorkersError,
    ProcessGroupCollectives,
    SingleProcess,
)
from ftray.training.job import Job
from ftray.training.loop import Loop
from ftray.words import counted

__all__ = ["RayRuntime", "train_worker"]


class RayRuntime:
    """The runtime of one Ray Train worker.

    Args:
        sender: the way to the driver.
        scorers: handles of the evaluation actors.
        shards: handles of the actors that hold an evaluation's index, by its number.
        evaluator: the way to those that evaluate while training goes on.
    """

    def __init__(
        self,
        sender: Sender,
        scorers: Sequence[Any],
        shards: Mapping[int, Sequence[Any]],
        evaluator: ActorEvaluator,
    ) -> None:
        context = ray.train.get_context()
        self.rank = context.get_world_rank()
        self.world_size = context.get_world_size()
        self.device: torch.device = ray.train.torch.get_device()
        single = self.world_size == 1
        between = "" if single else f" ({torch.distributed.get_backend()})"
        self.where = f"on {counted(self.world_size, 'Ray worker')}{between}"
        group: Collectives = (
            SingleProcess(self.device) if single else ProcessGroupCollectives(self.device)
        )
        self.all_reduce_sum = group.all_reduce_sum
        self.all_gather = group.all_gather
        self.broadcast = group.broadcast
        self.barrier = group.barrier
        self._sender = sender
        self._scorers = [
            ActorScorer(actor, shards.get(number, ())) for number, actor in enumerate(scorers)
        ]
        self.evaluator = evaluator

    def emit(self, event: Event) -> None:
        """Send an event towards the driver; never waits."""
        self._sender.send(event)

    def stop_requested(self) -> str | None:
        """Why the driver wants the run to stop, or None."""
        return self._sender.stop_requested()

    def scorer(self, number: int) -> ActorScorer:
        """The scorer actor of one evaluation."""
        return self._scorers[number]

    def commit(self, path: str, metrics: dict[str, float]) -> None:
        """Report a checkpoint that is already in the run directory to Ray Train."""
        mode = ray.train.CheckpointUploadMode.NO_UPLOAD
        storage = ray.train.get_context().get_storage()
        checkpoint = None
        if self.rank == 0:
            name = path.rsplit("/", 1)[-1]
            checkpoint = ray.train.Checkpoint(
                f"{storage.experiment_fs_path}/{name}", storage.storage_filesystem
            )
        ray.train.report(metrics, checkpoint=checkpoint, checkpoint_upload_mode=mode)


def _check_storage(run_uri: str) -> None:
    if not Storage(run_uri).exists("run.yaml"):
        raise StorageError(
            f"The node {platform.node()} cannot see the run directory {run_uri}. On several nodes "
            "storage_path must be a folder that all of them share, or a URI such as s3://bucket/runs"
        )


def _read_job(reference: Any) -> Job:
    """The job from the object store.

    Raises:
        LostWorkersError: if it is not there any more.
        Exception: what came up while it was unpickled, such as a module that this node lacks.
    """
    try:
        job: Job = ray.get(reference)
    except ray.exceptions.RayError as error:
        cause = getattr(error, "client_exc", None)
        if isinstance(cause, Exception):
            raise cause from None
        raise LostWorkersError(f"The run's job cannot be read: {error}") from error
    return job


def train_worker(setup: dict[str, Any]) -> Any:
    """The function that Ray Train runs on every worker; rank 0's `FitEnded` is the result."""
    logging.getLogger(reports.__file__).setLevel(logging.WARNING)  # our record says it better
    sender = Sender(setup["mailbox"])
    setup["mailbox"].arrived.remote(ray.train.get_context().get_world_rank(), node_here())
    try:
        given = _read_job(setup["job"])
        evaluator = ActorEvaluator(setup["evaluators"], setup["job"], setup["model"])
        runtime = RayRuntime(sender, setup["scorers"], setup["shards"], evaluator)
        _check_storage(given.run_uri)
        if runtime.rank == 0:
            load_scorers(setup["scorers"], setup["job"], setup["shards"])
        with job_here(given, setup["model"]) as job, naming_node(setup["driver"]):
            with collector_paused():
                loop = Loop(job, runtime)
            gc.freeze()  # this process holds what was imported for as long as it lives
            return loop.run()
    except LostWorkersError as error:
        sender.send(Log(level="WARNING", message=str(error)))
        raise
    except Exception as error:
        if not isinstance(error, FtrayError) or error.__cause__ is not None:
            sender.send(Log(level="TRACE", message=traceback.format_exc()))
        raise as_fatal(error, node_name(node_here())) from error
    finally:
        sender.close()
