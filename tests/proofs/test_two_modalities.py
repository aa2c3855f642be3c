"""Contract 2 for texts and images together: a step of CLIP, or of two models, on any workers."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from ftray.data.dataset import train_set
from ftray.losses.registry import build_loss
from ftray.models import layout as layouts
from ftray.models.norm import connect
from ftray.models.registry import load_encoder
from ftray.runtime.process_group import SingleProcess
from ftray.training.step import forward_backward, own_texts
from tests.models.captions import pair_records, squares
from tests.proofs.gloo import WORLD_SIZES, Tables
from tests.tiny import tiny_clip, tiny_siglip, tiny_text_model

TOLERANCE = 1e-9
SEED = (3, 1, 2)
RATE = 0.01

# (model, loss, micro batch, pairs of each step): ragged, and with an image and a text twice
CASES: dict[str, tuple[str, str, int | None, int]] = {
    "CLIP": ("clip", "CLIPLoss", None, 11),
    "CLIP, fewer pairs than ranks": ("clip", "CLIPLoss", None, 3),
    "CLIP, micro batches": ("clip", "CLIPLoss", 2, 11),
    "CLIP, frozen texts": ("frozen clip", "CLIPLoss", None, 11),
    "SigLIP": ("siglip", "SigLIPLoss", None, 7),
    "two towers, images normalised together": ("two towers", "CLIPLoss", None, 11),
    "two towers, frozen texts": ("frozen towers", "SigLIPLoss", None, 11),
}


def rows_of(count: int) -> Any:
    """A step of pairs: the first text has two images, and the last image two texts."""
    pairs = squares()[:count]
    pairs += [(pairs[0][0], pairs[1][1]), (pairs[2][0], pairs[-1][1])]
    train = train_set(pair_records(pairs))
    return train.step_rows(np.arange(len(train)), roles_differ=False), train.n_groups


def run_cases(collectives: Any, models: dict[str, tuple[str, dict[str, Any]]]) -> dict[str, Any]:
    """Each case on every rank, by the code that the loop calls."""
    return {name: one_step(case, models, collectives) for name, case in CASES.items()}


def one_step(
    case: tuple[str, str, int | None, int],
    models: dict[str, tuple[str, dict[str, Any]]],
    collectives: Any,
) -> dict[str, Any]:
    model, loss_name, micro, count = case
    place, options = models[model]
    encoder = load_encoder(
        place, options=options, augmentation={"crop": 0.7, "shift": 0.1}
    ).double()
    if encoder.couples_rows:
        connect(encoder, collectives.all_reduce_sum if collectives.world_size > 1 else None)
    rows, groups = rows_of(count)
    width = encoder.embedding_dim
    loss = build_loss(loss_name, {}, embedding_dim=width, n_groups=groups, seed=0).double()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(layouts, "FORWARD_COST_TOKENS", 1)
        own = own_texts(encoder, rows, "bucketed", collectives, micro, SEED)
    encoder.train()
    result = forward_backward(encoder, loss, rows, own, collectives, seed=SEED)
    share = own.shares[collectives.rank]
    found = {"loss": np.array([result.loss])}
    for name, module in (("encoder", encoder), ("loss", loss)):
        found[f"{name} gradient"] = gradient(module)
        with torch.no_grad():
            for parameter in module.parameters():
                if parameter.grad is not None:
                    parameter -= RATE * parameter.grad
        state = [value.double().reshape(-1) for value in module.state_dict().values()]
        found[f"{name} state"] = torch.cat(state).numpy()
    digest = hashlib.sha256(b"".join(vector.tobytes() for vector in found.values()))
    return {
        "vectors": found if collectives.rank == 0 else {},
        "digest": digest.hexdigest(),
        "with gradient": [p.grad is not None for p in (*encoder.parameters(), *loss.parameters())],
        "texts": sum(isinstance(rows.texts[i][1], str) for i in share),
        "images": sum(not isinstance(rows.texts[i][1], str) for i in share),
    }


def gradient(module: nn.Module) -> np.ndarray:
    parts = [torch.zeros_like(p) if p.grad is None else p.grad for p in module.parameters()]
    return torch.cat([part.reshape(-1) for part in parts]).numpy()


@pytest.fixture(scope="module")
def tables(tmp_path_factory: pytest.TempPathFactory, one_thread: None) -> Tables:
    """World size to what each rank returned."""
    root = tmp_path_factory.mktemp("models")
    clip, siglip = str(tiny_clip(root / "clip")), str(tiny_siglip(root / "siglip"))
    towers = {
        "text": str(tiny_text_model(root / "text", normalize=False)),
        "image": "convnet",
        "image_options": {"channels": [4, 8], "output_dim": 16, "colors": "rgb", "image_size": 16},
    }
    models: dict[str, tuple[str, dict[str, Any]]] = {
        "clip": (clip, {}),
        "frozen clip": (clip, {"frozen": ["text"]}),
        "siglip": (siglip, {}),
        "two towers": ("two-towers", towers),
        "frozen towers": ("two-towers", {**towers, "frozen": ["text"]}),
    }
    return Tables(run_cases(SingleProcess(torch.device("cpu")), models), run_cases, models)


@pytest.mark.parametrize("world_size", WORLD_SIZES)
@pytest.mark.parametrize("name", CASES)
def test_a_step_is_the_same_for_every_number_of_workers(
    tables: Any, name: str, world_size: int
) -> None:
    want = tables[1][0][name]
    ranks = [table[name] for table in tables[world_size]]
    for what, vector in want["vectors"].items():
        norm, got = np.linalg.norm(vector), ranks[0]["vectors"][what]
        assert np.linalg.norm(got - vector) < TOLERANCE * norm, what
    assert all(rank["with gradient"] == want["with gradient"] for rank in ranks)
    assert len({rank["digest"] for rank in ranks}) == 1, "the ranks drift apart"


def test_micro_batches_change_nothing(tables: Any) -> None:
    whole, cut = (tables[1][0][name]["vectors"] for name in ("CLIP", "CLIP, micro batches"))
    for what, vector in whole.items():
        assert np.linalg.norm(cut[what] - vector) < TOLERANCE * np.linalg.norm(vector), what


@pytest.mark.parametrize("world_size", WORLD_SIZES)
def test_both_modalities_are_dealt_to_all_ranks(tables: Any, world_size: int) -> None:
    for name in CASES:
        ranks = [table[name] for table in tables[world_size]]
        for what, most in (("texts", 2), ("images", 1)):
            counts = [rank[what] for rank in ranks]
            assert max(counts) - min(counts) <= most, (name, what, counts)
    few = [table["CLIP, fewer pairs than ranks"] for table in tables[world_size]]
    for what in ("images", "texts"):
        assert (min(rank[what] for rank in few) == 0) == (world_size == 4), what


def test_the_cases_hold_what_they_should(tables: Any) -> None:
    """Both modalities, learned numbers, and weights that are left alone."""
    for name, (model, *_) in CASES.items():
        table = tables[1][0][name]
        assert np.abs(table["vectors"]["loss gradient"]).min() > 1e-12, name
        assert table["images"] > 0 and table["texts"] > 0
        silent = np.mean([not given for given in table["with gradient"]])
        assert (silent > 0.3) == model.startswith("frozen"), (name, silent)
