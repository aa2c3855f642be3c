"""Reading meshes and point clouds, and drawing points of a surface."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest

from ftray.clouds import normalised, read_cloud, sampled_surface, to_npy_bytes
from ftray.errors import DataError

SQUARE = "0 0 0\n2 0 0\n2 1 0\n0 1 0\n"


def off(text: str) -> tuple[Any, Any]:
    return read_cloud(text.encode(), "shape.off")


def npy(array: Any) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array, allow_pickle=array.dtype == object)
    return stream.getvalue()


@pytest.mark.parametrize(
    "header",
    [
        "OFF\n4 1 0\n",
        "OFF4 1 0\n",
        "OFF 4 1\n",
        "# made by hand\nOFF # mesh\n\n4 1 4\n",
        "\ufeffOFF\r\n4 1 0\n",
    ],
)
def test_headers_as_they_are_found_in_the_wild(header: str) -> None:
    """ModelNet has files whose counts follow the keyword without a space."""
    vertices, faces = off(header + SQUARE + "4 0 1 2 3\n")
    assert vertices.tolist() == [[0, 0, 0], [2, 0, 0], [2, 1, 0], [0, 1, 0]]
    assert faces.tolist() == [[0, 1, 2], [0, 2, 3]]


def test_colours_normals_edges_and_comments_are_passed_over() -> None:
    rows = "".join(f"{row} 0.5 0.5 1\n" for row in SQUARE.splitlines())
    vertices, faces = off(f"COFF\n4 3 0\n{rows}2 0 1\n3 0 1 2 255 0 0 # red\n3 0 2 3\n")
    assert vertices[:, :2].max(axis=0).tolist() == [2, 1]
    assert faces.tolist() == [[0, 1, 2], [0, 2, 3]]
    assert off(f"OFF\n4 0 0\n{SQUARE}")[1] is None


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "is neither .off nor .npy"),
        ("solid cube", "is neither .off nor .npy"),
        ("OFFICE\n4 1 0\n", "is neither .off nor .npy"),
        ("OFF\n", "cut off: it has no counts"),
        ("OFF BINARY\n", "has no counts of vertices, faces and edges, but 'BINARY'"),
        ("OFF\n-4 1 0\n", "has no counts"),
        (f"OFF\n4 2 0\n{SQUARE}4 0 1 2 3\n", "4 vertices and 2 faces, but has 5 lines"),
        (f"OFF\n4 0 0\n{SQUARE}4 0 1 2 3\n", "4 vertices and 0 faces, but has 5 lines"),
        (f"OFF\n4 1 0\n{SQUARE}3 0 1 4\n", "a face with vertex 4: there are 4, from 0 on"),
        (f"OFF\n4 1 0\n{SQUARE}3 0 1 -1\n", "a face with vertex -1"),
        (f"OFF\n4 1 0\n{SQUARE}4 0 1 2\n", "a face that is no line of numbers: '4 0 1 2'"),
        (f"OFF\n4 1 0\n{SQUARE}9999999999 0 1 2\n", "a face of 9999999999 corners"),
        (f"OFF\n4 0 0\n{SQUARE.replace('2 1 0', '2 1')}", "a vertex .* numbers: '2 1'"),
        (f"OFF\n4 0 0\n{SQUARE.replace('2 1 0', '2 one 0')}", "a vertex .* numbers: '2 one 0'"),
        (f"OFF\n4 0 0\n{SQUARE.replace('2 1 0', '2 nan 0')}", "not finite.*first in point 3"),
        (f"OFF\n4 0 0\n{SQUARE.replace('2 1 0', '2 1e300 0')}", "beyond 1e.30.*in point 3"),
        ("OFF\n2 0 0\n0 0 0\n1 1 1\n", "has 2 points: at least 3"),
        ("OFF\n900000000 1 0\n0 0 0\n", "announces 900,000,000 vertices: at most 50,000,000"),
        ("OFF\n3 900000000 0\n0 0 0\n", "announces 900,000,000 faces"),
    ],
)
def test_a_broken_mesh_is_refused_with_its_name_and_what_is_wrong(text: str, said: str) -> None:
    with pytest.raises(DataError, match=f"^The point cloud 'shape.off' .*{said}"):
        off(text)


def test_bytes_that_are_no_text_are_refused() -> None:
    with pytest.raises(DataError, match="neither"):
        read_cloud(b"\xff\xfe\x00OFF", "a.off")


@pytest.mark.parametrize("dtype", ["<f4", ">f8", "<i2"])
@pytest.mark.parametrize("width", [3, 6])
@pytest.mark.parametrize("order", ["C", "F"])
def test_arrays_of_points(dtype: str, width: int, order: Any) -> None:
    array = np.arange(5 * width).reshape(5, width)
    points, faces = read_cloud(npy(np.asarray(array, dtype, order=order)), "a.npy")
    assert faces is None and points.dtype == np.float64
    assert points.tolist() == array[:, :3].tolist()


def header(shape: str, descr: str = "'<f4'") -> bytes:
    text = f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}}}".encode()
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (npy(np.zeros((5, 3)))[:-1], "cut off: 119 bytes are not 5 points"),
        (npy(np.zeros((5, 3))) + b"x", "121 bytes are not 5 points"),
        (npy(np.zeros((5, 4))), r"shape \(5, 4\): it must be \(N, 3\), or \(N, 6\)"),
        (npy(np.zeros(9)), r"shape \(9,\)"),
        (npy(np.full((5, 3), None)), "array of object: it must hold numbers"),
        (npy(np.full((5, 3), 1j)), "array of complex128"),
        (npy(np.full((5, 3), np.inf)), "not finite.*first in point 1"),
        (npy(np.zeros((2, 3))), "has 2 points: at least 3"),
        (b"\x93NUMPY\x01", "header cannot be read"),
        (header("(5, 3)", "__import__('os')"), "header cannot be read"),
        (header("(10**12, 3)"), "header cannot be read"),
        (header("(1000000000000, 3)"), "announces 1,000,000,000,000 points"),
        (header("(-5, 3)"), "cut off|header"),
    ],
)
def test_a_broken_array_is_refused(data: bytes, said: str) -> None:
    with pytest.raises(DataError, match=f"^The point cloud 'a.npy' .*({said})"):
        read_cloud(data, "a.npy")


def test_points_lie_on_the_surface_and_evenly() -> None:
    """A rectangle of 1 by 4 beside a triangle, which has a fifth of the whole area."""
    vertices = np.array(
        [[0, 0, 0], [4, 0, 0], [4, 1, 0], [0, 1, 0], [9, 0, 3], [11, 0, 3], [9, 1, 3.0]]
    )
    faces = np.array([[0, 1, 2], [0, 2, 3], [4, 5, 6], [0, 0, 1]])
    points = sampled_surface(vertices, faces, 20_000, np.random.default_rng(0))
    assert points.shape == (20_000, 3) and points.dtype == np.float32
    flat = points[points[:, 2] < 1]
    assert len(flat) / len(points) == pytest.approx(0.8, abs=0.01)
    assert np.abs(flat[:, 2]).max() < 1e-6 and flat[:, 0].max() <= 4
    counts, _, _ = np.histogram2d(flat[:, 0], flat[:, 1], bins=[4, 2], range=[[0, 4], [0, 1]])
    assert counts.min() / counts.max() > 0.85
    corner = points[points[:, 2] > 1]
    assert (
        np.allclose(corner[:, 2], 3) and ((corner[:, 0] - 9) / 2 + corner[:, 1] <= 1 + 1e-5).all()
    )
    again = sampled_surface(vertices, faces, 20_000, np.random.default_rng(0))
    assert (again == points).all()


@pytest.mark.parametrize("size", [1e-25, 1e25])
def test_very_small_and_very_large_meshes_have_areas(size: float) -> None:
    vertices, faces = off(f"OFF\n4 1 0\n{SQUARE}4 0 1 2 3\n")
    points = sampled_surface(vertices * size, faces, 100, np.random.default_rng(0))
    assert len(np.unique(points, axis=0)) == 100
    assert np.linalg.norm(normalised(points), axis=1).max() == pytest.approx(1)


def test_without_a_surface_vertices_are_drawn_none_twice_too_early() -> None:
    vertices = np.arange(15.0).reshape(5, 3)
    line = np.array([[0, 1, 2]])  # three vertices in a row: no area
    for faces in (None, line):
        rng = np.random.default_rng(0)
        assert len(np.unique(sampled_surface(vertices, faces, 4, rng), axis=0)) == 4
        _, counts = np.unique(sampled_surface(vertices, faces, 12, rng), axis=0, return_counts=True)
        assert sorted(counts.tolist()) == [2, 2, 2, 3, 3]


def test_normalised_clouds_are_centred_and_touch_the_unit_sphere() -> None:
    points = np.random.default_rng(0).normal(50, 3, (200, 3))
    got = normalised(points)
    assert np.abs(got.mean(axis=0)).max() < 1e-6
    assert np.linalg.norm(got, axis=1).max() == pytest.approx(1)
    assert (normalised(np.ones((4, 3))) == 0).all()


def test_points_come_back_from_their_bytes() -> None:
    points = np.random.default_rng(0).normal(size=(7, 3))
    data = to_npy_bytes(points)
    assert read_cloud(data, "x")[0].tolist() == points.astype(np.float32).tolist()
    assert data == to_npy_bytes(np.asfortranarray(points)) == to_npy_bytes(points[:].tolist())
