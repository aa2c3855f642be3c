"""The head of a Ray cluster of its own, with a dashboard, as `ray start` makes it."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil

__all__ = ["Head", "started_head"]

STARTED_WITHIN_S = 120.0
PORTS = (
    *("port", "dashboard-port", "dashboard-agent-listen-port", "dashboard-agent-grpc-port"),
    *("metrics-export-port", "ray-client-server-port", "runtime-env-agent-port"),
)


@dataclass(frozen=True)
class Head:
    """Where it answers, and the environment of those who may ask it."""

    address: str
    environment: dict[str, str]


@contextmanager
def started_head(*, token: str | None, cpus: int = 2) -> Iterator[Head]:
    """Start a head, and end it with all its processes.

    Args:
        token: that it asks for; None = for none.
        cpus: that it has.
    """
    auth = {"RAY_AUTH_MODE": "disabled"}
    if token is not None:
        auth = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": token}
    kept = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
    environment = {**kept, **auth, "RAY_USAGE_STATS_ENABLED": "0"}
    ports = dict(zip(PORTS, _free_ports(len(PORTS)), strict=True))
    folder = tempfile.mkdtemp(prefix="ray-", dir="/tmp")  # paths of sockets must be short
    command = [
        *(str(Path(sys.executable).parent / "ray"), "start", "--head", "--block"),
        *(f"--num-cpus={cpus}", f"--temp-dir={folder}", "--object-store-memory=200000000"),
        *("--node-ip-address=127.0.0.1", "--min-worker-port=0", "--max-worker-port=0"),
        *(f"--{name}={port}" for name, port in ports.items()),
    ]
    log = Path(folder, "head.txt")
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, env=environment, stdout=output, stderr=output, start_new_session=True
        )
    head = Head(f"http://127.0.0.1:{ports['dashboard-port']}", environment)
    try:
        _wait_for(head, process, log)
        yield head
    finally:
        _end(process)
        shutil.rmtree(folder, ignore_errors=True)


def _free_ports(count: int) -> list[int]:
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


def _wait_for(head: Head, process: subprocess.Popen[bytes], log: Path) -> None:
    """Until jobs are taken: the dashboard answers, and its agent is there."""
    headers: Mapping[str, str] = {}
    if "RAY_AUTH_TOKEN" in head.environment:
        headers = {"Authorization": f"Bearer {head.environment['RAY_AUTH_TOKEN']}"}
    request = urllib.request.Request(f"{head.address}/api/jobs/", headers=dict(headers))
    deadline = time.monotonic() + STARTED_WITHIN_S
    while True:
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < deadline, log.read_text()
        try:
            with urllib.request.urlopen(request, timeout=5) as answer:
                assert json.load(answer) == []
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.3)


def _end(process: subprocess.Popen[bytes]) -> None:
    """Without the half minute in which Ray lets a node drain."""
    try:
        family = psutil.Process(process.pid).children(recursive=True)
    except psutil.NoSuchProcess:
        family = []
    process.kill()
    for one in family:
        try:
            one.kill()
        except psutil.NoSuchProcess:
            continue
    process.wait()
    psutil.wait_procs(family, timeout=10)
