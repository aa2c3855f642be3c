"""The table of steps for contract 2, the mutations, and how one step of it is run on a rank."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from ftray.config import FitConfig
from ftray.data.dataset import TrainSet, train_set
from ftray.data.readers import read_records
from ftray.losses import contrastive
from ftray.losses.registry import build_loss
from ftray.models import layout as layouts
from ftray.models import packing
from ftray.models.layout import Layout
from ftray.models.registry import load_encoder
from ftray.models.text import TextEncoder
from ftray.training import step as steps
from ftray.training.optim import build_optimizer
from ftray.training.precision import Precision
from ftray.training.step import forward_backward, own_texts
from tests.tiny import WORDS

__all__ = [
    "CASES",
    "LAYOUTS",
    "MODELS",
    "MUTATIONS",
    "Case",
    "Outcome",
    "gather_shares",
    "run_table",
]
__all__ += ["sentences"]

SEED = (7, 1, 3)
LAYOUTS: tuple[Layout, ...] = ("padded", "bucketed", "packed")
MAX_GRAD_NORM = 1.5

MODELS: dict[str, dict[str, Any]] = {
    "plain": {},
    "prompts": {"prompts": {"query": "find the answer to: ", "document": "text: "}},
    "unpooled prompts": {
        "prompts": {"query": "find the answer to: ", "document": "text: "},
        "include_prompt": False,
    },
    "two towers": {"two_towers": True},
}


def sentences(n: int, seed: int) -> list[str]:
    """Texts of very different lengths."""
    rng = np.random.default_rng(seed)
    return [" ".join(rng.choice(WORDS, rng.integers(2, 25)).tolist()) for _ in range(n)]


def _labelled(labels: str, seed: int, repeat: Iterable[tuple[int, str]] = ()) -> list[Any]:
    """One text for each letter, its label; then some of the texts again, under other labels."""
    texts = sentences(len(labels), seed)
    rows = list(zip(texts, labels, strict=True)) + [(texts[i], label) for i, label in repeat]
    return [{"item": text, "label": label} for text, label in rows]


def _pairs(numbers: list[tuple[int, int]], seed: int) -> list[dict[str, str]]:
    texts = sentences(1 + max(map(max, numbers)), seed)
    return [{"query": texts[q], "document": texts[d]} for q, d in numbers]


DATA: dict[str, list[Any]] = {
    "labelled, full": _labelled("aaaabbbbccccdddd", 1),
    "labelled, large": _labelled("abcdefgh" * 5, 2),
    "labelled, ragged": _labelled("aabbc", 3),
    "labelled, fewer texts than ranks": _labelled("aab", 4),
    "labelled, nothing to learn": _labelled("aaaa", 5),
    "labelled, texts under two labels": _labelled("aaaabbbbcccc", 6, [(0, "b"), (5, "c")]),
    "pairs, full": _pairs([(i, i + 8) for i in range(8)], 7),
    "pairs, ragged": _pairs([(i, i + 5) for i in range(5)], 8),
    "pairs, fewer texts than ranks": _pairs([(0, 1), (0, 2)], 9),
    # shared queries, shared documents, a text on both sides, a pair of one text with itself
    "pairs, shared": _pairs(
        [(0, 1), (0, 2), (3, 2), (4, 5), (5, 6), (7, 7), (8, 9), (10, 11), (12, 13), (14, 0)], 10
    ),
}


@dataclass(frozen=True)
class Case:
    """One step."""

    loss: str
    data: str
    options: tuple[tuple[str, Any], ...] = ()
    layout: Layout = "bucketed"
    model: str = "plain"

    @property
    def optimizer(self) -> str:
        """AdamW hides a gradient that is k times too large; SGD shows it."""
        return "SGD" if self.data.endswith("full") else "AdamW"

    @property
    def name(self) -> str:
        options = ", ".join(f"{key}={value}" for key, value in self.options)
        return f"{self.loss}({options}) | {self.data} | {self.layout} | {self.model}"


LABEL_LOSSES: list[tuple[str, tuple[tuple[str, Any], ...]]] = [
    ("TripletMarginLoss", ()),
    ("TripletMarginLoss", (("triplets_per_anchor", 5),)),  # draws at random
    ("SupConLoss", ()),
    ("ArcFaceLoss", ()),  # has proxies
]
PAIR_LOSSES: list[tuple[str, tuple[tuple[str, Any], ...]]] = [
    ("MultipleNegativesRankingLoss", (("learnable_temperature", True),)),
    ("CLIPLoss", ()),
    ("InfoNCE", (("temperature", 0.2),)),
]
CASES = [
    Case(loss, data, options, layout)
    for kind, losses in (("labelled", LABEL_LOSSES), ("pairs", PAIR_LOSSES))
    for loss, options in losses
    for data in DATA
    if data.startswith(kind)
    for layout in LAYOUTS
]
CASES += [
    Case(loss, "pairs, shared", options, layout, model)
    for loss, options in (PAIR_LOSSES[1], ("SupConLoss", ()), ("ArcFaceLoss", ()))
    for model in MODELS
    for layout in LAYOUTS
    if (loss, model) != ("CLIPLoss", "plain")
]


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What a step gave on one rank; the vectors are kept on rank 0 only."""

    loss: float
    norm: float
    texts: int
    forwards: int
    with_gradient: tuple[bool, ...]
    digest: str
    vectors: dict[str, np.ndarray] = field(repr=False)


