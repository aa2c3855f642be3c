"""Contract 2 for low-rank adapters, and for features of frozen weights that are computed once."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from ftray.data.dataset import TrainSet, train_set
from ftray.data.readers import read_records
from ftray.losses.registry import build_loss
from ftray.models import layout as layouts
from ftray.models.frozen import KnowingEncoder
from ftray.models.registry import load_encoder
from ftray.models.surgery import Surgery
from ftray.runtime.process_group import SingleProcess
from ftray.training import frozen
from ftray.training.frozen import FeatureMaker
from ftray.training.step import forward_backward, own_texts
from tests.models.captions import captioned
from tests.proofs.cases import sentences
from tests.proofs.gloo import WORLD_SIZES, run_ranks
from tests.tiny import tiny_clip, tiny_text_model

TOLERANCE = 1e-9
SEED = (5, 1, 2)
LORA = Surgery(lora={"r": 3, "lora_alpha": 7, "target_modules": ["query", "value", "dense"]})
HEAD = Surgery(freeze=True, output_dim=12)

# model, its options, surgery, layout, micro batch, whether features are kept
Case = tuple[str, dict[str, Any], Surgery, Any, int | None, bool]
CASES: dict[str, Case] = {
    "adapters, padded": ("text", {}, LORA, "padded", None, False),
    "adapters, packed": ("text", {}, LORA, "packed", None, False),
    "adapters, bucketed": ("text", {}, LORA, "bucketed", None, False),
    "adapters, micro batches": ("text", {}, LORA, "bucketed", 3, False),
    "head": ("text", {}, HEAD, "bucketed", None, False),
    "head, kept": ("text", {}, HEAD, "bucketed", None, True),
    "head, kept, micro batches": ("text", {}, HEAD, "packed", 3, True),
    "frozen texts": ("clip", {"frozen": ["text"]}, Surgery(), "bucketed", None, False),
    "frozen texts, kept": ("clip", {"frozen": ["text"]}, Surgery(), "bucketed", None, True),
    "projected texts": ("towers", {"frozen": ["text"]}, Surgery(), "bucketed", None, False),
    "projected texts, kept": ("towers", {"frozen": ["text"]}, Surgery(), "bucketed", None, True),
    "adapters beside frozen texts": (
        "clip",
        {"frozen": ["text"]},
        Surgery(lora={}),
        "bucketed",
        None,
        True,
    ),
}
SAME = {
    "adapters, padded": ("adapters, packed", "adapters, bucketed", "adapters, micro batches"),
    "head": ("head, kept", "head, kept, micro batches"),
    "frozen texts": ("frozen texts, kept",),
    "projected texts": ("projected texts, kept",),
}
KEPT = {name for name, case in CASES.items() if case[-1]}


def data_of(model: str) -> TrainSet:
    """22 texts, five of them in two rows each; or the first of the squares."""
    if model != "text":
        whole = train_set(captioned())
        return whole.subset(np.arange(9), "squares")
    texts = sentences(22, 3)
    pairs = [(i, i + 11) for i in range(11)] + [(i, 11 + (i + 3) % 5) for i in range(5)]
    return train_set(read_records([{"query": texts[q], "document": texts[d]} for q, d in pairs]))


def run_cases(collectives: Any, places: dict[str, tuple[str, dict[str, Any]]]) -> dict[str, Any]:
    """Each case on every rank, by the code that the loop calls."""
    return {name: one_step(case, places, collectives) for name, case in CASES.items()}


def one_step(
    case: Case, places: dict[str, tuple[str, dict[str, Any]]], collectives: Any
) -> dict[str, Any]:
    model, options, surgery, layout, micro, keeps = case
    place, own_options = places[model]
    encoder = load_encoder(place, options={**own_options, **options}, surgery=surgery).double()
    draw = torch.Generator().manual_seed(1)
    for name, weight in encoder.named_parameters():
        if ".lora_B." in name:  # which begins as zero: A would have no gradient
            weight.data = 0.3 * torch.randn(weight.shape, generator=draw, dtype=weight.dtype)
    data = data_of(model)
    knowing: Any = encoder
    kept = 0
    if keeps:
        features, _ = maker(encoder, collectives).made({"training": data})
        knowing, kept = KnowingEncoder(encoder, features), len(features)
    rows = data.step_rows(np.arange(len(data)), roles_differ=False)
    width = encoder.embedding_dim
    loss = build_loss("CLIPLoss", {}, embedding_dim=width, n_groups=data.n_groups, seed=0).double()
    forwards = 0

    def counted(*_: Any) -> None:
        nonlocal forwards
        forwards += 1

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(layouts, "FORWARD_COST_TOKENS", 1)
        own = own_texts(knowing, rows, layout, collectives, micro, SEED)
    encoder.train()
    texts = text_model(encoder).register_forward_hook(counted)
    result = forward_backward(knowing, loss, rows, own, collectives, seed=SEED)
    texts.remove()
    return {
        "loss": result.loss,
        "gradient": gradient(encoder),
        "trained": sum(weight.numel() for weight in encoder.parameters() if weight.requires_grad),
        "frozen with gradient": [
            name
            for name, weight in encoder.named_parameters()
            if weight.grad is not None and not weight.requires_grad
        ],
        "kept": kept,
        "forwards": forwards,
        "share": len(own.shares[collectives.rank]),
    }


def maker(encoder: Any, collectives: Any) -> FeatureMaker:
    return FeatureMaker(
        encoder=encoder,
        collectives=collectives,
        layout="bucketed",
        data_workers=0,
        on_progress=lambda *_: None,
        is_stopped=lambda: False,
    )


def text_model(encoder: Any) -> nn.Module:
    """What computes something of texts in each forward of them."""
    if encoder.kind == "two-towers":
        encoder = encoder.encoders["text"]
    if encoder.kind == "clip":
        return encoder.model.text_model
    return encoder.model[0]


def gradient(module: nn.Module) -> np.ndarray:
    parts = [torch.zeros_like(p) if p.grad is None else p.grad for p in module.parameters()]
    return torch.cat([part.reshape(-1) for part in parts]).numpy()


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[str, dict[str, Any]]]:
    root = tmp_path_factory.mktemp("models")
    text = str(tiny_text_model(root / "text"))
    convnet = {"channels": [4, 8], "norm": "group", "output_dim": 16, "colors": "rgb"}
    towers = {"text": text, "image": "convnet", "image_options": {**convnet, "image_size": 16}}
    return {
        "text": (text, {}),
        "clip": (str(tiny_clip(root / "clip")), {}),
        "towers": ("two-towers", {**towers, "output_dim": 10}),
    }


@pytest.fixture(scope="module")
def single(places: dict[str, tuple[str, dict[str, Any]]], one_thread: None) -> dict[str, Any]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(frozen, "BATCH", 4)
        return run_cases(SingleProcess(torch.device("cpu")), places)


def assert_equal(got: dict[str, Any], want: dict[str, Any], tolerance: float) -> None:
    norm = np.linalg.norm(want["gradient"])
    assert norm > 0
    assert np.linalg.norm(got["gradient"] - want["gradient"]) < tolerance * norm
    assert got["loss"] == pytest.approx(want["loss"], rel=tolerance)


@pytest.mark.parametrize("world_size", WORLD_SIZES)
def test_a_step_is_the_same_for_every_number_of_workers(
    places: dict[str, tuple[str, dict[str, Any]]], single: dict[str, Any], world_size: int
) -> None:
    ranks = run_ranks(world_size, run_cases, places)
    for name, want in single.items():
        for rank in ranks:
            assert_equal(rank[name], want, TOLERANCE)
            assert (rank[name]["kept"], rank[name]["frozen with gradient"]) == (want["kept"], [])
        shares = [rank[name]["share"] for rank in ranks]
        assert max(shares) - min(shares) <= 1, (name, shares)
        assert len({rank[name]["gradient"].tobytes() for rank in ranks}) == 1


@pytest.mark.parametrize("name", SAME)
def test_layout_micro_batches_and_kept_features_change_nothing(
    single: dict[str, Any], name: str
) -> None:
    for other in SAME[name]:
        assert_equal(single[other], single[name], 1e-12 if other in KEPT else TOLERANCE)


def test_the_cases_are_what_they_say(single: dict[str, Any]) -> None:
    for name, case in CASES.items():
        found = single[name]
        assert (found["kept"] > 0) is (name in KEPT)
        assert (found["forwards"] == 0) is (name in KEPT), "frozen weights are not asked again"
        assert found["frozen with gradient"] == []
        assert 0 < found["trained"] < found["gradient"].size, case
    assert single["head, kept"]["trained"] == 12 * 32
    assert single["head, kept"]["kept"] == 22
