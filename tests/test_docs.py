"""What docs/architecture.md says of the code is true."""

from __future__ import annotations

import ast
import inspect
import re
from pathlib import Path

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
FILES = sorted((ROOT / "ftray").rglob("*.py"))


def length(file: Path) -> int:
    return len(file.read_text(encoding="utf-8").splitlines())


def functions() -> list[tuple[int, str]]:
    """Lines of each function, without its docstring, and where it is."""
    found = []
    for file in FILES:
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                lines = (node.end_lineno or 0) - node.lineno + 1
                first = node.body[0]
                if ast.get_docstring(node) is not None:
                    lines -= (first.end_lineno or 0) - first.lineno + 1
                found.append((lines, f"{file.relative_to(ROOT / 'ftray')}: {node.name}"))
    return found


def test_the_loop_in_words_is_the_loops_own_docstring() -> None:
    from ftray.training import loop

    words = inspect.getdoc(loop)
    assert words is not None
    _, _, block = words.partition("callbacks in brackets:\n\n")
    assert len(block.splitlines()) > 10
    assert inspect.cleandoc(block) in PAGE


def test_every_hook_is_in_the_loops_words() -> None:
    from ftray.callbacks.base import Callback

    section = PAGE.partition("## The loop, in words")[2].partition("\n## ")[0]
    hooks = {name for name in vars(Callback) if name.startswith("on_")}
    assert hooks == set(re.findall(r"on_\w+", section))


def test_every_folder_and_file_of_the_package_has_its_line() -> None:
    table = PAGE.partition("## Folders")[2].partition("\n## ")[0]
    parts = {p.name for p in (ROOT / "ftray").iterdir() if not p.name.startswith("_")}
    for part in parts - {"py.typed"}:
        assert f"`{part}" in table, part


def test_the_sizes_it_states_are_those_of_the_code() -> None:
    section = PAGE.partition("## Sizes")[2].partition("\n## ")[0]
    largest = max(FILES, key=length)
    assert f"`{largest.relative_to(ROOT / 'ftray')}`, {length(largest)} lines" in section
    lines, name = max(functions())
    assert f"`{name}`, {lines} lines" in section
    assert f"`training/loop.py` has {length(ROOT / 'ftray/training/loop.py')} lines" in section
