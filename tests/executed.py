"""Notebooks, executed as a user would; `python -m tests.executed FILE` keeps the outputs.

What the committed outputs show is what the cells gave: the digest in the metadata is of the cells
that were executed, and the outputs have no path of the machine that did it.
"""

from __future__ import annotations

import hashlib
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

import nbformat
from nbclient import NotebookClient

__all__ = ["digest", "execute", "main"]

TIMEOUT_S = 600


def digest(notebook: Any) -> str:
    """Of the sources of all code cells, in order."""
    sources = [cell.source for cell in notebook.cells if cell.cell_type == "code"]
    return hashlib.sha256("\n\0".join(sources).encode()).hexdigest()[:16]


def execute(path: Path, folder: Path) -> Any:
    """The notebook with the outputs that its cells give when they run in `folder`.

    Raises:
        CellExecutionError: if a cell raises, with the cell and its traceback.
    """
    notebook = nbformat.read(path, as_version=4)
    resources = {"metadata": {"path": str(folder)}}
    NotebookClient(
        notebook,
        timeout=TIMEOUT_S,
        resources=resources,
        record_timing=False,
        coalesce_streams=True,  # as a notebook shows them
    ).execute(env={**os.environ, "RAY_ADDRESS": "local"})  # not a cluster that happens to be here
    return notebook


def main(path: Path) -> None:
    """Execute a notebook in a fresh folder and write it back with its outputs."""
    with tempfile.TemporaryDirectory() as folder:
        folder = str(Path(folder).resolve())
        notebook = execute(path, Path(folder))
    for cell in notebook.cells:
        if cell.cell_type == "code":
            _clean(cell, folder)
    notebook.metadata = {
        "kernelspec": notebook.metadata["kernelspec"],
        "language_info": {"name": "python"},
        "executed": digest(notebook),
    }
    nbformat.write(notebook, path)


def _clean(cell: Any, folder: str) -> None:
    """No path of this machine, and no display that was emptied in the end."""

    def relative(text: str) -> str:
        return text.replace(f"{folder}/", "").replace(str(Path.home()), "~")

    kept = []
    for output in cell.outputs:
        if output.output_type == "stream":
            output.text = relative(output.text)
        elif not any(output.get("data", {}).values()):
            continue
        else:
            output.data = {kind: relative(text) for kind, text in output.data.items()}
            output.metadata = {}
        kept.append(output)
    cell.outputs = kept


if __name__ == "__main__":
    main(Path(sys.argv[1]))
