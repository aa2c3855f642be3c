"""Values of Python to cells: strings, and references to things that are no texts.

What a value is, its type tells; what an array is, the model's modalities, or else its shape. A
string stays one here: whether it is a text or an address is told by the whole column
(`addresses.py`).
"""

from __future__ import annotations

import hashlib
import io
import os
import sys
from collections.abc import Mapping
from numbers import Real
from typing import Any

import numpy as np
import numpy.typing as npt

from ftray.clouds import read_cloud, sampled_surface, to_npy_bytes
from ftray.config import CsvOptions
from ftray.data.columns import role_of
from ftray.data.pictures import (
    IMAGE_SUFFIXES,
    POINT_SUFFIXES,
    array_as_png,
    image_as_png,
    modality_of_address,
    modality_of_bytes,
)
from ftray.errors import DataError
from ftray.media import MARK, BlobBuilder, Modality, reference

__all__ = [
    "LISTS",
    "SCORE_ROLES",
    "TEXTS",
    "Values",
    "is_plain_role",
    "is_thing",
    "plain",
    "typed_address",
]

SCORE_ROLES = ("score", "document_score", "negative_score")
_PLAIN_ROLES = ("label", *SCORE_ROLES, "id")
"""Roles whose cells are strings and nothing else."""

TEXTS: frozenset[Modality] = frozenset(("text",))
"""What a model takes that takes nothing but texts."""

FEATURES: frozenset[Modality] = frozenset(("features",))

FEWEST_POINTS = 16
"""An array `(N, 3)` of fewer rows is not taken for a point cloud by its shape."""

_URLS: dict[str, Modality] = {
    "ImageUrl": "image",
    "Mesh3DUrl": "points",
    "PointCloud3DUrl": "points",
}
LISTS = (
    "Only documents, negatives and a teacher's scores may be lists, in named columns and in every "
    "row, the first too."
)
_VALID = "a text, an image (bytes, PIL, array), an array of numbers, or {bytes, path}"


