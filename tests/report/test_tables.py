"""Tables: the same in a terminal and, as HTML, in a notebook."""

from __future__ import annotations

import io
import re
from html.parser import HTMLParser
from typing import Any

import pytest
from rich.console import Console

from ftray.report.tables import CSS, Sheet, examples_sheet, metrics_sheet, show, what_metrics


class Parsed(HTMLParser):
    """The cells of a table, row by row, and whether every element was closed."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.rows: list[list[str]] = []
        self.open: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] in ("td", "th"):
            self.rows[-1][-1] += data


def metrics() -> Sheet:
    one = {"before": {"a_ndcg_at_k": 0.5, "a_mine": 0.25}, "after": {"a_ndcg_at_k": 0.25}}
    return metrics_sheet({"a": one, "b": {"before": {}, "after": {"b_ndcg_at_k": 0.125}}})


def test_a_notebook_gets_a_table_with_the_same_cells() -> None:
    parsed = Parsed(metrics().html())
    assert not parsed.open
    assert parsed.rows == [
        ["Evaluation", "Retrieval Metric", "Before", "After", "Change"],
        ["a", "mine", "0.25000", "", ""],
        ["", "ndcg_at_k", "0.50000", "0.25000", "-0.25000"],
        ["b", "ndcg_at_k", "", "0.12500", ""],
    ]
    out = io.StringIO()
    show(metrics(), Console(file=out, width=100))
    for row in parsed.rows[1:]:
        assert any(all(cell in line for cell in row) for line in out.getvalue().splitlines())


def test_texts_of_the_data_are_no_markup_anywhere() -> None:
    text = "<script>alert(1)</script> [bold]&amp;[/] \x1b[31m漢字"
    matches = [{"text": text, "score": 0.5, "relevant": True}]
    sheet = examples_sheet(text, {text: matches}, 5)
    assert "<script" not in sheet.html()
    shown = "<script>alert(1)</script> [bold]&amp;[/] 漢字"
    assert Parsed(sheet.html()).rows[1:] == [
        ["Query", shown, ""],
        ["Match 1", f"✓ {shown}", "0.500"],
    ]
    out = io.StringIO()
    show(sheet, Console(file=out, width=120))
    assert out.getvalue().count("[bold]&amp;[/]") == 3  # title, query, match


def test_a_long_text_is_cut_and_stands_on_one_line() -> None:
    sheet = examples_sheet("t", {"a\n b": [{"text": "word " * 99, "score": 1.0}]}, 1)
    (rows,) = sheet.sections
    assert rows[0][1].text == "a b"
    assert len(rows[1][1].text) == 160 and rows[1][1].text.endswith("…")


def test_pictures_stand_beside_what_they_are_of() -> None:
    uri = "data:image/webp;base64,AAAA"
    matches = [
        {"text": "a.png", "score": 0.5, "image": uri},
        {"text": "b.png", "score": 0.25, "image": "https://example.org/b.png"},
    ]
    html = examples_sheet("t", {"q.png": matches}, 5, {"q.png": uri}).html()
    assert html.count(f'src="{uri}"') == html.count("<img") == 2, "only what the record has"
    html = re.sub("<img[^>]*>", "", html)
    assert [row[1].strip() for row in Parsed(html).rows] == ["Item", "q.png", "a.png", "b.png"]
    texts = examples_sheet("t", {"q": [{"text": "a", "score": 1.0}]}, 1).html()
    assert Parsed(texts).rows[0] == ["", "Text", "Score"] and "<img" not in texts


def test_every_style_is_known_to_a_notebook() -> None:
    sheets = [metrics(), examples_sheet("t", {"q": [{"text": "a", "score": 1.0}] * 2}, 2)]
    used = {c.style for s in sheets for section in s.sections for row in section for c in row}
    assert used <= set(CSS) and {"red", "bold", "dim", "bold yellow"} <= used


@pytest.mark.parametrize(
    ("before", "after", "style"),
    [(0.5, 0.6, "green"), (0.5, 0.4, "red"), (0.5, 0.5, ""), (0.5, 0.5 - 1e-9, "")],
)
def test_a_change_has_a_colour_where_five_digits_show_it(
    before: float, after: float, style: str
) -> None:
    sheet = metrics_sheet({"e": {"before": {"m": before}, "after": {"m": after}}})
    assert sheet.columns == ("Retrieval Metric", "Before", "After", "Change")
    assert sheet.sections[0][0][-1].style == style


def test_metrics_of_scored_pairs_are_called_so() -> None:
    assert what_metrics(["sts_pearson", "spearman"]) == "Similarity"
    assert what_metrics(["sts_pearson", "ndcg_at_k"]) == "Retrieval"
    assert what_metrics([]) == "Retrieval"
