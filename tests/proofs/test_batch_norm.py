"""Contract 2 where rows depend on each other: statistics of the global batch, on any workers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from ftray.clouds import to_npy_bytes
from ftray.data.dataset import StepRows, train_set
from ftray.errors import RunFailedError
from ftray.losses.base import StepLoss
from ftray.losses.registry import build_loss
from ftray.models.base import Draws, Encoder, Features, Item
from ftray.models.norm import connect, synced
from ftray.models.registry import load_encoder
from ftray.runtime.process_group import SingleProcess
from ftray.training.step import forward_backward, loss_inputs, own_texts, shard_of, validation_loss
from tests.models.tensors import labelled, vector_bytes
from tests.proofs.gloo import WORLD_SIZES, Tables

TOLERANCE = 1e-9
STEPS = 3
SIDE = 4
ALONE = SingleProcess(torch.device("cpu"))
LOSSES = {"SupConLoss": {}, "ArcFaceLoss": {}}


MUTATIONS = ["statistics of the rank's rows", "no gradient through the others"]


class Net(Encoder):
    """Two kinds of batch normalisation between layers, over rows of 16 numbers."""

    kind = "net"
    modalities = frozenset({"features"})

    def __init__(self) -> None:
        super().__init__("net")
        torch.manual_seed(1)
        self.net = nn.Sequential(
            nn.Unflatten(1, (1, SIDE, SIDE)),
            nn.Conv2d(1, 3, 3),
            nn.BatchNorm2d(3),
            nn.Tanh(),
            nn.Flatten(),
            nn.BatchNorm1d(12, affine=False, momentum=0.3),
            nn.Linear(12, 6),
            nn.BatchNorm1d(6),
        )

    @property
    def own_dim(self) -> int:
        return 6

    def collate(
        self, items: Sequence[Item], layout: Any = "bucketed", draws: Draws | None = None
    ) -> Features:
        if not items:
            return Features(forwards=[], order=torch.zeros(0, dtype=torch.long))
        rows = np.stack([np.frombuffer(item.data, "<f4") for _, item in items])  # type: ignore
        forward = {"rows": torch.from_numpy(rows.copy())}
        return Features(forwards=[forward], order=torch.arange(len(items)))

    def encode(self, inputs: dict[str, Any]) -> Tensor:
        return self.net(inputs["rows"])

    def save(self, folder: Path) -> dict[str, Any]:
        raise AssertionError("not saved")


@dataclass(frozen=True)
class Outcome:
    """What some steps gave."""

    losses: list[float]
    vectors: dict[str, np.ndarray]


def steps() -> list[StepRows]:
    """Steps of 11 or 12 rows far from zero, one in two classes: shares are not equal."""
    rng = np.random.default_rng(0)
    found = []
    for number in range(STEPS):
        vectors = rng.normal(5, 2, (11 + number % 2, SIDE * SIDE))
        labels = ["abc"[i % 3] for i in range(len(vectors))]
        records = labelled(
            "features",
            [*map(vector_bytes, vectors), vector_bytes(vectors[0])],
            [*labels, "b"],
        )
        train = train_set(records)
        found.append(train.step_rows(np.arange(len(train)), roles_differ=False))
    return found


def few() -> StepRows:
    """Three rows."""
    vectors = np.random.default_rng(0).normal(5, 2, (3, SIDE * SIDE))
    train = train_set(labelled("features", [*map(vector_bytes, vectors)], "aab"))
    return train.step_rows(np.arange(3), roles_differ=False)


def made_loss(name: str) -> StepLoss:
    return build_loss(name, LOSSES[name], embedding_dim=6, n_groups=3, seed=0).double()


def flat(tensors: Any) -> np.ndarray:
    return torch.cat([tensor.detach().double().reshape(-1).clone() for tensor in tensors]).numpy()


def run(collectives: Any, mutations: list[str | None]) -> dict[str | None, Any]:
    """Some steps with each loss, then with each mistake; on every rank."""
    found: dict[str | None, Any] = {
        mutation: {name: trained(collectives, name, mutation) for name in LOSSES}
        for mutation in mutations
    }
    found["pointnet"] = clouds_trained(collectives)
    if collectives.world_size == 4:
        with pytest.raises(RunFailedError, match="3 distinct rows, fewer than the 4 workers"):
            encoder, rows = Net(), few()
            encoder.couples_rows = True
            own = own_texts(encoder, rows, "bucketed", collectives)
            forward_backward(encoder, made_loss("SupConLoss"), rows, own, collectives)
    return found


def trained(collectives: Any, loss_name: str, mutation: str | None = None) -> Outcome:
    encoder = Net()
    assert synced(encoder)
    encoder.double()
    encoder.couples_rows = True
    connect(encoder, reducer(collectives, mutation))
    loss = made_loss(loss_name)
    optimizer = torch.optim.SGD([*encoder.parameters(), *loss.parameters()], lr=0.1)
    losses, vectors = [], {}
    for number, rows in enumerate(steps()):
        encoder.train()
        own = own_texts(encoder, rows, "bucketed", collectives)
        result = forward_backward(encoder, loss, rows, own, collectives, seed=(0, 0, number))
        losses.append(result.loss)
        vectors[f"gradient {number}"] = flat(p.grad for p in encoder.parameters())
        optimizer.step()
    vectors["weights"] = flat(encoder.parameters())
    vectors["buffers"] = flat(encoder.buffers())
    encoder.eval()
    rows = steps()[0]
    own = own_texts(encoder, rows, "bucketed", collectives)
    losses.append(validation_loss(encoder, loss, rows, own, collectives))
    return Outcome(losses, vectors)


def clouds_trained(collectives: Any) -> Outcome:
    """Two steps of PointNet++ over augmented clouds."""
    options = {"points": 32, "width": 0.05, "output_dim": 6}
    encoder = load_encoder("pointnet-base", options=options, augmentation="auto").double()
    connect(encoder, collectives.all_reduce_sum)
    clouds = np.random.default_rng(0).normal(size=(9, 50, 3))
    train = train_set(labelled("points", [to_npy_bytes(cloud) for cloud in clouds], "abc" * 3))
    rows = train.step_rows(np.arange(9), roles_differ=False)
    loss = made_loss("SupConLoss")
    optimizer = torch.optim.SGD(encoder.parameters(), lr=0.1)
    losses, vectors = [], {}
    for number in range(2):
        encoder.train()
        seed = (0, 0, number)
        own = own_texts(encoder, rows, "bucketed", collectives, seed=seed)
        losses.append(forward_backward(encoder, loss, rows, own, collectives, seed=seed).loss)
        vectors[f"gradient {number}"] = flat(p.grad for p in encoder.parameters())
        optimizer.step()
    vectors["weights"] = flat(encoder.parameters())
    vectors["buffers"] = flat(encoder.buffers())
    return Outcome(losses, vectors)


def reducer(collectives: Any, mutation: str | None) -> Any:
    """The sum over the ranks, or a mistake in its place."""
    if mutation == "statistics of the rank's rows":
        return None

    def forwards_alone(tensor: Tensor) -> None:
        if tensor.dim() == 1:  # statistics are vectors; the backward pass sums two at once
            collectives.all_reduce_sum(tensor)

    if mutation == "no gradient through the others":
        return forwards_alone
    return collectives.all_reduce_sum


def oracle(loss_name: str) -> Outcome:
    """torch's layers on the whole batch, plain autograd."""
    encoder = Net().double()
    loss = made_loss(loss_name)
    optimizer = torch.optim.SGD([*encoder.parameters(), *loss.parameters()], lr=0.1)
    losses, vectors = [], {}
    for number, rows in enumerate(steps()):
        encoder.train()
        optimizer.zero_grad()
        value = whole(encoder, loss, rows)
        value.backward()
        losses.append(float(value.detach()))
        vectors[f"gradient {number}"] = flat(p.grad for p in encoder.parameters())
        optimizer.step()
    vectors["weights"] = flat(encoder.parameters())
    vectors["buffers"] = flat(encoder.buffers())
    encoder.eval()
    losses.append(float(whole(encoder, loss, steps()[0]).detach()))
    return Outcome(losses, vectors)


