"""Records made by hand whose pages are hard to get right."""

from __future__ import annotations

import dataclasses
import json
import math
from typing import Any

import pyarrow as pa

from ftray.events import EvaluationEnded, Log
from ftray.record.storage import Storage
from ftray.record.writer import RecordWriter
from tests.handmade import FACTS, ended, epoch, evaluation, started, step

__all__ = ["ATTACK", "PAGES", "made"]

ATTACK = "<script>alert('x')</script>\"'><img src=x onerror=alert(1)> https://evil.example/a.js"
CHINESE, ARABIC = "如何重置我的密码？", "كيف أعيد تعيين كلمة المرور؟"
METRICS = ("ndcg_at_k", "average_precision", "recall_at_k")


def scored(
    global_step: int, values: list[float], *, caption: str | None = None, **more: Any
) -> EvaluationEnded:
    """An evaluation with three metrics, and a table of its queries."""
    texts = [ATTACK, CHINESE, ARABIC, *(f"query {i}" for i in range(3, len(values)))]
    mean = sum(values) / len(values)
    table = pa.table(
        {
            "query_id": [str(i) for i in range(len(values))],
            "query": texts[: len(values)],
            "relevant": [1] * len(values),
            **{metric: values for metric in METRICS},
        }
    )
    event = evaluation(global_step, mean, caption=caption, per_query=table, **more)
    prefix = f"{caption}_" if caption else ""
    return dataclasses.replace(
        event,
        metrics=dict.fromkeys(METRICS, mean),
        keys={metric: f"{prefix}{metric}" for metric in METRICS},
        queries=len(values),
    )


def examples(*order: int) -> dict[str, list[dict[str, Any]]]:
    """The rankings of three queries; document 2 is relevant."""
    texts = [ATTACK, CHINESE, ARABIC, "long " * 5000, "<b>bold</b>"]
    matches = [
        {"id": str(i), "text": texts[i], "score": 0.9 - 0.1 * rank, "relevant": i == 2}
        for rank, i in enumerate(order)
    ]
    return {query: matches for query in (CHINESE, ARABIC, ATTACK)}


def made(storage: Storage, *events: Any, facts: Any = None, **end: Any) -> Storage:
    """A run directory; `end` are the status and its details, STARTED leaves it open."""
    storage.create()
    writer = RecordWriter(storage)
    writer.describe({**FACTS, **(facts or {})})
    writer.status("STARTED")
    for event in events:
        writer(event)
    writer.flush()
    if end.get("status", "FINISHED") != "STARTED":
        writer.close(end.get("status", "FINISHED"), end.get("details", ""))
    return storage


