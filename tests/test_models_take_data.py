"""Data and model must go together, and options be known, before anything starts."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import ftray
from ftray.errors import ConfigError, FtrayError

TEXTS = [{"text": f"word {i}", "label": f"c{i % 2}"} for i in range(8)]
IMAGES = [{"image": np.full((4, 4), i, np.uint8), "label": f"c{i % 2}"} for i in range(8)]
FEATURES = [{"item": np.full(3, i, np.float32), "label": f"c{i % 2}"} for i in range(8)]


def fitted(tmp_path: Path, **fields: Any) -> ftray.Run:
    return ftray.fit(storage_path=tmp_path, num_workers=0, listeners=[], epochs=1, **fields)


def test_a_text_model_takes_no_images(tiny_model: Path, tmp_path: Path) -> None:
    with pytest.raises(FtrayError, match=r"of the kind 'image', but the model takes text"):
        fitted(tmp_path, model=str(tiny_model), train_data=IMAGES)


def test_an_image_model_takes_no_features(tmp_path: Path) -> None:
    with pytest.raises(FtrayError, match=r"an array of shape \(3,\) is no image"):
        fitted(tmp_path, model="convnet", train_data=FEATURES)


def test_texts_given_to_an_image_model_are_files_that_are_not_there(tmp_path: Path) -> None:
    with pytest.raises(FtrayError, match="word 0"):
        fitted(tmp_path, model="convnet", train_data=TEXTS)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"model_options": {"chanels": [8]}}, "Did you mean 'channels'"),
        ({"augmentation": {"flop": 0.5}}, "Did you mean 'flip'"),
        ({"augmentation": {"flip": 2}}, "flip"),
        ({"augmentation": "some"}, "augmentation"),
        ({"data_workers": -1}, "data_workers"),
        ({"data_workers": "many"}, "data_workers"),
    ],
)
def test_what_is_mistyped_is_refused_before_anything_is_written(
    fields: dict[str, Any], said: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=said):
        fitted(tmp_path, model="convnet", train_data=IMAGES, **fields)
    assert not any(tmp_path.iterdir())


def test_options_of_texts_are_refused_where_there_are_none(tmp_path: Path) -> None:
    for fields in ({"max_length": 16}, {"packing": "padded"}):
        with pytest.raises(ConfigError, match="is about texts: 'convnet' has no use for it"):
            fitted(tmp_path, model="convnet", train_data=IMAGES, **fields)
    with pytest.raises(ConfigError, match="max_length is about texts: 'convnet'"):
        ftray.get_model("convnet", max_length=16)


def test_a_model_that_ftray_loaded_is_refused_as_an_object(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="was loaded by ftray: give the name or the folder"):
        fitted(tmp_path, model=ftray.get_model("convnet"), train_data=IMAGES)


def test_an_evaluation_reads_data_as_a_fit_with_the_model_does(tmp_path: Path) -> None:
    """Files without an ending are images for a model that takes nothing else."""
    for i in range(8):
        buffer = io.BytesIO()
        Image.fromarray(np.full((4, 4), 20 * i, np.uint8)).save(buffer, "PNG")
        (tmp_path / f"file{i}").write_bytes(buffer.getvalue())
    rows = "".join(f"file{i},c{i % 2}\n" for i in range(8))
    (tmp_path / "data.csv").write_text("image,label\n" + rows)
    assert 0 <= ftray.evaluate("convnet", tmp_path / "data.csv", limit=3)["hit_at_k"] <= 1
    with pytest.raises(FtrayError, match=r"image.*but the model takes features"):
        mlp = ftray.get_model("mlp", model_options={"input_size": 3})
        ftray.evaluate(mlp, [{"image": Image.new("L", (4, 4), i), "label": "a"} for i in range(4)])
