"""The notebooks run from top to bottom, and what they show is what their cells gave."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import nbformat
import pytest

import ftray
from tests.executed import digest, execute

NOTEBOOKS = sorted((Path(__file__).parent.parent / "notebooks").glob("*.ipynb"))
OF_A_MACHINE = re.compile(r"(?<![\w.])/(?:home|root|tmp|work|Users|opt|usr|var)/|site-packages")
CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def code_cells(notebook: Any) -> list[Any]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def shown(cell: Any) -> list[str]:
    """All texts of a cell's outputs."""
    texts = [output["text"] for output in cell.outputs if output.output_type == "stream"]
    return texts + [text for o in cell.outputs for text in o.get("data", {}).values()]


def test_there_is_a_notebook() -> None:
    assert "text_to_text.ipynb" in [path.name for path in NOTEBOOKS]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_the_outputs_on_record_are_those_of_the_cells(path: Path) -> None:
    notebook = nbformat.read(path, as_version=4)
    assert notebook.metadata["executed"] == digest(notebook), (
        f"a cell was changed: .venv/bin/python -m tests.executed notebooks/{path.name}"
    )
    cells = code_cells(notebook)
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    for cell in cells:
        assert cell.outputs, cell.source
        assert {output.output_type for output in cell.outputs} <= {
            "stream",
            "display_data",
            "execute_result",
        }
        for text in (cell.source, *shown(cell)):
            assert not OF_A_MACHINE.search(text) and not CONTROL.search(text), text


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs_from_top_to_bottom(path: Path, tmp_path: Path) -> None:
    """nbclient raises if a cell does; each shows something, and nothing goes to standard error."""
    notebook = execute(path, tmp_path)
    for cell in code_cells(notebook):
        assert any(shown(cell)), cell.source
        assert not any(output.get("name") == "stderr" for output in cell.outputs), cell.outputs
    (run,) = ftray.list_runs(storage_path=str(tmp_path / "runs"))
    assert run.status() == "FINISHED"
    before, after = run.metrics()["before"], run.metrics()["after"]
    assert after["average_precision"] > before["average_precision"] + 0.05
