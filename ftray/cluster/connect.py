"""Joining a Ray cluster, or starting one on this machine and stopping it again."""

from __future__ import annotations

import logging
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import ray
from ray._private.state import available_resources_per_node

from ftray.config import FitConfig
from ftray.errors import ClusterError

__all__ = ["Connection", "Placement", "connected", "place"]

DEFAULTS = {
    "RAY_USAGE_STATS_ENABLED": "0",  # no network call that nobody asked for
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.25",  # each report waits for the controller's poll
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "OMP_WAIT_POLICY": "PASSIVE",  # spinning threads slow each other down on shared cores
    "TOKENIZERS_PARALLELISM": "false",
}
CONNECT_TIMEOUT_S = 5.0
FREE_TIMEOUT_S = 10.0
JOINED_DEFAULTS = ("OMP_WAIT_POLICY", "TOKENIZERS_PARALLELISM")


@dataclass(frozen=True, kw_only=True)
class Connection:
    """The Ray session of a fit: `own` if ftray started it; the dashboard's URL if there is one."""

    own: bool
    dashboard: str | None


@dataclass(frozen=True, kw_only=True)
class Placement:
    """What the workers of a fit get."""

    num_workers: int
    use_gpu: bool
    cpus_per_worker: int


@contextmanager
def connected() -> Iterator[Connection]:
    """Be connected to Ray, and leave everything as it was found.

    In this order: the session that this process has already; the cluster that `RAY_ADDRESS` names;
    a cluster that runs on this machine; a new one on this machine, which is stopped at the end.

    Raises:
        ClusterError: if the named cluster cannot be reached.
    """
    before = {name: os.environ.get(name) for name in DEFAULTS}
    for name, value in DEFAULTS.items():
        os.environ.setdefault(name, value)
    try:
        if ray.is_initialized():
            yield Connection(own=False, dashboard=_dashboard())
            return
        own = _join_or_start()
        try:
            yield Connection(own=own, dashboard=_dashboard())
        finally:
            ray.shutdown()
    finally:
        for name, old in before.items():
            if old is None:
                os.environ.pop(name, None)


def _join_or_start() -> bool:
    """Whether a new cluster was started."""
    environment = {"env_vars": {name: os.environ[name] for name in JOINED_DEFAULTS}}
    address = os.environ.get("RAY_ADDRESS")
    if address:
        _check_address(address)
    try:
        ray.init(address=address or "auto", runtime_env=environment, logging_level=logging.ERROR)
        return False
    except ConnectionError as error:
        if address:
            raise ClusterError(_no_answer(address, error)) from None
    except Exception as error:
        where = f"at RAY_ADDRESS = '{address}'" if address else "that runs on this machine"
        raise ClusterError(f"The Ray cluster {where} cannot be joined: {error}") from error
    try:
        ray.init(address="local", include_dashboard=False, logging_level=logging.ERROR)
    except Exception as error:
        raise ClusterError(
            f"Ray cannot be started on this machine: {error}. num_workers: 0 trains without Ray"
        ) from error
    return True


def _check_address(address: str) -> None:
    """Refuse an address where nobody listens; `ray.init` would wait for minutes."""
    host, separator, port = address.removeprefix("ray://").rpartition(":")
    if not separator or not port.isdigit():
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), CONNECT_TIMEOUT_S).close()
    except OSError as error:
        raise ClusterError(_no_answer(address, error)) from None


def _no_answer(address: str, error: Exception) -> str:
    return (
        f"No Ray cluster answers at RAY_ADDRESS = '{address}' ({error}). Start one there, "
        "or unset RAY_ADDRESS: then ftray starts Ray on this machine."
    )


def _dashboard() -> str | None:
    from ray._private.worker import get_dashboard_url

    url = get_dashboard_url()
    return f"http://{url}" if url else None


def place(config: FitConfig) -> Placement:
    """How many workers, and what each gets, on the connected cluster.

    On CPUs every worker gets as many as can be given to all of them: Ray sets the number of
    threads to the CPUs reserved.

    Raises:
        ClusterError: if the cluster has not what was asked for, saying what it has.
    """
    total = ray.cluster_resources()
    gpus = int(total.get("GPU", 0))
    if config.device == "cuda" and not gpus:
        raise ClusterError("device = 'cuda', but the Ray cluster has no GPU. Try device: auto")
    use_gpu = gpus > 0 and config.device != "cpu"
    workers = config.num_workers
    if workers == "auto":
        workers = gpus if use_gpu else 1
    if use_gpu and workers > gpus:
        raise ClusterError(
            f"num_workers = {workers}, one GPU each, but the Ray cluster has {gpus} GPUs. "
            f"Give num_workers: {gpus}, or device: cpu"
        )
    return Placement(
        num_workers=workers, use_gpu=use_gpu, cpus_per_worker=_cpus_for_each(workers, use_gpu)
    )


def _cpus_for_each(workers: int, use_gpu: bool) -> int:
    """The most CPUs such that all workers find room, none of them split over nodes.

    CPUs that others hold do not count, but what is just being given back (by a run that ended a
    moment ago) is waited for.
    """
    every = _most_cpus(_total(), workers, use_gpu)
    if not every:
        have = sum(int(node.get("CPU", 0)) for node in _total())
        raise ClusterError(
            f"num_workers = {workers} needs a CPU for each worker, but the Ray cluster has "
            f"{have}. Give num_workers: {max(have, 1)}, or 0 to train in this process"
        )
    deadline = time.monotonic() + FREE_TIMEOUT_S
    free = _most_cpus(_available(), workers, use_gpu)
    while free < every and time.monotonic() < deadline:
        time.sleep(0.25)
        free = _most_cpus(_available(), workers, use_gpu)
    if not free:
        raise ClusterError(
            f"num_workers = {workers}: the Ray cluster is large enough, but others hold its CPUs "
            f"{'or GPUs ' if use_gpu else ''}now. Free: {_available()}"
        )
    return free


def _most_cpus(nodes: list[dict[str, float]], workers: int, use_gpu: bool) -> int:
    for cpus in range(int(max((n.get("CPU", 0) for n in nodes), default=0)), 0, -1):
        room = 0
        for node in nodes:
            slots = int(node.get("CPU", 0)) // cpus
            room += min(slots, int(node.get("GPU", 0))) if use_gpu else slots
        if room >= workers:
            return cpus
    return 0


def _total() -> list[dict[str, float]]:
    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


def _available() -> list[dict[str, float]]:
    return list(available_resources_per_node().values())
