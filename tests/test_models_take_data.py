"""Data and model must go together, and options be known, before anything starts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

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
