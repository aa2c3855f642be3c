"""What is said about events, and when a run says how long it will take."""

from __future__ import annotations

import io
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from ftray.events import Event, FitStarted, StepEnded
from ftray.record.narrator import Narrator, duration_words, narrate, time_split
from ftray.record.reader import RecordReader
from ftray.record.session import RunSession
from ftray.record.storage import Storage
from ftray.report.console import RunConsole
from tests.handmade import FACTS, ended, evaluation, started, step


def begun(*, epochs: int = 4, steps_per_epoch: int = 6, global_step: int = 0) -> FitStarted:
    return replace(
        started(global_step, global_step // steps_per_epoch, global_step % steps_per_epoch),
        epochs=epochs,
        steps_per_epoch=steps_per_epoch,
    )


def steps(first: int, last: int, seconds: float = 2.0, per_epoch: int = 6) -> list[StepEnded]:
    """Steps `first` to `last`, the first of them a hundred times slower than the others."""
    return [
        replace(
            step(number, epoch=(number - 1) // per_epoch),
            data_s=0.1,
            step_s=seconds * (100 if number == first else 1),
        )
        for number in range(first, last + 1)
    ]


def said(events: Iterable[Event], narrator: Narrator | None = None) -> list[str]:
    """The forecasts among the log lines."""
    narrator = narrator or Narrator()
    lines = [line for event in events for line in narrator(event)]
    assert all(line.level == "INFO" for line in lines if line.message.startswith("This will"))
    return [line.message for line in lines if line.message.startswith("This will")]


# ---------------------------------------------------------------- how long it will take


def test_the_time_is_told_once_from_the_steps_after_the_first() -> None:
    assert said([begun(), *steps(1, 4)]) == []
    assert said([begun(), *steps(1, 24)]) == [
        "This will take about 40 seconds (19 more steps at 2.1 s)"
    ]


def test_evaluations_count_once_for_each_epoch_that_has_not_ended() -> None:
    first = replace(evaluation(0, 0.1, when="before", caption="a"), wall_s=20.0)
    second = replace(evaluation(0, 0.1, when="before", caption="b"), wall_s=40.0)
    (line,) = said([begun(), first, second, *steps(1, 5)])
    assert line == (
        "This will take about 5 minutes (19 more steps at 2.1 s, 8 evaluations of 30 s)"
    )


def test_a_run_that_goes_on_counts_what_is_left() -> None:
    (line,) = said([begun(global_step=12), *steps(13, 24)])
    assert line == "This will take about 15 seconds (7 more steps at 2.1 s)"


def test_every_attempt_tells_its_own_time_and_remembers_the_evaluations() -> None:
    narrator = Narrator()
    before = replace(evaluation(0, 0.1, when="before"), wall_s=30.0)
    assert len(said([begun(), before, *steps(1, 8)], narrator)) == 1
    assert said([begun(global_step=6), *steps(7, 12, 1.0)], narrator) == [
        "This will take about 2 minutes (13 more steps at 1.1 s, 3 evaluations of 30 s)"
    ]


@pytest.mark.parametrize(("epochs", "lines"), [(1, 0), (2, 1)])
def test_with_a_handful_of_steps_left_nothing_is_told(epochs: int, lines: int) -> None:
    count = 9 if epochs == 1 else 5
    assert len(said([begun(epochs=epochs, steps_per_epoch=count), *steps(1, 9, 2, count)])) == lines


def test_the_time_stands_in_the_log_and_on_the_console(tmp_path: Path) -> None:
    storage = Storage(f"{tmp_path}/run")
    storage.create()
    out = io.StringIO()
    session = RunSession(storage, "tiny", [RunConsole(Console(file=out, width=60))])
    session.open(FACTS)
    for event in (begun(), *steps(1, 6)):
        session.emit(event)
    session.finish(ended(6))
    line = "This will take about 40 seconds (19 more steps at 2.1 s)"
    assert line in RecordReader(storage).logs() and line in out.getvalue()
    (split,) = (text for text in out.getvalue().splitlines() if "Time: " in text)
    assert split.split("] ")[1] in RecordReader(storage).logs()


# ---------------------------------------------------------------- one line for one event


def test_the_start_names_the_rows_of_each_worker() -> None:
    one = replace(started(), batch_size=64)
    many = replace(one, world_size=3, where="on 3 Ray workers")
    (line,) = narrate(many)
    assert "batch 64 (21.3 rows per worker), on 3 Ray workers" in line.message
    (line,) = narrate(replace(many, world_size=2))
    assert "batch 64 (32 rows per worker)" in line.message
    (line,) = narrate(one)
    assert "batch 64, in this process" in line.message


def test_one_of_a_thing_is_singular() -> None:
    (line,) = narrate(replace(started(), epochs=1, steps_per_epoch=1))
    assert "1 epoch of 1 step, batch 8, in this process (cpu, 1 thread, fp32)" in line.message
    alone = replace(evaluation(3, 0.5), queries=1, documents=1, queries_without_relevant=1)
    (line,) = narrate(alone)
    assert line.message == (
        "Evaluated evaluation at step 3: 1 query over 1 document in 0.1 s "
        "(queries with nothing relevant, which count as 0: 1)"
    )
    assert duration_words(90061) == "1 day, 1 hour 1 minute and 1 second"
    assert duration_words(218) == "0 days, 0 hours 3 minutes and 38 seconds"


def test_the_parts_of_the_time_add_up_to_the_whole() -> None:
    line = time_split({"data": 1.0, "step": 6.0, "evaluation": 2.0, "checkpoint": 0.5}, 10.0)
    shares = [int(part.split("(")[1].split(" %")[0]) for part in line.split(", ")]
    assert line.startswith("Time: step 6.0 s (60 %), evaluation 2.0 s (20 %), data")
    assert abs(sum(shares) - 100) <= 1
