"""`ftray encode` and `ftray evaluate` of what is no text."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

import ftray
from tests.models.captions import squares
from tests.models.pictures import random_pictures
from tests.tiny import tiny_clip, tiny_image_model


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
    assert table["item"].to_pylist() == paths
    vectors = np.array(table["embedding"].to_pylist(), np.float32)
    assert np.allclose(vectors, ftray.encode(str(model), paths), atol=1e-6)


def test_images_of_an_archive_are_named_as_in_it_and_need_no_classes(cli, folder):
    model = tiny_image_model(folder / "model")
    names = ["b.png", "a/1.png"]
    with zipfile.ZipFile("images.zip", "w") as archive:
        for name, image in zip(names, random_pictures(2), strict=True):
            archive.writestr(name, image.read())
    done = cli("encode", model, "images.zip", "-o", "out.parquet")
    assert done.code == 0, done.err
    table = pq.read_table("out.parquet")
    assert table["item"].to_pylist() == sorted(names)
    vectors = np.array(table["embedding"].to_pylist(), np.float32)
    wanted = ftray.encode(str(model), [image.read() for image in random_pictures(2)])
    assert np.allclose(vectors, wanted[::-1], atol=1e-6)


@pytest.fixture
def pairs(folder: Path) -> list[tuple[str, str]]:
    """Captions and files of images, also as pairs.csv, texts.csv and images.csv."""
    found = []
    for number, (caption, data) in enumerate(squares()):
        (folder / f"{number}.png").write_bytes(data)
        found.append((caption, f"{number}.png"))
    for name, rows in {
        "pairs": [("caption", "image"), *found],
        "texts": [("caption", "label"), *((text, text) for text, _ in found)],
        "images": [("image", "label"), *((image, text) for text, image in found)],
    }.items():
        (folder / f"{name}.csv").write_text("".join(f"{a},{b}\n" for a, b in rows))
    return found


def test_a_tower_is_selected_by_its_name(cli, folder, pairs):
    model = tiny_clip(folder / "model")
    texts, images = ([row[side] for row in pairs] for side in (0, 1))
    wanted = {
        ("clip-text", "texts.csv"): texts,
        ("clip-text", "pairs.csv"): texts,
        ("clip-vision", "images.csv"): images,
    }
    for number, ((tower, data), items) in enumerate(wanted.items()):
        done = cli("encode", model, data, "-o", f"{number}.npy", "--select-model", tower)
        assert done.code == 0, done.err
        assert "24 embeddings of width 24" in done.out
        one = ftray.get_model(str(model), tower)
        assert np.allclose(np.load(f"{number}.npy"), ftray.encode(one, items), atol=1e-6)


def test_a_tower_that_is_not_there_or_takes_other_things_is_refused(refused, folder, pairs):
    model, other = tiny_clip(folder / "model"), tiny_image_model(folder / "resnet")
    for where, tower, data, message in (
        (model, "clip-txt", "texts.csv", "Did you mean 'clip-text'"),
        (model, "clip-vision", "texts.csv", "red left"),
        (other, "clip-vision", "images.csv", "has one tower. Leave select_model away"),
    ):
        said = refused("encode", where, data, "-o", "out.npy", "--select-model", tower)
        assert message in said
    assert not Path("out.npy").exists()


def test_texts_find_images_from_the_command_line(cli, folder, pairs):
    """With the artifact of a fit, as pairs, and as labelled queries and a labelled index."""
    run = ftray.fit(
        model=str(tiny_clip(folder / "model")),
        train_data="pairs.csv",
        loss="CLIPLoss",
        learning_rate=2e-3,
        epochs=20,
        batch_size=12,
        augmentation="none",
        num_workers=0,
        data_workers=0,
        listeners=[],
    )
    towers = ["--query-role", "clip-text", "--index-role", "clip-vision"]
    zero_shot = ftray.evaluate(folder / "model", "pairs.csv", limit=5)
    for data in (["pairs.csv"], ["texts.csv", "--index", "images.csv"]):
        done = cli("evaluate", run.artifact_id, "--query", *data, *towers, "--limit", 5, "--json")
        assert done.code == 0, done.err
        found = json.loads(done.out)
        wanted = ftray.evaluate(run.artifact_id, data[0], *data[2:], limit=5)
        assert found == pytest.approx(wanted)
        assert found["ndcg_at_k"] > zero_shot["ndcg_at_k"] + 0.3
    swapped = ["--query-role", "clip-vision", "--index-role", "clip-text"]
    done = cli("evaluate", run.artifact_id, "--query", "pairs.csv", *swapped)
    assert done.code == 2 and "Traceback" not in done.err
    assert "'clip-vision' encodes image, but the queries are text" in done.err
