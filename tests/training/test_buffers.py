"""Micro batches encode twice: buffers are updated once, and are what they were the first time."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from ftray.data.dataset import StepRows, train_set
from ftray.losses.registry import build_loss
from ftray.models.base import Features
from ftray.runtime.process_group import SingleProcess
from ftray.training import step as steps
from ftray.training.buffers import ReplayedBuffers
from ftray.training.step import MicroBatch, OwnTexts, forward_backward
from tests.models.tensors import labelled

torch.set_num_threads(1)

ALONE = SingleProcess(torch.device("cpu"))
LABELS = "aabbccdd"
SEED = (0, 0, 0)


class Scaled(nn.Module):
    """Divides by a running scale, after it took account of the batch, and counts batches."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("scale", torch.ones(()))
        self.register_buffer("seen", torch.zeros((), dtype=torch.long))
        self.register_buffer("fixed", torch.ones(3))

    def forward(self, rows: Tensor) -> Tensor:
        with torch.no_grad():
            if self.training:
                self.scale = 0.5 * self.scale + 0.5 * rows.abs().mean()
                self.seen += len(rows)
        return rows / self.scale


class Net(nn.Module):
    """An encoder of rows of numbers, such as a user brings."""

    couples_rows = False

    def __init__(self, middle: nn.Module) -> None:
        super().__init__()
        self.first, self.middle = nn.Linear(6, 8), middle
        self.last = nn.Linear(8, 4)

    def forward(self, features: Features) -> Tensor:
        rows = torch.tanh(self.first(features.forwards[0]["rows"]))
        out: Tensor = self.last(self.middle(rows))
        return out


class Instance(nn.InstanceNorm1d):
    """Each row by itself, with running statistics."""

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input.reshape(len(input), 2, 4)).reshape(len(input), 8)


MIDDLES: dict[str, Any] = {
    "running scale": Scaled,
    "instance norm": lambda: Instance(2, affine=True, track_running_stats=True),
    "spectral norm": lambda: nn.utils.parametrizations.spectral_norm(nn.Linear(8, 8)),
    "none": nn.Identity,
}


def net(name: str) -> Net:
    torch.manual_seed(0)
    return Net(MIDDLES[name]()).double().train()


def rows() -> tuple[StepRows, Tensor]:
    numbers = np.random.default_rng(0).normal(size=(len(LABELS), 6))
    train = train_set(
        labelled("features", [one.astype("<f4").tobytes() for one in numbers], LABELS)
    )
    step = train.step_rows(np.arange(len(LABELS)), roles_differ=False)
    return step, torch.from_numpy(numbers)


def cut(values: Tensor, size: int) -> OwnTexts:
    places = [np.arange(i, min(i + size, len(values))) for i in range(0, len(values), size)]
    made = [
        MicroBatch(
            places=own,
            features=Features(forwards=[{"rows": values[own]}], order=torch.arange(len(own))),
        )
        for own in places
    ]
    return OwnTexts(shares=[np.arange(len(values))], micro_batches=made)


def buffers(module: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in module.named_buffers()}


def by_hand(name: str, size: int) -> tuple[Net, list[Tensor]]:
    """Each micro batch encoded once, its graph kept, and plain autograd through all of them."""
    encoder = net(name)
    step, values = rows()
    own = cut(values, size)
    embeddings = torch.cat([encoder(micro.features) for micro in own.micro_batches])
    loss = build_loss("SupConLoss", {}, embedding_dim=4, n_groups=4, seed=0)
    inputs = steps.loss_inputs(step, embeddings.device)
    loss(embeddings, inputs, steps.shard_of(ALONE)).backward()
    return encoder, [p.grad for p in encoder.parameters() if p.grad is not None]


@pytest.mark.parametrize("name", MIDDLES)
@pytest.mark.parametrize("size", [1, 3])
def test_gradient_and_buffers_are_those_of_one_pass(name: str, size: int) -> None:
    want, gradients = by_hand(name, size)
    encoder = net(name)
    step, values = rows()
    loss = build_loss("SupConLoss", {}, embedding_dim=4, n_groups=4, seed=0)
    forward_backward(encoder, loss, step, cut(values, size), ALONE, seed=SEED)
    got = [p.grad for p in encoder.parameters() if p.grad is not None]
    assert len(got) == len(gradients)
    whole = torch.cat([g.reshape(-1) for g in gradients])
    there = torch.cat([g.reshape(-1) for g in got])
    assert (there - whole).norm() < 1e-9 * whole.norm()
    found, before = buffers(encoder), buffers(net(name))
    assert all(torch.equal(found[n], value) for n, value in buffers(want).items())
    moved = [n for n in found if not torch.equal(found[n], before[n])]
    assert bool(moved) == (name != "none")


class Branches(nn.Module):
    """Two ways for rows; one of them moves a vector in each forward, the other counts."""

    def __init__(self) -> None:
        super().__init__()
        self.ways = nn.ModuleDict(
            {
                "normed": nn.utils.parametrizations.spectral_norm(nn.Linear(8, 8)),
                "scaled": Scaled(),
                "plain": nn.Identity(),
            }
        )

    def forward(self, rows: Tensor, way: str) -> Tensor:
        out: Tensor = self.ways[way](rows)
        return out


@pytest.mark.parametrize("first", ["normed", "scaled", "plain"])
def test_any_micro_batch_may_be_the_first_to_take_a_branch(first: str) -> None:
    torch.manual_seed(0)
    encoder, values = Branches().train(), torch.randn(6, 8)
    ways = [first, "plain", "scaled", "normed", "normed", "scaled"]
    replayed = ReplayedBuffers(encoder, twice=True)

    def encoded() -> list[Tensor]:
        out = []
        for number, way in enumerate(ways):
            with replayed.of(number):
                out.append(encoder(values[number:], way))
        return out

    with torch.no_grad():
        once = encoded()
    left = buffers(encoder)
    twice = encoded()
    assert all(torch.equal(one, other) for one, other in zip(once, twice, strict=True))
    assert all(torch.equal(value, left[name]) for name, value in encoder.named_buffers())
    assert int(left["ways.scaled.seen"]) == 4 + 1 + 6 * (first == "scaled")


@pytest.mark.parametrize("name", ["running scale", "spectral norm"])
def test_without_it_the_gradient_or_the_buffers_would_be_others(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Nothing(steps.ReplayedBuffers):  # type: ignore[name-defined,misc]
        def __init__(self, encoder: Any, *, twice: bool) -> None:
            super().__init__(encoder, twice=False)

    monkeypatch.setattr(steps, "ReplayedBuffers", Nothing)
    with pytest.raises(AssertionError):
        test_gradient_and_buffers_are_those_of_one_pass(name, 3)


def test_one_pass_looks_at_no_buffers(monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = net("running scale")
    step, values = rows()
    loss = build_loss("SupConLoss", {}, embedding_dim=4, n_groups=4, seed=0)
    monkeypatch.setattr(Tensor, "clone", None)
    with steps.ReplayedBuffers(encoder, twice=False).of(0):  # type: ignore[attr-defined]
        encoder(cut(values, 8).micro_batches[0].features)
    monkeypatch.undo()
    forward_backward(encoder, loss, step, cut(values, 8), ALONE, seed=SEED)
    assert int(encoder.middle.seen) == 16  # type: ignore[arg-type]
