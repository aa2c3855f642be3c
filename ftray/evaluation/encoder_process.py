"""A process that encodes: `python -m ftray.evaluation.encoder_process DESCRIPTOR`.

It is started by `ftray.evaluation.encoders.Processes`. Over the socket it gets (threads, device),
the pickled model, and then batches as (number, role, items), which it answers in their order by
(number, vectors). Its first answer is (None, None): the model is loaded. What goes wrong is
answered in place of vectors. It ends when the socket is closed.

torch is imported when the model has been received: the caller, who sends it to one process after
the other, does not wait for that.
"""

from __future__ import annotations

import os
import pickle
import queue
import signal
import sys
import threading
import traceback
from collections.abc import Iterator
from multiprocessing.connection import Connection
from typing import Any

__all__ = ["main"]


def main(descriptor: int) -> None:
    """Encode until the socket is closed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the caller, who decides
    connection: Connection[Any, Any] = Connection(descriptor)
    os.set_inheritable(descriptor, False)
    try:
        threads, device = connection.recv()
        packed = connection.recv_bytes()
        try:
            import torch

            torch.set_num_threads(threads)
            from ftray.models.onednn import use_onednn

            encoder = pickle.loads(packed).to(device)
            use_onednn(encoder)
        except Exception:
            connection.send((None, traceback.format_exc()))
            return
        del packed
        connection.send((None, None))
        for number, role, items in _received(connection):
            connection.send((number, _vectors(encoder, role, items)))
    except (EOFError, OSError):  # the caller has closed it, or is gone
        return


def _received(connection: Connection[Any, Any]) -> Iterator[Any]:
    """What is sent, read by a thread: the caller must never wait to send while we wait to answer.

    Else both would wait forever, where batches and vectors are larger than what a socket holds.
    """
    tasks: queue.SimpleQueue[Any] = queue.SimpleQueue()

    def read() -> None:
        try:
            while True:
                tasks.put(connection.recv())
        except (EOFError, OSError):
            tasks.put(None)

    threading.Thread(target=read, daemon=True).start()
    while (task := tasks.get()) is not None:
        yield task


def _vectors(encoder: Any, role: str, items: list[Any]) -> Any:
    """The vectors of a batch, or what went wrong."""
    from ftray.errors import FtrayError
    from ftray.evaluation.encode import encode_texts

    try:
        return encode_texts(encoder, items, role=role, batch_size=len(items))
    except FtrayError as error:
        return error
    except Exception:
        return traceback.format_exc()


if __name__ == "__main__":
    main(int(sys.argv[1]))
    os._exit(0)  # the thread that reads may wait for a caller that is gone
