"""CoSENT and AnglE against sentence-transformers' own, and what they refuse."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from ftray.errors import ConfigError, DataError
from ftray.losses.base import LossInputs, Shard
from ftray.losses.ranking import AnglELoss, CoSENTLoss

WHOLE = Shard()
PAIRS = [[0, 1], [2, 3], [1, 4], [5, 5], [0, 2], [9, 8]]
SCORES = {
    "distinct": [0.1, 5.0, 2.5, 4.0, 3.0, 0.7],
    "ties": [1.0, 0.0, 1.0, 1.0, 0.0, 0.5],
    "all equal": [2.0] * 6,
}


def batch(scores: list[float], width: int = 8) -> tuple[Tensor, LossInputs]:
    draw = torch.Generator().manual_seed(1)
    embeddings = torch.randn(10, width, dtype=torch.float64, generator=draw).requires_grad_()
    columns = torch.tensor(PAIRS)
    inputs = LossInputs(
        labels=torch.zeros(0, dtype=torch.long),
        label_items=torch.zeros(0, dtype=torch.long),
        columns=columns,
        text_ids=columns,
        scores=torch.tensor(scores, dtype=torch.float64),
    )
    return embeddings, inputs


@pytest.mark.parametrize("name", ["CoSENTLoss", "AnglELoss"])
@pytest.mark.parametrize("scores", SCORES.values(), ids=SCORES)
@pytest.mark.parametrize("width", [8, 7])
def test_value_and_gradient_are_those_of_sentence_transformers(
    name: str, scores: list[float], width: int
) -> None:
    from sentence_transformers.sentence_transformer import losses

    cls = CoSENTLoss if name == "CoSENTLoss" else AnglELoss
    embeddings, inputs = batch(scores, width)
    ours = cls(scale=5.0)(embeddings, inputs, WHOLE)
    columns = [embeddings[inputs.columns[:, i]] for i in (0, 1)]
    theirs = getattr(losses, name)(None, scale=5.0)
    wanted = theirs.compute_loss_from_embeddings(columns, inputs.scores)
    torch.testing.assert_close(ours, wanted, rtol=1e-6, atol=1e-9)
    gradients = [torch.autograd.grad(loss, embeddings)[0] for loss in (ours, wanted)]
    torch.testing.assert_close(*gradients, rtol=1e-6, atol=1e-9)


def test_the_sum_is_over_pairs_with_strictly_different_scores() -> None:
    embeddings, inputs = batch(SCORES["ties"])
    unit = torch.nn.functional.normalize(embeddings, dim=1)
    first, second = inputs.columns.unbind(dim=1)
    s, t = 20 * (unit[first] * unit[second]).sum(dim=1), inputs.scores
    terms = (s[None, :] - s[:, None]).exp() * (t[:, None] > t[None, :])
    loss = CoSENTLoss()(embeddings, inputs, WHOLE)
    torch.testing.assert_close(loss, (1 + terms.sum()).log(), rtol=1e-12, atol=1e-12)


def test_only_the_order_of_scores_counts() -> None:
    embeddings, inputs = batch(SCORES["distinct"])
    far = LossInputs(**{**vars(inputs), "scores": inputs.scores * 1000 - 7})
    loss = CoSENTLoss()
    assert torch.equal(loss(embeddings, inputs, WHOLE), loss(embeddings, far, WHOLE))


def test_scores_without_an_order_are_refused() -> None:
    CoSENTLoss().check_scores(0, 1, "a.csv")
    with pytest.raises(DataError, match=r"a\.csv: every score is 3, and AnglELoss learns from whi"):
        AnglELoss().check_scores(3, 3, "a.csv")


@pytest.mark.parametrize("scale", [0, -1.0, float("nan")])
def test_a_scale_is_positive(scale: float) -> None:
    with pytest.raises(ConfigError, match=r"loss_options\.scale = .*: a positive number"):
        CoSENTLoss(scale=scale)
