"""The losses and miners of pytorch-metric-learning that work on (embeddings, labels).

Every rank computes them in full on the embeddings of the whole step, so that miners, reducers and
proxies see what one process would see. (That library's own distributed wrapper is not used: it
multiplies the printed loss and the gradients of proxies by the number of workers.)
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ftray.errors import ConfigError, nearest
from ftray.losses.base import LossInputs, Needs, Shard, StepLoss, no_loss
from ftray.losses.hints import miner_hint

__all__ = ["CLASSIFICATION_LOSSES", "METRIC_LOSSES", "MINERS", "REFUSED_LOSSES"]
__all__ += ["MetricLoss", "build_miner", "check_miner", "learns_classes"]
__all__ += ["NEEDS_POSITIVES", "TRIPLET_LOSS", "given_triplets", "library_loss", "scalar_loss"]

CLASSIFICATION_LOSSES = frozenset(
    {
        "ArcFaceLoss",
        "CosFaceLoss",
        "LargeMarginSoftmaxLoss",
        "NormalizedSoftmaxLoss",
        "P2SGradLoss",
        "ProxyAnchorLoss",
        "ProxyNCALoss",
        "SoftTripleLoss",
        "SphereFaceLoss",
        "SubCenterArcFaceLoss",
    }
)
"""Losses with a learned vector for each class; batches need not be balanced for them."""

METRIC_LOSSES = CLASSIFICATION_LOSSES | {
    "AngularLoss",
    "CircleLoss",
    "ContrastiveLoss",
    "FastAPLoss",
    "GeneralizedLiftedStructureLoss",
    "HistogramLoss",
    "IntraPairVarianceLoss",
    "LiftedStructureLoss",
    "MarginLoss",
    "MultiSimilarityLoss",
    "NCALoss",
    "NPairsLoss",
    "NTXentLoss",
    "PNPLoss",
    "RankedListLoss",
    "SignalToNoiseRatioContrastiveLoss",
    "SupConLoss",
    "ThresholdConsistentMarginLoss",
    "TripletMarginLoss",
    "TupletMarginLoss",
}

TRIPLET_LOSS = "TripletMarginLoss"
"""Of triplets it takes exactly those, one for each negative; of other data all, or those that a
miner picks."""

NEEDS_POSITIVES = frozenset({"NCALoss"})
"""Losses that are 0/0 in a step in which no class has two rows."""

NO_MINER = frozenset({"P2SGradLoss", "PNPLoss", "RankedListLoss"})
"""Losses that take no pairs or triplets from a miner."""

MINERS = frozenset(
    {
        "AngularMiner",
        "BatchEasyHardMiner",
        "BatchHardMiner",
        "DistanceWeightedMiner",
        "HDCMiner",
        "MultiSimilarityMiner",
        "PairMarginMiner",
        "TripletMarginMiner",
        "UniformHistogramMiner",
    }
)

REFUSED_MINERS = {
    "EmbeddingsAlreadyPackagedAsTriplets": (
        "it looks at the order of rows, and the rows of a step are in the order of the plan. Data "
        "with triplets (query,document,negative) needs no miner"
    ),
}

REFUSED_LOSSES = {
    "DynamicSoftMarginLoss": (
        "it keeps a histogram over the steps that a checkpoint would lose, and as "
        "pytorch-metric-learning computes it, it fails in the second step"
    ),
    "GenericPairLoss": "it is a base class",
    "InstanceLoss": (
        "as pytorch-metric-learning computes it, it takes the number of a class for the place of "
        "a row in the step"
    ),
    "ManifoldLoss": "it takes no labels, and draws classes at random",
    "SmoothAPLoss": (
        "it takes only steps with equally many rows of each class, and as pytorch-metric-learning "
        "computes it, it is right only where that is also the number of classes; FastAPLoss and "
        "PNPLoss are like it"
    ),
}

PARTS = {
    "distance": "distances",
    "reducer": "reducers",
    "embedding_regularizer": "regularizers",
    "weight_regularizer": "regularizers",
}
"""Options that are objects of the library, and the module that has their classes."""


class MetricLoss(StepLoss):
    """One loss of pytorch-metric-learning, with a miner or without.

    Args:
        name: its class.
        options: its arguments; `distance`, `reducer` and regularizers are class names of that
            library, or `{name: …}` with the arguments of that class. `num_classes` and
            `embedding_size` are filled in.
        embedding_dim: width D of the embeddings.
        n_groups: number of classes (or of groups of pairs).
        miner: picks the pairs or triplets, from those of the whole step; None = all of them.

    Raises:
        ConfigError: for an option that the loss does not have, a value that it refuses, or a miner
            for a loss that takes none.
    """

    needs: Needs = "labels"
    sharded = False

    def __init__(
        self,
        name: str,
        options: Mapping[str, Any],
        embedding_dim: int,
        n_groups: int,
        miner: torch.nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.takes_triplets = name == TRIPLET_LOSS and miner is None
        if miner is not None and name in NO_MINER:
            raise ConfigError(f"loss = '{name}' takes no pairs from a miner: leave miner out")
        self._needs_positives = name in NEEDS_POSITIVES
        self.miner = miner
        self.inner = library_loss(name, options, embedding_dim, n_groups)

    def forward(self, embeddings: Tensor, inputs: LossInputs, shard: Shard) -> Tensor:
        """The whole loss of the step, the same on every rank."""
        if inputs.columns.shape[1] > 2 and self.takes_triplets:
            given = given_triplets(inputs.columns)
            return scalar_loss(self.inner(embeddings, indices_tuple=given), embeddings)
        if self._needs_positives and inputs.labels.bincount().max() < 2:
            return no_loss(embeddings)
        picked = embeddings[inputs.label_items]
        pairs = None if self.miner is None else self.miner(picked, inputs.labels)
        return scalar_loss(self.inner(picked, inputs.labels, pairs), embeddings)


def given_triplets(columns: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Query, document and negative of each triplet, `(n·B,)` each, of rows `(B, 2 + n)`."""
    n = columns.shape[1] - 2
    return columns[:, 0].repeat(n), columns[:, 1].repeat(n), columns[:, 2:].T.reshape(-1)


