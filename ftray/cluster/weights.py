"""The base model for nodes that do not see its folder: through the object store.

The driver reads the folder once and puts its files into the object store. On its own node the
folder itself is used; on every other one the files are written to a temporary folder, once for all
processes of the node, though a folder with that name may stand there too: it may be another model.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import platform
import random
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt
import ray

from ftray.cluster.connect import session_here
from ftray.cluster.nodes import node_here
from ftray.errors import ClusterError, ModelError
from ftray.training.job import Job

__all__ = ["SharedModel", "job_here", "share_model", "unpacked"]

MEET_AGAIN_S = 0.1
BEGUN = ".begun"
"""So the name of a folder ends that does not have all files."""

Content = npt.NDArray[np.uint8]


@dataclass(frozen=True, kw_only=True)
class SharedModel:
    """A model's folder on the driver's node, and its files for all others.

    Attributes:
        folder: where it is on the driver's node.
        node: id of that node.
        digest: of names and contents.
        size: bytes of all files.
        files: a list with the reference to `{relative path: bytes}`; in a list, so that it is read
            only where it is needed.
    """

    folder: str
    node: str
    digest: str
    size: int
    files: list[Any]


def share_model(job: Job) -> SharedModel | None:
    """Put the job's model into the object store; None if every node finds it by itself.

    So it does where it is a hub id, a URI, made from scratch, or kept with the run, and where Ray
    was started for this run, on this machine alone.

    Raises:
        ModelError: for a folder that cannot be read.
    """
    folder, session = Path(job.model), session_here()
    alone = session is not None and session.own
    if alone or not folder.is_dir() or folder.is_relative_to(job.run_uri):
        return None
    try:
        files = _read(folder)
    except OSError as error:
        raise ModelError(f"The model '{folder}' cannot be read: {error}") from None
    digest = hashlib.sha256()
    for name, content in files.items():
        digest.update(f"{name}\0{len(content)}\0".encode())
        digest.update(content.data)
    return SharedModel(
        folder=str(folder),
        node=node_here(),
        digest=digest.hexdigest()[:32],
        size=sum(content.nbytes for content in files.values()),
        files=[ray.put(files)],
    )


def _read(folder: Path) -> dict[str, Content]:
    """The files by relative path, but those in hidden folders, such as `.git`."""
    paths = {path.relative_to(folder): path for path in sorted(folder.rglob("*"))}
    return {
        inside.as_posix(): np.fromfile(path, np.uint8)
        for inside, path in paths.items()
        if path.is_file() and not any(part.startswith(".") for part in inside.parts[:-1])
    }


@contextmanager
def job_here(job: Job, model: SharedModel | None) -> Iterator[Job]:
    """The job with its model where this node has it.

    Args:
        job: as the driver made it.
        model: its files, where they are shared.
    """
    if model is None or node_here() == model.node:
        yield job
        return
    with unpacked(model.digest, lambda: ray.get(model.files[0])) as folder:
        yield replace(job, model=str(folder))


@contextmanager
def unpacked(digest: str, read: Callable[[], Mapping[str, Content]]) -> Iterator[Path]:
    """A temporary folder with a model's files, one for all processes of a node.

    Each holds a shared lock while it uses the folder; the last to leave removes it. One that was
    killed leaves the folder to the next that comes.

    Args:
        digest: of names and contents.
        read: gives contents by relative path; called where nobody has done so.

    Raises:
        ClusterError: if the folder of such folders is open to other users.
    """
    base = _own_folder()
    folder, lock = base / digest, base / f"{digest}.lock"
    held = _enter(folder, lock, read)
    try:
        yield folder
    finally:
        with held, suppress(BlockingIOError):  # another one uses it
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
            _remove(folder)
            lock.unlink(missing_ok=True)


def _own_folder() -> Path:
    """Where models are unpacked; what others could have put there is not to be loaded."""
    base = Path(tempfile.gettempdir()) / f"ftray-models-{os.getuid()}"
    base.mkdir(mode=0o700, exist_ok=True)
    info = base.lstat()
    if info.st_uid != os.getuid() or info.st_mode & 0o077:
        raise ClusterError(
            f"On the host {platform.node()}, the folder {base}, where models are unpacked, must be "
            f"yours alone; it belongs to the user {info.st_uid} and has the mode "
            f"{info.st_mode & 0o777:o}. Remove it, or set TMPDIR to another folder"
        )
    return base


def _remove(folder: Path) -> None:
    """What cannot be removed, or is gone already, is no reason for a run to fail."""
    begun = folder.with_suffix(BEGUN)
    with suppress(OSError):
        folder.rename(begun)  # nobody is to use what is left of it
    shutil.rmtree(begun, ignore_errors=True)


def _enter(folder: Path, lock: Path, read: Callable[[], Mapping[str, Content]]) -> IO[bytes]:
    """The shared lock of a folder, which is written if nobody has done so."""
    while True:
        held = lock.open("wb")
        fcntl.flock(held, fcntl.LOCK_SH)  # waits while somebody writes
        if folder.exists() and _is_current(held, lock):
            return held
        try:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:  # others are here too, and one of them will write
            time.sleep(random.uniform(0.0, MEET_AGAIN_S))
        else:
            if _is_current(held, lock) and not folder.exists():
                _write(read(), folder)
        held.close()


def _is_current(held: IO[bytes], lock: Path) -> bool:
    """Whether this is the lock that others find: who left last may have removed it."""
    try:
        return os.fstat(held.fileno()).st_ino == lock.stat().st_ino
    except FileNotFoundError:
        return False


def _write(files: Mapping[str, Content], folder: Path) -> None:
    """All or nothing: a folder that was begun has another name."""
    begun = folder.with_suffix(BEGUN)
    shutil.rmtree(begun, ignore_errors=True)
    for name, content in files.items():
        path = begun / name
        path.parent.mkdir(parents=True, exist_ok=True)
        content.tofile(path)
    begun.rename(folder)
