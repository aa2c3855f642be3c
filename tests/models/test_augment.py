"""Augmentation depends on the draw alone, does what its strengths say, and refuses what is not."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from PIL import Image

from ftray.errors import ConfigError
from ftray.models.augment import AUTO, check_augmentation, make_augmentation

RNG = np.random.default_rng(0)
PHOTO = Image.fromarray(RNG.integers(0, 256, (8, 8, 3), dtype=np.uint8)).resize((40, 30))
GREY = PHOTO.convert("L")
CLOUD = RNG.standard_normal((200, 3)).astype(np.float32)
IMAGE_OPERATIONS: dict[str, float] = {
    "flip": 1.0,
    "crop": 0.5,
    "shift": 0.3,
    "rotate": 30,
    "color": 0.5,
    "blur": 1.0,
    "erase": 0.2,
    "noise": 0.1,
}
CLOUD_OPERATIONS = {"rotate": 180, "jitter": 0.05, "scale": 0.3}


def images(given: Any, thing: Image.Image, draws: range = range(30)) -> np.ndarray:
    made = make_augmentation(given, "image")
    assert made is not None
    return np.stack([np.asarray(made(thing, draw)) for draw in draws]).astype(int)


@pytest.mark.parametrize("image", [PHOTO, GREY], ids=["RGB", "L"])
@pytest.mark.parametrize("operation", IMAGE_OPERATIONS)
def test_every_operation_changes_an_image_and_keeps_its_form(
    operation: str, image: Image.Image
) -> None:
    before = np.asarray(image).copy()
    found = images({operation: IMAGE_OPERATIONS[operation]}, image)
    assert found.shape[1:] == before.shape
    assert (found != before).reshape(len(found), -1).any(1).all()
    assert (np.asarray(image) == before).all(), "the image that was given is as it was"


@pytest.mark.parametrize("operation", CLOUD_OPERATIONS)
def test_every_operation_changes_a_cloud_and_keeps_its_form(operation: str) -> None:
    made = make_augmentation({operation: CLOUD_OPERATIONS[operation]}, "pointnet")
    assert made is not None
    before = CLOUD.copy()
    found = made(CLOUD, 5)
    assert found.shape == CLOUD.shape and found.dtype == CLOUD.dtype
    assert (found != CLOUD).any() and (CLOUD == before).all()


@pytest.mark.parametrize(
    ("given", "kind", "thing"),
    [(IMAGE_OPERATIONS, "image", PHOTO), (CLOUD_OPERATIONS, "pointnet", CLOUD)],
)
def test_the_draw_alone_decides(given: Any, kind: str, thing: Any) -> None:
    one, other = make_augmentation(given, kind), make_augmentation(given, kind)
    assert one is not None and other is not None
    draws = np.random.SeedSequence(3).generate_state(8, np.uint64)
    forwards = [np.asarray(one(thing, draw)) for draw in draws]
    backwards = [np.asarray(other(thing, draw)) for draw in draws[::-1]][::-1]
    for first, second in zip(forwards, backwards, strict=True):
        assert (first == second).all()
    assert len({array.tobytes() for array in forwards}) == len(draws)


def test_a_flip_is_a_mirror_image_and_as_probable_as_asked() -> None:
    mirror = np.asarray(PHOTO)[:, ::-1]
    assert (images({"flip": 1}, PHOTO) == mirror).all()
    flipped = (images({"flip": 0.3}, PHOTO, range(400)) == mirror).reshape(400, -1).all(1)
    assert 0.22 < flipped.mean() < 0.38


def test_a_shift_moves_by_whole_pixels_over_the_colour_of_the_border() -> None:
    sign = np.full((20, 20), 200, np.uint8)
    sign[8:12, 8:12] = 10
    found = images({"shift": 0.25}, Image.fromarray(sign), range(100))
    assert ((found == 10).sum((1, 2)) == 16).all(), "nothing else is changed"
    assert ((found == 200).sum((1, 2)) == 384).all()
    tops = (found == 10).any(2).argmax(1)
    assert tops.min() == 3 and tops.max() == 13


def test_a_turn_fills_with_the_colour_of_the_border() -> None:
    assert (images({"rotate": 45}, Image.new("RGB", (20, 20), "red")) == [255, 0, 0]).all()


def test_a_crop_keeps_at_least_its_share() -> None:
    """Of a ramp, the range of values left tells the share of the width that is left."""
    ramp = Image.fromarray(np.tile(np.linspace(0, 255, 120), (120, 1)).astype(np.uint8))
    found = images({"crop": 0.81}, ramp, range(200))
    left = (found.max((1, 2)) - found.min((1, 2))) / 255
    assert left.min() > 0.9 * np.sqrt(3 / 4) - 0.03 and left.min() < 0.9
    assert left.max() > 0.97


def test_noise_has_its_standard_deviation() -> None:
    grey = Image.new("L", (100, 100), 128)
    assert abs((images({"noise": 0.05}, grey, range(3)) - 128).std() / 255 - 0.05) < 0.002


def test_an_erased_rectangle_has_its_share_of_the_area() -> None:
    board = np.indices((60, 60)).sum(0) % 2 * 255
    found = images({"erase": 0.25}, Image.fromarray(board.astype(np.uint8)), range(20))
    shares = ((found != 0) & (found != 255)).mean((1, 2))
    assert np.abs(shares - 0.25).max() < 0.03
    whole = images({"erase": 0.99}, Image.fromarray(board.astype(np.uint8)), range(20))
    assert ((whole != 0) & (whole != 255)).mean((1, 2)).min() > 0.9


def test_grey_stays_grey_and_brightness_is_bounded() -> None:
    flat = Image.new("L", (8, 8), 100)
    found = images({"color": 0.2}, flat, range(100))
    assert found.min() >= 79 and found.max() <= 121


def test_a_cloud_turns_about_the_upward_axis() -> None:
    made = make_augmentation({"rotate": 180}, "pointnet")
    assert made is not None
    found = made(CLOUD, 1)
    assert (found[:, 2] == CLOUD[:, 2]).all()
    assert np.allclose(np.linalg.norm(found, axis=1), np.linalg.norm(CLOUD, axis=1), atol=1e-5)


def test_clouds_are_scaled_and_jittered_as_far_as_asked() -> None:
    scale, jitter = (make_augmentation({name: 0.1}, "pointnet") for name in ("scale", "jitter"))
    assert scale is not None and jitter is not None
    ratios = [float((scale(CLOUD, draw) / CLOUD).mean()) for draw in range(50)]
    assert 0.9 <= min(ratios) < 0.92 and 1.08 < max(ratios) <= 1.1
    assert abs((jitter(CLOUD, 1) - CLOUD).std() - 0.1) < 0.01


# ------------------------------------------------------------------ what is asked for


def test_auto_suits_the_kind() -> None:
    for kind, operations in AUTO.items():
        made, same = make_augmentation("auto", kind), make_augmentation(operations, kind)
        assert made == same
    assert make_augmentation("auto", "convnet") is None
    assert make_augmentation("auto", "text") is None
    assert make_augmentation("auto", "module") is None
    made = make_augmentation("auto", "image")
    assert made is not None and (made.flip, made.crop, made.color) == (0.5, 0.8, 0.2)  # type: ignore[attr-defined]


@pytest.mark.parametrize("given", ["none", {}, {"flip": 0}, {"crop": 1.0, "noise": 0}])
def test_nothing_asked_is_nothing_done(given: Any) -> None:
    assert make_augmentation(given, "image") is None


@pytest.mark.parametrize(
    ("given", "kind", "message"),
    [
        ({"flipp": 0.5}, "image", "no operation 'flipp' on images. Did you mean 'flip'?"),
        ({"jitter": 0.1}, "image", "no operation 'jitter' on images"),
        ({"flip": 0.5}, "pointnet", "no operation 'flip' on point clouds"),
        ({"flip": 1.5}, "convnet", "augmentation.flip = 1.5: input should be less than"),
        ({"crop": 0}, "clip", "augmentation.crop = 0: input should be greater than 0"),
        ({"noise": float("nan")}, "image", "augmentation.noise = nan"),
        ({"shift": "far"}, "image", "augmentation.shift = 'far': input should be a valid number"),
        ("atuo", "image", "Did you mean 'auto'?"),
        ({"flip": 0.5}, "text", "not what a model of the kind 'text' takes"),
        ({"flip": 0.5}, "module", "A preprocess_fn with a parameter rng may augment."),
    ],
)
def test_what_cannot_be_done_is_refused(given: Any, kind: str, message: str) -> None:
    for refused in (make_augmentation, check_augmentation):
        with pytest.raises(ConfigError) as error:
            refused(given, kind)
        assert message in str(error.value)


def test_without_a_kind_both_families_are_known() -> None:
    for given in ("auto", "none", {}, IMAGE_OPERATIONS, CLOUD_OPERATIONS):
        check_augmentation(given)
    with pytest.raises(ConfigError, match="no operation 'flipp'"):
        check_augmentation({"flipp": 1})
