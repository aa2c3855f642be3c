"""`ftray models`."""

from __future__ import annotations

import json

from rich.console import Console
from rich.table import Table

__all__ = ["run"]


def run(as_json: bool) -> None:
    """List short names."""
    from ftray.models.catalogue import MODELS

    rows = [{"name": name, "hub_id": m.hub_id, "licence": m.licence} for name, m in MODELS.items()]
    if as_json:
        print(json.dumps(rows))
        return
    table = Table(caption="Any Hugging Face id and any local folder works as well.")
    for title in ("Name", "Hugging Face id", "Licence"):
        table.add_column(title)
    for row in rows:
        table.add_row(*row.values())
    Console(highlight=False).print(table)
