"""What frozen weights make of things is computed once: of which things, and to the same numbers."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from ftray.data.dataset import TrainSet, train_set
from ftray.data.readers import read_records
from ftray.evaluation.spec import Side
from ftray.media import NO_BLOBS
from ftray.models.base import Encoder
from ftray.models.frozen import KeptFeatures, KnowingEncoder
from ftray.models.registry import load_encoder
from ftray.models.surgery import Surgery
from ftray.runtime.process_group import SingleProcess
from ftray.training import frozen
from ftray.training.frozen import FeatureMaker
from tests.models.captions import captioned
from tests.tiny import tiny_clip, tiny_image_model, tiny_text_model, tiny_two_towers

WHOLE = Surgery(freeze=True)
SHIFT = {"shift": 0.1}
ROLES = {"query": "find: ", "document": "text: "}

# model, options, surgery, augmentation, and what is kept: texts, images
CASES: dict[str, tuple[str, dict[str, Any], Surgery, Any, tuple[int, int]]] = {
    "texts": ("text", {}, WHOLE, "none", (8, 0)),
    "texts, narrower": ("text", {}, Surgery(freeze=True, output_dim=5), "none", (8, 0)),
    "texts with prompts": ("text", {"prompts": ROLES}, WHOLE, "none", (12, 0)),
    "texts of two routes": ("routes", {}, WHOLE, "none", (12, 0)),
    "a model that is trained": ("text", {}, Surgery(), "none", (0, 0)),
    "a model that is frozen in part": ("text", {}, Surgery(freeze=("*.layer.0",)), "none", (0, 0)),
    "images": ("image", {}, WHOLE, "none", (0, 9)),
    "images that are augmented": ("image", {}, WHOLE, SHIFT, (0, 0)),
    "clip": ("clip", {}, WHOLE, SHIFT, (9, 0)),
    "clip, frozen texts": ("clip", {"frozen": ["text"]}, Surgery(), SHIFT, (9, 0)),
    "clip, frozen images": ("clip", {"frozen": ["image"]}, Surgery(), "none", (0, 9)),
    "clip, frozen images that are augmented": (
        "clip",
        {"frozen": ["image"]},
        Surgery(),
        SHIFT,
        (0, 0),
    ),
    "two towers": ("towers", {"frozen": ["text", "image"]}, Surgery(), "none", (9, 9)),
    "two towers, frozen texts": ("towers", {"frozen": ["text"]}, Surgery(), SHIFT, (9, 0)),
    "two towers and all else": ("towers", {}, WHOLE, "none", (9, 9)),
}


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[str, dict[str, Any]]]:
    root = tmp_path_factory.mktemp("models")
    text = str(tiny_text_model(root / "text", dropout=0.3))
    image = str(tiny_image_model(root / "image"))
    return {
        "text": (text, {}),
        "routes": (str(tiny_two_towers(root / "routes")), {}),
        "image": (image, {}),
        "clip": (str(tiny_clip(root / "clip", dropout=0.3)), {}),
        "towers": ("two-towers", {"text": text, "image": image, "output_dim": 6}),
    }


def data_of(model: str) -> TrainSet:
    """Twelve texts of 8 words as queries and documents; images; or pairs of both."""
    words = "lost card top up my phone is wrong".split()
    if model in ("text", "routes"):
        pairs = [(words[i % 8], words[(i + 3) % 8]) for i in range(6)]
        return train_set(read_records([{"query": q, "document": d} for q, d in pairs]))
    whole = train_set(captioned())
    if model != "image":
        return whole.subset(np.arange(9), "squares")
    pictures = np.stack([whole.rows[:9, 1], whole.rows[1:10, 1]], axis=1)[:8]
    part = whole.subset(np.arange(8), "squares")
    return type(part)(**{**vars(part), "rows": pictures})


def kept_of(
    encoder: Encoder, data: TrainSet, is_stopped: Any = lambda: False, **more: Any
) -> tuple[KeptFeatures, list[str]]:
    maker = FeatureMaker(
        encoder=encoder,
        collectives=SingleProcess(torch.device("cpu")),
        layout="auto",
        data_workers=0,
        on_progress=lambda *_: None,
        is_stopped=is_stopped,
    )
    return maker.made({"training": data}, **more)


def evaluation(*texts: str, role: str = "") -> Any:
    side = Side("text", role, pa.array(texts, pa.large_string()), NO_BLOBS)
    return SimpleNamespace(name="held out", sides=(side,))


@pytest.mark.parametrize("case", CASES)
def test_kept_features_give_the_same_embeddings(
    places: dict[str, tuple[str, dict[str, Any]]], case: str
) -> None:
    model, options, surgery, augmentation, (texts, images) = CASES[case]
    place, own = places[model]
    encoder = load_encoder(
        place, options={**own, **options}, surgery=surgery, augmentation=augmentation
    ).double()
    data = data_of(model)
    step = data.step_rows(np.arange(len(data)), roles_differ=encoder.roles_differ)
    kept, _ = kept_of(encoder, data)
    held = [item for item in step.texts if item in kept]
    counts = [sum(isinstance(c, str) is text for _, c in held) for text in (True, False)]
    assert counts == [texts, images]
    assert len(kept) == texts + images
    encoder.train()  # with dropout, where it is not frozen
    knowing = KnowingEncoder(encoder, kept)
    draws = np.arange(len(step.texts), dtype=np.uint64)
    features = knowing.collate(step.texts, "auto", draws)
    plain = encoder.collate(step.texts, "auto", draws)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        got = knowing(features)
        torch.manual_seed(0)
        want = encoder(plain)
    assert (got - want).abs().max() < 1e-12 * max(1.0, float(want.detach().abs().max()))
    assert features.tokens <= plain.tokens
    assert (features.tokens == 0) is (texts > 0 or plain.tokens == 0)
    assert all(knowing.cost(content) == 1 for _, content in held)


def test_the_frozen_weights_are_not_asked_again(
    places: dict[str, tuple[str, dict[str, Any]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder = load_encoder(places["text"][0], surgery=WHOLE)
    data = data_of("text")
    kept, notes = kept_of(encoder, data)
    assert notes == [
        "Frozen: 8 texts of the training data are encoded once, up to the weights that are "
        "trained (1 kB)"
    ]
    monkeypatch.setattr(encoder, "first_part", None)
    monkeypatch.setattr(encoder, "encode", None)
    knowing = KnowingEncoder(encoder, kept)
    items = data.step_rows(np.arange(3), roles_differ=False).texts
    embeddings = knowing(knowing.collate(items))
    embeddings.sum().backward()
    trained = [w.grad for w in encoder.parameters() if w.requires_grad]
    assert len(trained) == 1 and trained[0] is not None and trained[0].abs().sum() > 0


def test_what_is_not_known_is_encoded(places: dict[str, tuple[str, dict[str, Any]]]) -> None:
    encoder = load_encoder(places["text"][0], surgery=WHOLE).double().eval()
    knowing = KnowingEncoder(encoder, kept_of(encoder, data_of("text"))[0])
    items = [("", "lost"), ("", "never seen"), ("", "phone"), ("query", "phone")]
    features = knowing.collate(items)
    assert len(features.forwards) == 2 and features.tokens > 0
    want = encoder(encoder.collate(items))
    assert (knowing(features) - want).abs().max() < 1e-12
    assert knowing(knowing.collate([])).shape == (0, 32)


def test_more_than_there_is_room_for_is_encoded_in_every_step(
    places: dict[str, tuple[str, dict[str, Any]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder = load_encoder(places["text"][0], surgery=WHOLE)
    size = 8 * 32 * 4
    monkeypatch.setattr(frozen, "MAX_BYTES", size - 1)
    kept, notes = kept_of(encoder, data_of("text"))
    assert len(kept) == 0
    assert notes == [
        "Frozen, but encoded in every step: what is made of the training data takes more than 1 kB"
    ]
    monkeypatch.setattr(frozen, "MAX_BYTES", size)
    spec = evaluation("lost", "never seen")
    kept, notes = kept_of(encoder, data_of("text"), evaluations=[spec])
    assert (len(kept), kept.size) == (8, size), "the evaluation is left out"
    assert notes[0] == (
        "Frozen, but encoded at each evaluation: for what is made of 'held out' there is no room "
        "left in 1 kB"
    )
    monkeypatch.setattr(frozen, "MAX_BYTES", size + 32 * 4)
    kept, _ = kept_of(encoder, data_of("text"), evaluations=[spec])
    assert len(kept) == 9 and ("", "never seen") in kept


def test_the_data_that_did_not_fit_is_named(
    places: dict[str, tuple[str, dict[str, Any]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder = load_encoder(places["text"][0], surgery=WHOLE)
    more = train_set(read_records([{"query": f"a {i}", "document": "why"} for i in range(3)]))
    maker = FeatureMaker(
        encoder=encoder,
        collectives=SingleProcess(torch.device("cpu")),
        layout="auto",
        data_workers=0,
        on_progress=lambda *_: None,
        is_stopped=lambda: False,
    )
    both = {"training": data_of("text"), "validation": more}
    kept, notes = maker.made(both)
    assert len(kept) == 12
    assert notes[0].startswith("Frozen: 12 texts of the training and validation data are encoded")
    monkeypatch.setattr(frozen, "MAX_BYTES", 11 * 32 * 4)
    kept, notes = maker.made(both)
    assert len(kept) == 0 and "made of the validation data takes more than 1 kB" in notes[0]


@pytest.mark.parametrize("model", ["text", "clip", "towers"])
def test_a_text_counts_once_where_roles_make_no_difference(
    places: dict[str, tuple[str, dict[str, Any]]], model: str
) -> None:
    place, own = places[model]
    encoder = load_encoder(place, options=own, surgery=WHOLE).double()
    data = data_of(model)
    text = next(c for _, c in data.step_rows(np.arange(1), roles_differ=False).texts)
    assert isinstance(text, str)
    before, _ = kept_of(encoder, data)
    specs = [evaluation(text, "new one", role=role) for role in ("query", "document", "text", "")]
    kept, _ = kept_of(encoder, data, evaluations=specs)
    assert len(kept) == len(before) + 1
    items = [("query", text), ("text", "new one")]
    knowing = KnowingEncoder(encoder.eval(), kept)
    assert knowing.collate(items).tokens == 0
    difference = knowing(knowing.collate(items)) - encoder(encoder.collate(items))
    assert difference.abs().max() < 1e-12


def test_a_prompt_of_both_roles_is_not_that_of_none(tmp_path: Any) -> None:
    """As `query: ` of E5 for texts of one kind: pairs are trained with it, as they are used."""
    folder = tiny_text_model(tmp_path, prompts={"query": "find: ", "document": "find: "})
    encoder = load_encoder(str(folder), surgery=WHOLE)
    assert encoder.roles_differ and encoder.towers == ()
    kept, _ = kept_of(encoder, data_of("text"))
    assert ("query", "lost") in kept and ("", "lost") not in kept


def test_a_run_that_is_to_stop_keeps_nothing(
    places: dict[str, tuple[str, dict[str, Any]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(frozen, "BATCH", 2)
    encoder = load_encoder(places["text"][0], surgery=WHOLE)
    asked = iter([False, False, True])
    kept, notes = kept_of(encoder, data_of("text"), is_stopped=lambda: next(asked))
    assert len(kept) == 0 and notes == ["The run is to stop: what is frozen is not encoded"]
    assert next(asked, None) is None


def test_what_augmentation_changes_is_said(
    places: dict[str, tuple[str, dict[str, Any]]],
) -> None:
    encoder = load_encoder(places["clip"][0], surgery=WHOLE, augmentation=SHIFT)
    _, notes = kept_of(encoder, data_of("clip"))
    assert notes[0] == (
        "Frozen, but encoded in every step: images, which are not the same twice (augmentation)"
    )
    assert notes[1].startswith("Frozen: 9 texts of the training data are encoded once")
