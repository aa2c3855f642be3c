"""A model as ONNX graphs beside its weights, each compared with the model before it counts.

What is exported is a folder as it would be loaded, not the encoder in training: what a fit merged
or dropped is as it will be used. A graph takes what `collate` gives for one forward pass, and holds
all that comes after it: pooling, projections, normalisation.
"""

from __future__ import annotations

import importlib.util
import io
import logging
import os
import shutil
import tempfile
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, redirect_stdout
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from ftray.errors import ModelError, StorageError
from ftray.media import Content, Media
from ftray.models.artifact import public_name, save_encoder
from ftray.models.base import Encoder
from ftray.models.kinds import FACTS, kind_of
from ftray.models.licence import CARD, read_card, read_licence
from ftray.models.onnx import EMBEDDING, FOLDER, GraphSession, graph_of
from ftray.models.registry import load_encoder, locate_model
from ftray.models.selection import OneTower
from ftray.record.storage import Storage

__all__ = ["TOLERANCE", "check_exportable", "check_kind", "export_folder", "write_onnx"]

TOLERANCE = 1e-4
"""The largest difference between graph and model, as a share of the largest number, or of 1."""
TRIED = ((1, 1), (2, 6), (3, 2), (5, 400))
"""(things, words of the longest text) of the comparisons; none is the example of the export."""
EXAMPLE = (4, 12)
PACKAGES = ("onnx", "onnxscript", "onnxruntime")
HIDDEN = "last_hidden_state"
LARGEST_FILE = 1_900_000_000
"""Bytes of weights that one file may hold; protobuf's limit is 2 GiB."""
NOT_EXPORTED = {
    "pointnet": "which points it samples, and which are near them, is found by loops that depend "
    "on the cloud",
    "module": "ftray does not know its inputs. torch.onnx.export(module, inputs) does it for "
    "inputs that you give",
}
ORIGIN = (
    *("base_model", "began_with", "license", "run", "parent", "metrics", "global_step"),
    *("weights", "best", "ftray"),
)
"""What the `ftray.json` of an artifact says that is true of its graphs as well."""
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
class _Forward:
    """The inputs of one forward: tensors by name, and what else belongs to it."""

    tensors: dict[str, Tensor]
    fixed: dict[str, Any] = field(default_factory=dict)

    def is_same(self, other: _Forward) -> bool:
        """Whether another would give the same embeddings."""
        mine, theirs = self.tensors, other.tensors
        return (
            self.fixed == other.fixed
            and mine.keys() == theirs.keys()
            and all(torch.equal(mine[name], theirs[name]) for name in mine)
        )


def check_kind(kind: str | None, name: str) -> None:
    """Refuse what cannot be exported, and a machine that cannot export; before any training.

    Args:
        kind: of the model; None where it is not known yet.
        name: of the model, for messages.

    Raises:
        ModelError: with the reason.
    """
    if kind in NOT_EXPORTED:
        raise ModelError(f"'{name}' cannot be exported as ONNX: {NOT_EXPORTED[kind]}")
    missing = [package for package in PACKAGES if importlib.util.find_spec(package) is None]
    if missing:
        raise ModelError(
            f"ONNX needs {' and '.join(missing)}, not installed here: pip install 'ftray[onnx]'"
        )


def check_exportable(encoder: Encoder) -> None:
    """Refuse a model that has no graph, as far as its make tells.

    Raises:
        ModelError: with the reason.
    """
    check_kind(encoder.kind, encoder.name)
    graphs_of(encoder)


