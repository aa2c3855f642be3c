"""Fresh processes for `scaling.py`, their memory, and the time of calls in them."""

from __future__ import annotations

import os
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import common
import torch
import torch.multiprocessing

MB = 1e6

Table = tuple[Sequence[str], list[list[str]]]


def cores() -> int:
    """How many this process may use."""
    return len(os.sched_getaffinity(0))


def median_s(work: Callable[[], object], runs: int) -> float:
    """Seconds that a call takes; once more to warm up."""
    took = []
    for _ in range(runs + 1):
        start = time.perf_counter()
        work()
        took.append(time.perf_counter() - start)
    return statistics.median(took[1:])


def apart(function: Callable[..., Any], *arguments: Any) -> Any:
    """Call a function of a module in a fresh process."""
    (answer,) = spawned(function, [arguments])
    return answer


def spawned(function: Callable[..., Any], each: Sequence[Sequence[Any]]) -> list[Any]:
    """Call a function in as many fresh processes at once as there are argument lists."""
    with tempfile.TemporaryDirectory(prefix="ftray-scaling-") as place:
        paths = [f"{place}/{number}" for number in range(len(each))]
        context = torch.multiprocessing.get_context("spawn")
        processes = [
            context.Process(target=answer_into, args=(path, function, arguments))
            for path, arguments in zip(paths, each, strict=True)
        ]
        for process in processes:
            process.start()
        for process in processes:
            process.join()
        failed = any(process.exitcode for process in processes)
        common.require(not failed, f"{function.__name__} failed in a process")
        return [torch.load(path, weights_only=False) for path in paths]


def answer_into(path: str, function: Callable[..., Any], arguments: Sequence[Any]) -> None:
    """What such a process does; it ends at once, as gloo's threads do not always end in order."""
    torch.save(function(*arguments), path)
    os._exit(0)


def ready() -> int:
    """What this process holds now, in bytes; from here on its peak is counted."""
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    return held("VmRSS")


def held(field: str = "VmHWM") -> int:
    """A size that Linux tells of this process, in bytes; by default the peak since `ready`."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    (size,) = (line.split()[1] for line in lines if line.startswith(f"{field}:"))
    return 1024 * int(size)
