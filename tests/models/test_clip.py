"""CLIP and SigLIP: transformers' embeddings, towers by name, and artifacts that it loads."""

from __future__ import annotations

import io
import json
import logging
import os
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import ftray
from ftray.api import get_model
from ftray.callbacks import EvaluationCallback
from ftray.data.dataset import train_set
from ftray.errors import ConfigError, DataError, ModelError
from ftray.evaluation.encode import encode_texts
from ftray.losses.registry import build_loss
from ftray.media import Media
from ftray.models.artifact import save_encoder
from ftray.models.registry import load_encoder, locate_model
from ftray.models.routes import local_towers
from ftray.runtime.process_group import SingleProcess
from ftray.training.step import forward_backward, own_texts
from tests.models.captions import captioned, squares
from tests.models.pictures import picture, random_pictures
from tests.tiny import tiny_clip, tiny_image_model, tiny_siglip, tiny_text_model

TEXTS = [
    "a card",
    "Why was my transfer declined by the bank today, and when can i try to send it again?",
    "",
    "money",
    "time to pay the fee",
]
PICTURES = [*random_pictures(2), *random_pictures(2, (33, 90), 1), *random_pictures(1, (16, 16), 2)]
MAKERS = {"clip": tiny_clip, "siglip": tiny_siglip}
MIXED = [("", thing) for pair in zip(TEXTS, PICTURES, strict=True) for thing in pair]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("models")
    return {name: make(root / name) for name, make in MAKERS.items()}


def theirs(folder: Path, texts: list[str], pictures: list[Media]) -> tuple[Any, Any]:
    """What transformers makes of texts and of images, by the processor's own defaults."""
    from transformers import AutoModel, AutoProcessor

    model = AutoModel.from_pretrained(folder).eval()
    processor = AutoProcessor.from_pretrained(folder)
    whole = model.config.model_type == "siglip"  # as its page says it must be used
    tokens = processor(
        text=texts, padding="max_length" if whole else True, truncation=True, return_tensors="pt"
    )
    images = [Image.open(io.BytesIO(one.read())) for one in pictures]
    pixels = processor(images=images, return_tensors="pt")
    with torch.no_grad():
        text = model.get_text_features(**tokens).pooler_output
        image = model.get_image_features(**pixels).pooler_output
    return text.numpy(), image.numpy()


# ------------------------------------------------------------------ embeddings


@pytest.mark.parametrize("name", MAKERS)
def test_embeddings_are_those_of_transformers(folders: dict[str, Path], name: str) -> None:
    encoder = load_encoder(str(folders[name]))
    texts, images = theirs(folders[name], TEXTS, PICTURES)
    assert np.abs(encode_texts(encoder, TEXTS, batch_size=2) - texts).max() < 1e-5
    assert np.abs(encode_texts(encoder, PICTURES, batch_size=2) - images).max() < 1e-5
    found = encode_texts(encoder, [content for _, content in MIXED], batch_size=3)
    assert np.abs(found[0::2] - texts).max() < 1e-5 and np.abs(found[1::2] - images).max() < 1e-5
    assert encoder.embedding_dim == texts.shape[1] == found.shape[1]
    assert texts.std(axis=0).min() > 0.01 and images.std(axis=0).min() > 0.01


@pytest.mark.parametrize("name", MAKERS)
@pytest.mark.parametrize("layout", ["padded", "bucketed"])
def test_a_batch_of_both_is_what_each_is_alone(
    folders: dict[str, Path], name: str, layout: Any
) -> None:
    encoder = load_encoder(str(folders[name])).double().eval()
    together = encoder(encoder.collate(MIXED, layout))
    alone = torch.cat([encoder(encoder.collate([item], layout)) for item in MIXED])
    assert torch.allclose(together, alone, atol=1e-12, rtol=0)
    assert encoder(encoder.collate([], layout)).shape == (0, encoder.embedding_dim)


