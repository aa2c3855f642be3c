"""Python's collector of cyclic garbage, out of the way of large imports."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["collector_paused"]


@contextmanager
def collector_paused() -> Iterator[None]:
    """Collect nothing meanwhile.

    torch and transformers make hundreds of thousands of objects that stay; to look through them
    again and again while they are imported takes a second (`benchmarks/startup.py`).
    """
    running = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if running:
            gc.enable()
