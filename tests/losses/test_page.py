"""docs/losses.md has every loss, with what it needs and its options."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

import pytest

from ftray.losses.metric import MINERS, REFUSED_LOSSES, _option_names
from ftray.losses.nested import WRAPPERS
from ftray.losses.registry import LOSS_NAMES, OWN_LOSSES, build_loss, loss_needs

PAGE = (Path(__file__).parents[2] / "docs" / "losses.md").read_text()
ROWS = re.findall(r"^\| `(\w+)` \|([^|]*)\|([^|]*)\|[^|]*\|$", PAGE, re.MULTILINE)
FILLED_IN = {"num_classes", "embedding_size", "descriptors_dim", "miner"}


def test_every_loss_has_a_row() -> None:
    assert [name for name, *_ in ROWS] == list(LOSS_NAMES)
    for name in REFUSED_LOSSES:
        assert f"`{name}`" in PAGE
    assert "DistanceWeightedMiner" in PAGE and "DistanceWeightedMiner" in MINERS


@pytest.mark.parametrize(("name", "needs", "options"), ROWS, ids=[name for name, *_ in ROWS])
def test_a_row_is_true(name: str, needs: str, options: str) -> None:
    from pytorch_metric_learning import losses

    said = set(re.findall(r"`(\w+)`", options))
    if name in WRAPPERS:
        assert said == set(WRAPPERS[name][0])
        return
    data, _, by_rows = needs.strip().partition(", ")
    assert data == loss_needs(name)
    if name in OWN_LOSSES:
        assert said == set(inspect.signature(OWN_LOSSES[name]).parameters)
        loss = build_loss(name, {}, embedding_dim=4, n_groups=2, seed=0)
        assert loss.sharded == (by_rows == "by rows")
        return
    theirs = getattr(losses, name, losses.TripletMarginLoss)
    inner = {"loss_options"} if "loss" in said else set()
    assert said <= _option_names(theirs) | inner
    own = inspect.signature(theirs.__init__).parameters.values()
    named = {p.name for p in own if p.kind is p.POSITIONAL_OR_KEYWORD} - {"self", *FILLED_IN}
    assert named - {"triplets_per_anchor"} <= said, "an option that the page does not name"