def test_texts_of_similar_length_share_a_forward_where_the_model_allows_it(
    folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ftray.models.layout.FORWARD_COST_TOKENS", 1)
    items = [("", text) for text in TEXTS]
    clip, siglip = (load_encoder(str(folders[name])).collate(items) for name in MAKERS)
    assert len(clip.forwards) > 2 and len(siglip.forwards) == 1
    assert [forward["input_ids"].shape for forward in siglip.forwards] == [(5, 16)]
    assert "attention_mask" not in siglip.forwards[0], "its tokenizer names none"
    assert clip.tokens <= clip.processed_tokens < 5 * 48 and siglip.processed_tokens == 5 * 16


@pytest.mark.parametrize("name", MAKERS)
def test_max_length_cuts_texts_and_stays_with_the_artifact(
    folders: dict[str, Path], tmp_path: Path, name: str
) -> None:
    whole = load_encoder(str(folders[name]))
    short = load_encoder(str(folders[name]), max_length=10)
    assert (whole.max_tokens(), short.max_tokens()) == ({"clip": 48, "siglip": 16}[name], 10)
    assert short.token_counts(TEXTS, "") == whole.token_counts(TEXTS, "")
    assert max(whole.token_counts(TEXTS, "")) > 16
    width = max(f["input_ids"].shape[1] for f in short.collate([("", TEXTS[1])]).forwards)
    assert width == 10
    save_encoder(short, tmp_path / "short")
    again = load_encoder(str(tmp_path / "short"))
    assert again.max_tokens() == 10
    texts, _ = theirs(tmp_path / "short", TEXTS, PICTURES)
    assert np.abs(encode_texts(again, TEXTS) - texts).max() < 1e-5
    with pytest.raises(ModelError, match="max_length = 3: at least 8 tokens"):
        load_encoder(str(folders[name]), max_length=3)
    with pytest.raises(ModelError, match=r"max_length = 99, but '.*' has only \d+ positions"):
        load_encoder(str(folders[name]), max_length=99)


def test_images_are_augmented_where_there_are_draws(folders: dict[str, Path]) -> None:
    encoder = load_encoder(str(folders["clip"]), augmentation="auto")

    def pixels(items: list[Any], draws: list[int] | None) -> torch.Tensor:
        given = None if draws is None else np.array(draws, np.uint64)
        forwards = encoder.collate(items, draws=given).forwards
        return forwards[-1]["pixel_values"]

    items = [("", "a card"), ("", PICTURES[0]), ("", PICTURES[1])]
    plain = pixels(items, None)
    one = pixels(items, [1, 2, 3])
    assert not torch.equal(one, plain)
    assert torch.equal(one, pixels(items, [9, 2, 3])), "a text needs no draw"
    assert torch.equal(one[0], pixels(items[1:2], [2])[0]), "whoever else is in the batch"
    still = load_encoder(str(folders["clip"]), augmentation="none")
    assert torch.equal(still.collate(items, draws=np.arange(3, dtype=np.uint64)).forwards[-1]
                       ["pixel_values"], plain)  # fmt: skip


def test_what_the_model_does_not_take_is_refused(folders: dict[str, Path]) -> None:
    encoder = load_encoder(str(folders["clip"]))
    cloud = Media(modality="points", address="chair.off", data=b"")
    with pytest.raises(ModelError, match=r"chair\.off is of the kind 'points'"):
        encoder.collate([("", "a card"), ("", cloud)])
    broken = picture(b"\x89PNG\r\n\x1a\nbroken")
    with pytest.raises(ftray.FtrayError, match="cannot be decoded"):
        encoder.collate([("", broken)])


# ------------------------------------------------------------------ training and artifacts


def stepped(encoder: Any, *, loss: str = "CLIPLoss", rate: float = 0.01) -> float:
    """One step of SGD on the squares; the loss."""
    train = train_set(captioned())
    rows = train.step_rows(np.arange(len(train)), roles_differ=encoder.roles_differ)
    alone = SingleProcess(torch.device("cpu"))
    own = own_texts(encoder, rows, "bucketed", alone)
    function = build_loss(
        loss, {}, embedding_dim=encoder.embedding_dim, n_groups=len(train), seed=0
    )
    encoder.train()
    result = forward_backward(encoder, function, rows, own, alone, seed=(0, 0, 0))
    with torch.no_grad():
        for parameter in encoder.parameters():
            if parameter.grad is not None:
                parameter -= rate * parameter.grad
    encoder.eval()
    return result.loss


@pytest.mark.parametrize("name", MAKERS)
def test_an_artifact_is_a_folder_of_transformers(
    folders: dict[str, Path], tmp_path: Path, name: str
) -> None:
    encoder = load_encoder(str(folders[name]))
    before = theirs(folders[name], TEXTS, PICTURES)
    stepped(encoder)
    save_encoder(encoder, tmp_path)
    after = theirs(tmp_path, TEXTS, PICTURES)
    for one in (encoder, load_encoder(str(tmp_path))):
        assert np.abs(encode_texts(one, TEXTS) - after[0]).max() < 1e-5
        assert np.abs(encode_texts(one, PICTURES) - after[1]).max() < 1e-5
    for old, new in zip(before, after, strict=True):
        assert np.abs(new - old).max() > 1e-3, "this tower has learned"
    files = {path.name for path in tmp_path.iterdir()}
    assert {Path(file).suffix for file in files} <= {".json", ".safetensors", ".txt", ".jinja"}
    facts = json.loads((tmp_path / "ftray.json").read_text())
    assert facts.pop("fingerprint") and facts == {"format": 1, "kind": "clip"}


def test_an_artifact_of_another_making_is_refused(folders: dict[str, Path], tmp_path: Path) -> None:
    import safetensors.torch as files

    encoder = load_encoder(str(folders["clip"]))
    save_encoder(encoder, tmp_path / "a")
    weights = tmp_path / "a" / "model.safetensors"
    tensors = files.load_file(weights)
    weights.unlink()
    torch.save(tensors, tmp_path / "a" / "pytorch_model.bin")
    with pytest.raises(ModelError, match="safetensors"):
        load_encoder(str(tmp_path / "a"))
    del tensors["visual_projection.weight"]
    files.save_file(tensors, weights, {"format": "pt"})
    with pytest.raises(ModelError, match=r"its files lack the weights 'visual_projection\.weight'"):
        load_encoder(str(tmp_path / "a"))


def test_models_that_are_no_clip_are_refused(folders: dict[str, Path], tmp_path: Path) -> None:
    from transformers import LlavaConfig, LlavaModel

    shutil.copytree(folders["clip"], tmp_path / "bare")
    for file in ("processor_config.json", "tokenizer.json", "tokenizer_config.json"):
        (tmp_path / "bare" / file).unlink()
    with pytest.raises(ModelError, match="bare' cannot be loaded"):
        load_encoder(str(tmp_path / "bare"))
    shutil.copytree(folders["clip"], tmp_path / "blind")
    (tmp_path / "blind" / "processor_config.json").unlink()
    with pytest.raises(ModelError, match=r"blind' cannot be loaded: .*preprocessor_config\.json"):
        load_encoder(str(tmp_path / "blind"))
    tower = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1}
    tower |= {"num_attention_heads": 1, "vocab_size": 9, "image_size": 16, "patch_size": 8}
    reads = LlavaConfig(
        text_config={"model_type": "llama", **tower},
        vision_config={"model_type": "clip_vision_model", **tower},
    )
    LlavaModel(reads).save_pretrained(tmp_path / "reads")
    for file in folders["clip"].glob("[pt]*.json"):  # its processor and tokenizer
        shutil.copy(file, tmp_path / "reads")
    with pytest.raises(ModelError, match="is a LlavaModel, which does not embed texts and images"):
        load_encoder(str(tmp_path / "reads"))


