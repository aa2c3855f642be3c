"""What a model is made of, shown before it is trained."""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ftray.models.base import Encoder
    from ftray.models.summary import ModelSummary
    from ftray.models.surgery import Surgery

__all__ = ["model_summary"]


def model_summary(
    model: Any,
    *,
    model_options: Mapping[str, Any] | None = None,
    freeze: bool | str | Sequence[str] = False,
    output_dim: int | None = None,
    lora: Mapping[str, Any] | None = None,
    module: Any = None,
    preprocess_fn: Callable[..., Any] | None = None,
    collate_fn: Callable[[list[Any]], Any] | None = None,
    show: bool = True,
) -> ModelSummary:
    """The layers of a model, with their weights and whether these are trained, as a table.

    The names of the layers are those that `freeze` takes, in `fit` and here: so one sees what it
    does before anything is trained.

    Args:
        model: what `get_model` or `fit` takes: a name, a folder, an id, an encoder, or an object,
            which stays as it is.
        model_options: see `list_model_options`.
        freeze: as `fit` takes it: true, or names and patterns.
        output_dim: as `fit` takes it.
        lora: as `fit` takes it.
        module: for the artifact of a torch.nn.Module of your own: a module of that class.
        preprocess_fn: what makes its inputs.
        collate_fn: what makes a batch of them.
        show: whether to print the table, and a line with the totals.

    Raises:
        ModelError: if there is no such model, or it cannot be loaded.
        ConfigError: as `fit` for values that are none of an option, and for a surgery that the
            model cannot have, with the nearest names.
    """
    from ftray.config import is_live, validated
    from ftray.errors import ConfigError, ModelError
    from ftray.models.summary import summarised
    from ftray.report.tables import show as show_sheet
    from ftray.report.tables import summary_sheet
    from ftray.training.resolving import surgery_of

    if not isinstance(model, str | Path) and not is_live(model):
        raise ConfigError(
            f"model = {model!r}: a name, a folder, an encoder or a module is expected"
        )
    asked = {"model_options": model_options, "freeze": freeze, "output_dim": output_dim}
    config = validated({"model": model, "train_data": "-", "lora": lora, **asked})
    surgery, options = surgery_of(config), config.model_options
    functions = (preprocess_fn, collate_fn)
    if isinstance(model, str | Path):
        encoder = _loaded(str(model), options, module, functions, surgery)
    else:
        encoder = _of_object(model, options, functions, surgery)
    try:
        width: int | None = encoder.embedding_dim
    except ModelError:  # of a module, it takes an input to know
        width = None
    summary = summarised(encoder, encoder.name, width)
    if show:
        show_sheet(summary_sheet(summary))
        print(summary)
    return summary


def _loaded(
    name: str,
    options: Mapping[str, Any] | None,
    module: Any,
    functions: tuple[Any, Any],
    surgery: Surgery,
) -> Encoder:
    """A model by its name or place."""
    from ftray.models.functions import check_functions
    from ftray.models.module import ModuleParts
    from ftray.models.registry import load_encoder

    check_functions(*functions, has_module=module is not None)
    parts = None
    if module is not None:
        parts = ModuleParts(module=module, preprocess_fn=functions[0], collate_fn=functions[1])
    return load_encoder(name, options=options, module=parts, surgery=surgery)


def _of_object(
    model: Any, options: Mapping[str, Any] | None, functions: tuple[Any, Any], surgery: Surgery
) -> Encoder:
    """An object, copied as `fit` copies it, or a copy of an encoder."""
    from ftray.errors import ConfigError
    from ftray.models.base import Encoder
    from ftray.models.live import copy_object
    from ftray.models.registry import load_encoder
    from ftray.models.surgery import operate

    if isinstance(model, Encoder):
        if options:
            raise ConfigError(f"model_options: '{model.name}' is loaded already")
        encoder = copy.deepcopy(model)
        operate(encoder, surgery, seed=0)
        return encoder
    with tempfile.TemporaryDirectory(prefix="ftray-") as folder:
        live = copy_object(model, Path(folder), *functions)
        return load_encoder(
            str(live.folder),
            options=options,
            module=live.module,
            called=live.name,
            surgery=surgery,
        )
