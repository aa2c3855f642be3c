"""Vectors of numbers, point clouds and meshes."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from docarray import BaseDoc, DocList
from docarray.documents import Mesh3D, PointCloud3D
from docarray.documents.legacy import LegacyDocument
from docarray.documents.mesh import VerticesAndFaces
from docarray.documents.point_cloud import PointsAndColors
from docarray.typing import NdArray, TorchTensor

from ftray.data.inputs import read_inputs
from ftray.data.readers import Records, read_records
from ftray.errors import DataError
from tests.data.pictured import (
    BOTH,
    FEATURES,
    IMAGE,
    POINTS,
    cells,
    csv,
    encoded,
    off,
    options,
    refused,
    rows,
)

VECTORS = [[1.0, 2.0, -3.5], [0.25, 0.0, 1.0]]


class Item(BaseDoc):
    features: NdArray
    label: str


class Tensor(BaseDoc):
    tensor: TorchTensor
    label: str


class Labelled(Mesh3D):
    label: str


def vectors(records: Records, role: str = "item") -> list[list[float]]:
    held = cells(records, role)
    assert all(one.modality == "features" for one in held)
    return [np.frombuffer(one.data, "<f4").tolist() for one in held]


def feature_sources(folder: Path) -> dict[str, Any]:
    import torch

    table = pa.table({"features": VECTORS, "label": ["a", "b"]})
    fixed = pa.FixedSizeListArray.from_arrays(pa.array(np.ravel(VECTORS)), 3)
    lines = [json.dumps(row) for row in table.to_pylist()]
    arrays = [np.array(vector) for vector in VECTORS]
    for number, array in enumerate(arrays):
        np.save(folder / f"{number}.npy", array)
    return {
        "list column": table,
        "fixed": pa.table({"features": fixed, "label": ["a", "b"]}),
        "large": table.set_column(0, "vector", table[0].cast(pa.large_list(pa.float64()))),
        "JSON": csv(folder / "t.jsonl", lines),
        "arrays": [
            {"features": array, "label": label} for array, label in zip(arrays, "ab", strict=True)
        ],
        "tuples": [(array, label) for array, label in zip([*arrays] * 2, "abab", strict=True)],
        "frame": pd.DataFrame({"features": arrays, "label": ["a", "b"]}),
        "NdArray": DocList[Item](
            [Item(features=array, label=label) for array, label in zip(arrays, "ab", strict=True)]
        ),
        "TorchTensor": DocList[Tensor](
            [
                Tensor(tensor=torch.tensor(array), label=label)
                for array, label in zip(arrays, "ab", strict=True)
            ]
        ),
        "legacy": DocList(
            [
                LegacyDocument(tensor=array, tags={"finetuner_label": label})
                for array, label in zip(arrays, "ab", strict=True)
            ]
        ),
        "files": csv(folder / "t.csv", ["file,label", "0.npy,a", "1.npy,b"]),
    }


@pytest.mark.parametrize(
    "form",
    "list column,fixed,large,JSON,arrays,tuples,frame,NdArray,TorchTensor,legacy,files".split(","),
)
def test_vectors_are_the_same_in_every_form(tmp_path: Path, form: str) -> None:
    source = feature_sources(tmp_path)[form]
    for modalities in (FEATURES,) if form == "files" else (FEATURES, None):
        records = read_records(source, modalities=modalities)
        assert records.kind == "labelled"
        assert vectors(records)[:2] == VECTORS
        assert records.table["label"].to_pylist()[:2] == ["a", "b"]


def test_rows_of_an_array_are_items() -> None:
    assert vectors(read_records(np.array(VECTORS), modalities=FEATURES)) == VECTORS


def test_pairs_of_vectors_may_have_two_widths() -> None:
    table = pa.table({"query": VECTORS, "document": [[1.0], [2.0]]})
    records = read_records(table, modalities=FEATURES)
    assert vectors(records, "query") == VECTORS and vectors(records, "document") == [[1.0], [2.0]]


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), 1e39])
def test_a_number_that_is_not_finite_is_named_with_its_row(tmp_path: Path, bad: float) -> None:
    wrong = [VECTORS[0], [1.0, bad, 2.0]]
    table = pa.table({"features": wrong, "label": ["a", "b"]})
    for source, place in (
        (table, "a table of 2 rows, row 2, 'features'"),
        ([{"features": np.array(v), "label": "a"} for v in wrong], "index 1, 'features'"),
        ([{"features": v, "label": "a"} for v in wrong], "index 1, 'features'"),
    ):
        assert f"{place}: number 2 of 3 is {bad}, which is not finite" in refused(source)
    if bad != bad:
        path = tmp_path / "t.jsonl"
        path.write_text('{"features": [1, 2], "label": "a"}\n{"features": [1, NaN], "label": "b"}')
        assert "t.jsonl, line 2, 'features': number 2 of 2 is nan" in refused(path)


def test_vectors_of_another_width_are_named_with_their_row() -> None:
    wrong = [*VECTORS, [1.0, 2.0]]
    message = refused(pa.table({"features": wrong, "label": ["a", "b", "c"]}))
    assert "row 3, 'features': 2 numbers, but 3 at a table of 3 rows, row 1, 'features'." in message
    message = refused([{"features": v, "label": "a"} for v in wrong], modalities=FEATURES)
    assert "index 2, 'features': 2 numbers, but 3 at" in message


@pytest.mark.parametrize(
    ("value", "why"),
    [
        ([[1.0, 2.0]], "an array of shape (1, 2) is no vector of features"),
        ([], "an array of shape (0,) is no vector"),
        (["a", "b"], "list is not a text"),
        ([1.0, None], "list is not a text"),
        (b"bytes", "5 bytes that start with b'bytes' are no image"),
    ],
)
def test_what_is_no_vector_is_refused_with_its_row(value: Any, why: str) -> None:
    source = [{"features": VECTORS[0], "label": "a"}, {"features": value, "label": "b"}]
    message = refused(source, modalities=FEATURES)
    assert "index 1, 'features': " in message and why in message


def test_missing_vectors_and_numbers_are_refused() -> None:
    table = pa.table({"features": [VECTORS[0], None], "label": ["a", "b"]})
    assert "row 2: the vector is empty (column 'features')" in refused(table)
    table = pa.table({"features": [[1.0, None]], "label": ["a"]})
    assert "row 1, 'features': number 2 of 2 is nan" in refused(table)


def test_texts_among_vectors_are_refused() -> None:
    source = [{"features": VECTORS[0], "label": "a"}, {"features": "0.5 0.5", "label": "b"}]
    message = refused(source)
    assert "index 1: '0.5 0.5' is of the kind 'text', but the column 'features' starts" in message


def test_nothing_is_unpickled(tmp_path: Path) -> None:
    np.savez(tmp_path / "0.npz", np.arange(3.0))
    message = refused(csv(tmp_path / "z.csv", ["file,label", "0.npz,a"]), modalities=FEATURES)
    assert "z.csv, line 2" in message and "a .npy file that cannot be read (" in message
    np.save(tmp_path / "0.npy", np.array([{"a": 1}], object), allow_pickle=True)
    path = csv(tmp_path / "t.csv", ["file,label", "0.npy,a"])
    for modalities in (FEATURES, POINTS):
        message = refused(path, modalities=modalities)
        assert "t.csv, line 2" in message and "0.npy" not in message.split("line 2")[0]


# ---------------------------------------------------------------- points


def cloud(media: Any) -> np.ndarray:
    assert media.modality == "points"
    return np.load(io.BytesIO(media.read()))


@pytest.fixture
def meshes(tmp_path: Path) -> Path:
    for number in range(3):
        (tmp_path / f"{number}.off").write_text(off(number))
    np.save(tmp_path / "c.npy", np.random.default_rng(0).random((40, 3)))
    return csv(tmp_path / "t.csv", ["mesh,label", "0.off,a", "1.off,a", "c.npy,b"])


@pytest.mark.parametrize("modalities", [None, POINTS, POINTS | BOTH])
def test_meshes_and_clouds_become_points_at_the_start(meshes: Path, modalities: Any) -> None:
    records = read_records(meshes, modalities=modalities, **options(point_cloud_size=100))
    assert records.kind == "labelled" and len(records.blobs) == 3
    clouds = [cloud(one) for one in cells(records, "item")]
    assert all(one.shape == (100, 3) and one.dtype == np.float32 for one in clouds)
    corners = np.random.default_rng(0).random((4, 3))
    assert (clouds[0] >= corners.min(axis=0) - 1e-6).all()
    assert (clouds[0] <= corners.max(axis=0) + 1e-6).all()
    again = read_records(meshes, modalities=modalities, **options(point_cloud_size=100))
    assert again.table == records.table, "the same points at any time"
    assert len(cloud(cells(read_records(meshes), "item")[0])) == 2048


def test_meshes_are_kept_where_the_user_says_so(meshes: Path) -> None:
    records = read_records(meshes, **options(create_point_clouds=False))
    assert len(records.blobs) == 0
    assert [row[0] for row in rows(records)] == ["0.off", "1.off", "c.npy"]
    blobs = read_records(meshes, **options(create_point_clouds=False, convert_to_blob=True))
    assert bytes(cells(blobs, "item")[0].data) == (meshes.parent / "0.off").read_bytes()


def test_points_in_other_forms(meshes: Path) -> None:
    array = np.random.default_rng(0).random((40, 3))
    vertices, faces = np.eye(4, 3), np.array([[0, 1, 2], [0, 1, 3], [0, 2, 3], [1, 2, 3]])
    tensors = VerticesAndFaces(vertices=vertices, faces=faces)
    for source in (
        [{"points": array, "label": "a"}],
        [{"points": array.tolist(), "label": "a"}],
        pa.table({"points": [array.tolist()], "label": ["a"]}),
        [{"mesh": (meshes.parent / "0.off").read_bytes(), "label": "a"}],
        [{"mesh": (meshes.parent / "c.npy").read_bytes(), "label": "a"}],
        DocList[Labelled]([Labelled(url=str(meshes.parent / "0.off"), label="a")]),
        DocList[Labelled]([Labelled(tensors=tensors, label="a")]),
        DocList[PointCloud3D]([PointCloud3D(tensors=PointsAndColors(points=array))]),
    ):
        for modalities in (None, POINTS):
            records = read_records(source, modalities=modalities)
            assert cloud(cells(records, "item")[0]).shape == (2048, 3)


@pytest.mark.parametrize(
    ("content", "why"),
    [
        ("OFF\n4 4 6\n0 0 0\n", "announces 4 vertices"),
        ("OFF\n3 0 0\n0 0 0\n0 0 nan\n0 1 0\n", "coordinates that are not finite"),
        ("PLY\n", "is neither .off nor .npy"),
    ],
)
def test_a_broken_mesh_is_named_with_its_row(meshes: Path, content: str, why: str) -> None:
    (meshes.parent / "1.off").write_text(content)
    message = refused(meshes)
    assert "t.csv, line 3, 'mesh': the point cloud" in message and why in message


def test_a_missing_mesh_is_named_with_its_row(meshes: Path) -> None:
    (meshes.parent / "1.off").unlink()
    assert "line 3: there is no file '1.off' (column 'mesh')" in refused(meshes)


def test_points_for_an_image_model_are_refused(meshes: Path) -> None:
    message = refused(meshes, modalities=BOTH)
    assert "line 2: the column 'mesh' holds an address of the kind 'points', '0.off'" in message
    assert "but the model takes image and text." in message
    array = np.random.default_rng(0).random((40, 3, 3, 2))
    assert "is no image" in refused([{"image": array, "label": "a"}], modalities=IMAGE)
    assert "of the kind 'image', but the model takes points" in refused(
        [{"mesh": encoded(0), "label": "a"}], modalities=POINTS
    )


@pytest.mark.parametrize("numbers", [[1.0, 2.0, 3.0], [1, 2], (0.5,) * 5, [np.float32(1), 2]])
def test_a_list_of_numbers_is_one_vector_for_a_model_of_features(numbers: Any) -> None:
    rows = [numbers, numbers[::-1]]
    inputs = read_inputs(rows, modalities=FEATURES)
    vectors = [bytes(item.data) for item in inputs.part(0, 2).items]  # type: ignore[union-attr]
    assert vectors == [np.asarray(row, "<f4").tobytes() for row in rows]
    assert read_records(rows, modalities=FEATURES).kind == "items"
    with pytest.raises(DataError, match="index 1: a dict, but the first record is of another"):
        read_inputs([numbers, {"item": numbers}], modalities=FEATURES)


def test_two_vectors_in_a_tuple_stay_a_pair() -> None:
    records = read_records([([1.0, 2.0], [2.0, 1.0])] * 2, modalities=FEATURES)
    assert records.kind == "pairs"
