"""The graphs of a model: which there are, what goes through them, and how they are made.

A graph takes what `collate` gives for one forward pass, and holds all that comes after it: pooling,
projections, normalisation.
"""

from __future__ import annotations

import io
import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from ftray.errors import ModelError
from ftray.media import Content, Media
from ftray.models.base import Encoder
from ftray.models.onnx import EMBEDDING

__all__ = ["Forward", "Graph", "export_graph", "forwards_of", "graphs_of"]

EXAMPLE = (4, 12)
"""(things, words of the longest text) that a graph is made with."""
HIDDEN = "last_hidden_state"
LARGEST_FILE = 1_900_000_000
"""Bytes of weights that one file may hold; protobuf's limit is 2 GiB."""
_AXES = {0: "batch_size", 1: "sequence_length"}
"""Optimum's names, which sentence-transformers reads ONNX files with."""


@dataclass(frozen=True, kw_only=True)
class Graph:
    """One graph of a model.

    Attributes:
        name: of its file, without the suffix.
        role: of the things that go through it.
        modality: what these are.
        hidden: whether the embeddings of single tokens are a second output.
    """

    name: str
    role: str
    modality: str
    hidden: bool = False


@dataclass(frozen=True, kw_only=True)
class Forward:
    """The inputs of one forward.

    Attributes:
        tensors: by name.
        fixed: what else belongs to it.
    """

    tensors: dict[str, Tensor]
    fixed: dict[str, Any] = field(default_factory=dict)

    def is_same(self, other: Forward) -> bool:
        """Whether another would give the same embeddings."""
        mine, theirs = self.tensors, other.tensors
        return (
            self.fixed == other.fixed
            and mine.keys() == theirs.keys()
            and all(torch.equal(mine[name], theirs[name]) for name in mine)
        )


def graphs_of(encoder: Encoder) -> list[Graph]:
    """The graphs of a model: one, or one for each of its towers.

    Raises:
        ModelError: for a model whose forward is no function of tensors alone.
    """
    if encoder.kind in ("clip", "two-towers"):
        return [Graph(name=tower, role="", modality=tower) for tower in ("text", "image")]
    if encoder.kind != "text":
        (modality,) = encoder.modalities
        return [Graph(name="model", role="", modality=modality)]
    leaves_out = any(not getattr(part, "include_prompt", True) for part in encoder.modules())
    roles = encoder.towers if encoder.default_tower is not None else ("",)
    for role in roles:
        every_role = Graph(name="", role=role, modality="text", hidden=roles == ("",))
        for forward in forwards_of(encoder, every_role, 2, 2):
            if "offsets" in forward.tensors:
                raise ModelError(
                    f"'{encoder.name}' cannot be exported as ONNX: its static embeddings take "
                    "texts end to end, not one in each row"
                )
            if leaves_out and "prompt_length" in {**forward.fixed, **forward.tensors}:
                raise ModelError(
                    f"'{encoder.name}' cannot be exported as ONNX: its pooling leaves out the "
                    "tokens of the prompt, whose number is no part of a graph"
                )
    if roles == ("",):
        return [Graph(name="model", role="", modality="text", hidden=True)]
    return [Graph(name=role, role=role, modality="text") for role in roles]


def forwards_of(encoder: Encoder, graph: Graph, count: int, words: int) -> Iterator[Forward]:
    """What goes through a graph for some things, one after the other.

    Args:
        encoder: the model.
        graph: one of its graphs.
        count: number of things.
        words: of the longest text, where they are texts.
    """
    things = _things(encoder, graph.modality, count, words)
    roles = (graph.role, "query", "document") if graph.hidden else (graph.role,)
    seen: list[Forward] = []
    for role in dict.fromkeys(roles):
        for inputs in encoder.collate([(role, thing) for thing in things], "padded").forwards:
            tensors = {name: value for name, value in inputs.items() if isinstance(value, Tensor)}
            fixed = {name: value for name, value in inputs.items() if name not in tensors}
            forward = Forward(tensors=tensors, fixed=fixed)
            if not any(forward.is_same(each) for each in seen):  # as without prompts
                seen.append(forward)
                yield forward


