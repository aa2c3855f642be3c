"""Vision models of transformers: their embeddings, their files, their batch normalisation."""

from __future__ import annotations

import json
import os
import pickle
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
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm

from ftray.errors import ConfigError, ModelError
from ftray.models.artifact import write_artifact
from ftray.models.image import ImageEncoder
from ftray.models.kinds import kind_of
from ftray.models.norm import GlobalBatchNorm
from ftray.models.pictures import decoded
from ftray.models.registry import load_encoder
from ftray.record.storage import Storage
from tests.models.pictures import picture, random_pictures
from tests.tiny import tiny_image_model

KINDS = ["resnet", "vit", "dinov2", "efficientnet"]
PICTURES = [
    *random_pictures(3),
    *random_pictures(1, (32, 32), seed=1),
    picture(Image.new("L", (50, 33), 90)),
    picture(Image.new("RGBA", (33, 50), (200, 0, 0, 128))),
]
ITEMS = [("", one) for one in PICTURES]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    root = tmp_path_factory.mktemp("vision")
    return {kind: str(tiny_image_model(root / kind, kind)) for kind in KINDS}


def embedded(encoder: Any) -> Tensor:
    encoder.eval()
    with torch.no_grad():
        return encoder(encoder.collate(ITEMS))


def outputs(folder: str, **options: Any) -> Any:
    """What plain transformers gives."""
    from transformers import AutoImageProcessor, AutoModel

    model = AutoModel.from_pretrained(folder, use_safetensors=True).eval()
    processor = AutoImageProcessor.from_pretrained(folder)
    images = [decoded(one) for one in PICTURES]
    with torch.no_grad():
        return model(**processor(images=images, return_tensors="pt"), **options)


def by_hand(folder: str, pooling: str, **options: Any) -> Tensor:
    found = outputs(folder, **options)
    if pooling == "pooler":
        return found.pooler_output.flatten(1)
    last = found.last_hidden_state
    axes = (2, 3) if last.ndim == 4 else (1,)
    if pooling == "cls":
        return last[:, 0]
    return last.mean(axes) if pooling == "mean" else last.amax(axes)


@pytest.mark.parametrize("pooling", ["auto", "cls", "mean", "max", "pooler"])
@pytest.mark.parametrize("kind", KINDS)
def test_embeddings_are_those_of_transformers(
    folders: dict[str, str], kind: str, pooling: str
) -> None:
    options = {"pooling": pooling}
    if pooling == "cls" and kind in ("resnet", "efficientnet"):
        with pytest.raises(ConfigError, match=r"pooling = 'cls': .* has no class token"):
            load_encoder(folders[kind], options=options)
        return
    encoder = load_encoder(folders[kind], options=options)
    want = by_hand(folders[kind], "pooler" if pooling == "auto" else pooling)
    found = embedded(encoder)
    assert found.shape == (len(ITEMS), encoder.embedding_dim) == want.shape
    assert want.std(0).max() > 1e-3, "the images are told apart"
    assert (found - want).abs().max() <= 1e-6 * want.abs().max()


@pytest.mark.parametrize("kind", KINDS)
def test_an_artifact_is_a_transformers_folder(
    folders: dict[str, str], kind: str, tmp_path: Path
) -> None:
    encoder = load_encoder(folders[kind], options={"pooling": "mean"})
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter *= 1.1
    before = embedded(encoder)
    write_artifact(Storage(str(tmp_path)), encoder, {"base_model": kind})
    folder = tmp_path / "artifact"
    endings = {file.suffix for file in folder.iterdir()}
    assert endings == {".json", ".safetensors"}
    assert kind_of(str(folder))[0] == "image"
    again = load_encoder(str(folder))
    assert isinstance(again, ImageEncoder) and again.options.pooling == "mean"
    assert torch.equal(embedded(again), before)
    assert (by_hand(str(folder), "mean") - before).abs().max() <= 1e-6 * before.abs().max()
    with pytest.raises(ConfigError, match=r"pooling = 'max': .* was made with 'mean'"):
        load_encoder(str(folder), options={"pooling": "max"})
    load_encoder(str(folder), options={"batch_norm": "synced"})


