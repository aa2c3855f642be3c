"""`ftray models`."""

from __future__ import annotations

import json

from rich.console import Console

from ftray.models.listing import listed_models, listed_options
from ftray.report.tables import models_sheets, options_sheet, show

__all__ = ["run"]


def run(name: str | None, task: str | None, as_json: bool) -> None:
    """List short names, or the options of one model."""
    rows = listed_options(name) if name else listed_models(task)
    if as_json:
        print(json.dumps(rows))
        return
    if name and not rows:
        print(f"'{name}' has no options.")
        return
    for sheet in [options_sheet(name, rows)] if name else models_sheets(rows):
        show(sheet)
    if not name:
        said = "Any Hugging Face id, folder or torch.nn.Module works as well."
        Console(highlight=False).print(f"{said} Options: ftray models NAME")
