"""CosineSimilarityLoss against sentence-transformers' own, by rows, and what it refuses."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from ftray.errors import ConfigError, DataError
from ftray.losses.base import LossInputs, Shard
from ftray.losses.registry import build_loss, loss_needs
from ftray.losses.regression import CosineSimilarityLoss

torch.set_num_threads(1)

WHOLE = Shard()


def batch(columns: list[list[int]], low: float = 0, high: float = 1) -> tuple[Tensor, LossInputs]:
    """Random float64 embeddings, and pairs of them with random scores."""
    draw = torch.Generator().manual_seed(len(columns))
    embeddings = torch.randn(10, 8, dtype=torch.float64, generator=draw)
    scores = torch.rand(len(columns), dtype=torch.float64, generator=draw) * (high - low) + low
    numbers = torch.tensor(columns)
    inputs = LossInputs(
        labels=torch.zeros(0, dtype=torch.long),
        label_items=torch.zeros(0, dtype=torch.long),
        columns=numbers,
        text_ids=numbers,
        scores=scores,
    )
    return embeddings.requires_grad_(), inputs


PAIRS = [[0, 1], [2, 3], [1, 4], [5, 5], [0, 2], [9, 8]]


@pytest.mark.parametrize("score_range", [None, [0, 5], (-2.5, 2.5)])
def test_value_and_gradient_are_those_of_sentence_transformers(score_range: Any) -> None:
    from sentence_transformers.sentence_transformer import losses

    low, high = score_range or (0, 1)
    embeddings, inputs = batch(PAIRS, low, high)
    ours = CosineSimilarityLoss(score_range=score_range)(embeddings, inputs, WHOLE)
    columns = [embeddings[inputs.columns[:, i]] for i in (0, 1)]
    theirs = losses.CosineSimilarityLoss(model=None).compute_loss_from_embeddings(
        columns, (inputs.scores - low) / (high - low)
    )
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-7)  # theirs rounds to float32
    gradients = [torch.autograd.grad(loss, embeddings)[0] for loss in (ours, theirs)]
    torch.testing.assert_close(*gradients, rtol=1e-6, atol=1e-7)


columns = st.lists(st.lists(st.integers(0, 9), min_size=2, max_size=2), min_size=1, max_size=9)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(columns=columns, world_size=st.integers(1, 5))
def test_shards_sum_to_the_whole(columns: list[list[int]], world_size: int) -> None:
    embeddings, inputs = batch(columns)
    loss = CosineSimilarityLoss()
    whole = loss(embeddings, inputs, WHOLE)
    parts = [
        loss(embeddings, inputs, Shard(rank=rank, world_size=world_size))
        for rank in range(world_size)
    ]
    torch.testing.assert_close(sum(parts), whole, rtol=1e-12, atol=1e-14)
    (gradient,) = torch.autograd.grad(whole, embeddings)
    shares = [torch.autograd.grad(part, embeddings)[0] for part in parts]
    torch.testing.assert_close(torch.stack(shares).sum(0), gradient, rtol=1e-11, atol=1e-13)


def test_a_pair_at_its_score_costs_nothing() -> None:
    embeddings, inputs = batch([[0, 0], [3, 3]])
    same = LossInputs(**{**vars(inputs), "scores": torch.full((2,), 5.0, dtype=torch.float64)})
    assert CosineSimilarityLoss(score_range=[0, 5])(embeddings, same, WHOLE).item() < 1e-12


def test_it_goes_by_name_and_has_no_parameters() -> None:
    assert loss_needs("CosineSimilarityLoss") == "scores"
    options = {"score_range": [0, 5]}
    loss = build_loss("CosineSimilarityLoss", options, embedding_dim=8, n_groups=1, seed=0)
    assert loss.sharded and list(loss.parameters()) == []
    with pytest.raises(ConfigError, match="Did you mean 'score_range'"):
        build_loss("CosineSimilarityLoss", {"range": 1}, embedding_dim=8, n_groups=1, seed=0)


@pytest.mark.parametrize("given_", [5, "0-5", [5], [5, 0], [0, 0], [0, 1, 2], [0, float("inf")]])
def test_a_range_is_two_numbers(given_: Any) -> None:
    with pytest.raises(ConfigError, match=r"score_range = .*: two numbers, the smaller one first"):
        CosineSimilarityLoss(score_range=given_)


def test_scores_out_of_range_are_refused_with_what_to_write() -> None:
    CosineSimilarityLoss().check_scores(-1, 1, "a.csv")
    CosineSimilarityLoss(score_range=[0, 5]).check_scores(0.2, 5, "a.csv")
    with pytest.raises(DataError) as caught:
        CosineSimilarityLoss().check_scores(0.2, 4.8, "a.csv")
    message = str(caught.value)
    assert message.startswith("a.csv: the scores run from 0.2 to 4.8, but CosineSimilarityLoss")
    assert "loss_options: {score_range: [0, 5]}" in message
    with pytest.raises(DataError) as caught:
        CosineSimilarityLoss(score_range=[1, 5]).check_scores(0, 5, "a.csv")
    assert "from 0 to 5, and loss_options.score_range is [1, 5]" in str(caught.value)