def run_table(collectives: Any, payload: dict[str, Any]) -> dict[str, Any]:
    """All cases, then all mutations, then the collectives; runs on every rank."""
    encoders = {name: load_encoder(folder).double() for name, folder in payload["models"].items()}
    starts = {
        name: {key: value.clone() for key, value in encoder.state_dict().items()}
        for name, encoder in encoders.items()
    }

    def run(case: Case) -> Outcome:
        encoders[case.model].load_state_dict(starts[case.model])
        return run_case(encoders[case.model], case, collectives)

    outcomes = {case.name: run(case) for case in payload["cases"]}
    mutated = {}
    for name in payload["mutations"]:
        case, mutate = MUTATIONS[name]
        with pytest.MonkeyPatch.context() as patch:
            mutate(patch, collectives)
            mutated[name] = run(case)
    return {
        "cases": outcomes,
        "mutations": mutated,
        "gathered": [
            steps.gather_rows(table[shares[collectives.rank]], shares, collectives)
            for table, shares in gather_shares(collectives.world_size)
        ],
        "broadcast": [
            collectives.broadcast(value if collectives.rank == 0 else "not this")
            for value in payload["broadcast"]
        ],
    }


def run_case(encoder: TextEncoder, case: Case, collectives: Any) -> Outcome:
    """One step as the loop does it, in float64."""
    train = data_of(case)
    rows = train.step_rows(np.arange(len(train)), roles_differ=encoder.roles_differ)
    loss = build_loss(
        case.loss,
        dict(case.options),
        embedding_dim=encoder.embedding_dim,
        n_groups=train.n_groups,
        seed=0,
    ).double()
    config = FitConfig(
        model="tiny",
        train_data="",
        optimizer=case.optimizer,
        learning_rate=1e-3,
        max_grad_norm=MAX_GRAD_NORM,
    )
    optimizer = build_optimizer(config, encoder, loss)
    before = {"encoder": _vector(encoder), "loss": _vector(loss)}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(layouts, "FORWARD_COST_TOKENS", 1)  # many buckets for few texts
        own = own_texts(encoder, rows, case.layout, collectives)
    encoder.train()
    result = forward_backward(encoder, loss, rows, own, collectives, seed=SEED)
    vectors = {
        "encoder gradient": _gradient(encoder),
        "loss gradient": _gradient(loss),
    }
    parameters = [*encoder.parameters(), *loss.parameters()]
    with_gradient = tuple(p.grad is not None for p in parameters)
    norm, _ = Precision("fp32", torch.device("cpu")).step([optimizer], config.max_grad_norm)
    loss.after_step()
    vectors["encoder update"] = _vector(encoder) - before["encoder"]
    vectors["loss update"] = _vector(loss) - before["loss"]
    digest = hashlib.sha256(np.float64(result.loss).tobytes())
    for vector in vectors.values():
        digest.update(vector.tobytes())
    return Outcome(
        loss=result.loss,
        norm=norm,
        texts=len(own.shares[collectives.rank]),
        forwards=sum(len(micro.features.forwards) for micro in own.micro_batches),
        with_gradient=with_gradient,
        digest=digest.hexdigest(),
        vectors=vectors if collectives.rank == 0 else {},
    )


