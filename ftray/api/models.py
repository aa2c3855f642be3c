"""Models: found, described, used, and measured."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ftray.config import CsvOptions
from ftray.errors import ConfigError

if TYPE_CHECKING:
    from ftray.evaluation.spec import EvaluationSpec
    from ftray.models.base import Encoder

__all__ = ["data_workers", "describe_models", "evaluate", "get_model", "list_model_options"]
__all__ += ["list_models", "to_onnx"]


def get_model(
    name: str | Path,
    select_model: str | None = None,
    *,
    device: str = "auto",
    max_length: int | None = None,
    model_options: Mapping[str, Any] | None = None,
    is_onnx: bool = False,
    module: Any = None,
    preprocess_fn: Callable[..., Any] | None = None,
    collate_fn: Callable[[list[Any]], Any] | None = None,
) -> Encoder:
    """A model to encode with.

    Args:
        name: an artifact (`run.artifact_id`), a registry name, a folder or its URI, or a hub id.
        select_model: one tower of a model that has two: "text" or "image" ("clip-text" and
            "clip-vision" are the same), or "query" or "document". None takes the whole model, in
            which what a thing is decides which tower it goes through.
        device: "auto", "cpu" or "cuda".
        max_length: longest text in tokens; None keeps the model's own limit.
        model_options: see `list_model_options`; an artifact has those that it was trained with.
        is_onnx: have onnxruntime compute the embeddings, from the graphs in `onnx/` of the folder.
        module: for the artifact of a torch.nn.Module of your own: a module of that class.
        preprocess_fn: what makes its inputs; see `ftray.models.module.ModuleParts`.
        collate_fn: what makes a batch of them.

    Raises:
        ModelError: if it cannot be found or loaded.
        ConfigError: for options that the model does not have, or a tower; with the nearest one.
    """
    from ftray.models.functions import check_functions
    from ftray.models.registry import load_encoder
    from ftray.models.selection import selected
    from ftray.runtime.local import local_device

    check_functions(preprocess_fn, collate_fn, has_module=module is not None)
    if is_onnx:
        from ftray.models.onnx import load_onnx

        found = load_onnx(str(name), device=device, max_length=max_length, options=model_options)
        return found if select_model is None else selected(found, select_model)
    parts = None
    if module is not None:
        from ftray.models.module import ModuleParts

        parts = ModuleParts(module=module, preprocess_fn=preprocess_fn, collate_fn=collate_fn)
    encoder = load_encoder(
        str(name),
        device=local_device(device),
        max_length=max_length,
        options=model_options,
        module=parts,
    )
    return encoder if select_model is None else selected(encoder, select_model)


def model_of(model: Encoder | str | Path, max_length: int | None) -> Encoder:
    """The model that is named, or the object that was given.

    Raises:
        ConfigError: if an object is to have another `max_length`.
    """
    if isinstance(model, str | Path):
        return get_model(model, max_length=max_length)
    if max_length is not None:
        raise ConfigError(
            f"max_length = {max_length}: '{model.name}' is loaded already. Give it to get_model, "
            "or name the model"
        )
    return model


def data_workers(encoder: Encoder) -> int:
    """How many processes decode."""
    from ftray.models.ahead import AUTO_WORKERS

    return 0 if encoder.modalities <= {"text"} else AUTO_WORKERS


def evaluate(
    model: Encoder | str | Path,
    query_data: Any,
    index_data: Any = None,
    *,
    limit: int = 20,
    distance: str = "cosine",
    metrics: Mapping[str, Any] | Sequence[str] | None = None,
    query_sample_size: int | None = None,
    query_role: str | None = None,
    index_role: str | None = None,
    batch_size: int = 32,
    max_length: int | None = None,
    exclude_self: bool = True,
    dims: int | None = None,
    quantize: str | None = None,
    rescore: int | None = None,
    columns: Mapping[str, str] | None = None,
    csv_options: Mapping[str, Any] | CsvOptions | None = None,
) -> dict[str, float]:
    """Metrics of a model, in this process; the options are EvaluationCallback's.

    Retrieval metrics at `limit`; `spearman` and `pearson` for scored pairs. `query_role` and
    `index_role` are its `model` and `index_model`: the tower for queries, and for the index. With
    `dims` and `quantize` they are those of truncated and of quantised embeddings. `max_length` is
    for a model that is named; an object has its own.

    Raises:
        FtrayError: for data or a model that cannot be used.
    """
    from ftray.runtime.local import LocalRuntime
    from ftray.training.evaluate import evaluate as run_evaluation

    encoder = model_of(model, max_length)
    spec = evaluation_of(
        encoder,
        query_data,
        index_data,
        limit=limit,
        distance=distance,
        metrics=metrics,
        query_sample_size=query_sample_size,
        query_role=query_role,
        index_role=index_role,
        batch_size=batch_size,
        exclude_self=exclude_self,
        dims=dims,
        quantize=quantize,
        rescore=rescore,
        columns=columns,
        csv_options=csv_options,
    )
    runtime = LocalRuntime(encoder.device, [spec], lambda event: None, lambda: None)
    done = run_evaluation(
        spec,
        0,
        encoder,
        runtime,
        layout="auto",
        on_progress=lambda *progress: None,
        data_workers=data_workers(encoder),
    )
    return done.metrics


def evaluation_of(
    encoder: Encoder,
    query_data: Any,
    index_data: Any = None,
    *,
    query_role: str | None = None,
    index_role: str | None = None,
    **options: Any,
) -> EvaluationSpec:
    """What is to be evaluated, checked against the model.

    Args:
        encoder: the model.
        query_data: as of EvaluationCallback.
        index_data: the documents to search.
        query_role: its `model`.
        index_role: its `index_model`.
        options: its other ones.

    Raises:
        FtrayError: for data or options that cannot be used, or that the model does not take.
    """
    from ftray.callbacks.evaluation import EvaluationCallback
    from ftray.evaluation.encode import check_towers
    from ftray.media import MODALITIES
    from ftray.training.matching import check_takes

    callback = EvaluationCallback(
        query_data, index_data, model=query_role, index_model=index_role, **options
    )
    modalities = encoder.modalities if len(encoder.modalities) < len(MODALITIES) else None
    spec = callback.prepare(0, modalities=modalities)
    check_towers(spec, encoder)
    check_takes(encoder.name, encoder.modalities, [spec])
    return spec


def to_onnx(model: Encoder | str | Path, folder: str | Path) -> list[Path]:
    """Write a model as ONNX, with its weights and its other files, into a new folder.

    Each graph has a dynamic batch size, and a dynamic length of texts, and is compared with the
    model before it counts: the embeddings are equal within 1e-4.

    Args:
        model: what `get_model` gives or takes.
        folder: where to; it is not there yet, or empty. `get_model(folder, is_onnx=True)` loads it.

    Returns:
        The files of the graphs: `onnx/model.onnx`, or one for each tower.

    Raises:
        ModelError: if the model cannot be exported, with the reason.
        StorageError: if the folder holds something, or cannot be written.
    """
    from ftray.models.onnx_export import write_onnx

    return write_onnx(str(model) if isinstance(model, str | Path) else model, Path(folder))


def list_models(task: str | None = None) -> list[str]:
    """Names that `model=` knows; any Hugging Face id, folder or module works as well.

    Args:
        task: "text-to-text", "image-to-image", "text-to-image", "mesh-to-mesh" or "any"; None
            lists all.

    Raises:
        ConfigError: for a task that no model has.
    """
    from ftray.models.listing import listed_models

    return sorted(row["name"] for row in listed_models(task))


def list_model_options(name: str | None = None) -> dict[str, list[dict[str, Any]]]:
    """What `model_options` may hold: name, type, required, default and description of each option.

    Args:
        name: of a model; None takes all registered ones.

    Raises:
        ModelError: if there is no such model.
    """
    from ftray.models.listing import listed_options

    return {each: listed_options(each) for each in ([name] if name else list_models())}


def describe_models(task: str | None = None) -> None:
    """Show the registered models, of a task or all, a table for each task.

    Raises:
        ConfigError: for a task that no model has.
    """
    from ftray.models.listing import listed_models
    from ftray.report.tables import models_sheets, show

    for sheet in models_sheets(listed_models(task)):
        show(sheet)