def library_loss(
    name: str,
    options: Mapping[str, Any],
    embedding_dim: int,
    n_groups: int,
    where: str = "loss_options",
) -> torch.nn.Module:
    """The library's own object.

    Args:
        name: its class.
        options: its arguments.
        embedding_dim: width D of the embeddings.
        n_groups: number of classes (or of groups of pairs).
        where: the key that the options stand under, for messages.

    Raises:
        ConfigError: for options that do not fit.
    """
    from pytorch_metric_learning import losses

    filled = _filled_in(name, embedding_dim, n_groups, options)
    loss = _made(where, getattr(losses, name), options, filled)
    if name == "HistogramLoss":
        distance: torch.nn.Module = loss.distance  # type: ignore[assignment]
        distance.register_forward_hook(_below_one)
    return loss


def _below_one(module: torch.nn.Module, arguments: Any, similarities: Tensor) -> Tensor:
    """HistogramLoss has no bin for a similarity of 1, that of a text under two labels."""
    return similarities.clamp(max=1 - 1e-6)


def learns_classes(name: str, options: Mapping[str, Any]) -> bool:
    """Whether a loss of the library has something learned for each class."""
    return name in CLASSIFICATION_LOSSES or bool(options.get("learn_beta"))


def scalar_loss(loss: Any, embeddings: Tensor) -> Tensor:
    """What a loss of the library returned, or a connected zero where it found no valid tuple."""
    if isinstance(loss, Tensor) and (loss.requires_grad or not torch.is_grad_enabled()):
        return loss.reshape(())
    return no_loss(embeddings)


def check_miner(name: str) -> None:
    """Raise a `ConfigError` for a name that is no miner, with the nearest one or the reason."""
    if name in REFUSED_MINERS:
        raise ConfigError(f"miner = '{name}' cannot be used here: {REFUSED_MINERS[name]}.")
    if name not in MINERS:
        raise ConfigError(f"There is no miner '{name}'.{miner_hint(name, MINERS)}")


def build_miner(name: str, options: Mapping[str, Any]) -> torch.nn.Module:
    """A miner of pytorch-metric-learning; `distance` is given as for losses.

    Raises:
        ConfigError: for an unknown name or option, or a value that the miner refuses.
    """
    from pytorch_metric_learning import miners

    check_miner(name)
    return _made("miner_options", getattr(miners, name), options, {})


def _made(
    where: str, cls: type[torch.nn.Module], options: Mapping[str, Any], filled_in: dict[str, Any]
) -> torch.nn.Module:
    """An object of the library from the user's options and what we know ourselves."""
    known = _option_names(cls)
    for option in options:
        if option not in known:
            raise ConfigError(
                f"{where}.{option}: {cls.__name__} has no such option.{nearest(option, known)}"
            )
        if option in filled_in:
            raise ConfigError(f"{where}.{option}: ftray has it from data and model; leave it away")
    given = {name: value for name, value in filled_in.items() if name in known} | dict(options)
    for part in PARTS:
        if given.get(part) is not None:
            given[part] = _part(where, part, given[part])
    try:
        return cls(**given)
    except ConfigError:
        raise
    except Exception as error:  # whatever the library makes of a wrong value
        raise ConfigError(f"{where} do not fit {cls.__name__}: {error}") from None


def _option_names(cls: type) -> set[str]:
    names: set[str] = set()
    for base in inspect.getmro(cls):
        if base in (object, torch.nn.Module):
            break
        for parameter in inspect.signature(base.__init__).parameters.values():  # type: ignore[misc]
            if parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY):
                names.add(parameter.name)
    return names - {"self"}


def _filled_in(
    name: str, embedding_dim: int, n_groups: int, options: Mapping[str, Any]
) -> dict[str, Any]:
    """What ftray knows itself; of these a class gets those that it has."""
    values: dict[str, Any] = {"embedding_size": embedding_dim, "descriptors_dim": embedding_dim}
    if learns_classes(name, options):
        values["num_classes"] = n_groups
    return values


def _part(where: str, part: str, given: Any) -> torch.nn.Module:
    """A distance, reducer or regularizer from its name, or its name and arguments, or itself."""
    if isinstance(given, torch.nn.Module):
        return given
    module = importlib.import_module(f"pytorch_metric_learning.{PARTS[part]}")
    known: dict[str, Any] = {n: cls for n, cls in vars(module).items() if inspect.isclass(cls)}
    options = {"name": given} if isinstance(given, str) else given
    if not isinstance(options, Mapping) or not isinstance(options.get("name"), str):
        raise ConfigError(
            f"{where}.{part} = {given!r}: the name of a class, or {{name: …}} with its arguments"
        )
    name = options["name"]
    if name not in known:
        raise ConfigError(f"{where}.{part} = '{name}' is unknown.{nearest(name, known)}")
    arguments = {key: value for key, value in options.items() if key != "name"}
    return _made(f"{where}.{part}", known[name], arguments, {})
