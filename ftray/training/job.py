"""A fit, made ready on the driver: data read, names resolved, mistakes found.

Everything a user can get wrong and that can be known without training is raised here, before Ray
starts.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import torch

from ftray.callbacks.base import Callback
from ftray.callbacks.registry import resolve_callbacks
from ftray.callbacks.training_checkpoint import TrainingCheckpoint
from ftray.config import FitConfig
from ftray.data.dataset import TrainSet, train_set
from ftray.data.plan import Plan, Sampler, make_plan
from ftray.data.readers import read_records
from ftray.errors import ConfigError
from ftray.evaluation.spec import EvaluationSpec
from ftray.losses.registry import check_width
from ftray.media import Modality
from ftray.models.ahead import AUTO_WORKERS
from ftray.models.base import Encoder
from ftray.models.licence import read_licence
from ftray.models.registry import load_encoder, model_modalities
from ftray.models.width import ends_normalised, known_width
from ftray.training.checks import check_names, check_texts_options, check_values
from ftray.training.lineage import artifact_notes, parent_of, starting_place
from ftray.training.matching import (
    check_fit,
    check_modalities,
    check_places,
    check_shards,
    choose_sampler,
)
from ftray.training.notes import (
    data_note,
    evaluation_note,
    interval_notes,
    left_out_note,
    overlap_notes,
    step_note,
)
from ftray.training.resolving import only_modality, resolved_options, surgery_of
from ftray.training.schedule import check_length
from ftray.training.trial import (
    TRIED_ROWS,
    margin_notes,
    small_loss,
    try_loss,
)
from ftray.training.wiring import (
    check_callbacks,
    check_monitors,
    evaluations_of,
    keys_of,
    own_copies,
)

__all__ = ["Job", "metric_keys", "prepare"]

SMALLEST_CLASS_BATCH = 4
PROVISIONAL = 64


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
        licence: of the base model, None where it is not known.
        model_options: of the model, with those that the data decide.
        parent: of the artifact that the weights come from: its run and their fingerprint.
        module: the user's module and its functions, where `config.model` is one.
        run_id: what distinguishes this run from all others; kept when it is resumed.
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
    licence: str | None = None
    run_id: str = ""
    model_options: dict[str, Any] = field(default_factory=dict)
    parent: dict[str, str] | None = None
    module: Any = None

    @property
    def last_epochs_kept(self) -> int | None:
        """Of how many epochs a TrainingCheckpoint keeps the end: 0 without one, None for all."""
        wanted = [c.last_k_epochs for c in self.callbacks if isinstance(c, TrainingCheckpoint)]
        return wanted[0] if wanted else 0

    def encoder(self, device: torch.device, place: str | None = None) -> Encoder:
        """The model before training, on a device; read at `place` where it is not at `model`."""
        config = self.config
        return load_encoder(
            place or self.model,
            device=device,
            max_length=config.max_length,
            options=self.model_options,
            augmentation=config.augmentation,
            seed=config.seed,
            module=self.module,
            called=config.model,
            surgery=surgery_of(config),
        )

    @property
    def data_workers(self) -> int:
        """How many processes decode, on each rank: those asked for; else two, none for texts."""
        if self.config.data_workers != "auto":
            return self.config.data_workers
        return 0 if self.train.texts_alone else AUTO_WORKERS

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
            rows=data.rows[:, :2],  # a negative may meet itself in a step
            groups=data.groups,
            batch_size=batch_size,
            items_per_class=self.config.num_items_per_class,
            seed=self.config.seed,
            what=what,
            negatives=data.kind in ("labelled", "pairs"),  # triplets bring theirs
        )


def metric_keys(job: Job) -> set[str]:
    """The keys of all metrics that a run of this job will have."""
    return keys_of(job.callbacks, has_val=job.val is not None)


def prepare(config: FitConfig, run_uri: str, module: Any = None, known: Job | None = None) -> Job:
    """Read the data and check everything that can be checked.

    Args:
        config: what the user wants.
        run_uri: where the run is to be.
        module: the `ModuleParts` of a module of the user's, whose weights `config.model` names.
        known: a job with the same model, data and callbacks, which are then taken from it.

    Raises:
        FtrayError: for whatever the user got wrong.
    """
    same = known is not None and all(
        getattr(known.config, name) == getattr(config, name) for name in ("model", "model_artifact")
    )
    model = known.model if known is not None and same else starting_place(config)
    check_names(config, model, has_module=module is not None)
    takes = model_modalities(model, config.model_options)
    licence, licence_note = read_licence(model)
    callbacks = resolve_callbacks(config.callbacks) if known is None else [*known.callbacks]
    check_callbacks(callbacks)
    train, val = _read(config, takes) if known is None else (known.train, known.val)
    if module is not None:
        takes = takes or only_modality(train)
    check_texts_options(config, takes, has_module=module is not None)
    check_fit(config, train)
    batch_size, notes = _batch_size(config, train)
    evaluations = (
        evaluations_of(callbacks, config, model, takes) if known is None else known.evaluations
    )
    check_places(config, evaluations)
    check_shards(config, evaluations)
    if takes is not None:
        check_modalities(config.model, takes, train, val, evaluations)
    check_monitors(callbacks, config.model, has_val=val is not None)
    check_values(config, model, train, val, batch_size)
    options = resolved_options(config, model, train, batch_size, module)
    width = known_width(model, options, surgery_of(config))
    if width is not None:
        check_width(config.loss, config.loss_options, width)
    job = Job(
        config=_bare(config, train),
        model=model,
        train=train,
        val=val,
        sampler=choose_sampler(config, train),
        batch_size=batch_size,
        evaluations=evaluations,
        callbacks=own_copies(callbacks, evaluations),
        run_uri=run_uri,
        notes=(),
        provenance=_provenance(train, val, evaluations),
        licence=licence,
        model_options=options,
        parent=parent_of(model),
        module=module,
    )
    return _planned(replace(job, notes=_notes(job, [licence_note] if licence_note else [], notes)))


def _planned(job: Job) -> Job:
    """The job with the batch size that fits, where that is asked for, once its steps are tried."""
    config, train = job.config, job.train
    step = train.step_rows(job.plan().rows(0, 0)[:TRIED_ROWS], roles_differ=False)
    try_loss(config, step, train.n_groups)
    if config.batch_size == "auto":
        job = _sized(job)
    job.val_plan()
    if config.epochs:
        check_length(config, config.epochs * job.plan().steps_per_epoch)
    return replace(job, notes=(*job.notes, *_plan_notes(job)))


def _sized(job: Job) -> Job:
    """The job with the largest batch size that fits, and a note that says why."""
    from ftray.training.capacity import find_batch_size

    if not job.config.epochs:
        return job
    found = find_batch_size(job)
    config = job.config.model_copy(update={"batch_size": found.rows})
    return replace(job, config=config, batch_size=found.rows, notes=(*job.notes, found.note))


def _bare(config: FitConfig, train: TrainSet) -> FitConfig:
    """The options alone, without what the job has in another form."""
    nothing: dict[str, Any] = {"eval_data": None, "preprocess_fn": None, "collate_fn": None}
    return config.model_copy(update={**nothing, "train_data": train.source, "callbacks": []})


def _notes(job: Job, licence: list[str], batch_size: list[str]) -> tuple[str, ...]:
    """What was read and decided, in the order of the log."""
    train, val, normalised = job.train, job.val, ends_normalised(job.model)
    return (
        *licence,
        *artifact_notes(job.config, job.model),
        data_note("train_data", train),
        *([data_note("validation", val)] if val is not None else []),
        *batch_size,
        *margin_notes(job.config, train, train.n_groups, normalised=normalised),
        *map(evaluation_note, job.evaluations),
        *interval_notes(job.callbacks, job.evaluations),
        *overlap_notes(train, val, job.evaluations),
    )


def _plan_notes(job: Job) -> list[str]:
    plan = job.plan()
    notes = [step_note(job.config, job.train, plan)] if job.config.epochs else []
    if left_out := plan.left_out(0):
        notes.append(left_out_note(left_out, job.train))
    return notes


def _read(config: FitConfig, takes: frozenset[Modality] | None) -> tuple[TrainSet, TrainSet | None]:
    def read(source: Any, where: str) -> TrainSet:
        records = read_records(
            source,
            columns=config.columns,
            csv_options=config.csv_options,
            where=where,
            modalities=takes,
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


def _batch_size(config: FitConfig, train: TrainSet) -> tuple[int, list[str]]:
    if config.batch_size == "auto":  # until the model is known: `_sized`
        limit = small_loss(config, train.n_groups).max_items
        most = PROVISIONAL if limit is None else max(limit // train.rows.shape[1], 2)
        return min(PROVISIONAL, most, len(train)), []
    if config.batch_size <= len(train) or config.batch_size_is_explicit:
        return config.batch_size, []
    return len(train), [f"batch_size is {len(train)}: all rows, fewer than the default of 64"]


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
        sources[spec.name] = {**spec.counts, "fingerprint": spec.data.fingerprint}
    return sources
