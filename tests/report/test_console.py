"""What a console shows, and that it leaves the terminal as it found it."""

from __future__ import annotations

import io
import re
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from ftray.errors import RunFailedError
from ftray.events import Event, Log, StepsDiscarded
from ftray.events import Progress as ProgressEvent
from ftray.record.narrator import Narrator
from ftray.record.reader import RecordReader
from ftray.record.session import RunSession
from ftray.record.storage import Storage
from ftray.report import console as console_module
from ftray.report.console import RunConsole
from tests.handmade import FACTS, ended, epoch, evaluation, started, step

HIDE, SHOW = "\x1b[?25l", "\x1b[?25h"
CONTROL = re.compile(r"[\x00-\x09\x0b-\x1f\x7f-\x9f]")


def terminal() -> tuple[RunConsole, io.StringIO]:
    out = io.StringIO()
    return RunConsole(Console(file=out, force_terminal=True, width=120)), out


def told(console: RunConsole, *events: Event) -> None:
    """Events with the lines that a session says of them."""
    narrator = Narrator()
    for event in events:
        for item in (event, *narrator(event)):
            console(item)


def screen(stream: str) -> list[str]:
    """The lines that a terminal shows in the end: it does what the control codes say."""
    lines, row, column = [""], 0, 0
    for code, move, sign in re.findall(r"(\x1b\[([0-9;?]*)[A-Za-z])|(.|\n)", stream, re.DOTALL):
        if code.endswith("A"):
            row -= int(move or 1)
        elif code.endswith("K"):
            lines[row] = ""
        elif sign == "\r":
            column = 0
        elif sign == "\n":
            row, column = row + 1, 0
            lines += [""] * (row + 1 - len(lines))
        elif sign:
            lines[row] = lines[row][:column].ljust(column) + sign + lines[row][column + 1 :]
            column += 1
    return [line.rstrip() for line in lines if line.strip()]


@pytest.mark.parametrize("way", ["finish", "fail", "interrupted"])
def test_the_cursor_comes_back_however_the_run_ends(tmp_path: Path, way: str) -> None:
    storage = Storage(f"{tmp_path}/run")
    storage.create()
    console, out = terminal()
    session = RunSession(storage, "tiny", [console])
    session.open(FACTS)
    session.emit(started())
    session.emit(step(1))
    assert HIDE in out.getvalue() and SHOW not in out.getvalue()
    if way == "finish":
        session.finish(ended(6))
    elif way == "fail":
        session.fail(RunFailedError("no good"))
    else:
        session.interrupted()
    assert out.getvalue().rindex(SHOW) > out.getvalue().rindex(HIDE)
    length = len(out.getvalue())
    console(Log(message="later"))
    assert HIDE not in out.getvalue()[length:]


def test_a_bar_shows_loss_and_validation_loss() -> None:
    console, out = terminal()
    console(started())
    console(step(1, loss=0.25))
    console(epoch(0, 3, val_loss=2.5))
    console(step(4, epoch=1, loss=0.125))
    console.close()
    assert "Training [2/2]" in out.getvalue()
    assert "• loss: 0.125 • val_loss: 2.500" in out.getvalue()


def test_a_terminal_keeps_one_line_for_each_epoch_and_the_bar_of_one_that_was_cut_off() -> None:
    console, out = terminal()
    events = [step(n) for n in (1, 2, 3)]
    tasks = [ProgressEvent(task="Embedding queries", done=n, total=4) for n in (1, 4)]
    last = ProgressEvent(task="Matching", done=1, total=1)
    told(console, started(), *events, *tasks, last, evaluation(3, 0.5), epoch(0, 3, train_loss=0.5))
    told(console, started(3, 1, 0), step(4, epoch=1), ended(4, status="STOPPED"))
    lines = screen(out.getvalue())
    assert sum("Training [1/2]" in line for line in lines) == 1
    (kept,) = (line for line in lines if "Training [1/2]" in line)
    assert re.search(r"INFO     Training \[1/2\] ━{10} 3/3 0:00:00 \S+ • loss: 0\.500$", kept)
    assert "Training [2/2]" in lines[-1] and "1/3" in lines[-1]
    assert not any("Embedding" in line or "Matching" in line for line in lines)
    assert sum("Evaluated evaluation at step 3" in line for line in lines) == 1


def test_a_bar_counts_from_the_beginning_of_the_first_step() -> None:
    console, out = terminal()
    console(started())
    console(replace(step(1), data_s=20.0, step_s=40.0))
    console.close()
    assert "0:01:00 • loss: 0.500" in screen(out.getvalue())[-1]


