"""Miners by name: each of them works, or says why it is not offered."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
import torch

from ftray.errors import ConfigError
from ftray.losses.base import LossInputs, Shard
from ftray.losses.metric import METRIC_LOSSES, MINERS, NO_MINER, REFUSED_MINERS
from ftray.losses.registry import ADAPTED_LOSSES, OWN_LOSSES, build_loss

pytestmark = pytest.mark.filterwarnings("ignore:Using a non-tuple sequence")  # HistogramLoss

DEMANDED: dict[str, dict[str, Any]] = {"RankedListLoss": {"margin": 0.5, "Tn": 1.0}}


def built(loss: str, miner: str | None, **miner_options: Any) -> Any:
    return build_loss(
        loss,
        DEMANDED.get(loss, {}),
        embedding_dim=8,
        n_groups=4,
        seed=0,
        miner=miner,
        miner_options=miner_options,
    )


def value(loss: Any) -> float:
    items = torch.randn(12, 8, generator=torch.Generator().manual_seed(3)).requires_grad_()
    rows = torch.arange(12)[:, None]
    inputs = LossInputs(
        labels=torch.arange(4).repeat(3),
        label_items=rows[:, 0],
        columns=rows,
        text_ids=rows,
        scores=torch.zeros(0),
    )
    torch.manual_seed(0)
    return float(loss(items, inputs, Shard()).detach())


def refused(loss: str, miner: str | None, **options: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        built(loss, miner, **options)
    return str(caught.value)


@pytest.mark.parametrize("miner", sorted(MINERS))
def test_a_miner_picks(miner: str) -> None:
    mined = value(built("ContrastiveLoss", miner))
    assert mined == mined and mined != value(built("ContrastiveLoss", None))


@pytest.mark.parametrize("loss", sorted(METRIC_LOSSES - NO_MINER))
def test_a_loss_on_labels_takes_a_miner(loss: str) -> None:
    mined = value(built(loss, "MultiSimilarityMiner"))
    assert mined == mined
    assert mined != value(built(loss, None)), "what the miner picked is ignored"


@pytest.mark.parametrize("loss", [*sorted(NO_MINER), *OWN_LOSSES, *ADAPTED_LOSSES])
def test_a_loss_that_would_ignore_a_miner_refuses_it(loss: str) -> None:
    message = refused(loss, "BatchHardMiner")
    assert message.startswith(f"loss = '{loss}' takes no ")


def test_options_reach_the_miner() -> None:
    wide = built("TripletMarginLoss", "TripletMarginMiner", margin=0.5, distance="LpDistance")
    assert wide.miner.margin == 0.5 and type(wide.miner.distance).__name__ == "LpDistance"


@pytest.mark.parametrize(
    ("miner", "options", "message"),
    [
        ("HardMiner", {}, "There is no miner 'HardMiner'. Did you mean"),
        ("Angular", {}, "There is no miner 'Angular'. Did you mean 'AngularMiner'?"),
        ("MaximumLossMiner", {}, "There is no miner 'MaximumLossMiner'. The installed pytorch-me"),
        ("TripletEasyHardMiner", {}, "There is no miner 'TripletEasyHardMiner'. Did you mean 'Ba"),
        ("TripletMarginMiner", {"margins": 1}, "miner_options.margins: TripletMarginMiner has no"),
        ("TripletMarginMiner", {"distance": "Lp"}, "miner_options.distance = 'Lp' is unknown"),
        ("AngularMiner", {"distance": "DotProductSimilarity"}, "miner_options do not fit Angular"),
        (None, {"margin": 1}, "miner_options are given, but no miner"),
    ],
)
def test_wrong_miners_and_options_are_refused(miner: Any, options: Any, message: str) -> None:
    assert refused("TripletMarginLoss", miner, **options).startswith(message)


def test_every_miner_of_the_library_is_offered_or_refused() -> None:
    from pytorch_metric_learning import miners

    theirs = {
        name
        for name, cls in vars(miners).items()
        if inspect.isclass(cls) and not name.startswith("Base")
    }
    assert theirs == MINERS | set(REFUSED_MINERS)
    for name, reason in REFUSED_MINERS.items():
        assert refused("TripletMarginLoss", name).endswith(f"cannot be used here: {reason}.")
