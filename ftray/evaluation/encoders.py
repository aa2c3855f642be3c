"""Who encodes: this process, several processes of this machine, or others (`ftray.cluster`).

Whoever does it, batches are cut the same way from the costs of the items alone, so the embeddings
are those of one process (to the last bits, where the number of threads differs).

The processes of this machine are started from a module of ftray's own, not forked and not from the
caller's script: threads of OpenMP do not survive a fork, and a script needs no
`if __name__ == "__main__"`. They get the model and their work over a socket of their own, and end
when it is closed, so that none outlives its caller.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing import Pipe
from multiprocessing.connection import Connection, wait
from typing import Any

import cloudpickle
import numpy as np
import numpy.typing as npt
import torch

from ftray.errors import FtrayError, ModelError, RunFailedError
from ftray.evaluation.encode import cut_batches, encode_texts
from ftray.media import Content
from ftray.models.base import Encoder

__all__ = ["AHEAD", "DealtEncoders", "Encoders", "Here", "Processes", "packed_encoder"]

AHEAD = 2
"""How many batches an encoder has at the most: it begins the next while one is on its way back."""
END_TIMEOUT_S = 10.0

Floats = npt.NDArray[np.float32]
OnDone = Callable[[int], None]
Answer = tuple[int, Floats]


class Encoders(ABC):
    """Whoever encodes; close it, or leave its `with`, when all is encoded."""

    @abstractmethod
    def encode(
        self, items: Sequence[Content], *, role: str, batch_size: int | None, on_done: OnDone
    ) -> Floats:
        """Embeddings `(n, D)` float32, in the order given.

        Args:
            items: what to encode.
            role: see `encode_texts`.
            batch_size: items at a time; None = see `cut_batches`.
            on_done: called with the number of items of each batch that is done.
        """

    def close(self) -> None:
        """End what was started."""
        return None

    def __enter__(self) -> Encoders:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


class Here(Encoders):
    """This process.

    Args:
        encoder: the model.
        data_workers: processes that decode ahead.
    """

    def __init__(self, encoder: Encoder, data_workers: int = 0) -> None:
        self._encoder = encoder
        self._data_workers = data_workers

    def encode(
        self, items: Sequence[Content], *, role: str, batch_size: int | None, on_done: OnDone
    ) -> Floats:
        """See `Encoders.encode`."""
        before = 0

        def progress(done: int, _: int) -> None:
            nonlocal before
            on_done(done - before)
            before = done

        return encode_texts(
            self._encoder,
            items,
            role=role,
            batch_size=batch_size,
            data_workers=self._data_workers,
            on_progress=progress,
        )


class DealtEncoders(Encoders):
    """Several, each of which gets the next batch when it is ready for one; the longest go first.

    Args:
        encoder: the model, which says what things cost.
    """

    def __init__(self, encoder: Encoder) -> None:
        self._encoder = encoder

    def encode(
        self, items: Sequence[Content], *, role: str, batch_size: int | None, on_done: OnDone
    ) -> Floats:
        """See `Encoders.encode`."""
        result = np.zeros((len(items), self._encoder.embedding_dim), np.float32)
        batches = cut_batches([self._encoder.cost(item) for item in items], batch_size)
        work = ((number, role, [items[i] for i in batch]) for number, batch in enumerate(batches))
        for number, vectors in self._answers(work):
            result[batches[number]] = vectors
            on_done(len(batches[number]))
        return result

    @abstractmethod
    def _answers(self, work: Iterator[tuple[int, str, list[Content]]]) -> Iterator[Answer]:
        """The vectors of each batch, in any order.

        Args:
            work: number, role and items of each.
        """


def packed_encoder(encoder: Encoder) -> bytes:
    """A model as bytes for other processes, on the CPU; classes of `__main__` go by value.

    Raises:
        ModelError: if it cannot be packed.
    """
    device = encoder.device
    try:
        packed: bytes = cloudpickle.dumps(encoder.to("cpu"))
    except Exception as error:
        raise ModelError(
            f"'{encoder.name}' cannot be sent to other processes ({type(error).__name__}: {error})"
            ". num_workers = 0 encodes in this one"
        ) from error
    finally:
        encoder.to(device)
    return packed


@dataclass(eq=False)
class _Process:
    """One of the processes, and how many batches it has."""

    popen: subprocess.Popen[bytes]
    connection: Connection
    has: int = field(default=AHEAD)  # nothing is sent before it is ready

    def died(self) -> RunFailedError:
        """It is gone."""
        self.popen.wait()
        code = self.popen.returncode
        how = f"signal {-code}" if code < 0 else f"exit code {code}"
        return RunFailedError(
            f"A process that encodes died ({how}); what it printed stands above. Each one holds "
            "the whole model: fewer num_workers need less memory"
        )


class Processes(DealtEncoders):
    """Processes of this machine; each has the model, and its share of the cores.

    Args:
        encoder: the model.
        count: how many processes.

    Raises:
        ModelError: if the model cannot be sent to them.
    """

    def __init__(self, encoder: Encoder, count: int) -> None:
        super().__init__(encoder)
        threads = max(1, len(os.sched_getaffinity(0)) // count)
        packed = packed_encoder(encoder)
        gpus = torch.cuda.device_count() if encoder.device.type == "cuda" else 0
        self._processes: list[_Process] = []
        try:
            for number in range(count):
                device = f"cuda:{number % gpus}" if gpus else encoder.device.type
                process = self._start(threads)
                self._processes.append(process)
                process.connection.send((threads, device))
                process.connection.send_bytes(packed)
        except OSError:
            process = self._processes[-1]
            self.close()
            raise process.died() from None
        except BaseException:
            self.close()
            raise

    @staticmethod
    def _start(threads: int) -> _Process:
        environment = {
            "OMP_WAIT_POLICY": "PASSIVE",  # spinning threads slow each other down
            **os.environ,
            "PYTHONPATH": os.pathsep.join(sys.path),
            "OMP_NUM_THREADS": str(threads),
            "RAYON_NUM_THREADS": str(threads),  # those of the tokenizers
        }
        ours, theirs = Pipe()
        with theirs:
            descriptor = theirs.fileno()
            popen = subprocess.Popen(
                [sys.executable, "-m", "ftray.evaluation.encoder_process", str(descriptor)],
                env=environment,
                pass_fds=[descriptor],
                stdin=subprocess.DEVNULL,
            )
        return _Process(popen, ours)

    def _answers(self, work: Iterator[tuple[int, str, list[Content]]]) -> Iterator[Answer]:
        """See `DealtEncoders`."""
        by_connection = {process.connection: process for process in self._processes}
        under_way = 0
        task = next(work, None)
        while task is not None or under_way:
            for process in sorted(self._processes, key=lambda one: one.has):
                while task is not None and process.has < AHEAD:
                    self._send(process, task)
                    under_way += 1
                    task = next(work, None)
            for connection in wait(list(by_connection)):
                process = by_connection[connection]  # type: ignore[index]
                number, answer = self._received(process)
                if number is None:  # it is ready
                    process.has = 0
                    continue
                process.has -= 1
                under_way -= 1
                yield number, answer

    def _send(self, process: _Process, task: Any) -> None:
        try:
            process.connection.send(task)
        except OSError:
            raise process.died() from None
        process.has += 1

    @staticmethod
    def _received(process: _Process) -> tuple[int | None, Any]:
        try:
            number, answer = process.connection.recv()
        except (EOFError, OSError):
            raise process.died() from None
        if isinstance(answer, FtrayError):
            raise answer
        if isinstance(answer, str):  # where it was raised, and what
            raise RunFailedError(f"A process that encodes failed:\n{answer}")
        return number, answer

    def close(self) -> None:
        """End the processes; one that is in the midst of a batch is not waited for long."""
        for process in self._processes:
            process.connection.close()
        deadline = time.monotonic() + END_TIMEOUT_S
        for process in self._processes:
            with suppress(subprocess.TimeoutExpired):
                process.popen.wait(max(0.0, deadline - time.monotonic()))
            if process.popen.poll() is None:
                process.popen.kill()
                process.popen.wait()
