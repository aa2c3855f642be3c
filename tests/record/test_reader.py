"""What can be asked of a record: while the run goes on, after it is gone, and when it is over."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from ftray.events import EvaluationEnded, Log, StepEnded, StepsDiscarded
from ftray.record import reader as reader_module
from ftray.record.reader import RecordReader
from ftray.record.storage import Storage
from ftray.record.writer import RecordWriter
from tests.handmade import ended, epoch, evaluation, record, started, step


@pytest.fixture
def storage(tmp_path: Path) -> Storage:
    return Storage(f"{tmp_path}/run")


def put_status(storage: Storage, **values: object) -> dict:
    """A status.json as a living process on another machine writes it, but for `values`."""
    now = time.time()
    facts = {
        "status": "STARTED",
        "details": "",
        "created_s": now - 999,
        "started_s": now - 999,
        "seen_s": now - 5,
        "pid": os.getpid(),
        "host": "elsewhere",
        **values,
    }
    storage.write_text("status.json", json.dumps(facts))
    return RecordReader(storage).status()


def dead_pid() -> int:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


# ---------------------------------------------------------------- is it alive?


@pytest.mark.parametrize("status", ["CREATED", "STARTED"])
@pytest.mark.parametrize("host", ["elsewhere", platform.node()])
def test_a_run_that_shows_itself_is_alive(storage: Storage, status: str, host: str) -> None:
    assert put_status(storage, status=status, host=host)["status"] == status


@pytest.mark.parametrize("host", ["elsewhere", platform.node()])
def test_a_run_without_a_sign_for_three_minutes_is_gone(storage: Storage, host: str) -> None:
    """On this host the pid is alive: another process has it."""
    seen = time.time() - 181
    status = put_status(storage, host=host, seen_s=seen)
    assert status["status"] == "FAILED"
    assert "is gone without closing the record; continue with resume: auto" in status["details"]
    assert host in status["details"] and status["ended_s"] == seen
    assert put_status(storage, host=host, seen_s=time.time() - 170)["status"] == "STARTED"


def test_a_dead_process_that_its_parent_has_not_noticed_is_gone_too(storage: Storage) -> None:
    with subprocess.Popen([sys.executable, "-c", ""], stdout=subprocess.PIPE) as process:
        process.stdout.read()  # its end; nobody has waited for it yet
        put_status(storage, host=platform.node(), pid=process.pid)
        end = time.monotonic() + 10
        while RecordReader(storage).status()["status"] != "FAILED":
            assert time.monotonic() < end
            time.sleep(0.01)
        os.kill(process.pid, 0)  # it is still in the table of processes


def test_a_dead_process_of_this_machine_is_gone_at_once(storage: Storage) -> None:
    pid = dead_pid()
    status = put_status(storage, host=platform.node(), pid=pid)
    assert status["status"] == "FAILED" and str(pid) in status["details"]
    assert put_status(storage, host="elsewhere", pid=pid)["status"] == "STARTED"


def test_a_run_that_is_over_stays_as_it_is(storage: Storage) -> None:
    assert put_status(storage, status="FINISHED", seen_s=0.0)["status"] == "FINISHED"


# ---------------------------------------------------------------- reading while it is written


def test_reading_a_live_run_never_fails(storage: Storage) -> None:
    storage.create()
    writer = RecordWriter(storage)
    writer.status("STARTED")
    done = threading.Event()

    def write() -> None:
        for number in range(300):
            writer(epoch(number, number))
        done.set()

    thread = threading.Thread(target=write)
    thread.start()
    counts = [0]
    while not done.is_set():
        counts.append(len(list(RecordReader(storage).all_events())))
    thread.join()
    assert counts == sorted(counts)
    assert len(RecordReader(storage).events()) == 300


def test_only_parts_are_read_and_a_part_may_vanish(
    storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    record(storage, epoch(0, 1), epoch(1, 2))
    for other in ("part-00002.jsonl.77.tmp", ".part-00002.jsonl.77.tmp", "copy of part-1.jsonl"):
        storage.write_text(f"events/{other}", '{"kind": "ep')
    monkeypatch.setattr(
        Storage, "names", lambda *_: ["part-00000.jsonl", "part-00001.jsonl", "part-00009.jsonl"]
    )
    assert len(RecordReader(storage).events()) == 2


def test_a_message_may_hold_any_sign(storage: Storage) -> None:
    message = "a\u2028b\x85c\nd\x0ce"
    record(storage, Log(message=message), epoch(0, 1))
    first, _ = RecordReader(storage).events()
    assert isinstance(first, Log) and first.message == message


# ---------------------------------------------------------------- whose metrics?


def test_after_is_the_evaluation_of_the_artifacts_weights(storage: Storage) -> None:
    record(
        storage,
        evaluation(0, 0.1, when="before"),
        evaluation(3, 0.9),
        evaluation(6, 0.5),
        ended(artifact_step=3),
    )
    assert RecordReader(storage).metrics() == {
        "before": {"ndcg_at_k": 0.1},
        "after": {"ndcg_at_k": 0.9},
    }


def test_an_evaluation_of_other_weights_is_not_after(storage: Storage) -> None:
    """Stopped in mid-epoch: the artifact holds step 5, which only one evaluation has seen."""
    record(
        storage,
        evaluation(0, 0.1, caption="a", when="before"),
        evaluation(3, 0.2, caption="a"),
        evaluation(3, 0.3, caption="b"),
        evaluation(5, 0.4, caption="b", when="step"),
        ended(artifact_step=5, status="STOPPED"),
    )
    reader = RecordReader(storage)
    assert reader.metrics()["after"] == {"b_ndcg_at_k": 0.4}
    assert [e.name for e in reader.final_evaluations()] == ["b"]


def test_while_the_run_goes_on_after_is_the_newest(storage: Storage) -> None:
    record(storage, evaluation(3, 0.2), evaluation(5, 0.4, when="step"), status="STARTED")
    assert RecordReader(storage).metrics()["after"] == {"ndcg_at_k": 0.4}


def test_a_resumed_run_has_no_artifact_until_it_ends_again(storage: Storage) -> None:
    record(
        storage,
        started(),
        evaluation(3, 0.2),
        step(4, epoch=1),
        ended(artifact_step=4, status="STOPPED"),
        started(global_step=4, first_epoch=1, first_step=1),
        evaluation(6, 0.6),
        status="STARTED",
    )
    assert RecordReader(storage).metrics()["after"] == {"ndcg_at_k": 0.6}


def test_weights_that_were_derived_count_only_where_the_artifact_holds_them(
    storage: Storage,
) -> None:
    def at(alpha: float, value: float, when: str = "final") -> EvaluationEnded:
        return evaluation(6, value, when=when, weights=f"alpha {alpha}", alpha=alpha)

    events = (
        evaluation(0, 0.1, when="before"),
        replace(at(0.0, 0.15), when="before", global_step=0),
        evaluation(6, 0.5),
        at(0.4, 0.7),
        at(0.8, 0.6),
    )
    record(storage, *events, status="STARTED")
    reader = RecordReader(storage)
    assert reader.metrics() == {"before": {"ndcg_at_k": 0.1}, "after": {"ndcg_at_k": 0.5}}
    record(storage, ended(artifact_step=6))
    assert reader.metrics()["after"] == {"ndcg_at_k": 0.5}
    record(storage, ended(artifact_step=6, artifact_weights="alpha 0.4"))
    assert reader.metrics() == {"before": {"ndcg_at_k": 0.1}, "after": {"ndcg_at_k": 0.7}}
    rows = reader.history().select(["kind", "weights", "alpha", "ndcg_at_k"]).to_pylist()
    curve = [row["ndcg_at_k"] for row in rows if row["weights"] is None]
    others = [(row["alpha"], row["ndcg_at_k"]) for row in rows if row["weights"] is not None]
    assert curve == [0.1, 0.5]
    assert others == [(0.0, 0.15), (0.4, 0.7), (0.8, 0.6)]


def test_examples_and_queries_of_other_weights_have_places_of_their_own(storage: Storage) -> None:
    def seen(who: str, **more: Any) -> EvaluationEnded:
        table = pa.table({"query_id": [who]})
        return evaluation(6, 0.5, examples={"q": [{"id": who}]}, per_query=table, **more)

    record(storage, seen("own"), seen("mixed", weights="alpha 0.4", alpha=0.4))
    reader = RecordReader(storage)
    assert reader.per_query("evaluation", 6)["query_id"].to_pylist() == ["own"]
    mixed = reader.per_query("evaluation", 6, "alpha 0.4")
    assert mixed["query_id"].to_pylist() == ["mixed"]
    assert reader.examples()["evaluation"] == {
        "step-000006": {"q": [{"id": "own"}]},
        "step-000006-alpha-0.4": {"q": [{"id": "mixed"}]},
    }


def test_discarded_steps_are_no_part_of_the_run(storage: Storage) -> None:
    """Two epochs of three steps; the evaluation of step 3 said to stop when step 5 was done."""
    record(
        storage,
        started(),
        evaluation(0, 0.1, when="before"),
        *(step(n) for n in (1, 2, 3)),
        epoch(0, 3, train_loss=0.5),
        step(4, epoch=1),
        evaluation(4, 0.9, when="step"),
        step(5, epoch=1),
        evaluation(3, 0.3, overlapped=True),
        Log(message="stays"),
        epoch(1, 6, train_loss=0.4),
        StepsDiscarded(epoch=1, step=0, global_step=3, reason="no improvement"),
        ended(artifact_step=3),
    )
    reader = RecordReader(storage)
    kept = [(type(event).__name__, getattr(event, "global_step", 0)) for event in reader.events()]
    assert kept == [
        ("FitStarted", 0),
        ("EvaluationEnded", 0),
        ("StepEnded", 1),
        ("StepEnded", 2),
        ("StepEnded", 3),
        ("EpochEnded", 3),
        ("EvaluationEnded", 3),
        ("Log", 0),
        ("StepsDiscarded", 3),
        ("FitEnded", 6),
    ]
    assert reader.metrics() == {"before": {"ndcg_at_k": 0.1}, "after": {"ndcg_at_k": 0.3}}
    assert sum(isinstance(event, StepEnded) for event in reader.all_events()) == 5


def test_three_minutes_are_several_beats() -> None:
    from ftray.record import session

    assert reader_module.GONE_AFTER_S >= 4 * session.BEAT_EVERY_S


def test_an_evaluation_that_another_attempt_repeats_counts_once(storage: Storage) -> None:
    """Overlapped ones that were under way when the first attempt was lost."""
    writer = RecordWriter(storage)
    for event in (started(), evaluation(3, 0.25), started(3, 1), evaluation(3, 0.5)):
        writer(event)
    writer.flush()
    found = [e for e in RecordReader(storage).events() if isinstance(e, EvaluationEnded)]
    assert [e.metrics["ndcg_at_k"] for e in found] == [0.5]
