"""What is said about events, and when a run says how long it will take."""

from __future__ import annotations

import io
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from ftray.events import Event, FitStarted, StepEnded, StepsDiscarded
from ftray.record.narrator import Narrator, duration_words, narrate, time_split
from ftray.record.reader import RecordReader
from ftray.record.session import RunSession
from ftray.record.storage import Storage
from ftray.report.console import RunConsole
from tests.handmade import FACTS, ended, epoch, evaluation, started, step


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


def test_evaluations_that_overlap_training_or_are_of_other_weights_do_not_count() -> None:
    first = replace(evaluation(0, 0.1, when="before", caption="a"), wall_s=20.0)
    second = replace(evaluation(0, 0.1, when="before", caption="b"), wall_s=40.0)
    late = replace(second, overlapped=True, when="epoch")
    other = replace(first, weights="alpha 0.4", alpha=0.4, wall_s=500.0)
    (line,) = said([begun(), first, second, late, other, *steps(1, 5)])
    assert line == "This will take about 2 minutes (19 more steps at 2.1 s, 4 evaluations of 20 s)"


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


# ---------------------------------------------------------------- the line of an epoch


def timed(number: int, end_s: float, *, epoch: int = 0, loss: float = 0.5, rows: int = 8) -> Event:
    """A step that took a tenth of a second for data and two seconds for itself."""
    made = replace(step(number, epoch=epoch, loss=loss), rows=rows)
    return replace(made, time_s=end_s, data_s=0.1, step_s=1.9)


def lines_of(events: Iterable[Event], narrator: Narrator | None = None) -> list[str]:
    """All that is said, but for the start."""
    narrator = narrator or Narrator()
    lines = [line for event in events for line in narrator(event)]
    assert all(line.level == "INFO" for line in lines)
    return [line.message for line in lines if not line.message.startswith("Finetuning")]


BAR = "━━━━━━━━━━"


def test_an_epoch_ends_with_the_bar_that_users_know() -> None:
    events = [started(), *(timed(n, 100.0 + 5 * n) for n in (1, 2, 3))]
    (line,) = lines_of([*events, epoch(0, 3, train_loss=0.0034, val_loss=2.7971)])
    assert line == f"Training [1/2] {BAR} 3/3 0:00:00 0:00:12 • loss: 0.003 • val_loss: 2.797"
    (line,) = lines_of([*events, epoch(0, 3, train_loss=0.284)])
    assert line == f"Training [1/2] {BAR} 3/3 0:00:00 0:00:12 • loss: 0.284"


def test_an_epochs_time_is_that_of_its_own_steps() -> None:
    """Neither evaluation and checkpoint before its first step, nor what comes after its last."""
    first = [timed(n, 100.0 + 2 * n) for n in (1, 2, 3)]
    second = [timed(n, 500.0 + 2 * n, epoch=1) for n in (4, 5, 6)]
    one = replace(epoch(0, 3, train_loss=1.0), time_s=480.0)
    two = replace(epoch(1, 6, train_loss=0.5), time_s=900.0)
    lines = lines_of([started(), *first, one, *second, two])
    assert lines == [
        f"Training [1/2] {BAR} 3/3 0:00:00 0:00:06 • loss: 1.000",
        f"Training [2/2] {BAR} 3/3 0:00:00 0:00:06 • loss: 0.500",
    ]


def test_an_epoch_that_goes_on_after_a_loss_counts_the_steps_that_stand() -> None:
    """Steps 1 and 2 stand; 3 was lost with its worker, and 100 seconds went by before it came."""
    lost = [started(), *(timed(n, 100.0 + 2 * n, rows=8) for n in (1, 2, 3))]
    again = [started(2, 0, 2), timed(3, 206.0)]
    (line,) = lines_of([*lost, *again, epoch(0, 3, train_loss=0.5)])
    assert line == f"Training [1/2] {BAR} 3/3 0:00:00 0:00:06 • loss: 0.500"


def test_an_epoch_of_which_only_the_end_was_heard_has_its_line() -> None:
    """Stopped right after the last step: only validation and evaluation were left to do."""
    (line,) = lines_of([started(3, 0, 3), epoch(0, 3, train_loss=0.5)])
    assert line == f"Training [1/2] {BAR} 3/3 0:00:00 0:00:00 • loss: 0.500"
    (line,) = lines_of([started(2, 0, 2), timed(3, 50.0), epoch(0, 3, train_loss=0.5)])
    assert line == f"Training [1/2] {BAR} 3/3 0:00:00 0:00:02 • loss: 0.500"