def write_onnx(model: Encoder | str, folder: Path) -> list[Path]:
    """Write a model into a new folder, with its weights, its other files and its graphs.

    Args:
        model: an encoder, or the name of one.
        folder: where to; it is not there yet, or empty.

    Returns:
        The files of the graphs.

    Raises:
        ModelError: if it cannot be exported, or a graph does not do what the model does.
        StorageError: if the folder holds something, or cannot be written.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise StorageError(f"'{folder}' exists already; nothing is overwritten")
    with _read(model) as (encoder, place):
        check_exportable(encoder)
        try:
            folder.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(prefix=".ftray-", dir=folder.parent) as made:
                target = Path(made, "model")
                _take_along(place, target)
                save_encoder(encoder, target, _origin(encoder.name, place))
                files = export_folder(target, encoder.name)
                if folder.exists():
                    folder.rmdir()
                os.replace(target, folder)
        except OSError as error:
            raise StorageError(f"'{folder}' cannot be written: {error.strerror or error}") from None
    return [folder / FOLDER / file.name for file in files]


@contextmanager
def _read(model: Encoder | str) -> Iterator[tuple[Encoder, str | None]]:
    """A model, and the local folder or the hub id that it was read from; None for an object."""
    if not isinstance(model, str):
        yield (model.whole if isinstance(model, OneTower) else model), None
        return
    place = locate_model(model)
    with ExitStack() as copies:
        if "://" in place:
            place = str(copies.enter_context(Storage(place).local_copy("")))
        yield load_encoder(place, called=model), place


def _origin(name: str, place: str | None) -> dict[str, Any]:
    """Where a model comes from: what its own `ftray.json` says, else its name and its licence."""
    if place is None:
        return {"base_model": name}
    facts = kind_of(place)[1]
    licence = read_licence(place)[0]
    found = {"base_model": public_name(name), **({"license": licence} if licence else {})}
    return found | {each: facts[each] for each in ORIGIN if each in facts}


def _take_along(place: str | None, target: Path) -> None:
    """Copy the model's card, and the adapters beside its merged weights."""
    target.mkdir()
    card = None if place is None else read_card(place)
    if card is not None:
        (target / CARD).write_text(card, encoding="utf-8")
    if place is None or not Path(place, FACTS).is_file():
        return
    for file in Path(place).rglob("adapter_config.json"):
        own = file.parent
        shutil.copytree(own, target / own.relative_to(place), dirs_exist_ok=True)


def export_folder(folder: Path, name: str) -> list[Path]:
    """Add `onnx/` to a folder with a model, and compare each graph with the model.

    Args:
        folder: as `save_encoder` wrote it.
        name: of the model, for messages.

    Returns:
        The files of the graphs; their weights may lie in further files beside them.

    Raises:
        ModelError: if that is not possible, or a graph differs; then there is no `onnx/`.
    """
    encoder = load_encoder(str(folder), called=name).eval()
    check_exportable(encoder)
    target = folder / FOLDER
    target.mkdir()
    files = []
    try:
        for graph in graphs_of(encoder):
            file = target / f"{graph.name}.onnx"
            _export(encoder, graph, file)
            _compare(encoder, graph, GraphSession(file))
            files.append(file)
    except BaseException:
        shutil.rmtree(target, ignore_errors=True)
        raise
    return files


# ---------------------------------------------------------------- what is exported


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
        for forward in _forwards(encoder, every_role, 2, 2):
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


def _forwards(encoder: Encoder, graph: Graph, count: int, words: int) -> Iterator[_Forward]:
    """What goes through a graph for some things, one after the other."""
    things = _things(encoder, graph.modality, count, words)
    roles = (graph.role, "query", "document") if graph.hidden else (graph.role,)
    seen: list[_Forward] = []
    for role in dict.fromkeys(roles):
        for inputs in encoder.collate([(role, thing) for thing in things], "padded").forwards:
            tensors = {name: value for name, value in inputs.items() if isinstance(value, Tensor)}
            fixed = {name: value for name, value in inputs.items() if name not in tensors}
            forward = _Forward(tensors=tensors, fixed=fixed)
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


# ---------------------------------------------------------------- how


def _export(encoder: Encoder, graph: Graph, file: Path) -> None:
    """Write one graph with dynamic batch size, and dynamic length of texts."""
    example = next(_forwards(encoder, graph, *EXAMPLE))
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


def _compare(encoder: Encoder, graph: Graph, session: GraphSession) -> None:
    """Refuse a graph that does not give the model's embeddings."""
    for count, words in TRIED:
        for forward in _forwards(encoder, graph, count, words):
            inputs = {**forward.fixed, **forward.tensors}
            assert graph_of(encoder, inputs, {graph.name: session}) == graph.name
            with torch.no_grad():
                want = encoder.embed(inputs).numpy()
            try:
                got = session(inputs)
            except Exception as error:
                said = str(error).strip().splitlines()[0]
                raise ModelError(
                    f"The ONNX graph of '{encoder.name}' ({graph.name}) does not run on "
                    f"{_shape(forward)}: {said}"
                ) from error
            scale = max(1.0, float(np.abs(want).max()))
            far = float(np.abs(want - got).max()) / scale if want.shape == got.shape else np.inf
            if not far < TOLERANCE:
                raise ModelError(
                    f"The ONNX graph of '{encoder.name}' ({graph.name}) gives other embeddings "
                    f"than the model: {far:.2g} apart on {_shape(forward)}, and {TOLERANCE:g} is "
                    "allowed"
                )


def _shape(forward: _Forward) -> str:
    return " x ".join(map(str, next(iter(forward.tensors.values())).shape))


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
