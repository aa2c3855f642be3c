"""A fit as a Ray job: the side of the one who submits. See `submitted` for the job's.

What the two share is the folder of runs. Before anything is trained the job has to read there what
this side wrote, so that the run can be followed from here. Until the run is on record the job
answers by a line of its output; from then on the record is all that is needed.
"""

from __future__ import annotations

import copy
import json
import os
import platform
import re
import secrets
import shlex
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cloudpickle
import pyarrow.compute as pc

from ftray import __version__, errors
from ftray.config import FitConfig, is_live
from ftray.errors import ClusterError, ConfigError, FtrayError, RunFailedError, StorageError
from ftray.launch.packing import MB, Luggage, with_places, wrapped
from ftray.launch.places import Place, find_place
from ftray.launch.start import made_ready
from ftray.media import MARK
from ftray.record.facts import plain
from ftray.record.reader import RecordReader
from ftray.record.storage import Storage
from ftray.run import Run

if TYPE_CHECKING:
    from ftray.cluster.jobs import Jobs, JobState
    from ftray.training.job import Job

__all__ = ["MAX_UPLOAD_MB", "JobOptions", "SubmittedRun", "submit"]

MAX_UPLOAD_MB = 200.0
ABOUT, FIT = "about.json", "fit.pickle"
FIT_PACKAGE, FILES_PACKAGE = "_ftray_fit", "_ftray_files"
NONCE = "nonce"
ON_RECORD = "on record"
ANSWER = re.compile(rf"^ftray: (?:({ON_RECORD})|(\w+)): (.*)$", re.MULTILINE)
NO_FTRAY = re.compile(r"No module named '?ftray\b")
NO_COMMAND = (126, 127)
POLL_S = 0.5
TRIES, TRY_AGAIN_S = 5, 6.0
"""How often a cluster that does not answer is asked how a job stands before it is given up."""
LOG_RATE = 1 << 20
"""Characters of a job's log that are fetched in a second: Ray hands out all of it each time."""
SEEN_WITHIN_S = 15.0
STOP_WAIT_S = "120"
"""How long `ray job stop` waits for the checkpoint before it kills; Ray's own default is 3 s."""
LAST_LINES = 5
LOCAL_ONLY = ("mock",)


@dataclass(frozen=True, kw_only=True)
class JobOptions:
    """Where and how a fit is submitted.

    Attributes:
        address: of the dashboard; None = RAY_API_SERVER_ADDRESS, an http RAY_ADDRESS, or the one
            on this machine.
        working_dir: a folder of code that the job and its workers are to see; None = none.
        runtime_env: Ray's: `env_vars`, `pip`, `py_modules` …
        shared: folders that the cluster sees under the same paths.
        max_upload_mb: how much may be taken along, in MiB.
        python: what runs Python on the cluster's head; None = `python`, or, with a loopback
            address, this interpreter if the head has it under the same path.
    """

    address: str | None = None
    working_dir: str | os.PathLike[str] | None = None
    runtime_env: Mapping[str, Any] | None = None
    shared: Sequence[str | os.PathLike[str]] = ()
    max_upload_mb: float = MAX_UPLOAD_MB
    python: str | None = None


class SubmittedRun(Run):
    """A run that a Ray job trains: all that a `Run` can, and the job.

    Args:
        storage: the run directory.
        jobs: of the cluster.
        job_id: the job's submission id.
    """

    def __init__(self, storage: Storage, jobs: Jobs, job_id: str) -> None:
        super().__init__(storage)
        self._jobs = jobs
        self.job_id = job_id

    @property
    def address(self) -> str:
        """Of the cluster's dashboard."""
        return self._jobs.address

    def job_status(self) -> str:
        """PENDING, RUNNING, SUCCEEDED, FAILED or STOPPED.

        Raises:
            ClusterError: if the cluster does not answer.
        """
        return self._jobs.state(self.job_id).status

    def job_logs(self) -> str:
        """What the job has printed so far: the run's log, and what libraries print.

        Raises:
            ClusterError: if the cluster does not answer.
        """
        return self._jobs.logs(self.job_id)

    def stream_job_logs(self, interval: float = 1.0) -> Iterator[str]:
        """Lines of the job's output as they come, until the job has ended.

        Args:
            interval: seconds between two looks, at least; more when the output has become long.

        Raises:
            ClusterError: if the cluster does not answer.
        """
        shown = 0
        while True:
            is_over = self._jobs.state(self.job_id).is_over
            text = self.job_logs()
            end = len(text) if is_over else text.rfind("\n") + 1
            if end > shown:
                yield from text[shown:end].removesuffix("\n").split("\n")
            shown = max(shown, end)
            if is_over:
                return
            time.sleep(max(interval, len(text) / LOG_RATE))


class _LostJobError(ClusterError):
    """The cluster no longer says how a job stands."""


