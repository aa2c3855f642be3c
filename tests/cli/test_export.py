"""`ftray export`, and encoding and evaluating with what it writes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ftray.models.artifact import save_encoder
from ftray.models.registry import load_encoder

pytest.importorskip("onnxruntime")


@pytest.fixture
def data(folder: Path) -> Path:
    """Vectors of features of four classes, and `model/`, which takes them."""
    save_encoder(load_encoder("mlp", options={"input_size": 3, "hidden_sizes": [2]}), Path("model"))
    vectors = np.random.default_rng(0).standard_normal((12, 3)).astype("float32")
    labels = [f"c{i % 4}" for i in range(12)]
    pq.write_table(pa.table({"features": list(vectors), "label": labels}), "data.parquet")
    return Path("data.parquet")


def test_a_model_is_exported_encodes_and_is_measured(cli: Any, data: Path) -> None:
    done = cli("export", "model", "-o", "made")
    assert done.code == 0, done.err
    assert "1 ONNX graph, equal to the model: made/onnx/model.onnx" in done.out
    found = []
    for name, more in (("model", []), ("made", ["--onnx"])):
        assert cli("encode", name, data, "-o", f"{name}.npy", *more).code == 0
        measured = cli("evaluate", name, "--query", data, "--json", *more)
        assert measured.code == 0, measured.err
        found.append((np.load(f"{name}.npy"), json.loads(measured.out)))
    assert found[0][0].shape == (12, 2)
    assert np.abs(found[0][0] - found[1][0]).max() < 1e-6
    assert found[0][1] == pytest.approx(found[1][1])


def test_mistakes(cli: Any, data: Path) -> None:
    for arguments, said in (
        (("export", "model", "-o", "model"), "'model' exists already; nothing is overwritten"),
        (("export", "pointnet-base", "-o", "made"), "cannot be exported as ONNX"),
        (("export", "minilmm", "-o", "made"), "Did you mean 'minilm'?"),
        (("encode", "model", data, "-o", "x.npy", "--onnx"), "ftray export model -o FOLDER"),
        (("evaluate", "model", "--query", data, "--onnx"), "ftray export model -o FOLDER"),
    ):
        done = cli(*arguments)
        assert done.code == 2 and said in done.err, done.err
    assert not Path("made").exists() and not Path("x.npy").exists()
