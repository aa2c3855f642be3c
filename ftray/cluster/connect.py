"""Joining a Ray cluster, or starting one on this machine and stopping it again."""

from __future__ import annotations

import logging
import os
import signal
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import ray
from ray._private.state import available_resources_per_node
from ray._private.utils import read_ray_address

from ftray.config import FitConfig
from ftray.errors import ClusterError
from ftray.words import counted

__all__ = ["Placement", "Session", "connected", "place", "session_here"]

DEFAULTS = {
    "RAY_USAGE_STATS_ENABLED": "0",  # no network call that nobody asked for
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.25",  # each report waits for the controller's poll
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",  # with it, what a worker prints appears twice
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "OMP_WAIT_POLICY": "PASSIVE",  # spinning threads slow each other down on shared cores
    "TOKENIZERS_PARALLELISM": "false",
}
CONNECT_TIMEOUT_S = 5.0
FREE_TIMEOUT_S = 10.0
JOINED_DEFAULTS = ("OMP_WAIT_POLICY", "TOKENIZERS_PARALLELISM")


@dataclass(frozen=True, kw_only=True)
class Placement:
    """What the workers of a fit get, and the GPUs that nobody uses then."""

    num_workers: int
    use_gpu: bool
    cpus_per_worker: int
    spare_gpus: int = 0


@dataclass(frozen=True, kw_only=True)
class Session:
    """A Ray session that this process is connected to.

    Attributes:
        address: of its cluster, for others to join.
        own: whether this process started it, so that it ends with this process.
    """

    address: str
    own: bool


def session_here() -> Session | None:
    """The session that this process is connected to, if any; joins and starts nothing."""
    node = ray._private.worker._global_node
    if node is None or not ray.is_initialized():
        return None
    return Session(address=node.gcs_address, own=node.is_head())


@contextmanager
def connected() -> Iterator[str | None]:
    """Be connected to Ray, and leave everything as it was found; yields the dashboard's URL.

    In this order: the session that this process has already; the cluster that `RAY_ADDRESS` names;
    a cluster that `ray start` started on this machine; a new one on this machine, which is stopped
    at the end.

    Raises:
        ClusterError: if the cluster cannot be joined or started.
    """
    before = {name: os.environ.get(name) for name in DEFAULTS}
    for name, value in DEFAULTS.items():
        os.environ.setdefault(name, value)
    try:
        if ray.is_initialized():
            yield _dashboard()
            return
        with _signals_kept():
            _join_or_start()
        try:
            yield _dashboard()
        finally:
            ray.shutdown()
    finally:
        for name, old in before.items():
            if old is None:
                os.environ.pop(name, None)


@contextmanager
def _signals_kept() -> Iterator[None]:
    """`ray.init` takes SIGTERM for itself; a run has a use for it."""
    main = threading.current_thread() is threading.main_thread()
    handlers = {n: signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)} if main else {}
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


def _join_or_start() -> None:
    address = os.environ.get("RAY_ADDRESS") or "auto"
    if address == "auto":
        address = _started_here() or "local"
    elif address != "local":
        _check_address(address)
    options: dict[str, Any] = {"include_dashboard": False}
    if address != "local":
        options = {"runtime_env": {"env_vars": {n: os.environ[n] for n in JOINED_DEFAULTS}}}
    try:
        ray.init(address=address, logging_level=logging.ERROR, **options)
    except Exception as error:
        if address == "local":
            raise ClusterError(
                f"Ray cannot be started on this machine: {error}. num_workers: 0 trains without it"
            ) from error
        raise ClusterError(f"The Ray cluster at '{address}' cannot be joined: {error}") from error


def _started_here() -> str | None:
    """The address of a cluster that `ray start` recorded on this machine, if it is alive.

    A cluster that another process started for itself is none of ours: it ends with that process.
    """
    address = read_ray_address()
    return address if address and _unreachable(address) is None else None


def _check_address(address: str) -> None:
    """Refuse an address that cannot work; `ray.init` would wait for minutes."""
    if "://" in address:
        raise ClusterError(
            f"RAY_ADDRESS = '{address}': the address of the cluster itself is needed, such as "
            "host:6379. From outside a cluster, start the fit on it, as a job."
        )
    error = _unreachable(address)
    if error is not None:
        raise ClusterError(_no_answer(address, error))


def _unreachable(address: str) -> Exception | None:
    """Why nobody can be reached at host:port; None if somebody can."""
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), CONNECT_TIMEOUT_S).close()
    except (OSError, ValueError) as error:
        return error
    return None


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
            f"num_workers = {workers}, one GPU each, but the Ray cluster has "
            f"{counted(gpus, 'GPU')}. "
            f"Give num_workers: {gpus}, or device: cpu"
        )
    return Placement(
        num_workers=workers,
        use_gpu=use_gpu,
        cpus_per_worker=_cpus_for_each(workers, use_gpu),
        spare_gpus=_free_gpus() - workers if use_gpu and gpus > workers else 0,
    )


def _free_gpus() -> int:
    """GPUs that nobody holds: an actor that waits for one that others hold would wait for long."""
    return int(ray.available_resources().get("GPU", 0))


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
