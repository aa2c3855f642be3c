"""What a model is made of: its layers, their weights, and which of them are trained."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

__all__ = ["Layer", "ModelSummary", "millions", "summarised"]


@dataclass(frozen=True, kw_only=True)
class Layer:
    """One module with weights of its own.

    Attributes:
        name: in the encoder, as `freeze` takes it; "" = the encoder itself.
        kind: the class of the module.
        shape: of its weight, or of the first of its weights, as "384 x 1536".
        parameters: how many numbers its weights have; weights that it shares with a layer before
            are counted there.
        trained: how many of them are trained.
    """

    name: str
    kind: str
    shape: str
    parameters: int
    trained: int


@dataclass(frozen=True, kw_only=True)
class ModelSummary:
    """The layers of a model, in its order.

    Attributes:
        name: of the model.
        embedding_dim: width D of its embeddings; None for a module that has encoded nothing yet.
        layers: those with weights.
    """

    name: str
    embedding_dim: int | None
    layers: tuple[Layer, ...]

    @property
    def parameters(self) -> int:
        """How many numbers all weights have."""
        return sum(layer.parameters for layer in self.layers)

    @property
    def trained(self) -> int:
        """How many of them are trained."""
        return sum(layer.trained for layer in self.layers)

    def __str__(self) -> str:
        """One line."""
        line = f"{self.name}: {millions(self.parameters)} weights"
        if self.trained < self.parameters:
            line += f", of which {millions(self.trained)} are trained"
        width = "" if self.embedding_dim is None else f"; embeddings of {self.embedding_dim}"
        return line + width


def summarised(module: nn.Module, name: str, embedding_dim: int | None = None) -> ModelSummary:
    """The summary of a model.

    Args:
        module: the encoder.
        name: what it is called.
        embedding_dim: width of its embeddings.
    """
    layers: list[Layer] = []
    seen: set[int] = set()
    for layer_name, layer in module.named_modules():
        own = [(key, weight) for key, weight in layer.named_parameters(recurse=False)]
        new = [weight for _, weight in own if id(weight) not in seen]
        seen.update(id(weight) for weight in new)
        if not own:
            continue
        shown = dict(own).get("weight", own[0][1])
        layers.append(
            Layer(
                name=layer_name,
                kind=type(layer).__name__,
                shape=" x ".join(map(str, shown.shape)) or "1",
                parameters=sum(weight.numel() for weight in new),
                trained=sum(weight.numel() for weight in new if weight.requires_grad),
            )
        )
    return ModelSummary(name=name, embedding_dim=embedding_dim, layers=tuple(layers))


def millions(count: int) -> str:
    """`22.7 M`, `0.15 M`; a small number itself, as `32,768`."""
    if count < 100_000:
        return f"{count:,}"
    return f"{count / 1e6:.1f} M" if count >= 1_000_000 else f"{count / 1e6:.2f} M"
