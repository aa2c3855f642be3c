"""`ftray encode` of what is no text."""

from __future__ import annotations

import numpy as np
import pyarrow.parquet as pq

import ftray
from tests.models.pictures import random_pictures
from tests.tiny import tiny_image_model


def test_images_of_a_csv_are_encoded_and_named_by_their_files(cli, folder):
    model = tiny_image_model(folder / "model")
    names = [f"{number}.png" for number in range(3)]
    for name, image in zip(names, random_pictures(3), strict=True):
        (folder / name).write_bytes(image.read())
    (folder / "images.csv").write_text("\n".join(["image", *names]) + "\n")
    done = cli("encode", model, "images.csv", "-o", "out.parquet")
    assert done.code == 0, done.err
    table = pq.read_table("out.parquet")
    paths = [str(folder / name) for name in names]
    assert table["text"].to_pylist() == paths
    vectors = np.array(table["embedding"].to_pylist(), np.float32)
    assert np.allclose(vectors, ftray.encode(str(model), paths), atol=1e-6)
