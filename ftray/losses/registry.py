"""Losses by name."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import torch

from ftray.errors import ConfigError, nearest
from ftray.losses.base import Needs, StepLoss
from ftray.losses.centroid import CentroidTripletLoss
from ftray.losses.contrastive import CLIPLoss, InfoNCE, MultipleNegativesRankingLoss
from ftray.losses.distillation import DistillKLDivLoss, MarginMSELoss
from ftray.losses.hints import loss_hint
from ftray.losses.memory import MemoryLoss
from ftray.losses.metric import (
    METRIC_LOSSES,
    REFUSED_LOSSES,
    TRIPLET_LOSS,
    MetricLoss,
    build_miner,
    learns_classes,
)
from ftray.losses.nested import (
    MATRYOSHKA,
    MULTIPLE,
    WRAPPERS,
    Leaf,
    inner_losses,
    leaves,
    matryoshka_dims,
    within,
)
from ftray.losses.ranking import AnglELoss, CoSENTLoss
from ftray.losses.regression import CosineSimilarityLoss
from ftray.losses.sigmoid import SigLIPLoss
from ftray.losses.views import SelfSupervisedLoss, VICRegLoss
from ftray.losses.wrappers import MatryoshkaLoss, MultipleLosses, common_needs

__all__ = ["LOSS_NAMES", "build_loss", "check_loss", "check_width", "least_dim"]
__all__ += ["loss_names", "loss_needs", "misfit", "takes_triplets", "tied_to_classes"]

OWN_LOSSES: dict[str, type[StepLoss]] = {
    "AnglELoss": AnglELoss,
    "CLIPLoss": CLIPLoss,
    "CoSENTLoss": CoSENTLoss,
    "CosineSimilarityLoss": CosineSimilarityLoss,
    "DistillKLDivLoss": DistillKLDivLoss,
    "InfoNCE": InfoNCE,
    "MarginMSELoss": MarginMSELoss,
    "MultipleNegativesRankingLoss": MultipleNegativesRankingLoss,
    "SigLIPLoss": SigLIPLoss,
}

ADAPTED_LOSSES: dict[str, type[CentroidTripletLoss | SelfSupervisedLoss | VICRegLoss]] = {
    "CentroidTripletLoss": CentroidTripletLoss,
    "SelfSupervisedLoss": SelfSupervisedLoss,
    "VICRegLoss": VICRegLoss,
}
"""Classes around an object of pytorch-metric-learning, which do what it does not."""

MEMORY_LOSS = "CrossBatchMemory"

LOSS_NAMES = tuple(sorted({*METRIC_LOSSES, *OWN_LOSSES, *ADAPTED_LOSSES, *WRAPPERS, MEMORY_LOSS}))

NOTHING: Mapping[str, Any] = {}


def check_loss(name: str, options: Mapping[str, Any] = NOTHING) -> None:
    """Refuse a name that is no loss, and so the names inside a loss that is made of others.

    Args:
        name: of the loss.
        options: its arguments; those of losses that are not made of others are not looked at.

    Raises:
        ConfigError: with the nearest name, or the reason.
    """
    if name in REFUSED_LOSSES:
        raise ConfigError(f"loss = '{name}' cannot be used here: {REFUSED_LOSSES[name]}.")
    if name not in LOSS_NAMES:
        raise ConfigError(f"There is no loss '{name}'.{loss_hint(name, LOSS_NAMES)}")
    if name in WRAPPERS:
        for asked in inner_losses(name, options):
            with within(asked.where):
                check_loss(asked.name, asked.options)


def loss_names(name: str, options: Mapping[str, Any] = NOTHING) -> list[str]:
    """A loss's name, or those of the losses that it is made of."""
    return [leaf.name for leaf in leaves(name, options)]


def loss_needs(name: str, options: Mapping[str, Any] = NOTHING) -> Needs:
    """What data a loss fits; losses on labels take pairs too (their groups are the labels).

    Raises:
        ConfigError: for a loss made of others that no data fits.
    """
    return _needs(name, options)[0]


def takes_triplets(name: str, options: Mapping[str, Any] = NOTHING) -> bool:
    """Whether a loss learns from the negatives of triplets; one made of others, if all do."""
    return _needs(name, options)[1]


def _needs(name: str, options: Mapping[str, Any]) -> tuple[Needs, bool]:
    return common_needs((leaf.name, *_leaf_needs(leaf)) for leaf in leaves(name, options))


def _leaf_needs(leaf: Leaf) -> tuple[Needs, bool]:
    known: type[StepLoss] | None = OWN_LOSSES.get(leaf.name) or ADAPTED_LOSSES.get(leaf.name)
    if known is None:
        return MetricLoss.needs, leaf.name == TRIPLET_LOSS and leaf.miner is None
    return known.needs, known.takes_triplets


