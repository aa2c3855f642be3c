"""Encoders as Ray actors: the batches of `ftray.encode` dealt over a cluster."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from typing import Any

import numpy as np
import numpy.typing as npt
import ray

from ftray.cluster import inventory
from ftray.cluster.answers import answers_of
from ftray.cluster.connect import connected
from ftray.cluster.inventory import Bundle, Node
from ftray.errors import ClusterError
from ftray.evaluation.encoders import AHEAD, Answer, DealtEncoders, packed_encoder
from ftray.media import Content
from ftray.models.base import Encoder
from ftray.runtime.process_group import LostWorkersError

__all__ = ["Actors", "share_of"]

START_TIMEOUT_S = 300.0
"""Within this time every actor must have been placed and have its model."""
BATCH_TIMEOUT_S = 1200.0
"""For some batch of those under way."""
FETCH_TIMEOUT_S = 120.0
"""For the vectors of one that is done, from another node."""
WHO = "An actor that encodes"

Task = tuple[int, str, list[Content]]


class EncoderActor:
    """A model as an actor.

    Args:
        packed: the model, pickled.
        threads: how many it may use.
    """

    def __init__(self, packed: bytes, threads: int) -> None:
        import pickle

        import torch

        from ftray.models.onednn import use_onednn

        torch.set_num_threads(threads)
        device = "cuda" if ray.get_gpu_ids() and torch.cuda.is_available() else "cpu"
        self._encoder = pickle.loads(packed).to(device)
        use_onednn(self._encoder)

    def ready(self) -> None:
        """Answered when the model is there."""

    def encode(self, role: str, items: list[Content]) -> npt.NDArray[np.float32]:
        """The vectors of a batch, `(n, D)`."""
        from ftray.evaluation.encode import encode_texts

        return encode_texts(self._encoder, items, role=role, batch_size=len(items))


def share_of(nodes: Sequence[Node], count: int) -> Bundle:
    """What each of `count` actors reserves: a GPU, where there are as many, else CPUs.

    Args:
        nodes: what the cluster has.
        count: how many actors.

    Returns:
        One GPU; or the most CPUs, whole ones, with which all actors find room.

    Raises:
        ClusterError: if there is not even one CPU for each.
    """
    gpu = {"CPU": 0.0, "GPU": 1.0}
    if sum(node.slots(gpu) for node in nodes) >= count:
        return gpu
    largest = int(max((node.resources.get("CPU", 0.0) for node in nodes), default=0))
    for cpus in range(largest, 0, -1):
        bundle = {"CPU": float(cpus)}
        if sum(node.slots(bundle) for node in nodes) >= count:
            return bundle
    raise ClusterError(
        f"num_workers = {count}, each with a CPU: the Ray cluster has {inventory.described(nodes)}"
    )


class Actors(DealtEncoders):
    """Actors of the Ray cluster; the model reaches them through the object store.

    Args:
        encoder: the model.
        count: how many actors.

    Raises:
        ClusterError: if the cluster cannot be reached, has no room, or others hold it.
        ModelError: if the model cannot be sent.
    """

    def __init__(self, encoder: Encoder, count: int) -> None:
        super().__init__(encoder)
        packed = packed_encoder(encoder)
        with ExitStack() as stack:
            stack.enter_context(connected())
            share = share_of(inventory.alive(), count)
            cpus, gpus = share.get("CPU", 0.0), share.get("GPU", 0.0)
            actor = ray.remote(EncoderActor).options(num_cpus=cpus, num_gpus=gpus)
            model = ray.put(packed)
            self._actors = [actor.remote(model, max(1, int(cpus))) for _ in range(count)]
            stack.callback(self._end)
            self._wait(share)
            self._stack = stack.pop_all()

    def _wait(self, share: Bundle) -> None:
        calls = [actor.ready.remote() for actor in self._actors]
        try:
            answers_of(calls, timeout_s=START_TIMEOUT_S, who=WHO)
        except LostWorkersError as error:
            raise ClusterError(
                f"num_workers = {len(calls)}, each with {inventory.written(share)}: {error}. Free: "
                f"{inventory.described(inventory.free())}"
            ) from error

    def _answers(self, work: Iterator[Task]) -> Iterator[Answer]:
        """See `DealtEncoders`."""
        waiting: dict[Any, tuple[int, Any]] = {}

        def deal(actor: Any) -> None:
            if (task := next(work, None)) is not None:
                number, role, items = task
                waiting[actor.encode.remote(role, items)] = number, actor

        for _ in range(AHEAD):
            for actor in self._actors:
                deal(actor)
        while waiting:
            done, pending = ray.wait(list(waiting), timeout=BATCH_TIMEOUT_S)
            first = (done or pending)[0]
            try:
                vectors = answers_of(first, timeout_s=FETCH_TIMEOUT_S, who=WHO)
            except LostWorkersError as error:
                raise ClusterError(f"num_workers = {len(self._actors)}: {error}") from error
            number, actor = waiting.pop(first)
            deal(actor)
            yield number, vectors

    def _end(self) -> None:
        for actor in self._actors:
            ray.kill(actor)

    def close(self) -> None:
        """End the actors, and what was started of Ray."""
        self._stack.close()
