"""Who takes part in `train_step.py`: bare PyTorch, sentence-transformers' trainer, ftray."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import common
import torch
from pytorch_metric_learning.losses import SupConLoss
from sentence_transformers import SentenceTransformer
from step_workloads import (
    LEARNING_RATE,
    MAX_GRAD_NORM,
    SCALE,
    TEMPERATURE,
    WARMUP,
    WEIGHT_DECAY,
    Workload,
)
from torch import Tensor, nn
from transformers import get_linear_schedule_with_warmup

import ftray
from ftray.events import Event, FitStarted, StepEnded
from ftray.losses.registry import build_loss
from ftray.models.layout import Layout
from ftray.models.quiet import quiet
from ftray.models.registry import load_encoder, locate_model
from ftray.runtime.process_group import SingleProcess
from ftray.training.step import forward_backward, own_texts

TRAINER_PACKAGES = ("accelerate", "datasets")
BARE = "bare PyTorch"
BARE_MERGED = "bare PyTorch, columns in one forward"
TRAINER = "sentence-transformers' Trainer"
FTRAY = "ftray in this process"
PADDED = "ftray in this process, padded"
RAY = "ftray on one Ray worker"


@dataclass(frozen=True)
class Trace:
    """What a run of one contestant left: the loss of each step, and the clocks when it ended.

    The clock of processor time is missing where another process trains.
    """

    losses: list[float] = field(default_factory=list)
    wall_s: list[float] = field(default_factory=list)
    cpu_s: list[float] = field(default_factory=list)

    def step_ended(self) -> None:
        """Read the clocks."""
        self.wall_s.append(time.time())
        self.cpu_s.append(time.process_time())


Contestant = Callable[[Workload, str, Path], Trace]
"""Trains on a workload from a model's weights; it may write to the folder."""


def contestants(work: Workload) -> dict[str, Contestant]:
    """Everybody who can take part here."""

    def bare_as(**options: Any) -> Contestant:
        return lambda work, model, _: bare(work, model, **options)

    def fit_as(**options: Any) -> Contestant:
        return lambda work, model, folder: fit(work, model, folder, **options)

    found = {BARE: bare_as(merged=False)}
    if len(work.batches[0].columns) > 1:
        found[BARE_MERGED] = bare_as(merged=True)
    if has_trainer():
        found[TRAINER] = trainer
    found[FTRAY] = fit_as(num_workers=0)
    found[PADDED] = fit_as(num_workers=0, packing="padded")
    found[RAY] = fit_as(num_workers=1)
    return found


def has_trainer() -> bool:
    """Whether sentence-transformers' trainer can run."""
    return all(importlib.util.find_spec(name) for name in TRAINER_PACKAGES)


@contextlib.contextmanager
def no_chatter() -> Iterator[None]:
    """Keep what libraries print out of the results."""
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        yield


def flat(encoder: nn.Module) -> Tensor:
    """The gradient as one vector; weights that take no part count as zero."""
    parameters = encoder.parameters()
    return torch.cat(
        [(torch.zeros_like(p) if p.grad is None else p.grad).ravel() for p in parameters]
    )


# ------------------------------------------------------------------ bare PyTorch


def load(model: str, max_length: int) -> SentenceTransformer:
    """The model as sentence-transformers loads it."""
    with quiet():
        encoder = SentenceTransformer(locate_model(model), device="cpu").float()
    encoder.max_seq_length = max_length
    return encoder


def embed(encoder: SentenceTransformer, columns: list[list[str]], merged: bool) -> list[Tensor]:
    """Embeddings of each column: from one padded forward of all texts, or one for each column."""
    if merged:
        (every,) = embed(encoder, [[text for column in columns for text in column]], False)
        return list(every.chunk(len(columns)))
    tokens = [
        encoder.tokenizer(
            texts,
            padding=True,
            truncation=True,
            max_length=encoder.max_seq_length,
            return_tensors="pt",
        )
        for texts in columns
    ]
    return [encoder(dict(features))["sentence_embedding"] for features in tokens]


def bare(work: Workload, model: str, *, merged: bool) -> Trace:
    """The shortest loop that does the work."""
    encoder = load(model, work.max_length).train()
    parameters = list(encoder.parameters())
    groups = [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": WEIGHT_DECAY},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=LEARNING_RATE, fused=True)
    total = len(work.batches)
    schedule = get_linear_schedule_with_warmup(optimizer, round(WARMUP * total), total)
    loss_of, trace = work.loss(), Trace()
    for batch in work.batches:
        loss = loss_of(embed(encoder, batch.columns, merged), batch.labels)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, MAX_GRAD_NORM)
        optimizer.step()
        schedule.step()
        trace.losses.append(loss.item())
        trace.step_ended()
    return trace


def bare_gradient(work: Workload, model: str, *, merged: bool) -> tuple[float, Tensor]:
    """Loss and gradient of the first step."""
    encoder, batch = load(model, work.max_length).train(), work.batches[0]
    loss = work.loss()(embed(encoder, batch.columns, merged), batch.labels)
    loss.backward()
    return loss.item(), flat(encoder)


