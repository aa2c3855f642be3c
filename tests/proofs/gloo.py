"""Real processes with a gloo process group, for proofs that need several ranks."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import pickle
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

__all__ = ["WORLD_SIZES", "Tables", "run_ranks"]

WORLD_SIZES = [2, pytest.param(4, marks=pytest.mark.slow)]
"""For `parametrize`: four ranks take long on two cores."""

CHILD_ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "OMP_WAIT_POLICY": "PASSIVE",
    "GLOO_SOCKET_IFNAME": "lo",
    "HF_HUB_OFFLINE": "1",
    "TOKENIZERS_PARALLELISM": "false",
}


class Tables(dict[int, list[Any]]):
    """World size to what each rank gave; the ranks are started once, when first asked for.

    Args:
        alone: what one process gives.
        function: as of `run_ranks`.
        payload: likewise.
    """

    def __init__(self, alone: Any, function: Callable[[Any, Any], Any], payload: Any) -> None:
        super().__init__({1: [alone]})
        self._work = (function, payload)
        self._failed: dict[int, BaseException] = {}

    def __missing__(self, world_size: int) -> list[Any]:
        if world_size in self._failed:
            raise self._failed[world_size]
        try:
            self[world_size] = run_ranks(world_size, *self._work)
        except BaseException as error:
            self._failed[world_size] = error
            raise
        return self[world_size]


def run_ranks(
    world_size: int,
    function: Callable[[Any, Any], Any],
    payload: Any,
    timeout_s: float = 120,
) -> list[Any]:
    """Call `function(collectives, payload)` on every rank; what each rank returned.

    The processes are spawned, so `function` must stand at the top of a module. An exception on a
    rank fails the test with that rank's traceback, and the other ranks are ended.
    """
    with tempfile.TemporaryDirectory(prefix="ftray-gloo-") as name:
        folder = Path(name)
        (folder / "payload").write_bytes(pickle.dumps((function, payload)))
        context = multiprocessing.get_context("spawn")
        with _environment(CHILD_ENVIRONMENT):
            ranks = [
                context.Process(target=_rank, args=(rank, world_size, name, timeout_s), daemon=True)
                for rank in range(world_size)
            ]
            for process in ranks:
                process.start()
        try:
            _wait(ranks, folder, timeout_s)
        finally:
            for process in ranks:
                if process.is_alive():
                    process.kill()
                process.join()
        return [
            pickle.loads((folder / f"result-{rank}").read_bytes()) for rank in range(world_size)
        ]


def _wait(ranks: list[Any], folder: Path, timeout_s: float) -> None:
    deadline = time.monotonic() + timeout_s
    while any(process.is_alive() for process in ranks):
        if any(process.exitcode for process in ranks):
            time.sleep(1)  # others may fail for a better reason, or only because this one is gone
            break
        if time.monotonic() > deadline:
            alive = [rank for rank, process in enumerate(ranks) if process.is_alive()]
            pytest.fail(f"ranks {alive} of {len(ranks)} did not end within {timeout_s:g} s")
        time.sleep(0.02)
    errors = {int(file.name.split("-")[1]): file.read_text() for file in folder.glob("error-*")}
    if errors:
        first = min(errors, key=lambda rank: ("LostWorkersError" in errors[rank], rank))
        pytest.fail(f"rank {first} of {len(ranks)} failed:\n{errors[first]}", pytrace=False)
    codes = [process.exitcode for process in ranks]
    if any(codes):
        pytest.fail(f"the ranks ended with {codes} and left no traceback", pytrace=False)


def _rank(rank: int, world_size: int, name: str, timeout_s: float) -> None:
    folder = Path(name)
    try:
        import torch
        import torch.distributed as dist

        from ftray.runtime.process_group import ProcessGroupCollectives

        torch.set_num_threads(1)
        function, payload = pickle.loads((folder / "payload").read_bytes())
        dist.init_process_group(
            "gloo",
            init_method=f"file://{folder}/store",
            rank=rank,
            world_size=world_size,
            timeout=timedelta(seconds=timeout_s),
        )
        result = function(ProcessGroupCollectives(torch.device("cpu")), payload)
        (folder / f"result-{rank}").write_bytes(pickle.dumps(result))
        dist.barrier()
    except BaseException:
        (folder / f"error-{rank}").write_text(traceback.format_exc())
        os._exit(1)
    os._exit(0)  # gloo's threads can abort a process that takes itself down in an orderly way


@contextlib.contextmanager
def _environment(values: dict[str, str]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
