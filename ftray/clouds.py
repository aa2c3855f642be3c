"""Point clouds and meshes: reading `.off` and `.npy`, and points drawn from a surface."""

from __future__ import annotations

import io
import math
import re
from collections.abc import Sequence
from typing import Any, NoReturn

import numpy as np
import numpy.typing as npt

from ftray.errors import DataError
from ftray.words import counted

__all__ = ["normalised", "read_cloud", "sampled_surface", "to_npy_bytes"]

Floats = npt.NDArray[np.float64]
Points = npt.NDArray[np.float32]
Faces = npt.NDArray[np.int64]

LARGEST = 50_000_000
"""The most vertices, faces or points that a file may announce."""
FEWEST = 3
FARTHEST = 1e30
"""Of coordinates, so that float32 holds them and their sums."""
NO_AREA = 1e-12
"""Of a mesh as large as 1: what is less is rounding."""
_NPY = b"\x93NUMPY"
_NPY_WIDTHS = (3, 6)
# ModelNet has files whose counts follow the keyword at once: "OFF123 456 0"
_OFF = re.compile(r"(?:ST)?C?N?OFF(?![A-Z])\s*(.*)", re.DOTALL)


def read_cloud(data: bytes | memoryview, name: str) -> tuple[Floats, Faces | None]:
    """Read a mesh (`.off`) or points (`.npy`), told apart by their first bytes.

    Args:
        data: the content of the file.
        name: what messages call it.

    Returns:
        Vertices `(V, 3)`, and triangles `(F, 3)` as numbers of vertices: polygons are cut into
        triangles. None where there are no faces. Colours and normals are passed over.

    Raises:
        DataError: for other formats, counts that do not agree with the file, coordinates that are
            not finite, fewer than three points.
    """
    raw = bytes(data)
    vertices, faces = _from_npy(raw, name) if raw.startswith(_NPY) else _from_off(raw, name)
    if len(vertices) < FEWEST:
        _refuse(name, f"has {counted(len(vertices), 'point')}: at least {FEWEST}")
    bad = np.flatnonzero(~(np.abs(vertices) <= FARTHEST).all(axis=1))
    if len(bad):
        where = f"first in point {bad[0] + 1}"
        _refuse(name, f"has coordinates that are not finite, or beyond {FARTHEST:g}: {where}")
    return vertices, faces


def _refuse(name: str, what: str) -> NoReturn:
    raise DataError(f"The point cloud '{name}' {what}") from None


def _from_npy(raw: bytes, name: str) -> tuple[Floats, None]:
    """Points of an array `(N, 3)` or `(N, 6)`; nothing is unpickled, and no header is believed."""
    stream = io.BytesIO(raw)
    try:
        version = np.lib.format.read_magic(stream)
        read: Any = {
            (1, 0): np.lib.format.read_array_header_1_0,
            (2, 0): np.lib.format.read_array_header_2_0,
        }[version]
        shape, by_columns, dtype = read(stream)
    except Exception:
        _refuse(name, "is a broken .npy file: its header cannot be read")
    if dtype.kind not in "fiu":
        _refuse(name, f"is an array of {dtype}: it must hold numbers")
    if len(shape) != 2 or shape[1] not in _NPY_WIDTHS:
        _refuse(name, f"is an array of shape {shape}: it must be (N, 3), or (N, 6) with normals")
    _check_count(shape[0], "points", name)
    there = len(raw) - stream.tell()
    if there != math.prod(shape) * dtype.itemsize:
        _refuse(name, f"is cut off: {there} bytes are not {counted(shape[0], 'point')}")
    flat = np.frombuffer(raw, dtype, offset=stream.tell())
    array = flat.reshape(shape, order="F" if by_columns else "C")
    return np.ascontiguousarray(array[:, :3], dtype=np.float64), None


def _from_off(raw: bytes, name: str) -> tuple[Floats, Faces | None]:
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError:
        _refuse(name, "is neither .off nor .npy")
    rows = (line.partition("#")[0].strip() for line in text.splitlines())
    lines = [row for row in rows if row]
    header = _OFF.fullmatch(lines[0]) if lines else None
    if header is None:
        _refuse(name, "is neither .off nor .npy")
    body = [header[1], *lines[1:]] if header[1] else lines[1:]
    if not body:
        _refuse(name, "is cut off: it has no counts of vertices and faces")
    n_vertices, n_faces = _counts(body[0], name)
    body = body[1:]
    if len(body) != n_vertices + n_faces:
        _refuse(
            name,
            f"announces {counted(n_vertices, 'vertex', 'vertices')} and "
            f"{counted(n_faces, 'face')}, but has {counted(len(body), 'line')} of them",
        )
    vertices = _numbers(body[:n_vertices], (0, 1, 2), np.float64, name, "vertex")
    faces = _triangles(body[n_vertices:], n_vertices, name)
    return vertices, faces if len(faces) else None


