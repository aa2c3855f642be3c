"""The blocks of Finetuner's page with a resnet50 and a CLIP: only names and data are others.

A user's files: scripts, images, CSV files, and a cache of the Hugging Face hub in which small
models of the same classes lie under the names of the large ones. The scripts run as a user would
run them.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from safetensors.torch import load_file

import ftray
from tests.evaluation.test_numbers_of_the_pages import RELATIONS
from tests.models.captions import squares
from tests.tiny import tiny_clip, tiny_image_model
from tests.wandb_files import offline_runs

# As the page prints them.
RESNET = """
from finetuner.callback import WandBLogger, EvaluationCallback

run = finetuner.fit(
    model='resnet50',
    run_name = 'resnet-tll-early-6',
    train_data = 'finetuner/tll-train-da',
    epochs = 5,
    learning_rate = 1e-6,
    callbacks=[
        EvaluationCallback(
            query_data='finetuner/tll-test-query-da',
            index_data='finetuner/tll-test-index-da'
        ),
        WandBLogger(),
    ]
)

# stream the logs, or use run.logs() to get logs
for entry in run.stream_logs():
    print(entry)
"""
CLIP = """
from finetuner.callback import EarlyStopping, EvaluationCallback

run = finetuner.fit(
    model='openai/clip-vit-base-patch32',
    run_name='clip-fashion-early',
    train_data='finetuner/fashion-train-data-clip',
    epochs=10,
    learning_rate= 1e-5,
    loss='CLIPLoss',
    device='cuda',
    callbacks= [
        callback.EarlyStopping(
            monitor = "train_loss",
            mode = "min",
            patience=2,
            min_delta=1,
            baseline=1.5
        )
    ]
)
"""
# What the page says in words: an evaluation with two models, the best model, WiSE-FT.
GUIDE = """
from finetuner.callback import BestModelCheckpoint, EvaluationCallback, WiSEFTCallback

run = finetuner.fit(
    model='clip-base-en',
    run_name='clip-fashion',
    train_data='finetuner/fashion-train-data-clip',
    eval_data='finetuner/fashion-eval-data-clip',
    epochs=20,
    batch_size=12,
    learning_rate=2e-3,
    augmentation='none',
    loss='CLIPLoss',
    device='cuda',
    callbacks=[
        EvaluationCallback(
            query_data='finetuner/fashion-query-data',
            index_data='finetuner/fashion-index-data',
            model='clip-text',
            index_model='clip-vision'
        ),
        BestModelCheckpoint(monitor='average_precision'),
        WiSEFTCallback(alpha=0.8),
    ]
)
"""
BLOCKS = {"resnet": RESNET, "clip": CLIP, "guide": GUIDE}
CHANGES = {
    "from finetuner.callback import": "import ftray\nfrom ftray import callbacks as callback\n"
    "from ftray.callbacks import",
    "finetuner.fit(": "ftray.fit(\n    num_workers=0,",  # in this process, without Ray
    "device='cuda'": "device='cpu'",
}
DATA = re.compile("'finetuner/([a-z-]+)'")
CACHE = {"microsoft/resnet-50": tiny_image_model, "openai/clip-vit-base-patch32": tiny_clip}


def changed(block: str) -> str:
    """A block with other names, and with files for the data sets of the cloud."""
    for old, new in CHANGES.items():
        block = block.replace(old, new)
    return DATA.sub(r"'\1.csv'", block)


# ---------------------------------------------------------------- the place of a user


@dataclass(frozen=True)
class Place:
    """A user's folder once the scripts have run in it, and what each of them printed."""

    folder: Path
    printed: Mapping[str, str]

    def run(self, name: str) -> ftray.Run:
        return ftray.get_run(name, storage_path=str(self.folder / "runs"))

    def model(self, hub_id: str) -> Path:
        return cached(self.folder, hub_id)


