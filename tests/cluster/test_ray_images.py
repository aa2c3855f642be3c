"""Images on two Ray workers equal images in this process: decoding, augmentation, global norms.

One Ray session for the module, one fit for each kind of model.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import ftray
from ftray.callbacks import EvaluationCallback
from tests.models.test_module import Small, grey, rows

pytestmark = pytest.mark.ray


@pytest.fixture(scope="module")
def session():
    import ray

    ray.init(num_cpus=2, include_dashboard=False, logging_level="ERROR", address="local")
    yield
    ray.shutdown()


def fit(folder: Path, **fields: Any) -> ftray.Run:
    return ftray.fit(
        listeners=[],
        **{
            "loss": "SupConLoss",
            "epochs": 2,
            "batch_size": 15,
            "optimizer": "SGD",  # Adam makes steps of rounding errors, where a gradient is zero
            "learning_rate": 0.1,
            "data_workers": 1,
            "storage_path": str(folder / "runs"),
            **fields,
        },
    )


def losses(run: ftray.Run) -> list[float]:
    return [loss for loss in run.history()["loss"].to_pylist() if loss]


def assert_equal(here: ftray.Run, there: ftray.Run) -> None:
    assert losses(there) == pytest.approx(losses(here), abs=1e-4)
    for side in ("before", "after"):
        assert there.metrics()[side] == pytest.approx(here.metrics()[side], abs=1e-3)
    weights = [load_file(Path(run.artifact_id) / "model.safetensors") for run in (here, there)]
    assert weights[0].keys() == weights[1].keys()
    for name, value in weights[0].items():
        assert np.allclose(value, weights[1][name], atol=1e-3), name


def test_two_workers_train_a_convnet_as_one_process_does(session: None, tmp_path: Path) -> None:
    """With batch norm, augmentation, an overlapped evaluation, and images in the object store."""
    given = {
        "model": "convnet",
        "model_options": {"channels": [4, 8], "image_size": 8, "output_dim": 6},
        "train_data": rows(43),
        "augmentation": {"shift": 0.2, "noise": 0.05},
    }
    runs = [
        fit(
            tmp_path,
            num_workers=workers,
            callbacks=[EvaluationCallback(rows(24, seed=1), limit=5, overlap=True)],
            **given,
        )
        for workers in (0, 2)
    ]
    assert_equal(*runs)


@pytest.mark.slow
def test_a_module_of_ones_own_trains_there_too(session: None, tmp_path: Path) -> None:
    given: dict[str, Any] = {"preprocess_fn": grey, "train_data": rows(43)}
    torch.manual_seed(0)
    module = Small()
    runs = [
        fit(
            tmp_path,
            model=module,
            num_workers=workers,
            callbacks=[EvaluationCallback(rows(24, seed=1), limit=5)],
            **given,
        )
        for workers in (0, 2)
    ]
    assert_equal(*runs)
