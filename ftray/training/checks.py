"""What can be known to be wrong before training: names, values, a run too short for them."""

from __future__ import annotations

import torch

from ftray.config import FitConfig
from ftray.data.dataset import TrainSet
from ftray.errors import ConfigError
from ftray.losses.registry import check_loss
from ftray.media import Modality
from ftray.models.augment import check_augmentation
from ftray.models.base import Encoder
from ftray.models.functions import check_functions
from ftray.models.kinds import kind_of
from ftray.models.onnx_export import check_kind
from ftray.models.packing import check_packable
from ftray.models.registry import check_options
from ftray.models.scratch import KINDS, ScratchEncoder
from ftray.models.surgery import check_surgery, options_of
from ftray.training.optim import build_optimizers, check_loss_optimizer, check_optimizer
from ftray.training.resolving import surgery_of
from ftray.training.schedule import build_scheduler, check_scheduler
from ftray.training.trial import check_margins, small_loss

__all__ = ["check_names", "check_texts_options", "check_values"]


def check_names(config: FitConfig, model: str, *, has_module: bool) -> None:
    """Refuse names and options that do not exist, before any data is read.

    Args:
        config: what the user wants.
        model: where the model is.
        has_module: whether it is a module of the user's.

    Raises:
        ConfigError: with what is allowed, and the nearest name.
    """
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
    if config.packing == "packed":
        check_packable(config.model, model, config.model_options)


def check_texts_options(
    config: FitConfig, takes: frozenset[Modality] | None, *, has_module: bool
) -> None:
    """Refuse options of texts for a model that takes none, or that makes its inputs itself.

    Args:
        config: what the user wants.
        takes: what the model takes; None if that is not known.
        has_module: whether it is a module of the user's.
    """
    if not has_module and (takes is None or "text" in takes):
        return
    given = [("max_length", config.max_length is not None), ("packing", config.packing != "auto")]
    for name, is_given in given:
        if is_given:
            raise ConfigError(f"{name} is about texts: '{config.model}' has no use for it")


def check_values(
    config: FitConfig, model: str, train: TrainSet, val: TrainSet | None, batch_size: int
) -> None:
    """Build what the options describe, small: what would fail in a worker fails here.

    Args:
        config: what the user wants.
        model: where the model is.
        train: training rows.
        val: rows of the validation loss, if there are any.
        batch_size: rows of a step, or of the smallest one that is tried.

    Raises:
        ConfigError: for values that a loss, an optimizer or a schedule refuses.
        DataError: for scores that the loss cannot learn from.
    """
    loss = small_loss(config, train.n_groups)
    # the checks of names and of objects are one rule: what they differ in would be ignored silently
    assert loss.takes_triplets or train.kind != "triplets", config.loss
    for data in (train, val):
        if data is not None and data.scores is not None:
            loss.check_scores(float(data.scores.min()), float(data.scores.max()), data.source)
            if data.kind == "distillation":
                check_margins(loss, data)
    items = batch_size * train.rows.shape[1]
    if loss.max_items is not None and items > loss.max_items:
        raise ConfigError(
            f"A step of {batch_size} rows has up to {items} texts, more than the loss can take "
            f"({loss.max_items}): give a smaller batch_size, or a larger loss_options.memory_size"
        )
    check_loss_optimizer(config, loss)
    layers = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 2))
    if config.learning_rate is None:
        kind = ScratchEncoder if kind_of(model)[0] in KINDS else Encoder
        config = config.model_copy(update={"learning_rate": kind.learning_rate})
    build_scheduler(config, build_optimizers(config, layers, loss), 10, config.epochs)
