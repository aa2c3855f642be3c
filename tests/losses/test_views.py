"""Losses around pytorch-metric-learning's: two views of a row, and the centres of classes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from ftray.errors import ConfigError
from ftray.losses.base import LossInputs, Shard, StepLoss
from ftray.losses.registry import build_loss

WHOLE = Shard()
DIM = 6
DISTINCT = [[0, 1], [2, 3], [4, 5], [6, 7]]
SHARED = [[0, 1], [0, 3], [4, 3], [6, 7], [8, 8]]


def built(name: str, **options: Any) -> StepLoss:
    return build_loss(name, options, embedding_dim=DIM, n_groups=4, seed=0).double()


def embeddings(n: int = 10) -> Tensor:
    draw = torch.Generator().manual_seed(0)
    return torch.randn(n, DIM, dtype=torch.float64, generator=draw).requires_grad_()


def pairs(numbers: list[list[int]], groups: list[int]) -> LossInputs:
    columns = torch.tensor(numbers)
    items = columns.unique()
    label_of = dict(zip(columns.flatten().tolist(), np.repeat(groups, 2), strict=True))
    return LossInputs(
        labels=torch.tensor([int(label_of[i]) for i in items.tolist()]),
        label_items=items,
        columns=columns,
        text_ids=columns,
    )


def check_same(ours: Tensor, wanted: Tensor, items: Tensor) -> None:
    torch.testing.assert_close(ours, wanted, rtol=1e-9, atol=1e-12)
    assert float(ours.detach()) != 0
    gradients = [torch.autograd.grad(loss, items)[0] for loss in (ours, wanted)]
    torch.testing.assert_close(*gradients, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("name", ["NTXentLoss", "TripletMarginLoss", "NCALoss"])
def test_views_of_distinct_rows_are_the_librarys(name: str, symmetric: bool) -> None:
    from pytorch_metric_learning import losses

    items, inputs = embeddings(), pairs(DISTINCT, [0, 1, 2, 3])
    ours = built("SelfSupervisedLoss", loss=name, symmetric=symmetric)(items, inputs, WHOLE)
    theirs = losses.SelfSupervisedLoss(getattr(losses, name)(), symmetric=symmetric)
    check_same(ours, theirs(items[inputs.columns[:, 0]], items[inputs.columns[:, 1]]), items)


def test_pairs_that_share_a_text_are_no_negatives_of_each_other() -> None:
    items, inputs = embeddings(), pairs(SHARED, [0, 0, 0, 1, 2])
    ours = built("SelfSupervisedLoss", loss="ContrastiveLoss", symmetric=False)
    ours(items, inputs, WHOLE).backward()  # type: ignore[no-untyped-call]
    moved = items.detach().clone()
    assert items.grad is not None and float(items.grad[4].abs().sum()) > 0
    # query 4 and document 1 are of one group: the closer they are, the better
    moved[4] = moved[1]
    assert ours(moved.requires_grad_(), inputs, WHOLE) < ours(items, inputs, WHOLE)
    both, labelled = built("SelfSupervisedLoss", loss="ContrastiveLoss"), built("ContrastiveLoss")
    assert torch.equal(both(items, inputs, WHOLE), labelled(items, inputs, WHOLE))


@pytest.mark.parametrize("name", ["ContrastiveLoss", "NTXentLoss", "NCALoss", "TripletMarginLoss"])
def test_a_text_that_is_query_and_document_is_no_positive_of_itself(name: str) -> None:
    from pytorch_metric_learning import losses

    items, inputs = embeddings(), pairs([[0, 1], [2, 0], [4, 5], [6, 7], [8, 8]], [0, 0, 1, 2, 3])
    ours = built("SelfSupervisedLoss", loss=name, symmetric=False)(items, inputs, WHOLE)
    queries, documents = items[[0, 2, 4, 6, 8]], items[[0, 1, 5, 7, 8]]
    same = torch.tensor([[0, 1], [1, 0], [1, 1], [2, 2], [3, 3]])  # not (0, 0), nor (4, 4)
    groups = torch.tensor([0, 0, 1, 2, 3]), torch.tensor([0, 0, 1, 2, 3])
    other = torch.nonzero(groups[0][:, None] != groups[1])
    if name == "NCALoss":
        near = -(torch.cdist(*(functional.normalize(x) for x in (queries, documents))) ** 2)
        itself = torch.tensor([1.0, 0, 0, 0, 1]).diag().bool()
        near = near.masked_fill(itself, -1e9)
        share = (near.softmax(dim=1) * (groups[0][:, None] == groups[1])).sum(dim=1)
        wanted = -share[:4].log().sum() / 4  # 8 has no positive
    elif name == "TripletMarginLoss":
        triplets = [(a, p, n) for a, p in same.tolist() for b, n in other.tolist() if a == b]
        chosen = tuple(torch.tensor(triplets).T)
        wanted = losses.TripletMarginLoss()(queries, None, chosen, documents)
    else:
        chosen = (*same.T, *other.T)
        wanted = getattr(losses, name)()(queries, None, chosen, documents)
    check_same(ours, wanted, items)


def test_triplets_that_are_drawn_leave_out_a_text_as_its_own_positive() -> None:
    items, inputs = embeddings(), pairs([[0, 0], [2, 3], [4, 5]], [0, 1, 2])
    options = {"triplets_per_anchor": 20, "margin": 9, "reducer": "MeanReducer"}
    loss = built("SelfSupervisedLoss", loss="TripletMarginLoss", loss_options=options,
                 symmetric=False)  # fmt: skip
    seen: list[Any] = []
    loss.inner.register_forward_pre_hook(lambda _, given: seen.append(given[2]))  # type: ignore[union-attr]
    loss(items, inputs, WHOLE)
    (triplets,) = seen
    assert len(triplets) == 3 and set(triplets[0].tolist()) == {1, 2}, "0 has no other positive"
    alone = loss(items, pairs([[8, 8]], [0]), WHOLE)
    assert float(alone.detach()) == 0 and alone.requires_grad


def test_a_text_paired_with_itself_alone_teaches_nothing() -> None:
    items, inputs = embeddings(), pairs([[3, 3]], [0])
    loss = built("SelfSupervisedLoss", loss="NCALoss")(items, inputs, WHOLE)
    assert float(loss.detach()) == 0 and loss.requires_grad


@pytest.mark.parametrize("options", [{}, {"invariance_lambda": 1, "covariance_v": 7}], ids=str)
def test_vicreg_is_the_librarys_on_the_two_columns(options: dict[str, Any]) -> None:
    from pytorch_metric_learning import losses

    items, inputs = embeddings(), pairs(SHARED, [0, 0, 0, 1, 2])
    ours = built("VICRegLoss", **options)(items, inputs, WHOLE)
    first, second = items[inputs.columns[:, 0]], items[inputs.columns[:, 1]]
    check_same(ours, losses.VICRegLoss(**options)(first, ref_emb=second), items)
    alone = built("VICRegLoss")(items, pairs([[0, 1]], [0]), WHOLE)
    assert float(alone.detach()) == 0 and alone.requires_grad


def test_centres_are_those_of_the_other_texts_of_a_class() -> None:
    labels = torch.tensor([0, 1, 0, 2, 1, 0])  # 2 has one text
    items = embeddings(6)
    rows = torch.arange(6)[:, None]
    inputs = LossInputs(labels=labels, label_items=rows[:, 0], columns=rows, text_ids=rows)
    loss = built("CentroidTripletLoss", margin=0.4, reducer="MeanReducer")
    unit = torch.nn.functional.normalize
    expected = []
    for i in range(6):
        own = [j for j in range(6) if labels[j] == labels[i] and j != i]
        for other in set(labels.tolist()) - {int(labels[i])}:
            if own:
                positive, negative = items[own].mean(0), items[labels == other].mean(0)
                near = (unit(items[i], dim=0) - unit(positive, dim=0)).norm()
                far = (unit(items[i], dim=0) - unit(negative, dim=0)).norm()
                expected.append((near - far + 0.4).relu())
    assert len(expected) == 10
    check_same(loss(items, inputs, WHOLE), torch.stack(expected).mean(), items)


def test_a_regularizer_sees_the_texts_and_not_the_centres() -> None:
    given = {"embedding_regularizer": "LpRegularizer", "embedding_reg_weight": 0.3}
    for labels in ([0, 1, 0, 2, 1, 0], [0, 1, 2, 3, 4, 5]):  # the latter has no triplets at all
        items, rows = embeddings(6), torch.arange(6)[:, None]
        inputs = LossInputs(
            labels=torch.tensor(labels), label_items=rows[:, 0], columns=rows, text_ids=rows
        )
        terms = []
        for name in ("CentroidTripletLoss", "TripletMarginLoss"):
            with_term = built(name, **given)(items, inputs, WHOLE)
            terms.append(with_term - built(name)(items, inputs, WHOLE))
        check_same(*terms, items)


def test_centres_need_two_classes_and_two_texts_of_one() -> None:
    rows = torch.arange(3)[:, None]
    for labels in ([0, 0, 0], [0, 1, 2]):
        inputs = LossInputs(
            labels=torch.tensor(labels), label_items=rows[:, 0], columns=rows, text_ids=rows
        )
        loss = built("CentroidTripletLoss")(embeddings(3), inputs, WHOLE)
        assert float(loss.detach()) == 0 and loss.requires_grad


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("SelfSupervisedLoss", {}, "loss_options.loss = None: SelfSupervisedLoss needs the name"),
        ("SelfSupervisedLoss", {"loss": "ArcFaceLoss"}, "loss = ArcFaceLoss: SelfSupervisedLoss"),
        ("SelfSupervisedLoss", {"loss": "NCALoss", "symmetric": 1}, "symmetric = 1: true or false"),
        ("SelfSupervisedLoss", {"los": "NCALoss"}, "has no such option. Did you mean 'loss'"),
        ("SelfSupervisedLoss", {"loss": "NCALoss", "loss_options": 3}, "loss_options = 3: options"),
        ("VICRegLoss", {"distance": "LpDistance"}, "VICRegLoss cannot use a distance function"),
        ("VICRegLoss", {"variance": 1}, "Did you mean 'variance_mu'"),
        ("CentroidTripletLoss", {"triplets_per_anchor": 3}, "one triplet for each other class"),
        ("CentroidTripletLoss", {"margins": 3}, "has no such option. Did you mean 'margin'"),
    ],
)
def test_wrong_options_are_refused(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        built(name, **options)
    assert message in str(caught.value)
