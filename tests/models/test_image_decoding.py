"""What lies in a file becomes an upright image of 8 bits a channel, or one clear error."""

from __future__ import annotations

import base64
import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ftray.errors import DataError, ModelError
from ftray.media import Media
from ftray.models.pictures import PictureReader, colour, decoded, image_of, thumbnail
from tests.models.pictures import encoded, picture

GRADIENT = np.arange(12 * 8 * 3, dtype=np.uint8).reshape(8, 12, 3)


def pixels(media: Media, **options: object) -> np.ndarray:
    return np.asarray(decoded(media, **options)).astype(int)  # type: ignore[arg-type]


@pytest.mark.parametrize("form", ["PNG", "BMP", "WEBP", "TIFF", "GIF", "PPM", "JPEG"])
def test_formats(form: str) -> None:
    options = {"WEBP": {"lossless": True}, "JPEG": {"quality": 100, "subsampling": 0}}
    near = {"GIF": 60, "JPEG": 12}.get(form, 0)  # GIF has a palette
    found = pixels(picture(Image.fromarray(GRADIENT), form, **options.get(form, {})))
    assert found.shape == GRADIENT.shape
    assert np.abs(found - GRADIENT).mean() <= near


def test_a_file_is_read_where_there_are_no_bytes(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(encoded(Image.fromarray(GRADIENT)))
    media = Media(modality="image", address=str(tmp_path / "a.png"))
    assert (pixels(media) == GRADIENT).all()
    assert (pixels(picture(Image.fromarray(GRADIENT))) == GRADIENT).all()


@pytest.mark.parametrize(
    ("orientation", "turned"),
    [(1, GRADIENT), (3, GRADIENT[::-1, ::-1]), (6, np.rot90(GRADIENT, -1)), (2, GRADIENT[:, ::-1])],
)
def test_the_orientation_of_a_camera_is_applied(orientation: int, turned: np.ndarray) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    media = picture(Image.fromarray(GRADIENT), exif=exif)
    assert (pixels(media) == turned).all()


def test_what_is_transparent_shows_the_background() -> None:
    rgba = np.dstack([GRADIENT, np.full(GRADIENT.shape[:2], 255, np.uint8)])
    rgba[0, :, 3] = 0
    rgba[1, :, 3] = 128
    media = picture(Image.fromarray(rgba))
    white, black = pixels(media), pixels(media, background=colour("black"))
    assert (white[0] == 255).all() and (black[0] == 0).all()
    assert np.abs(black[1] - GRADIENT[1] * (128 / 255)).max() <= 1
    assert (white[2:] == GRADIENT[2:]).all()
    blue = pixels(media, background=colour("#0000ff"))
    assert blue[0, 0].tolist() == [0, 0, 255]


def test_palettes_with_and_without_transparency() -> None:
    image = Image.new("P", (4, 4))
    image.putpalette([10, 20, 30, 200, 100, 50])
    image.putpixel((0, 0), 1)
    assert pixels(picture(image))[0, 0].tolist() == [200, 100, 50]
    found = pixels(picture(image, transparency=1))
    assert found[0, 0].tolist() == [255, 255, 255]
    assert found[1, 1].tolist() == [10, 20, 30]


def test_grey_with_alpha_and_one_bit_images() -> None:
    grey = np.dstack([np.full((4, 4), 7, np.uint8), np.full((4, 4), 0, np.uint8)])
    assert (pixels(picture(Image.fromarray(grey)), mode="L") == 255).all()
    assert (pixels(picture(Image.new("1", (4, 4), 1)), mode="L") == 255).all()


@pytest.mark.parametrize("form", ["PNG", "TIFF", "PPM"])
def test_16_bit_grey_keeps_its_high_byte(form: str) -> None:
    values = (np.arange(16, dtype=np.uint16) * 257 * 17).reshape(4, 4)
    found = pixels(picture(Image.fromarray(values), form), mode="L")
    assert found.ravel().tolist() == [17 * i for i in range(16)]


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "in no image format"),
        (b"not an image at all", "in no image format"),
        (encoded(Image.fromarray(GRADIENT))[:-40], "truncated|cannot be decoded"),
        (encoded(Image.fromarray(GRADIENT))[:30], "cannot be decoded"),
        (encoded(Image.new("F", (4, 4)), "TIFF"), "floating-point pixels"),
    ],
)
def test_broken_images_are_named(data: bytes, reason: str) -> None:
    media = picture(data)
    with pytest.raises(DataError, match=reason) as error:
        decoded(media)
    assert media.name in str(error.value)


