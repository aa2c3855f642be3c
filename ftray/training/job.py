"""A fit, made ready on the driver: data read, names resolved, mistakes found.

Everything a user can get wrong and that can be known without training is raised here, before Ray
starts.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from typing import Any

import torch

from ftray.callbacks.base import Callback
from ftray.callbacks.best_model import BestModelCheckpoint
from ftray.callbacks.evaluation import EvaluationCallback
from ftray.callbacks.monitor import check_monitor
from ftray.callbacks.registry import resolve_callbacks
from ftray.config import FitConfig
from ftray.data.dataset import TrainSet, train_set
from ftray.data.plan import Plan, Sampler, make_plan
from ftray.data.readers import read_records
from ftray.errors import ConfigError
from ftray.evaluation.spec import EvaluationSpec
from ftray.losses.metric import CLASSIFICATION_LOSSES
from ftray.losses.registry import build_loss, check_loss, loss_needs
from ftray.models.registry import locate_model
from ftray.training.optim import (
    build_optimizer,
    build_scheduler,
    check_optimizer,
    check_scheduler,
)

__all__ = ["Job", "prepare"]

SMALLEST_CLASS_BATCH = 4


@dataclass(frozen=True, kw_only=True)
class Job:
    """What every worker and every scorer needs; with Ray it lies once in the object store.

    Attributes:
        config: the fit's options, without data and callbacks.
        model: where the weights are: a folder, or a hub id.
        train: training rows. val: rows of the validation loss, or None.
        sampler, batch_size: as resolved from the data.
        evaluations: what the EvaluationCallbacks evaluate, by number.
        callbacks: for rank 0.
        run_uri: the run directory.
        notes: what was read and decided, for the log.
        provenance: name, fingerprint and rows of each data source.
    """

    config: FitConfig
    model: str
    train: TrainSet
    val: TrainSet | None
    sampler: Sampler
    batch_size: int
    evaluations: tuple[EvaluationSpec, ...]
    callbacks: tuple[Callback, ...]
    run_uri: str
    notes: tuple[str, ...]
    provenance: dict[str, Any]

    def plan(self) -> Plan:
        """The steps of every epoch."""
        return self._plan(self.train, self.batch_size, self.sampler, "training")

    def val_plan(self) -> Plan | None:
        """The steps of the validation loss; the same in every epoch."""
        if self.val is None:
            return None
        batch_size = min(self.batch_size, len(self.val))
        sampler = "random" if batch_size < SMALLEST_CLASS_BATCH else self.sampler
        return self._plan(self.val, batch_size, sampler, "validation")

    def _plan(self, data: TrainSet, batch_size: int, sampler: Sampler, what: str) -> Plan:
        return make_plan(
            sampler,
            rows=data.rows,
            groups=data.groups,
            batch_size=batch_size,
            items_per_class=self.config.num_items_per_class,
            seed=self.config.seed,
            what=what,
        )


def prepare(config: FitConfig, run_uri: str) -> Job:
    """Read the data and check everything that can be checked.

    Raises:
        FtrayError: for whatever the user got wrong.
    """
    check_loss(config.loss)
    check_optimizer(config.optimizer, config.optimizer_options)
    check_scheduler(config.scheduler, config.scheduler_options)
    model = locate_model(config.model)
    callbacks = resolve_callbacks(config.callbacks)
    _check_callbacks(callbacks)
    train, val = _read(config)
    _check_fit(config, train)
    batch_size, notes = _batch_size(config, train)
    evaluations = _evaluations(callbacks)
    _check_monitors(callbacks, config.model, has_val=val is not None)
    _check_values(config, train)
    bare = config.model_copy(
        update={"train_data": train.source, "eval_data": None, "callbacks": []}
    )
    job = Job(
        config=bare,
        model=model,
        train=train,
        val=val,
        sampler=_sampler(config, train),
        batch_size=batch_size,
        evaluations=evaluations,
        callbacks=tuple(_unused(callback) for callback in callbacks),
        run_uri=run_uri,
        notes=(
            *_data_notes("train_data", train),
            *_val_notes(val),
            *notes,
            *_eval_notes(evaluations),
        ),
        provenance=_provenance(train, val, evaluations),
    )
    job.val_plan()
    left_out = job.plan().left_out(0)
    if not left_out:
        return job
    return replace(job, notes=(*job.notes, _left_out(left_out, train)))


def _left_out(count: int, train: TrainSet) -> str:
    return (
        f"{count} of {len(train)} rows do not fit an epoch without crowding its steps: they take "
        "turns over the epochs"
    )


def _read(config: FitConfig) -> tuple[TrainSet, TrainSet | None]:
    def read(source: Any, where: str) -> TrainSet:
        records = read_records(
            source, columns=config.columns, csv_options=config.csv_options, where=where
        )
        return train_set(records, where=where)

    train = read(config.train_data, "train_data")
    if config.eval_data is not None:
        if config.val_split:
            raise ConfigError("Give eval_data or val_split, not both")
        val = read(config.eval_data, "eval_data")
        if val.kind != train.kind:
            raise ConfigError(f"train_data is {train.kind}, but eval_data is {val.kind}")
        return train, val
    if config.val_split:
        return train.split(config.val_split, config.seed)
    return train, None


def _check_fit(config: FitConfig, train: TrainSet) -> None:
    if loss_needs(config.loss) == "pairs" and train.kind == "labelled":
        raise ConfigError(
            f"{config.loss} learns from pairs (query,document), but train_data ({train.source}) "
            "is labelled. Losses for labels are, among others, TripletMarginLoss, SupConLoss, "
            "MultiSimilarityLoss and ArcFaceLoss."
        )
    if config.sampler == "pairs" and train.kind == "labelled":
        raise ConfigError("sampler = 'pairs', but train_data is labelled: 'class' or 'random'")
    if config.sampler == "class" and train.kind == "pairs":
        raise ConfigError("sampler = 'class', but train_data holds pairs: 'pairs' or 'random'")
    by_class = config.loss in CLASSIFICATION_LOSSES or config.loss_options.get("learn_beta")
    if config.eval_data is not None and by_class:
        raise ConfigError(
            f"{config.loss} learns something for each class of train_data; the classes of "
            "eval_data may be others. Use val_split for a validation loss with this loss."
        )


def _sampler(config: FitConfig, train: TrainSet) -> Sampler:
    if config.sampler != "auto":
        return config.sampler
    if train.kind == "pairs":
        return "pairs"
    return "random" if config.loss in CLASSIFICATION_LOSSES else "class"


def _batch_size(config: FitConfig, train: TrainSet) -> tuple[int, list[str]]:
    if config.batch_size <= len(train) or config.batch_size_is_explicit:
        return config.batch_size, []
    return len(train), [f"batch_size is {len(train)}: all rows, fewer than the default of 64"]


def _evaluations(callbacks: list[Callback]) -> tuple[EvaluationSpec, ...]:
    found = [callback for callback in callbacks if isinstance(callback, EvaluationCallback)]
    names = [callback.name for callback in found]
    if len(set(names)) < len(names):
        raise ConfigError(
            f"The EvaluationCallbacks are named {names}: each needs a caption of its own, so that "
            "their metrics can be told apart"
        )
    return tuple(callback.prepare(number) for number, callback in enumerate(found))


def _check_monitors(callbacks: list[Callback], model: str, *, has_val: bool) -> None:
    keys = {"train_loss"} | ({"val_loss"} if has_val else set())
    for callback in callbacks:
        keys.update(callback.metric_names)
        if isinstance(callback, EvaluationCallback):
            keys.update(callback.metric_keys())
    for callback in callbacks:
        monitor = getattr(callback, "monitor", None)
        if isinstance(monitor, str):
            callback.monitor = check_monitor(type(callback).__name__, monitor, keys, model)  # type: ignore[attr-defined]


def _unused(callback: Callback) -> Callback:
    """A copy of one of our callbacks, so that a fit leaves the user's object as it was.

    A user's own callback is taken as it is: in this process it may collect what the user reads
    afterwards.
    """
    ours = type(callback).__module__.startswith("ftray.")
    return copy.deepcopy(callback) if ours else callback


def _check_callbacks(callbacks: list[Callback]) -> None:
    best = [callback for callback in callbacks if isinstance(callback, BestModelCheckpoint)]
    if len(best) > 1:
        raise ConfigError(
            "There are two BestModelCheckpoints, but one artifact: it can hold the best weights "
            f"by {best[0].monitor} or by {best[1].monitor}"
        )


def _check_values(config: FitConfig, train: TrainSet) -> None:
    """Build what the options describe, small: what would fail in a worker fails here."""
    loss = build_loss(
        config.loss, config.loss_options, embedding_dim=8, n_groups=train.n_groups, seed=0
    )
    build_scheduler(config, build_optimizer(config, torch.nn.Linear(2, 2), loss), 10)


def _data_notes(name: str, data: TrainSet) -> list[str]:
    """One line for each source: how it was read, how many rows, what was noticed."""
    return [f"{name}: {data.source}: {'; '.join(data.notes) or f'{len(data)} rows'}"]


def _val_notes(val: TrainSet | None) -> list[str]:
    return [] if val is None else _data_notes("validation", val)


def _eval_notes(evaluations: tuple[EvaluationSpec, ...]) -> list[str]:
    return [f"{spec.name}: {'; '.join(spec.data.notes)}" for spec in evaluations]


def _provenance(
    train: TrainSet, val: TrainSet | None, evaluations: tuple[EvaluationSpec, ...]
) -> dict[str, Any]:
    sources: dict[str, Any] = {
        "train_data": {"source": train.source, "rows": len(train), "fingerprint": train.fingerprint}
    }
    if val is not None:
        sources["validation"] = {
            "source": val.source,
            "rows": len(val),
            "fingerprint": val.fingerprint,
        }
    for spec in evaluations:
        sources[spec.name] = {
            "queries": len(spec.data.query_texts),
            "documents": len(spec.data.document_texts),
            "fingerprint": spec.data.fingerprint,
        }
    return sources
