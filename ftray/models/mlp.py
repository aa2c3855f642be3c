"""A perceptron over vectors of features that another model computed: `mlp`."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from ftray.errors import ConfigError, DataError, ModelError
from ftray.media import Content, Media
from ftray.models.augment import make_augmentation
from ftray.models.base import Draws, Features, Item
from ftray.models.layout import Layout
from ftray.models.options import MLPOptions, kept
from ftray.models.request import Request
from ftray.models.scratch import ScratchEncoder, with_weights
from ftray.words import counted

__all__ = ["MLPEncoder", "feature_size", "load"]

NUMBER = np.dtype("<f4")
ACTIVATIONS: dict[str, type[nn.Module]] = {
    "relu": nn.ReLU,
    "tanh": nn.Tanh,
    "sigmoid": nn.Sigmoid,
}


def load(request: Request) -> MLPEncoder:
    """A perceptron with random weights, or one that ftray wrote.

    Raises:
        ConfigError: if nothing says how wide the features are.
    """
    make_augmentation(request.augmentation, "mlp")  # refuses operations: there are none on these
    options: MLPOptions = kept("mlp", request.facts, request.options, request.name)
    return with_weights(MLPEncoder(request.name, options), request)


class MLPEncoder(ScratchEncoder):
    """Vectors of features to embeddings `(n, D)`.

    Linear layers with an activation after each but the last, as Finetuner's `mlp` has them; without
    `hidden_sizes` there is one layer, as wide as the features.

    Args:
        name: what the user called it.
        options: see `MLPOptions`; `input_size` is given.
    """

    kind = "mlp"
    options: MLPOptions
    modalities = frozenset({"features"})

    def __init__(self, name: str, options: MLPOptions) -> None:
        super().__init__(name)
        if options.input_size is None:
            raise ConfigError(
                f"model_options.input_size: '{name}' is to be told how wide the features are"
            )
        self.options = options
        widths = [options.input_size, *(options.hidden_sizes or (options.input_size,))]
        layers: list[nn.Module] = []
        for before, after in pairwise(widths):
            if layers and options.activation is not None:
                layers.append(ACTIVATIONS[options.activation]())
            layers.append(nn.Linear(before, after, bias=options.bias))
        self.net = nn.Sequential(*layers)
        self._width, self._dim = widths[0], widths[-1]

    def varies(self, content: Content) -> bool:
        """No features are augmented."""
        return False

    def collate(
        self, items: Sequence[Item], layout: Layout = "auto", draws: Draws | None = None
    ) -> Features:
        """Read the vectors: one forward; features are not augmented."""
        order = torch.arange(len(items))
        if not items:
            return Features(forwards=[], order=order)
        rows = torch.from_numpy(np.stack([self._vector(content) for _, content in items]))
        return Features(forwards=[{"features": rows}], order=order)

    def _vector(self, content: Content) -> npt.NDArray[np.float32]:
        if isinstance(content, str) or content.modality != "features":
            what = "a text" if isinstance(content, str) else f"{content.name} ({content.modality})"
            raise ModelError(f"'{self.name}' encodes vectors of features, not {what}")
        vector = np.frombuffer(cast(Any, content.read()), NUMBER)
        if len(vector) != self._width:
            raise DataError(
                f"'{content.name}' has {counted(len(vector), 'number')}, but '{self.name}' takes "
                f"features of {self._width}"
            )
        if not np.isfinite(vector).all():
            raise DataError(f"'{content.name}' holds numbers that are not finite")
        return vector

    def encode(self, inputs: dict[str, Any]) -> Tensor:
        """Embeddings of vectors, `(rows, D)`."""
        embeddings: Tensor = self.net(inputs["features"])
        return embeddings

    def finished(self, embeddings: Tensor) -> Tensor:
        """Of length 1, where `l2` asks for it."""
        return normalize(embeddings, dim=1) if self.options.l2 else embeddings

    def freeze(self, weight: str) -> None:
        """Leave a weight, by its name in `model.safetensors`, as it is."""
        self.net.get_parameter(weight).requires_grad_(False)


def feature_size(content: Content) -> int:
    """How many numbers a vector of features has."""
    assert isinstance(content, Media)
    return memoryview(content.read()).nbytes // NUMBER.itemsize
