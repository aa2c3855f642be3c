"""What nets from scratch have in common: random weights to begin with, and a folder of ftray's own.

The folder holds the weights as safetensors; the options in `ftray.json` make the net again.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar, TypeVar

from safetensors.torch import load_file, save_file
from torch import nn

from ftray.models.base import Encoder
from ftray.models.options import ModelOptions
from ftray.models.request import Request, not_loaded

__all__ = ["KINDS", "ScratchEncoder", "with_weights"]

KINDS = ("convnet", "mlp", "pointnet")
"""Of `options.OPTIONS`: the kinds of models that are such nets."""

WEIGHTS = "model.safetensors"


class ScratchEncoder(Encoder):
    """An encoder whose weights are all its own.

    Attributes:
        net: what makes the embeddings.
        options: what made it.
    """

    learning_rate: ClassVar[float] = 1e-3
    net: nn.Module
    options: ModelOptions
    _dim: int

    @property
    def own_dim(self) -> int:
        """Width of an embedding before there is a head."""
        return self._dim

    def save(self, folder: Path) -> dict[str, Any]:
        """Write the weights; the options make the net again."""
        weights = {name: value.contiguous() for name, value in self.net.state_dict().items()}
        save_file(weights, folder / WEIGHTS)
        return {"options": self.options.model_dump(mode="json")}


Made = TypeVar("Made", bound=ScratchEncoder)


def with_weights(encoder: Made, request: Request) -> Made:
    """The encoder as it was made, or with the weights of the folder that is asked for.

    Raises:
        ModelError: if these cannot be read, or are others.
    """
    if not request.is_new:
        try:
            encoder.net.load_state_dict(load_file(Path(request.place) / WEIGHTS))
        except Exception as error:
            raise not_loaded(request, error) from error
    return encoder
