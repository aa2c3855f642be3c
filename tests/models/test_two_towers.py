"""Any text model beside any image model: projections, frozen towers, and the artifact of both."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import ftray
from ftray.api import get_model
from ftray.callbacks import EvaluationCallback
from ftray.data.dataset import train_set
from ftray.errors import ConfigError, ModelError, RunFailedError
from ftray.evaluation.encode import encode_texts
from ftray.losses.registry import build_loss
from ftray.models.artifact import save_encoder
from ftray.models.base import Encoder
from ftray.models.registry import load_encoder
from ftray.runtime.process_group import SingleProcess
from ftray.training.step import OwnTexts, forward_backward, own_texts
from tests.models.captions import captioned
from tests.models.pictures import random_pictures
from tests.tiny import tiny_clip, tiny_image_model, tiny_text_model

TEXTS = ["a card", "why was my transfer declined by the bank today?", "", "money", "pay the fee"]
PICTURES = random_pictures(5, (32, 32))
MIXED = [("", thing) for pair in zip(TEXTS, PICTURES, strict=True) for thing in pair]
CONVNET = {"channels": [4, 8], "output_dim": 16, "colors": "rgb", "image_size": 16}
IMAGES: dict[str, dict[str, Any]] = {
    "convnet": {"image": "convnet", "image_options": CONVNET},
    "convnet, as wide as the texts": {
        "image": "convnet",
        "image_options": {**CONVNET, "output_dim": 32, "norm": "group"},
    },
    "resnet": {"image": "resnet"},
    "another width": {"image": "convnet", "image_options": CONVNET, "output_dim": 12},
}


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    root = tmp_path_factory.mktemp("towers")
    text = tiny_text_model(root / "text", dropout=0.5, normalize=False)
    return {"text": str(text), "resnet": str(tiny_image_model(root / "resnet"))}


def options_of(places: dict[str, str], name: str, **more: Any) -> dict[str, Any]:
    chosen = dict(IMAGES[name])
    chosen["image"] = places.get(chosen["image"], chosen["image"])
    return {"text": places["text"], **chosen, **more}


def made(places: dict[str, str], name: str, **more: Any) -> Encoder:
    return load_encoder("two-towers", options=options_of(places, name, **more), seed=3)


def stepped(encoder: Encoder, rate: float = 0.1) -> float:
    """One step of SGD on the squares; the loss."""
    train = train_set(captioned())
    rows = train.step_rows(np.arange(len(train)), roles_differ=encoder.roles_differ)
    alone = SingleProcess(torch.device("cpu"))
    own = own_texts(encoder, rows, "bucketed", alone)
    function = build_loss(
        "CLIPLoss", {}, embedding_dim=encoder.embedding_dim, n_groups=len(train), seed=0
    )
    encoder.train()
    result = forward_backward(encoder, function, rows, own, alone)
    with torch.no_grad():
        for parameter in encoder.parameters():
            if parameter.grad is not None:
                parameter -= rate * parameter.grad
    encoder.eval()
    return result.loss


@pytest.mark.parametrize("name", IMAGES)
def test_embeddings_are_the_projected_ones_of_each_model(places: dict[str, str], name: str) -> None:
    encoder = made(places, name).double().eval()
    options = options_of(places, name)
    text = load_encoder(options["text"]).double().eval()
    image = load_encoder(options["image"], options=options.get("image_options"), seed=3).double()
    found = encoder(encoder.collate(MIXED))
    assert encoder.modalities == {"text", "image"} and encoder.towers == ("text", "image")
    assert encoder.embedding_dim == found.shape[1] == options.get("output_dim", 32)
    for tower, own, things, rows in (
        ("text", text, TEXTS, found[0::2]),
        ("image", image.eval(), PICTURES, found[1::2]),
    ):
        layer: Any = encoder.projections[tower]  # type: ignore[index]
        plain = own(own.collate([("", thing) for thing in things]))
        torch.testing.assert_close(rows, plain @ layer.weight.T + layer.bias)
        same = own.embedding_dim == encoder.embedding_dim
        assert torch.equal(layer.weight, torch.eye(*layer.weight.shape).double()) == same
        assert bool(layer.bias.any()) != same
    alone = torch.cat([encoder(encoder.collate([item], "padded")) for item in MIXED])
    torch.testing.assert_close(found, alone, atol=1e-12, rtol=0)
    assert encoder(encoder.collate([])).shape == (0, encoder.embedding_dim)


def test_projections_are_drawn_from_the_seed(places: dict[str, str]) -> None:
    one, same = made(places, "convnet"), made(places, "convnet")
    other = load_encoder("two-towers", options=options_of(places, "convnet"), seed=4)
    weights = [one.state_dict(), same.state_dict(), other.state_dict()]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    for name in ("projections.image.weight", "encoders.image.net.stage1.conv.weight"):
        names = [key for key in weights[0] if key.startswith(name.rsplit(".", 2)[0])]
        assert any(not torch.equal(weights[0][key], weights[2][key]) for key in names), name


@pytest.mark.parametrize("name", IMAGES)
def test_the_artifact_needs_nothing_of_what_it_was_made_of(
    places: dict[str, str], tmp_path: Path, name: str
) -> None:
    moved = {key: str(tmp_path / key) for key in places}
    for key, place in places.items():
        shutil.copytree(place, moved[key])
    encoder = made(moved, name, text_options={})
    stepped(encoder)
    save_encoder(encoder, tmp_path / "artifact")
    for place in moved.values():
        shutil.rmtree(place)
    shutil.move(tmp_path / "artifact", tmp_path / "elsewhere")
    again = get_model(tmp_path / "elsewhere")
    things = [content for _, content in MIXED]
    assert np.abs(encode_texts(again, things) - encode_texts(encoder, things)).max() < 1e-5
    files = {path.suffix for path in (tmp_path / "elsewhere").rglob("*") if path.is_file()}
    assert files <= {".json", ".safetensors", ".txt", ".md"}
    facts = json.loads((tmp_path / "elsewhere" / "ftray.json").read_text())
    assert facts["kind"] == "two-towers"
    assert facts["options"]["output_dim"] == encoder.embedding_dim
    # each tower is a model of its own, in the format of its field
    from sentence_transformers import SentenceTransformer

    theirs = SentenceTransformer(str(tmp_path / "elsewhere" / "text"), device="cpu")
    tower = get_model(tmp_path / "elsewhere" / "text")
    assert np.abs(theirs.encode(TEXTS) - encode_texts(tower, TEXTS)).max() < 1e-5
    assert get_model(tmp_path / "elsewhere" / "image").modalities == {"image"}


def test_an_artifact_keeps_its_towers(places: dict[str, str], tmp_path: Path) -> None:
    save_encoder(made(places, "convnet", frozen=["text"]), tmp_path / "a")
    plain = load_encoder(str(tmp_path / "a"))
    assert all(p.requires_grad or "pooler" in name for name, p in plain.named_parameters())
    frozen = load_encoder(str(tmp_path / "a"), options={"frozen": ["image"]})
    still = [name for name, p in frozen.named_parameters() if not p.requires_grad]
    assert {name.split(".")[1] for name in still if "pooler" not in name} == {"image"}
    with pytest.raises(ConfigError, match=r"model_options\.text = 'minilm': .* was made with"):
        load_encoder(str(tmp_path / "a"), options={"text": "minilm"})
    (tmp_path / "a" / "projections.safetensors").write_bytes(b"\x80\x04.")
    with pytest.raises(ModelError, match="cannot be loaded"):
        load_encoder(str(tmp_path / "a"))
    shutil.rmtree(tmp_path / "a" / "text")
    with pytest.raises(ModelError, match="There is no model folder"):
        load_encoder(str(tmp_path / "a"))


def graph_noted(encode: Any, tower: str, graphs: dict[str, bool]) -> Any:
    def noting(inputs: dict[str, Any]) -> torch.Tensor:
        embeddings: torch.Tensor = encode(inputs)
        graphs[tower] = embeddings.requires_grad
        return embeddings

    return noting


@pytest.mark.parametrize("frozen", ["text", "image"])
def test_a_frozen_tower_costs_no_backward_and_does_not_change(
    places: dict[str, str], frozen: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder = made(places, "convnet", frozen=[frozen])
    before = {key: value.clone() for key, value in encoder.state_dict().items()}
    first = stepped(encoder)
    changed = {".".join(key.split(".")[:2]) for key, value in encoder.state_dict().items()
               if not torch.equal(value, before[key])}  # fmt: skip
    other = {"text": "image", "image": "text"}[frozen]
    assert changed == {f"encoders.{other}", "projections.text", "projections.image"}
    graphs = {}
    for tower in ("text", "image"):
        model: Any = encoder.encoders[tower]  # type: ignore[index]
        monkeypatch.setattr(model, "encode", graph_noted(model.encode, tower, graphs))
    encoder.train()
    assert encoder(encoder.collate(MIXED)).requires_grad
    assert graphs == {frozen: False, other: True}, "the graph ends at the projection"
    assert encoder.couples_rows == (frozen == "text")
    if frozen == "text":  # it has dropout
        again = made(places, "convnet", frozen=["text"])
        assert stepped(again) == first


def test_models_that_do_not_fit_are_refused(places: dict[str, str], tmp_path: Path) -> None:
    def refused(**options: Any) -> str:
        with pytest.raises(ConfigError) as caught:
            load_encoder("two-towers", options=options)
        return str(caught.value)

    clip = str(tiny_clip(tmp_path / "clip"))
    message = refused(text="convnet", image="convnet")
    assert message == (
        "model_options.text = 'convnet' takes image: give a model that takes text alone"
    )
    assert "takes image and text" in refused(text=places["text"], image=clip)
    assert "'convnet' has no option 'channel'. Did you mean 'channels'" in refused(
        text=places["text"], image="convnet", image_options={"channel": [3]}
    )
    assert "'two-towers' has no option 'txt'. Did you mean 'text'" in refused(txt="minilm")


def test_towers_are_selected_by_name(places: dict[str, str], tmp_path: Path) -> None:
    encoder = made(places, "resnet")
    save_encoder(encoder, tmp_path)
    text, image = (get_model(tmp_path, select_model=name) for name in ("text", "clip-vision"))
    assert np.array_equal(encode_texts(text, TEXTS), encode_texts(get_model(tmp_path), TEXTS))
    found = encode_texts(image, PICTURES)
    assert np.array_equal(found, encode_texts(get_model(tmp_path), PICTURES))
    assert text.max_tokens() == 64 and image.max_tokens() is None
    assert text.token_counts(["a card"], "") == [4]


def test_texts_have_no_role(places: dict[str, str], tmp_path: Path) -> None:
    text = tiny_text_model(tmp_path / "prompts", prompts={"query": "find: "})
    encoder = made({**places, "text": str(text)}, "convnet")
    assert not encoder.roles_differ
    one, other = (encode_texts(encoder, TEXTS, role=role) for role in ("", "query"))
    assert np.array_equal(one, other)


def test_every_worker_needs_an_image_where_images_are_normalised_together(
    places: dict[str, str],
) -> None:
    """Ranks without one would wait for ever in the exchange of statistics."""
    encoder = made(places, "convnet")
    train = train_set(captioned())
    rows = train.step_rows(np.arange(3), roles_differ=False)
    alone = SingleProcess(torch.device("cpu"))
    own = own_texts(encoder, rows, "bucketed", alone)
    images = [i for i, (_, content) in enumerate(rows.texts) if not isinstance(content, str)]
    texts = [i for i in range(6) if i not in images]
    uneven = OwnTexts(shares=[np.array(images), np.array(texts)], micro_batches=own.micro_batches)
    loss = build_loss("CLIPLoss", {}, embedding_dim=32, n_groups=24, seed=0)
    with pytest.raises(RunFailedError, match="A step has 3 distinct rows"):
        forward_backward(encoder, loss, rows, uneven, alone)
    even = OwnTexts(shares=[np.arange(3), np.arange(3, 6)], micro_batches=own.micro_batches)
    group = made(places, "convnet, as wide as the texts")
    for model, shares in ((group, uneven), (encoder, even)):
        forward_backward(model, loss, rows, shares, alone)


def test_a_fit_with_a_frozen_text_model(places: dict[str, str], tmp_path: Path) -> None:
    run = ftray.fit(
        model="two-towers",
        model_options=options_of(places, "convnet, as wide as the texts", frozen=["text"]),
        train_data=captioned(),
        loss="CLIPLoss",
        learning_rate=1e-2,
        epochs=20,
        batch_size=12,
        augmentation="none",
        num_workers=0,
        data_workers=0,
        storage_path=str(tmp_path),
        listeners=[],
        callbacks=[EvaluationCallback(captioned(), model="text", index_model="image", limit=5)],
    )
    metrics = run.metrics()
    assert metrics["after"]["ndcg_at_k"] > metrics["before"]["ndcg_at_k"] + 0.4
    trained = get_model(run.artifact_id, select_model="text")
    again = ftray.evaluate(get_model(run.artifact_id), captioned(), limit=5)
    assert again == pytest.approx({name: metrics["after"][name] for name in again}, abs=1e-9)
    start = load_encoder(places["text"])
    tower = get_model(f"{run.artifact_id.removeprefix('file://')}/text")
    assert np.array_equal(encode_texts(tower, TEXTS), encode_texts(start, TEXTS))
    assert np.abs(encode_texts(trained, TEXTS) - encode_texts(start, TEXTS)).max() > 1e-3
