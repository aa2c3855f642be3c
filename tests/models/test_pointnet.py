"""PointNet++: its parts against plain ones, invariances, and a fit on meshes."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import ftray
from ftray.callbacks import EvaluationCallback
from ftray.clouds import to_npy_bytes
from ftray.errors import ConfigError, DataError, ModelError
from ftray.models.pointnet import ball_points, farthest_points
from ftray.models.registry import load_encoder
from tests.models.tensors import labelled, media

TINY = {"points": 64, "width": 0.1, "output_dim": 16}
SHAPES = ("pyramid", "ridge along x", "ridge along y")


def mesh(shape: str, rng: np.random.Generator) -> bytes:
    """A solid as .off: its upper face is a point or a line; stretched, moved, with noise."""
    box = np.array(list(itertools.product((-1, 1), repeat=3)), float)
    faces = ["4 0 1 3 2", "4 4 5 7 6", "4 0 1 5 4", "4 2 3 7 6", "4 0 2 6 4", "4 1 3 7 5"]
    above = {"pyramid": [0, 0, 1], "ridge along x": [1, 0, 1], "ridge along y": [0, 1, 1]}[shape]
    corners = np.where(box[:, 2:] > 0, box * above, box) * rng.uniform(0.7, 1.4, 3)
    corners = corners + rng.normal(0, 0.05, corners.shape)
    corners = corners * rng.uniform(0.1, 9) + rng.normal(0, 5, 3)
    rows = [" ".join(f"{x:.6f}" for x in corner) for corner in corners]
    return "\n".join([f"OFF{len(corners)} {len(faces)} 0", *rows, *faces]).encode()


def meshes(n: int, seed: int) -> Any:
    rng = np.random.default_rng(seed)
    names = [SHAPES[i % len(SHAPES)] for i in range(n)]
    return labelled("points", [mesh(name, rng) for name in names], names)


def clouds(n: int, points: int, seed: int = 0) -> torch.Tensor:
    rng = np.random.default_rng(seed)
    found = torch.from_numpy(rng.normal(size=(n, points, 3)))
    return found / found.norm(dim=2).amax(dim=1)[:, None, None]


def test_farthest_points_are_those_of_a_plain_loop() -> None:
    places = clouds(3, 40)
    for cloud, got in zip(places, farthest_points(places, 12).tolist(), strict=True):
        want = [int((cloud - cloud.mean(dim=0)).norm(dim=1).argmax())]
        while len(want) < 12:
            far = [min(float((point - cloud[i]).norm()) for i in want) for point in cloud]
            want.append(int(np.argmax(far)))
        assert got == want


def test_balls_hold_the_nearest_points_within_their_radius() -> None:
    places = clouds(2, 50)
    centres = places[:, :7]
    balls = ball_points(places, centres, 0.5, 8)
    assert balls.shape == (2, 7, 8)
    short = 0
    for cloud, row, own in zip(places, balls.tolist(), centres, strict=True):
        for number, (ball, centre) in enumerate(zip(row, own, strict=True)):
            distances = (cloud - centre).norm(dim=1).numpy()
            inside = [int(i) for i in np.argsort(distances) if distances[i] <= 0.5][:8]
            short += len(inside) < 8
            assert ball == inside + [number] * (8 - len(inside))
    assert short, "no ball had too few points"


@pytest.fixture(scope="module")
def encoder() -> Any:
    """With running statistics that are not those of a new net."""
    made = load_encoder("pointnet-base", options=TINY).double()
    made.train()
    for seed in range(3):
        made.encode({"points": clouds(8, 64, seed)})
    return made.eval()


def test_the_order_of_the_points_does_not_matter(encoder: Any) -> None:
    points = clouds(4, 64, 9)
    order = torch.from_numpy(np.random.default_rng(1).permutation(64))
    want = encoder.encode({"points": points})
    got = encoder.encode({"points": points[:, order]})
    assert (got - want).abs().max() < 1e-9
    assert (want[0] - want[1]).abs().max() > 1e-3


def test_place_and_size_of_a_cloud_do_not_matter(encoder: Any) -> None:
    points = clouds(1, 64, 9)[0].numpy()
    # the same points, drawn in another order, as the seed is that of the content
    items = media("points", [to_npy_bytes(points), to_npy_bytes(points * 8 + 4)])
    first, second = encoder(encoder.collate(items))
    assert (first - second).abs().max() < 1e-3 * first.abs().max()


def test_evaluation_draws_by_the_content_and_training_by_the_step(encoder: Any) -> None:
    items = media("points", [mesh("pyramid", np.random.default_rng(0))] * 2)
    one, two = encoder.collate(items).forwards[0]["points"]
    assert torch.equal(one, two) and one.shape == (64, 3)
    draws = np.array([1, 2], np.uint64)
    one, two = encoder.collate(items, draws=draws).forwards[0]["points"]
    assert not torch.equal(one, two)
    again = encoder.collate(items[:1], draws=draws[:1]).forwards[0]["points"][0]
    assert torch.equal(one, again)
    assert float(one.norm(dim=1).max()) == pytest.approx(1, abs=1e-5)
    assert encoder(encoder.collate([])).shape == (0, 16)


def test_augmentation_changes_clouds_in_training_alone() -> None:
    plain = load_encoder("pointnet-base", options=TINY)
    turned = load_encoder("pointnet-base", options=TINY, augmentation={"rotate": 180})
    items, draws = media("points", [to_npy_bytes(clouds(1, 64)[0])]), np.array([3], np.uint64)
    one, two = (e.collate(items, draws=draws).forwards[0]["points"] for e in (plain, turned))
    assert not torch.allclose(one, two)
    torch.testing.assert_close(one[..., 2], two[..., 2])  # about the upward axis
    one, two = (e.collate(items).forwards[0]["points"] for e in (plain, turned))
    assert torch.equal(one, two)
    with pytest.raises(ConfigError, match="no operation 'flip' on point clouds"):
        load_encoder("pointnet-base", options=TINY, augmentation={"flip": 0.5})


def test_the_width_of_the_authors_net() -> None:
    """Their three levels, and a linear layer; biases before norms are left out."""
    widths = [[3, 64, 64, 128], [131, 128, 128, 256], [259, 256, 512, 1024], [1024, 512]]
    layers = [pair for width in widths for pair in itertools.pairwise(width)]
    want = sum(a * b + 2 * b for a, b in layers)
    encoder = load_encoder("pointnet-base")
    assert sum(p.numel() for p in encoder.parameters()) == want
    assert encoder.embedding_dim == 512 and encoder.couples_rows


def test_what_it_cannot_encode_is_refused_by_name(encoder: Any) -> None:
    with pytest.raises(DataError, match=r"'1\.bin' announces 8 vertices and 6 faces, but has 3"):
        good = mesh("pyramid", np.random.default_rng(0))
        encoder.collate(media("points", [good, b"\n".join(good.splitlines()[:4])]))
    with pytest.raises(ModelError, match="not a text"):
        encoder.collate([("", "words")])


def fit(folder: Path, **more: Any) -> Any:
    settings: dict[str, Any] = {
        "model": "pointnet-base",
        "model_options": TINY,
        "train_data": meshes(96, 0),
        "loss": "SupConLoss",
        "loss_options": {"temperature": 0.3},
        "batch_size": 32,
        "learning_rate": 0.01,
        "epochs": 14,
        "num_workers": 0,
        "data_workers": 0,
        "storage_path": str(folder),
        "listeners": [],
        "callbacks": [EvaluationCallback(meshes(60, 1), limit=1)],
    }
    return ftray.fit(**settings | more)


def test_a_fit_learns_shapes_and_its_artifact_gives_the_same_embeddings(tmp_path: Path) -> None:
    run = fit(tmp_path)
    metrics = run.metrics()
    before, after = (metrics[when]["precision_at_k"] for when in ("before", "after"))
    assert before < 0.75 and after > 0.85
    items = media("points", [mesh(shape, np.random.default_rng(5)) for shape in SHAPES])
    first, second = (load_encoder(f"{run.path}/artifact").eval() for _ in range(2))
    assert first.options.points == 64
    assert torch.equal(first(first.collate(items)), second(second.collate(items)))
    moved = first.net.state_dict()["head.1.running_mean"].abs().max()
    assert moved > 0, "the statistics of the batches are not in the artifact"


def test_steps_in_parts_are_refused_before_training(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"micro_batch_size = 4, but 'pointnet-base' has batch"):
        fit(tmp_path, micro_batch_size=4)
    with pytest.raises(ConfigError, match=r"num_workers = 64, .*a step has only 32 to encode"):
        fit(tmp_path, num_workers=64)
