"""What the driver sees of the workers' nodes."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import ray

from ftray.cluster.bridge import heard
from ftray.cluster.nodes import node_name

__all__ = ["NodeWatch"]

LOOK_EVERY_S = 2.0

Say = Callable[[str, str], None]


class NodeWatch:
    """Says on which nodes the workers are, if there are several, and which node was lost.

    A node that is gone is known to Ray before or after its workers are missed: it depends on how it
    went. So this looks by itself.

    Args:
        mailbox: where workers tell their node when they start.
        say: takes a line and its level.
        num_workers: how many there are.
    """

    def __init__(self, mailbox: Any, say: Say, num_workers: int) -> None:
        self._mailbox = mailbox
        self._say = say
        self._num_workers = num_workers
        self._known: dict[int, str] = {}
        self._lost: set[str] = set()
        self._looked = time.monotonic()

    def look(self, *, now: bool = False) -> None:
        """Look every two seconds, or now.

        Raises:
            RunFailedError: if the mailbox is gone.
        """
        if not now and time.monotonic() - self._looked < LOOK_EVERY_S:
            return
        self._looked = time.monotonic()
        where: dict[int, str] = heard(self._mailbox.nodes.remote())
        alive = {node["NodeID"] for node in ray.nodes() if node["Alive"]}
        self._tell_lost(where, alive)
        if where != self._known and len(where) == self._num_workers and alive >= {*where.values()}:
            self._known = where
            self._tell_places(where)

    def _tell_lost(self, where: dict[int, str], alive: set[str]) -> None:
        for node in dict.fromkeys({**self._known, **where}.values()):
            if node not in alive and node not in self._lost:
                self._lost.add(node)
                known = where if node in where.values() else self._known
                self._say(
                    f"The node {node_name(node)} was lost, and {_ranks(known, node)}", "WARNING"
                )

    def _tell_places(self, where: dict[int, str]) -> None:
        nodes = dict.fromkeys(where[rank] for rank in sorted(where))
        if len(nodes) > 1:
            parts = [f"{_ranks(where, node)} on {node_name(node)}" for node in nodes]
            self._say(f"Workers: {'; '.join(parts)}", "INFO")


def _ranks(where: dict[int, str], node: str) -> str:
    ranks = sorted(rank for rank, place in where.items() if place == node)
    return f"{'rank' if len(ranks) == 1 else 'ranks'} {', '.join(map(str, ranks))}"