def _things(encoder: Encoder, modality: str, count: int, words: int) -> list[Content]:
    """Things of different lengths, the same at each call."""
    draw = np.random.default_rng(count)
    if modality == "text":
        signs = "abcdefghijklmnopqrstuvwxyz0123456789"
        lengths = [max(1, round(words * (i + 1) / count)) for i in range(count)]
        return [" ".join(draw.choice(list(signs), length)) for length in lengths]
    if modality == "image":
        return [_picture(draw.integers(0, 256, (40, 40, 3), np.uint8)) for _ in range(count)]
    width = int(getattr(encoder, "options").input_size)  # noqa: B009
    rows = draw.standard_normal((count, width)).astype("<f4")
    return [Media(modality="features", address="example", data=row.tobytes()) for row in rows]


def _picture(pixels: np.ndarray[Any, Any]) -> Media:
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    return Media(modality="image", address="example", data=stream.getvalue())


class _Function(nn.Module):
    """An encoder's forward as a function of tensors."""

    def __init__(self, encoder: Encoder, names: Sequence[str], fixed: Mapping[str, Any]) -> None:
        super().__init__()
        self._encoder = encoder
        self._names = tuple(names)
        self._fixed = dict(fixed)

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        inputs = {**self._fixed, **dict(zip(self._names, tensors, strict=True))}
        return (self._encoder.embed(inputs),)


class _TextFunction(_Function):
    """The same, with the embeddings of the tokens as a second output."""

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        inputs = {**self._fixed, **dict(zip(self._names, tensors, strict=True))}
        model: Any = self._encoder.model
        found = model(inputs)
        return found["sentence_embedding"], found["token_embeddings"]


def export_graph(encoder: Encoder, graph: Graph, file: Path) -> None:
    """Write one graph with dynamic batch size, and dynamic length of texts.

    Raises:
        ModelError: if torch cannot make it.
    """
    example = next(forwards_of(encoder, graph, *EXAMPLE))
    names = list(example.tensors)
    # a name may stand for a tensor of this length and of another kind: rows alone are free there
    free = {
        name: (0, 1) if graph.modality == "text" and value.ndim == 2 else (0,)
        for name, value in example.tensors.items()
    }
    make = _TextFunction if graph.hidden else _Function
    function = make(encoder, names, example.fixed).eval()
    shapes = tuple({axis: torch.export.Dim.DYNAMIC for axis in free[name]} for name in names)
    try:
        with _silent(), torch.no_grad():
            program = torch.onnx.export(
                function,
                tuple(example.tensors.values()),
                input_names=names,
                output_names=[EMBEDDING, HIDDEN] if graph.hidden else [EMBEDDING],
                dynamic_shapes={"tensors": shapes},
                dynamo=True,
                verbose=False,
            )
    except Exception as error:
        said = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ModelError(
            f"'{encoder.name}' cannot be exported as ONNX ({graph.name}): {said}"
        ) from error
    assert program is not None
    _write(program.model_proto, free, file)


def _write(model: Any, free: Mapping[str, tuple[int, ...]], file: Path) -> None:
    """One file; where protobuf cannot hold the weights, a second one beside it with them."""
    import onnx

    _bare(model)
    names = {}
    for value in model.graph.input:
        axes = value.type.tensor_type.shape.dim
        names.update({axes[axis].dim_param: _AXES[axis] for axis in free[value.name]})
    for value in (*model.graph.input, *model.graph.output, *model.graph.value_info):
        for axis in value.type.tensor_type.shape.dim:
            if axis.dim_param in names:
                axis.dim_param = names[axis.dim_param]
    large = model.ByteSize() > LARGEST_FILE
    if large:
        weights = f"{file.name}_data"
        onnx.save_model(model, str(file), save_as_external_data=True, location=weights)
    else:
        onnx.save_model(model, str(file))


def _bare(model: Any) -> None:
    """Drop what the exporter tells of each node: the lines of code, with their files' paths."""
    parts = (model.graph, *model.functions)
    for part in (*parts, *(node for each in parts for node in each.node)):
        part.ClearField("metadata_props")
        part.ClearField("doc_string")
    for value in (*model.graph.input, *model.graph.output, *model.graph.value_info):
        value.ClearField("metadata_props")
    for weight in model.graph.initializer:
        weight.ClearField("metadata_props")


@contextmanager
def _silent() -> Iterator[None]:
    """Without reports on how it is exported."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings(), redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