class Values:
    """Makes cells of values, and keeps their contents.

    Args:
        modalities: what the model takes; None = not known.
        options: whether and how point clouds are made.
    """

    def __init__(self, modalities: frozenset[Modality] | None, options: CsvOptions) -> None:
        self.modalities = modalities
        self.blobs = BlobBuilder()
        self.scaled = 0
        """How many images were floats."""
        self._options = options
        self._widths: dict[str, tuple[int, str]] = {}

    def is_vector(self, value: Any) -> bool:
        """Whether a list or tuple is one thing: numbers, for a model that takes features alone."""
        return (
            self.modalities == FEATURES
            and isinstance(value, list | tuple)
            and len(value) > 0
            and all(isinstance(one, Real) and not isinstance(one, bool) for one in value)
        )

    def cell(self, value: Any, role: str, place: str) -> str | None:
        """The cell that stands for a value.

        Args:
            value: a text, a number, a path, bytes, an image of PIL's, an array, a tensor, a list
                of numbers, or `{bytes, path}`, as Hugging Face has images; None = nothing.
            role: the column's role; labels, scores and ids are strings.
            place: where it stands, for messages.

        Raises:
            DataError: for any other value, or one that cannot be what it is taken for.
        """
        if isinstance(value, os.PathLike):
            address = os.fsdecode(value)
            return plain(address, place) if is_plain_role(role) else self.path(address, place)
        if value is None or isinstance(value, str | bool | int | float | np.generic):
            return typed_address(value) or plain(value, place)
        if is_plain_role(role):
            raise _no_text(value, place, "a text or a number")
        if isinstance(value, bytes | bytearray | memoryview):
            return self.encoded(bytes(value), role, place)
        if isinstance(value, Mapping) and {"bytes", "path"} >= set(value):
            return self.stored(value.get("bytes"), value.get("path"), role, place)
        if _is_picture(value):
            return self.blobs.add("image", image_as_png(value, place))
        return self.array(_as_array(value, place), role, place)

    def path(self, address: str, place: str) -> str:
        """A path that is an object, and so no text; what is there, its ending or the model says.

        Raises:
            DataError: if neither does, or the model does not take it.
        """
        if self.modalities == TEXTS:
            raise DataError(
                f"{place}: '{address}' is a path, but the model takes text. Give the text that is "
                "in the file, or, if the name is the text, the name as a str."
            )
        modality = modality_of_address(address, self.modalities)
        if modality is None:
            raise DataError(
                f"{place}: what the path '{address}' is, neither its ending tells nor the model. "
                f"Images end in {', '.join(IMAGE_SUFFIXES)}; points in {', '.join(POINT_SUFFIXES)}."
            )
        self._check_taken(modality, place)
        return reference(modality, address)

    def stored(self, data: Any, path: str | None, role: str, place: str) -> str | None:
        """An image as Hugging Face's data sets hold it: its bytes, else its file."""
        if data is not None:
            return self.encoded(data, role, place)
        if not path:
            return None
        self._check_taken("image", place)
        return reference("image", path)

    def encoded(
        self, data: bytes | memoryview, role: str, place: str, *, taken_for: Modality | None = None
    ) -> str | None:
        """Bytes of a file, by their first ones; `taken_for` where these tell nothing."""
        if not len(data):
            return None
        start = bytes(data[:12])
        modality = modality_of_bytes(start) or taken_for
        if modality == "features":
            return self.array(_numpy_array(bytes(data), place), role, place)
        if modality is None:
            raise DataError(
                f"{place}: {len(data):,} bytes that start with {start!r} are no image. Valid: a "
                "file of PNG, JPEG, GIF, BMP, WebP or TIFF, or of points (OFF, NPY)."
            )
        self._check_taken(modality, place)
        if modality == "points":
            return self.cloud(data, place)
        return self.blobs.add(modality, data)

    def array(self, array: npt.NDArray[Any], role: str, place: str) -> str:
        """An array as an image, a point cloud or features."""
        modality = self._of_array(array)
        self._check_taken(modality, place)
        if modality == "features":
            return self.features(array, role, place)
        if modality == "points":
            return self._points(array, place)
        data, scaled = array_as_png(array, place)
        self.scaled += scaled
        return self.blobs.add("image", data)

    def features(self, array: npt.NDArray[Any], role: str, place: str) -> str:
        """A vector of numbers; those of one column have one width."""
        if array.ndim != 1 or not array.size:
            raise DataError(
                f"{place}: an array of shape {array.shape} is no vector of features: one "
                "dimension is expected."
            )
        with np.errstate(over="ignore"):
            vector = array.astype("<f4")
        bad = np.flatnonzero(~np.isfinite(vector))
        if len(bad):
            raise DataError(
                f"{place}: number {bad[0] + 1} of {len(vector)} is {array[bad[0]]}, which is not "
                "finite in float32."
            )
        width, first = self._widths.setdefault(role, (len(vector), place))
        if len(vector) != width:
            raise DataError(f"{place}: {len(vector)} numbers, but {width} at {first}.")
        return self.blobs.add("features", vector.tobytes())

    def cloud(self, data: bytes | memoryview, place: str) -> str:
        """A file of points or of a mesh: kept, or points drawn from it, the same at any time.

        Raises:
            DataError: for a file that cannot be read.
        """
        try:
            vertices, faces = read_cloud(data, "here")
        except DataError as error:
            message = str(error)
            raise DataError(f"{place}: {message[:1].lower()}{message[1:]}") from None
        if not self._options.create_point_clouds:
            return self.blobs.add("points", data)
        draws = np.random.default_rng(list(hashlib.sha256(data).digest()))
        points = sampled_surface(vertices, faces, self._options.point_cloud_size, draws)
        return self.blobs.add("points", to_npy_bytes(points))

    def _points(self, array: npt.NDArray[Any], place: str) -> str:
        if array.ndim != 2 or array.shape[1] not in (3, 6) or array.dtype.kind not in "fiu":
            raise DataError(
                f"{place}: an array of shape {array.shape} is no point cloud: (points, 3) is "
                "expected, or (points, 6) with normals."
            )
        return self.cloud(to_npy_bytes(array[:, :3]), place)

    def _of_array(self, array: npt.NDArray[Any]) -> Modality:
        things = (self.modalities or frozenset()) - {"text"}
        if len(things) == 1:
            return next(iter(things))
        if array.ndim == 1:
            return "features"
        is_cloud = array.ndim == 2 and array.shape[1] == 3 and len(array) >= FEWEST_POINTS
        return "points" if is_cloud and array.dtype.kind == "f" else "image"

    def _check_taken(self, modality: Modality, place: str) -> None:
        if self.modalities is not None and modality not in self.modalities:
            taken = " and ".join(sorted(self.modalities))
            raise DataError(f"{place}: of the kind '{modality}', but the model takes {taken}.")


