"""Contract 2: micro batches change nothing, whatever is encoded and however it is laid out.

Every loss with texts: test_every_loss.py; several workers: there, and in test_images.py and
test_two_modalities.py. Here: every kind of model, every layout, every kind of data.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ftray.data.dataset import TrainSet, train_set
from ftray.data.readers import read_records
from ftray.losses.registry import build_loss
from ftray.models import layout as layouts
from ftray.models.registry import load_encoder
from ftray.runtime.process_group import SingleProcess
from ftray.training.step import forward_backward, own_texts
from tests.models.captions import pair_records, squares
from tests.models.pictures import random_pictures
from tests.models.tensors import labelled
from tests.proofs.cases import LAYOUTS, sentences
from tests.tiny import tiny_clip, tiny_image_model, tiny_siglip, tiny_text_model

torch.set_num_threads(1)

TOLERANCE = 1e-9
ALONE = SingleProcess(torch.device("cpu"))
SEED = (3, 1, 2)
TEXTS = sentences(30, 11)


def of_texts(*names: str, **more: list[Any]) -> TrainSet:
    """Ten rows with a column of texts for each name."""
    columns = {name: TEXTS[i * 10 : i * 10 + 10] for i, name in enumerate(names)} | more
    rows = [
        dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)
    ]
    return train_set(read_records(rows, where="train_data"))


# kind of data to (rows, loss)
DATA: dict[str, tuple[Callable[[], TrainSet], str]] = {
    "labelled": (lambda: of_texts("item", label=list("aabbccddee")), "TripletMarginLoss"),
    "pairs": (lambda: of_texts("query", "document"), "MultipleNegativesRankingLoss"),
    "triplets": (lambda: of_texts("query", "document", "negative"), "TripletMarginLoss"),
    "scored pairs": (
        lambda: of_texts("query", "document", score=[i / 10 for i in range(10)]),
        "CosineSimilarityLoss",
    ),
}


def gradient(encoder: Any, data: TrainSet, loss_name: str, layout: Any, micro: int | None) -> Any:
    """The loss of a step, its gradient, and how many micro batches there were."""
    rows = data.step_rows(np.arange(len(data)), roles_differ=encoder.roles_differ)
    loss = build_loss(
        loss_name, {}, embedding_dim=encoder.embedding_dim, n_groups=data.n_groups, seed=0
    ).double()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(layouts, "FORWARD_COST_TOKENS", 1)  # many buckets for few texts
        own = own_texts(encoder, rows, layout, ALONE, micro, SEED)
    encoder.train()
    result = forward_backward(encoder, loss, rows, own, ALONE, seed=SEED)
    parts = [p.grad for p in (*encoder.parameters(), *loss.parameters()) if p.grad is not None]
    vector = torch.cat([part.reshape(-1) for part in parts])
    return result.loss, vector, len(own.micro_batches)


def check_same(encoder: Any, data: TrainSet, loss: str, layout: Any) -> None:
    value, whole, one = gradient(encoder, data, loss, "padded", None)
    assert one == 1 and float(whole.norm()) > 0
    for micro in (1, 3):
        cut_value, cut, several = gradient(encoder, data, loss, layout, micro)
        assert several >= 3
        assert cut_value == pytest.approx(value, rel=TOLERANCE)
        assert (cut - whole).norm() < TOLERANCE * whole.norm(), micro


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return load_encoder(str(tiny_text_model(tmp_path_factory.mktemp("text")))).double()


@pytest.mark.parametrize("kind", DATA)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_texts_of_every_kind_of_data_in_every_layout(text: Any, kind: str, layout: Any) -> None:
    made, loss = DATA[kind]
    check_same(text, made(), loss, layout)


@pytest.mark.parametrize("kind", ["resnet", "vit"])
def test_images(tmp_path: Path, kind: str) -> None:
    pictures = [one.data for one in random_pictures(8, (24, 20))]
    data = train_set(labelled("image", pictures, "aabbccdd"))  # type: ignore[arg-type]
    folder = str(tiny_image_model(tmp_path / kind, kind))
    check_same(
        load_encoder(folder, augmentation={"shift": 0.1}).double(), data, "SupConLoss", "auto"
    )


@pytest.mark.parametrize("kind", ["clip", "siglip", "two towers"])
@pytest.mark.parametrize("loss", ["CLIPLoss", "SigLIPLoss"])
def test_texts_and_images_together(tmp_path: Path, kind: str, loss: str) -> None:
    if kind == "two towers":
        options = {
            "text": str(tiny_text_model(tmp_path / "text", normalize=False)),
            "image": str(tiny_image_model(tmp_path / "image", "vit")),
        }
        encoder = load_encoder("two-towers", options=options)
    else:
        make = tiny_clip if kind == "clip" else tiny_siglip
        encoder = load_encoder(str(make(tmp_path / kind)))
    check_same(encoder.double(), train_set(pair_records(squares()[:6])), loss, "bucketed")
