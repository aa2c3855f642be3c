"""What a fit's options say of the model: what is done to it, and what the data decide."""

from __future__ import annotations

from typing import Any

from ftray.config import FitConfig
from ftray.data.dataset import TrainSet
from ftray.errors import DataError
from ftray.media import Modality
from ftray.models.kinds import couples_rows, kind_of
from ftray.models.mlp import feature_size
from ftray.models.registry import load_encoder
from ftray.models.surgery import Surgery
from ftray.training.matching import check_whole_steps
from ftray.words import counted

__all__ = ["only_modality", "resolved_options", "surgery_of"]


def surgery_of(config: FitConfig) -> Surgery:
    """What a fit does to its model before it trains it."""
    freeze = config.freeze if isinstance(config.freeze, bool) else tuple(config.freeze)
    return Surgery(freeze=freeze, output_dim=config.output_dim, lora=config.lora)


def only_modality(train: TrainSet) -> frozenset[Modality] | None:
    """What the data holds, if it is of one kind: then a module of the user's takes that."""
    held = frozenset[Modality]().union(*train.modalities)
    return held if len(held) == 1 else None


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
        only = {"modality": next(iter(only_modality(train) or ()), None), **config.model_options}
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