def is_plain_role(name: str) -> bool:
    """Whether the cells of a column of ours are strings, and nothing else."""
    return role_of(name) in _PLAIN_ROLES


def is_thing(value: Any) -> bool:
    """Whether a value is an image, an array, or the path of one by its type."""
    if isinstance(value, bytes | bytearray | memoryview | os.PathLike):
        return True
    return hasattr(value, "__array__") or hasattr(value, "__array_interface__")


def plain(value: Any, place: str) -> str | None:
    """A text or a number as a string; a missing number, as pandas writes it, is None.

    Raises:
        DataError: for a text that holds U+0000.
    """
    if value is None or value != value:
        return None
    if isinstance(value, bool | np.bool_):
        return str(value).lower()
    text = str(value)
    if MARK in text:
        raise DataError(f"{place}: a text with the character U+0000, which no text may hold.")
    return text


def typed_address(value: Any) -> str | None:
    """The reference that an address of docarray's with a type stands for."""
    if type(value) is str or not isinstance(value, str):
        return None
    for base in type(value).__mro__:
        if base.__name__ in _URLS:
            return reference(_URLS[base.__name__], str(value))
    return None


def _is_picture(value: Any) -> bool:
    """Whether it is an image of PIL's, which is not imported for the question."""
    pil = sys.modules.get("PIL.Image")
    return pil is not None and isinstance(value, pil.Image)


def _as_array(value: Any, place: str) -> npt.NDArray[Any]:
    """An array of an array, a tensor, or a list of numbers."""
    if hasattr(value, "detach"):  # torch: a tensor may need a gradient, or lie on a GPU
        value = value.detach().cpu()
        value = value.float() if value.dtype.is_floating_point else value
        value = value.numpy()
        if value.ndim == 3 and value.shape[0] in (1, 3, 4):
            return np.moveaxis(value, 0, -1)  # an image, with its channels first
    if not isinstance(value, list | tuple) and not hasattr(value, "__array__"):
        raise _no_text(value, place, _VALID)
    try:
        array = np.asarray(value)
    except ValueError:  # lists of different lengths
        array = np.empty(0, object)
    if array.dtype.kind not in "biuf":
        raise _no_text(value, place, _VALID)
    return array


def _no_text(value: Any, place: str, valid: str) -> DataError:
    is_list = isinstance(value, list | tuple) and all(isinstance(v, str | Real) for v in value)
    hint = f"{LISTS} " if is_list else ""
    return DataError(f"{place}: {type(value).__name__} is not a text. {hint}Valid: {valid}.")


def _numpy_array(data: bytes, place: str) -> npt.NDArray[Any]:
    """An array from the bytes of a .npy file; nothing is unpickled."""
    try:
        # Not np.load, which opens archives (.npz) and pickles as well.
        file = io.BytesIO(data)
        array: npt.NDArray[Any] = np.lib.format.read_array(file, allow_pickle=False)
    except (ValueError, EOFError, OSError, MemoryError) as error:
        raise DataError(f"{place}: a .npy file that cannot be read ({error}).") from None
    if array.dtype.kind not in "biuf":
        raise DataError(f"{place}: a .npy file of {array.dtype}. Valid: numbers.")
    return array