def cached(folder: Path, hub_id: str) -> Path:
    """Where the hub's cache has a model."""
    cache = folder / "cache" / "hub" / f"models--{hub_id.replace('/', '--')}"
    return cache / "snapshots" / ("a" * 40)


def write_models(folder: Path) -> None:
    for hub_id, make in CACHE.items():
        place = make(cached(folder, hub_id))
        refs = place.parent.parent / "refs"
        refs.mkdir()
        (refs / "main").write_text(place.name)


def write_csv(path: Path, rows: list[tuple[str, str]]) -> None:
    """As they are given: Finetuner reads no header."""
    path.write_text("".join(f"{first},{second}\n" for first, second in rows))


def write_furniture(folder: Path) -> None:
    """Pairs of images, as of the left and the right half of one thing: each other's only match."""
    rng = np.random.default_rng(0)
    coarse = rng.integers(40, 216, (60, 4, 4, 3))
    for side in ("left", "right"):
        seen = np.clip(coarse + rng.integers(-90, 91, coarse.shape), 0, 255).astype(np.uint8)
        for number, one in enumerate(seen):
            image = Image.fromarray(one).resize((40, 36), Image.Resampling.BICUBIC)
            image.save(folder / f"{side}{number}.jpg")
    pairs = [(f"left{i}.jpg", f"right{i}.jpg") for i in range(30)]
    write_csv(folder / "tll-train-da.csv", pairs)
    for name, side in (("query", "left"), ("index", "right")):
        rows = [(f"{side}{i}.jpg", f"thing {i}") for i in range(30, 60)]
        write_csv(folder / f"tll-test-{name}-da.csv", rows)