def test_a_bit_error_is_noticed() -> None:
    rng = np.random.default_rng(0)
    data = bytearray(encoded(Image.fromarray(rng.integers(0, 256, (40, 40, 3), dtype=np.uint8))))
    data[len(data) // 2] ^= 0xFF
    with pytest.raises(DataError, match="cannot be decoded"):
        decoded(picture(bytes(data)))


def test_a_missing_or_broken_file_is_named_with_its_path(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"'.*/none\.png' cannot be read: No such file"):
        decoded(Media(modality="image", address=str(tmp_path / "none.png")))
    (tmp_path / "bad.png").write_bytes(b"bad")
    with pytest.raises(DataError, match=r"'.*/bad\.png' cannot be decoded"):
        decoded(Media(modality="image", address=str(tmp_path / "bad.png")))


@pytest.mark.parametrize("factor", [1.5, 3])  # Pillow warns of the first and refuses the second
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_a_decompression_bomb_is_refused(factor: float, monkeypatch: pytest.MonkeyPatch) -> None:
    media = picture(Image.new("L", (100, 100)))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", int(10_000 / factor))
    with pytest.raises(DataError, match=r"more than [\d,]+ pixels: it may be a decompression bomb"):
        decoded(media)


def test_what_is_no_image_is_refused() -> None:
    with pytest.raises(ModelError, match="'m' encodes images, and 'a text' is a text"):
        image_of("a text", "m")
    cloud = Media(modality="points", address="x/bunny.off")
    with pytest.raises(ModelError, match=r"bunny\.off is of the kind 'points'"):
        image_of(cloud, "m")


def test_the_reader_resizes_and_normalises() -> None:
    reader = PictureReader(
        size=4, mode="L", background=colour("white"), invert=True, mean=[0.25], std=[0.5]
    )
    white, black = (picture(Image.new("RGB", (9, 5), name)) for name in ("white", "black"))
    found = reader.pixels([reader.decoded(white), reader.decoded(black)])
    assert found.shape == (2, 1, 4, 4)
    assert (found[0] == -0.5).all() and (found[1] == 1.5).all()


def test_resizing_is_pillows_bilinear() -> None:
    reader = PictureReader(
        size=6,
        mode="RGB",
        background=colour("white"),
        invert=False,
        mean=[0.0, 0.1, 0.2],
        std=[1.0, 2.0, 4.0],
    )
    image = Image.fromarray(GRADIENT)
    want = np.asarray(image.resize((6, 6), Image.Resampling.BILINEAR)) / 255
    want = (want - [0.0, 0.1, 0.2]) / [1.0, 2.0, 4.0]
    found = reader.pixels([reader.decoded(picture(image))])[0].permute(1, 2, 0)
    assert np.abs(found.numpy() - want).max() < 1e-6


def test_an_animation_gives_its_first_frame() -> None:
    frames = [Image.new("RGB", (4, 4), name) for name in ("red", "blue")]
    buffer = io.BytesIO()
    frames[0].save(buffer, "GIF", save_all=True, append_images=frames[1:])
    assert pixels(picture(buffer.getvalue()))[0, 0].tolist() == [255, 0, 0]


@pytest.mark.parametrize(
    ("size", "shown"),
    [((8, 8), (96, 96)), ((20, 8), (80, 32)), ((60, 30), (60, 30)), ((400, 200), (96, 48))],
)
def test_a_thumbnail_is_as_large_as_one_can_see(
    size: tuple[int, int], shown: tuple[int, int]
) -> None:
    image = Image.new("RGB", size, (200, 60, 20))
    kind, _, data = thumbnail(picture(image)).partition(",")
    found = Image.open(io.BytesIO(base64.b64decode(data)))
    assert kind == "data:image/webp;base64" and found.size == shown
    assert np.abs(np.asarray(found).mean((0, 1)) - (200, 60, 20)).max() < 10
