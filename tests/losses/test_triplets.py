"""Losses on triplets: which negatives count for whom, and the losses of the libraries."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from ftray.losses.base import LossInputs, Shard, StepLoss
from ftray.losses.contrastive import CLIPLoss, InfoNCE, MultipleNegativesRankingLoss
from ftray.losses.nested import WRAPPERS
from ftray.losses.registry import LOSS_NAMES, build_loss, takes_triplets

torch.set_num_threads(1)

WHOLE = Shard()
DISTINCT = [[0, 1, 2], [3, 4, 5], [6, 7, 8], [9, 10, 11]]
SEVERAL = [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11], [12, 13, 14, 15]]
MIXED_SEVERAL = [[0, 1, 2, 5], [0, 3, 1, 4], [5, 6, 0, 3], [7, 1, 6, 6], [8, 9, 8, 2]]
MIXED = [[0, 1, 2], [0, 1, 3], [0, 4, 1], [5, 6, 0], [7, 1, 6], [8, 9, 8], [10, 11, 4]]


def batch(text_ids: list[list[int]], seed: int = 0) -> tuple[Tensor, LossInputs]:
    """Random float64 embeddings of the distinct texts, and the triplets that they form."""
    ids = torch.tensor(text_ids)
    texts, columns = ids.unique(return_inverse=True)
    embeddings = torch.randn(
        len(texts), 8, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)
    )
    labelled = columns[:, :2].unique()
    inputs = LossInputs(
        labels=torch.zeros(len(labelled), dtype=torch.long),
        label_items=labelled,
        columns=columns,
        text_ids=ids,
    )
    return embeddings.requires_grad_(), inputs


def formula(embeddings: Tensor, inputs: LossInputs, temperature: float) -> Tensor:
    """-log of the positive's share among the documents, and negatives, that may be held against i.

    Not against i: documents of pairs that share a text with pair i, and negatives that equal a text
    of such a pair or of its own.
    """
    unit = embeddings / embeddings.norm(dim=1, keepdim=True)
    q, d, *negatives = (unit[column] for column in inputs.columns.T)
    rows = inputs.text_ids.tolist()
    losses = []
    for i, (query, document, *_) in enumerate(rows):
        related = [j for j, row in enumerate(rows) if {query, document} & set(row[:2])]
        known = {text for j in related for text in rows[j][:2]}
        logits = [q[i] @ d[j] for j in range(len(rows)) if j == i or j not in related]
        for k, n in enumerate(negatives, 2):
            logits += [q[i] @ n[j] for j, row in enumerate(rows) if row[k] not in known]
        losses.append(torch.stack(logits).div(temperature).logsumexp(0) - q[i] @ d[i] / temperature)
    return torch.stack(losses).mean()


@pytest.mark.parametrize("text_ids", [DISTINCT, MIXED, SEVERAL, MIXED_SEVERAL])
def test_negatives_are_candidates_of_every_query_they_are_no_positives_of(
    text_ids: list[list[int]],
) -> None:
    embeddings, inputs = batch(text_ids)
    loss = MultipleNegativesRankingLoss(temperature=0.1)(embeddings, inputs, WHOLE)
    expected = formula(embeddings, inputs, 0.1)
    torch.testing.assert_close(loss, expected, rtol=1e-6, atol=0)
    (gradient,) = torch.autograd.grad(loss, embeddings)
    (wanted,) = torch.autograd.grad(expected, embeddings)
    torch.testing.assert_close(gradient, wanted, rtol=1e-5, atol=1e-8)


class Fixed(nn.Module):
    """A stand-in for a model: `features` are embeddings already."""

    def forward(self, features: dict[str, Tensor]) -> dict[str, Tensor]:
        return {"sentence_embedding": features["embeddings"]}


@pytest.mark.parametrize("text_ids", [DISTINCT, SEVERAL])
def test_batches_without_duplicates_are_those_of_sentence_transformers(
    text_ids: list[list[int]],
) -> None:
    from sentence_transformers.sentence_transformer.losses import (
        MultipleNegativesRankingLoss as Theirs,
    )

    embeddings, inputs = batch(text_ids)
    ours = MultipleNegativesRankingLoss()(embeddings, inputs, WHOLE)
    columns = [{"embeddings": embeddings[column]} for column in inputs.columns.T]
    theirs = Theirs(Fixed())(columns, torch.zeros(4))  # type: ignore[arg-type]
    assert float(ours.detach()) == pytest.approx(float(theirs.detach()), rel=1e-6)
    gradients = [torch.autograd.grad(loss, embeddings)[0] for loss in (ours, theirs)]
    torch.testing.assert_close(*gradients, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("loss", [InfoNCE(), CLIPLoss()], ids=["InfoNCE", "CLIPLoss"])
def test_the_symmetric_half_ranks_the_queries_alone(loss: InfoNCE) -> None:
    embeddings, inputs = batch(MIXED)
    pairs = LossInputs(
        labels=inputs.labels,
        label_items=inputs.label_items,
        columns=inputs.columns[:, [1, 0]],
        text_ids=inputs.text_ids[:, [1, 0]],
    )
    temperature = 0.07 if isinstance(loss, CLIPLoss) else 0.05
    back = MultipleNegativesRankingLoss(temperature)(embeddings, pairs, WHOLE)
    expected = (formula(embeddings, inputs, temperature) + back) / 2
    torch.testing.assert_close(loss(embeddings, inputs, WHOLE), expected, rtol=1e-6, atol=0)


triplets = st.integers(3, 5).flatmap(
    lambda width: st.lists(
        st.lists(st.integers(0, 9), min_size=width, max_size=width), min_size=1, max_size=9
    )
)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(text_ids=triplets, world_size=st.integers(1, 5), symmetric=st.booleans())
def test_shards_sum_to_the_whole(
    text_ids: list[list[int]], world_size: int, symmetric: bool
) -> None:
    embeddings, inputs = batch(text_ids)
    loss = InfoNCE(0.1, learnable_temperature=True, symmetric=symmetric).double()
    over = [embeddings, *loss.parameters()]
    whole = loss(embeddings, inputs, WHOLE)
    gradients = torch.autograd.grad(whole, over)
    shards = [Shard(rank=rank, world_size=world_size) for rank in range(world_size)]
    parts = [loss(embeddings, inputs, shard) for shard in shards]
    part_gradients = [torch.autograd.grad(part, over) for part in parts]
    torch.testing.assert_close(sum(parts), whole, rtol=1e-12, atol=1e-12)
    for i, gradient in enumerate(gradients):
        total = torch.stack([each[i] for each in part_gradients]).sum(0)
        torch.testing.assert_close(total, gradient, rtol=1e-11, atol=1e-11)


def triplet_loss(**options: Any) -> StepLoss:
    return build_loss("TripletMarginLoss", options, embedding_dim=8, n_groups=3, seed=0).double()


@pytest.mark.parametrize("text_ids", [MIXED, MIXED_SEVERAL])
def test_triplet_margin_takes_the_given_triplets_and_no_others(text_ids: list[list[int]]) -> None:
    embeddings, inputs = batch(text_ids)
    loss = triplet_loss(margin=0.3, reducer="MeanReducer")(embeddings, inputs, WHOLE)
    unit = embeddings / embeddings.norm(dim=1, keepdim=True)
    a, p, *negatives = (unit[column] for column in inputs.columns.T)
    triplets = [(a - p).norm(dim=1) - (a - n).norm(dim=1) + 0.3 for n in negatives]
    expected = torch.stack(triplets).relu().mean()
    torch.testing.assert_close(loss, expected, rtol=1e-6, atol=1e-8)


def test_which_losses_take_triplets() -> None:
    names = {name for name in set(LOSS_NAMES) - set(WRAPPERS) if takes_triplets(name)}
    assert names == {
        *("CLIPLoss", "InfoNCE", "MultipleNegativesRankingLoss", "TripletMarginLoss"),
    }
