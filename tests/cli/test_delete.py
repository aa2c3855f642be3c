"""`ftray delete` asks, and deletes what is a run and is over."""

from __future__ import annotations

import builtins
import io
import sys
from pathlib import Path

import pytest

from ftray.record.storage import Storage
from tests.handmade import record


@pytest.fixture
def run(folder: Path) -> Path:
    record(Storage(f"{folder}/runs/default/one"))
    return folder / "runs/default/one"


def test_a_run_is_deleted_after_a_yes(cli, run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    for answer, gone in (("n", False), ("", False), ("y", True)):
        monkeypatch.setattr(builtins, "input", lambda prompt, a=answer: asked.append(prompt) or a)
        done = cli("delete", "one")
        assert done.code == 0 and run.exists() is not gone
        assert done.out == (f"Deleted {run}\n" if gone else "Nothing was deleted.\n")
    assert asked == [f"Delete {run} with its artifact and checkpoints? [y/N] "] * 3


def test_a_script_says_yes_beforehand(cli, run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO(""))
    done = cli("delete", "one")
    assert done.code == 2 and "--yes" in done.err and "Traceback" not in done.err and run.exists()
    done = cli("delete", "one", "--yes")
    assert done.code == 0 and not run.exists()


def test_what_is_no_run_or_goes_on_is_not_deleted(refused, run: Path, folder: Path) -> None:
    record(Storage(f"{folder}/runs/default/busy"), status="STARTED")
    assert "Run 'busy' is STARTED; stop it first" in refused("delete", "busy", "--yes")
    assert "There is no run 'two'" in refused("delete", "two", "--yes")
    assert "is no run directory" in refused("delete", str(folder / "runs"), "--yes")