def misfit(name: str, options: Mapping[str, Any], fits: Callable[[Needs, bool], bool]) -> str:
    """The first loss, of those that a loss is made of, that lacks something; for messages.

    Args:
        name: of the loss.
        options: its arguments.
        fits: whether what a loss needs, and whether it takes triplets, will do.

    Returns:
        Its place and name, of most losses their name alone; `name`, if all fit.
    """
    found = (leaf for leaf in leaves(name, options) if not fits(*_leaf_needs(leaf)))
    return str(next(found, name))


def tied_to_classes(name: str, options: Mapping[str, Any] = NOTHING) -> str | None:
    """What makes a loss useless for other classes than those of its training data, in words."""
    for leaf in leaves(name, options):
        if leaf.name == MEMORY_LOSS:
            return f"{leaf} remembers texts"
        if learns_classes(leaf.name, leaf.options):
            return f"{leaf} learns something for each class"
    return None


def least_dim(name: str, options: Mapping[str, Any] = NOTHING) -> int:
    """The least width of embeddings that a loss can be built for."""
    if name not in WRAPPERS:
        return 1
    own = max(dim for dim, _ in matryoshka_dims(options)) if name == MATRYOSHKA else 1
    return max(own, *(least_dim(a.name, a.options) for a in inner_losses(name, options)))


def check_width(name: str, options: Mapping[str, Any], embedding_dim: int) -> None:
    """Refuse embeddings that are too narrow for a loss.

    Raises:
        ConfigError: for `dims` of a `MatryoshkaLoss` beyond the width.
    """
    if name not in WRAPPERS:
        return
    if name == MATRYOSHKA:
        dims = [dim for dim, _ in matryoshka_dims(options)]
        if dims[0] > embedding_dim:
            raise ConfigError(
                f"loss_options.dims: {dims[0]}, but the model's embeddings have only "
                f"{embedding_dim} dimensions"
            )
        embedding_dim = dims[-1]  # the narrowest that the loss inside is built for
    for asked in inner_losses(name, options):
        with within(asked.where):
            check_width(asked.name, asked.options, embedding_dim)


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
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return _build(name, options, embedding_dim, n_groups, miner, miner_options or {})


def _build(
    name: str,
    options: Mapping[str, Any],
    embedding_dim: int,
    n_groups: int,
    miner: str | None,
    miner_options: Mapping[str, Any],
) -> StepLoss:
    check_loss(name, options)
    if miner_options and miner is None:
        raise ConfigError("miner_options are given, but no miner")
    if name == MATRYOSHKA:
        return _matryoshka(options, embedding_dim, n_groups, miner, miner_options)
    if name == MULTIPLE:
        if miner is not None:
            raise ConfigError(
                f"miner = '{miner}': {name} has several losses; give it to one of them: "
                f"loss_options: {{losses: [{{loss: …, miner: {miner}}}, …]}}"
            )
        return _multiple(options, embedding_dim, n_groups)
    if miner is not None and (name in OWN_LOSSES or name in ADAPTED_LOSSES):
        raise ConfigError(f"loss = '{name}' takes no miner: miners pick among labelled texts")
    mining = None if miner is None else build_miner(miner, miner_options)
    if name in OWN_LOSSES:
        return _own_loss(name, options)
    if name in ADAPTED_LOSSES:
        return ADAPTED_LOSSES[name](options, embedding_dim, n_groups)
    if name == MEMORY_LOSS:
        return MemoryLoss(options, embedding_dim, n_groups, mining)
    return MetricLoss(name, options, embedding_dim, n_groups, mining)


def _matryoshka(
    options: Mapping[str, Any],
    embedding_dim: int,
    n_groups: int,
    miner: str | None,
    miner_options: Mapping[str, Any],
) -> StepLoss:
    (asked,) = inner_losses(MATRYOSHKA, options)
    check_width(MATRYOSHKA, options, embedding_dim)
    dims, weights = zip(*matryoshka_dims(options), strict=True)
    with within(asked.where):
        losses = [
            _build(asked.name, asked.options, dim, n_groups, miner, miner_options) for dim in dims
        ]
    return MatryoshkaLoss(losses, dims, weights)


def _multiple(options: Mapping[str, Any], embedding_dim: int, n_groups: int) -> StepLoss:
    losses, weights = [], []
    for asked in inner_losses(MULTIPLE, options):
        with within(asked.where):
            losses.append(
                _build(
                    asked.name,
                    asked.options,
                    embedding_dim,
                    n_groups,
                    asked.miner,
                    asked.miner_options,
                )
            )
        weights.append(asked.weight)
    return MultipleLosses(losses, weights)


def _own_loss(name: str, options: Mapping[str, Any]) -> StepLoss:
    known = set(inspect.signature(OWN_LOSSES[name].__init__).parameters) - {"self"}
    for option in options:
        if option not in known:
            hint = nearest(option, known)
            if option == "scale" and "temperature" in known:  # sentence-transformers has it so
                hint = " Give temperature, which is 1 / scale."
            raise ConfigError(f"loss_options.{option}: {name} has no such option.{hint}")
    try:
        return OWN_LOSSES[name](**options)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"loss_options do not fit {name}: {error}") from None
