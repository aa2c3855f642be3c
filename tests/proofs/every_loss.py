"""The written list for contract 2, wide: every loss, miners, micro batches; and how one is run.

Each entry is trained for a few steps as the loop does it (`run_table`, on every rank): a full step,
ragged ones in which ranks have no valid pair among their own texts, or no text at all, and one in
which no two texts belong together.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import nn

from ftray.config import FitConfig
from ftray.data.dataset import TrainSet, train_set
from ftray.data.readers import read_records
from ftray.losses.base import StepLoss
from ftray.losses.registry import build_loss
from ftray.models.registry import load_encoder
from ftray.models.text import TextEncoder
from ftray.training.optim import build_optimizer
from ftray.training.precision import Precision
from ftray.training.step import forward_backward, own_texts, validation_loss
from tests.proofs.cases import sentences

__all__ = ["ENTRIES", "Entry", "Outcome"]
__all__ += ["data_of", "gradient", "run_table", "step_rows"]

SEED = 5

LABELS = ["aaabbbcccddd", "aabbc", "aab", "abcd"]
"""The steps of labelled data, one letter for each row's class."""
TWICE = (0, 4)
"""Rows of the first step that stand in the second one too, each under two labels."""
PAIRS = [
    [(0, 1), (2, 3), (4, 5), (6, 7), (0, 8), (9, 3)],  # some share a query or a document
    [(10, 11), (12, 13), (14, 15)],
    [(16, 17)],  # one pair has no negatives
    [(18, 19), (20, 20)],  # a pair of one text with itself
]
"""The steps of pairs, as numbers of texts."""
TRIPLETS = [
    # a pair with two negatives; a negative that is another's document, or query; one that is a
    # document of the same query; one that is the query itself
    [(0, 1, 2), (0, 1, 3), (4, 5, 1), (6, 7, 4), (0, 8, 1), (9, 10, 9)],
    [(11, 12, 13), (14, 15, 13), (16, 12, 17)],
    [(18, 19, 20)],
    [(18, 2, 19), (20, 20, 3)],
]
"""The steps of triplets."""
NEGATIVES = [
    # as above, with two negatives each: the same one twice, or in another row's other place
    [(0, 1, 2, 3), (4, 5, 1, 2), (6, 7, 4, 4), (0, 8, 1, 6), (9, 10, 9, 2)],
    [(11, 12, 13, 14), (14, 15, 13, 2), (16, 12, 17, 18)],
    [(18, 19, 20, 0)],
    [(18, 2, 19, 20), (20, 20, 3, 20)],
]
"""The steps of triplets with several negatives, and of those to distil from."""
CELLS = {
    "pairs": PAIRS,
    "scored": PAIRS,
    "triplets": TRIPLETS,
    "negatives": NEGATIVES,
    "distillation": NEGATIVES,
}


@dataclass(frozen=True)
class Entry:
    """A loss with its options, and a miner or none; `title` is a short name for its options."""

    loss: str
    options: tuple[tuple[str, Any], ...] = ()
    miner: str | None = None
    miner_options: tuple[tuple[str, Any], ...] = ()
    data: str = "labelled"
    title: str = ""

    @property
    def name(self) -> str:
        options = self.title or ", ".join(f"{key}={value}" for key, value in self.options)
        mined = ", ".join(f"{key}={value}" for key, value in self.miner_options)
        miner = f" + {self.miner}({mined})" if self.miner else ""
        on = "" if self.data == "labelled" else f" on {self.data}"
        return f"{self.loss}({options}){miner}{on}"

    def build(self, embedding_dim: int, n_groups: int) -> StepLoss:
        return build_loss(
            self.loss,
            dict(self.options),
            embedding_dim=embedding_dim,
            n_groups=n_groups,
            seed=0,
            miner=self.miner,
            miner_options=dict(self.miner_options),
        ).double()