def data_of(case: Case) -> TrainSet:
    return train_set(read_records(DATA[case.data]))


def _vector(module: nn.Module) -> np.ndarray:
    parts = [p.detach().reshape(-1) for p in module.parameters()]
    return torch.cat([torch.zeros(0, dtype=torch.float64), *parts]).numpy()


def _gradient(module: nn.Module) -> np.ndarray:
    parts = [
        p.grad.reshape(-1) if p.grad is not None else torch.zeros(p.numel(), dtype=p.dtype)
        for p in module.parameters()
    ]
    return torch.cat([torch.zeros(0, dtype=torch.float64), *parts]).numpy()


def gather_shares(world_size: int) -> list[tuple[torch.Tensor, list[np.ndarray]]]:
    """Tables of rows, and which rank holds which of them: ragged, also none; equal on all ranks."""
    rng = np.random.default_rng(world_size)
    found = []
    for n in (1, 2, 3, 5, 17, 64):
        holder = rng.integers(0, world_size, n)
        shares = [np.flatnonzero(holder == rank) for rank in range(world_size)]
        dtype = torch.float32 if n % 2 else torch.float64
        found.append((torch.arange(n * 3, dtype=dtype).reshape(n, 3) + 1, shares))
    return found


# Mutations: each is a mistake that training on several workers has made elsewhere, or could make.

Mutate = Callable[[pytest.MonkeyPatch, Any], None]


def gradient_times_world_size(patch: pytest.MonkeyPatch, collectives: Any) -> None:
    _scaled(patch, float(collectives.world_size))


def gradient_is_the_mean_over_ranks(patch: pytest.MonkeyPatch, collectives: Any) -> None:
    _scaled(patch, 1 / collectives.world_size)


def _scaled(patch: pytest.MonkeyPatch, factor: float) -> None:
    real = steps.reduce_gradients

    def reduce(encoder: Any, loss: Any, **options: Any) -> None:
        real(encoder, loss, **options)
        for parameter in encoder:
            if parameter.grad is not None:
                parameter.grad *= factor

    patch.setattr(steps, "reduce_gradients", reduce)


def reduction_skipped(patch: pytest.MonkeyPatch, collectives: Any) -> None:
    patch.setattr(steps, "reduce_gradients", lambda *_, **__: None)


def _reduced_as(patch: pytest.MonkeyPatch, *, sharded: bool) -> None:
    real = steps.reduce_gradients
    patch.setattr(
        steps,
        "reduce_gradients",
        lambda encoder, loss, *, loss_is_sharded, collectives: real(
            encoder, loss, loss_is_sharded=sharded, collectives=collectives
        ),
    )


def proxies_summed_over_ranks(patch: pytest.MonkeyPatch, collectives: Any) -> None:
    _reduced_as(patch, sharded=True)


def temperature_of_rank_0_only(patch: pytest.MonkeyPatch, collectives: Any) -> None:
    _reduced_as(patch, sharded=False)


def rows_of_a_loss_not_summed(patch: pytest.MonkeyPatch, collectives: Any) -> None:
    patch.setattr(contrastive.InfoNCE, "sharded", False)


