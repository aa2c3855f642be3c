"""Where workers and actors find room on the connected cluster."""

from __future__ import annotations

import copy
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

from ray._private.label_utils import validate_label_selector

from ftray.cluster import inventory
from ftray.cluster.inventory import ACCELERATOR, Bundle, Node, described, written
from ftray.config import FitConfig
from ftray.errors import ClusterError, ConfigError, nearest
from ftray.words import counted

__all__ = ["FREE_TIMEOUT_S", "Placement", "free_slots", "no_room_beside", "place", "spots"]
__all__ += ["worker_bundle"]

FREE_TIMEOUT_S = 10.0
A_LITTLE = 0.001
"""How much of an accelerator type's resource Ray has a worker take: it only chooses the node."""


@dataclass(frozen=True, kw_only=True)
class Placement:
    """What the workers of a fit get.

    Attributes:
        num_workers: how many there are.
        use_gpu: whether they train on GPUs, with NCCL between them; else with gloo.
        bundle: what each reserves on its node.
        label_selector: of the nodes, or None.
    """

    num_workers: int
    use_gpu: bool
    bundle: dict[str, float]
    label_selector: dict[str, str] | None = None

    def __str__(self) -> str:
        each = " each" if self.num_workers > 1 else ""
        return f"{counted(self.num_workers, 'worker')} with {written(self.bundle)}{each}"


# ---------------------------------------------------------------- the workers of a fit


def place(config: FitConfig, overlapped: int = 0) -> Placement:
    """How many workers, and what each gets, on the connected cluster.

    What `resources_per_worker` does not name is found: a GPU for each worker where there are any,
    and as many CPUs as can be given to all of them, since Ray sets the number of threads to the
    CPUs reserved. What `resources_per_evaluator` reserves is left free.

    Args:
        config: of the fit.
        overlapped: how many evaluations overlap training.

    Raises:
        ClusterError: if the cluster has not what was asked for, saying what it has.
        ConfigError: for a label selector that is none, or shares of GPUs that cannot work.
    """
    _check_selector(config)
    nodes = _allowed(config, inventory.alive())
    if not nodes:
        raise ClusterError(_nowhere(config))
    if config.device == "cuda" and not any(node.resources.get("GPU") for node in nodes):
        raise ClusterError(
            f"device = 'cuda', but the Ray cluster has no GPU{_there(config)}. Try device: auto"
        )
    bundle = worker_bundle(config)
    share = bundle.get("GPU", 0.0)
    selector = dict(config.label_selector) if config.label_selector else None
    one = Placement(num_workers=1, use_gpu=share > 0, bundle=bundle, label_selector=selector)
    asked = config.resources_per_evaluator or {}
    evaluators = [asked] * overlapped if any(asked.values()) else []
    if config.num_workers != "auto":
        workers = config.num_workers
    else:  # on shares of GPUs one, as on CPUs
        workers = _most_workers(one, evaluators) if share >= 1 else 1
    if workers > 1 and 0 < share <= 0.5:
        raise ConfigError(
            f"resources_per_worker.GPU = {share:g} with num_workers = {workers}: two workers would "
            "share a GPU, which NCCL refuses. Give more than half a GPU, or num_workers: 1"
        )
    return _with_room(config, replace(one, num_workers=workers), evaluators)


def worker_bundle(config: FitConfig) -> dict[str, float]:
    """The least that a worker of this fit reserves: one CPU where nothing is said of CPUs."""
    bundle: dict[str, float] = {"CPU": 1.0, **(config.resources_per_worker or {})}
    if config.device == "cpu":
        bundle["GPU"] = 0.0
    elif "GPU" not in bundle:
        nodes = _allowed(config, inventory.alive())
        bundle["GPU"] = float(
            config.device == "cuda" or any(node.resources.get("GPU") for node in nodes)
        )
    if config.accelerator_type:
        bundle[ACCELERATOR + config.accelerator_type] = A_LITTLE
    return {name: float(amount) for name, amount in bundle.items() if amount}


def _most_workers(one: Placement, evaluators: Sequence[Bundle]) -> int:
    """How many such workers there is room for beside the evaluators; 1 if for none."""
    nodes = inventory.alive()
    counts = range(_room(one, nodes), 0, -1)
    return next((n for n in counts if _fit(replace(one, num_workers=n), evaluators, nodes)), 1)


def _with_room(config: FitConfig, wanted: Placement, evaluators: Sequence[Bundle]) -> Placement:
    """The placement with as many CPUs as there are for each worker beside the evaluators.

    What others hold does not count, but what is just being given back (by a run that ended a
    moment ago) is waited for.

    Raises:
        ClusterError: if there is no room.
    """

    def now() -> Placement | None:
        return _most(config, wanted, evaluators, inventory.free())

    nodes = inventory.alive()
    every = _most(config, wanted, evaluators, nodes)
    if every is None and _fit(wanted, (), nodes):
        raise ClusterError(no_room_beside(wanted, evaluators[0]))
    if every is None:
        raise ClusterError(_too_few(config, wanted, _allowed(config, nodes)))
    deadline = time.monotonic() + FREE_TIMEOUT_S
    while (found := now()) != every and time.monotonic() < deadline:
        time.sleep(0.25)
    if found is not None:
        return found
    raise ClusterError(
        f"num_workers = {_with_each(wanted)}: the Ray cluster is large enough, but "
        f"others hold it now. Free: {described(_allowed(config, inventory.free()))}"
    )


