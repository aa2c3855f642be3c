"""Where actors are placed. It imports little, for the actors that need little."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from ftray.errors import DataError

__all__ = ["drivers_node", "naming_node", "node_here", "node_name", "on_node"]
__all__ += ["roomy_nodes"]

NODE_LABEL = "ray.io/node-id"
"""Ray gives it to every node."""


def node_here() -> str:
    """The id of the node of this process."""
    ident: str = ray.get_runtime_context().get_node_id()
    return ident


def node_name(ident: str) -> str:
    """A node as people see it: its host, and the begin of its id, for two on one machine."""
    host = next((n["NodeManagerHostname"] for n in ray.nodes() if n["NodeID"] == ident), "a node")
    return f"{host} ({ident[:8]})"


@contextmanager
def naming_node(driver: str) -> Iterator[None]:
    """Errors about data say on which node they were, where it is not the driver's.

    The driver has read the data; what another node cannot read are files that it does not see.

    Args:
        driver: id of the driver's node.
    """
    try:
        yield
    except DataError as error:
        if node_here() == driver:
            raise
        raise DataError(
            f"On the node {node_name(node_here())}: {error}. Every node must see the files that "
            "the data names; csv_options.convert_to_blob: true has the driver read them once, at "
            "the start"
        ) from None


def drivers_node() -> NodeAffinitySchedulingStrategy:
    """Placement on the node of the driver: if it is lost, so is the run's driver."""
    return NodeAffinitySchedulingStrategy(node_here(), soft=False)


def on_node(ident: str) -> dict[str, Any]:
    """Options of an actor that is to be on a node, and on any other once that one is gone.

    Ray 2.60 takes neither `NodeAffinitySchedulingStrategy(soft=True)` nor SPREAD at its word for
    actors without CPUs: it piles them up. Labels place them as they say.
    """
    any_node: dict[str, str] = {}
    return {
        "label_selector": {NODE_LABEL: ident},
        "fallback_strategy": [{"label_selector": any_node}],
    }


def roomy_nodes() -> list[dict[str, Any]]:
    """The nodes for what needs memory, as `ray.nodes()` lists them, in a fixed order.

    A node without CPUs, as the head of a cluster often is, is spared if there are others.
    """
    alive = sorted((n for n in ray.nodes() if n["Alive"]), key=lambda node: str(node["NodeID"]))
    return [node for node in alive if node["Resources"].get("CPU")] or alive
