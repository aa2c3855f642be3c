"""Ray's Jobs API, over HTTP: submitting, asking, stopping. Nothing here joins a cluster."""

from __future__ import annotations

import ipaddress
import json
import logging
import os
import socket
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from ray._private.ray_constants import RAY_API_SERVER_ADDRESS_ENVIRONMENT_VARIABLE
from ray._private.runtime_env.packaging import GCS_STORAGE_MAX_SIZE
from ray.exceptions import AuthenticationError
from ray.job_submission import JobStatus, JobSubmissionClient

from ftray.errors import ClusterError

__all__ = ["MAX_PACKAGE_BYTES", "JobState", "Jobs", "dashboard_address"]

DEFAULT_ADDRESS = "http://127.0.0.1:8265"
CONNECT_TIMEOUT_S = 5.0
ANSWER_TIMEOUT_S = 20.0
REQUEST_TIMEOUT_S = 60.0
UPLOAD_TIMEOUT_S = 1800.0
"""For all of a package, however slow the line: it counts from the first byte."""
MAX_PACKAGE_BYTES = GCS_STORAGE_MAX_SIZE
"""What Ray takes as one package."""
TALKATIVE = ("ray.dashboard.modules.dashboard_sdk", "ray._private.runtime_env.packaging")
NEEDED = "a job goes to the cluster's dashboard, whose address looks like http://host:8265"
TOKEN = (
    "RAY_AUTH_MODE=token, and the token in RAY_AUTH_TOKEN, in the file that RAY_AUTH_TOKEN_PATH "
    "names, or in ~/.ray/auth_token"
)


@dataclass(frozen=True, kw_only=True)
class JobState:
    """How a job stands.

    Attributes:
        status: PENDING, RUNNING, SUCCEEDED, FAILED or STOPPED.
        message: what Ray says of it.
        exit_code: of its command, None while it goes on.
    """

    status: str
    message: str
    exit_code: int | None

    @property
    def is_over(self) -> bool:
        """Whether the job has ended, however it did."""
        return bool(JobStatus(self.status).is_terminal())


def dashboard_address(given: str | None) -> str:
    """The address of the dashboard to submit to.

    Args:
        given: by the user; None takes RAY_API_SERVER_ADDRESS, RAY_ADDRESS if it is an http one, or
            the dashboard on this machine.

    Raises:
        ClusterError: for an address of another kind.
    """
    address, source = given, "address"
    if address is None:
        named = os.environ.get("RAY_ADDRESS", "")
        source = RAY_API_SERVER_ADDRESS_ENVIRONMENT_VARIABLE
        address = os.environ.get(source) or (named if named.startswith("http") else "")
    address = address or DEFAULT_ADDRESS
    try:
        parts = urlsplit(address)
        is_usable = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        is_usable = False
    if not is_usable:
        kind = "of a Ray Client" if address.startswith("ray://") else "of another kind"
        raise ClusterError(f"{source} = '{address}' is an address {kind}: {NEEDED}")
    return address.rstrip("/")


def is_loopback(address: str) -> bool:
    """Whether an address is one of this machine: the cluster's, or the near end of a tunnel."""
    host = urlsplit(address).hostname or ""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


class _Client(JobSubmissionClient):  # type: ignore[misc]  # Ray gives it no types
    """Ray's, with time limits, of which it has none."""

    def _do_request(
        self, method: str, endpoint: str, *, data: bytes | None = None, **options: Any
    ) -> Any:
        # requests sends a body within the limit for connecting
        limits = (CONNECT_TIMEOUT_S, REQUEST_TIMEOUT_S) if data is None else UPLOAD_TIMEOUT_S
        return super()._do_request(method, endpoint, data=data, **{"timeout": limits, **options})