def submit(config: FitConfig, options: JobOptions) -> SubmittedRun:
    """Start a fit as a Ray job; returns when the run is on record.

    Raises:
        ClusterError: if the cluster cannot be reached, or cannot run ftray.
        StorageError: if the job does not see the folder of runs.
        FtrayError: as `fit` raises them, here or, for what only the cluster sees, there.
        RunFailedError: if the job ends without a word.
    """
    from ftray.cluster.jobs import MAX_PACKAGE_BYTES, Jobs

    _check_options(options, MAX_PACKAGE_BYTES // MB)
    jobs = Jobs(options.address)
    config, place = _placed(config)
    luggage, fields = _packed(config, options)
    job_id = (
        f"ftray-{re.sub(r'[^A-Za-z0-9_.-]+', '-', config.run_name or '')}-{secrets.token_hex(3)}"
    )
    root, sign = Storage(config.storage_path), f".{job_id}.tmp"  # such names are not listed
    about: dict[str, Any] = {
        "ftray": __version__,
        "python": ".".join(platform.python_version_tuple()[:2]),
        "has_objects": _has_objects(config),
        "job_id": job_id,
        "storage_path": root.uri,
        "sign": f"{sign}/{NONCE}",
        "nonce": secrets.token_hex(16),
        "has_files": bool(luggage),
        "has_working_dir": "working_dir" in _runtime_env(options),
        "host": platform.node(),
    }
    pickled = _pickled(fields)
    luggage.check(len(pickled))
    root.write_text(about["sign"], about["nonce"])
    may_read_it = False
    try:
        with tempfile.TemporaryDirectory(prefix="ftray-") as folder:
            packages = _write_packages(Path(folder), about, pickled, luggage)
            jobs.submit(
                _command(options, jobs),
                job_id,
                packages=packages,
                runtime_env=_runtime_env(options),
                metadata={"ftray_run": place.storage.uri},
            )
        _wait_for_record(jobs, job_id, place, options)
    except _LostJobError:
        may_read_it = True
        raise
    finally:
        if not may_read_it:
            root.delete(sign)
    return SubmittedRun(place.storage, jobs, job_id)


def _check_options(options: JobOptions, most_mb: int) -> None:
    if not 0 < options.max_upload_mb <= most_mb:
        raise ConfigError(
            f"max_upload_mb = {options.max_upload_mb:g}: more than 0, and at most {most_mb}, which "
            "is what Ray takes as one package"
        )
    given = options.runtime_env or {}
    if not isinstance(given, Mapping):
        raise ConfigError("runtime_env: a mapping as Ray takes it, as {'env_vars': {...}}")
    if options.working_dir is None:
        return
    if "working_dir" in given:
        raise ConfigError("Give working_dir, or runtime_env['working_dir'], not both")
    folder = os.fspath(options.working_dir)
    if "://" not in folder and not Path(folder).expanduser().is_dir():
        raise ConfigError(f"working_dir = '{folder}' is no folder")


def _placed(config: FitConfig) -> tuple[FitConfig, Place]:
    """The configuration with the name of its run, and a place that can be shared."""
    root = Storage(config.storage_path)
    if root.filesystem.type_name in LOCAL_ONLY:
        raise StorageError(
            f"storage_path '{config.storage_path}' is memory of one process: give a folder on a "
            "file system that the cluster mounts under the same path, or a URI such as "
            "s3://bucket/runs"
        )
    config = config.model_copy(update={"storage_path": root.uri})
    place = find_place(config)
    return config.model_copy(update={"run_name": place.storage.name}), place


def _packed(config: FitConfig, options: JobOptions) -> tuple[Luggage, dict[str, Any]]:
    """The files that are taken along, and the fields that were given, with these in their places.

    What lies here is read, and checked, as `fit` does. With folders that only the cluster may see,
    all of that is left to the job.
    """
    root = Storage(config.storage_path)
    luggage = Luggage(options.shared, root.root if root.is_local else None, options.max_upload_mb)
    given = {name: getattr(config, name) for name in config.model_fields_set}
    fields = with_places(given, luggage.pack)
    luggage.check()
    if not luggage.relies_on_shared:
        # the record of a run that is resumed has the name that the model's folder has in the job
        with made_ready(config, may_differ=("model",)) as start:
            luggage.add_named(_files_named(start.job))
    if is_live(config.model):
        fields["model"] = copy.deepcopy(fields["model"]).cpu()  # the head may have no GPU
    return luggage, fields


def _files_named(job: Job) -> Iterator[str]:
    """The files that data names: images, meshes."""
    columns = [job.train.texts, *([job.val.texts] if job.val is not None else [])]
    columns += [side.texts for spec in job.evaluations for side in spec.sides]
    for texts in columns:
        for cell in texts.filter(pc.starts_with(texts, MARK)).to_pylist():
            if os.path.isabs(cell[2:]):  # else it is the hash of what lies in no file
                yield cell[2:]


def _has_objects(config: FitConfig) -> bool:
    """Whether something is given that a YAML file could not hold."""
    values = {name: getattr(config, name) for name in config.model_fields_set}
    return not plain(values)[1]


def _pickled(fields: Mapping[str, Any]) -> bytes:
    try:
        pickled: bytes = cloudpickle.dumps(wrapped(fields))
    except Exception as error:
        culprit = next((name for name, value in fields.items() if not _can_be_pickled(value)), "")
        raise ConfigError(
            f"A job gets its fit pickled, but {culprit or 'the fit'} cannot be: {error}"
        ) from error
    return pickled


def _can_be_pickled(value: Any) -> bool:
    try:
        cloudpickle.dumps(value)
    except Exception:
        return False
    return True


def _write_packages(
    folder: Path, about: Mapping[str, Any], pickled: bytes, luggage: Luggage
) -> list[Path]:
    """Folders that are Python packages, so that Ray puts them where they can be found.

    The files are one by themselves: Ray knows it again if it is the same the next time.
    """
    packages = [folder / FIT_PACKAGE]
    packages[0].mkdir()
    (packages[0] / ABOUT).write_text(json.dumps(about))
    (packages[0] / FIT).write_bytes(pickled)
    if luggage:
        packages.append(folder / FILES_PACKAGE)
        luggage.write(packages[1])
    for package in packages:
        (package / "__init__.py").touch()
    return packages


def _command(options: JobOptions, jobs: Jobs) -> str:
    """For the shell on the head.

    A loopback address may be a tunnel's: only the head knows whether it has this interpreter.
    """
    module = "-m ftray.launch.submitted"
    if options.python or not jobs.is_loopback:
        return f"exec {options.python or 'python'} {module}"
    mine = shlex.quote(sys.executable)
    return f'P={mine}; [ -x "$P" ] || P=python; exec "$P" {module}'


def _python(options: JobOptions, jobs: Jobs) -> str:
    """What `_command` runs, for messages."""
    if options.python or not jobs.is_loopback:
        return options.python or "python"
    return f"{sys.executable} or python"


def _runtime_env(options: JobOptions) -> dict[str, Any]:
    env = dict(options.runtime_env or {})
    env["env_vars"] = {"RAY_JOB_STOP_WAIT_TIME_S": STOP_WAIT_S, **(env.get("env_vars") or {})}
    if options.working_dir is not None:
        env["working_dir"] = os.path.expanduser(options.working_dir)
    return env


def _wait_for_record(jobs: Jobs, job_id: str, place: Place, options: JobOptions) -> None:
    """Wait until the run is on record, or raise why it never will be."""
    try:
        while True:
            state, log = _asked(jobs, job_id)
            answer = ANSWER.search(log)
            if answer is not None and answer[1] is not None:
                break
            if answer is not None:
                raise _as_here(answer[2], answer[3])
            if state.is_over:
                raise _gone(job_id, log or state.message, state.exit_code, _python(options, jobs))
            time.sleep(POLL_S)
    except KeyboardInterrupt:  # nothing is on record yet
        try:
            jobs.stop(job_id)
        except ClusterError as error:
            raise _lost(jobs, job_id, error) from error
        raise
    except _LostJobError:
        raise
    except ClusterError as error:
        raise type(error)(f"{error} (job {job_id})") from error
    deadline = time.monotonic() + SEEN_WITHIN_S
    while not RecordReader(place.storage).exists():  # a network's file system may be behind
        if time.monotonic() > deadline:
            raise StorageError(
                f"The job {job_id} trains, but its record at {place.storage.uri} cannot be seen "
                f"from here. It prints: `ray job logs {job_id} --address {jobs.address}`"
            )
        time.sleep(POLL_S)


def _asked(jobs: Jobs, job_id: str) -> tuple[JobState, str]:
    """How a job stands, and what it has printed; asked again while the cluster does not answer."""
    failed = 0
    while True:
        try:
            return jobs.state(job_id), jobs.logs(job_id)
        except ClusterError as error:
            failed += 1
            if failed == TRIES:
                raise _lost(jobs, job_id, error) from error
        time.sleep(TRY_AGAIN_S)


def _lost(jobs: Jobs, job_id: str, error: ClusterError) -> _LostJobError:
    return _LostJobError(
        f"{error}: the job may go on all the same. Stop it: `ray job stop {job_id} --address "
        f"{jobs.address}`"
    )


def _as_here(name: str, message: str) -> FtrayError:
    """The error that the job had, as `fit` would have raised it here."""
    cls = getattr(errors, name, None)
    if isinstance(cls, type) and issubclass(cls, FtrayError):
        return cls(message)
    return RunFailedError(f"The run could not begin: {name}: {message}")


def _gone(job_id: str, log: str, exit_code: int | None, python: str) -> FtrayError:
    lines = [line for line in log.splitlines() if line.strip()][-LAST_LINES:]
    said = f"It printed last: {' | '.join(lines) or 'nothing'}"
    if exit_code in NO_COMMAND or NO_FTRAY.search(log):
        return ClusterError(
            f"On the cluster's head, `{python}` has no ftray {__version__}: install it there, on "
            f"all nodes, or say with `python` which interpreter has it. {said}"
        )
    return RunFailedError(
        f"The job {job_id} ended before the run was on record (exit code {exit_code}). {said}"
    )
