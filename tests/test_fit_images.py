"""Fits on images in this process: scikit-learn's digits, and pairs with a small resnet50."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

import ftray
from ftray.callbacks import BestModelCheckpoint, EvaluationCallback
from ftray.data.readers import read_records
from ftray.errors import ConfigError
from ftray.media import contents
from ftray.models.registry import load_encoder
from tests.tiny import tiny_image_model

CONVNET = {
    "image_size": 8,
    "channels": [16, 32],
    "output_dim": 16,
    "mean": [0.3],
    "std": [0.4],
    "background": "black",
}
MILD = {"rotate": 5, "noise": 0.03}


def digits(start: int, stop: int) -> list[dict[str, Any]]:
    images, labels = load_digits(return_X_y=True)
    grey = (images.reshape(-1, 8, 8) * 15.9375).astype(np.uint8)  # 0 to 16
    return [{"image": grey[i], "label": f"digit {labels[i]}"} for i in range(start, stop)]


def fit(tmp_path: Path, **fields: Any) -> Any:
    fields = {
        "loss": "SupConLoss",
        "epochs": 3,
        "batch_size": 32,
        "num_workers": 0,
        "learning_rate": 1e-2,
        "storage_path": str(tmp_path / "runs"),
        **fields,
    }
    return ftray.fit(listeners=[], **fields)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return fit(
        tmp_path_factory.mktemp("digits"),
        model="convnet",
        model_options=CONVNET,
        train_data=digits(0, 400),
        augmentation=MILD,
        data_workers=1,
        callbacks=[EvaluationCallback(digits(400, 480), digits(480, 800), gather_examples=True)],
    )


def test_a_net_from_scratch_learns_digits(finished: Any) -> None:
    metrics = finished.metrics()
    assert metrics["after"]["ndcg_at_k"] > metrics["before"]["ndcg_at_k"] + 0.1
    assert metrics["after"]["precision_at_k"] > metrics["before"]["precision_at_k"] + 0.1


def test_its_artifact_gives_the_metrics_that_the_run_reports(finished: Any) -> None:
    again = ftray.evaluate(finished.artifact_id, digits(400, 480), digits(480, 800))
    after = finished.metrics()["after"]
    assert again == pytest.approx({name: after[name] for name in again}, abs=1e-6)


def test_its_artifact_is_loaded_as_it_was(finished: Any) -> None:
    records = read_records(digits(400, 410), modalities=frozenset({"image"}))
    items = [("", one) for one in contents(records.table["item"].to_pylist(), records.blobs)]
    encoder, again = load_encoder(finished.artifact_id), ftray.get_model(finished.artifact_id)
    for one in (encoder, again):
        one.eval()
    with torch.no_grad():
        found, same = (one(one.collate(items)) for one in (encoder, again))
    assert torch.equal(found, same) and found.shape == (10, 16)
    assert encoder.options.background == "black"  # type: ignore[attr-defined]


def test_the_processes_that_decode_change_nothing(finished: Any, tmp_path: Path) -> None:
    """Augmented by another process or by this one, the run is the same."""
    again = fit(
        tmp_path,
        model="convnet",
        model_options=CONVNET,
        train_data=digits(0, 400),
        augmentation=MILD,
        data_workers=0,
    )
    first, second = (run.history()["loss"].to_pylist() for run in (finished, again))
    first, second = ([x for x in losses if x is not None] for losses in (first, second))
    assert first == second


def test_the_example_of_the_pages_with_a_small_resnet(tmp_path: Path) -> None:
    """resnet50 on labelled images, with another model and other data."""
    model = tiny_image_model(tmp_path / "resnet50")
    run = fit(
        tmp_path,
        model=str(model),
        train_data=digits(0, 64),
        batch_size=16,
        epochs=1,
        learning_rate=1e-3,
        loss="TripletMarginLoss",
        callbacks=[
            EvaluationCallback(digits(100, 140), limit=10),
            BestModelCheckpoint("recall_at_k"),
        ],
    )
    assert run.status() == "FINISHED"
    assert set(run.metrics()) == {"before", "after"}
    from transformers import AutoImageProcessor, AutoModel

    assert AutoModel.from_pretrained(run.artifact_id).config.model_type == "resnet"
    AutoImageProcessor.from_pretrained(run.artifact_id)


@pytest.mark.parametrize(
    ("augmentation", "message"),
    [
        ({"flipp": 0.5}, "no operation 'flipp' on images"),
        ({"jitter": 0.1}, "no operation 'jitter'"),
    ],
)
def test_an_augmentation_that_is_not_there_is_refused_before_anything_starts(
    tmp_path: Path, augmentation: Any, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        fit(tmp_path, model="convnet", train_data=digits(0, 64), augmentation=augmentation)
    assert not (tmp_path / "runs").exists()
