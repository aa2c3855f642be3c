"""A fit in a child process: the child's side. See `detach` for the caller's."""

from __future__ import annotations

import json
import os
import pickle
import sys
from contextlib import suppress
from pathlib import Path

from ftray.errors import ConfigError, FtrayError
from ftray.launch.detach import Handed
from ftray.launch.drive import drive
from ftray.launch.places import OUTPUT
from ftray.record.session import RunSession

__all__ = ["main"]


class Caller:
    """The way back to the caller: one answer, to a caller that may be gone.

    Args:
        descriptor: the pipe's end.
    """

    def __init__(self, descriptor: int) -> None:
        self._descriptor: int | None = descriptor
        os.set_inheritable(descriptor, False)  # what Ray starts would keep it open

    def on_record(self) -> None:
        """The run is on record."""
        self._answer({})

    def failed(self, error: BaseException) -> None:
        """It never will be."""
        self._answer({"error": type(error).__name__, "message": str(error)})

    def _answer(self, answer: dict[str, str]) -> None:
        if self._descriptor is None:
            return
        with suppress(OSError), open(self._descriptor, "wb") as pipe:
            pipe.write(json.dumps(answer).encode())
        self._descriptor = None


def main(descriptor: int) -> None:
    """Take the fit from standard input, drive it, and answer once.

    Args:
        descriptor: where to answer.
    """
    caller = Caller(descriptor)
    try:
        handed = _receive()

        def opened(session: RunSession) -> None:
            _keep_output(session, handed.output)
            caller.on_record()

        drive(handed.start, [], opened)
    except FtrayError as error:  # the record or the caller has it
        caller.failed(error)
        raise SystemExit(error.exit_code) from None
    except KeyboardInterrupt as error:
        caller.failed(error)
        raise SystemExit(130) from None
    except BaseException as error:
        caller.failed(error)
        raise


def _receive() -> Handed:
    data = sys.stdin.buffer.read()
    with open(os.devnull, "rb") as nothing:
        os.dup2(nothing.fileno(), 0)
    try:
        handed: Handed = pickle.loads(data)
    except Exception as error:
        raise ConfigError(
            "The child process of wait = False cannot load what the fit was given "
            f"({type(error).__name__}: {error}). With wait = True the calling process trains."
        ) from error
    sys.argv[:] = handed.argv
    if handed.script is not None:
        sys.modules["__main__"].__file__ = handed.script
    return handed


def _keep_output(session: RunSession, so_far: Path) -> None:
    """From now on, print to a file of the run directory, if it is one that can be appended to."""
    place = so_far
    if session.storage.is_local:
        with suppress(OSError):
            place = _moved_output(so_far, Path(session.storage.path(OUTPUT)))
    session.say(f"What libraries print is kept in {place}", "DEBUG")


def _moved_output(so_far: Path, to: Path) -> Path:
    sys.stdout.flush()
    sys.stderr.flush()
    with open(to, "ab") as file:
        file.write(so_far.read_bytes())
        for descriptor in (1, 2):
            os.dup2(file.fileno(), descriptor)
    so_far.unlink(missing_ok=True)
    return to
