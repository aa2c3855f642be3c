"""Joining a Ray cluster, or starting one on this machine and stopping it again."""

from __future__ import annotations

import logging
import os
import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import ray
from ray._private.utils import read_ray_address

from ftray.errors import ClusterError

__all__ = ["START_TIMEOUT", "Session", "connected", "session_here"]

START_TIMEOUT = "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S"
"""Ray's name for how long an attempt to start the workers waits for room on the nodes."""
DEFAULTS = {
    START_TIMEOUT: "60",
    "RAY_USAGE_STATS_ENABLED": "0",  # no network call that nobody asked for
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.25",  # each report waits for the controller's poll
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",  # with it, what a worker prints appears twice
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "OMP_WAIT_POLICY": "PASSIVE",  # spinning threads slow each other down on shared cores
    "TOKENIZERS_PARALLELISM": "false",
    "RAY_OVERRIDE_JOB_RUNTIME_ENV": "1",  # a Ray job may set the same variables, to what we keep
}
CONNECT_TIMEOUT_S = 5.0
JOINED_DEFAULTS = ("OMP_WAIT_POLICY", "TOKENIZERS_PARALLELISM")


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
