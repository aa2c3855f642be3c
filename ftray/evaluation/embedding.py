"""What is made of a model's embeddings on their way out: which, of what type, in how many bits."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from ftray.errors import ConfigError, nearest
from ftray.evaluation.quantize import (
    check_dims,
    check_quantize,
    checked_ranges,
    code_width,
    quantization_ranges,
    quantize,
    shortened,
)
from ftray.models.base import Encoder

__all__ = ["PRECISIONS", "Embedding", "with_weights"]

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}

Floats = npt.NDArray[np.float32]


class Embedding:
    """How embeddings come out.

    Args:
        width: of the model's embeddings.
        dims: how many dimensions are kept; None = all.
        normalize: whether each is divided by its length, after that.
        quantize: "int8", "binary" or "ubinary"; None = float32.
        ranges: of int8, `(2, dims)`; None = those of the first vectors that are quantised.

    Raises:
        ConfigError: for values that cannot work.
    """

    def __init__(
        self,
        width: int,
        *,
        dims: int | None = None,
        normalize: bool = False,
        quantize: str | None = None,
        ranges: npt.ArrayLike | None = None,
    ) -> None:
        check_dims(dims, width)
        check_quantize(quantize)
        if not isinstance(normalize, bool):
            raise ConfigError(f"normalize = {normalize!r}: True or False")
        if ranges is not None and quantize != "int8":
            raise ConfigError(f"ranges are for quantize = 'int8'; quantize is {quantize!r}")
        self.dims = dims or width
        self.normalize = normalize
        self.quantize = quantize
        self.ranges = None if ranges is None else checked_ranges(ranges, self.dims)

    @property
    def width(self) -> int:
        """How many numbers an embedding is written as."""
        return code_width(self.dims, self.quantize)

    @property
    def dtype(self) -> npt.DTypeLike:
        """Of the numbers."""
        if self.quantize is None:
            return np.float32
        return np.uint8 if self.quantize == "ubinary" else np.int8

    def of(self, vectors: Floats) -> npt.NDArray[Any]:
        """The embeddings of a model's vectors `(n, D)`, `(n, width)`.

        Raises:
            DataError: if int8 has no ranges, and too few vectors to find some.
        """
        short = shortened(vectors, self.dims, normalize=self.normalize)
        if self.quantize is None:
            return short
        if self.quantize == "int8" and self.ranges is None and len(short):
            self.ranges = quantization_ranges(short)
        return quantize(short, self.quantize, ranges=self.ranges)


def with_weights(encoder: Encoder, precision: str, *, own: bool) -> Encoder:
    """The model with weights of another type; it still gives float32.

    Args:
        encoder: with weights of any type; where all have the wanted one, it is returned as it is.
        precision: "fp32", "bf16" or "fp16".
        own: whether the model may be changed; else a copy is.

    Raises:
        ConfigError: for a type that there is not, with the nearest one.
    """
    if precision not in PRECISIONS:
        raise ConfigError(f"precision = {precision!r}: none.{nearest(precision, PRECISIONS)}")
    wanted = PRECISIONS[precision]
    found = {weight.dtype for weight in encoder.parameters() if weight.is_floating_point()}
    if found == {wanted} or (not found and precision == "fp32"):
        return encoder
    return (encoder if own else copy.deepcopy(encoder)).to(wanted)