def whole(encoder: Net, loss: StepLoss, rows: StepRows) -> Tensor:
    embeddings = encoder(encoder.collate(rows.texts))
    value: Tensor = loss(embeddings, loss_inputs(rows, embeddings.device), shard_of(ALONE))
    return value


@pytest.fixture(scope="module")
def outcomes(one_thread: None) -> Tables:
    """World size to what each rank gave."""
    return Tables(run(ALONE, [None]), run, [None, *MUTATIONS])


def distance(got: Outcome, want: Outcome) -> float:
    """The farthest of the losses and vectors, each relative to its own size."""
    pairs = [(got.vectors[name], want.vectors[name]) for name in want.vectors]
    pairs += [(np.array([a]), np.array([b])) for a, b in zip(got.losses, want.losses, strict=True)]
    return max(float(np.linalg.norm(a - b) / np.linalg.norm(b)) for a, b in pairs)


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("world_size", [1, *WORLD_SIZES])
def test_steps_are_those_of_torchs_layers_on_the_whole_batch(
    outcomes: Any, world_size: int, loss: str
) -> None:
    want = oracle(loss)
    ranks = [rank[None][loss] for rank in outcomes[world_size]]
    for got in ranks:
        assert distance(got, want) < TOLERANCE
    for name in ("weights", "buffers"):
        assert len({rank.vectors[name].tobytes() for rank in ranks}) == 1, "the ranks drift apart"


@pytest.mark.parametrize("world_size", WORLD_SIZES)
def test_point_clouds_are_learned_the_same_on_any_number_of_workers(
    outcomes: Any, world_size: int
) -> None:
    want = outcomes[1][0]["pointnet"]
    assert want.losses[0] != want.losses[1] and np.abs(want.vectors["gradient 0"]).max() > 1e-3
    for rank in outcomes[world_size]:
        assert distance(rank["pointnet"], want) < TOLERANCE


@pytest.mark.parametrize("mutation", MUTATIONS)
@pytest.mark.parametrize("world_size", WORLD_SIZES)
def test_a_mistake_is_noticed(outcomes: Any, world_size: int, mutation: str) -> None:
    got = outcomes[world_size][0][mutation]["SupConLoss"]
    assert distance(got, oracle("SupConLoss")) > 1000 * TOLERANCE
