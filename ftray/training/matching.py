"""Whether data, loss and sampler go together, and which sampler is meant by "auto"."""

from __future__ import annotations

from collections.abc import Callable

from ftray.config import FitConfig
from ftray.data.dataset import TrainSet
from ftray.data.plan import Sampler
from ftray.errors import ConfigError
from ftray.losses.base import Needs
from ftray.losses.metric import CLASSIFICATION_LOSSES, learns_classes
from ftray.losses.registry import MEMORY_LOSS, loss_needs

__all__ = ["check_fit", "choose_sampler"]

SCORED_LOSS = "CosineSimilarityLoss"
FOR_LABELS = (
    "Losses for labels are, among others, TripletMarginLoss, SupConLoss, MultiSimilarityLoss and "
    "ArcFaceLoss."
)
FOR_PAIRS = (
    "Losses for pairs are, among others, MultipleNegativesRankingLoss and CLIPLoss. If a column "
    "holds scores, name it with `columns`, such as {score: rating}."
)
AS_PAIRS = (
    "To take every pair as relevant, whatever its score, name the two texts alone with `columns`: "
    "{query: …, document: …}."
)
SAMPLERS: dict[str, tuple[tuple[str, ...], str]] = {
    "labelled": (("class", "random"), "is labelled"),
    "pairs": (("pairs", "random"), "holds pairs"),
    "scored": (("random",), "holds scored pairs, which have neither classes nor negatives"),
}
"""The samplers of each kind of data, and what to say about others."""


def check_fit(config: FitConfig, train: TrainSet) -> None:
    """Refuse a loss or a sampler that the training data does not fit.

    Raises:
        ConfigError: with losses, or samplers, that do.
    """
    _MISFITS[loss_needs(config.loss)](config, train)
    samplers, what = SAMPLERS[train.kind]
    if config.sampler not in ("auto", *samplers):
        valid = " or ".join(f"'{name}'" for name in samplers)
        raise ConfigError(f"sampler = '{config.sampler}', but train_data {what}: {valid}")
    remembers = config.loss == MEMORY_LOSS
    if config.eval_data is not None and (
        remembers or learns_classes(config.loss, config.loss_options)
    ):
        what = "remembers texts" if remembers else "learns something for each class"
        raise ConfigError(
            f"{config.loss} {what} of train_data; the classes of eval_data may be others. Use "
            "val_split for a validation loss with this loss."
        )


def choose_sampler(config: FitConfig, train: TrainSet) -> Sampler:
    """The sampler given, or the one that suits data and loss."""
    if config.sampler != "auto":
        return config.sampler
    if train.kind == "pairs":
        return "pairs"
    return "random" if train.kind == "scored" or config.loss in CLASSIFICATION_LOSSES else "class"


def _labels_wanted(config: FitConfig, train: TrainSet) -> None:
    """Losses on labels take pairs as well: their groups are labels."""
    if train.kind == "scored":
        raise _scores_unread(config, train)


def _pairs_wanted(config: FitConfig, train: TrainSet) -> None:
    if train.kind == "scored":
        raise _scores_unread(config, train)
    if train.kind == "labelled":
        raise ConfigError(
            f"{config.loss} learns from pairs (query,document), but train_data ({train.source}) "
            f"is labelled. {FOR_LABELS}"
        )


def _scores_wanted(config: FitConfig, train: TrainSet) -> None:
    if train.kind == "scored":
        return
    labelled = train.kind == "labelled"
    raise ConfigError(
        f"{config.loss} learns from scored pairs (query,document,score), but train_data "
        f"({train.source}) {'is labelled' if labelled else 'holds pairs without scores'}. "
        f"{FOR_LABELS if labelled else FOR_PAIRS}"
    )


def _scores_unread(config: FitConfig, train: TrainSet) -> ConfigError:
    chosen = "loss" in config.model_fields_set
    what = f"{config.loss} does not learn from scores" if chosen else "no loss was given"
    return ConfigError(
        f"train_data ({train.source}) holds scored pairs (query,document,score), and {what}: "
        f"scored pairs need loss: {SCORED_LOSS}. {AS_PAIRS}"
    )


_MISFITS: dict[Needs, Callable[[FitConfig, TrainSet], None]] = {
    "labels": _labels_wanted,
    "pairs": _pairs_wanted,
    "scores": _scores_wanted,
}
