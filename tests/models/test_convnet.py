"""The net from scratch: its sizes, its options, its files, and what it does to images."""

from __future__ import annotations

import io
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torch.nn import functional

from ftray.errors import ConfigError, DataError, ModelError
from ftray.models.artifact import write_artifact
from ftray.models.base import Encoder
from ftray.models.norm import GlobalBatchNorm
from ftray.models.registry import load_encoder
from ftray.record.storage import Storage
from tests.models.pictures import picture, random_pictures

FASHION_MNIST = {"mean": [72.94 / 255], "std": [90.02 / 255]}
OMNIGLOT = {
    "channels": [64, 64, 64, 64],
    "downsample": "maxpool",
    "output_dim": None,
    "invert": True,
}
EMOJI = {
    "channels": [48, 96, 192, 192],
    "pooling": "meanmax",
    "output_dim": 384,
    "colors": "rgb",
    "image_size": 72,
}


def made(**options: Any) -> Encoder:
    return load_encoder("convnet", options=options)


def embedded(encoder: Encoder, pictures: list[Any]) -> torch.Tensor:
    encoder.eval()
    with torch.no_grad():
        return encoder(encoder.collate([("", one) for one in pictures]))


@pytest.mark.parametrize(
    ("options", "parameters", "dim"),
    [(FASHION_MNIST, 224_256, 64), (OMNIGLOT, 111_936, 64), (EMOJI, 689_856, 384)],
    ids=["Fashion-MNIST", "Omniglot", "emoji"],
)
def test_the_nets_of_the_benchmarks(options: Any, parameters: int, dim: int) -> None:
    encoder = made(**options)
    assert sum(p.numel() for p in encoder.parameters()) == parameters
    assert encoder.embedding_dim == dim
    assert embedded(encoder, random_pictures(3)).shape == (3, dim)
    assert encoder.couples_rows


@pytest.mark.parametrize("downsample", ["stride", "maxpool"])
@pytest.mark.parametrize("norm", ["batch", "group", "none"])
@pytest.mark.parametrize("pooling", ["flatten", "mean", "max", "meanmax"])
def test_every_way_gives_embeddings_of_its_width(downsample: str, norm: str, pooling: str) -> None:
    options = {"downsample": downsample, "norm": norm, "pooling": pooling, "output_dim": None}
    encoder = made(**options, channels=[6, 12], image_size=13, colors="rgb")
    side = 4 if downsample == "stride" else 3
    dim = {"flatten": 12 * side * side, "mean": 12, "max": 12, "meanmax": 24}[pooling]
    found = embedded(encoder, random_pictures(2))
    assert found.shape == (2, dim) == (2, encoder.embedding_dim)
    assert encoder.couples_rows == (norm == "batch")
    kinds = {type(layer) for layer in encoder.modules()}
    assert (GlobalBatchNorm in kinds) == (norm == "batch")
    assert (nn.GroupNorm in kinds) == (norm == "group")


def test_it_computes_what_it_says() -> None:
    """Against the operations themselves, on pixels made by hand."""
    encoder = made(channels=[4, 8], mean=[0.2], std=[0.7], invert=True, image_size=10)
    rng = np.random.default_rng(0)
    grey = rng.integers(0, 256, (10, 10), dtype=np.uint8)
    weights = {name.removeprefix("net."): value for name, value in encoder.state_dict().items()}
    for name in ("running_mean", "running_var"):  # as after some training
        weights[f"stage1.norm.{name}"].uniform_(0.5, 1.5)
    x = (1 - torch.from_numpy(grey)[None, None] / 255 - 0.2) / 0.7
    for stage in ("stage1", "stage2"):
        conv, norm = f"{stage}.conv", f"{stage}.norm"
        x = functional.conv2d(x, weights[f"{conv}.weight"], weights[f"{conv}.bias"], 2, 1)
        statistics = weights[f"{norm}.running_mean"], weights[f"{norm}.running_var"]
        x = functional.batch_norm(
            x, *statistics, weights[f"{norm}.weight"], weights[f"{norm}.bias"]
        )
        x = x.relu()
    want = x.flatten(1) @ weights["output.weight"].T + weights["output.bias"]
    found = embedded(encoder, [picture(Image.fromarray(grey))])
    assert (found - want).abs().max() < 1e-6


def test_the_seed_decides_the_weights() -> None:
    first, same, other = (
        load_encoder("convnet", seed=seed).get_parameter("net.output.weight") for seed in (1, 1, 2)
    )
    assert torch.equal(first, same) and not torch.equal(first, other)


