"""Ray actors that each hold a shard of an evaluation's index.

It imports little (no torch), for the sake of these actors; who asks them is
`ftray.cluster.sharded`.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from typing import Any

import faiss
import numpy as np
import numpy.typing as npt
import ray

from ftray.cluster.nodes import on_node, roomy_nodes
from ftray.evaluation.sharded import Part, Shard
from ftray.evaluation.spec import EvaluationSpec, RetrievalSpec

__all__ = ["shard_counts", "start_actors", "start_shards"]

RESTARTS = 2
ASSUMED_DIM = 1024
BYTES_PER_VECTOR = 2 * 4 * ASSUMED_DIM  # as they arrive, and in the index
SHARE_OF_NODE = 0.25

Floats = npt.NDArray[np.float32]
Numbers = npt.NDArray[np.int64]


class ShardActor:
    """A `Shard` as an actor: empty until `load`, which every attempt of a run calls again.

    Args:
        neighbours: how many shards share the cores of its node, this one included.
    """

    def __init__(self, neighbours: int) -> None:
        # Ray gives an actor without CPUs one thread; the workers wait while it searches
        faiss.omp_set_num_threads(max(1, len(os.sched_getaffinity(0)) // neighbours))
        self._shard: Shard | None = None

    @ray.method(max_task_retries=-1)  # type: ignore[untyped-decorator]
    def load(self, part: Part) -> None:
        """Begin anew with this part of an index; tried until the actor is there, or dead for good.

        Who asks waits for so long as it likes.
        """
        self._shard = Shard(part)

    def add(self, side: str, batch: int, vectors: Floats) -> None:
        """See `Collector.add`."""
        self._loaded().add(side, batch, vectors)

    def build(self) -> None:
        """See `Shard.build`."""
        self._loaded().build()

    def queries(self, numbers: Numbers) -> Floats:
        """See `Shard.queries`."""
        return self._loaded().queries(numbers)

    def search(self, queries: Floats, numbers: Numbers) -> tuple[Floats, Numbers]:
        """See `Shard.search`."""
        return self._loaded().search(queries, numbers)

    def forget(self) -> None:
        """See `Shard.forget`."""
        self._loaded().forget()

    def _loaded(self) -> Shard:
        if self._shard is None:
            raise RuntimeError("it was restarted and has no data")
        return self._shard


def shard_counts(
    asked: int | str, evaluations: Sequence[EvaluationSpec], nodes: Sequence[Mapping[str, Any]]
) -> dict[int, int]:
    """How many shards each evaluation has, by its number; those with one are left out.

    `auto` is one shard, unless the index would take more than a quarter of the memory that Ray
    counts on the smallest node. The width of the embeddings is not known before a worker has
    loaded the model: 1,024 numbers are assumed, held twice while the index is built. It is never
    more than a shard for each node, and one for an evaluation that overlaps training or quantises.

    Args:
        asked: the option `index_shards`.
        evaluations: of the job.
        nodes: where shards may be, as `ray.nodes()` lists them.
    """
    memory = [node["Resources"]["memory"] for node in nodes if node["Resources"].get("memory")]
    counts = {}
    for number, spec in enumerate(evaluations):
        if not isinstance(spec, RetrievalSpec):
            continue
        count = 1
        if asked != "auto":
            count = int(asked)
        elif memory and not (spec.overlap or spec.quantize):
            needed = len(spec.data.document_ids) * BYTES_PER_VECTOR
            count = min(math.ceil(needed / (SHARE_OF_NODE * min(memory))), len(nodes))
        if count > 1:
            counts[number] = count
    return counts


def start_shards(asked: int | str, evaluations: Sequence[EvaluationSpec]) -> dict[int, list[Any]]:
    """The shard actors of each evaluation whose index is sharded, by its number.

    Arguments as in `shard_counts`.
    """
    counts = shard_counts(asked, evaluations, roomy_nodes())
    return {number: start_actors(count) for number, count in counts.items()}


def start_actors(count: int) -> list[Any]:
    """Shard actors, dealt to the nodes in turns.

    They cost no CPU to place, so they never wait for one that a worker holds.
    """
    nodes = [node["NodeID"] for node in roomy_nodes()]
    actors = []
    for number in range(count):
        place = number % len(nodes)
        neighbours = len(range(place, count, len(nodes)))
        actor = ray.remote(ShardActor).options(
            num_cpus=0, max_restarts=RESTARTS, **on_node(nodes[place])
        )
        actors.append(actor.remote(neighbours))
    return actors
