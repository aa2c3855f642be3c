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
from ftray.errors import ConfigError, DataError
from ftray.evaluation.spec import EvaluationSpec
from ftray.losses.registry import check_loss
from ftray.media import Modality
from ftray.models.ahead import AUTO_WORKERS
from ftray.models.augment import check_augmentation
from ftray.models.base import Encoder
from ftray.models.functions import check_functions
from ftray.models.kinds import couples_rows, kind_of
from ftray.models.licence import read_licence
from ftray.models.mlp import feature_size
from ftray.models.onnx_export import check_kind
from ftray.models.registry import check_options, load_encoder, model_modalities
from ftray.models.surgery import Surgery, check_surgery, options_of
from ftray.training.lineage import artifact_notes, parent_of, starting_place
from ftray.training.matching import (
    check_fit,
    check_modalities,
    check_places,
    check_shards,
    check_whole_steps,
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
from ftray.training.optim import build_optimizers, check_loss_optimizer, check_optimizer
from ftray.training.schedule import build_scheduler, check_scheduler
from ftray.training.trial import TRIED_ROWS, small_loss, try_loss
from ftray.training.wiring import (
    check_callbacks,
    check_monitors,
    evaluations_of,
    keys_of,
    own_copies,
)
from ftray.words import counted

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


def surgery_of(config: FitConfig) -> Surgery:
    """What a fit does to its model before it trains it."""
    freeze = config.freeze if isinstance(config.freeze, bool) else tuple(config.freeze)
    return Surgery(freeze=freeze, output_dim=config.output_dim, lora=config.lora)


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
    _check_names(config, model, has_module=module is not None)
    takes = model_modalities(model, config.model_options)
    licence, licence_note = read_licence(model)
    callbacks = resolve_callbacks(config.callbacks) if known is None else [*known.callbacks]
    check_callbacks(callbacks)
    train, val = _read(config, takes) if known is None else (known.train, known.val)
    if module is not None:
        takes = takes or _only(train)
    _check_texts_options(config, takes, has_module=module is not None)
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
    _check_values(config, train, val, batch_size)
    options = resolved_options(config, model, train, batch_size, module)
    own = own_copies(callbacks, evaluations)
    job = Job(
        config=_bare(config, train),
        model=model,
        train=train,
        val=val,
        sampler=choose_sampler(config, train),
        batch_size=batch_size,
        evaluations=evaluations,
        callbacks=own,
        run_uri=run_uri,
        notes=(
            *([licence_note] if licence_note else []),
            *artifact_notes(config, model),
            data_note("train_data", train),
            *([data_note("validation", val)] if val is not None else []),
            *notes,
            *map(evaluation_note, evaluations),
            *interval_notes(own, evaluations),
            *overlap_notes(train, val, evaluations),
        ),
        provenance=_provenance(train, val, evaluations),
        licence=licence,
        model_options=options,
        parent=parent_of(model),
        module=module,
    )
    if config.batch_size == "auto":
        job = _sized(job)
    job.val_plan()
    step = train.step_rows(job.plan().rows(0, 0)[:TRIED_ROWS], roles_differ=False)
    try_loss(config, step, train.n_groups)
    return replace(job, notes=(*job.notes, *_plan_notes(job)))


def _check_names(config: FitConfig, model: str, *, has_module: bool) -> None:
    """Refuse names and options that do not exist, before any data is read."""
    check_loss(config.loss, config.loss_options)
    check_optimizer(config.optimizer, config.optimizer_options)
    check_scheduler(config.scheduler, config.scheduler_options)
    if config.batch_size == "auto":
        from ftray.training.capacity import check_measurable

        check_measurable(config)
    check_options(config.model, model, config.model_options)
    if config.to_onnx:
        check_kind(kind_of(model)[0], config.model)
    check_functions(config.preprocess_fn, config.collate_fn, has_module=has_module)
    check_augmentation(config.augmentation, kind_of(model)[0])
    check_surgery(surgery_of(config), kind_of(model)[0], config.model)
    options_of(config.model, model, config.model_options, surgery_of(config))


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


def _only(train: TrainSet) -> frozenset[Modality] | None:
    """What the data holds, if it is of one kind: then a module of the user's takes that."""
    held = frozenset[Modality]().union(*train.modalities)
    return held if len(held) == 1 else None


def _check_texts_options(
    config: FitConfig, takes: frozenset[Modality] | None, *, has_module: bool
) -> None:
    """Refuse options of texts for a model that takes none, or that makes its inputs itself."""
    if not has_module and (takes is None or "text" in takes):
        return
    given = [("max_length", config.max_length is not None), ("packing", config.packing != "auto")]
    for name, is_given in given:
        if is_given:
            raise ConfigError(f"{name} is about texts: '{config.model}' has no use for it")


def resolved_options(
    config: FitConfig, model: str, train: TrainSet, batch_size: int, module: Any = None
) -> dict[str, Any]:
    """The options of the model, with those that the data decide.

    A head is as wide as the module in front of it, which takes encoding one thing to know.

    Raises:
        DataError: for features of another width than the model's.
        ConfigError: for steps that a model which couples their rows cannot be given.
    """
    kind, facts = kind_of(model)
    given = {**facts.get("options", {}), **config.model_options}
    if couples_rows(kind, given) and config.freeze is not True:
        check_whole_steps(config.model, config, batch_size * train.rows.shape[1])
    if kind == "module":
        only = {"modality": next(iter(_only(train) or ()), None), **config.model_options}
        if surgery_of(config).needs_width:
            encoder = load_encoder(model, options=only, module=module, called=config.model)
            encoder.measure(train.example)
            only["embedding_dim"] = encoder.own_dim
        return only
    if kind != "mlp":
        return dict(config.model_options)
    size = feature_size(train.example)
    if given.get("input_size") not in (None, size):
        raise DataError(
            f"train_data ({train.source}) has features of {counted(size, 'number')}, but "
            f"'{config.model}' takes {given['input_size']} (model_options.input_size)"
        )
    return {**config.model_options, "input_size": size}


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
    if config.batch_size == "auto":
        return min(PROVISIONAL, len(train)), []  # until the model is known: `_sized`
    if config.batch_size <= len(train) or config.batch_size_is_explicit:
        return config.batch_size, []
    return len(train), [f"batch_size is {len(train)}: all rows, fewer than the default of 64"]


def _check_values(
    config: FitConfig, train: TrainSet, val: TrainSet | None, batch_size: int
) -> None:
    """Build what the options describe, small: what would fail in a worker fails here."""
    loss = small_loss(config, train.n_groups)
    for data in (train, val):
        if data is not None and data.scores is not None:
            loss.check_scores(float(data.scores.min()), float(data.scores.max()), data.source)
    items = batch_size * train.rows.shape[1]
    if loss.max_items is not None and items > loss.max_items:
        raise ConfigError(
            f"A step of {batch_size} rows has up to {items} texts, more than the loss can take "
            f"({loss.max_items}): give a smaller batch_size, or a larger loss_options.memory_size"
        )
    check_loss_optimizer(config, loss)
    layers = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 2))
    build_scheduler(config, build_optimizers(config, layers, loss), 10, config.epochs)


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
