"""What to say of names of losses and miners that other libraries have, and ftray spells otherwise.

The names are those of sentence-transformers, of Finetuner, and of former versions of
pytorch-metric-learning. A name that is not here gets the nearest valid one.
"""

from __future__ import annotations

from collections.abc import Collection

from ftray.errors import nearest

__all__ = ["loss_hint", "miner_hint"]

NO_GUIDE = (
    "A guide model is not offered. MultipleNegativesRankingLoss masks what the data knows as "
    "relevant; MarginMSELoss and DistillKLDivLoss learn from the scores of another model."
)
NO_LABELS = (
    "It learns from single texts without labels, and ftray has no such loss: losses need labels, "
    "pairs, triplets or scores."
)
NO_TEACHER = "A teacher's embeddings are no data here; its scores are"
BATCH_TRIPLETS = "Here it is loss: TripletMarginLoss"
MICRO_BATCHES = (
    "set micro_batch_size beside it: every loss here can be computed in micro batches, with the "
    "same gradient."
)

LOSS_HINTS = {
    # sentence-transformers
    "AdaptiveLayerLoss": "Layers are not left out in training; MatryoshkaLoss shortens embeddings.",
    "BatchAllTripletLoss": f"{BATCH_TRIPLETS}, which takes all triplets of the step.",
    "BatchHardTripletLoss": f"{BATCH_TRIPLETS} with miner: BatchHardMiner.",
    "BatchHardSoftMarginTripletLoss": (
        f"{BATCH_TRIPLETS} with miner: BatchHardMiner and loss_options: {{smooth_loss: true}}."
    ),
    "BatchSemiHardTripletLoss": (
        f"{BATCH_TRIPLETS} with miner: TripletMarginMiner and "
        "miner_options: {type_of_triplets: semihard}."
    ),
    "CachedGISTEmbedLoss": NO_GUIDE,
    "CachedMultipleNegativesRankingLoss": (
        f"Take MultipleNegativesRankingLoss, and {MICRO_BATCHES}"
    ),
    "CachedMultipleNegativesSymmetricRankingLoss": (
        "Take MultipleNegativesRankingLoss with loss_options: {symmetric: true}, and "
        f"{MICRO_BATCHES}"
    ),
    "ContrastiveTensionLoss": NO_LABELS,
    "ContrastiveTensionLossInBatchNegatives": NO_LABELS,
    "DenoisingAutoEncoderLoss": NO_LABELS,
    "EmbedDistillLoss": f"{NO_TEACHER}: MarginMSELoss, DistillKLDivLoss.",
    "GISTEmbedLoss": NO_GUIDE,
    "GlobalOrthogonalRegularizationLoss": (
        "Regularizers are options of the losses of pytorch-metric-learning: "
        "loss_options: {embedding_regularizer: LpRegularizer}."
    ),
    "MSELoss": (
        f"{NO_TEACHER}: MarginMSELoss, DistillKLDivLoss. For scored pairs: CosineSimilarityLoss."
    ),
    "Matryoshka2dLoss": (
        "Layers are not left out in training; MatryoshkaLoss shortens embeddings."
    ),
    "MegaBatchMarginLoss": (
        "TripletMarginLoss with miner: BatchHardMiner takes the hardest negative of the whole step."
    ),
    "MultipleNegativesSymmetricRankingLoss": (
        "Take MultipleNegativesRankingLoss with loss_options: {symmetric: true}."
    ),
    "OnlineContrastiveLoss": (
        "ContrastiveLoss with miner: PairMarginMiner takes the hard pairs of the step."
    ),
    "SoftmaxLoss": (
        "A classifier over pairs is not offered. For labelled texts, NormalizedSoftmaxLoss; for "
        "pairs, MultipleNegativesRankingLoss."
    ),
    "TripletLoss": (
        "Did you mean 'TripletMarginLoss'? It takes the triplets of the data, or all triplets of "
        "labelled texts."
    ),
    # Finetuner
    "GenericPair": "In pytorch-metric-learning it is a base class of losses.",
    "NTXLoss": "Did you mean 'NTXentLoss'?",
    "SiameseLoss": "Did you mean 'ContrastiveLoss'?",
    # others
    "CrossEntropyLoss": (
        "Did you mean 'NormalizedSoftmaxLoss' (over classes), or "
        "'MultipleNegativesRankingLoss' (over the documents of a step)?"
    ),
    "KLDivergenceLoss": "Did you mean 'DistillKLDivLoss'?",
    "MNRL": "Did you mean 'MultipleNegativesRankingLoss'?",
}

EASY_HARD = (
    "Did you mean 'BatchEasyHardMiner'? Its strategies are miner_options: {pos_strategy: …, "
    "neg_strategy: …}."
)
NOT_NEEDED = "Without a miner, a loss takes all pairs or triplets of the step."

MINER_HINTS = {
    "MaximumLossMiner": (
        "The installed pytorch-metric-learning has none of that name; BatchHardMiner picks the "
        "hardest positive and negative of each text."
    ),
    "SiameseEasyHardMiner": EASY_HARD,
    "SiameseMiner": NOT_NEEDED,
    "SiameseSessionMiner": NOT_NEEDED,
    "TripletEasyHardMiner": EASY_HARD,
    "TripletMiner": NOT_NEEDED,
    "TripletSessionMiner": NOT_NEEDED,
}


def loss_hint(name: str, known: Collection[str]) -> str:
    """A sentence, after a space, for a name that is none of the `known` losses."""
    return _hint(name, "Loss", known, LOSS_HINTS)


def miner_hint(name: str, known: Collection[str]) -> str:
    """A sentence, after a space, for a name that is none of the `known` miners."""
    return _hint(name, "Miner", known, MINER_HINTS)


def _hint(name: str, kind: str, known: Collection[str], hints: dict[str, str]) -> str:
    if name in hints:
        return f" {hints[name]}"
    whole = {known_name.lower() for known_name in known}
    if f"{name}{kind}".lower() in whole:  # Finetuner names them so: CosFace
        return nearest(f"{name}{kind}", known)
    return nearest(name, known)
