"""report.html during a run and at its end: kept up to date, and never in the way."""

from __future__ import annotations

import itertools
import re
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

import ftray
from ftray.callbacks import Callback, EvaluationCallback
from ftray.errors import RunFailedError
from ftray.events import Log
from ftray.record.reader import RecordReader
from ftray.record.session import RunSession
from ftray.record.storage import Storage
from ftray.report import live as live_module
from ftray.report import page as page_module
from ftray.report.live import LiveReport, reported
from tests.handmade import FACTS, ended, epoch, evaluation, started, step


@pytest.fixture
def storage(tmp_path: Path) -> Storage:
    made = Storage(f"{tmp_path}/run")
    made.create()
    return made


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first page at once, the next ones soon."""
    monkeypatch.setattr(live_module, "FIRST_AFTER_S", 0.0)
    monkeypatch.setattr(live_module, "EVERY_S", 0.05)
    monkeypatch.setattr(live_module, "SHARE", 1.0)


def said(storage: Storage) -> str | None:
    """The status that the page shows; None where there is no page."""
    if not storage.exists("report.html"):
        return None
    found = re.search(r'"ftray-status" content="(\w+)"', storage.read_text("report.html"))
    return found and found[1]


def until(true: Callable[[], bool]) -> None:
    end = time.monotonic() + 20
    while not true():
        assert time.monotonic() < end
        time.sleep(0.01)


def warnings(storage: Storage) -> list[str]:
    events = RecordReader(storage).all_events()
    return [e.message for e in events if isinstance(e, Log) and e.level == "WARNING"]


# ---------------------------------------------------------------- during the run


@pytest.mark.usefixtures("hasty")
def test_the_page_follows_the_run(storage: Storage) -> None:
    session = RunSession(storage, "tiny", [])
    with reported(session):
        session.open(FACTS)
        session.emit(step(1))
        time.sleep(0.2)
        assert said(storage) is None, "a step is no milestone"
        session.emit(evaluation(0, 0.25, when="before"))
        until(lambda: said(storage) == "STARTED")
        session.emit(evaluation(1, 0.375))
        until(lambda: "0.3750" in storage.read_text("report.html"))
        session.finish(ended(1))
        assert said(storage) == "STARTED"
    assert said(storage) == "FINISHED" and warnings(storage) == []


def test_pages_are_written_now_and_then_only(
    storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[float] = []

    def write(storage: Storage) -> str:
        written.append(time.monotonic())
        return ""

    monkeypatch.setattr(page_module, "write_report", write)
    monkeypatch.setattr(live_module, "FIRST_AFTER_S", 0.2)
    monkeypatch.setattr(live_module, "EVERY_S", 0.4)
    begun = time.monotonic()
    live = LiveReport(storage, warn=pytest.fail)
    while time.monotonic() - begun < 1.1:
        live(epoch(0, 1))
        time.sleep(0.01)
    live.close()
    assert 2 <= len(written) <= 3 and written[0] - begun >= 0.2
    assert all(late - early >= 0.39 for early, late in itertools.pairwise(written))
    before = len(written)
    live(epoch(1, 2))
    live.write_last()
    assert len(written) == before + 1


def test_a_page_that_takes_long_is_written_less_often(
    storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    def write(storage: Storage) -> str:
        end = time.thread_time() + 0.1
        while time.thread_time() < end:
            pass
        return ""

    monkeypatch.setattr(page_module, "write_report", write)
    live = LiveReport(storage, warn=pytest.fail)
    live.write_last()
    assert live._due - time.monotonic() == pytest.approx(30, abs=1)
    monkeypatch.setattr(live_module, "SHARE", 0.001)
    live.write_last()
    assert live._due - time.monotonic() >= 99


@pytest.mark.usefixtures("hasty")
def test_a_page_that_hangs_does_not_hold_up_the_run(
    storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, go_on = threading.Event(), threading.Event()
    write = page_module.write_report

    def hang(storage: Storage) -> str:
        begun.set()
        go_on.wait(20)
        return write(storage)

    monkeypatch.setattr(page_module, "write_report", hang)
    session = RunSession(storage, "tiny", [])
    with reported(session):
        session.open(FACTS)
        session.emit(started())
        assert begun.wait(20)
        start = time.monotonic()
        for number in range(50):
            session.emit(epoch(number, number))
        session.finish(ended(1))
        assert time.monotonic() - start < 5
        assert RecordReader(storage).status()["status"] == "FINISHED"
        go_on.set()
    assert said(storage) == "FINISHED"


@pytest.mark.usefixtures("hasty")
def test_a_page_that_cannot_be_written_is_one_warning(storage: Storage) -> None:
    Path(storage.path("report.html")).mkdir()
    session = RunSession(storage, "tiny", [])
    with reported(session):
        session.open(FACTS)
        session.emit(epoch(0, 1))
        until(lambda: bool(warnings(storage)))
        for number in range(1, 4):
            session.emit(epoch(number, number))
            time.sleep(0.1)
        session.finish(ended(1))
    (line,) = warnings(storage)
    assert line.startswith("report.html was not written: StorageError: ") and "\n" not in line
    assert RecordReader(storage).status()["status"] == "FINISHED"


def test_the_last_page_that_cannot_be_written_is_a_warning_on_record(storage: Storage) -> None:
    Path(storage.path("report.html")).mkdir()
    session = RunSession(storage, "tiny", [])
    with reported(session):
        session.open(FACTS)
        session.finish(ended(0))
    assert len(warnings(storage)) == 1 and "report.html was not written" in storage.read_text(
        "logs.txt"
    )


# ---------------------------------------------------------------- at the end


@pytest.mark.parametrize("how", ["FAILED", "STOPPED"])
def test_however_a_run_ends_its_page_says_so(storage: Storage, how: str) -> None:
    session = RunSession(storage, "tiny", [])
    with pytest.raises(ValueError, match="broken"), reported(session):
        session.open(FACTS)
        error = ValueError("broken <i>in two</i>")
        session.fail(error) if how == "FAILED" else session.interrupted()
        raise error
    assert said(storage) == how
    reason = "broken &lt;i&gt;in two&lt;/i&gt;" if how == "FAILED" else "interrupted"
    assert reason in storage.read_text("report.html")


def test_no_page_is_written_into_the_run_of_somebody_else(storage: Storage) -> None:
    with pytest.raises(ValueError, match="taken"), reported(RunSession(storage, "tiny", [])):
        raise ValueError("taken")
    assert storage.names() == []


class Fails(Callback):
    def on_epoch_end(self, state):
        raise ValueError("a mistake of mine")


def test_a_fit_leaves_its_page(tmp_path: Path, tiny_model: Path, labelled_rows) -> None:
    fields = {
        "model": str(tiny_model),
        "train_data": labelled_rows,
        "loss": "SupConLoss",
        "epochs": 1,
        "num_workers": 0,
        "storage_path": str(tmp_path),
        "listeners": [],
    }
    data = EvaluationCallback(labelled_rows[:16], gather_examples=True)
    run = ftray.fit(**fields, run_name="good", callbacks=[data])
    page = Path(run.path) / "report.html"
    assert said(Storage(run.path)) == "FINISHED" and run.report() == str(page)
    text = page.read_text()
    for value in run.metrics()["after"].values():
        assert f"{value:.4f}" in text
    assert "train_data was a list of 96 records" in text and "queries over 16 documents" in text
    with pytest.raises(RunFailedError):
        ftray.fit(**fields, run_name="bad", callbacks=[Fails()])
    assert said(Storage(f"{tmp_path}/default/bad")) == "FAILED"
    assert "a mistake of mine" in (tmp_path / "default" / "bad" / "report.html").read_text()