def test_metrics_stand_in_the_line_of_their_evaluation_and_a_callbacks_own_in_the_epochs() -> None:
    seen = replace(evaluation(3, 0.5, caption="a"), metrics={"ndcg_at_k": 0.5, "hit_at_k": 1.0})
    seen = replace(seen, keys={name: f"a_{name}" for name in seen.metrics}, wall_s=2.0)
    metrics = {"train_loss": 0.5, "a_ndcg_at_k": 0.5, "a_hit_at_k": 1.0, "answer": 42.0}
    lines = lines_of([started(), timed(3, 9.0), seen, epoch(0, 3, **metrics)])
    what = "3 queries over 9 documents in 2.0 s"
    values = "• hit_at_k: 1.00000 • ndcg_at_k: 0.50000"
    assert lines == [
        f"Evaluated a at step 3: {what} {values}",
        f"Training [1/2] {BAR} 3/3 0:00:00 0:00:02 • loss: 0.500 • answer: 42.00000",
    ]
    (line,) = lines_of([replace(seen, weights="alpha 0.4", alpha=0.4)])
    assert line == f"Evaluated a with alpha 0.4 at step 3: {what} {values}"
    (line,) = lines_of([replace(seen, weights="mean of 3")])
    assert line == f"Evaluated a with the weights 'mean of 3' at step 3: {what} {values}"
    (line,) = lines_of([replace(seen, overlapped=True)])
    assert line == f"Evaluated a at step 3: {what}, while training went on {values}"


def test_a_resumed_run_remembers_what_was_said(tmp_path: Path) -> None:
    """In a new process: the time of the epoch's first steps, and which metrics are whose."""
    storage = Storage(f"{tmp_path}/run")
    storage.create()
    first = RunSession(storage, "tiny", [])
    first.open(FACTS)
    for event in (started(), evaluation(0, 0.1, when="before"), timed(1, 102.0), timed(2, 104.0)):
        first.emit(event)
    first.finish(ended(2, status="STOPPED"))
    second = RunSession(storage, "tiny", [])
    second.open(FACTS, resumed=True)
    before = RecordReader(storage).logs()
    for event in (started(2, 0, 2), timed(3, 902.0)):
        second.emit(event)
    second.emit(epoch(0, 3, train_loss=0.5, ndcg_at_k=0.1))
    second.finish(ended(3))
    new = RecordReader(storage).logs().removeprefix(before)
    assert f"Training [1/2] {BAR} 3/3 0:00:00 0:00:06 • loss: 0.500\n" in new
    assert "before fine-tuning: 3 queries" not in new


def test_discarded_steps_are_told_with_their_number_and_the_reason() -> None:
    back = StepsDiscarded(epoch=0, step=1, global_step=1, reason="no improvement for 2 epochs")
    assert lines_of([started(), timed(1, 2.0), timed(2, 4.0), timed(3, 6.0), back]) == [
        "Back to step 1, without 2 later steps: no improvement for 2 epochs"
    ]


def test_the_artifacts_weights_are_named_where_they_were_derived(tmp_path: Path) -> None:
    storage = Storage(f"{tmp_path}/run")
    storage.create()
    session = RunSession(storage, "tiny", [])
    session.open(FACTS)
    best = {"epoch": 1, "monitor": "val_loss", "value": 0.5}
    session.finish(ended(3, artifact_weights="alpha 0.4", best=best))
    logs = RecordReader(storage).logs()
    assert "The artifact holds the weights alpha 0.4 of step 3" in logs
    assert "val_loss = 0.50000" not in logs


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
        "(queries with nothing relevant, which count as 0: 1) • ndcg_at_k: 0.50000"
    )
    assert duration_words(90061) == "1 day, 1 hour 1 minute and 1 second"
    assert duration_words(218) == "0 days, 0 hours 3 minutes and 38 seconds"


def test_the_parts_of_the_time_add_up_to_the_whole() -> None:
    line = time_split({"data": 1.0, "step": 6.0, "evaluation": 2.0, "checkpoint": 0.5}, 10.0)
    shares = [int(part.split("(")[1].split(" %")[0]) for part in line.split(", ")]
    assert line.startswith("Time: step 6.0 s (60 %), evaluation 2.0 s (20 %), data")
    assert abs(sum(shares) - 100) <= 1
