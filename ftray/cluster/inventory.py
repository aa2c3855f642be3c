"""What the nodes of the connected cluster have, in all and free, and how that reads."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import ray
from ray._private.state import available_resources_per_node

from ftray.words import counted

__all__ = ["ACCELERATOR", "Bundle", "Node", "alive", "described", "free", "present"]
__all__ += ["written"]

ACCELERATOR = "accelerator_type:"
"""How Ray's resource for a kind of GPU begins."""
ROUNDING = 1e-6
NOT_SHOWN = ("CPU", "GPU", "memory", "object_store_memory")
OWN_LABELS = "ray.io/"

Bundle = Mapping[str, float]
"""What one worker, or one actor, reserves on its node, by the names of Ray's resources."""


@dataclass
class Node:
    """What a node has, or what is left of it."""

    ident: str
    resources: dict[str, float]
    labels: Mapping[str, str] = field(default_factory=dict)

    def slots(self, bundle: Bundle) -> int:
        """How many such bundles fit into it."""
        needs = {name: _used(name, amount) for name, amount in bundle.items() if amount}
        fits = [int((self.resources.get(n, 0.0) + ROUNDING) / need) for n, need in needs.items()]
        return min(fits, default=sys.maxsize)

    def take(self, bundle: Bundle) -> None:
        """Leave what remains beside a bundle."""
        for name, amount in bundle.items():
            if amount:
                self.resources[name] = self.resources.get(name, 0.0) - _used(name, amount)

    def matches(self, selector: Mapping[str, str]) -> bool:
        """Whether its labels are as Ray's selector says: `a`, `!a`, `in(a, b)`, `!in(a, b)`."""
        for key, condition in selector.items():
            values = condition.removeprefix("!")
            if values.startswith("in("):
                values = values[len("in(") : -1]
            found = self.labels.get(key) in [value.strip() for value in values.split(",")]
            if found == condition.startswith("!"):
                return False
        return True

    @property
    def accelerators(self) -> list[str]:
        """The kinds of its GPUs."""
        return [n.removeprefix(ACCELERATOR) for n in self.resources if n.startswith(ACCELERATOR)]

    def __str__(self) -> str:
        parts = [_amount("CPU", self.resources.get("CPU", 0.0))]
        if gpus := self.resources.get("GPU"):
            kinds = f" ({', '.join(self.accelerators)})" if self.accelerators else ""
            parts.append(_amount("GPU", gpus) + kinds)
        for name, amount in sorted(self.resources.items()):
            if ":" not in name and "_group_" not in name and name not in NOT_SHOWN:
                parts.append(_amount(name, amount))
        labels = sorted(self.labels.items())
        return ", ".join([*parts, *(f"{k}={v}" for k, v in labels if not k.startswith(OWN_LABELS))])


def _used(name: str, amount: float) -> float:
    """A share of a GPU lies on one GPU: 0.4 of it use up a half, since no third one fits."""
    return amount if name != "GPU" or amount >= 1 else 1 / int(1 / amount + ROUNDING)


def alive() -> list[Node]:
    """The nodes that are alive, with all they have."""
    return [
        Node(n.get("NodeID", ""), dict(n["Resources"]), dict(n.get("Labels") or {}))
        for n in ray.nodes()
        if n["Alive"]
    ]


def free() -> list[Node]:
    """The same with what nobody holds."""
    left = available_resources_per_node()
    return [Node(n.ident, dict(left.get(n.ident, {})), n.labels) for n in alive()]


def written(bundle: Bundle) -> str:
    """As in `2 CPUs and 0.5 GPUs on A100`; "nothing" for an empty one."""
    kinds = [name.removeprefix(ACCELERATOR) for name in bundle if name.startswith(ACCELERATOR)]
    plain = [_amount(n, x) for n, x in bundle.items() if x and not n.startswith(ACCELERATOR)]
    text = " and ".join(plain) or "nothing"
    return f"{text} on {kinds[0]}" if kinds else text


def described(nodes: Sequence[Node]) -> str:
    """What nodes have, alike ones together: `2 nodes with 4 CPUs, 1 GPU (A100), zone=a`."""
    kinds = Counter(map(str, nodes))
    return "; ".join(f"{counted(n, 'node')} with {kind}" for kind, n in kinds.items()) or "no node"


def present() -> str:
    """What the alive nodes have, for messages."""
    return described(alive())


def _amount(name: str, amount: float) -> str:
    if name in ("CPU", "GPU"):
        return f"{amount:g} {name}" if amount == 1 else f"{amount:g} {name}s"
    return f"{amount / 1e9:.3g} GB of memory" if name == "memory" else f"{amount:g} {name}"