@pytest.mark.parametrize(("kind", "size"), [("resnet", 48), ("vit", 48), ("dinov2", 24)])
def test_another_image_size(folders: dict[str, str], kind: str, size: int, tmp_path: Path) -> None:
    encoder = load_encoder(folders[kind], options={"image_size": size})
    assert encoder.collate(ITEMS).forwards[0]["pixel_values"].shape == (6, 3, size, size)
    before = embedded(encoder)
    write_artifact(Storage(str(tmp_path)), encoder, {})
    folder = str(tmp_path / "artifact")
    again = load_encoder(folder)
    assert torch.equal(embedded(again), before)
    more = {"interpolate_pos_encoding": True} if kind == "vit" else {}
    want = by_hand(folder, "pooler", **more)
    assert (want - before).abs().max() <= 1e-6 * before.abs().max()
    assert (before - embedded(load_encoder(folders[kind]))).abs().max() > 1e-3


def test_what_is_cut_off_at_the_edges_stays_the_same_share(folders: dict[str, str]) -> None:
    encoder: Any = load_encoder(folders["dinov2"], options={"image_size": 64})
    assert encoder.processor.size["shortest_edge"] == 72  # 36 for 32
    assert encoder.processor.crop_size["height"] == 64


def test_a_pooler_without_trained_weights_is_not_taken(
    folders: dict[str, str], tmp_path: Path
) -> None:
    """Checkpoints of classifiers have none; transformers would draw it at random."""
    from transformers import AutoModelForImageClassification

    classifier = AutoModelForImageClassification.from_pretrained(folders["vit"])
    classifier.save_pretrained(str(tmp_path))
    shutil.copy(f"{folders['vit']}/preprocessor_config.json", tmp_path)
    encoder = load_encoder(str(tmp_path))
    assert isinstance(encoder, ImageEncoder) and encoder.options.pooling == "cls"
    assert torch.allclose(embedded(encoder), by_hand(folders["vit"], "cls"), atol=1e-6)
    with pytest.raises(ConfigError, match="has no trained pooler"):
        load_encoder(str(tmp_path), options={"pooling": "pooler"})
    write_artifact(Storage(str(tmp_path / "run")), encoder, {})
    again = load_encoder(str(tmp_path / "run" / "artifact"))
    assert torch.equal(embedded(again), embedded(encoder))


