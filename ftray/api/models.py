"""Models: found, described, used, and measured."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ftray.config import CsvOptions

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from ftray.models.base import Encoder

__all__ = ["describe_models", "encode", "evaluate", "get_model", "list_model_options"]
__all__ += ["list_models"]


def get_model(
    name: str | Path,
    select_model: str | None = None,
    *,
    device: str = "auto",
    max_length: int | None = None,
    model_options: Mapping[str, Any] | None = None,
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


def encode(
    model: Encoder | str | Path,
    data: Any,
    *,
    role: str = "",
    batch_size: int = 32,
    on_progress: Callable[[int, int], None] | None = None,
) -> npt.NDArray[np.float32] | Any:
    """Embeddings of texts, images, or whatever else the model takes.

    Args:
        model: what `get_model` gives or takes.
        data: a list of texts, of images (paths, bytes, PIL, arrays) or of other things, anything
            `train_data` may be (its first column), or a DocList. What strings are, the model
            decides; one that takes texts and images takes those for images that name image files.
        role: "query" or "document", for models with prompts or with two towers.
        batch_size: items at a time.
        on_progress: called with (items done, items in all).

    Returns:
        `(N, D)` float32 in the order given; for a DocList a copy of it with `.embedding` set.

    Raises:
        FtrayError: for data or a model that cannot be used.
    """
    from ftray.data.inputs import read_contents
    from ftray.evaluation.encode import encode_texts

    encoder = get_model(model) if isinstance(model, str | Path) else model
    items, names = read_contents(data, modalities=encoder.modalities)
    vectors = encode_texts(
        encoder,
        items,
        role=role,
        batch_size=batch_size,
        data_workers=_data_workers(encoder),
        on_progress=on_progress,
    )
    if type(data).__module__.startswith("docarray"):
        from ftray.data.documents import with_embeddings

        return with_embeddings(data, names, vectors)
    return vectors


def _data_workers(encoder: Encoder) -> int:
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
    columns: Mapping[str, str] | None = None,
    csv_options: Mapping[str, Any] | CsvOptions | None = None,
) -> dict[str, float]:
    """Metrics of a model, in this process; the options are EvaluationCallback's.

    Retrieval metrics at `limit`; `spearman` and `pearson` for scored pairs. `query_role` and
    `index_role` are its `model` and `index_model`: the tower for queries, and for the index.

    Raises:
        FtrayError: for data or a model that cannot be used.
    """
    from ftray.callbacks.evaluation import EvaluationCallback
    from ftray.evaluation.encode import check_towers
    from ftray.media import MODALITIES
    from ftray.runtime.local import LocalRuntime
    from ftray.training.evaluate import evaluate as run_evaluation
    from ftray.training.matching import check_takes

    encoder = get_model(model, max_length=max_length) if isinstance(model, str | Path) else model
    callback = EvaluationCallback(
        query_data,
        index_data,
        limit=limit,
        distance=distance,
        metrics=metrics,
        query_sample_size=query_sample_size,
        model=query_role,
        index_model=index_role,
        batch_size=batch_size,
        exclude_self=exclude_self,
        columns=columns,
        csv_options=csv_options,
    )
    modalities = encoder.modalities if len(encoder.modalities) < len(MODALITIES) else None
    spec = callback.prepare(0, modalities=modalities)
    check_towers(spec, encoder)
    check_takes(encoder.name, encoder.modalities, [spec])
    runtime = LocalRuntime(encoder.device, [spec], lambda event: None, lambda: None)
    done = run_evaluation(
        spec,
        0,
        encoder,
        runtime,
        layout="bucketed",
        on_progress=lambda *progress: None,
        data_workers=_data_workers(encoder),
    )
    return done.metrics


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
