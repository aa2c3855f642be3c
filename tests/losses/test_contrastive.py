"""InfoNCE against its formula: masks, shards, and the learned temperature."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from ftray.losses.base import LossInputs, Shard
from ftray.losses.contrastive import (
    CLIPLoss,
    InfoNCE,
    MultipleNegativesRankingLoss,
    pairs_that_share_text,
)

torch.set_num_threads(1)

WHOLE = Shard()


def batch(text_ids: list[list[int]], seed: int = 0) -> tuple[Tensor, LossInputs]:
    """Random float64 embeddings of the distinct texts, and the pairs that they form."""
    ids = torch.tensor(text_ids)
    texts, columns = ids.unique(return_inverse=True)
    embeddings = torch.randn(
        len(texts), 8, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)
    )
    inputs = LossInputs(
        labels=torch.zeros(len(texts), dtype=torch.long),
        label_items=torch.arange(len(texts)),
        columns=columns,
        text_ids=ids,
    )
    return embeddings.requires_grad_(), inputs


def formula(embeddings: Tensor, inputs: LossInputs, temperature: float, symmetric: bool) -> Tensor:
    """-log of the positive's share, over the documents of the pairs that share no text with i."""
    unit = embeddings / embeddings.norm(dim=1, keepdim=True)
    q, d = unit[inputs.columns[:, 0]], unit[inputs.columns[:, 1]]
    texts = [set(row) for row in inputs.text_ids.tolist()]
    n, losses = len(texts), []
    for a, c in [(q, d), (d, q)] if symmetric else [(q, d)]:
        for i in range(n):
            others = [j for j in range(n) if j == i or not texts[i] & texts[j]]
            logits = (c[others] @ a[i]) / temperature
            losses.append(logits.logsumexp(0) - logits[others.index(i)])
    return torch.stack(losses).mean()


DISTINCT = [[0, 1], [2, 3], [4, 5], [6, 7], [8, 9]]
SHARED = [[0, 1], [0, 2], [3, 1], [4, 0], [5, 6], [7, 7], [8, 7]]


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("text_ids", [DISTINCT, SHARED])
def test_info_nce_is_its_formula(text_ids: list[list[int]], symmetric: bool) -> None:
    embeddings, inputs = batch(text_ids)
    loss = InfoNCE(temperature=0.1, symmetric=symmetric)(embeddings, inputs, WHOLE)
    expected = formula(embeddings, inputs, 0.1, symmetric)
    torch.testing.assert_close(loss, expected, rtol=1e-6, atol=0)
    (gradient,) = torch.autograd.grad(loss, embeddings)
    (expected_gradient,) = torch.autograd.grad(expected, embeddings)
    torch.testing.assert_close(gradient, expected_gradient, rtol=1e-5, atol=1e-8)


def test_defaults_are_those_of_the_sources() -> None:
    embeddings, inputs = batch(DISTINCT)
    for loss, temperature, symmetric in (
        (InfoNCE(), 0.05, True),
        (MultipleNegativesRankingLoss(), 0.05, False),
        (CLIPLoss(), 0.07, True),
    ):
        expected = formula(embeddings, inputs, temperature, symmetric)
        torch.testing.assert_close(loss(embeddings, inputs, WHOLE), expected, rtol=1e-6, atol=0)
    assert [len(list(loss.parameters())) for loss in (InfoNCE(), CLIPLoss())] == [0, 1]


@pytest.mark.parametrize("second", [[0, 9], [9, 1], [9, 0], [1, 9]])
def test_pairs_that_share_a_text_in_any_column_are_no_negatives(second: list[int]) -> None:
    embeddings, inputs = batch([[0, 1], second, [2, 3]])
    shared = pairs_that_share_text(inputs.text_ids, slice(0, 3))
    assert shared.tolist() == [[True, True, False], [True, True, False], [False, False, True]]
    alone, alone_inputs = batch([[0, 1], [2, 3]])
    with torch.no_grad():
        for text, row in ((0, 0), (1, 1), (2, 2), (3, 3)):
            alone[row] = embeddings[(inputs.text_ids.unique() == text).nonzero()[0, 0]]
    rows_of_first = Shard(rank=0, world_size=3)
    loss = InfoNCE(symmetric=False)(embeddings, inputs, rows_of_first) * 3
    expected = InfoNCE(symmetric=False)(alone, alone_inputs, Shard(rank=0, world_size=2)) * 2
    torch.testing.assert_close(loss, expected)


