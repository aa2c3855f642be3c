"""docs/benchmarks.md names every script and every page of results, and no others."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
BENCHMARKS = ROOT / "benchmarks"
PAGE = (ROOT / "docs" / "benchmarks.md").read_text(encoding="utf-8")
MEASURING = [
    path.name for path in sorted(BENCHMARKS.glob("*.py")) if "common.page(" in path.read_text()
]
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def linked(kind: str, text: str = PAGE) -> set[str]:
    """What a page links under benchmarks/, by the pattern of its name."""
    return set(re.findall(rf"\((?:\.\./)?benchmarks/({kind})\)", text))


def test_there_are_scripts() -> None:
    assert len(MEASURING) > 10


@pytest.mark.parametrize("name", MEASURING)
def test_a_script_has_its_line_with_its_results(name: str) -> None:
    lines = [line for line in PAGE.splitlines() if line.startswith(f"| [{name}]")]
    assert len(lines) == 1
    results = f"results/{name.removesuffix('.py')}.md"
    assert results in linked(r"results/[\w.]+", lines[0])


def test_every_page_of_results_is_linked() -> None:
    pages = {f"results/{path.name}" for path in (BENCHMARKS / "results").glob("*.md")}
    assert pages == linked(r"results/[\w.]+")


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_what_a_document_links_of_the_benchmarks_is_there(document: Path) -> None:
    for name in linked(r"[\w./]+", document.read_text(encoding="utf-8")):
        assert (BENCHMARKS / name).exists(), name
