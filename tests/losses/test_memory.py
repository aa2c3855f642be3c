"""CrossBatchMemory as a run needs it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from ftray.errors import ConfigError
from ftray.losses.base import LossInputs, Shard, StepLoss
from ftray.losses.registry import build_loss

DIM = 4


def built(**options: Any) -> StepLoss:
    given = {"loss": "ContrastiveLoss", "memory_size": 8} | options
    return build_loss("CrossBatchMemory", given, embedding_dim=DIM, n_groups=9, seed=0)


def value(loss: StepLoss, seed: int, labels: list[int]) -> float:
    items = torch.randn(len(labels), DIM, generator=torch.Generator().manual_seed(seed))
    return float(loss(items.requires_grad_(), inputs(labels), Shard()).detach())


def inputs(labels: list[int]) -> LossInputs:
    rows = torch.arange(len(labels))[:, None]
    return LossInputs(
        labels=torch.tensor(labels),
        label_items=rows[:, 0],
        columns=rows,
        text_ids=rows,
        scores=torch.zeros(0),
    )


def state(loss: StepLoss) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in loss.state_dict().items()}


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_a_step_is_compared_with_the_steps_before_it() -> None:
    alone = value(built(), 2, [3, 4])
    loss = built()
    value(loss, 1, [3, 5, 6])
    assert value(loss, 2, [3, 4]) != alone
    forgotten = built(memory_size=2)
    value(forgotten, 1, [3, 5])
    assert value(forgotten, 2, [3, 4]) == alone, "two places hold this step and nothing else"


def test_validation_reads_the_memory_and_leaves_it_as_it_was() -> None:
    loss = built()
    value(loss, 1, [0, 1, 2, 3, 4])
    before, alone = state(loss), value(built(), 2, [0, 1, 8, 7, 6])
    loss.eval()
    seen = value(loss, 2, [0, 1, 8, 7, 6])  # would go round the end of the memory
    assert seen != alone
    assert same(state(loss), before)
    loss.train()
    assert value(loss, 2, [0, 1, 8, 7, 6]) == seen
    assert not same(state(loss), before)


def test_a_memory_that_is_read_back_goes_on_bit_equal() -> None:
    one, two = built(), built()
    for seed in range(3):
        value(one, seed, [0, 1, 2])
    two.load_state_dict(state(one))
    for seed in range(3, 6):
        assert value(one, seed, [seed % 3, 1, 2]) == value(two, seed, [seed % 3, 1, 2])
    assert same(state(one), state(two))


@pytest.mark.parametrize("training", [True, False])
def test_a_loss_that_needs_positives_finds_them_in_the_memory(training: bool) -> None:
    loss = built(loss="NCALoss")
    assert value(loss, 0, [0, 1, 2]) == 0
    loss.train(training)
    assert value(loss, 1, [0, 3, 4]) > 0
    assert value(loss, 2, [5, 6, 7]) == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"loss": None}, "loss_options.loss = None: CrossBatchMemory needs the name of a loss"),
        ({"loss": "ArcFaceLoss"}, "loss_options.loss = ArcFaceLoss: CrossBatchMemory needs"),
        ({"loss": "SupConLos"}, "Did you mean 'SupConLoss'?"),
        ({"memory_size": 0}, "loss_options.memory_size = 0: a positive whole number"),
        ({"memory": 5}, "CrossBatchMemory has no such option. Did you mean 'memory_size'?"),
        ({"memory_size": True}, "loss_options.memory_size = True: a positive whole number"),
        ({"loss_options": [1]}, "loss_options.loss_options = [1]: options by name are expected"),
        ({"loss_options": {"margin": 1}}, "loss_options.loss_options.margin: ContrastiveLoss has"),
    ],
)
def test_wrong_options_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        built(**options)
    assert message in str(caught.value)


def test_it_says_how_many_texts_it_can_take() -> None:
    assert built().max_items == 8
