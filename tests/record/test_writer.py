"""What the writer leaves in the run directory, also when it goes on with an earlier one."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest
import yaml

from ftray.events import Log
from ftray.record.reader import RecordReader
from ftray.record.storage import Storage
from ftray.record.writer import RecordWriter
from tests.handmade import FACTS, epoch, record, step


@pytest.fixture
def storage(tmp_path: Path) -> Storage:
    made = Storage(f"{tmp_path}/run")
    made.create()
    return made


def status(storage: Storage) -> dict:
    return json.loads(storage.read_text("status.json"))


def test_part_numbers_go_on_after_the_highest_present(storage: Storage) -> None:
    storage.write_text("events/part-00007.jsonl", step(1).to_json() + "\n")
    storage.write_text("events/notes.txt", "not ours")
    writer = RecordWriter(storage)
    writer(epoch(0, 2))
    writer(epoch(1, 3))
    assert storage.names("events") == [
        "notes.txt",
        "part-00007.jsonl",
        "part-00008.jsonl",
        "part-00009.jsonl",
    ]


def test_steps_wait_for_a_flush_and_milestones_do_not(storage: Storage) -> None:
    writer = RecordWriter(storage)
    writer(step(1))
    assert storage.names("events") == []
    writer(epoch(0, 1))
    assert len(list(RecordReader(storage).all_events())) == 2


def test_a_beat_shows_the_run_alive_and_writes_what_waits(storage: Storage) -> None:
    writer = RecordWriter(storage)
    writer.status("STARTED")
    first = status(storage)
    writer(Log(message="waiting for an evaluation"))
    writer.beat()
    assert status(storage)["seen_s"] > first["seen_s"]
    assert "waiting for an evaluation" in RecordReader(storage).logs()


def test_a_beat_after_the_end_changes_nothing(storage: Storage) -> None:
    writer = RecordWriter(storage)
    writer.close("FINISHED")
    before = storage.read_text("status.json")
    writer.beat()
    assert storage.read_text("status.json") == before


def test_a_resumed_run_keeps_when_it_was_created(storage: Storage) -> None:
    record(storage, status="STOPPED")
    first = status(storage)
    again = RecordWriter(storage)
    again.status("STARTED")
    now = status(storage)
    assert now["created_s"] == first["created_s"]
    assert now["started_s"] > first["started_s"]
    assert now["status"] == "STARTED" and now["details"] == "" and "ended_s" not in now


def test_a_resumed_run_keeps_its_facts_and_adds_those_of_the_attempt(storage: Storage) -> None:
    record(storage)
    now = copy.deepcopy(FACTS)
    now["config"]["num_workers"] = 4
    now["environment"] = {"python": "3.12"}
    for _ in range(2):
        RecordWriter(storage).describe_resumed(now)
    facts = yaml.safe_load(storage.read_text("run.yaml"))
    attempts = facts.pop("resumed")
    assert facts == FACTS
    assert [a["config"] for a in attempts] == [{"num_workers": 4}] * 2
    assert attempts[0]["environment"] == {"python": "3.12"}
    assert attempts[0]["started_s"] < attempts[1]["started_s"]
