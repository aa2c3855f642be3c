"""Contract 2 for images: decoding, augmentation and batch normalisation on any number of workers.

Images are decoded from blobs and augmented by `own_texts`, as in the loop, on 1, 2 and 4 ranks, and
for the whole batch at once with plain autograd.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ftray.data.dataset import TrainSet, train_set
from ftray.losses.base import StepLoss
from ftray.losses.registry import build_loss
from ftray.models.base import Encoder
from ftray.models.norm import connect
from ftray.models.registry import load_encoder
from ftray.runtime.process_group import SingleProcess
from ftray.training import step as steps
from ftray.training.step import augmentation_draws, forward_backward, loss_inputs, own_texts
from tests.models.pictures import random_pictures
from tests.models.tensors import labelled
from tests.proofs.gloo import WORLD_SIZES, Tables
from tests.tiny import tiny_image_model

TOLERANCE = 1e-9
STEPS = 2
LABELS = "aaabbbcccdd"
ALONE = SingleProcess(torch.device("cpu"))


@dataclass(frozen=True, kw_only=True)
class Case:
    """A model, its augmentation, a loss, and how many images are encoded together."""

    model: str
    augmentation: Any
    loss: str
    options: tuple[tuple[str, Any], ...] = ()
    micro_batch_size: int | None = None


CASES = {
    "convnet, norm of the batch": Case(
        model="convnet",
        augmentation={"shift": 0.1, "rotate": 10, "noise": 0.05},
        loss="ArcFaceLoss",
        options=(("channels", (4, 8)), ("image_size", 12), ("output_dim", 6), ("colors", "rgb")),
    ),
    "resnet, frozen norms": Case(model="resnet", augmentation="auto", loss="SupConLoss"),
    "resnet, frozen norms, micro batches": Case(
        model="resnet", augmentation="auto", loss="SupConLoss", micro_batch_size=2
    ),
    "resnet, norms of the batch": Case(
        model="resnet",
        augmentation="auto",
        loss="SupConLoss",
        options=(("batch_norm", "synced"),),
    ),
}
MUTATIONS = ["convnet, norm of the batch", "resnet, frozen norms"]


@dataclass(frozen=True)
class Outcome:
    """What some steps gave."""

    losses: list[float]
    vectors: dict[str, np.ndarray]


def data() -> TrainSet:
    pictures = random_pictures(len(LABELS), (24, 20))
    return train_set(labelled("image", [one.data for one in pictures], LABELS))  # type: ignore[misc]


def made(case: Case, folder: str) -> tuple[Encoder, StepLoss, torch.optim.Optimizer]:
    encoder = load_encoder(
        folder if case.model == "resnet" else case.model,
        options=dict(case.options),
        augmentation=case.augmentation,
    ).double()
    loss = build_loss(case.loss, {}, embedding_dim=encoder.embedding_dim, n_groups=4, seed=0)
    parameters = [*encoder.parameters(), *loss.double().parameters()]
    return encoder, loss, torch.optim.SGD(parameters, lr=0.05)


def flat(tensors: Any) -> np.ndarray:
    return torch.cat([tensor.detach().double().reshape(-1).clone() for tensor in tensors]).numpy()


def trained(collectives: Any, case: Case, folder: str) -> Outcome:
    encoder, loss, optimizer = made(case, folder)
    connect(encoder, collectives.all_reduce_sum)
    train = data()
    losses, vectors = [], {}
    for number in range(STEPS):
        seed = (3, 0, number)
        rows = train.step_rows(np.arange(len(train)), roles_differ=False)
        encoder.train()
        own = own_texts(encoder, rows, "bucketed", collectives, case.micro_batch_size, seed)
        losses.append(forward_backward(encoder, loss, rows, own, collectives, seed=seed).loss)
        vectors[f"gradient {number}"] = flat(
            p.grad for p in encoder.parameters() if p.grad is not None
        )
        optimizer.step()
    vectors["weights"] = flat([*encoder.parameters(), *loss.parameters()])
    vectors["buffers"] = flat(encoder.buffers())
    return Outcome(losses, vectors)


def oracle(case: Case, folder: str) -> Outcome:
    """All images of the step in one forward, and plain autograd."""
    encoder, loss, optimizer = made(case, folder)
    train = data()
    losses, vectors = [], {}
    for number in range(STEPS):
        rows = train.step_rows(np.arange(len(train)), roles_differ=False)
        encoder.train()
        optimizer.zero_grad()
        draws = augmentation_draws((3, 0, number), len(rows.texts))
        embeddings = encoder(encoder.collate(rows.texts, draws=draws))
        value = loss(embeddings, loss_inputs(rows, embeddings.device), steps.shard_of(ALONE))
        value.backward()
        losses.append(float(value.detach()))
        vectors[f"gradient {number}"] = flat(
            p.grad for p in encoder.parameters() if p.grad is not None
        )
        optimizer.step()
    vectors["weights"] = flat([*encoder.parameters(), *loss.parameters()])
    vectors["buffers"] = flat(encoder.buffers())
    return Outcome(losses, vectors)


def run(collectives: Any, folder: str) -> dict[str, dict[str, Outcome]]:
    """All cases, then some with a mistake; on every rank."""
    found = {name: trained(collectives, case, folder) for name, case in CASES.items()}
    mutated = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            steps,
            "augmentation_draws",
            lambda seed, items: augmentation_draws((seed[0] + collectives.rank, *seed[1:]), items),
        )
        for name in MUTATIONS:
            mutated[name] = trained(collectives, CASES[name], folder)
    return {"cases": found, "mutated": mutated}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    root: Path = tmp_path_factory.mktemp("vision")
    return str(tiny_image_model(root / "resnet"))


@pytest.fixture(scope="module")
def outcomes(folder: str, one_thread: None) -> Tables:
    """World size to what each rank gave."""
    return Tables(run(ALONE, folder), run, folder)


def distance(got: Outcome, want: Outcome) -> float:
    """The farthest of the losses and vectors, each relative to its own size."""
    assert got.vectors.keys() == want.vectors.keys()
    pairs = [(got.vectors[name], want.vectors[name]) for name in want.vectors]
    pairs += [(np.array([a]), np.array([b])) for a, b in zip(got.losses, want.losses, strict=True)]
    return max(float(np.linalg.norm(a - b) / np.linalg.norm(b)) for a, b in pairs)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("world_size", [1, *WORLD_SIZES])
def test_steps_are_those_of_the_whole_batch_at_once(
    outcomes: Any, folder: str, world_size: int, name: str
) -> None:
    want = oracle(CASES[name], folder)
    assert want.losses[1] != want.losses[0] and np.linalg.norm(want.vectors["gradient 0"]) > 1e-3
    ranks = [rank["cases"][name] for rank in outcomes[world_size]]
    for got in ranks:
        assert distance(got, want) < TOLERANCE
    for vector in ("weights", "buffers"):
        assert len({rank.vectors[vector].tobytes() for rank in ranks}) == 1


@pytest.mark.parametrize("name", MUTATIONS)
@pytest.mark.parametrize("world_size", WORLD_SIZES)
def test_draws_that_depend_on_the_worker_are_noticed(
    outcomes: Any, folder: str, world_size: int, name: str
) -> None:
    got = outcomes[world_size][0]["mutated"][name]
    assert distance(got, oracle(CASES[name], folder)) > 1000 * TOLERANCE