def test_loading_and_saving_say_nothing(
    folders: dict[str, Path], tmp_path: Path, capfd: Any, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        save_encoder(load_encoder(str(folders["clip"])), tmp_path)
    assert capfd.readouterr() == ("", "") and not caplog.records


# ------------------------------------------------------------------ frozen towers


@pytest.mark.parametrize("name", MAKERS)
@pytest.mark.parametrize("frozen", ["text", "image"])
def test_a_frozen_tower_does_not_learn(
    tmp_path: Path, name: str, frozen: str, folders: dict[str, Path]
) -> None:
    folder = MAKERS[name](tmp_path / "dropped", dropout=0.5)
    encoder = load_encoder(str(folder), options={"frozen": [frozen]})
    parts = {"text": "text_", "image": "vis"}
    before = {key: value.clone() for key, value in encoder.model.state_dict().items()}
    first = stepped(encoder)
    moved = {key for key, value in encoder.model.state_dict().items()
             if not torch.equal(value, before[key])}  # fmt: skip
    assert moved and not any(key.startswith(parts[frozen]) for key in moved)
    other = load_encoder(str(folder))
    assert stepped(other) != first, "dropout of the frozen tower is off"
    encoder.train()
    training = {key: part.training for key, part in encoder.model.named_children()}
    assert {key for key, on in training.items() if not on} == {
        key for key in training if key.startswith(parts[frozen])
    }
    with pytest.raises(ConfigError, match=r"model_options\.frozen"):
        load_encoder(str(folder), options={"frozen": ["vision"]})


# ------------------------------------------------------------------ towers by name


@pytest.mark.parametrize("name", MAKERS)
def test_a_tower_is_selected_by_its_name(folders: dict[str, Path], name: str) -> None:
    place, whole = folders[name], get_model(folders[name])
    for tower in ("text", "clip-text"):
        one = get_model(place, select_model=tower)
        assert one.modalities == {"text"} and one.towers == ()
        assert np.array_equal(encode_texts(one, TEXTS), encode_texts(whole, TEXTS))
        assert one.max_tokens() == whole.max_tokens()
        with pytest.raises(ModelError, match=r"The tower 'text' of '.*' takes text, and .* is im"):
            encode_texts(one, PICTURES)
    for tower in ("image", "clip-vision"):
        one = get_model(place, select_model=tower)
        assert one.modalities == {"image"} and one.max_tokens() is None
        assert np.array_equal(encode_texts(one, PICTURES), encode_texts(whole, PICTURES))
    with pytest.raises(ConfigError, match=r"towers 'text' and 'image'\. Did you mean 'clip-vi"):
        get_model(place, select_model="clip-visoin")


def test_models_of_one_tower_have_none_to_select(tmp_path: Path) -> None:
    folder = tiny_text_model(tmp_path / "text")
    with pytest.raises(ConfigError, match=r"has one tower\. Leave select_model away"):
        get_model(folder, select_model="clip-text")
    prompts = tiny_text_model(tmp_path / "prompts", prompts={"query": "find: "})
    whole, one = get_model(prompts), get_model(prompts, select_model="query")
    assert np.array_equal(encode_texts(one, TEXTS), encode_texts(whole, TEXTS, role="query"))
    assert one.modalities == {"text"}


def test_towers_are_known_before_a_model_is_loaded(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    for name in (str(folders["clip"]), str(folders["siglip"]), "clip-base-en", "two-towers"):
        assert local_towers(locate_model(name)) == ("text", "image"), name
    for name in (str(tiny_image_model(tmp_path)), "resnet50", "convnet"):
        assert local_towers(locate_model(name)) == (), name


def evaluated(
    place: Path, *, model: str | None = None, index_model: str | None = None, **options: bool
) -> dict[str, float]:
    return ftray.evaluate(
        get_model(place), captioned(**options), query_role=model, index_role=index_model, limit=5
    )


def test_an_evaluation_names_the_tower_of_each_side(folders: dict[str, Path]) -> None:
    place = folders["clip"]
    plain = evaluated(place)
    assert evaluated(place, model="clip-text", index_model="clip-vision") == plain
    assert evaluated(place, model="text", index_model="image") == plain
    turned = evaluated(place, image_first=True)
    assert evaluated(place, image_first=True, model="image", index_model="text") == turned != plain


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"model": "clip-vision", "index_model": "clip-text"},
            "the tower 'clip-vision' encodes image, but the queries are text. Name the tower for "
            "it with model, or leave",
        ),
        (
            {"model": "clip-vision"},
            "the tower 'clip-vision' encodes image, but the queries are text",
        ),
        ({"model": "clip-text"}, "the tower 'clip-text' encodes text, but the index is image"),
        ({"model": "clip-txt", "index_model": "image"}, "Did you mean 'clip-text'"),
        ({"model": "query", "index_model": "document"}, "has no tower 'query': it has 'text' and"),
    ],
)
def test_a_tower_that_does_not_fit_its_side_is_refused(
    folders: dict[str, Path], options: dict[str, str], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        evaluated(folders["clip"], **options)


# ------------------------------------------------------------------ a fit


def test_a_fit_learns_and_its_artifact_loads_in_transformers(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    run = ftray.fit(
        model=str(folders["clip"]),
        train_data=captioned(),
        loss="CLIPLoss",
        learning_rate=2e-3,
        epochs=20,
        batch_size=12,
        augmentation="none",
        num_workers=0,
        data_workers=0,
        storage_path=str(tmp_path),
        listeners=[],
        callbacks=[
            EvaluationCallback(captioned(), model="clip-text", index_model="clip-vision", limit=5)
        ],
    )
    metrics = run.metrics()
    assert metrics["after"]["ndcg_at_k"] > metrics["before"]["ndcg_at_k"] + 0.5
    pairs = squares()
    texts, pictures = [text for text, _ in pairs], [picture(data) for _, data in pairs]
    want = theirs(Path(run.artifact_id.removeprefix("file://")), texts, pictures)
    trained = get_model(run.artifact_id)
    assert np.abs(encode_texts(trained, texts) - want[0]).max() < 1e-5
    assert np.abs(encode_texts(trained, pictures) - want[1]).max() < 1e-5
    again = ftray.evaluate(trained, captioned(), limit=5)
    assert again == pytest.approx({name: metrics["after"][name] for name in again}, abs=1e-9)


# ------------------------------------------------------------------ encoding whatever is given


def test_encode_takes_images_in_any_form_and_texts(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    model = get_model(folders["clip"])
    data = [one.read() for one in PICTURES]
    images = [Image.open(io.BytesIO(one)) for one in data]
    paths = []
    for number, image in enumerate(images):
        paths.append(str(tmp_path / f"{number}.png"))
        image.save(paths[-1])
    want = encode_texts(model, PICTURES)
    for given in (paths, data, images, [np.asarray(image) for image in images]):
        assert np.array_equal(ftray.encode(model, given), want)
    one = get_model(folders["clip"], select_model="image")
    assert np.array_equal(ftray.encode(one, paths), want)
    assert np.array_equal(ftray.encode(model, TEXTS[:2]), encode_texts(model, TEXTS[:2]))
    of_texts = get_model(folders["clip"], select_model="text")
    assert np.array_equal(ftray.encode(of_texts, paths), encode_texts(model, paths)), "texts to it"
    with pytest.raises(DataError, match="is of the kind 'image', but the column 'text'"):
        ftray.encode(model, ["a card", images[0]])


def test_the_limit_of_a_tokenizer_without_one_is_the_models(tmp_path: Path) -> None:
    """As of SigLIP 2, whose texts are padded to 64 tokens."""
    folder = tiny_siglip(tmp_path)
    config = json.loads((folder / "tokenizer_config.json").read_text())
    del config["model_max_length"]
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    encoder = load_encoder(str(folder))
    assert encoder.max_tokens() == 16
    assert encoder.collate([("", "card")]).forwards[0]["input_ids"].shape == (1, 16)


def test_registry_names_load_from_the_hubs_cache(folders: dict[str, Path], tmp_path: Path) -> None:
    """Up to the network call: a model in the cache is loaded, of others one error says why not."""
    cached = {"openai/clip-vit-base-patch32": "clip", "google/siglip2-base-patch16-224": "siglip"}
    for name, kind in {**cached, "me/my-clip": "clip"}.items():
        cache = tmp_path / "hub" / f"models--{name.replace('/', '--')}"
        shutil.copytree(folders[kind], cache / "snapshots" / ("a" * 40))
        (cache / "refs").mkdir()
        (cache / "refs" / "main").write_text("a" * 40)
    code = """
        from ftray.errors import ModelError
        from ftray.models.registry import load_encoder
        for name in ("clip-base-en", "openai/clip-vit-base-patch32", "siglip-base", "me/my-clip"):
            encoder = load_encoder(name)
            print(type(encoder).__name__, encoder.name, encoder.embedding_dim)
        try:
            load_encoder("clip-large-en")
        except ModelError as error:
            print(error)
    """
    environment = {**os.environ, "HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        capture_output=True,
        text=True,
        env={**environment, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    *loaded, refused = done.stdout.strip().splitlines()
    assert loaded == [
        "ClipEncoder clip-base-en 24",
        "ClipEncoder openai/clip-vit-base-patch32 24",
        "ClipEncoder siglip-base 32",
        "ClipEncoder me/my-clip 24",
    ]
    assert "'clip-large-en' cannot be loaded from the Hugging Face hub" in refused
    assert "HF_HUB_OFFLINE is set" in refused
