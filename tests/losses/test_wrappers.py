"""Losses made of others: Matryoshka against sentence-transformers' own, sums, what they refuse."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from ftray.errors import ConfigError, DataError
from ftray.losses.base import LossInputs, Shard, StepLoss
from ftray.losses.metric import build_miner
from ftray.losses.registry import (
    build_loss,
    check_loss,
    check_width,
    least_dim,
    loss_names,
    loss_needs,
    misfit,
    takes_triplets,
    tied_to_classes,
)

WHOLE = Shard()
DIM, CLASSES = 8, 4
MNRL = "MultipleNegativesRankingLoss"


def built(name: str, miner: str | None = None, **options: Any) -> StepLoss:
    return build_loss(
        name, options, embedding_dim=DIM, n_groups=CLASSES, seed=0, miner=miner
    ).double()


def refused(name: str, miner: str | None = None, **options: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        built(name, miner, **options)
    return str(caught.value)


def embeddings(n: int = 12) -> Tensor:
    draw = torch.Generator().manual_seed(0)
    return torch.randn(n, DIM, dtype=torch.float64, generator=draw).requires_grad_()


def rows(width: int, scores: Tensor | None = None) -> LossInputs:
    """Rows of different texts, and a label for each pair."""
    n = 12 // width
    columns = torch.arange(n * width).reshape(n, width)
    items = columns[:, :2].reshape(-1)
    return LossInputs(
        labels=torch.arange(n).repeat_interleave(2) % CLASSES,
        label_items=items,
        columns=columns,
        text_ids=columns,
        scores=torch.zeros(0, dtype=torch.float64) if scores is None else scores,
    )


def gradients(value: Tensor, *over: Tensor) -> list[Tensor]:
    return list(torch.autograd.grad(value, over, retain_graph=True))


class Fixed(nn.Module):
    """A stand-in for a model: `features` are embeddings already."""

    def forward(self, features: dict[str, Tensor]) -> dict[str, Tensor]:
        return {"sentence_embedding": features["embeddings"]}

    def get_embedding_dimension(self) -> int:
        return DIM


SCORES = torch.tensor([0.5, 0.1, 0.9, 0.3, 0.3, 0.0], dtype=torch.float64)
TAUGHT = torch.tensor([[3.0, 1.0], [2.0, 2.5], [0.0, -1.0], [4.0, 0.0]], dtype=torch.float64)


@pytest.mark.parametrize(
    ("name", "width", "scores"),
    [
        (MNRL, 2, None),
        (MNRL, 4, None),
        ("CoSENTLoss", 2, SCORES),
        ("CosineSimilarityLoss", 2, SCORES),
        ("MarginMSELoss", 3, TAUGHT),
        ("DistillKLDivLoss", 3, TAUGHT),
    ],
)
@pytest.mark.parametrize("dims", [[8, 4, 2], [2, 3]], ids=str)
def test_matryoshka_is_that_of_sentence_transformers(
    name: str, width: int, scores: Tensor | None, dims: list[int]
) -> None:
    from sentence_transformers.sentence_transformer import losses

    weights = [1.0, 0.5, 2.0][: len(dims)]
    items, inputs = embeddings(), rows(width, scores)
    ours = built("MatryoshkaLoss", loss=name, dims=dims, weights=weights)(items, inputs, WHOLE)
    model: Any = Fixed()
    theirs = losses.MatryoshkaLoss(model, getattr(losses, name)(model), dims, weights)
    features = [{"embeddings": items[column]} for column in inputs.columns.T]
    wanted = theirs(features, torch.zeros(0) if scores is None else scores)  # type: ignore[arg-type]
    torch.testing.assert_close(ours, wanted, rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(*gradients(ours, items), *gradients(wanted, items), rtol=1e-6,
                               atol=1e-7)  # fmt: skip


def test_each_dim_has_vectors_of_its_own_width() -> None:
    loss = built("MatryoshkaLoss", loss="ArcFaceLoss", dims=[2, 8, 5])
    assert [tuple(p.shape) for p in loss.parameters()] == [(8, 4), (5, 4), (2, 4)]
    items = embeddings()
    value = loss(items, rows(2), WHOLE)
    parts = []
    for dim, inner in zip((8, 5, 2), loss.losses, strict=True):  # type: ignore[arg-type]
        parts.append(inner(functional.normalize(items[:, :dim], dim=1), rows(2), WHOLE))
    torch.testing.assert_close(value, torch.stack(parts).sum())
    assert all(float(g.abs().sum()) > 0 for g in gradients(value, *loss.parameters()))


def test_a_learned_temperature_is_kept_in_range_and_logged_for_each_dim() -> None:
    loss = built("MatryoshkaLoss", loss="CLIPLoss", dims=[2, 4])
    assert loss.scalars() == pytest.approx({"temperature_4": 0.07, "temperature_2": 0.07})
    for parameter in loss.parameters():
        parameter.data += 10
    loss.after_step()
    assert loss.scalars() == pytest.approx({"temperature_4": 0.01, "temperature_2": 0.01})


def test_a_miner_picks_in_each_dim() -> None:
    items, name, miner = embeddings(), "ContrastiveLoss", "BatchHardMiner"
    mined = built("MatryoshkaLoss", miner, loss=name, dims=[2, 8])(items, rows(2), WHOLE)
    slices = [functional.normalize(items[:, :dim], dim=1) for dim in (2, 8)]
    parts = [built(name, miner)(part, rows(2), WHOLE) for part in slices]
    torch.testing.assert_close(mined, torch.stack(parts).sum())
    once = build_miner(miner, {})(items, rows(2).labels)
    inner: Any = built(name).inner
    shared = [inner(part, rows(2).labels, once) for part in slices]
    assert float((mined - torch.stack(shared).sum()).detach().abs()) > 1e-3, (
        "picked once for all dims"
    )


def test_several_losses_are_their_weighted_sum() -> None:
    options = [
        {"loss": "InfoNCE", "loss_options": {"temperature": 0.3}},
        {"loss": "SupConLoss", "weight": 0.5},
        {"loss": "TripletMarginLoss", "weight": 2, "miner": "BatchHardMiner"},
    ]
    items, inputs = embeddings(), rows(2)
    loss = built("MultipleLosses", losses=options)
    parts = [
        built("InfoNCE", temperature=0.3)(items, inputs, WHOLE),
        0.5 * built("SupConLoss")(items, inputs, WHOLE),
        2 * built("TripletMarginLoss", "BatchHardMiner")(items, inputs, WHOLE),
    ]
    torch.testing.assert_close(loss(items, inputs, WHOLE), torch.stack(parts).sum())


MIX = [{"loss": "CLIPLoss"}, {"loss": "ArcFaceLoss"}, {"loss": "SigLIPLoss", "weight": 0.3}]
MIXES: dict[str, tuple[str, dict[str, Any]]] = {
    "by rows and in full": ("MultipleLosses", {"losses": MIX}),
    "shortened": (
        "MatryoshkaLoss",
        {"loss": "MultipleLosses", "loss_options": {"losses": MIX}, "dims": [8, 3]},
    ),
    "with one that is itself a mix": (
        "MultipleLosses",
        {"losses": [{"loss": "MultipleLosses", "loss_options": {"losses": MIX}}, MIX[1]]},
    ),
}


@pytest.mark.parametrize(("name", "options"), MIXES.values(), ids=MIXES)
@pytest.mark.parametrize("world_size", [2, 3])
def test_shares_of_a_mix_sum_to_the_whole(
    name: str, options: dict[str, Any], world_size: int
) -> None:
    items, inputs, loss = embeddings(), rows(2), built(name, **options)
    assert loss.sharded
    over = [items, *loss.parameters()]
    shards = [Shard(rank=rank, world_size=world_size) for rank in range(world_size)]
    parts = [loss(items, inputs, shard) for shard in shards]
    whole = loss(items, inputs, WHOLE)
    torch.testing.assert_close(sum(parts), whole, rtol=1e-12, atol=1e-13)
    torch.testing.assert_close(gradients(sum(parts), *over), gradients(whole, *over))  # type: ignore[arg-type]
    learned = torch.autograd.grad(parts[1], loss.parameters(), allow_unused=True)
    assert [g is None for g in learned].count(True) > 0, "rank 1 adds nothing to ArcFaceLoss"


def test_a_loss_in_full_counted_on_every_rank_would_be_noticed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    items, inputs, loss = embeddings(), rows(2), built("MultipleLosses", losses=MIX)
    whole = loss(items, inputs, WHOLE)
    monkeypatch.setattr(
        type(loss), "_share", lambda self, inner, *arguments: inner(*arguments), raising=True
    )
    parts = [loss(items, inputs, Shard(rank=rank, world_size=2)) for rank in range(2)]
    assert float((sum(parts) - whole).detach().abs()) > 1


def test_what_every_rank_computes_in_full_is_not_by_rows() -> None:
    losses = [{"loss": "SupConLoss"}, {"loss": "ArcFaceLoss"}]
    assert not built("MultipleLosses", losses=losses).sharded
    assert not built("MatryoshkaLoss", loss="SupConLoss", dims=[4]).sharded
    assert built("MatryoshkaLoss", loss="InfoNCE", dims=[4]).sharded


def test_memories_and_draws_are_those_of_rank_0_on_every_rank() -> None:
    memory = {"loss": "CrossBatchMemory", "loss_options": {"loss": "SupConLoss", "memory_size": 20}}
    drawn = {"loss": "TripletMarginLoss", "loss_options": {"triplets_per_anchor": 2}}
    losses = [built("MultipleLosses", losses=[memory, drawn, {"loss": "InfoNCE"}]) for _ in "ab"]
    states = []
    for rank, loss in enumerate(losses):
        torch.manual_seed(3)
        loss(embeddings(), rows(2), Shard(rank=rank, world_size=2))
        states.append((torch.get_rng_state(), loss.state_dict()))
    assert torch.equal(states[0][0], states[1][0])
    assert states[0][1].keys() == states[1][1].keys()
    assert all(torch.equal(value, states[1][1][name]) for name, value in states[0][1].items())
    assert any(value.any() for name, value in states[0][1].items() if "memory" in name)
    assert losses[0].max_items == 20


def data(*names: str) -> tuple[str, bool]:
    options = {"losses": [{"loss": name} for name in names]}
    return loss_needs("MultipleLosses", options), takes_triplets("MultipleLosses", options)


def test_what_data_a_mix_fits() -> None:
    assert data("SupConLoss", "ArcFaceLoss") == ("labels", False)
    assert data("SupConLoss", "InfoNCE") == ("pairs", False)
    assert data("TripletMarginLoss", "InfoNCE") == ("pairs", True)
    assert data("CoSENTLoss", "CosineSimilarityLoss") == ("scores", False)
    assert data("MarginMSELoss", MNRL) == ("distillation", False)
    for names in (["CoSENTLoss", "InfoNCE"], ["MarginMSELoss", "SupConLoss"]):
        with pytest.raises(ConfigError, match="No data fits all of these losses"):
            data(*names)
    mined = {"losses": [{"loss": "TripletMarginLoss", "miner": "HDCMiner"}, {"loss": "InfoNCE"}]}
    assert not takes_triplets("MultipleLosses", mined), "a miner picks its own"
    assert not built("MultipleLosses", **mined).takes_triplets
    inner = {"loss": "CLIPLoss", "dims": [300, 4]}
    assert loss_needs("MatryoshkaLoss", inner) == "pairs" and takes_triplets(
        "MatryoshkaLoss", inner
    )
    nested = {"losses": [{"loss": "MatryoshkaLoss", "loss_options": inner}, {"loss": "MarginLoss"}]}
    assert loss_names("MultipleLosses", nested) == ["CLIPLoss", "MarginLoss"]
    assert loss_needs("MultipleLosses", nested) == "pairs"
    assert least_dim("MultipleLosses", nested) == 300 and least_dim("CLIPLoss") == 1
    assert tied_to_classes("MultipleLosses", nested) is None
    assert tied_to_classes("MatryoshkaLoss", {"loss": "ArcFaceLoss", "dims": [2]}) == (
        "In loss_options of MatryoshkaLoss: ArcFaceLoss learns something for each class"
    )


def test_an_object_says_the_same_of_its_data_as_the_name() -> None:
    for name, options in MIXES.values():
        loss = built(name, **options)
        assert (loss.needs, loss.takes_triplets) == ("pairs", False)
        assert (loss_needs(name, options), takes_triplets(name, options)) == ("pairs", False)
    taught = built("MatryoshkaLoss", loss="MarginMSELoss", dims=[4])
    assert taught.needs == "distillation"
    assert built("MatryoshkaLoss", loss="TripletMarginLoss", dims=[4]).takes_triplets


MINED = {"loss": "MatryoshkaLoss", "miner": "BatchHardMiner"}


def test_a_miner_is_handed_down_to_the_loss_that_it_mines_for() -> None:
    inner = {"loss": "TripletMarginLoss", "dims": [8, 4]}
    options = {"losses": [{**MINED, "loss_options": inner}, {"loss": "InfoNCE"}]}
    assert not takes_triplets("MultipleLosses", options), "the miner picks; negatives are unread"
    assert not built("MultipleLosses", **options).takes_triplets
    assert misfit("MultipleLosses", options, lambda needs, takes: takes) == (
        "In loss_options.losses[0]: In loss_options of MatryoshkaLoss: TripletMarginLoss with "
        "miner BatchHardMiner"
    )
    assert misfit("InfoNCE", {}, lambda needs, takes: needs == "labels") == "InfoNCE"


def test_dims_are_compared_with_a_width_at_every_depth() -> None:
    inner = {"loss": "InfoNCE", "dims": [6]}
    outer = {"loss": "MatryoshkaLoss", "loss_options": inner, "dims": [8, 4]}
    with pytest.raises(ConfigError, match=r"MatryoshkaLoss: loss_options.dims: 6, but .* only 4"):
        check_width("MatryoshkaLoss", outer, 8)
    check_width("MatryoshkaLoss", inner, 6)
    mixed = {"losses": [{"loss": "MatryoshkaLoss", "loss_options": inner}]}
    with pytest.raises(ConfigError, match=r"losses\[0\]: loss_options.dims: 6, but .* only 5"):
        check_width("MultipleLosses", mixed, 5)


def test_which_margins_can_be_reached() -> None:
    taught = [{"loss": "MarginMSELoss"}, {"loss": "InfoNCE"}]
    assert built("MultipleLosses", losses=taught).widest_margin() == math.inf
    assert built("MultipleLosses", losses=taught).widest_margin(unit_length=True) == 2
    assert built("MarginMSELoss", similarity="cosine").widest_margin() == 2
    assert built("MatryoshkaLoss", loss="MarginMSELoss", dims=[4]).widest_margin() == 2
    assert built("MatryoshkaLoss", loss="DistillKLDivLoss", dims=[4]).widest_margin() == math.inf


@pytest.mark.parametrize("option", ["weights", "miners"])
def test_the_form_of_pytorch_metric_learning_gets_ours(option: str) -> None:
    message = refused("MultipleLosses", losses=[{"loss": "SupConLoss"}], **{option: [1]})
    assert "here each loss has its own: loss_options: {losses: [{loss: TripletMarginLoss" in message


def test_scores_are_checked_by_the_losses_inside() -> None:
    loss = built("MatryoshkaLoss", loss="CosineSimilarityLoss", dims=[4])
    with pytest.raises(DataError, match=r"score_range: \[0, 5\]"):
        loss.check_scores(0, 5, "a.csv")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "loss_options.dims = None: MatryoshkaLoss needs a list of different whole numbers"),
        ({"dims": [4]}, "the name of a loss is missing: loss_options: {loss: MultipleNegatives"),
        ({"dims": [16, 4]}, "dims: 16, but the model's embeddings have only 8 dimensions"),
        ({"dims": [4, 4]}, "loss_options.dims = [4, 4]: MatryoshkaLoss needs"),
        ({"dims": [0]}, "loss_options.dims = [0]: "),
        ({"dims": [True]}, "loss_options.dims = [True]: "),
        ({"dims": 4}, "loss_options.dims = 4: "),
        ({"dims": [4], "weights": [1, 2]}, "weights = [1, 2]: one for each of dims, which has 1"),
        ({"dims": [4], "weights": [-1]}, "loss_options.weights = -1: a positive number"),
        ({"dim": [4]}, "loss_options.dim: MatryoshkaLoss has no such option. Did you mean 'dims'?"),
        ({"dims": [4], "loss": "InfoNC"}, "In loss_options of MatryoshkaLoss: There is no loss"),
        (
            {"dims": [4], "loss": "InfoNCE", "loss_options": {"temp": 1}},
            "In loss_options of MatryoshkaLoss: loss_options.temp: InfoNCE has no such option.",
        ),
        ({"dims": [4], "loss": "InfoNCE", "loss_options": 3}, "loss_options = 3: options by name"),
        ({"dims": [4], "loss": "SmoothAPLoss"}, "MatryoshkaLoss: loss = 'SmoothAPLoss' cannot"),
    ],
)
def test_wrong_options_of_matryoshka_are_refused(options: dict[str, Any], message: str) -> None:
    if "dims" in options and "dim" not in options and "the name" not in message:
        options = {"loss": "InfoNCE"} | options
    assert message in refused("MatryoshkaLoss", **options)


@pytest.mark.parametrize(
    ("losses", "message"),
    [
        (
            None,
            "loss_options.losses = None: MultipleLosses needs a list of losses: loss_options: {",
        ),
        ([], "loss_options.losses = []: "),
        (["InfoNCE"], "loss_options.losses[0] = 'InfoNCE': a loss is given as in loss_options: {"),
        ([{"los": "InfoNCE"}], "losses[0].los is unknown. Did you mean 'loss'"),
        ([{"loss": "InfoNCE", "weight": "2"}], "losses[0].weight = '2': a positive number"),
        ([{"loss": "InfoNCE"}, {"loss": "x"}], "In loss_options.losses[1]: There is no loss 'x'."),
        ([{"loss": "InfoNCE", "miner": "HDCMiner"}], "loss = 'InfoNCE' takes no miner"),
        ([{"loss": "SupConLoss", "miner": 3}], "losses[0]: miner = 3: the name of a miner is"),
        ([{"loss": "SupConLoss", "miner": "H"}], "In loss_options.losses[0]: There is no miner"),
        ([{"loss": "CoSENTLoss"}, {"loss": "CLIPLoss"}], "CoSENTLoss from scored pairs, CLIPLoss"),
    ],
)
def test_wrong_options_of_several_losses_are_refused(losses: Any, message: str) -> None:
    options = {} if losses is None else {"losses": losses}
    assert message in refused("MultipleLosses", **options)


def test_a_miner_for_several_losses_is_given_to_one_of_them() -> None:
    message = refused("MultipleLosses", "HDCMiner", losses=[{"loss": "SupConLoss"}])
    assert message.startswith("miner = 'HDCMiner': MultipleLosses has several losses; give it to")
    assert refused("MatryoshkaLoss", "HDCMiner", loss="InfoNCE", dims=[2]).endswith(
        "loss = 'InfoNCE' takes no miner: miners pick among labelled texts"
    )


def test_names_are_checked_before_data_is_read() -> None:
    check_loss("MatryoshkaLoss", {"loss": "InfoNCE", "dims": [4000]})
    with pytest.raises(ConfigError, match=r"In loss_options of MatryoshkaLoss: There is no loss"):
        check_loss("MatryoshkaLoss", {"loss": "Infonse", "dims": [4]})
