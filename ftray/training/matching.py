"""Whether data, model, loss and sampler go together, and which sampler is meant by "auto"."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from ftray.config import FitConfig
from ftray.data.dataset import TrainSet
from ftray.data.plan import Sampler
from ftray.errors import ConfigError
from ftray.evaluation.spec import EvaluationSpec, RetrievalSpec
from ftray.losses.base import Needs
from ftray.losses.metric import CLASSIFICATION_LOSSES
from ftray.losses.registry import (
    loss_names,
    loss_needs,
    misfit,
    takes_triplets,
    tied_to_classes,
)
from ftray.media import Modality
from ftray.models.catalogue import MODELS
from ftray.models.kinds import modalities_of_kind

__all__ = [
    "check_fit",
    "check_modalities",
    "check_places",
    "check_shards",
    "check_takes",
    "check_whole_steps",
    "choose_sampler",
]

PLACES = ("resources_per_worker", "accelerator_type", "label_selector", "resources_per_evaluator")
SCORED_LOSSES = "CosineSimilarityLoss, CoSENTLoss or AnglELoss"
FOR_LABELS = (
    "Losses for labels are, among others, TripletMarginLoss, SupConLoss, MultiSimilarityLoss and "
    "ArcFaceLoss."
)
FOR_PAIRS = (
    "Losses for pairs are, among others, MultipleNegativesRankingLoss and CLIPLoss. If a column "
    "holds scores, name it with `columns`, such as {score: rating}."
)
FOR_TRIPLETS = (
    "Losses for triplets are TripletMarginLoss, MultipleNegativesRankingLoss, InfoNCE and "
    "CLIPLoss. To leave the negatives unread, name the two texts alone with `columns`: "
    "{query: …, document: …}."
)
FOR_DISTILLATION = (
    "Losses that learn from a teacher's scores are MarginMSELoss and DistillKLDivLoss. To take the "
    "rows as triplets, whatever their scores, name the others alone with `columns`: "
    "{query: …, document: …, negative: …}."
)
AS_PAIRS = (
    "To take every pair as relevant, whatever its score, name the two texts alone with `columns`: "
    "{query: …, document: …}."
)
SAMPLERS: dict[str, tuple[tuple[str, ...], str]] = {
    "labelled": (("class", "random"), "is labelled"),
    "pairs": (("pairs", "random"), "holds pairs"),
    "triplets": (("pairs", "random"), "holds triplets"),
    "distillation": (("pairs", "random"), "holds triplets with a teacher's scores"),
    "scored": (("random",), "holds scored pairs, which have neither classes nor negatives"),
}
"""The samplers of each kind of data, and what to say about others."""


WORDS: dict[Modality, str] = {
    "text": "texts",
    "image": "images",
    "points": "point clouds",
    "features": "features",
}


def check_modalities(
    model: str,
    takes: frozenset[Modality],
    train: TrainSet,
    val: TrainSet | None,
    evaluations: Sequence[EvaluationSpec],
) -> None:
    """Refuse data that the model cannot encode.

    Args:
        model: its name.
        takes: what it encodes.
        train: the training data.
        val: that of the validation loss.
        evaluations: what is evaluated with.

    Raises:
        ConfigError: with the models that can.
    """
    _check_held(model, takes, "train_data", frozenset().union(*train.modalities))
    if val is not None:
        _check_held(model, takes, "the validation data", frozenset().union(*val.modalities))
    check_takes(model, takes, evaluations)


def check_takes(
    model: str, takes: frozenset[Modality], evaluations: Sequence[EvaluationSpec]
) -> None:
    """Refuse evaluations of what the model cannot encode; arguments as in `check_modalities`.

    Raises:
        ConfigError: with the models that can.
    """
    for spec in evaluations:
        _check_held(model, takes, f"the data of the evaluation '{spec.name}'", spec.modalities)


def _check_held(
    model: str, takes: frozenset[Modality], what: str, holds: frozenset[Modality]
) -> None:
    if holds <= takes:
        return
    suited = [
        f"'{name}'" for name, entry in MODELS.items() if modalities_of_kind(entry.kind, {}) == holds
    ]
    hint = f" Models for that are, among others, {', '.join(suited)}." if suited else ""
    raise ConfigError(
        f"{what} holds {_words(holds)}, but the model '{model}' takes {_words(takes)}.{hint}"
    )


def check_shards(config: FitConfig, evaluations: Sequence[EvaluationSpec]) -> None:
    """Refuse `index_shards` where there is no index to cut, or nobody to hold the parts.

    Raises:
        ConfigError: with what to change.
    """
    shards = config.index_shards
    if shards in ("auto", 1):
        return
    ranked = [spec for spec in evaluations if isinstance(spec, RetrievalSpec)]
    if config.num_workers == 0:
        raise ConfigError(
            f"index_shards = {shards} needs Ray, whose actors hold the shards, but num_workers = 0 "
            "trains without it. Give num_workers: 1, or leave index_shards away"
        )
    if not ranked:
        raise ConfigError(
            f"index_shards = {shards}, but there is no index: no EvaluationCallback ranks "
            "documents. Leave index_shards away"
        )
    for spec in ranked:
        if spec.quantize:
            raise ConfigError(
                f"index_shards = {shards}, but EvaluationCallback '{spec.name}' has quantize: the "
                "codes are made from the whole index. Leave away one of the two"
            )
        if spec.overlap:
            raise ConfigError(
                f"index_shards = {shards}, but EvaluationCallback '{spec.name}' has overlap: one "
                "actor evaluates then, with an index of its own. Leave away one of the two"
            )


def check_places(config: FitConfig, evaluations: Sequence[EvaluationSpec]) -> None:
    """Refuse options about Ray's nodes where there are none, and those that contradict each other.

    Raises:
        ConfigError: with what to change.
    """
    for name in PLACES:
        if config.num_workers == 0 and getattr(config, name) is not None:
            raise ConfigError(
                f"{name} is about the nodes of Ray, but num_workers = 0 trains in this process. "
                f"Give num_workers: 1, or leave {name} away"
            )
    gpus = (config.resources_per_worker or {}).get("GPU")
    if config.device == "cpu" and gpus:
        raise ConfigError(
            f"device = 'cpu', but resources_per_worker.GPU = {gpus:g}: leave one away"
        )
    if config.device == "cuda" and gpus == 0:
        raise ConfigError("device = 'cuda', but resources_per_worker.GPU = 0: leave one away")
    if config.resources_per_evaluator is None:
        return
    if not any(spec.overlap for spec in evaluations):
        raise ConfigError(
            "resources_per_evaluator, but no EvaluationCallback has overlap: true, and only these "
            "evaluations run in an actor of their own. Leave resources_per_evaluator away"
        )
    if config.device == "cpu" and config.resources_per_evaluator.get("GPU"):
        raise ConfigError("device = 'cpu', but resources_per_evaluator asks for a GPU")


def check_whole_steps(model: str, config: FitConfig, items: int | None = None) -> None:
    """Refuse what batch normalisation with statistics of the global batch cannot do.

    Args:
        model: its name.
        config: what the user wants.
        items: the most that a step has to encode, where that is known.

    Raises:
        ConfigError: with what to change.
    """
    statistics = f"'{model}' has batch normalisation with statistics of the whole step"
    if config.micro_batch_size is not None:
        raise ConfigError(
            f"micro_batch_size = {config.micro_batch_size}, but {statistics}: leave "
            "micro_batch_size out, or use other normalisation where the model has an option for "
            "it (model_options.batch_norm: frozen, or model_options.norm: group)"
        )
    if items is not None and config.num_workers != "auto" and items < config.num_workers:
        raise ConfigError(
            f"num_workers = {config.num_workers}, but {statistics}, and a step has only {items} "
            "to encode: every worker needs one. Give a larger batch_size, or fewer num_workers"
        )


def _words(modalities: frozenset[Modality]) -> str:
    return " and ".join(word for modality, word in WORDS.items() if modality in modalities)


def check_fit(config: FitConfig, train: TrainSet) -> None:
    """Refuse a loss or a sampler that the training data does not fit.

    Raises:
        ConfigError: with losses, or samplers, that do.
    """
    _MISFITS[loss_needs(config.loss, config.loss_options)](config, train)
    if train.kind == "triplets":
        _check_triplets(config, train)
    samplers, what = SAMPLERS[train.kind]
    if config.sampler not in ("auto", *samplers):
        valid = " or ".join(f"'{name}'" for name in samplers)
        raise ConfigError(f"sampler = '{config.sampler}', but train_data {what}: {valid}")
    tied = tied_to_classes(config.loss, config.loss_options)
    if config.eval_data is not None and tied:
        raise ConfigError(
            f"{tied} of train_data; the classes of eval_data may be others. Use val_split for a "
            "validation loss with this loss."
        )


def _check_triplets(config: FitConfig, train: TrainSet) -> None:
    held = f"train_data ({train.source}) holds triplets (query,document,negative)"
    if not takes_triplets(config.loss, config.loss_options):
        who = misfit(config.loss, config.loss_options, lambda needs, takes: takes)
        raise ConfigError(f"{who} does not learn from given negatives, but {held}. {FOR_TRIPLETS}")
    if config.miner is not None:
        raise ConfigError(f"miner = '{config.miner}' picks triplets, but {held}: leave miner out.")


def choose_sampler(config: FitConfig, train: TrainSet) -> Sampler:
    """The sampler given, or the one that suits data and loss."""
    if config.sampler != "auto":
        return config.sampler
    if train.has_queries:
        return "pairs" if _meets_other_rows(config, train) else "random"
    placed = CLASSIFICATION_LOSSES.issuperset(loss_names(config.loss, config.loss_options))
    return "random" if train.kind == "scored" or placed else "class"


def _meets_other_rows(config: FitConfig, train: TrainSet) -> bool:
    """Whether other rows of a step are negatives, so that those which share a text do harm there.

    Without that every row can come in every epoch, however many share a query.
    """
    names = loss_names(config.loss, config.loss_options)
    return train.kind == "pairs" or any(loss_needs(name) == "pairs" for name in names)


def _labels_wanted(config: FitConfig, train: TrainSet) -> None:
    """Losses on labels take pairs as well: their groups are labels."""
    if train.scores is not None:
        raise _scores_unread(config, train)


def _pairs_wanted(config: FitConfig, train: TrainSet) -> None:
    if train.scores is not None:
        raise _scores_unread(config, train)
    if train.kind == "labelled":
        who = misfit(config.loss, config.loss_options, lambda needs, takes: needs == "labels")
        raise ConfigError(
            f"{who} learns from pairs (query,document), but train_data ({train.source}) "
            f"is labelled. {FOR_LABELS}"
        )


def _scores_wanted(config: FitConfig, train: TrainSet) -> None:
    if train.kind == "scored":
        return
    if train.kind == "distillation":
        raise _scores_unread(config, train)
    labelled = train.kind == "labelled"
    who = misfit(config.loss, config.loss_options, lambda needs, takes: needs != "scores")
    raise ConfigError(
        f"{who} learns from scored pairs (query,document,score), but train_data "
        f"({train.source}) {'is labelled' if labelled else f'holds {train.kind} without scores'}. "
        f"{FOR_LABELS if labelled else FOR_PAIRS}"
    )


def _distillation_wanted(config: FitConfig, train: TrainSet) -> None:
    if train.kind == "distillation":
        return
    held = {
        "labelled": f"is labelled. {FOR_LABELS}",
        "pairs": f"holds pairs. {FOR_PAIRS}",
        "triplets": (
            f"holds triplets without scores. {FOR_TRIPLETS} If a column holds the scores, name it "
            "with `columns`, such as {score: margin}."
        ),
        "scored": (
            "holds scored pairs, which have no negatives. Scored pairs need loss: "
            f"{SCORED_LOSSES}. If columns hold negatives, name them with `columns`, such as "
            "{negative: …}."
        ),
    }
    who = misfit(config.loss, config.loss_options, lambda needs, takes: needs != "distillation")
    raise ConfigError(
        f"{who} learns from a teacher's scores of a document and of its negatives "
        f"(query,document,negative,score), but train_data ({train.source}) {held[train.kind]}"
    )


def _scores_unread(config: FitConfig, train: TrainSet) -> ConfigError:
    chosen = "loss" in config.model_fields_set
    wanted = "distillation" if train.kind == "distillation" else "scores"
    who = misfit(config.loss, config.loss_options, lambda needs, takes: needs == wanted)
    if train.kind == "distillation":
        what = f"{who} does not learn from these" if chosen else "no loss was given"
        return ConfigError(
            f"train_data ({train.source}) holds a teacher's scores of documents and negatives "
            f"(query,document,negative,score), and {what}. {FOR_DISTILLATION}"
        )
    what = f"{who} does not learn from scores" if chosen else "no loss was given"
    return ConfigError(
        f"train_data ({train.source}) holds scored pairs (query,document,score), and {what}: "
        f"scored pairs need loss: {SCORED_LOSSES}. {AS_PAIRS}"
    )


_MISFITS: dict[Needs, Callable[[FitConfig, TrainSet], None]] = {
    "labels": _labels_wanted,
    "pairs": _pairs_wanted,
    "scores": _scores_wanted,
    "distillation": _distillation_wanted,
}