def _most(
    config: FitConfig, wanted: Placement, evaluators: Sequence[Bundle], nodes: Sequence[Node]
) -> Placement | None:
    """The placement with the most CPUs for each worker; None if it does not fit."""
    if "CPU" in (config.resources_per_worker or {}):
        return wanted if _fit(wanted, evaluators, nodes) else None
    largest = int(max((node.resources.get("CPU", 0.0) for node in nodes), default=0))
    for cpus in range(largest, 0, -1):
        workers = replace(wanted, bundle={**wanted.bundle, "CPU": float(cpus)})
        if _fit(workers, evaluators, nodes):
            return workers
    return None


def _fit(workers: Placement, evaluators: Sequence[Bundle], nodes: Sequence[Node]) -> bool:
    """Whether the nodes have room for all of them."""
    left = copy.deepcopy(nodes)
    return _room(workers, left) >= workers.num_workers and None not in _put_beside(
        workers, evaluators, left
    )


def _room(workers: Placement, nodes: Sequence[Node]) -> int:
    """How many workers like these the nodes have room for."""
    there = [node for node in nodes if node.matches(workers.label_selector or {})]
    return sum(node.slots(workers.bundle) for node in there)


def _put_beside(
    workers: Placement, bundles: Sequence[Bundle], nodes: Sequence[Node]
) -> list[Node | None]:
    """Take each bundle from the first node where the workers still find room afterwards.

    Returns:
        The node of each bundle; None where there is none.
    """
    found: list[Node | None] = []
    for bundle in bundles:
        found.append(None)
        for node in nodes:
            if not node.slots(bundle):
                continue
            before = dict(node.resources)
            node.take(bundle)
            if _room(workers, nodes) >= workers.num_workers:
                found[-1] = node
                break
            node.resources = before
    return found


def _allowed(config: FitConfig, nodes: Sequence[Node]) -> list[Node]:
    """The nodes that labels and accelerator type leave."""
    kind = config.accelerator_type
    return [
        node
        for node in nodes
        if node.matches(config.label_selector or {}) and (not kind or kind in node.accelerators)
    ]


def _check_selector(config: FitConfig) -> None:
    wrong = validate_label_selector(config.label_selector)
    if wrong:
        raise ConfigError(f"label_selector = {config.label_selector}: {wrong}")


# ---------------------------------------------------------------- what else finds room


def free_slots(bundles: Sequence[Bundle], config: FitConfig | None = None) -> int:
    """How many copies of a group of bundles fit at once into what the alive nodes have in all.

    Args:
        bundles: each lies on one node; those of a group may lie on several.
        config: with the labels and the accelerator type of the nodes that count.

    Returns:
        The number when each bundle goes to the first node with room, the largest bundles first: the
        most there can be where all bundles are equal.
    """
    ordered = sorted((b for b in bundles if any(b.values())), key=_size, reverse=True)
    if not ordered:
        return sys.maxsize
    alive, count = inventory.alive(), 0
    nodes = alive if config is None else _allowed(config, alive)
    while all(_put(nodes, bundle) is not None for bundle in ordered):
        count += 1
    return count


def spots(bundles: Sequence[Bundle], beside: Placement) -> list[str | None]:
    """Nodes with room for actors beside the workers of a fit, as it is now.

    Args:
        bundles: of the actors.
        beside: the workers, which are not placed yet.

    Returns:
        The id of a node for each bundle; None where there is no room for it.
    """
    found = _put_beside(beside, bundles, inventory.free())
    return [node.ident if node else None for node in found]


def _put(nodes: Sequence[Node], bundle: Bundle) -> Node | None:
    """Take a bundle from the first node with room for it."""
    for node in nodes:
        if node.slots(bundle):
            node.take(bundle)
            return node
    return None


def _size(bundle: Bundle) -> tuple[float, float]:
    return bundle.get("GPU", 0.0), bundle.get("CPU", 0.0)


# ---------------------------------------------------------------- words


def _nowhere(config: FitConfig) -> str:
    """Why labels and accelerator type leave no node."""
    nodes = inventory.alive()
    kinds = sorted({kind for node in nodes for kind in node.accelerators})
    kind = config.accelerator_type
    if kind and kind not in kinds:
        there = nearest(kind, kinds) if kinds else f" It has {described(nodes)}"
        return f"accelerator_type = '{kind}': no node of the Ray cluster has it.{there}"
    return f"The Ray cluster has no node{_there(config)}. It has {described(nodes)}"


def _too_few(config: FitConfig, wanted: Placement, nodes: Sequence[Node]) -> str:
    room = sum(node.slots(wanted.bundle) for node in nodes)
    advice = f"Give num_workers: {room}" if room else "Ask for less"
    if not room and not config.resources_per_worker:
        advice = "num_workers: 0 trains in this process"
    if room and wanted.use_gpu and not config.resources_per_worker:
        advice += ", or device: cpu"
    return (
        f"num_workers = {_with_each(wanted)}: the Ray cluster has room for {room}"
        f"{_there(config)}. It has {described(nodes)}. {advice}"
    )


def no_room_beside(workers: Placement, bundle: Bundle) -> str:
    """Why evaluations that reserve this are refused."""
    return (
        f"resources_per_evaluator: each evaluation with overlap reserves {written(bundle)}, for "
        f"which there is no room beside {workers}: the Ray cluster has {inventory.present()}. Give "
        "less in resources_per_evaluator or resources_per_worker, fewer num_workers, or leave "
        "overlap away"
    )


def _with_each(wanted: Placement) -> str:
    return f"{wanted.num_workers}, each with {written(wanted.bundle)}"


def _there(config: FitConfig) -> str:
    """Which nodes are meant, where not all are."""
    names = ("label_selector", "accelerator_type")
    chosen = [f"{name} = {value!r}" for name in names if (value := getattr(config, name))]
    return f" on nodes with {' and '.join(chosen)}" if chosen else ""