# ------------------------------------------------------------------ ftray


def fit(work: Workload, model: str, folder: Path, **options: Any) -> Trace:
    """A whole `ftray.fit`; its events say when each step ended, in the process that trains."""
    events: list[Event] = []
    cpu_s: list[float] = []

    def listen(event: Event) -> None:
        events.append(event)
        if isinstance(event, StepEnded) and options["num_workers"] == 0:
            cpu_s.append(time.process_time())

    with no_chatter():
        ftray.fit(**work.fields, **options, model=model, storage_path=folder, listeners=[listen])
    started = next(event for event in events if isinstance(event, FitStarted))
    threads, others = started.hardware["threads"], torch.get_num_threads()
    common.require(threads == others, f"{threads} threads {started.where}, not {others}")
    steps = [event for event in events if isinstance(event, StepEnded)]
    return Trace([event.loss for event in steps], [event.time_s for event in steps], cpu_s)


def ftray_gradient(
    work: Workload, model: str, layout: Layout, micro_batch_size: int | None = None
) -> tuple[float, Tensor]:
    """Loss and gradient of the first step, as the loop computes them."""
    encoder, job = load_encoder(model, max_length=work.max_length).train(), work.job
    loss = build_loss(
        job.config.loss,
        job.config.loss_options,
        embedding_dim=encoder.embedding_dim,
        n_groups=job.train.n_groups,
        seed=job.config.seed,
    )
    alone = SingleProcess(torch.device("cpu"))
    rows = job.train.step_rows(job.plan().rows(0, 0), roles_differ=encoder.roles_differ)
    own = own_texts(encoder, rows, layout, alone, micro_batch_size)
    result = forward_backward(encoder, loss, rows, own, alone)
    return result.loss, flat(encoder)


# ------------------------------------------------------------------ sentence-transformers


class LossOfLabels(nn.Module):
    """A loss of pytorch-metric-learning as sentence-transformers' trainer takes it."""

    def __init__(self, model: SentenceTransformer) -> None:
        super().__init__()
        self.model = model
        self.inner = SupConLoss(temperature=TEMPERATURE)

    def forward(self, sentence_features: Any, labels: Tensor) -> Tensor:
        """The loss of one column of texts."""
        (features,) = sentence_features
        return self.inner(self.model(features)["sentence_embedding"], labels)


def trainer(work: Workload, model: str, folder: Path) -> Trace:
    """sentence-transformers' trainer."""
    trace = Trace()
    with no_chatter():
        build_trainer(work, model, folder, trace).train()
    return trace


def trainer_gradient(work: Workload, model: str, folder: Path) -> tuple[float, Tensor]:
    """Loss and gradient of the first step, of the trainer's own batch."""
    with no_chatter():
        built = build_trainer(work, model, folder, Trace())
    batch = next(iter(built.get_train_dataloader()))
    loss = built.compute_loss(built.model.train(), batch)
    loss.backward()
    return loss.item(), flat(built.model)


def build_trainer(
    work: Workload,
    model: str,
    folder: Path,
    trace: Trace,
    loss_of: Callable[[SentenceTransformer], nn.Module] | None = None,
) -> Any:
    """The trainer over the same rows; while it trains it fills the trace."""
    from datasets import Dataset
    from sentence_transformers import (
        SentenceTransformerTrainer,
        SentenceTransformerTrainingArguments,
    )
    from sentence_transformers.base.sampler import DefaultBatchSampler
    from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss
    from transformers import TrainerCallback

    class SameRows(DefaultBatchSampler):
        """The rows in the order of the data set, which is that of ftray's plan."""

        def __init__(self, dataset: Any, **options: Any) -> None:
            super().__init__(range(len(dataset)), **options)

    class Clock(TrainerCallback):
        def on_step_end(self, *_: Any, **__: Any) -> None:
            trace.step_ended()

    encoder, total = load(model, work.max_length), len(work.batches)
    labelled = work.batches[0].labels is not None
    if loss_of is not None:
        loss = loss_of(encoder)
    else:
        loss = LossOfLabels(encoder) if labelled else MultipleNegativesRankingLoss(encoder, SCALE)
    loss.register_forward_hook(lambda _, __, value: trace.losses.append(value.item()))
    arguments = SentenceTransformerTrainingArguments(
        output_dir=str(folder),
        num_train_epochs=1,
        per_device_train_batch_size=work.job.batch_size,
        batch_sampler=SameRows,
        optim="adamw_torch_fused",
        learning_rate=LEARNING_RATE,
        weight_decay=WEIGHT_DECAY,
        max_grad_norm=MAX_GRAD_NORM,
        lr_scheduler_type="linear",
        warmup_steps=round(WARMUP * total),
        use_cpu=True,
        dataloader_pin_memory=False,
        save_strategy="no",
        eval_strategy="no",
        logging_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )
    return SentenceTransformerTrainer(
        model=encoder,
        args=arguments,
        train_dataset=Dataset.from_dict(work.columns()),
        loss=loss,
        callbacks=[Clock()],
    )
