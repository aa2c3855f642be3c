"""MarginMSE and KL divergence against sentence-transformers' own, by rows."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from ftray.errors import ConfigError
from ftray.losses.base import LossInputs, Shard
from ftray.losses.distillation import DistillKLDivLoss, MarginMSELoss
from ftray.losses.registry import build_loss

WHOLE = Shard()
ROWS = {
    1: [[0, 1, 2], [3, 4, 5], [0, 6, 1], [7, 7, 8], [9, 2, 3]],
    3: [[0, 1, 2, 3, 4], [5, 6, 7, 8, 9], [0, 2, 1, 4, 9], [3, 5, 5, 6, 1]],
}
KL_OPTIONS: list[dict[str, Any]] = [
    {},
    {"temperature": 2.5},
    {"student_temperature": 0.5, "teacher_temperature": 4.0},
]


def batch(negatives: int) -> tuple[Tensor, LossInputs]:
    """Float64 embeddings, rows with that many negatives, and a teacher's scores."""
    draw = torch.Generator().manual_seed(negatives)
    embeddings = torch.randn(10, 6, dtype=torch.float64, generator=draw).requires_grad_()
    columns = torch.tensor(ROWS[negatives])
    scores = torch.randn(len(columns), 1 + negatives, dtype=torch.float64, generator=draw) * 5
    inputs = LossInputs(
        labels=torch.zeros(0, dtype=torch.long),
        label_items=torch.zeros(0, dtype=torch.long),
        columns=columns,
        text_ids=columns,
        scores=scores,
    )
    return embeddings, inputs


def theirs(name: str, similarity: str, **options: Any) -> Any:
    from sentence_transformers import util
    from sentence_transformers.sentence_transformer import losses

    function = util.pairwise_cos_sim if similarity == "cosine" else util.pairwise_dot_score
    return getattr(losses, name)(None, similarity_fct=function, **options)


def check_same(ours: Tensor, wanted: Tensor, embeddings: Tensor) -> None:
    torch.testing.assert_close(ours, wanted, rtol=1e-6, atol=1e-9)
    gradients = [torch.autograd.grad(loss, embeddings)[0] for loss in (ours, wanted)]
    torch.testing.assert_close(*gradients, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("negatives", [1, 3])
@pytest.mark.parametrize("similarity", ["dot", "cosine"])
def test_margins_are_those_of_sentence_transformers(negatives: int, similarity: Any) -> None:
    embeddings, inputs = batch(negatives)
    ours = MarginMSELoss(similarity)(embeddings, inputs, WHOLE)
    columns = [embeddings[column] for column in inputs.columns.T]
    loss = theirs("MarginMSELoss", similarity)
    check_same(ours, loss.compute_loss_from_embeddings(columns, inputs.scores), embeddings)


@pytest.mark.parametrize("negatives", [1, 3])
@pytest.mark.parametrize("similarity", ["dot", "cosine"])
@pytest.mark.parametrize("options", KL_OPTIONS, ids=str)
def test_divergence_is_that_of_sentence_transformers(
    negatives: int, similarity: Any, options: dict[str, Any]
) -> None:
    embeddings, inputs = batch(negatives)
    ours = DistillKLDivLoss(similarity, **options)(embeddings, inputs, WHOLE)
    columns = [embeddings[column] for column in inputs.columns.T]
    loss = theirs("DistillKLDivLoss", similarity, **options)
    check_same(ours, loss.compute_loss_from_embeddings(columns, inputs.scores), embeddings)


@pytest.mark.parametrize("loss", [MarginMSELoss(), DistillKLDivLoss(temperature=3.0)])
def test_only_differences_of_a_rows_scores_count(loss: Any) -> None:
    embeddings, inputs = batch(1)
    margins = inputs.scores[:, 0] - inputs.scores[:, 1]
    stored = torch.stack([margins, torch.zeros_like(margins)], dim=1)
    moved = LossInputs(**{**vars(inputs), "scores": stored})
    torch.testing.assert_close(loss(embeddings, inputs, WHOLE), loss(embeddings, moved, WHOLE))


@pytest.mark.parametrize("loss", [MarginMSELoss("cosine"), DistillKLDivLoss()])
@pytest.mark.parametrize("negatives", [1, 3])
@pytest.mark.parametrize("world_size", [2, 3, 7])
def test_shards_sum_to_the_whole(loss: Any, negatives: int, world_size: int) -> None:
    embeddings, inputs = batch(negatives)
    shards = [Shard(rank=rank, world_size=world_size) for rank in range(world_size)]
    parts = sum(loss(embeddings, inputs, shard) for shard in shards)
    whole = loss(embeddings, inputs, WHOLE)
    torch.testing.assert_close(parts, whole, rtol=1e-12, atol=1e-13)
    gradients = [torch.autograd.grad(value, embeddings)[0] for value in (parts, whole)]
    torch.testing.assert_close(*gradients, rtol=1e-11, atol=1e-12)


def test_a_model_that_says_what_the_teacher_says_costs_nothing() -> None:
    embeddings, inputs = batch(3)
    queries, candidates = embeddings[inputs.columns[:, :1]], embeddings[inputs.columns[:, 1:]]
    taught = LossInputs(**{**vars(inputs), "scores": (queries * candidates).sum(-1).detach() + 3})
    for loss in (MarginMSELoss(), DistillKLDivLoss()):
        assert float(loss(embeddings, taught, WHOLE).detach()) == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("MarginMSELoss", {"similarity": "cosin"}, "= 'cosin' is unknown. Did you mean 'cosine'?"),
        ("DistillKLDivLoss", {"similarity": None}, "loss_options.similarity = None is unknown."),
        ("DistillKLDivLoss", {"temperature": 0}, "loss_options.temperature = 0: a positive number"),
        ("DistillKLDivLoss", {"teacher_temperature": -1}, "teacher_temperature = -1: a positive"),
        ("MarginMSELoss", {"temperature": 1}, "MarginMSELoss has no such option."),
    ],
)
def test_wrong_options_are_refused(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        build_loss(name, options, embedding_dim=6, n_groups=1, seed=0)
    assert message in str(caught.value)