def test_elsewhere_there_are_plain_lines_in_the_same_place(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(console_module, "PLAIN_EVERY_S", -1.0)
    out = io.StringIO()
    console = RunConsole(Console(file=out, width=40))
    console(started())
    console(replace(step(1), time_s=100.0, data_s=1.0, step_s=3.0))
    console(ProgressEvent(task="Encoding", done=1, total=2))
    console(Log(message="[a] " + "long " * 20 + "line"))
    console(ended(6))
    lines = out.getvalue().splitlines()
    assert lines[0] == "  Training [1/2] ━━━╌╌╌╌╌╌╌ 1/3 0:00:08 0:00:04 • loss: 0.500"
    assert len(lines) == 2 and lines[1].endswith("long line") and "[a] long" in lines[1]


def test_neither_the_log_nor_a_plain_console_has_control_characters(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(console_module, "PLAIN_EVERY_S", -1.0)
    storage = Storage(f"{tmp_path}/run")
    storage.create()
    out = io.StringIO()
    session = RunSession(storage, "tiny", [RunConsole(Console(file=out, width=60))])
    session.open(FACTS)
    session.say("\x1b[31mred\x1b[0m, 50 %\r60 %\x07 of \x9bK 'ü' 漢字")
    for event in (
        started(),
        *(step(n) for n in range(1, 4)),
        ProgressEvent(task="Matching", done=1, total=1),
        evaluation(3, 0.5),
        epoch(0, 3, train_loss=0.5),
        StepsDiscarded(epoch=0, step=2, global_step=2, reason="no\rimprovement"),
    ):
        session.emit(event)
    session.finish(ended(6))
    for text in (RecordReader(storage).logs(), out.getvalue()):
        assert not CONTROL.search(text.replace("\n", "")), text
        assert "red, 50 %60 % of K 'ü' 漢字" in text
        assert "Training [1/2] ━━━━━━━━━━ 3/3" in text


def test_a_file_that_cannot_hold_every_sign_gets_the_line_without_it() -> None:
    raw = io.BytesIO()
    file = io.TextIOWrapper(raw, encoding="ascii")
    told(RunConsole(Console(file=file)), started(), step(1), epoch(0, 3, train_loss=0.5))
    assert b"Training [1/2] ?????????? 3/3" in raw.getvalue()


# ---------------------------------------------------------------- in a notebook

NOTEBOOK = [
    """
from dataclasses import replace
from ftray.events import Log, Progress
from ftray.record.narrator import Narrator
from ftray.report import console as console_module
from ftray.report.console import RunConsole
from tests.handmade import ended, epoch, evaluation, started, step

console_module.NOTEBOOK_EVERY_S = -1.0


def told(console, *events):
    narrator = Narrator()
    for event in events:
        for item in (event, *narrator(event)):
            console(item)
""",
    """
run = RunConsole()
told(run, started(), *(step(n) for n in (1, 2)), Progress(task="Embedding <i>", done=1, total=4))
""",
    """
run = RunConsole()
told(run, started(), *(step(n) for n in (1, 2, 3)), Progress(task="Matching", done=1, total=1))
told(run, started(), evaluation(3, 0.5), epoch(0, 3, train_loss=0.5), Log(message="[b] <i>"))
told(run, started(3, 1, 0), step(4, epoch=1), ended(4, status="STOPPED"), Log(message="last"))
""",
    """
import warnings
from ftray.report.tables import examples_sheet, metrics_sheet, show
show(metrics_sheet({"evaluation": {"before": {"m": 0.25}, "after": {"m": 0.5}}}))
show(examples_sheet("Results", {"<q>": [{"text": "<b>", "score": 0.5, "relevant": True}]}, 3))
warnings.warn("IProgress not found. Please update jupyter and ipywidgets.")
""",
]


@pytest.fixture(scope="module")
def cells(tmp_path_factory: pytest.TempPathFactory) -> list[list[dict]]:
    """The outputs of each cell of `NOTEBOOK`."""
    import nbformat
    from nbformat.v4 import new_code_cell, new_notebook

    from tests.executed import execute

    path = tmp_path_factory.mktemp("notebook") / "one.ipynb"
    nbformat.write(new_notebook(cells=[new_code_cell(source) for source in NOTEBOOK]), path)
    return [cell.outputs for cell in execute(path, Path(__file__).parents[2]).cells]


def test_in_a_notebook_the_bar_is_one_display_that_changes(cells: list[list[dict]]) -> None:
    *_, live = cells[1]
    assert [output["output_type"] for output in cells[1]] == ["stream", "display_data"]
    bar = "━" * 20 + "╌" * 10
    lines = live["data"]["text/plain"].splitlines()
    assert lines[0].startswith(f"Training [1/2] {bar} 2/3 ") and "• loss: 0.500" in lines[0]
    assert lines[1:] == ["Embedding <i> 1/4"]
    assert "Embedding &lt;i&gt; 1/4" in live["data"]["text/html"]


def test_in_a_notebook_lines_are_text_and_the_bar_is_gone_in_the_end(
    cells: list[list[dict]],
) -> None:
    displays = [output for output in cells[2] if output["output_type"] == "display_data"]
    assert [output["data"] for output in displays] == [{"text/html": "", "text/plain": ""}]
    text = "".join(output["text"] for output in cells[2] if output["output_type"] == "stream")
    assert not any(output.get("name") == "stderr" for output in cells[2])
    said = [line.split(" ", 1)[1].split(None, 1)[1] for line in text.splitlines()]
    assert [line.split(" ")[0] for line in said] == [
        *("Finetuning", "Finetuning", "Evaluated", "Training", "[b]", "Finetuning", "last")
    ]
    assert not CONTROL.search(text.replace("\n", ""))


def test_in_a_notebook_tables_are_html(cells: list[list[dict]]) -> None:
    assert [output["output_type"] for output in cells[3]] == ["display_data", "display_data"]
    metrics, examples = (output["data"] for output in cells[3])
    assert "<td" in metrics["text/html"] and "+0.25000" in metrics["text/html"]
    assert "+0.25000" in metrics["text/plain"] and "\x1b" not in metrics["text/plain"]
    assert "&lt;q&gt;" in examples["text/html"] and "<q>" in examples["text/plain"]
