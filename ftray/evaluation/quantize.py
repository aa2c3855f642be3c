"""Smaller embeddings: fewer dimensions, 8 bits or 1 bit for each.

The codes are those of `sentence_transformers.util.quantize_embeddings`: "int8" cuts the range of
each dimension into 256 equal buckets, "ubinary" keeps its sign, eight to an unsigned byte. "binary"
is that byte less 128, a signed one: its bit 7 is turned. See docs/encoding.md for what it costs.

Light: it imports torch only when something is quantised.
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from ftray.errors import ConfigError, DataError, nearest

__all__ = ["QUANTIZATIONS", "Quantization", "bytes_per_vector", "check_dims", "check_quantize"]
__all__ += ["checked_ranges", "code_width", "dequantized", "quantization_ranges", "quantize"]
__all__ += ["shortened"]

Quantization = Literal["int8", "binary", "ubinary"]
QUANTIZATIONS: tuple[Quantization, ...] = ("int8", "binary", "ubinary")
BUCKETS = 256

Floats = npt.NDArray[np.float32]
Codes = npt.NDArray[Any]


def check_quantize(name: str | None, setting: str = "quantize") -> None:
    """Refuse a quantisation that does not exist, with the nearest one.

    Raises:
        ConfigError: for any other than None and `QUANTIZATIONS`.
    """
    if name is not None and name not in QUANTIZATIONS:
        raise ConfigError(
            f"{setting} = {name!r}: no such quantisation.{nearest(str(name), QUANTIZATIONS)}"
        )


def check_dims(dims: int | None, width: int | None = None, setting: str = "dims") -> None:
    """Refuse a number of dimensions that there are not.

    Args:
        dims: how many are kept; None = all.
        width: how many there are; None = not known yet.
        setting: what the user calls it, for messages.

    Raises:
        ConfigError: with the most there can be.
    """
    if dims is None:
        return
    if isinstance(dims, bool) or not isinstance(dims, int) or dims < 1:
        raise ConfigError(f"{setting} = {dims!r}: a positive number of dimensions")
    if width is not None and dims > width:
        raise ConfigError(f"{setting} = {dims}: the model's embeddings have {width} dimensions")


def shortened(vectors: Floats, dims: int | None, *, normalize: bool = False) -> Floats:
    """The first dimensions of embeddings, brought to length one if asked for.

    As in sentence-transformers, cutting alone leaves vectors shorter than one, whether or not the
    model normalises; cosines are not touched by that.

    Args:
        vectors: `(N, D)`.
        dims: how many dimensions are kept; None = all.
        normalize: whether to divide each row by its length; a row of zeros stays.

    Raises:
        ConfigError: if there are fewer dimensions.
    """
    check_dims(dims, vectors.shape[1])
    short = vectors if dims is None else np.ascontiguousarray(vectors[:, :dims])
    if not normalize:
        return short
    lengths = np.linalg.norm(short, axis=1, keepdims=True)
    return np.asarray(short / np.maximum(lengths, 1e-12), np.float32)  # torch's normalize


def quantization_ranges(vectors: npt.ArrayLike) -> Floats:
    """The least and the largest value of each dimension, `(2, D)`: what int8 codes go by.

    Whoever compares int8 codes must have made them with the same ranges.

    Args:
        vectors: `(N, D)` float32, a sample of what is to be quantised; some thousands are enough.

    Raises:
        DataError: for fewer than two vectors, or values that are not finite.
    """
    found = _numbers(vectors, "int8")
    if found.ndim != 2 or len(found) < 2:
        raise DataError(
            f"int8 needs the range of each dimension, and {_shape(found)} has none: give "
            "`ranges`, those of many vectors (ftray.quantization_ranges)."
        )
    if not np.isfinite(found).all():
        raise DataError("int8: the vectors hold NaN or infinity; they have no ranges.")
    return np.vstack([found.min(axis=0), found.max(axis=0)])


def checked_ranges(ranges: npt.ArrayLike, width: int) -> Floats:
    """Ranges that a user gave, as `(2, D)` float32.

    Raises:
        ConfigError: for anything but numbers, another shape, or a minimum above its maximum.
    """
    needed = (
        f"embeddings of {width} dimensions need an array of shape (2, {width}): the least and the "
        "largest value of each"
    )
    try:
        found = np.asarray(ranges, np.float32)
    except (ValueError, TypeError):  # texts, or rows of different lengths
        raise ConfigError(f"ranges: no array of numbers, but {needed}") from None
    if found.shape != (2, width):
        raise ConfigError(f"ranges: {_shape(found)}, but {needed}")
    if not np.isfinite(found).all() or bool((found[0] > found[1]).any()):
        raise ConfigError("ranges: the first row must be the least values, the second the largest")
    return found


def quantize(
    vectors: npt.ArrayLike, quantization: str, *, ranges: npt.ArrayLike | None = None
) -> Codes:
    """Embeddings as codes of 8 bits or 1 bit for each dimension.

    Args:
        vectors: `(N, D)` float32.
        quantization: "int8", "binary" or "ubinary".
        ranges: of int8, `(2, D)`, see `quantization_ranges`; None = those of the vectors. What lies
            outside gets the outermost bucket.

    Returns:
        int8: `(N, D)` int8. ubinary: `(N, ceil(D / 8))` uint8; bit 7 of byte 0 is the first
        dimension, 1 where it is above 0. binary: the same less 128 as int8, so that bit 7 of each
        byte is turned; Hamming distances between such codes are the same.

    Raises:
        ConfigError: for a quantisation that does not exist, or ranges that do not fit.
        DataError: if int8 has too few vectors to find ranges.
    """
    check_quantize(quantization, "quantization")
    found = _numbers(vectors, "quantize")
    if found.ndim != 2:
        raise DataError(f"quantize: {_shape(found)}, but (N, D) is expected.")
    if quantization != "int8" and ranges is not None:
        raise ConfigError(f"ranges are for int8; {quantization} has no use for them")
    limits = None
    if quantization == "int8" and len(found):
        limits = quantization_ranges(found) if ranges is None else ranges
        limits = checked_ranges(limits, found.shape[1])
    from sentence_transformers.util import quantize_embeddings

    codes: Codes = quantize_embeddings(found, precision=quantization, ranges=limits)
    return codes


def dequantized(
    codes: Codes, quantization: str, *, dims: int, ranges: npt.ArrayLike | None = None
) -> Floats:
    """The vectors that codes stand for, `(N, D)`: the middle of each bucket; 1 and -1 for bits.

    Args:
        codes: as `quantize` made them.
        quantization: how.
        dims: D; of binary codes the last byte may hold fewer than eight.
        ranges: those that int8 codes were made with.

    Raises:
        ConfigError: for ranges that do not fit.
    """
    check_quantize(quantization, "quantization")
    if quantization == "int8":
        if ranges is None:
            raise ConfigError("int8 codes mean nothing without the ranges they were made with")
        limits = checked_ranges(ranges, dims)
        steps = (limits[1] - limits[0]) / (BUCKETS - 1)  # as sentence-transformers cuts them
        middle = np.where(steps > 0, 0.5, 0.0)
        offsets = codes.astype(np.float32) + (BUCKETS // 2 + middle)
        return np.asarray(np.minimum(limits[0] + offsets * steps, limits[1]), np.float32)
    # the signed bytes are the unsigned ones less 128, so that their first bit is turned
    unsigned = codes if quantization == "ubinary" else (codes.astype(np.int16) + 128)
    bits = np.unpackbits(unsigned.astype(np.uint8), axis=-1)[:, :dims]
    return bits.astype(np.float32) * 2 - 1


def code_width(dims: int, quantization: str | None) -> int:
    """How many numbers a vector of `dims` dimensions is written as."""
    return -(-dims // 8) if quantization in ("binary", "ubinary") else dims


def bytes_per_vector(dims: int, quantization: str | None) -> int:
    """How much memory a vector takes."""
    return code_width(dims, quantization) * (4 if quantization is None else 1)


def _numbers(vectors: npt.ArrayLike, what: str) -> Floats:
    try:
        return np.asarray(vectors, np.float32)
    except (ValueError, TypeError):  # texts, or rows of different lengths
        raise DataError(f"{what}: the vectors are no array of numbers, (N, D).") from None


def _shape(found: npt.NDArray[Any]) -> str:
    return f"an array of shape {found.shape}"
