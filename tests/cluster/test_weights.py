"""A model's files on a node that does not see its folder: written once, removed by the last."""

from __future__ import annotations

import multiprocessing
import os
import random
import time
from pathlib import Path

import numpy as np
import pytest

from ftray.cluster import weights
from ftray.cluster.weights import unpacked

FILES = {"config.json": b"{}", "0_Transformer/model.safetensors": bytes(range(256)) * 99, "e": b""}


@pytest.fixture(autouse=True)
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(weights.tempfile, "gettempdir", lambda: str(tmp_path))
    return tmp_path / f"ftray-models-{os.getuid()}"


def contents() -> dict[str, np.ndarray]:
    return {name: np.frombuffer(data, np.uint8) for name, data in FILES.items()}


def test_files_are_as_they_were_and_gone_afterwards(temporary: Path) -> None:
    with unpacked("abc", contents) as folder:
        assert {n: (folder / n).read_bytes() for n in FILES} == FILES
        with unpacked("abc", lambda: pytest.fail("they are there")) as again:
            assert again == folder
        assert folder.exists(), "somebody uses it"
    assert list(temporary.iterdir()) == []


def test_what_a_killed_process_left_is_used_and_removed(temporary: Path) -> None:
    (temporary / "abc").mkdir(parents=True)
    (temporary / "abc.lock").touch()
    (temporary / "abd.begun").mkdir()
    with unpacked("abc", lambda: pytest.fail("they are there")):
        pass
    with unpacked("abd", contents) as folder:
        assert (folder / "config.json").exists()
    assert list(temporary.iterdir()) == []


def use(number: int, temporary: Path, written: Path) -> None:
    """One of several processes that come and go."""
    weights.tempfile.gettempdir = lambda: str(temporary)

    def read() -> dict[str, np.ndarray]:
        (written / f"{number}-{time.monotonic_ns()}").touch()
        time.sleep(0.05)
        return contents()

    draw = random.Random(number)
    for _ in range(20):
        with unpacked("abc", read) as folder:
            time.sleep(draw.uniform(0, 0.01))
            assert {n: (folder / n).read_bytes() for n in FILES} == FILES


def test_processes_that_come_and_go_always_find_all_files(tmp_path: Path, temporary: Path) -> None:
    written = tmp_path / "written"
    written.mkdir()
    fork = multiprocessing.get_context("fork")
    processes = [fork.Process(target=use, args=(n, tmp_path, written)) for n in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0] * 4
    assert list(temporary.iterdir()) == []
    assert 1 <= len(list(written.iterdir())) < 80, "most of them found it there"
