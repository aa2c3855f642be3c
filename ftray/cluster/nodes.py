"""Where actors are placed. It imports little, for the actors that need little."""

from __future__ import annotations

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

__all__ = ["drivers_node"]


def drivers_node(*, soft: bool) -> NodeAffinitySchedulingStrategy:
    """Placement on the node of the driver: if it is lost, so is the run's driver."""
    return NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=soft)