def test_files_that_lack_other_weights_do_not_load(folders: dict[str, str], tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    shutil.copytree(folders["vit"], tmp_path, dirs_exist_ok=True)
    weights = load_file(tmp_path / "model.safetensors")
    lost = next(name for name in weights if name.startswith("layers.1.") or ".layer.1." in name)
    del weights[lost]
    save_file(weights, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(ModelError, match="its files lack the weights"):
        load_encoder(str(tmp_path))


def test_statistics_are_frozen_and_weights_of_batch_norm_train(folders: dict[str, str]) -> None:
    encoder = load_encoder(folders["resnet"])
    assert not encoder.couples_rows
    encoder.train()
    buffers = {name: value.clone() for name, value in encoder.named_buffers()}
    embeddings = encoder(encoder.collate(ITEMS))
    assert torch.equal(embeddings, embedded(load_encoder(folders["resnet"])))
    embeddings.square().sum().backward()
    assert all(torch.equal(value, buffers[name]) for name, value in encoder.named_buffers())
    norms = [layer for layer in encoder.modules() if isinstance(layer, _BatchNorm)]
    assert len(norms) > 3 and all(layer.weight.grad.abs().sum() > 0 for layer in norms)
    assert encoder.model.training and not norms[0].training  # type: ignore[union-attr]


def test_synced_statistics_are_those_of_the_batch(folders: dict[str, str]) -> None:
    encoder = load_encoder(folders["resnet"], options={"batch_norm": "synced"})
    assert encoder.couples_rows
    norms = [layer for layer in encoder.modules() if isinstance(layer, _BatchNorm)]
    assert all(isinstance(layer, GlobalBatchNorm) for layer in norms)
    frozen = embedded(encoder)
    encoder.train()
    assert (encoder(encoder.collate(ITEMS)) - frozen).abs().max() > 1e-3
    assert not load_encoder(folders["vit"], options={"batch_norm": "synced"}).couples_rows


def test_augmentation_follows_the_draws(folders: dict[str, str]) -> None:
    encoder = load_encoder(folders["vit"], augmentation="auto")
    draws = np.arange(len(ITEMS), dtype=np.uint64)

    def pixels(some: list[Any], draws: Any) -> Tensor:
        found: Tensor = encoder.collate(some, draws=draws).forwards[0]["pixel_values"]
        return found

    plain, changed = pixels(ITEMS, None), pixels(ITEMS, draws)
    different = (plain != changed).flatten(1).any(1)
    assert different[:4].all()
    assert torch.equal(pixels(ITEMS[2:4], draws[2:4]), changed[2:4])
    assert torch.equal(pixels(ITEMS, None), plain)


def test_no_items_are_no_forwards(folders: dict[str, str]) -> None:
    encoder = load_encoder(folders["resnet"]).double()
    features = encoder.collate([])
    found = encoder(features)
    assert features.forwards == [] and found.shape == (0, 32) and found.dtype == torch.float64


def test_a_folder_without_a_processor_says_so(folders: dict[str, str], tmp_path: Path) -> None:
    shutil.copytree(folders["vit"], tmp_path, dirs_exist_ok=True)
    (tmp_path / "preprocessor_config.json").unlink()
    with pytest.raises(ModelError, match=r"image processor \(preprocessor_config.json\) cannot be"):
        load_encoder(str(tmp_path))


def test_a_processor_that_gives_other_sizes_than_the_model_takes_is_refused(
    folders: dict[str, str], tmp_path: Path
) -> None:
    shutil.copytree(folders["vit"], tmp_path, dirs_exist_ok=True)
    file = tmp_path / "preprocessor_config.json"
    facts = json.loads(file.read_text())
    file.write_text(json.dumps({**facts, "size": {"height": 40, "width": 40}}))
    with pytest.raises(ModelError, match="takes no images of 3 x 40 x 40"):
        load_encoder(str(tmp_path))


@pytest.mark.parametrize(
    ("config", "kind"),
    [
        ({"model_type": "resnet"}, "image"),
        ({"model_type": "efficientnet"}, "image"),
        ({"model_type": "dinov2"}, "image"),
        ({"model_type": "dinov3_vit"}, "image"),
        ({"model_type": "convnextv2"}, "image"),
        ({"model_type": "swin"}, "image"),
        ({"model_type": "beit"}, "image"),
        ({"model_type": "vit_mae"}, "image"),
        ({"model_type": "clip_vision_model"}, "image"),
        ({"model_type": "siglip_vision_model"}, "image"),
        ({"model_type": "clip", "text_config": {}, "vision_config": {}}, "clip"),
        ({"model_type": "bert"}, "text"),
    ],
)
def test_the_type_of_a_model_tells_its_kind(config: Any, kind: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert kind_of(str(tmp_path))[0] == kind


class Trap:
    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> tuple[Any, ...]:
        return open, (str(self.canary), "w")


@pytest.mark.parametrize("instead", [False, True])
def test_nothing_is_unpickled(folders: dict[str, str], tmp_path: Path, instead: bool) -> None:
    encoder = load_encoder(folders["resnet"])
    write_artifact(Storage(str(tmp_path)), encoder, {})
    folder, canary = tmp_path / "artifact", tmp_path / "canary"
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Trap(canary)))
    if instead:
        (folder / "model.safetensors").unlink()
        with pytest.raises(ModelError, match="cannot be loaded"):
            load_encoder(str(folder))
    else:
        assert torch.equal(embedded(load_encoder(str(folder))), embedded(encoder))
    assert not canary.exists()


def test_registry_names_load_from_the_hubs_cache(folders: dict[str, str], tmp_path: Path) -> None:
    """Up to the network call: a model in the cache is loaded, of others one error says why not."""
    cache = tmp_path / "hub" / "models--microsoft--resnet-50"
    shutil.copytree(folders["resnet"], cache / "snapshots" / ("a" * 40))
    (cache / "refs").mkdir()
    (cache / "refs" / "main").write_text("a" * 40)
    code = """
        from ftray.errors import ModelError
        from ftray.models.registry import load_encoder
        encoder = load_encoder("resnet50")
        print(type(encoder).__name__, encoder.name, encoder.embedding_dim)
        try:
            load_encoder("vit")
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
    loaded, refused = done.stdout.strip().splitlines()
    assert loaded == "ImageEncoder resnet50 32"
    assert "'vit' cannot be loaded from the Hugging Face hub" in refused
    assert "HF_HUB_OFFLINE is set" in refused
