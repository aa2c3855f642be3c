"""A model's files on a node that does not see its folder: written once, removed by the last."""

from __future__ import annotations

import multiprocessing
import os
import random
import shutil
import time
from pathlib import Path

import numpy as np
import pytest

from ftray.cluster import weights
from ftray.cluster.weights import unpacked
from ftray.errors import ClusterError

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
    temporary.mkdir(0o700)
    (temporary / "abc").mkdir()
    (temporary / "abc.lock").touch()
    (temporary / "abd.begun").mkdir()
    with unpacked("abc", lambda: pytest.fail("they are there")):
        pass
    with unpacked("abd", contents) as folder:
        assert (folder / "config.json").exists()
    assert list(temporary.iterdir()) == []


def test_what_a_cleaner_took_does_not_end_the_run(temporary: Path) -> None:
    with unpacked("abc", contents) as folder:
        shutil.rmtree(folder)
    with unpacked("abc", contents) as folder:
        (folder / "config.json").unlink()
        (temporary / "abc.lock").unlink()
    assert list(temporary.iterdir()) == []
    with unpacked("abc", contents) as folder:
        shutil.rmtree(temporary)


def test_a_folder_that_others_may_write_to_is_refused(temporary: Path) -> None:
    temporary.mkdir()
    temporary.chmod(0o770)
    with (
        pytest.raises(ClusterError, match=r"must be yours alone; .* has the mode 770\. Remove it"),
        unpacked("abc", contents),
    ):
        pytest.fail("it was used")


def test_hidden_folders_stay_where_they_are(tmp_path: Path) -> None:
    for name in ("config.json", ".hidden", "0_Transformer/model", ".git/objects/ab", "a/.cache/b"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    found = {name: content.tobytes().decode() for name, content in weights._read(tmp_path).items()}
    assert found == {name: name for name in ("config.json", ".hidden", "0_Transformer/model")}


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
