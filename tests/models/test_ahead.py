"""Batches made ready ahead, by processes."""

from __future__ import annotations

import os
import signal
import threading
import time
from pathlib import Path

import pytest
import torch

from ftray.errors import DataError, RunFailedError
from ftray.models.ahead import ahead


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_batches_come_in_order_whoever_makes_them(workers: int) -> None:
    def make(number: int) -> torch.Tensor:
        time.sleep(0.002 * (number % 3))
        return torch.full((2, 2), float(number))

    made = list(ahead(make, range(5, 17), workers))
    assert [float(batch[0, 0]) for batch in made] == list(range(5, 17))


def test_they_are_made_by_other_processes_ahead_of_whoever_takes_them(tmp_path: Path) -> None:
    def make(number: int) -> int:
        (tmp_path / str(number)).touch()
        return os.getpid()

    batches = ahead(make, range(20), 2)
    first = next(batches)
    deadline = time.monotonic() + 30
    while not (tmp_path / "3").exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert first != os.getpid() and (tmp_path / "3").exists()
    batches.close()


@pytest.mark.parametrize("workers", [0, 2])
def test_an_error_arrives_as_it_is_in_its_turn(workers: int) -> None:
    def make(number: int) -> int:
        if number == 3:
            raise DataError("pictures.csv, row 17: broken")
        return number

    batches = ahead(make, range(9), workers)
    assert [next(batches) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(DataError, match=r"^pictures.csv, row 17: broken$"):
        next(batches)


def test_closing_ends_the_processes() -> None:
    def make(number: int) -> int:
        return os.getpid()

    batches = ahead(make, range(100), 2)
    pids = {next(batches) for _ in range(8)}
    batches.close()
    deadline = time.monotonic() + 30
    while any(_is_alive(pid) for pid in pids) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not any(_is_alive(pid) for pid in pids)


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_a_process_that_dies_is_one_clear_error() -> None:
    def make(number: int) -> int:
        if number == 6:
            os.kill(os.getpid(), signal.SIGKILL)
        return number

    with pytest.raises(RunFailedError, match=r"died: .*data_workers"):
        list(ahead(make, range(40), 2))


def test_signals_go_to_whoever_forked_them() -> None:
    """A handler of the run, which would write its record, is not theirs."""

    def make(number: int) -> bool:
        os.kill(os.getpid(), signal.SIGTERM)  # as `ray job stop` does to all that a job started
        return signal.getsignal(signal.SIGINT) == signal.SIG_IGN

    before = signal.signal(signal.SIGTERM, lambda number, frame: None)
    try:
        assert all(ahead(make, range(4), 2))
    finally:
        signal.signal(signal.SIGTERM, before)


def test_it_draws_nothing_of_the_random_state() -> None:
    torch.manual_seed(5)
    wanted = torch.rand(3)
    torch.manual_seed(5)
    list(ahead(lambda number: number, range(4), 2))
    assert torch.equal(torch.rand(3), wanted)


def test_nothing_is_forked_while_a_thread_makes_a_batch() -> None:
    """A forked process would wait for ever for what that thread holds, such as an import."""
    making, go_on, forked = threading.Event(), threading.Event(), threading.Event()

    def slow(number: int) -> int:
        making.set()
        assert go_on.wait(30)
        return number

    def fork() -> None:
        assert list(ahead(lambda number: number, range(4), 2)) == [0, 1, 2, 3]
        forked.set()

    evaluating = threading.Thread(target=lambda: list(ahead(slow, range(1), 0)))
    evaluating.start()
    assert making.wait(30)
    training = threading.Thread(target=fork)
    training.start()
    assert not forked.wait(1.0)
    go_on.set()
    assert forked.wait(30)
    evaluating.join()
    training.join()