MEMORY, SHORTENED = "CrossBatchMemory", "MatryoshkaLoss"
REMEMBERED = {"loss": MEMORY, "loss_options": {"loss": "SupConLoss", "memory_size": 14}}
DRAWN = {"loss": "TripletMarginLoss", "loss_options": {"triplets_per_anchor": 2}}
IN_FULL = [{"loss": "ArcFaceLoss"}, {**DRAWN, "weight": 0.3}]
BY_ROWS = [{"loss": "MarginMSELoss", "weight": 0.1}, {"loss": "InfoNCE"}]
MIXED = [
    {"loss": "ContrastiveLoss", "miner": "UniformHistogramMiner"},
    {"loss": "CLIPLoss", "weight": 2},
    {"loss": "ArcFaceLoss"},
    REMEMBERED,
    DRAWN,
]
DIMS = (("dims", [8, 32, 5]), ("weights", [0.5, 1, 2]))
ENTRIES = [
    # every loss of pytorch-metric-learning on (embeddings, labels) that is not refused
    Entry("AngularLoss"),
    Entry("ArcFaceLoss"),
    Entry("CircleLoss"),
    Entry("ContrastiveLoss"),
    Entry("CosFaceLoss"),
    Entry("FastAPLoss"),
    Entry("GeneralizedLiftedStructureLoss"),
    Entry("HistogramLoss"),
    Entry("IntraPairVarianceLoss"),
    Entry("LargeMarginSoftmaxLoss"),
    Entry("LiftedStructureLoss"),
    Entry("MarginLoss"),
    Entry("MultiSimilarityLoss"),
    Entry("NCALoss"),
    Entry("NPairsLoss"),
    Entry("NTXentLoss"),
    Entry("NormalizedSoftmaxLoss"),
    Entry("P2SGradLoss"),
    Entry("PNPLoss"),
    Entry("ProxyAnchorLoss"),
    Entry("ProxyNCALoss"),
    Entry("RankedListLoss", (("margin", 0.5), ("Tn", 1.0))),
    Entry("SignalToNoiseRatioContrastiveLoss"),
    Entry("SoftTripleLoss"),
    Entry("SphereFaceLoss"),
    Entry("SubCenterArcFaceLoss"),
    Entry("SupConLoss"),
    Entry("ThresholdConsistentMarginLoss"),
    Entry("TripletMarginLoss"),
    Entry("TupletMarginLoss"),
    # options: a draw at random, a learned margin for each class, another distance and reducer
    Entry("TripletMarginLoss", (("triplets_per_anchor", 2),)),
    Entry("MarginLoss", (("learn_beta", True),)),
    Entry(
        "ContrastiveLoss", (("distance", "CosineSimilarity"), ("pos_margin", 1), ("neg_margin", 0))
    ),
    Entry("TripletMarginLoss", (("reducer", "MeanReducer"),)),
    # every miner, over the global batch
    Entry("TripletMarginLoss", miner="AngularMiner"),
    Entry("TripletMarginLoss", miner="BatchEasyHardMiner"),
    Entry("TripletMarginLoss", miner="BatchHardMiner"),
    Entry("TripletMarginLoss", miner="DistanceWeightedMiner"),
    Entry("ContrastiveLoss", miner="HDCMiner"),
    Entry("MultiSimilarityLoss", miner="MultiSimilarityMiner"),
    Entry("ContrastiveLoss", miner="PairMarginMiner"),
    Entry("TripletMarginLoss", miner="TripletMarginMiner"),
    Entry("ContrastiveLoss", miner="UniformHistogramMiner"),
    Entry("TripletMarginLoss", (), "TripletMarginMiner", (("type_of_triplets", "hard"),)),
    Entry("ArcFaceLoss", miner="BatchHardMiner"),
    # a memory of former steps
    Entry(MEMORY, (("loss", "ContrastiveLoss"), ("memory_size", 14))),
    Entry(MEMORY, (("loss", "NCALoss"), ("memory_size", 100))),
    Entry(MEMORY, (("loss", "TripletMarginLoss"), ("memory_size", 16)), "TripletMarginMiner"),
    # ours; and losses on labels, given pairs
    Entry("InfoNCE", data="pairs"),
    Entry("InfoNCE", (("symmetric", False), ("temperature", 0.3)), data="pairs"),
    Entry("MultipleNegativesRankingLoss", (("learnable_temperature", True),), data="pairs"),
    Entry("CLIPLoss", data="pairs"),
    Entry("SigLIPLoss", data="pairs"),
    Entry("SigLIPLoss", (("temperature", 0.5), ("bias", -1.0)), data="pairs"),
    Entry("SupConLoss", data="pairs"),
    Entry("ArcFaceLoss", data="pairs"),
    Entry("CosineSimilarityLoss", data="scored"),
    Entry("InfoNCE", data="triplets"),
    Entry("MultipleNegativesRankingLoss", data="triplets"),
    Entry("CLIPLoss", data="triplets"),
    Entry("TripletMarginLoss", data="triplets"),
    Entry("TripletMarginLoss", (("margin", 0.5), ("reducer", "MeanReducer")), data="triplets"),
    # several negatives for each query
    Entry("CLIPLoss", data="negatives"),
    Entry("TripletMarginLoss", data="negatives"),
    # a teacher's scores
    Entry("MarginMSELoss", data="distillation"),
    Entry(
        "DistillKLDivLoss", (("similarity", "cosine"), ("temperature", 0.5)), data="distillation"
    ),
    # the order of scores
    Entry("AnglELoss", data="scored"),
    Entry("CoSENTLoss", data="scored"),
    # around losses of pytorch-metric-learning
    Entry("CentroidTripletLoss"),
    Entry("SelfSupervisedLoss", (("loss", "NTXentLoss"),), data="pairs"),
    Entry(
        "SelfSupervisedLoss", (("loss", "TripletMarginLoss"), ("symmetric", False)), data="pairs"
    ),
    Entry("VICRegLoss", data="pairs"),
    # shortened embeddings: by rows and in full, with something learned, a miner and a memory
    Entry(SHORTENED, (("loss", "CLIPLoss"), *DIMS), data="negatives"),
    Entry(SHORTENED, (("loss", "ArcFaceLoss"), *DIMS)),
    Entry(SHORTENED, (("loss", "TripletMarginLoss"), *DIMS), "DistanceWeightedMiner"),
    # several losses: all in full, all by rows, and both, also shortened
    Entry("MultipleLosses", (("losses", IN_FULL),), title="in full"),
    Entry("MultipleLosses", (("losses", BY_ROWS),), data="distillation", title="by rows"),
    Entry("MultipleLosses", (("losses", MIXED),), data="pairs", title="mixed"),
    Entry(
        SHORTENED,
        (("loss", "MultipleLosses"), ("loss_options", {"losses": MIXED}), *DIMS),
        data="pairs",
        title="mixed",
    ),
]


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What a few steps gave on one rank; the vectors are kept on rank 0 only.

    `losses` are those of the steps, and then the validation losses of the same rows.
    """

    losses: list[float]
    forwards: int
    texts: list[int]
    digest: str
    vectors: dict[str, np.ndarray] = field(repr=False)


def data_of(entry: Entry) -> tuple[TrainSet, list[np.ndarray]]:
    """The training data of an entry, and the rows of each step."""
    rows: list[dict[str, Any]] = []
    steps = []
    if entry.data == "labelled":
        texts = sentences(sum(map(len, LABELS)), 3)
        for labels in LABELS:
            steps.append(np.arange(len(rows), len(rows) + len(labels)))
            rows += [{"item": texts[len(rows) + i], "label": c} for i, c in enumerate(labels)]
        again = [{"item": texts[i], "label": LABELS[0][-1 - i]} for i in TWICE]
        steps[1] = np.concatenate([steps[1], TWICE, np.arange(len(rows), len(rows) + len(again))])
        rows += again
    else:
        texts = sentences(21, 4)
        names = ("query", "document", "negative", "negative_2")
        for cells in CELLS[entry.data]:
            steps.append(np.arange(len(rows), len(rows) + len(cells)))
            rows += [dict(zip(names, (texts[i] for i in row), strict=False)) for row in cells]
    if entry.data == "scored":
        scores = np.random.default_rng(0).uniform(-1, 1, len(rows))
        rows = [{**row, "score": float(score)} for row, score in zip(rows, scores, strict=True)]
    if entry.data == "distillation":
        draw = np.random.default_rng(0)
        names = ("score", "score_2", "score_3")
        rows = [{**row, **dict(zip(names, draw.normal(size=3), strict=True))} for row in rows]
    return train_set(read_records(rows)), steps


def step_rows(entry: Entry) -> list[Any]:
    """The steps of an entry."""
    train, steps = data_of(entry)
    return [train.step_rows(numbers, roles_differ=False) for numbers in steps]


def run_table(collectives: Any, payload: dict[str, Any]) -> dict[tuple[str, int | None], Outcome]:
    """Every entry with every size of micro batch; runs on every rank."""
    encoder = load_encoder(payload["model"]).double()
    start = {name: value.clone() for name, value in encoder.state_dict().items()}
    found = {}
    for entry in payload["entries"]:
        for size in payload["sizes"]:
            encoder.load_state_dict(start)
            found[entry.name, size] = train(encoder, entry, size, collectives)
    return found


def train(encoder: TextEncoder, entry: Entry, size: int | None, collectives: Any) -> Outcome:
    """The steps of an entry, in float64, by the code that the loop calls."""
    loss = entry.build(encoder.embedding_dim, data_of(entry)[0].n_groups)
    config = FitConfig(
        model="tiny",
        train_data="",
        optimizer="SGD",
        optimizer_options={"momentum": 0.9},
        learning_rate=0.02,
    )
    optimizer = build_optimizer(config, encoder, loss)
    precision = Precision("fp32", torch.device("cpu"))
    before = {"encoder": _vector(encoder), "loss": _vector(loss)}
    losses, texts, forwards = [], [], 0
    vectors: dict[str, np.ndarray] = {}
    for number, rows in enumerate(step_rows(entry)):
        own = own_texts(encoder, rows, "bucketed", collectives, size)
        encoder.train()
        loss.train()
        seed = (SEED, 0, number)
        result = forward_backward(encoder, loss, rows, own, collectives, seed=seed)
        losses.append(result.loss)
        texts.append(len(own.shares[collectives.rank]))
        forwards += len(own.micro_batches)
        vectors[f"encoder gradient {number}"] = gradient(encoder)
        vectors[f"loss gradient {number}"] = gradient(loss)
        precision.step([optimizer], config.max_grad_norm)
        loss.after_step()
    encoder.eval()
    loss.eval()
    for number, rows in enumerate(step_rows(entry)):
        own = own_texts(encoder, rows, "bucketed", collectives, size)
        seed = (SEED, 1, number)
        losses.append(validation_loss(encoder, loss, rows, own, collectives, seed=seed))
    vectors["encoder update"] = _vector(encoder) - before["encoder"]
    vectors["loss update"] = _vector(loss) - before["loss"]
    vectors["loss state"] = np.concatenate(
        [np.zeros(0), *(t.double().numpy().ravel() for t in loss.state_dict().values())]
    )
    digest = hashlib.sha256(np.array(losses).tobytes())
    for vector in vectors.values():
        digest.update(vector.tobytes())
    return Outcome(
        losses=losses,
        forwards=forwards,
        texts=texts,
        digest=digest.hexdigest(),
        vectors=vectors if collectives.rank == 0 else {},
    )


def _vector(module: nn.Module) -> np.ndarray:
    return _flat([p.detach() for p in module.parameters()])


def gradient(module: nn.Module) -> np.ndarray:
    """The gradient of all parameters, zeros where there is none."""
    return _flat([torch.zeros_like(p) if p.grad is None else p.grad for p in module.parameters()])


def _flat(tensors: Sequence[torch.Tensor]) -> np.ndarray:
    parts = [tensor.reshape(-1) for tensor in tensors]
    return torch.cat([torch.zeros(0, dtype=torch.float64), *parts]).numpy()
