"""The losses of pytorch-metric-learning that work on (embeddings, labels).

Every rank computes them in full on the embeddings of the whole step, so that miners, reducers and
proxies see what one process would see. (That library's own distributed wrapper is not used: it
multiplies the printed loss and the gradients of proxies by the number of workers.)
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from ftray.errors import ConfigError, nearest
from ftray.losses.base import LossInputs, Shard, StepLoss, no_loss

__all__ = ["CLASSIFICATION_LOSSES", "METRIC_LOSSES", "REFUSED_LOSSES", "MetricLoss"]

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

NEEDS_POSITIVES = frozenset({"NCALoss"})
"""Losses that are 0/0 in a step in which no class has two rows."""

REFUSED_LOSSES = {
    "CrossBatchMemory": "it wraps another loss and keeps a memory that a checkpoint would lose",
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
    "MultipleLosses": "it takes other losses, not options",
    "SmoothAPLoss": (
        "it takes only steps with equally many rows of each class, and as pytorch-metric-learning "
        "computes it, it is right only where that is also the number of classes; FastAPLoss and "
        "PNPLoss are like it"
    ),
    "SelfSupervisedLoss": "it needs two views of each row, not labels",
    "VICRegLoss": "it needs two views of each row, not labels",
}


class MetricLoss(StepLoss):
    """One loss of pytorch-metric-learning.

    Args:
        name: its class.
        options: its arguments; `distance` and `reducer` may be class names of that library.
            `num_classes` and `embedding_size` are filled in.
        embedding_dim: width D of the embeddings.
        n_groups: number of classes (or of groups of pairs).

    Raises:
        ConfigError: for an option that the loss does not have, or a value that it refuses.
    """

    needs: ClassVar[Literal["labels", "pairs"]] = "labels"
    sharded: ClassVar[bool] = False

    def __init__(
        self, name: str, options: Mapping[str, Any], embedding_dim: int, n_groups: int
    ) -> None:
        super().__init__()
        self._needs_positives = name in NEEDS_POSITIVES
        from pytorch_metric_learning import losses

        cls = getattr(losses, name)
        known = _option_names(cls)
        for option in options:
            if option not in known:
                raise ConfigError(
                    f"loss_options.{option}: {name} has no such option.{nearest(option, known)}"
                )
        given = {**_filled_in(name, embedding_dim, n_groups, known, options), **options}
        for kind in ("distance", "reducer"):
            if isinstance(given.get(kind), str):
                given[kind] = _part(kind, given[kind])
        try:
            self.inner = cls(**given)
        except (TypeError, ValueError, AssertionError) as error:
            raise ConfigError(f"loss_options do not fit {name}: {error}") from None

    def forward(self, embeddings: Tensor, inputs: LossInputs, shard: Shard) -> Tensor:
        """The whole loss of the step, the same on every rank."""
        if self._needs_positives and inputs.labels.bincount().max() < 2:
            return no_loss(embeddings)
        picked = embeddings[inputs.label_items]
        loss = self.inner(picked, inputs.labels)
        if isinstance(loss, Tensor) and (loss.requires_grad or not torch.is_grad_enabled()):
            return loss.reshape(())
        return no_loss(embeddings)  # no valid tuple in this step


def _option_names(cls: type) -> set[str]:
    names: set[str] = set()
    for base in inspect.getmro(cls):
        if base in (object, torch.nn.Module):
            break
        for parameter in inspect.signature(base.__init__).parameters.values():  # type: ignore[misc]
            if parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY):
                names.add(parameter.name)
    names |= {"distance", "reducer", "embedding_regularizer", "embedding_reg_weight"}
    return names - {"self"}


def _filled_in(
    name: str, embedding_dim: int, n_groups: int, known: set[str], options: Mapping[str, Any]
) -> dict[str, Any]:
    values: dict[str, Any] = {}
    if "embedding_size" in known:
        values["embedding_size"] = embedding_dim
    if "descriptors_dim" in known:
        values["descriptors_dim"] = embedding_dim
    if name in CLASSIFICATION_LOSSES or options.get("learn_beta"):
        values["num_classes"] = n_groups
    return values


def _part(kind: str, name: str) -> Any:
    from pytorch_metric_learning import distances, reducers

    module = distances if kind == "distance" else reducers
    known = {n for n, value in vars(module).items() if inspect.isclass(value)}
    if name not in known:
        raise ConfigError(f"loss_options.{kind} = '{name}' is unknown.{nearest(name, known)}")
    return getattr(module, name)()
