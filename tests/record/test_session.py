"""The driver's side of a run: signs of life, signals, listeners, and every way to end."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ftray.errors import ConfigError, RunFailedError, StorageError
from ftray.events import Event, FitEnded, Log
from ftray.record import session as session_module
from ftray.record.reader import RecordReader
from ftray.record.session import RunSession, StopRequests
from ftray.record.storage import Storage
from tests.handmade import FACTS, ended, epoch, evaluation, step


@pytest.fixture
def storage(tmp_path: Path) -> Storage:
    made = Storage(f"{tmp_path}/run")
    made.create()
    return made


class Listener:
    """Keeps what it hears; fails where it is told to."""

    def __init__(self, fail_at: type[Event] | str | None = None) -> None:
        self.heard: list[Event] = []
        self.closed = 0
        self.fail_at = fail_at

    def __call__(self, event: Event) -> None:
        self.heard.append(event)
        if isinstance(self.fail_at, type) and isinstance(event, self.fail_at):
            raise BrokenPipeError("nobody reads")

    def close(self) -> None:
        self.closed += 1
        if self.fail_at == "close":
            raise ValueError("cannot close")

    def lines(self) -> list[str]:
        return [event.message for event in self.heard if isinstance(event, Log)]


def opened(storage: Storage, *listeners: Callable[[Event], None]) -> RunSession:
    session = RunSession(storage, "tiny", listeners)
    session.open(FACTS)
    return session


def status(storage: Storage) -> dict[str, Any]:
    return json.loads(storage.read_text("status.json"))


# ---------------------------------------------------------------- signs of life


def test_a_run_is_created_before_it_is_started(
    storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen, write = [], Storage.write_text

    def look(self: Storage, name: str, text: str) -> None:
        seen.append(json.loads(text)["status"] if name == "status.json" else name)
        write(self, name, text)

    monkeypatch.setattr(Storage, "write_text", look)
    opened(storage).close()
    assert seen == ["run.yaml", "CREATED", "STARTED"]


def test_the_record_shows_the_run_alive_while_nothing_happens(
    storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session_module, "BEAT_EVERY_S", 0.01)
    session = opened(storage)
    first = status(storage)["seen_s"]
    end = time.monotonic() + 10
    while status(storage)["seen_s"] == first:
        assert time.monotonic() < end
        time.sleep(0.01)
    session.finish(ended(6))
    last = storage.read_text("status.json")
    time.sleep(0.05)
    assert storage.read_text("status.json") == last
    assert status(storage)["status"] == "FINISHED"


def test_a_beat_that_cannot_be_written_is_tried_again(
    storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session_module, "BEAT_EVERY_S", 0.01)
    session = RunSession(storage, "tiny", [])
    tries = []

    def beat() -> None:
        tries.append(1)
        if len(tries) == 1:
            raise StorageError("not now")

    session._writer.beat = beat
    session.open(FACTS)
    end = time.monotonic() + 10
    while len(tries) < 3:
        assert time.monotonic() < end
        time.sleep(0.01)
    session.close()


# ---------------------------------------------------------------- signals


@pytest.mark.parametrize(
    ("number", "name"), [(signal.SIGINT, "Ctrl-C"), (signal.SIGTERM, "SIGTERM")]
)
def test_a_signal_is_said_once_by_whoever_asks_next(
    storage: Storage, number: int, name: str
) -> None:
    said: list[str] = []
    stop = StopRequests(storage)
    with stop.on_signals(said.append):
        assert stop() is None
        os.kill(os.getpid(), number)
        assert said == []  # the handler does nothing that could be in the midst of itself
        assert stop.signal is not None
        assert stop() == f"{name} was received"
        assert stop() == f"{name} was received"
    assert said == [
        f"{name}: stopping at the next step, the checkpoint is kept. Again: stop at once."
    ]


def test_a_second_ctrl_c_interrupts_at_once(storage: Storage) -> None:
    before = signal.getsignal(signal.SIGINT)
    stop = StopRequests(storage)
    with pytest.raises(KeyboardInterrupt), stop.on_signals(lambda _: None):
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(5)
    assert signal.getsignal(signal.SIGINT) is before


# ---------------------------------------------------------------- listeners


def end_by_finish(session: RunSession) -> None:
    session.finish(ended(6))


def end_by_failure(session: RunSession) -> None:
    session.fail(RunFailedError("no good"))


def end_by_interruption(session: RunSession) -> None:
    session.interrupted()


WAYS = {
    "FINISHED": end_by_finish,
    "FAILED": end_by_failure,
    "STOPPED": end_by_interruption,
}


@pytest.mark.parametrize("outcome", list(WAYS))
def test_listeners_are_closed_however_the_run_ends(storage: Storage, outcome: str) -> None:
    first, heard = Listener(), []
    last = Listener()
    session = opened(storage, first, heard.append, last)
    session.emit(step(1))
    WAYS[outcome](session)
    session.close()
    assert (first.closed, last.closed) == (1, 1)
    assert first.heard == last.heard == heard
    assert status(storage)["status"] == outcome


@pytest.mark.parametrize("outcome", list(WAYS))
def test_a_listener_that_fails_is_left_out_and_named_once(storage: Storage, outcome: str) -> None:
    bad, good = Listener(fail_at=Log), Listener()
    session = opened(storage, bad, good)
    session.say("first")
    session.emit(step(1))
    session.say("second")
    WAYS[outcome](session)
    warning = "The listener Listener failed and hears no more: BrokenPipeError: nobody reads"
    assert len(bad.heard) == 1 and bad.closed == 1
    assert good.lines()[:3] == ["first", warning, "second"]
    assert RecordReader(storage).logs().count(warning) == 1
    assert status(storage)["status"] == outcome


@pytest.mark.parametrize("outcome", list(WAYS))
def test_a_listener_that_cannot_be_closed_does_not_matter(storage: Storage, outcome: str) -> None:
    bad, good = Listener(fail_at="close"), Listener()
    session = opened(storage, bad, good)
    WAYS[outcome](session)
    assert good.closed == 1
    assert "ValueError: cannot close" in RecordReader(storage).logs()
    assert status(storage)["status"] == outcome


def test_what_is_shown_before_the_record_leaves_none_behind(tmp_path: Path) -> None:
    storage = Storage(f"{tmp_path}/run")
    bad, good = Listener(fail_at=Log), Listener()
    session = RunSession(storage, "tiny", [bad, good])
    session._writer._flushed -= 100  # a line that is written would be flushed at once
    session.show(Log(message="Loading the model tiny"))
    session.close()
    assert good.lines() == ["Loading the model tiny"] and good.closed == 1
    assert not storage.exists()


def test_a_record_that_cannot_be_written_fails_the_run(
    storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    listener = Listener()
    session = opened(storage, listener)

    def refuse(*_: object) -> None:
        raise StorageError("the disk is full")

    monkeypatch.setattr(Storage, "write_bytes", refuse)
    with pytest.raises(StorageError, match="full") as caught:
        session.emit(epoch(0, 3))
    session.fail(caught.value)
    assert listener.closed == 1


# ---------------------------------------------------------------- the last words


def test_the_time_is_split_with_percentages(
    storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    listener = Listener()
    session = opened(storage, listener)
    session._started -= 20.0
    session.finish(ended(6, seconds={"data": 1.0, "step": 9.0}))
    (line,) = (e for e in listener.heard if isinstance(e, Log) and e.message.startswith("Time: "))
    assert line.level == "INFO"
    assert line.message == "Time: step 9.0 s (45 %), data 1.0 s (5 %), other 10.0 s (50 %)"


def test_the_metric_lines_are_those_of_the_artifact(storage: Storage) -> None:
    session = opened(storage)
    session.emit(evaluation(0, 0.1, when="before"))
    session.emit(evaluation(3, 0.9))
    session.emit(evaluation(6, 0.5))
    session.finish(ended(3))
    logs = RecordReader(storage).logs()
    assert "'tiny_ndcg_at_k' before fine-tuning: 0.10000 after fine-tuning: 0.90000" in logs


def test_an_unexpected_failure_leaves_its_traceback_in_the_record_alone(storage: Storage) -> None:
    listener = Listener()
    session = opened(storage, listener)
    try:
        raise KeyError("who knows")
    except KeyError as error:
        session.fail(error)
    logs = RecordReader(storage).logs()
    assert "DEBUG" in logs and "Traceback (most recent call last)" in logs
    assert "test_an_unexpected_failure" in logs and "Failed: 'who knows'" in logs
    assert listener.lines() == ["Failed: 'who knows'"]


def test_the_traceback_of_a_users_callback_is_kept_too(storage: Storage) -> None:
    session = opened(storage)
    try:
        try:
            raise ValueError("in a hook")
        except ValueError as error:
            raise RunFailedError("Own.on_fit_end failed: ValueError: in a hook") from error
    except RunFailedError as error:
        session.fail(error)
    assert "ValueError: in a hook" in RecordReader(storage).logs().split("Traceback")[1]
    assert status(storage)["details"] == "Own.on_fit_end failed: ValueError: in a hook"


def test_a_users_mistake_leaves_no_traceback(storage: Storage) -> None:
    session = opened(storage)
    session.fail(ConfigError("epochs = -1"))
    assert "Traceback" not in RecordReader(storage).logs()


def test_a_resumed_session_keeps_what_was_written(storage: Storage) -> None:
    opened(storage).finish(ended(6, status="STOPPED"))
    first, facts = status(storage), RecordReader(storage).config()
    session = RunSession(storage, "tiny", [])
    storage.write_text("control/stop", "")
    session.open(FACTS, resumed=True)
    assert session.stop() is None
    session.finish(ended(9))
    assert status(storage)["created_s"] == first["created_s"]
    again = RecordReader(storage).config()
    assert len(again.pop("resumed")) == 1 and again == facts
    found = [e for e in RecordReader(storage).all_events() if isinstance(e, FitEnded)]
    assert [e.artifact_step for e in found] == [6, 9]
