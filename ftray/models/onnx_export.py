"""A model as ONNX graphs beside its weights, each compared with the model before it counts.

What is exported is a folder as it would be loaded, not the encoder in training: what a fit merged
or dropped is as it will be used. `onnx_graphs` makes the graphs.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ftray.errors import ModelError, StorageError
from ftray.models.artifact import public_name, save_encoder
from ftray.models.base import Encoder
from ftray.models.kinds import FACTS, kind_of
from ftray.models.licence import CARD, read_card, read_licence
from ftray.models.onnx import FOLDER, GraphSession, graph_of
from ftray.models.onnx_graphs import Forward, Graph, export_graph, forwards_of, graphs_of
from ftray.models.registry import load_encoder, locate_model
from ftray.models.selection import OneTower
from ftray.record.storage import Storage

__all__ = ["TOLERANCE", "check_exportable", "check_kind", "export_folder", "write_onnx"]

TOLERANCE = 1e-4
"""The largest difference between graph and model, as a share of the largest number, or of 1."""
TRIED = ((1, 1), (2, 6), (3, 2), (5, 400))
"""(things, words of the longest text) of the comparisons; none is the example of the export."""
PACKAGES = ("onnx", "onnxscript", "onnxruntime")
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
            export_graph(encoder, graph, file)
            _compare(encoder, graph, GraphSession(file))
            files.append(file)
    except BaseException:
        shutil.rmtree(target, ignore_errors=True)
        raise
    return files


def _compare(encoder: Encoder, graph: Graph, session: GraphSession) -> None:
    """Refuse a graph that does not give the model's embeddings."""
    for count, words in TRIED:
        for forward in forwards_of(encoder, graph, count, words):
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


def _shape(forward: Forward) -> str:
    return " x ".join(map(str, next(iter(forward.tensors.values())).shape))