def row_lost_in_the_gather(patch: pytest.MonkeyPatch, collectives: Any) -> None:
    real = steps.gather_rows

    def gather(own: Any, shares: Any, collectives: Any) -> Any:
        rows = real(own, shares, collectives)
        rows[-1] = rows[0]
        return rows

    patch.setattr(steps, "gather_rows", gather)


def rows_in_the_order_of_ranks(patch: pytest.MonkeyPatch, collectives: Any) -> None:
    real = steps.gather_rows
    patch.setattr(
        steps,
        "gather_rows",
        lambda own, shares, collectives: real(own, shares, collectives)[np.concatenate(shares)],
    )


def text_on_two_ranks(patch: pytest.MonkeyPatch, collectives: Any) -> None:
    real = steps.deal

    def deal(sizes: Any, world_size: int) -> list[np.ndarray]:
        shares = real(sizes, world_size)
        return [*shares[:-1], np.union1d(shares[-1], shares[0][:1])]

    patch.setattr(steps, "deal", deal)


def loss_draws_differ_between_ranks(patch: pytest.MonkeyPatch, collectives: Any) -> None:
    patch.setattr(steps, "LOSS_STREAM", collectives.rank - 1)  # rank 0's stays as it was


def mask_of_shared_texts_removed(patch: pytest.MonkeyPatch, collectives: Any) -> None:
    real = contrastive.pairs_that_share_text
    patch.setattr(
        contrastive, "pairs_that_share_text", lambda ids, rows: torch.zeros_like(real(ids, rows))
    )


def texts_of_a_row_see_each_other(patch: pytest.MonkeyPatch, collectives: Any) -> None:
    patch.setattr(packing, "_masks", lambda part, same: torch.ones_like(same))


def positions_go_on_over_a_row(patch: pytest.MonkeyPatch, collectives: Any) -> None:
    real = packing.Packer.inputs

    def inputs(*arguments: Any) -> Any:
        made = real(*arguments)
        made["packed_positions"] = torch.arange(made["packed_positions"].shape[1]).expand_as(
            made["packed_positions"]
        )
        return made

    patch.setattr(packing.Packer, "inputs", inputs)


def _case(loss: str, data: str, layout: Layout = "padded") -> Case:
    for case in CASES:
        if (case.loss, case.data, case.layout) == (loss, data, layout):
            return case
    raise AssertionError(f"no case {loss}, {data}")


MUTATIONS: dict[str, tuple[Case, Mutate]] = {
    f"{mutate.__name__}: {case.name}": (case, mutate)
    for mutate, cases in {
        gradient_times_world_size: [
            _case("TripletMarginLoss", "labelled, full"),
            _case("CLIPLoss", "pairs, full"),
        ],
        gradient_is_the_mean_over_ranks: [_case("SupConLoss", "labelled, ragged")],
        reduction_skipped: [
            _case("SupConLoss", "labelled, fewer texts than ranks"),
            _case("CLIPLoss", "pairs, full"),
        ],
        proxies_summed_over_ranks: [_case("ArcFaceLoss", "labelled, full")],
        temperature_of_rank_0_only: [
            _case("CLIPLoss", "pairs, ragged"),
            _case("MultipleNegativesRankingLoss", "pairs, full"),
        ],
        rows_of_a_loss_not_summed: [_case("InfoNCE", "pairs, full")],
        row_lost_in_the_gather: [
            _case("SupConLoss", "labelled, full"),
            _case("CLIPLoss", "pairs, full"),
        ],
        rows_in_the_order_of_ranks: [_case("SupConLoss", "labelled, full")],
        text_on_two_ranks: [_case("SupConLoss", "labelled, full")],
        loss_draws_differ_between_ranks: [
            Case("TripletMarginLoss", "labelled, full", (("triplets_per_anchor", 5),))
        ],
        mask_of_shared_texts_removed: [_case("CLIPLoss", "pairs, shared")],
        texts_of_a_row_see_each_other: [_case("SupConLoss", "labelled, large", "packed")],
        positions_go_on_over_a_row: [_case("SupConLoss", "labelled, large", "packed")],
    }.items()
    for case in cases
}
