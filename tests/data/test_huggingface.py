"""`datasets` of Hugging Face."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from datasets import (
    Array2D,
    ClassLabel,
    Dataset,
    DatasetDict,
    Features,
    Image,
    List,
    Value,
    load_dataset,
)
from PIL import Image as Pictures

from ftray.data.readers import read_records
from tests.data.pictured import (
    BOTH,
    FEATURES,
    IMAGE,
    cells,
    encoded,
    options,
    pictures,
    pixels,
    refused,
    rows,
    shown_pixels,
)


def labelled() -> Dataset:
    features = Features(
        {"image": Image(), "label": ClassLabel(names=["cat", "dog"]), "n": Value("int32")}
    )
    held = [Pictures.fromarray(pixels(number)) for number in range(4)]
    return Dataset.from_dict({"image": held, "label": [0, 1, 0, 1], "n": [1, 2, 3, 4]}, features)


def test_images_with_class_labels() -> None:
    for modalities in (None, IMAGE):
        records = read_records(labelled(), modalities=modalities)
        assert records.source == "a Dataset of 4 rows"
        assert records.table["label"].to_pylist() == ["cat", "dog", "cat", "dog"]
        held = [shown_pixels(one) for one in cells(records, "item")]
        assert all(np.array_equal(held[i], pixels(i)) for i in range(4))


def test_selected_and_shuffled_rows_are_the_ones_that_are_read() -> None:
    chosen = labelled().select([3, 0])
    records = read_records(chosen)
    assert records.table["label"].to_pylist() == ["dog", "cat"]
    assert np.array_equal(shown_pixels(cells(records, "item")[0]), pixels(3))
    assert len(read_records(labelled(), **options(size=3)).table) == 3


def test_files_of_a_data_set(tmp_path: Path) -> None:
    folder = pictures(tmp_path, ["0.png", "1.png"])
    paths = [str(folder / "0.png"), str(folder / "1.png")]
    data = Dataset.from_dict({"image": paths, "text": ["a", "b"]}).cast_column("image", Image())
    records = read_records(data, modalities=BOTH)
    assert records.kind == "pairs" and rows(records) == [("a", "0.png"), ("b", "1.png")]
    (folder / "1.png").unlink()
    assert "row 2: there is no file" in refused(data)


def test_texts_vectors_and_arrays() -> None:
    texts = Dataset.from_dict({"text": ["a", "b"], "intent": ["x", "y"]})
    assert rows(read_records(texts)) == [("a", "x"), ("b", "y")]
    vectors = Dataset.from_dict(
        {"features": [[1.0, 2.0], [3.0, 4.0]], "label": ["x", "y"]},
        Features({"features": List(Value("float32")), "label": Value("string")}),
    )
    held = cells(read_records(vectors, modalities=FEATURES), "item")
    assert np.frombuffer(held[1].data, "<f4").tolist() == [3.0, 4.0]
    grey = pixels(0)[:, :, 0]
    arrays = Dataset.from_dict(
        {"image": [grey, grey], "label": ["x", "y"]},
        Features({"image": Array2D((4, 4), "uint8"), "label": Value("string")}),
    )
    first = shown_pixels(cells(read_records(arrays, modalities=IMAGE), "item")[0])
    assert np.array_equal(first[:, :, 0], grey)


def test_pairs_and_named_columns() -> None:
    data = Dataset.from_dict({"anchor": ["a"], "positive": ["b"], "other": ["c"]})
    assert rows(read_records(data)) == [("a", "b")]
    named = {"item": "other", "label": "anchor"}
    assert rows(read_records(data, columns=named)) == [("c", "a")]
    assert "has no column 'x'" in refused(data, columns={"item": "x"})


def test_what_is_wrong_is_said() -> None:
    data = labelled()
    message = refused(DatasetDict({"train": data, "test": data}))
    assert "a DatasetDict holds several data sets: 'train', 'test'. Give one" in message
    assert "a IterableDataset of `datasets` cannot be read: it is streamed" in refused(
        data.to_iterable_dataset()
    )
    empty = Dataset.from_dict({"text": [], "label": []})
    assert "a Dataset of 0 rows has no rows" in refused(empty)
    broken = Dataset.from_dict(
        {"image": [{"bytes": encoded(0), "path": None}, {"bytes": b"\x89PNG", "path": None}]},
    )
    assert "row 2, 'image': 4 bytes that start with" in refused(broken, modalities=IMAGE)
    unlabelled = data.add_item({"image": None, "label": -1, "n": 0})
    assert "row 5: the" in refused(unlabelled)


def test_an_image_folder_reads_alike_by_both(tmp_path: Path) -> None:
    folder = pictures(tmp_path / "pets", ["cat/0.png", "dog/1.png"])
    data: Any = load_dataset(
        "imagefolder", data_dir=str(folder), split="train", cache_dir=str(tmp_path / "cache")
    )
    assert rows(read_records(data)) == rows(read_records(folder))