def write_fashion(folder: Path) -> None:
    """Pairs, and for the evaluation texts and images apart, each with a label that says whose."""
    pairs = []
    for number, (text, data) in enumerate(squares()):
        (folder / f"{number}.png").write_bytes(data)
        pairs.append((text, f"{number}.png"))
    write_csv(folder / "fashion-train-data-clip.csv", pairs)
    write_csv(folder / "fashion-eval-data-clip.csv", pairs[::2])
    queries = [(text, text) for text, _ in pairs]
    index = [(image, text) for text, image in pairs]
    write_csv(folder / "fashion-query-data.csv", [("text", "label"), *queries])
    write_csv(folder / "fashion-index-data.csv", [("image", "label"), *index])


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    """One process runs the scripts, one after the other."""
    folder = tmp_path_factory.mktemp("user")
    write_models(folder)
    write_furniture(folder)
    write_fashion(folder)
    for name, block in BLOCKS.items():
        (folder / f"{name}.py").write_text(changed(block))
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("WANDB_", "HF_", "FTRAY_"))}
    cache = str(folder / "cache")
    offline = {"HF_HOME": cache, "HF_HUB_OFFLINE": "1", "HOME": cache, "OMP_NUM_THREADS": "1"}
    code = (
        "import runpy, sys\n"
        "for name in sys.argv[1:]:\n"
        "    print(f'== {name}', flush=True)\n"
        "    runpy.run_path(f'{name}.py', run_name='__main__')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *BLOCKS],
        cwd=folder,
        env={**kept, **offline, "PYTHONPATH": str(Path(__file__).parents[1])},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    _, *parts = re.split("^== (.+)\n", done.stdout, flags=re.MULTILINE)
    return Place(folder, dict(zip(parts[::2], parts[1::2], strict=True)))


# ---------------------------------------------------------------- what they give


def test_resnet50_takes_pairs_of_images(place: Place) -> None:
    run = place.run("resnet-tll-early-6")
    assert run.status() == "FINISHED" and len(losses(run)) == 5
    assert run.config["model"] == "resnet50"
    printed = place.printed["resnet"]
    assert printed.endswith(run.logs()), "the loop prints each line of the log"
    assert "30 different images; 30 pairs" in printed and "queries: 30, documents: 30" in printed
    for name, value in run.metrics()["after"].items():
        assert re.search(rf"'resnet50_{name}' before .* after fine-tuning: {value:.5f}", printed)
    for side in run.metrics().values():
        for name, relation in RELATIONS.items():  # one relevant document, as on the page
            assert side[name] == pytest.approx(relation(side), abs=1e-12)
    assert 0.1 < run.metrics()["before"]["recall_at_k"] < 1
    (logged,) = offline_runs(Path(run.path))
    found = [value for _, value in logged.series("metrics/recall_at_k")]
    assert len(found) == 6 and found[-1] == run.metrics()["after"]["recall_at_k"]
    assert architecture(run) == ["ResNetModel"]


def test_clip_stops_early_where_its_options_say(place: Place) -> None:
    """An improvement is a loss below 1.5 - 1, so that two epochs are enough."""
    run = place.run("clip-fashion-early")
    assert run.status() == "FINISHED"
    assert len(losses(run)) == 2 and min(losses(run)) > 0.5
    assert "8 of 10 epochs saved" in place.printed["clip"]
    assert "24 different images; 24 pairs" in place.printed["clip"]
    assert architecture(run) == ["CLIPModel"]


def test_clip_is_evaluated_by_its_two_towers(place: Place) -> None:
    run = place.run("clip-fashion")
    before, after = run.metrics()["before"], run.metrics()["after"]
    assert after["average_precision"] > before["average_precision"] + 0.1
    names = ("fashion-query-data.csv", "fashion-index-data.csv")
    again = ftray.evaluate(run.artifact_id, *[place.folder / name for name in names])
    assert again == pytest.approx({name: after[name] for name in again}, abs=1e-6)
    rows = [row for row in run.history().to_pylist() if row["kind"] == "epoch"]
    assert len(rows) == 20 and all(row["val_loss"] > 0 for row in rows)


def test_wise_ft_lies_between_the_given_clip_and_the_best_one(place: Place) -> None:
    run = place.run("clip-fashion")
    facts = json.loads(Path(run.artifact_id, "ftray.json").read_text())
    rows = [row for row in run.history().to_pylist() if row["kind"] == "evaluation"]
    seen = [row["average_precision"] for row in rows if row["weights"] is None][1:]
    best = 1 + int(np.argmax(seen))
    assert facts["best"]["value"] == pytest.approx(max(seen)), facts
    (checkpoint,) = Path(run.path, "checkpoints").glob(f"epoch-{best:04d}*")
    trained = load_file(checkpoint / "model.safetensors")
    given = load_file(place.model("openai/clip-vit-base-patch32") / "model.safetensors")
    kept = load_file(Path(run.artifact_id, "model.safetensors"))
    assert kept.keys() == given.keys()
    for name, found in kept.items():
        (other,) = (tensor for key, tensor in trained.items() if key.endswith(name))
        assert np.allclose(found, 0.2 * given[name] + 0.8 * other, atol=1e-6), name


@pytest.mark.parametrize(
    ("name", "hub_id", "inputs"),
    [
        ("resnet-tll-early-6", "microsoft/resnet-50", ["left0.jpg", "right3.jpg"]),
        ("clip-fashion", "openai/clip-vit-base-patch32", ["0.png", "3.png"]),
    ],
)
def test_the_weights_of_an_artifact_are_new(
    place: Place, name: str, hub_id: str, inputs: list[str]
) -> None:
    paths = [str(place.folder / one) for one in inputs]
    trained = ftray.encode(place.run(name).artifact_id, paths)
    given = ftray.encode(place.model(hub_id), paths)
    assert trained.shape == given.shape and np.abs(trained - given).max() > 1e-7


def losses(run: ftray.Run) -> list[float]:
    rows: list[dict[str, Any]] = run.history().to_pylist()
    return [row["train_loss"] for row in rows if row["kind"] == "epoch"]


def architecture(run: ftray.Run) -> list[str]:
    """The class of transformers that the artifact says it is."""
    found = json.loads(Path(run.artifact_id, "config.json").read_text())["architectures"]
    assert isinstance(found, list)
    return found
