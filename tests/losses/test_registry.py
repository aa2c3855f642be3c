"""Losses by name: each of them works, or says why it is not offered."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
import torch
from torch import Tensor

from ftray.errors import ConfigError
from ftray.losses.base import LossInputs, Shard, StepLoss
from ftray.losses.metric import CLASSIFICATION_LOSSES, METRIC_LOSSES, REFUSED_LOSSES
from ftray.losses.registry import LOSS_NAMES, MEMORY_LOSS, build_loss, loss_needs

torch.set_num_threads(1)

pytestmark = pytest.mark.filterwarnings("ignore:Using a non-tuple sequence")  # HistogramLoss

DEMANDED: dict[str, dict[str, Any]] = {"RankedListLoss": {"margin": 0.5, "Tn": 1.0}}
"""Options that the library does not default."""

DIM, CLASSES, ROWS = 16, 4, 8


def built(name: str, seed: int = 0, **options: Any) -> StepLoss:
    options = DEMANDED.get(name, {}) | options
    return build_loss(name, options, embedding_dim=DIM, n_groups=CLASSES, seed=seed)


def embeddings(seed: int = 0, rows: int = ROWS) -> Tensor:
    return torch.randn(rows, DIM, generator=torch.Generator().manual_seed(seed))


def labels() -> Tensor:
    return torch.arange(CLASSES).repeat_interleave(ROWS // CLASSES)


def value(loss: StepLoss, items: Tensor, classes: Tensor) -> Tensor:
    rows = torch.arange(len(classes))[:, None]
    inputs = LossInputs(labels=classes, label_items=rows[:, 0], columns=rows, text_ids=rows)
    return loss(items, inputs, Shard())


def refused(name: str, **options: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        build_loss(name, options, embedding_dim=DIM, n_groups=CLASSES, seed=0)
    return str(caught.value)


@pytest.mark.parametrize("name", sorted(METRIC_LOSSES))
def test_loss_and_gradients_are_finite_in_one_step_after_another(name: str) -> None:
    loss = built(name)
    for seed in range(3):
        items = embeddings(seed).requires_grad_()
        result = value(loss, items, labels())
        assert result.shape == ()
        result.backward()  # type: ignore[no-untyped-call]
        assert items.grad is not None
        assert items.grad.abs().sum() > 0
        for tensor in (result, items.grad, *(p.grad for p in loss.parameters())):
            assert tensor is not None
            assert tensor.isfinite().all()


@pytest.mark.parametrize("name", sorted(METRIC_LOSSES))
def test_step_without_two_rows_of_a_class_has_a_finite_loss(name: str) -> None:
    items = embeddings(rows=CLASSES).requires_grad_()
    result = value(built(name), items, torch.arange(CLASSES))
    result.backward()  # type: ignore[no-untyped-call]
    assert result.isfinite()
    assert items.grad is not None
    assert items.grad.isfinite().all()


@pytest.mark.parametrize("name", sorted(METRIC_LOSSES - {"NPairsLoss"}))  # draws its pairs
def test_loss_does_not_hang_on_the_order_of_the_rows(name: str) -> None:
    items, classes = embeddings().double(), labels()
    order = torch.tensor([3, 1, 7, 0, 5, 2, 6, 4])
    in_order = value(built(name), items.requires_grad_(), classes)
    mixed = value(built(name), items[order], classes[order])
    torch.testing.assert_close(mixed, in_order, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("name", sorted(METRIC_LOSSES - CLASSIFICATION_LOSSES))
def test_loss_does_not_hang_on_the_numbers_of_the_classes(name: str) -> None:
    items = embeddings().double().requires_grad_()
    torch.manual_seed(0)
    numbered = value(built(name), items, labels())
    torch.manual_seed(0)
    renumbered = value(built(name), items, CLASSES - 1 - labels())
    torch.testing.assert_close(renumbered, numbered, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("name", sorted(CLASSIFICATION_LOSSES))
def test_vectors_of_the_classes_are_drawn_from_the_seed_alone(name: str) -> None:
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    first = list(built(name, seed=1).parameters())
    assert torch.equal(torch.random.get_rng_state(), before)
    torch.manual_seed(6)
    again = list(built(name, seed=1).parameters())
    other = list(built(name, seed=2).parameters())
    assert sum(p.numel() for p in first) % (DIM * CLASSES) == 0
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(first, other, strict=True))


@pytest.mark.parametrize("name", sorted(REFUSED_LOSSES))
def test_refused_loss_gives_its_reason(name: str) -> None:
    assert refused(name) == f"loss = '{name}' cannot be used here: {REFUSED_LOSSES[name]}."


def test_every_loss_of_the_library_is_offered_or_refused() -> None:
    from pytorch_metric_learning import losses

    theirs = {
        name
        for name, cls in vars(losses).items()
        if inspect.isclass(cls) and issubclass(cls, torch.nn.Module) and not name.startswith("Base")
    }
    assert theirs <= METRIC_LOSSES | set(REFUSED_LOSSES) | {MEMORY_LOSS}
    assert not METRIC_LOSSES & set(REFUSED_LOSSES)


def test_offered_names_are_the_librarys_and_our_own() -> None:
    own = {"InfoNCE", "MultipleNegativesRankingLoss", "CLIPLoss", "CosineSimilarityLoss"}
    own |= {"SigLIPLoss"}
    assert set(LOSS_NAMES) == METRIC_LOSSES | own | {MEMORY_LOSS}
    needs = {name: loss_needs(name) for name in LOSS_NAMES if loss_needs(name) != "labels"}
    assert needs == {name: "pairs" for name in own} | {"CosineSimilarityLoss": "scores"}


def test_unknown_loss_gets_the_nearest_name() -> None:
    assert refused("TripletLoss").startswith("There is no loss 'TripletLoss'. Did you mean")
    assert "Did you mean 'InfoNCE'?" in refused("infonce")


@pytest.mark.parametrize(
    ("name", "option", "nearest"),
    [
        ("TripletMarginLoss", "margins", "margin"),
        ("ArcFaceLoss", "scales", "scale"),
        ("InfoNCE", "temperatur", "temperature"),
        ("CLIPLoss", "learnable_temprature", "learnable_temperature"),
    ],
)
def test_unknown_option_gets_the_nearest_name(name: str, option: str, nearest: str) -> None:
    message = refused(name, **{option: 1})
    assert message.startswith(f"loss_options.{option}: {name} has no such option.")
    assert f"Did you mean '{nearest}'" in message


def test_missing_or_impossible_option_is_an_error_of_the_configuration() -> None:
    assert refused("RankedListLoss").startswith("loss_options do not fit RankedListLoss: ")
    assert refused("PNPLoss", variant="Z").startswith("loss_options do not fit PNPLoss: variant=Z")
    assert "loss_options.temperature = 0: a positive number" in refused("InfoNCE", temperature=0)


def test_distance_and_reducer_go_by_name() -> None:
    loss = built("ContrastiveLoss", distance="DotProductSimilarity", reducer="MeanReducer")
    inner: Any = loss.inner
    assert type(inner.distance).__name__ == "DotProductSimilarity"
    plain = value(built("ContrastiveLoss"), embeddings().requires_grad_(), labels())
    assert value(loss, embeddings().requires_grad_(), labels()) != plain
    message = refused("ContrastiveLoss", distance="CosineSimilarty")
    assert message == (
        "loss_options.distance = 'CosineSimilarty' is unknown. Did you mean 'CosineSimilarity'?"
    )


def test_distance_that_does_not_fit_the_loss_is_refused() -> None:
    message = refused("CircleLoss", distance="LpDistance")
    assert message.startswith("loss_options do not fit CircleLoss: ")
    assert "CosineSimilarity" in message


def test_learned_margin_has_one_number_for_each_class() -> None:
    loss = built("MarginLoss", learn_beta=True)
    assert [tuple(p.shape) for p in loss.parameters()] == [(CLASSES,)]
    assert list(built("MarginLoss").parameters()) == []


def test_item_that_occurs_twice_counts_under_both_of_its_labels() -> None:
    items = embeddings(rows=3).requires_grad_()
    inputs = LossInputs(
        labels=torch.tensor([0, 1, 1, 0]),
        label_items=torch.tensor([0, 1, 2, 2]),
        columns=torch.tensor([[0], [1], [2], [2]]),
        text_ids=torch.tensor([[0], [1], [2], [2]]),
    )
    by_position = built("ContrastiveLoss")(items, inputs, Shard())
    spelled_out = value(built("ContrastiveLoss"), items[[0, 1, 2, 2]], inputs.labels)
    torch.testing.assert_close(by_position, spelled_out)
