"""The notebooks run from top to bottom, and what they show is what their cells gave."""

from __future__ import annotations

import base64
import io
import os
import re
from pathlib import Path
from typing import Any

import nbformat
import numpy as np
import pytest
from PIL import Image

import ftray
from tests.executed import digest, execute

NOTEBOOKS = sorted((Path(__file__).parent.parent / "notebooks").glob("*.ipynb"))
OF_A_MACHINE = re.compile(r"(?<![\w.])/(?:home|root|tmp|work|Users|opt|usr|var)/|site-packages")
EMOJI = Path(os.environ.get("FTRAY_DATA", "no-folder"), "emoji", "emoji.parquet")
FITS = {"text_to_text": 1, "image_to_image": 1, "text_to_image": 2 if EMOJI.is_file() else 1}
SWEEPS = {"sweep": 6}  # trials
LONG = ("text_to_text", "text_to_image", "sweep")
"""They take a minute or two each: `make test-slow` has them."""
CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def code_cells(notebook: Any) -> list[Any]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def shown(cell: Any) -> list[str]:
    """All texts of a cell's outputs."""
    texts = [output["text"] for output in cell.outputs if output.output_type == "stream"]
    return texts + [text for o in cell.outputs for text in o.get("data", {}).values()]


def test_there_is_a_notebook_for_each_task() -> None:
    assert {path.stem for path in NOTEBOOKS} == {*FITS, *SWEEPS}


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


@pytest.mark.parametrize(
    "path",
    [
        pytest.param(path, id=path.stem, marks=[pytest.mark.slow] if path.stem in LONG else [])
        for path in NOTEBOOKS
    ],
)
def test_a_notebook_runs_from_top_to_bottom(path: Path, tmp_path: Path) -> None:
    """nbclient raises if a cell does; each shows something, and nothing goes to standard error.

    Every fit in it raises what it is about; that on emoji is made where their folder is.
    """
    notebook = execute(path, tmp_path)
    for cell in code_cells(notebook):
        assert any(shown(cell)), cell.source
        assert not any(output.get("name") == "stderr" for output in cell.outputs), cell.outputs
    if path.stem in SWEEPS:
        check_sweep(str(tmp_path / "runs"), SWEEPS[path.stem])
    else:
        check_fits(str(tmp_path / "runs"), FITS[path.stem])


def check_fits(storage_path: str, count: int) -> None:
    runs = ftray.list_runs(storage_path=storage_path)
    assert len(runs) == count
    for run in runs:
        assert run.status() == "FINISHED"
        before, after = run.metrics()["before"], run.metrics()["after"]
        assert after["average_precision"] > before["average_precision"] + 0.05


def check_sweep(storage_path: str, count: int) -> None:
    (sweep,) = ftray.list_sweeps(storage_path)
    assert sweep.status() == "FINISHED" and sweep.errors == {}
    outcomes = [trial.outcome for trial in sweep.trials]
    assert len(outcomes) == count and set(outcomes) == {"finished", "stopped"}
    metrics = sweep.best.metrics()
    scores = [trial.score for trial in sweep.trials if trial.score is not None]
    assert metrics["after"]["average_precision"] == pytest.approx(max(scores))
    assert max(scores) > metrics["before"]["average_precision"] + 0.05


@pytest.mark.parametrize(("name", "each"), [("image_to_image", 20), ("text_to_image", 18)])
def test_the_pictures_on_record_are_digits(name: str, each: int) -> None:
    """Emoji are not ours to show: of them there are numbers only."""
    notebook = nbformat.read(NOTEBOOKS[0].with_name(f"{name}.ipynb"), as_version=4)
    (cell,) = [cell for cell in code_cells(notebook) if "<img " in "".join(shown(cell))]
    assert cell.source.startswith("run.display_examples(")
    uris = re.findall(r'<img src="data:image/webp;base64,([^"]+)"', "".join(shown(cell)))
    assert len(uris) == each
    for uri in uris:
        image = Image.open(io.BytesIO(base64.b64decode(uri)))
        pixels = np.asarray(image.convert("RGB"), np.int64)
        assert image.size == (96, 96) and np.ptp(pixels.mean(2)) > 128, "light on dark, and large"
        assert np.ptp(pixels, axis=2).max() < 8, "grey"
