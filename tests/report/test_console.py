"""The console leaves the terminal as it found it."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from rich.console import Console

from ftray.errors import RunFailedError
from ftray.events import Log
from ftray.events import Progress as ProgressEvent
from ftray.record.session import RunSession
from ftray.record.storage import Storage
from ftray.report import console as console_module
from ftray.report.console import RunConsole
from tests.handmade import FACTS, ended, epoch, started, step

HIDE, SHOW = "\x1b[?25l", "\x1b[?25h"


def terminal() -> tuple[RunConsole, io.StringIO]:
    out = io.StringIO()
    return RunConsole(Console(file=out, force_terminal=True, width=100)), out


@pytest.mark.parametrize("way", ["finish", "fail", "interrupted"])
def test_the_cursor_comes_back_however_the_run_ends(tmp_path: Path, way: str) -> None:
    storage = Storage(f"{tmp_path}/run")
    storage.create()
    console, out = terminal()
    session = RunSession(storage, "tiny", [console])
    session.open(FACTS)
    session.emit(started())
    session.emit(step(1))
    assert HIDE in out.getvalue() and SHOW not in out.getvalue()
    if way == "finish":
        session.finish(ended(6))
    elif way == "fail":
        session.fail(RunFailedError("no good"))
    else:
        session.interrupted()
    assert out.getvalue().rindex(SHOW) > out.getvalue().rindex(HIDE)
    assert console._bars is None


def test_a_bar_shows_loss_and_validation_loss() -> None:
    console, out = terminal()
    console(started())
    console(step(1, loss=0.25))
    console(epoch(0, 3, val_loss=2.5))
    console(step(4, epoch=1, loss=0.125))
    console.close()
    assert "Training [2/2]" in out.getvalue()
    assert "• loss: 0.125 • val_loss: 2.500" in out.getvalue()


def test_elsewhere_there_are_plain_lines_in_the_same_place(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(console_module, "PLAIN_EVERY_S", -1.0)
    out = io.StringIO()
    console = RunConsole(Console(file=out, width=40))
    console(started())
    console(step(1))
    console(ProgressEvent(task="Encoding", done=1, total=2))
    console(Log(message="[a] " + "long " * 20 + "line"))
    console(ended(6))
    lines = out.getvalue().splitlines()
    assert lines[0] == "  Training [1/2] 1/3 • loss: 0.500"
    assert len(lines) == 2 and lines[1].endswith("long line") and "[a] long" in lines[1]
    assert "\x1b" not in out.getvalue()
