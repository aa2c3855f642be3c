"""Events and records made by hand: what a run tells, without a run."""

from __future__ import annotations

from typing import Any

from ftray.events import (
    EpochEnded,
    EvaluationEnded,
    FitEnded,
    FitStarted,
    StepEnded,
)
from ftray.record.storage import Storage
from ftray.record.writer import RecordWriter

FACTS: dict[str, Any] = {
    "run": "somewhere",
    "config": {"model": "tiny", "loss": "SupConLoss", "num_workers": 2, "callbacks": []},
    "reproducible": True,
    "data": {"train_data": {"source": "a.csv", "rows": 9, "fingerprint": "f0"}},
    "environment": {"python": "3.11"},
}


def started(global_step: int = 0, first_epoch: int = 0, first_step: int = 0) -> FitStarted:
    return FitStarted(
        world_size=1,
        where="in this process",
        device="cpu",
        epochs=2,
        steps_per_epoch=3,
        batch_size=8,
        first_epoch=first_epoch,
        first_step=first_step,
        global_step=global_step,
        hardware={"device": "cpu", "threads": 1, "precision": "fp32"},
    )


def step(global_step: int, epoch: int = 0, loss: float = 0.5) -> StepEnded:
    return StepEnded(
        epoch=epoch,
        step=(global_step - 1) % 3,
        global_step=global_step,
        loss=loss,
        learning_rate=1e-3,
        grad_norm=1.0,
        rows=8,
        items=8,
        tokens=80,
        processed_tokens=90,
        data_s=0.0,
        step_s=0.1,
    )


def epoch(number: int, global_step: int, **metrics: float) -> EpochEnded:
    return EpochEnded(
        epoch=number, global_step=global_step, metrics=metrics, seconds={}, texts_per_rank=[8]
    )


def evaluation(
    global_step: int, value: float, *, caption: str | None = None, when: str = "epoch", **more: Any
) -> EvaluationEnded:
    return EvaluationEnded(
        name=caption or "evaluation",
        caption=caption,
        when=when,
        epoch=0,
        global_step=global_step,
        metrics={"ndcg_at_k": value},
        keys={"ndcg_at_k": f"{caption}_ndcg_at_k" if caption else "ndcg_at_k"},
        queries=3,
        documents=9,
        queries_without_relevant=0,
        rows_encoded=[12],
        wall_s=0.1,
        **more,
    )


def ended(artifact_step: int, status: str = "FINISHED", **more: Any) -> FitEnded:
    values: dict[str, Any] = {
        "status": status,
        "reason": "" if status == "FINISHED" else "a stop was requested",
        "epochs_done": 2,
        "global_step": 6,
        "artifact_step": artifact_step,
        "best": None,
        "seconds": {"step": 9.0, "data": 1.0},
        **more,
    }
    return FitEnded(**values)


def record(storage: Storage, *events: Any, status: str = "FINISHED") -> Storage:
    """A run directory that holds these events."""
    storage.create()
    writer = RecordWriter(storage)
    writer.describe(FACTS)
    writer.status("STARTED")
    for event in events:
        writer(event)
    if status != "STARTED":
        writer.close(status)
    writer.flush()
    return storage