def _counts(line: str, name: str) -> tuple[int, int]:
    numbers = line.split()
    if len(numbers) not in (2, 3) or not all(re.fullmatch(r"[0-9]{1,18}", n) for n in numbers):
        _refuse(name, f"has no counts of vertices, faces and edges, but {line[:40]!r}")
    vertices, faces = map(int, numbers[:2])
    _check_count(vertices, "vertices", name)
    _check_count(faces, "faces", name)
    return vertices, faces


def _check_count(count: int, what: str, name: str) -> None:
    if count > LARGEST:
        _refuse(name, f"announces {count:,} {what}: at most {LARGEST:,}")


def _triangles(lines: list[str], n_vertices: int, name: str) -> Faces:
    """Faces `(F, 3)`: a polygon becomes triangles that share its first corner."""
    sizes = _numbers(lines, (0,), np.int64, name, "face")[:, 0]
    found = [np.zeros((0, 3), np.int64)]
    for size in np.unique(sizes[sizes >= 3]).tolist():
        if size > n_vertices:
            _refuse(name, f"has a face of {size} corners, but {n_vertices} vertices")
        of_size = [lines[i] for i in np.flatnonzero(sizes == size)]
        corners = _numbers(of_size, range(1, size + 1), np.int64, name, "face")
        first = np.repeat(corners[:, :1], size - 2, axis=1)
        found.append(np.stack([first, corners[:, 1:-1], corners[:, 2:]], axis=2).reshape(-1, 3))
    faces = np.concatenate(found)
    outside = faces[(faces < 0) | (faces >= n_vertices)]
    if len(outside):
        _refuse(name, f"has a face with vertex {outside[0]}: there are {n_vertices}, from 0 on")
    return faces


def _numbers(
    lines: list[str], columns: Sequence[int], dtype: type, name: str, what: str
) -> npt.NDArray[Any]:
    """Columns of lines of numbers, `(len(lines), len(columns))`."""
    if not lines:
        return np.zeros((0, len(columns)), dtype)
    try:
        return np.loadtxt(lines, dtype=dtype, usecols=columns, comments=None, ndmin=2)
    except (ValueError, IndexError, OverflowError):
        _refuse(name, f"has a {what} that is no line of numbers: {_bad(lines, columns, dtype)!r}")


def _bad(lines: list[str], columns: Sequence[int], dtype: type) -> str:
    """The first line that cannot be read."""
    for line in lines:
        try:
            np.loadtxt([line], dtype=dtype, usecols=columns, comments=None)
        except (ValueError, IndexError, OverflowError):
            return line[:40]
    return lines[0][:40]


def sampled_surface(
    vertices: Floats, faces: Faces | None, n: int, rng: np.random.Generator
) -> Points:
    """Points drawn from a mesh, evenly over its surface, `(n, 3)`.

    Without faces, or where these have no area, vertices are drawn: none twice before every one is
    there once.

    Args:
        vertices: `(V, 3)`, finite.
        faces: triangles `(F, 3)`, or None.
        n: how many points.
        rng: draws them.
    """
    if faces is not None:
        middle = vertices.mean(axis=0)
        size = np.abs(vertices - middle).max() or 1.0  # areas are finite whatever the size
        a, b, c = ((vertices[faces[:, corner]] - middle) / size for corner in range(3))
        areas = np.linalg.norm(np.cross(b - a, c - a), axis=1)
        if (total := areas.sum()) > NO_AREA:
            picked = rng.choice(len(faces), n, p=areas / total)
            root, along = np.sqrt(rng.random((n, 1))), rng.random((n, 1))
            a, b, c = a[picked], b[picked], c[picked]
            points = (1 - root) * a + root * (1 - along) * b + root * along * c
            return np.asarray(points * size + middle, np.float32)
    rounds = [rng.permutation(len(vertices)) for _ in range(math.ceil(n / len(vertices)))]
    drawn = np.concatenate([np.zeros(0, np.int64), *rounds])[:n]
    return np.asarray(vertices[drawn], np.float32)


def normalised(points: npt.NDArray[np.floating[Any]]) -> Points:
    """Points `(n, 3)` moved to their mean and scaled into the unit sphere, which one touches."""
    wide = points.astype(np.float64)
    wide -= wide.mean(axis=0)
    radius = np.linalg.norm(wide, axis=1).max()
    return np.asarray(wide / (radius or 1.0), np.float32)


def to_npy_bytes(points: npt.NDArray[Any]) -> bytes:
    """Points `(n, 3)` as a `.npy` file of little-endian float32; equal points give equal bytes."""
    stream = io.BytesIO()
    np.lib.format.write_array(stream, np.ascontiguousarray(points, dtype="<f4"), allow_pickle=False)
    return stream.getvalue()