def ten_thousand_steps(storage: Storage) -> Storage:
    events = [started()]
    for at in range(1, 10_001):
        loss = 4 * math.exp(-at / 2500) + 0.3 + 0.2 * math.sin(at)
        event = dataclasses.replace(
            step(at, epoch=(at - 1) // 1000, loss=loss), step=(at - 1) % 1000
        )
        events.append(event)
        if at % 1000 == 0:
            events += [
                scored(at, [0.3 + at / 20_000] * 40),
                epoch(at // 1000 - 1, at, train_loss=loss, val_loss=3 - at / 5000),
            ]
    best = {"monitor": "val_loss", "value": 1.0, "epoch": 9, "global_step": 9000}
    events.append(ended(9000, global_step=10_000, best=best))
    return made(storage, scored(0, [0.3] * 40, when="before"), *events)


def hostile(storage: Storage) -> Storage:
    """Other scripts, markup, quotes, long texts and file names, wherever a user may put them."""
    facts = {
        "config": {
            **FACTS["config"],
            "description": f"{ATTACK} {CHINESE} {'word ' * 400}",
            "model": f"models/{ATTACK}",
            "train_data": f"{ATTACK}.csv",
            "loss_options": {"temperature": ATTACK},
            "callbacks": [
                {"EvaluationCallback": {"query_data": f"{ATTACK}.csv", "caption": "问答"}}
            ],
        },
        "data": {ATTACK: {"source": f"/data/{ATTACK}.csv", "rows": 3, "fingerprint": ATTACK}},
        "environment": {"python": ATTACK, "command": ["ftray", ATTACK], "folder": ATTACK},
    }
    log = Log(message=f"{ATTACK}\n{ARABIC}", level="WARNING")
    return made(
        storage,
        started(),
        log,
        scored(0, [0.1, 0.5, 0.5], caption="问答", when="before", examples=examples(0, 1, 2, 3)),
        *(step(at) for at in range(1, 7)),
        scored(6, [0.9, 0.4, 0.5], caption="问答", examples=examples(2, 4, 0, 1, 3)),
        epoch(0, 6, train_loss=0.4, **{ATTACK: 1.0}),
        ended(6),
        facts=facts,
    )


def wise_ft(storage: Storage) -> Storage:
    """Two evaluations of the weights before, after and between."""
    before = [
        scored(0, [0.5] * 4, caption="in", when="before"),
        scored(0, [0.8] * 4, caption="out", when="before"),
    ]
    after = [scored(6, [0.7] * 4, caption="in"), scored(6, [0.6] * 4, caption="out")]
    between = [
        scored(6, [value] * 4, caption=caption, weights=f"alpha {a:g}", alpha=a, when="final")
        for a, *values in ((0.2, 0.6, 0.79), (0.4, 0.72, 0.75), (0.8, 0.71, 0.65))
        for caption, value in zip(("in", "out"), values, strict=True)
    ]
    callbacks = [{"WiSEFTCallback": {"alpha": [0.2, 0.4, 0.8], "monitor": "in_ndcg_at_k"}}]
    return made(
        storage,
        started(),
        *before,
        *(step(at) for at in range(1, 7)),
        *after,
        epoch(0, 6, train_loss=0.4),
        *between,
        ended(6, artifact_weights="alpha 0.4"),
        facts={"config": {**FACTS["config"], "callbacks": callbacks}},
    )


def early_stop(storage: Storage) -> Storage:
    """Stopped by a callback after two epochs, the first being the best."""
    best = {"monitor": "ndcg_at_k", "value": 0.7, "epoch": 1, "global_step": 3}
    return made(
        storage,
        started(),
        scored(0, [0.5] * 4, when="before"),
        *(step(at, epoch=(at - 1) // 3) for at in range(1, 7)),
        scored(3, [0.7] * 4),
        epoch(0, 3, train_loss=0.5, val_loss=0.6),
        scored(6, [0.6] * 4),
        epoch(1, 6, train_loss=0.4, val_loss=0.7),
        ended(3, best=best, reason="ndcg_at_k did not improve"),
        details="ndcg_at_k did not improve",
    )


def no_evaluation(storage: Storage) -> Storage:
    events = [*(step(at) for at in range(1, 4)), epoch(0, 3, train_loss=0.5), ended(3)]
    return made(storage, started(), *events)


def failed(storage: Storage) -> Storage:
    reason = f"the loss is nan at step 3 {ATTACK}"
    events = [started(), step(1), step(2, loss=math.nan), Log(level="ERROR", message=reason)]
    return made(storage, *events, status="FAILED", details=reason)


def failed_at_once(storage: Storage) -> Storage:
    return made(storage, status="FAILED", details="")


def stopped(storage: Storage) -> Storage:
    return made(
        storage,
        started(),
        scored(0, [0.5] * 4, when="before"),
        step(1),
        step(2),
        ended(2, status="STOPPED", global_step=2, epochs_done=0),
        status="STOPPED",
        details="a stop was requested",
    )


def running(storage: Storage) -> Storage:
    events = [
        started(),
        scored(0, [0.5] * 4, when="before"),
        step(1),
        step(2),
        scored(2, [0.6] * 4),
    ]
    return made(storage, *events, status="STARTED")


def not_a_number(storage: Storage) -> Storage:
    """Metrics and losses that are no numbers; a best value that is none either."""
    nan = math.nan
    events = [evaluation(0, nan, when="before"), step(1, loss=nan), evaluation(3, nan)]
    last = [epoch(0, 3, train_loss=nan, val_loss=nan), ended(3)]
    return made(storage, started(), *events, *last)


def scored_pairs(storage: Storage) -> Storage:
    events = [
        dataclasses.replace(
            evaluation(at, 0.0, when=when),
            metrics={"pearson": value, "spearman": value},
            keys={"pearson": "pearson", "spearman": "spearman"},
            pairs=3,
            queries=0,
            documents=0,
            per_query=pa.table(
                {
                    "text_a": ["a", "b", CHINESE],
                    "text_b": ["x", "y", ATTACK],
                    "score": [1.0, 2.0, 5.0],
                    "similarity": pa.array(similar, pa.float32()),
                }
            ),
        )
        for at, when, value, similar in (
            (0, "before", -0.5, [0.9, 0.5, 0.1]),
            (3, "epoch", 1.0, [0.1, 0.5, 0.9]),
        )
    ]
    return made(storage, started(), events[0], step(1), events[1], epoch(0, 3), ended(3))


def older(storage: Storage) -> Storage:
    """A record of an early version: less in it, and lines that are not known any more."""
    storage.create()
    storage.write_text("run.yaml", "run: here\nconfig:\n  model: tiny\n")
    storage.write_text("status.json", json.dumps({"status": "FINISHED", "details": ""}))
    old = json.loads(evaluation(3, 0.5).to_json())
    for name in ("weights", "alpha", "overlapped", "pairs"):
        del old[name]
    lines = [json.dumps({"kind": "gone", "x": 1}), json.dumps(old), ended(3).to_json()]
    storage.write_text("events/part-00000.jsonl", "\n".join(lines) + "\n")
    return storage


PAGES = {
    make.__name__: make
    for make in (
        ten_thousand_steps,
        hostile,
        wise_ft,
        early_stop,
        no_evaluation,
        failed,
        failed_at_once,
        stopped,
        running,
        not_a_number,
        scored_pairs,
        older,
    )
}
