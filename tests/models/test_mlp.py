"""The perceptron over features: its layers, its errors, and a fit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import ftray
from ftray.callbacks import EvaluationCallback
from ftray.errors import ConfigError, DataError, ModelError
from ftray.models.registry import load_encoder
from tests.models.tensors import labelled, media, vector_bytes

WIDTH = 12
CLASSES = 4


def vectors(n: int, seed: int) -> tuple[np.ndarray, list[str]]:
    """Vectors whose class stands in four places out of twelve, among louder noise."""
    rng = np.random.default_rng(seed)
    labels = np.arange(n) % CLASSES
    noise = rng.normal(0, 3, (n, WIDTH))
    noise[:, :CLASSES] = 1.5 * np.eye(CLASSES)[labels] + rng.normal(0, 0.3, (n, CLASSES))
    return noise.astype(np.float32), [f"class {label}" for label in labels]


def data(n: int, seed: int) -> Any:
    rows, labels = vectors(n, seed)
    return labelled("features", [vector_bytes(row) for row in rows], labels)


def test_layers_are_finetuners() -> None:
    """Linear layers with an activation between them, written out."""
    options = {"input_size": 5, "hidden_sizes": [7, 3], "activation": "tanh", "l2": True}
    encoder = load_encoder("mlp", options=options)
    assert encoder.embedding_dim == 3
    rows = np.random.default_rng(0).normal(size=(4, 5)).astype(np.float32)
    got = encoder(encoder.collate(media("features", [vector_bytes(row) for row in rows])))
    first, last = encoder.net[0], encoder.net[2]
    want = torch.tanh(torch.from_numpy(rows) @ first.weight.T + first.bias) @ last.weight.T
    want = want + last.bias
    torch.testing.assert_close(got, want / want.norm(dim=1, keepdim=True))


def test_without_hidden_sizes_it_is_one_layer_as_wide_as_the_features() -> None:
    encoder = load_encoder("mlp", options={"input_size": 5, "bias": False, "activation": "relu"})
    assert [tuple(p.shape) for p in encoder.parameters()] == [(5, 5)]
    assert encoder.embedding_dim == 5
    row = np.full(5, -1, np.float32)
    got = encoder(encoder.collate(media("features", [vector_bytes(row)])))
    torch.testing.assert_close(got[0], -encoder.net[0].weight.sum(dim=1))
    assert encoder(encoder.collate([])).shape == (0, 5)


def test_what_it_cannot_encode_is_refused_by_name() -> None:
    encoder = load_encoder("mlp", options={"input_size": 5})
    with pytest.raises(DataError, match=r"'1\.bin' has 4 numbers, but 'mlp' takes features of 5"):
        encoder.collate(media("features", [vector_bytes(np.ones(n)) for n in (5, 4)]))
    with pytest.raises(DataError, match=r"'0\.bin' holds numbers that are not finite"):
        encoder.collate(media("features", [vector_bytes([1, 2, np.nan, 4, 5])]))
    with pytest.raises(ModelError, match="not a text"):
        encoder.collate([("", "words")])
    with pytest.raises(ModelError, match=r"not 0\.bin \(image\)"):
        encoder.collate(media("image", [vector_bytes(np.ones(5))]))


def test_options_and_augmentation_that_make_no_sense_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"input_size: 'mlp' is to be told how wide"):
        load_encoder("mlp")
    with pytest.raises(ConfigError, match=r"'hiden_sizes'.*'hidden_sizes'"):
        load_encoder("mlp", options={"input_size": 2, "hiden_sizes": [2]})
    with pytest.raises(ConfigError, match=r"model_options\.hidden_sizes\.0 = 0"):
        load_encoder("mlp", options={"input_size": 2, "hidden_sizes": [0]})
    with pytest.raises(ConfigError, match="augmentation"):
        load_encoder("mlp", options={"input_size": 2}, augmentation={"jitter": 0.1})


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return fit(tmp_path_factory.mktemp("runs"), epochs=12)


def fit(folder: Path, **more: Any) -> Any:
    settings: dict[str, Any] = {
        "model": "mlp",
        "model_options": {"hidden_sizes": [16, 8], "activation": "relu"},
        "train_data": data(160, 0),
        "loss": "SupConLoss",
        "batch_size": 32,
        "learning_rate": 0.02,
        "num_workers": 0,
        "data_workers": 0,
        "storage_path": str(folder),
        "listeners": [],
        "callbacks": [EvaluationCallback(data(80, 1), limit=1)],
    }
    return ftray.fit(**settings | more)


def test_a_fit_learns_what_matters_of_the_features(run: Any) -> None:
    """The width of the features comes from the data."""
    metrics = run.metrics()
    before, after = (metrics[when]["precision_at_k"] for when in ("before", "after"))
    assert before < 0.6 and after > 0.9


def test_the_artifact_gives_the_same_embeddings_and_keeps_its_options(run: Any) -> None:
    folder = f"{run.path}/artifact"
    rows, _ = vectors(6, 2)
    items = media("features", [vector_bytes(row) for row in rows])
    first, second = (load_encoder(folder) for _ in range(2))
    assert first.embedding_dim == 8 and first.options.input_size == WIDTH
    assert torch.equal(first(first.collate(items)), second(second.collate(items)))
    with pytest.raises(ConfigError, match=r"hidden_sizes.*was made with"):
        load_encoder(folder, options={"hidden_sizes": [4]})
    assert not [file for file in Path(folder).iterdir() if file.suffix in (".bin", ".pt", ".pkl")]


def test_features_of_another_width_are_refused_before_training(run: Any, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"features of 12 numbers, but 'mlp' takes 9 \(model_opt"):
        fit(tmp_path, model_options={"input_size": 9})
    wide = labelled("features", [vector_bytes(np.ones(3) * i) for i in range(4)], "aabb")
    with pytest.raises(DataError, match=r"features of 3 numbers, but .*artifact' takes 12"):
        fit(tmp_path, model=f"{run.path}/artifact", model_options={}, train_data=wide, callbacks=[])
