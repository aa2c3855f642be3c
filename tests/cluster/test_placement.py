"""Where workers, actors and trials find room, on clusters of every kind that are not there."""

from __future__ import annotations

import copy
import sys
from typing import Any

import pytest

from ftray.cluster import inventory, placement
from ftray.cluster.inventory import Node
from ftray.cluster.placement import free_slots, place, spots, worker_bundle
from ftray.config import FitConfig, validated
from ftray.errors import ClusterError, ConfigError

CPU_NODE = Node("c", {"CPU": 4.0, "memory": 8e9, "node:1.2.3.4": 1.0}, {"zone": "a"})
A100S = Node("a", {"CPU": 8.0, "GPU": 4.0, "accelerator_type:A100": 1.0}, {"zone": "a"})
T4 = Node("t", {"CPU": 4.0, "GPU": 1.0, "accelerator_type:T4": 1.0}, {"zone": "b"})


class Nodes:
    """Puts nodes in the place of a cluster's."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self._patch = patch
        patch.setattr(placement, "FREE_TIMEOUT_S", 0.0)
        self(CPU_NODE)

    def __call__(self, *nodes: Node, free: Any = None) -> None:
        named = [Node(f"{n.ident}{i}", n.resources, n.labels) for i, n in enumerate(nodes)]
        for what, found in (("alive", named), ("free", free or named)):
            self._patch.setattr(inventory, what, lambda found=found: copy.deepcopy(list(found)))


@pytest.fixture
def nodes(monkeypatch: pytest.MonkeyPatch) -> Nodes:
    return Nodes(monkeypatch)


def config(**fields: Any) -> FitConfig:
    return validated({"model": "minilm", "train_data": "train.csv", **fields})


@pytest.mark.parametrize(
    ("fields", "workers", "bundle"),
    [
        ({}, 5, {"CPU": 2, "GPU": 1}),  # the fifth is on the T4's node
        ({"num_workers": 2}, 2, {"CPU": 4, "GPU": 1}),
        ({"device": "cpu"}, 1, {"CPU": 8}),
        ({"device": "cpu", "num_workers": 4}, 4, {"CPU": 4}),
        ({"resources_per_worker": {"GPU": 2}}, 2, {"CPU": 4, "GPU": 2}),
        ({"resources_per_worker": {"GPU": 0.5}}, 1, {"CPU": 8, "GPU": 0.5}),
        ({"resources_per_worker": {"GPU": 0.6}, "num_workers": 5}, 5, {"CPU": 2, "GPU": 0.6}),
        ({"resources_per_worker": {"CPU": 3}}, 3, {"CPU": 3, "GPU": 1}),  # for more no CPUs
        ({"resources_per_worker": {"CPU": 1.5}}, 5, {"CPU": 1.5, "GPU": 1}),
        ({"resources_per_worker": {"GPU": 0}}, 1, {"CPU": 8}),
        ({"resources_per_worker": {"memory": 6e9, "GPU": 0}}, 1, {"CPU": 4, "memory": 6e9}),
        ({"accelerator_type": "T4"}, 1, {"CPU": 4, "GPU": 1, "accelerator_type:T4": 0.001}),
        ({"label_selector": {"zone": "a"}}, 4, {"CPU": 2, "GPU": 1}),
        ({"label_selector": {"zone": "!a"}}, 1, {"CPU": 4, "GPU": 1}),
        ({"label_selector": {"zone": "in(b, c)"}}, 1, {"CPU": 4, "GPU": 1}),
        ({"label_selector": {"zone": "!in(b, c)"}}, 4, {"CPU": 2, "GPU": 1}),
        ({"label_selector": {"disk": "!ssd"}}, 5, {"CPU": 2, "GPU": 1}),
    ],
)
def test_what_each_worker_gets(
    nodes: Nodes, fields: dict[str, Any], workers: int, bundle: dict[str, float]
) -> None:
    nodes(CPU_NODE, A100S, T4)
    found = place(config(**fields))
    assert (found.num_workers, found.bundle) == (workers, bundle)
    assert found.use_gpu is ("GPU" in bundle)
    assert found.label_selector == fields.get("label_selector")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"num_workers": 9}, r"num_workers = 9, each with 1 CPU and 1 GPU: .* room for 5\. It has"),
        ({"num_workers": 9}, r"1 node with 4 CPUs, zone=a; 1 node with 8 CPUs, 4 GPUs \(A100\),"),
        ({"num_workers": 9}, r"Give num_workers: 5, or device: cpu$"),
        ({"num_workers": 99, "device": "cpu"}, r"room for 16\. .*Give num_workers: 16$"),
        ({"resources_per_worker": {"GPU": 8}, "num_workers": 1}, r"8 GPUs: .* room for 0\. .*less"),
        ({"resources_per_worker": {"memory": 9e9}, "num_workers": 1}, r"9 GB of memory"),
        (
            {"resources_per_worker": {"CPU": 3}, "num_workers": 5},
            r"each with 3 CPUs and 1 GPU: .* room for 3\.",
        ),
        ({"accelerator_type": "A10"}, r"accelerator_type = 'A10': no node .*'A100'"),
        ({"label_selector": {"zone": "c"}}, r"no node on nodes with label_selector = .*zone=b"),
        (
            {"label_selector": {"zone": "b"}, "accelerator_type": "A100"},
            r"no node on nodes with label_selector = .* and accelerator_type = 'A100'\. It has",
        ),
    ],
)
def test_what_the_cluster_cannot_give_is_refused_with_what_it_has(
    nodes: Nodes, fields: dict[str, Any], message: str
) -> None:
    nodes(CPU_NODE, A100S, T4)
    with pytest.raises(ClusterError, match=message):
        place(config(**fields))


def test_two_workers_on_one_gpu_are_refused(nodes: Nodes) -> None:
    nodes(A100S)
    with pytest.raises(ConfigError, match=r"GPU = 0\.5 with num_workers = 2: .*NCCL refuses"):
        place(config(resources_per_worker={"GPU": 0.5}, num_workers=2))


def test_a_selector_that_is_none_is_refused(nodes: Nodes) -> None:
    with pytest.raises(ConfigError, match=r"label_selector = {'zone': 'in\(a'}: Invalid"):
        place(config(label_selector={"zone": "in(a"}))


def test_cuda_without_a_gpu_is_refused(nodes: Nodes) -> None:
    with pytest.raises(ClusterError, match="the Ray cluster has no GPU"):
        place(config(device="cuda"))


def test_what_others_hold_is_told_apart_from_what_there_is(nodes: Nodes) -> None:
    held = Node("c0", {"CPU": 1.0}, {"zone": "a"})
    nodes(CPU_NODE, free=[held])
    assert place(config(num_workers=1)).bundle == {"CPU": 1}
    with pytest.raises(ClusterError, match=r"large enough, but others hold it now\. Free: 1 node"):
        place(config(num_workers=2))


@pytest.mark.parametrize(
    ("share", "fit"), [(1, 4), (0.5, 8), (0.4, 8), (0.6, 4), (0.25, 16), (0.1, 40), (2, 2), (3, 1)]
)
def test_a_share_of_a_gpu_lies_on_one_gpu(nodes: Nodes, share: float, fit: int) -> None:
    nodes(A100S)
    assert free_slots([{"GPU": share}]) == fit


@pytest.mark.parametrize(
    ("bundles", "count"),
    [
        ([{"CPU": 1}], 16),
        ([{"CPU": 3}], 4),  # no bundle is split over nodes
        ([{"CPU": 2}] * 3, 2),
        ([{"CPU": 1, "GPU": 1}], 5),
        ([{"CPU": 1, "GPU": 1}, {"CPU": 4}], 3),
        ([{"CPU": 9}], 0),
        ([{"GPU": 1, "accelerator_type:T4": 0.001}], 1),
        ([{"CPU": 0}], sys.maxsize),
    ],
)
def test_how_many_trials_fit_at_once(nodes: Nodes, bundles: list[Any], count: int) -> None:
    nodes(CPU_NODE, A100S, T4)
    assert free_slots(bundles) == count


def test_the_least_that_a_worker_reserves(nodes: Nodes) -> None:
    assert worker_bundle(config()) == {"CPU": 1}
    nodes(CPU_NODE, T4)
    assert worker_bundle(config()) == {"CPU": 1, "GPU": 1}
    assert worker_bundle(config(device="cpu")) == {"CPU": 1}
    given = {"CPU": 2, "GPU": 0.5, "disk": 0}
    assert worker_bundle(config(resources_per_worker=given)) == {"CPU": 2, "GPU": 0.5}


def test_actors_are_put_where_the_workers_still_find_room(nodes: Nodes) -> None:
    nodes(T4, A100S)
    workers = place(config(label_selector={"zone": "b"}))
    assert spots([{"GPU": 0.5}] * 3, workers) == ["a1", "a1", "a1"]
    assert spots([{"GPU": 1}] * 5, workers) == ["a1"] * 4 + [None]
    shared = place(config(num_workers=1, resources_per_worker={"GPU": 0.5, "CPU": 1}))
    assert spots([{"GPU": 0.5}] * 3, shared) == ["t0", "t0", "a1"]


@pytest.mark.parametrize(
    ("fields", "overlapped", "workers", "bundle", "where"),
    [
        ({"device": "cpu"}, 1, 1, {"CPU": 8}, ["c0"]),
        ({"device": "cpu", "num_workers": 2}, 2, 2, {"CPU": 4}, ["c0", "c0"]),
        ({"device": "cpu", "num_workers": 3}, 1, 3, {"CPU": 4}, ["c0"]),
        ({"device": "cpu", "num_workers": 4}, 1, 4, {"CPU": 3}, ["c0"]),
        ({"device": "cpu", "num_workers": 4}, 0, 4, {"CPU": 4}, []),
        ({}, 3, 5, {"CPU": 2, "GPU": 1}, ["c0", "c0", "c0"]),
        ({"resources_per_evaluator": {"GPU": 1}}, 1, 4, {"CPU": 2, "GPU": 1}, ["a1"]),
        ({"resources_per_evaluator": {"GPU": 0.25}}, 5, 3, {"CPU": 4, "GPU": 1}, ["a1"] * 5),
        ({"resources_per_evaluator": {"GPU": 0}}, 1, 5, {"CPU": 2, "GPU": 1}, [None]),
    ],
)
def test_workers_leave_what_evaluations_reserve(
    nodes: Nodes,
    fields: dict[str, Any],
    overlapped: int,
    workers: int,
    bundle: dict[str, float],
    where: list[str | None],
) -> None:
    nodes(CPU_NODE, A100S, T4)
    asked = config(**{"resources_per_evaluator": {"CPU": 1}, **fields})
    found = place(asked, overlapped)
    assert (found.num_workers, found.bundle) == (workers, bundle)
    assert asked.resources_per_evaluator is not None
    if any(asked.resources_per_evaluator.values()):
        assert spots([asked.resources_per_evaluator] * overlapped, found) == where


def test_evaluations_without_room_beside_the_least_of_workers_are_refused(nodes: Nodes) -> None:
    asked = config(num_workers=4, resources_per_evaluator={"CPU": 1})
    message = r"each evaluation .* 1 CPU, .* beside 4 workers with 1 CPU each: .* fewer num_workers"
    with pytest.raises(ClusterError, match=message):
        place(asked, 1)
    with pytest.raises(ClusterError, match=r"num_workers = 5, each with 1 CPU: .* room for 4\."):
        place(config(num_workers=5, resources_per_evaluator={"CPU": 1}), 1)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"gpu": 1}, r"resources_per_worker = .*'gpu' is written 'GPU'"),
        ({"TPU": 1}, "'TPU': ftray has no use for it"),
        ({"GPU": 1.5}, "a share of a GPU, or a whole number"),
        ({"CPU": -1}, "a number of at least 0 is expected for CPU"),
        ({"CPU": True}, "a number of at least 0 is expected for CPU"),
        ({"CPU": "two"}, "a number of at least 0 is expected for CPU"),
        (4, "dictionary"),
    ],
)
def test_amounts_that_cannot_be_are_refused(given: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        config(resources_per_worker=given)
