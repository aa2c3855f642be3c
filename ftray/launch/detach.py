"""A fit in a child process that goes on when its caller ends: the caller's side.

The caller makes the fit ready, so that mistakes are raised where they were made, and hands it to
the child over a pipe; nothing of it touches a disk. Over another pipe the child says that the run
is on record, or why it cannot be. From then on the record is all that the two have in common.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import threading
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import cloudpickle

from ftray import errors
from ftray.config import FitConfig
from ftray.errors import ConfigError, RunFailedError
from ftray.launch.start import Start, made_ready
from ftray.run import Run

__all__ = ["Handed", "fit_detached"]

LAST_LINES = 5


@dataclass(frozen=True, kw_only=True)
class Handed:
    """What the child gets.

    Attributes:
        start: the fit, made ready.
        output: the file that the child prints to until there is a run directory.
        argv, script: of the caller; Ray's workers find the script's folder by them.
    """

    start: Start
    output: Path
    argv: list[str]
    script: str | None


def fit_detached(config: FitConfig) -> Run:
    """Start a fit in a child process; returns when the run is on record.

    Raises:
        FtrayError: as `fit_here` does, for everything that keeps a run from being on record.
    """
    with made_ready(config) as start:
        environment, start = _environment(start)
        output = _temporary_file(start.place.storage.name)
        try:
            answer = Child(output, environment).ask(_pickled(start, output))
        except BaseException:
            output.unlink(missing_ok=True)
            raise
        if "error" in answer:
            output.unlink(missing_ok=True)
            raise _as_here(answer)
    return Run(start.place.storage)


def _environment(start: Start) -> tuple[dict[str, str], Start]:
    """The child's environment: the caller's, with the Ray session that the caller is part of.

    A session that the caller started for itself ends with it: the child finds another, and the log
    says so.
    """
    environment = dict(os.environ)
    if start.job.config.num_workers == 0 or "ray" not in sys.modules:
        return environment, start
    from ftray.cluster.connect import session_here

    session = session_here()
    if session is not None and not session.own:
        environment["RAY_ADDRESS"] = session.address
    elif session is not None:
        note = "Ray: the session of the calling process ends with it, so this run has another"
        start = replace(start, job=replace(start.job, notes=(*start.job.notes, note)))
    return environment, start


def _temporary_file(run: str) -> Path:
    handle, path = tempfile.mkstemp(prefix=f"ftray-{run}-", suffix=".txt")
    os.close(handle)
    return Path(path)


def _pickled(start: Start, output: Path) -> bytes:
    main = sys.modules.get("__main__")
    handed = Handed(
        start=start, output=output, argv=list(sys.argv), script=getattr(main, "__file__", None)
    )
    try:
        pickled: bytes = cloudpickle.dumps(handed)
    except Exception as error:
        raise ConfigError(
            f"wait = False hands the fit to a child process, but {_culprit(start)} cannot be "
            f"pickled ({error}). With wait = True this process trains itself."
        ) from error
    return pickled


def _culprit(start: Start) -> str:
    for number, callback in enumerate(start.job.callbacks):
        try:
            cloudpickle.dumps(callback)
        except Exception:
            return f"callbacks[{number}], of class {type(callback).__name__},"
    return "something in its options"


def _as_here(answer: dict[str, Any]) -> errors.FtrayError:
    """The error that would have been raised here with wait = True."""
    cls = getattr(errors, answer["error"], None)
    if isinstance(cls, type) and issubclass(cls, errors.FtrayError):
        return cls(answer["message"])
    return RunFailedError(f"The run could not begin: {answer['error']}: {answer['message']}")


class Child:
    """The process, as seen by its parent, which may end before it.

    Args:
        output: the file it prints to.
        environment: its environment variables.
    """

    def __init__(self, output: Path, environment: dict[str, str]) -> None:
        self._output = output
        self._answers, answers = os.pipe()
        # Its modules come from where ours do, whatever lies in the current folder. A session of
        # its own: neither Ctrl-C here nor a terminal that closes ends it.
        program = (
            f"import sys; sys.path[:] = {[str(entry) for entry in sys.path]!r}; "
            f"from ftray.launch.child import main; main({answers})"
        )
        with open(output, "ab") as file:
            self.process = subprocess.Popen(
                [sys.executable, "-u", "-c", program],
                stdin=subprocess.PIPE,
                stdout=file,
                stderr=file,
                pass_fds=(answers,),
                env=environment,
                start_new_session=True,
            )
        os.close(answers)
        # Somebody must take note of its end while this process lives: a zombie looks alive.
        self._reaper = threading.Thread(target=self.process.wait, name="ftray-child", daemon=True)
        self._reaper.start()

    def ask(self, handed: bytes) -> dict[str, Any]:
        """Hand it a pickled `Handed`, and wait for what it says.

        Returns:
            `{}` for a run on record, else `{"error": …, "message": …}`.

        Raises:
            RunFailedError: if it ends without a word.
        """
        try:
            self._send(handed)
            with open(self._answers, "rb") as pipe:
                text = pipe.read()
        except BaseException:  # Ctrl-C; nothing is on record yet
            with suppress(OSError):
                self.process.terminate()
            self._reaper.join()
            raise
        if not text:
            raise self._gone()
        answer: dict[str, Any] = json.loads(text)
        return answer

    def _send(self, handed: bytes) -> None:
        assert self.process.stdin is not None
        with suppress(BrokenPipeError), self.process.stdin as pipe:  # it will say why it is gone
            pipe.write(handed)

    def _gone(self) -> RunFailedError:
        self._reaper.join()
        lines = self._output.read_text(errors="replace").splitlines()[-LAST_LINES:]
        return RunFailedError(
            "The child process ended before the run was on record (exit code "
            f"{self.process.returncode}). It printed last: {' | '.join(lines) or 'nothing'}"
        )
