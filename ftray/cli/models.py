"""`ftray models`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict

from rich.console import Console

from ftray.api.summary import model_summary
from ftray.config import validated
from ftray.config_file import apply_overrides
from ftray.errors import ConfigError, nearest
from ftray.models.listing import listed_models, listed_options
from ftray.report.tables import models_sheets, options_sheet, show

__all__ = ["run", "run_summary"]

OF_THE_MODEL = ("freeze", "lora", "model_options", "output_dim")
"""What `--set` may say here."""


def run(name: str | None, task: str | None, as_json: bool) -> None:
    """List short names, or the options of one model."""
    rows = listed_options(name) if name else listed_models(task)
    if as_json:
        print(json.dumps(rows))
        return
    for sheet in [options_sheet(name, rows)] if name else models_sheets(rows):
        show(sheet)
    if not name:
        said = "Any Hugging Face id, folder or torch.nn.Module works as well."
        Console(highlight=False).print(f"{said} Options: ftray models NAME")


def run_summary(
    name: str | None, task: str | None, overrides: Sequence[str], as_json: bool, *, asked: bool
) -> None:
    """Show the layers of a model, as `fit` would have them with these settings.

    Raises:
        ConfigError: without a model, and for settings that are about something else.
    """
    if not asked:
        raise ConfigError("--set belongs to --summary, as in: ftray models NAME --summary --set …")
    if name is None or task is not None:
        raise ConfigError("--summary is of one model: ftray models NAME --summary")
    settings = apply_overrides({}, overrides)
    for key in settings:
        if key not in OF_THE_MODEL:
            raise ConfigError(
                f"--set {key}: it is not about the model.{nearest(key, OF_THE_MODEL)}"
            )
    config = validated({"model": name, "train_data": "-", **settings})
    known = {key: getattr(config, key) for key in settings}
    found = model_summary(name, **known, show=not as_json)
    if as_json:
        totals = {"parameters": found.parameters, "trained": found.trained}
        print(json.dumps({**asdict(found), **totals}))
