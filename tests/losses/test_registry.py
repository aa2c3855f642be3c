"""Losses by name: each of them works, or says why it is not offered."""

from __future__ import annotations

import inspect
import math
import re
from typing import Any

import pytest
import torch
from torch import Tensor

from ftray.errors import ConfigError
from ftray.losses.base import LossInputs, Shard, StepLoss
from ftray.losses.hints import LOSS_HINTS
from ftray.losses.metric import CLASSIFICATION_LOSSES, METRIC_LOSSES, MINERS, REFUSED_LOSSES
from ftray.losses.nested import WRAPPERS
from ftray.losses.registry import (
    ADAPTED_LOSSES,
    LOSS_NAMES,
    MEMORY_LOSS,
    OWN_LOSSES,
    build_loss,
    loss_needs,
)

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
    assert theirs == theirs & set(LOSS_NAMES) | set(REFUSED_LOSSES)
    assert not set(LOSS_NAMES) & set(REFUSED_LOSSES)


def test_offered_names_are_the_librarys_and_our_own() -> None:
    own = [METRIC_LOSSES, OWN_LOSSES, ADAPTED_LOSSES, WRAPPERS, {MEMORY_LOSS}]
    assert sorted(LOSS_NAMES) == sorted(name for names in own for name in names), "each once"
    needs = {name: loss_needs(name) for name in set(LOSS_NAMES) - set(WRAPPERS)}
    assert {name for name, data in needs.items() if data == "pairs"} == {
        *("CLIPLoss", "InfoNCE", "MultipleNegativesRankingLoss", "SelfSupervisedLoss"),
        *("SigLIPLoss", "VICRegLoss"),
    }
    assert {name for name, data in needs.items() if data == "scores"} == {
        *("AnglELoss", "CoSENTLoss", "CosineSimilarityLoss"),
    }
    assert {name for name, data in needs.items() if data == "distillation"} == {
        *("DistillKLDivLoss", "MarginMSELoss"),
    }


def test_unknown_loss_gets_the_nearest_name() -> None:
    assert "Did you mean 'InfoNCE'?" in refused("infonce")
    assert "Did you mean 'SupConLoss'" in refused("SupConLos")


def test_names_of_other_libraries_get_what_is_like_them_here() -> None:
    from sentence_transformers.sentence_transformer import losses

    theirs = {name for name in losses.__all__ if name.endswith("Loss")} - set(LOSS_NAMES)
    finetuner = {"CosFace", "NTXLoss", "CentroidTriplet", "NPairs", "SiameseLoss", "TripletLoss"}
    for name in theirs | finetuner | {"MNRL", "KLDivergenceLoss", *LOSS_HINTS}:
        message = refused(name)
        assert message.startswith(f"There is no loss '{name}'. "), name
        assert "Valid:" not in message, f"{name} gets no more than a list"
        if name not in LOSS_HINTS:
            assert f"Did you mean '{name}Loss'?" in message
    assert not set(LOSS_HINTS) & set(LOSS_NAMES)


def test_what_a_hint_says_exists() -> None:
    said = " ".join(LOSS_HINTS.values())
    names = set(re.findall(r"\b[A-Z]\w+(?:Loss|Miner|Regularizer)\b", said))
    assert names & set(LOSS_NAMES) and names & MINERS
    assert names <= {*LOSS_NAMES, *MINERS, "LpRegularizer"}


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


def test_scale_of_sentence_transformers_is_a_temperature() -> None:
    message = refused("MultipleNegativesRankingLoss", scale=20)
    assert message.endswith("has no such option. Give temperature, which is 1 / scale.")


def test_missing_or_impossible_option_is_an_error_of_the_configuration() -> None:
    assert refused("RankedListLoss").startswith("loss_options do not fit RankedListLoss: ")
    assert refused("PNPLoss", variant="Z").startswith("loss_options do not fit PNPLoss: variant=Z")
    assert "loss_options.temperature = 0: a positive number" in refused("InfoNCE", temperature=0)


@pytest.mark.parametrize(
    ("name", "options", "said"),
    [
        ("InfoNCE", {"symmetric": "false"}, "loss_options.symmetric = 'false': true or false"),
        ("InfoNCE", {"temperature": math.inf}, "loss_options.temperature = inf: a positive number"),
        ("CLIPLoss", {"temperature": "0.05"}, "temperature = '0.05': a positive number"),
        ("CLIPLoss", {"learnable_temperature": 1}, "learnable_temperature = 1: true or false"),
        ("SigLIPLoss", {"bias": "x"}, "loss_options.bias = 'x': a number"),
        ("SigLIPLoss", {"learnable": "no"}, "loss_options.learnable = 'no': true or false"),
        ("SigLIPLoss", {"temperature": True}, "temperature = True: a positive number"),
        ("CoSENTLoss", {"scale": math.inf}, "loss_options.scale = inf: a positive number"),
        ("AnglELoss", {"scale": None}, "loss_options.scale = None: a positive number"),
        ("DistillKLDivLoss", {"temperature": "1"}, "temperature = '1': a positive number"),
        ("CosineSimilarityLoss", {"score_range": [0, True]}, "score_range = [0, True]: two"),
    ],
)
def test_wrong_values_of_own_losses_are_named(
    name: str, options: dict[str, Any], said: str
) -> None:
    assert said in refused(name, **options)


REDUCED = {"distance": "LpDistance", "embedding_regularizer": "LpRegularizer"}


@pytest.mark.parametrize("name", ["SelfSupervisedLoss", "CrossBatchMemory", "CentroidTripletLoss"])
def test_parts_are_given_to_the_loss_that_uses_them(name: str) -> None:
    if name == "CentroidTripletLoss":
        assert built(name, reducer="MeanReducer", **REDUCED)
        return
    for part in REDUCED:
        assert "has no such option" in refused(name, loss="ContrastiveLoss", **{part: "X"})
    loss: Any = built(name, loss="ContrastiveLoss", loss_options=REDUCED)
    inner = loss.memory.loss if name == "CrossBatchMemory" else loss.inner
    assert type(inner.distance).__name__ == "LpDistance"
    assert type(inner.embedding_regularizer).__name__ == "LpRegularizer"


def test_vicreg_takes_a_reducer_alone() -> None:
    inner: Any = built("VICRegLoss", reducer="MeanReducer").inner
    assert {type(r).__name__ for r in inner.reducer.reducers.values()} == {"MeanReducer"}
    for part in REDUCED:
        assert "VICRegLoss cannot use a" in refused("VICRegLoss", **{part: REDUCED[part]})


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


def test_distances_reducers_and_regularizers_take_arguments() -> None:
    squared = {"name": "LpDistance", "power": 2}
    loss = built("ContrastiveLoss", distance=squared, embedding_regularizer="LpRegularizer")
    inner: Any = loss.inner
    assert inner.distance.power == 2
    assert type(inner.embedding_regularizer).__name__ == "LpRegularizer"
    plain = built("ContrastiveLoss", distance=squared)
    items = embeddings().requires_grad_()
    assert value(loss, items, labels()) > value(plain, items, labels())
    message = refused("ContrastiveLoss", distance={"name": "LpDistance", "pwr": 2})
    assert message == (
        "loss_options.distance.pwr: LpDistance has no such option. Did you mean 'power'?"
    )
    assert "loss_options.reducer = {'low': 0.1}: the name of a class" in refused(
        "ContrastiveLoss", reducer={"low": 0.1}
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
