"""A torch.nn.Module of the user's own."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from torch import Tensor, nn

import ftray
from ftray.callbacks import EvaluationCallback
from ftray.errors import ConfigError, FtrayError, ModelError
from ftray.media import BlobBuilder, contents
from ftray.models.module import ModuleParts, keep_module
from ftray.models.registry import load_encoder

SIDE = 8


class Small(nn.Module):
    """Grey images of 8 x 8 to 6 numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 6)
        )

    def forward(self, pixels: Tensor) -> Tensor:
        out: Tensor = self.layers(pixels)
        return out


def grey(image: Image.Image, rng: Any = None) -> Tensor:
    pixels = np.asarray(image.convert("L"), np.float32)[None] / 255
    if rng is not None:
        pixels = pixels + rng.normal(0, 0.05, pixels.shape).astype(np.float32)
    return torch.from_numpy(pixels)


def drawn(draw: np.random.Generator, label: int) -> np.ndarray:
    """A dark image with a bright row whose place is the label."""
    pixels = draw.integers(0, 190, (SIDE, SIDE))
    pixels[2 * label : 2 * label + 2] += 60
    return pixels.astype(np.uint8)


def rows(count: int, seed: int = 0) -> list[dict[str, Any]]:
    draw = np.random.default_rng(seed)
    return [{"image": drawn(draw, i % 4), "label": f"c{i % 4}"} for i in range(count)]


def made(module: nn.Module, tmp_path: Path, **parts: Any) -> Any:
    given = ModuleParts(module=module, **parts)
    keep_module(given, tmp_path / "kept")
    return load_encoder(str(tmp_path / "kept"), module=given)


def media(count: int = 3) -> list[Any]:
    builder = BlobBuilder()
    cells = []
    for row in rows(count):
        buffer = io.BytesIO()
        Image.fromarray(row["image"]).save(buffer, "PNG")
        cells.append(builder.add("image", buffer.getvalue()))
    return contents(cells, builder.finish())


def test_a_fit_trains_it_and_leaves_the_object_as_it_was(tmp_path: Path) -> None:
    torch.manual_seed(0)
    module = Small()
    before = {name: value.clone() for name, value in module.state_dict().items()}
    run = ftray.fit(
        model=module,
        preprocess_fn=grey,
        train_data=rows(48),
        loss="SupConLoss",
        epochs=3,
        batch_size=16,
        learning_rate=1e-2,
        callbacks=[EvaluationCallback(rows(24, seed=1), limit=5, gather_examples=True)],
        num_workers=0,
        storage_path=tmp_path,
        listeners=[],
    )
    assert all(torch.equal(before[name], value) for name, value in module.state_dict().items())
    metrics = run.metrics()
    assert metrics["after"]["precision_at_k"] > metrics["before"]["precision_at_k"]
    with pytest.raises(ModelError, match="nothing of the module itself: give it too"):
        ftray.get_model(run.artifact_id)
    model = ftray.get_model(run.artifact_id, module=Small(), preprocess_fn=grey)
    assert model.embedding_dim == 6 and model.modalities == {"image"}
    again = ftray.evaluate(model, rows(24, seed=1), limit=5)
    assert again["precision_at_k"] == pytest.approx(metrics["after"]["precision_at_k"])
    with safe_open(Path(run.artifact_id) / "model.safetensors", "pt") as weights:
        assert set(weights.keys()) == set(before)
    assert run.config["model"].endswith("Small")
    pictures = run.example_results()["after"]
    assert all(
        m["image"].startswith("data:image/webp") for found in pictures.values() for m in found
    )


def test_the_draws_of_training_are_the_items_own(tmp_path: Path) -> None:
    encoder = made(Small(), tmp_path, preprocess_fn=grey)
    items = [("", content) for content in media()]
    seeds = np.array([7, 8, 9], np.uint64)
    whole = encoder.collate(items, draws=seeds).forwards[0]["batch"]
    part = encoder.collate(items[1:2], draws=seeds[1:2]).forwards[0]["batch"]
    assert torch.equal(whole[1:2], part)
    still = encoder.collate(items).forwards[0]["batch"]
    assert not torch.equal(whole, still)


def test_batches_may_be_tensors_tuples_and_dicts(tmp_path: Path) -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(64, 3)

        def forward(self, pixels: Tensor, scale: Tensor) -> Tensor:
            out: Tensor = self.layer(pixels.flatten(1)) * scale[:, None]
            return out

    def as_dict(values: list[Tensor]) -> dict[str, Tensor]:
        return {"pixels": torch.stack(values), "scale": torch.full((len(values),), 2.0)}

    def as_tuple(values: list[Tensor]) -> tuple[Tensor, Tensor]:
        return tuple(as_dict(values).values())  # type: ignore[return-value]

    module = Two()
    items = [("", content) for content in media()]
    found = []
    for place, collate in (("a", as_dict), ("b", as_tuple)):
        encoder = made(module, tmp_path / place, preprocess_fn=grey, collate_fn=collate)
        found.append(encoder(encoder.collate(items)))
    assert torch.equal(*found)
    assert found[0].shape == (3, 3)


def test_what_goes_wrong_in_a_function_names_it(tmp_path: Path) -> None:
    def broken(image: Image.Image) -> Tensor:
        raise ZeroDivisionError("by hand")

    encoder = made(Small(), tmp_path, preprocess_fn=broken)
    with pytest.raises(ModelError, match=r"preprocess_fn of .* failed: ZeroDivisionError: by hand"):
        encoder.collate([("", media(1)[0])])


def test_what_is_no_embedding_is_refused(tmp_path: Path) -> None:
    class Flat(Small):
        def forward(self, pixels: Tensor) -> Tensor:
            return super().forward(pixels).sum(dim=1)

    encoder = made(Flat(), tmp_path, preprocess_fn=grey)
    with pytest.raises(ModelError, match=r"one embedding for each thing, \(n, D\); it gave shape"):
        encoder.measure(media(1)[0])


@pytest.mark.parametrize("what", ["preprocess_fn", "collate_fn"])
def test_functions_are_functions_and_belong_to_a_module(
    what: str, tiny_model: Path, tmp_path: Path
) -> None:
    common: dict[str, Any] = {"train_data": rows(8), "storage_path": tmp_path, "num_workers": 0}
    with pytest.raises(ConfigError, match=f"{what} = 3: a function is expected"):
        ftray.fit(model=Small(), listeners=[], **{what: 3}, **common)
    with pytest.raises(ConfigError, match="this model has its own"):
        ftray.fit(model=str(tiny_model), listeners=[], **{what: grey}, **common)


def test_a_module_without_weights_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FtrayError, match="has no weights: there is nothing to train"):
        ftray.fit(model=nn.Flatten(), train_data=rows(8), storage_path=tmp_path, num_workers=0)
