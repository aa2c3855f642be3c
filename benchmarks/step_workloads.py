"""What the contestants of `train_step.py` train on: the same rows in the same order for all."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import common
import torch
from pytorch_metric_learning.losses import SupConLoss
from torch import Tensor
from torch.nn import functional

from ftray.config import FitConfig
from ftray.models.registry import locate_model
from ftray.training.job import Job, prepare

MODEL = "minilm"
LEARNING_RATE = 2e-5
WEIGHT_DECAY = 0.01
MAX_GRAD_NORM = 1.0
WARMUP = 0.1
SCALE = 20.0
TEMPERATURE = 0.1
PAIRS = 32
CLASSES, ITEMS = 16, 4


@dataclass(frozen=True)
class Batch:
    """The texts of one step by column, and their labels if they have any."""

    columns: list[list[str]]
    labels: Tensor | None


@dataclass(frozen=True)
class Workload:
    """One kind of training, and the steps that everybody takes."""

    title: str
    fields: dict[str, Any]
    job: Job
    batches: list[Batch]

    @property
    def max_length(self) -> int:
        """Longest text in tokens."""
        return int(self.fields["max_length"])

    def columns(self) -> dict[str, list[Any]]:
        """All rows in the order of the steps, by column."""
        names = ("text",) if self.batches[0].labels is not None else ("query", "document")
        found: dict[str, list[Any]] = {
            name: [text for batch in self.batches for text in batch.columns[i]]
            for i, name in enumerate(names)
        }
        labels = [batch.labels for batch in self.batches if batch.labels is not None]
        return {**found, "label": torch.cat(labels).tolist()} if labels else found

    def loss(self) -> Callable[[list[Tensor], Tensor | None], Tensor]:
        """What bare PyTorch computes from the embeddings of the columns."""
        if self.batches[0].labels is None:
            return multiple_negatives
        supcon = SupConLoss(temperature=TEMPERATURE)
        return lambda embeddings, labels: supcon(embeddings[0], labels)


def multiple_negatives(embeddings: list[Tensor], _: Tensor | None) -> Tensor:
    """Each query ranks the documents of the batch; the embeddings have length one."""
    queries, documents = embeddings
    scores = queries @ documents.T * SCALE
    return functional.cross_entropy(scores, torch.arange(len(scores)))


def workload(title: str, records: list[dict[str, str]], **fields: Any) -> Workload:
    """The steps of one epoch of ftray's plan over these records."""
    fields = {
        **fields,
        "train_data": records,
        "epochs": 1,
        "learning_rate": LEARNING_RATE,
        "optimizer_options": {"weight_decay": WEIGHT_DECAY},
        "scheduler_options": {"warmup_ratio": WARMUP},
        "max_grad_norm": MAX_GRAD_NORM,
        "precision": "fp32",
        "device": "cpu",
    }
    job = prepare(FitConfig(model=MODEL, **fields), "unused")
    texts, rows = job.train.texts.to_pylist(), job.train.rows
    common.require(len(texts) == rows.size, "the workload holds a text twice")
    plan, batches = job.plan(), []
    for step in range(plan.steps_per_epoch):
        numbers = plan.rows(0, step)
        columns = [[texts[i] for i in column] for column in rows[numbers].T]
        labelled = job.train.kind == "labelled"
        labels = torch.from_numpy(job.train.groups[numbers]) if labelled else None
        batches.append(Batch(columns, labels))
    sizes = {len(batch.columns[0]) for batch in batches}
    common.require(sizes == {fields["batch_size"]}, f"the steps hold {sizes} rows")
    return Workload(title, fields, job, batches)


def pairs(steps: int) -> Workload:
    """Short queries and long documents: MedQuAD, or the demo's corpus where there is no data."""
    path = common.data_file("medquad", "train.csv")
    if path is not None:
        with path.open(encoding="utf-8") as file:
            found = [(row["query"], row["answer"]) for row in csv.DictReader(file)]
        name = "question and answer of MedQuAD"
    else:
        from ftray.demo.corpus import build_corpus

        found = [(pair.query, pair.document) for pair in build_corpus().train]
        name = "description and code of the standard library"
    records, seen, size = [], set[str](), PAIRS
    for query, document in found:
        if len(records) < steps * size and not seen & {query, document}:
            seen |= {query, document}
            records.append({"query": query, "document": document})
    return workload(
        f"Pairs: {name}, batches of {size}, at most 128 tokens, MultipleNegativesRankingLoss",
        records,
        batch_size=size,
        max_length=128,
        loss="MultipleNegativesRankingLoss",
        loss_options={"temperature": 1 / SCALE},
    )


def labelled(steps: int) -> Workload | None:
    """Short texts with classes: Banking77, cut so that every step is full."""
    path = common.data_file("banking77", "train_balanced20.csv")
    if path is None:
        common.say("Without FTRAY_DATA there is no labelled workload")
        return None
    members: dict[str, list[str]] = {}
    with path.open(encoding="utf-8") as file:
        for row in csv.DictReader(file):
            members.setdefault(row["label"], []).append(row["text"])
    chunks = [
        (label, texts[i : i + ITEMS])
        for i in range(0, 20, ITEMS)
        for label, texts in members.items()
    ][: steps * CLASSES]
    common.require(len(chunks) == steps * CLASSES, f"Banking77 has not {steps} full steps")
    return workload(
        f"Labels: Banking77, batches of {CLASSES} classes × {ITEMS} texts, uncut, SupConLoss",
        [{"text": text, "label": label} for label, texts in chunks for text in texts],
        batch_size=CLASSES * ITEMS,
        num_items_per_class=ITEMS,
        max_length=128,
        loss="SupConLoss",
        loss_options={"temperature": TEMPERATURE},
    )


def without_dropout(folder: Path) -> str:
    """A copy of the model in which dropout is off, also while it trains."""
    shutil.copytree(locate_model(MODEL), folder)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    config.update(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return str(folder)
