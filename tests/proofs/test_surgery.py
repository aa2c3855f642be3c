"""Contract 2 for what is done to a model: heads, a learnt pooling, frozen weights, on any workers.

Each case runs through the code that the loop calls, in float64: in this process, and on gloo ranks;
with and without micro batches; and as plain autograd over one forward of all things.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from ftray.config import FitConfig
from ftray.data.dataset import train_set
from ftray.data.readers import read_records
from ftray.losses.base import Shard
from ftray.losses.registry import build_loss
from ftray.models import layout as layouts
from ftray.models.base import Encoder
from ftray.models.norm import connect
from ftray.models.registry import load_encoder
from ftray.models.surgery import Surgery
from ftray.runtime.process_group import SingleProcess
from ftray.training.optim import build_optimizer
from ftray.training.step import forward_backward, loss_inputs, own_texts, seeded
from tests.models.captions import pair_records, squares
from tests.proofs.cases import DATA
from tests.proofs.gloo import WORLD_SIZES, run_ranks
from tests.tiny import tiny_clip, tiny_image_model, tiny_text_model

TOLERANCE = 1e-9
SEED = (3, 1, 2)


@dataclass(frozen=True)
class Case:
    """A step of a model.

    Attributes:
        model: which.
        options: of it.
        surgery: what is done to it.
        micro: things of a micro batch.
        trained: parts of the names of weights that must have a gradient.
        frozen: of those that must have none.
        many: whether the step is one of many things.
    """

    model: str
    options: dict[str, Any] = field(default_factory=dict)
    surgery: Surgery = field(default_factory=Surgery)
    micro: int | None = None
    trained: tuple[str, ...] = ()
    frozen: tuple[str, ...] = ()
    many: bool = True


ALL = Surgery(freeze=True, output_dim=8)
GEM = {"pooling": "gem"}
SOME = Surgery(freeze=("*.embeddings.*", "*.layer.0.*"), output_dim=8)
BODY = ("gem.p", "layer.1", "model.2.linear")
NET = {"channels": [4, 8], "image_size": 16, "colors": "rgb"}
STAGE = Surgery(freeze=("net.stage1",))
CASES: dict[str, Case] = {
    "text, gem and a head": Case("text", GEM, Surgery(output_dim=8), None, BODY),
    "text, gem, few": Case("text", GEM, Surgery(output_dim=8), None, BODY, many=False),
    "text, some frozen": Case("text", GEM, SOME, None, BODY, ("embeddings", "layer.0")),
    "text, some frozen, micro": Case("text", GEM, SOME, 2, BODY, ("embeddings", "layer.0")),
    "text, all frozen": Case("text", {}, ALL, None, ("model.2",), ("model.0",)),
    "text, all frozen, micro": Case("text", {}, ALL, 3, ("model.2",), ("model.0",)),
    "vit, gem and a head": Case("vit", GEM, Surgery(output_dim=8), None, ("pooling.p", "heads.")),
    "vit, gem, micro": Case("vit", GEM, Surgery(output_dim=8), 2, ("pooling.p", "heads.")),
    "convnet, a stage frozen": Case(
        "convnet", {**NET, **GEM}, STAGE, None, ("gem.p", "stage2", "output"), ("stage1",)
    ),
    "convnet, all frozen": Case("convnet", NET, ALL, None, ("heads.",), ("net.",)),
    "convnet, all frozen, micro": Case("convnet", NET, ALL, 2, ("heads.",), ("net.",)),
    "clip, a head": Case("clip", {}, Surgery(output_dim=8), None, ("heads.text", "heads.image")),
}


def rows_of(case: Case) -> Any:
    if case.model == "text":
        train = train_set(read_records(DATA["pairs, shared" if case.many else "pairs, ragged"]))
    elif case.model == "clip":
        train = train_set(pair_records(squares()[:7]))
    else:
        pictures = [image for _, image in squares()[:9]]
        train = train_set(
            read_records(
                [{"item": image, "label": f"c{i % 3}"} for i, image in enumerate(pictures)]
            )
        )
    return train.step_rows(np.arange(len(train)), roles_differ=False), train.n_groups


def made(case: Case, places: dict[str, str]) -> Encoder:
    place = places.get(case.model, case.model)
    encoder = load_encoder(place, options=case.options, surgery=case.surgery, seed=4).double()
    for name, weight in encoder.named_parameters():
        if name.endswith(".p"):  # the layers' equal tokens would else hide a wrong gradient
            assert weight.requires_grad and float(weight.detach()) == 3.0
    return encoder


def loss_of(case: Case, encoder: Encoder, groups: int) -> nn.Module:
    name = "CLIPLoss" if case.model in ("text", "clip") else "SupConLoss"
    width = encoder.embedding_dim
    return build_loss(name, {}, embedding_dim=width, n_groups=groups, seed=0).double()


def run_cases(collectives: Any, places: dict[str, str]) -> dict[str, Any]:
    """Each case on every rank."""
    return {name: one_step(case, places, collectives) for name, case in CASES.items()}


def one_step(case: Case, places: dict[str, str], collectives: Any) -> dict[str, Any]:
    encoder = made(case, places)
    if encoder.couples_rows:
        connect(encoder, collectives.all_reduce_sum if collectives.world_size > 1 else None)
    rows, groups = rows_of(case)
    loss = loss_of(case, encoder, groups)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(layouts, "FORWARD_COST_TOKENS", 1)
        own = own_texts(encoder, rows, "bucketed", collectives, case.micro, SEED)
    encoder.train()
    result = forward_backward(encoder, loss, rows, own, collectives, seed=SEED)
    config = FitConfig(model="m", train_data="-", optimizer="SGD", learning_rate=0.01)
    optimizer = build_optimizer(config, encoder, loss)
    found = {"loss": np.array([result.loss]), "gradient": gradient(encoder)}
    optimizer.step()
    state = [value.double().reshape(-1) for value in encoder.state_dict().values()]
    found["state"] = torch.cat(state).numpy()
    digest = hashlib.sha256(b"".join(vector.tobytes() for vector in found.values()))
    held = {id(weight) for group in optimizer.param_groups for weight in group["params"]}
    return {
        "vectors": found if collectives.rank == 0 else {},
        "digest": digest.hexdigest(),
        "learnt": {
            name: weight.grad is not None and bool(weight.grad.any())
            for name, weight in encoder.named_parameters()
        },
        "held": [name for name, weight in encoder.named_parameters() if id(weight) in held],
        "things": len(own.shares[collectives.rank]),
    }


def gradient(module: nn.Module) -> np.ndarray:
    parts = [torch.zeros_like(p) if p.grad is None else p.grad for p in module.parameters()]
    return torch.cat([part.reshape(-1) for part in parts]).numpy()


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    root = tmp_path_factory.mktemp("models")
    return {
        "text": str(tiny_text_model(root / "text")),
        "vit": str(tiny_image_model(root / "vit", "vit")),
        "clip": str(tiny_clip(root / "clip")),
    }


@pytest.fixture(scope="module")
def single(places: dict[str, str], one_thread: None) -> dict[str, Any]:
    return run_cases(SingleProcess(torch.device("cpu")), places)


@pytest.mark.parametrize("world_size", WORLD_SIZES)
def test_a_step_is_the_same_for_every_number_of_workers(
    single: dict[str, Any], places: dict[str, str], world_size: int
) -> None:
    tables = run_ranks(world_size, run_cases, places)
    for name, want in single.items():
        ranks = [table[name] for table in tables]
        for what, vector in want["vectors"].items():
            distance = np.linalg.norm(ranks[0]["vectors"][what] - vector)
            assert distance < TOLERANCE * np.linalg.norm(vector), (name, what, distance)
        assert all(rank["learnt"] == want["learnt"] for rank in ranks), name
        assert len({rank["digest"] for rank in ranks}) == 1, "the ranks drift apart"
        assert sum(rank["things"] for rank in ranks) == want["things"]


@pytest.mark.parametrize(
    ("whole", "cut"),
    [
        ("text, some frozen", "text, some frozen, micro"),
        ("text, all frozen", "text, all frozen, micro"),
        ("vit, gem and a head", "vit, gem, micro"),
        ("convnet, all frozen", "convnet, all frozen, micro"),
    ],
)
def test_micro_batches_change_nothing(single: dict[str, Any], whole: str, cut: str) -> None:
    for what, vector in single[whole]["vectors"].items():
        distance = np.linalg.norm(single[cut]["vectors"][what] - vector)
        assert distance < TOLERANCE * np.linalg.norm(vector), what


@pytest.mark.parametrize("name", CASES)
def test_what_is_trained_learns_and_what_is_frozen_has_no_gradient(
    single: dict[str, Any], name: str
) -> None:
    case, found = CASES[name], single[name]
    for part in case.trained:
        assert any(part in weight for weight, learns in found["learnt"].items() if learns), part
    for weight, learns in found["learnt"].items():
        if ".pooler." in weight:  # no embedding goes through it
            assert not learns and weight not in found["held"], weight
        elif any(part in weight for part in case.frozen):
            assert not learns and weight not in found["held"], weight
        else:
            assert weight in found["held"], weight


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.micro is None])
def test_a_step_is_plain_autograd(
    single: dict[str, Any], places: dict[str, str], name: str
) -> None:
    case = CASES[name]
    encoder = made(case, places)
    rows, groups = rows_of(case)
    loss = loss_of(case, encoder, groups)
    encoder.train()

    embeddings = encoder(encoder.collate(rows.texts, "padded"))
    with seeded(*SEED, -1):
        value = loss(embeddings, loss_inputs(rows, torch.device("cpu")), Shard())
    value.backward()
    want, got = gradient(encoder), single[name]["vectors"]
    assert float(value.detach()) == pytest.approx(float(got["loss"][0]), rel=TOLERANCE)
    assert np.linalg.norm(got["gradient"] - want) < TOLERANCE * np.linalg.norm(want)