class Jobs:
    """The jobs of a cluster.

    Args:
        address: as for `dashboard_address`.

    Raises:
        ClusterError: within seconds, if nobody answers there, or the token is not accepted.
    """

    def __init__(self, address: str | None = None) -> None:
        self.address = dashboard_address(address)
        self.is_loopback = is_loopback(self.address)
        _check_answers(self.address)
        with self._errors(), _preferred(self.address):
            self._client = _Client(self.address)

    def submit(
        self,
        command: str,
        job_id: str,
        *,
        packages: Sequence[Path],
        runtime_env: Mapping[str, Any],
        metadata: Mapping[str, str],
    ) -> None:
        """Start a job.

        Args:
            command: for the shell.
            job_id: a fresh name.
            packages: folders that are taken along, importable there by their names.
            runtime_env: Ray's, for the command and all workers.
            metadata: texts that the dashboard shows.

        Raises:
            ClusterError: with what Ray says.
        """
        with self._errors(), _quiet():
            # by themselves: `excludes` of the runtime_env is about the user's own files
            ours: dict[str, Any] = {"py_modules": [str(folder) for folder in packages]}
            self._client._upload_py_modules_if_needed(ours)
            modules = [*(runtime_env.get("py_modules") or []), *ours["py_modules"]]
            self._client.submit_job(
                entrypoint=command,
                submission_id=job_id,
                runtime_env={**runtime_env, "py_modules": modules},
                metadata=dict(metadata),
            )

    def state(self, job_id: str) -> JobState:
        """How a job stands.

        Raises:
            ClusterError: if it cannot be asked.
        """
        with self._errors():
            info = self._client.get_job_info(job_id)
        return JobState(
            status=str(info.status), message=info.message or "", exit_code=info.driver_exit_code
        )

    def logs(self, job_id: str) -> str:
        """What a job's command has printed so far.

        Raises:
            ClusterError: if it cannot be asked.
        """
        with self._errors():
            return str(self._client.get_job_logs(job_id) or "")

    def stop(self, job_id: str) -> None:
        """Send SIGTERM to a job's command, and SIGKILL some time later; returns at once.

        Raises:
            ClusterError: if it cannot be asked.
        """
        with self._errors():
            self._client.stop_job(job_id)

    @contextmanager
    def _errors(self) -> Iterator[None]:
        where = f"The Ray cluster at {self.address}"
        try:
            yield
        except AuthenticationError as error:
            raise ClusterError(_of_token(where, str(error))) from None
        except OSError as error:  # those of requests are such, too
            raise ClusterError(f"{where} does not answer: {error}") from None
        except (RuntimeError, ValueError, TypeError) as error:
            said = " ".join(str(error).split())
            raise ClusterError(f"{where} did not take the request: {said}") from error


def _of_token(where: str, said: str) -> str:
    if "failed" in said.lower() or "invalid" in said.lower():
        return f"{where} does not accept this token. It takes {TOKEN}"
    return f"{where} asks for a token, and none was sent. It takes {TOKEN}"


def _check_answers(address: str) -> None:
    """Ask for the version, with a time limit: Ray's client has none."""
    parts = urlsplit(address)
    port = parts.port or (443 if parts.scheme == "https" else 80)
    try:
        socket.create_connection((parts.hostname or "", port), CONNECT_TIMEOUT_S).close()
    except OSError as error:
        raise ClusterError(f"No Ray dashboard answers at {address} ({error}): {NEEDED}") from None
    other = ClusterError(f"What answers at {address} is no Ray dashboard: {NEEDED}")
    try:
        with urllib.request.urlopen(f"{address}/api/version", timeout=ANSWER_TIMEOUT_S) as answer:
            if "ray_version" not in json.load(answer):
                raise other
    except urllib.error.HTTPError as error:
        if error.code not in (401, 403):  # a token is missing: it is sent with the next request
            raise other from None
    except TimeoutError:
        raise ClusterError(
            f"What answers at {address} says nothing for {ANSWER_TIMEOUT_S:g} s: {NEEDED}"
        ) from None
    except (OSError, ValueError, HTTPException):
        raise other from None


@contextmanager
def _quiet() -> Iterator[None]:
    """Ray tells each package by name."""
    loggers = [logging.getLogger(name) for name in TALKATIVE]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.WARNING)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


@contextmanager
def _preferred(address: str) -> Iterator[None]:
    """Ray's client prefers the environment to the address that it is given."""
    name = RAY_API_SERVER_ADDRESS_ENVIRONMENT_VARIABLE
    before = os.environ.get(name)
    os.environ[name] = address
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before