def test_pairs_that_all_share_a_text_teach_nothing() -> None:
    embeddings, inputs = batch([[0, 1], [0, 2], [0, 3]])
    loss = InfoNCE()(embeddings, inputs, WHOLE)
    assert loss.item() == 0
    (gradient,) = torch.autograd.grad(loss, embeddings)
    assert gradient.abs().max() < 1e-12


pairs = st.lists(st.lists(st.integers(0, 9), min_size=2, max_size=2), min_size=1, max_size=9)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(text_ids=pairs, world_size=st.integers(1, 5), symmetric=st.booleans())
def test_shards_sum_to_the_whole(
    text_ids: list[list[int]], world_size: int, symmetric: bool
) -> None:
    embeddings, inputs = batch(text_ids)
    loss = InfoNCE(0.1, learnable_temperature=True, symmetric=symmetric).double()
    over = [embeddings, *loss.parameters()]
    whole = loss(embeddings, inputs, WHOLE)
    gradients = torch.autograd.grad(whole, over)
    parts = [
        loss(embeddings, inputs, Shard(rank=r, world_size=world_size)) for r in range(world_size)
    ]
    part_gradients = [torch.autograd.grad(part, over) for part in parts]
    torch.testing.assert_close(sum(parts), whole, rtol=1e-12, atol=1e-12)
    for i, gradient in enumerate(gradients):
        total = torch.stack([each[i] for each in part_gradients]).sum(0)
        torch.testing.assert_close(total, gradient, rtol=1e-11, atol=1e-11)


@given(n=st.integers(0, 50), world_size=st.integers(1, 9))
@settings(max_examples=60, deadline=None, derandomize=True)
def test_shards_cover_every_row_once(n: int, world_size: int) -> None:
    rows = list(range(n))
    parts = [rows[Shard(rank=r, world_size=world_size).rows(n)] for r in range(world_size)]
    assert [row for part in parts for row in part] == rows
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


def test_learned_temperature_follows_its_gradient_and_is_kept_in_range() -> None:
    loss = CLIPLoss(temperature=1.0)
    embeddings, inputs = batch([[0, 1], [2, 3]])
    with torch.no_grad():  # every document is found: sharper is better
        embeddings[1], embeddings[3], embeddings[2] = embeddings[0], -embeddings[0], -embeddings[0]
    optimizer = torch.optim.SGD(loss.parameters(), lr=1000)
    loss(embeddings, inputs, WHOLE).backward()  # type: ignore[no-untyped-call]
    optimizer.step()
    assert loss.scalars()["temperature"] < 0.01
    loss.after_step()
    assert loss.scalars()["temperature"] == pytest.approx(0.01)
    assert float(loss.log_scale.detach()) <= math.log(100) + 1e-6


def test_fixed_temperature_is_neither_trained_nor_logged_nor_changed() -> None:
    loss = InfoNCE(temperature=0.001)
    loss.after_step()
    assert loss.scalars() == {}
    assert list(loss.parameters()) == []
    assert float(loss.log_scale.exp()) == pytest.approx(1000, rel=1e-5)


@pytest.mark.parametrize("symmetric", [False, True])
def test_a_rank_computes_its_rows_and_no_more(symmetric: bool) -> None:
    """The matrix products of a rank cost B x B/W, forward and backward."""
    from torch.utils.flop_counter import FlopCounterMode

    loss = InfoNCE(symmetric=symmetric)
    rows, dim = 64, 16

    def flops(world_size: int, rank: int) -> int:
        items = torch.randn(2 * rows, dim, requires_grad=True)
        columns = torch.arange(2 * rows).reshape(rows, 2)
        inputs = LossInputs(
            labels=torch.zeros(0, dtype=torch.long),
            label_items=torch.zeros(0, dtype=torch.long),
            columns=columns,
            text_ids=columns,
        )
        with FlopCounterMode(display=False) as counter:
            loss(items, inputs, Shard(rank=rank, world_size=world_size)).backward()
        return counter.get_total_flops()

    whole = flops(1, 0)
    assert whole == (1 + symmetric) * 3 * 2 * rows * rows * dim
    assert [flops(4, rank) * 4 for rank in range(4)] == [whole] * 4
