"""Points wait for their results, and are judged one after the other, never out of turn."""

from __future__ import annotations

from typing import Any

from ftray.training.points import Point, PointQueue


def point(step: int, **values: Any) -> Point:
    fields = {"when": "step", "state_epoch": 0, "state_step": step - 1, "next_epoch": 0}
    fields |= {"next_step": step, "global_step": step, "loss": 0.5}
    return Point(**{**fields, "learning_rates": {"encoder": 0.1}, "metrics": {}, **values})


def test_a_point_is_complete_when_all_its_results_are_there() -> None:
    queue, first = PointQueue(), point(3)
    tickets = [queue.expect(first, number) for number in (0, 1)]
    queue.append(first)
    assert queue.pop_complete() is None
    assert queue.arrived(tickets[1]) == (first, 1)
    assert queue.pop_complete() is None
    assert queue.arrived(tickets[0]) == (first, 0)
    assert queue.pop_complete() is first
    assert len(queue) == 0


def test_a_later_point_waits_for_an_earlier_one() -> None:
    queue, first, second = PointQueue(), point(3), point(6)
    ticket = queue.expect(first, 0)
    queue.append(first)
    queue.append(second)  # nothing is missing of it
    assert queue.pop_complete() is None
    queue.arrived(ticket)
    assert [queue.pop_complete(), queue.pop_complete()] == [first, second]


def test_results_of_discarded_points_are_nobodys() -> None:
    queue, first = PointQueue(), point(3)
    ticket = queue.expect(first, 0)
    queue.append(first)
    queue.clear()
    assert queue.arrived(ticket) is None and len(queue) == 0


def test_a_queue_comes_back_from_json_and_asks_anew() -> None:
    queue, first = PointQueue(), point(3, metrics={"train_loss": 0.5}, fresh=["train_loss"])
    queue.expect(first, 1)
    queue.append(first)
    again = PointQueue()
    again.load(queue.to_json())
    (copy,) = again
    assert copy == first and copy.waiting == [1]
    again.arrived(again.expect(copy, 1))
    assert again.pop_complete() == copy


def test_the_checkpoint_of_a_point_is_where_training_goes_on() -> None:
    assert point(3).checkpoint == "epoch-0000-step-000003"
    assert point(3, when="epoch", next_epoch=1, next_step=0).checkpoint == "epoch-0001"
    assert point(0, when="before").checkpoint == ""


def test_metrics_of_a_point_are_fresh_once() -> None:
    one = point(3, metrics={"old": 1.0})
    one.add({"new": 2.0})
    one.add({"new": 3.0})
    assert one.metrics == {"old": 1.0, "new": 3.0} and one.fresh == ["new"]
    assert one.as_best("new", 3.0)["metrics"] == {"new": 3.0}
