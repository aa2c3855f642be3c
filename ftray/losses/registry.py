"""Losses by name."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import torch

from ftray.errors import ConfigError, nearest
from ftray.losses.base import Needs, StepLoss
from ftray.losses.contrastive import CLIPLoss, InfoNCE, MultipleNegativesRankingLoss
from ftray.losses.memory import MemoryLoss
from ftray.losses.metric import (
    METRIC_LOSSES,
    REFUSED_LOSSES,
    TRIPLET_LOSS,
    MetricLoss,
    build_miner,
)
from ftray.losses.regression import CosineSimilarityLoss
from ftray.losses.sigmoid import SigLIPLoss

__all__ = ["LOSS_NAMES", "build_loss", "check_loss", "loss_needs", "takes_triplets"]

OWN_LOSSES: dict[str, type[StepLoss]] = {
    "CLIPLoss": CLIPLoss,
    "CosineSimilarityLoss": CosineSimilarityLoss,
    "InfoNCE": InfoNCE,
    "MultipleNegativesRankingLoss": MultipleNegativesRankingLoss,
    "SigLIPLoss": SigLIPLoss,
}

MEMORY_LOSS = "CrossBatchMemory"

LOSS_NAMES = tuple(sorted(METRIC_LOSSES | set(OWN_LOSSES) | {MEMORY_LOSS}))


def check_loss(name: str) -> None:
    """Raise a `ConfigError` for a name that is no loss, with the nearest one or the reason."""
    if name in REFUSED_LOSSES:
        raise ConfigError(f"loss = '{name}' cannot be used here: {REFUSED_LOSSES[name]}.")
    if name not in LOSS_NAMES:
        raise ConfigError(f"There is no loss '{name}'.{nearest(name, LOSS_NAMES)}")


def loss_needs(name: str) -> Needs:
    """What data a loss fits; losses on labels take pairs too (their groups are the labels)."""
    return OWN_LOSSES[name].needs if name in OWN_LOSSES else MetricLoss.needs


def takes_triplets(name: str) -> bool:
    """Whether a loss learns from the negatives of triplets."""
    return OWN_LOSSES[name].takes_triplets if name in OWN_LOSSES else name == TRIPLET_LOSS


def build_loss(
    name: str,
    options: Mapping[str, Any],
    *,
    embedding_dim: int,
    n_groups: int,
    seed: int,
    miner: str | None = None,
    miner_options: Mapping[str, Any] | None = None,
) -> StepLoss:
    """A loss by name; its own parameters are drawn from `seed`, equal on every rank.

    Args:
        name: see `LOSS_NAMES`.
        options: arguments of the loss.
        embedding_dim: width D of the embeddings.
        n_groups: number of classes, or of groups of pairs.
        seed: of the initial parameters.
        miner: name of a miner of pytorch-metric-learning, for losses on labels.
        miner_options: its arguments.

    Raises:
        ConfigError: for an unknown name or option, or a miner for a loss that takes none.
    """
    check_loss(name)
    if miner_options and miner is None:
        raise ConfigError("miner_options are given, but no miner")
    if miner is not None and name in OWN_LOSSES:
        raise ConfigError(f"loss = '{name}' takes no miner: miners pick among labelled texts")
    mining = None if miner is None else build_miner(miner, miner_options or {})
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if name in OWN_LOSSES:
            return _own_loss(name, options)
        if name == MEMORY_LOSS:
            return MemoryLoss(options, embedding_dim, n_groups, mining)
        return MetricLoss(name, options, embedding_dim, n_groups, mining)


def _own_loss(name: str, options: Mapping[str, Any]) -> StepLoss:
    known = set(inspect.signature(OWN_LOSSES[name].__init__).parameters) - {"self"}
    for option in options:
        if option not in known:
            raise ConfigError(
                f"loss_options.{option}: {name} has no such option.{nearest(option, known)}"
            )
    try:
        return OWN_LOSSES[name](**options)
    except TypeError as error:
        raise ConfigError(f"loss_options do not fit {name}: {error}") from None