def test_augmentation_follows_the_draws_and_only_them() -> None:
    encoder = load_encoder("convnet", augmentation={"shift": 0.2, "noise": 0.1})
    items = [("", one) for one in random_pictures(4)]
    draws = np.arange(4, dtype=np.uint64)

    def pixels(*order: int, augmented: bool = True) -> torch.Tensor:
        places = list(order)
        some = encoder.collate(
            [items[i] for i in places], draws=draws[places] if augmented else None
        )
        found: torch.Tensor = some.forwards[0]["pixels"]
        return found

    plain, changed = pixels(0, 1, 2, 3, augmented=False), pixels(0, 1, 2, 3)
    assert ((plain != changed).flatten(1).any(1)).all()
    assert torch.equal(pixels(3, 1), changed[[3, 1]]), "an item's change is its own"
    assert torch.equal(pixels(0, 1, 2, 3, augmented=False), plain)
    default = load_encoder("convnet", augmentation="auto")
    found = default.collate(items, draws=draws).forwards[0]["pixels"]
    assert torch.equal(found, plain), "auto leaves small images as they are"


def test_no_items_are_no_forwards() -> None:
    encoder = made()
    features = encoder.collate([])
    assert features.forwards == [] and encoder(features).shape == (0, 64)


def test_an_artifact_is_the_same_net(tmp_path: Path) -> None:
    encoder = made(channels=[8, 8], colors="rgb", background="black", norm="batch", image_size=20)
    encoder.train()
    pictures = random_pictures(6)
    encoder(encoder.collate([("", one) for one in pictures]))  # moves the running statistics
    before = embedded(encoder, pictures)
    write_artifact(Storage(str(tmp_path)), encoder, {"base_model": "convnet"})
    folder = tmp_path / "artifact"
    assert sorted(file.name for file in folder.iterdir()) == ["ftray.json", "model.safetensors"]
    again = load_encoder(str(folder))
    assert torch.equal(embedded(again, pictures), before)
    assert again.options == encoder.options  # type: ignore[attr-defined]
    load_encoder(str(folder), options={"channels": [8, 8], "background": "black"})  # says the same
    with pytest.raises(ConfigError, match=r"channels = \[8\]: .* was made with \(8, 8\)"):
        load_encoder(str(folder), options={"channels": [8]})


def test_weights_that_are_no_safetensors_or_not_its_own_do_not_load(tmp_path: Path) -> None:
    write_artifact(Storage(str(tmp_path)), made(channels=[8, 8]), {})
    folder = tmp_path / "artifact"
    facts = json.loads((folder / "ftray.json").read_text())
    facts["options"]["channels"] = [8, 9]
    (folder / "ftray.json").write_text(json.dumps(facts))
    with pytest.raises(ModelError, match="cannot be loaded"):
        load_encoder(str(folder))
    buffer = io.BytesIO()
    torch.save({"a": torch.zeros(1)}, buffer)
    (folder / "model.safetensors").write_bytes(buffer.getvalue())
    with pytest.raises(ModelError, match="cannot be loaded"):
        load_encoder(str(folder))
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(buffer.getvalue())
    with pytest.raises(ModelError, match="cannot be loaded"):
        load_encoder(str(folder))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"chanels": [8]}, "no option 'chanels'. Did you mean 'channels'?"),
        ({"channels": []}, "model_options.channels"),
        ({"channels": [0]}, "model_options.channels.0 = 0"),
        ({"norm": "layer"}, "model_options.norm = 'layer'"),
        ({"background": "whyte"}, "model_options.background = 'whyte': a colour is expected"),
        ({"mean": [0.1, 0.2]}, "model_options.mean = [0.1, 0.2]: 1 number or 1"),
        ({"colors": "rgb", "std": [0.1, 0.2]}, "1 number or 3, for each channel"),
        ({"std": [0.0]}, "model_options.std.0 = 0.0"),
        (
            {"downsample": "maxpool", "channels": [8] * 5},
            "model_options.image_size = 28: 5 stages that halve it need at least 32 pixels",
        ),
    ],
)
def test_options_that_cannot_work_are_refused(options: Any, message: str) -> None:
    with pytest.raises(ConfigError) as error:
        made(**options)
    assert message in str(error.value)


def test_broken_images_and_texts_are_named() -> None:
    encoder = made()
    with pytest.raises(DataError, match="cannot be decoded"):
        encoder.collate([("", random_pictures(1)[0]), ("", picture(b"broken"))])
    with pytest.raises(ModelError, match="'convnet' encodes images, and 'a shoe' is a text"):
        encoder.collate([("", "a shoe")])


def test_a_frozen_weight_is_named_as_in_the_file() -> None:
    encoder = made()
    encoder.freeze("stage1.conv.weight")
    assert not encoder.get_parameter("net.stage1.conv.weight").requires_grad


def test_small_images_decode_fast() -> None:
    """Processes that decode ahead must outrun a step of 128 small images."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (128, 28, 28), dtype=np.uint8)
    items = [("", picture(Image.fromarray(one))) for one in images]
    encoder = made(**FASHION_MNIST)
    seconds = []
    for _ in range(5):
        start = time.perf_counter()
        encoder.collate(items)
        seconds.append(time.perf_counter() - start)
    print(f"128 images in {1000 * min(seconds):.1f} ms")
    assert min(seconds) < 0.03, "on a core of its own it takes 4 ms"
