"""Run as a pytest plugin-less test: prints what each example says."""
import textwrap, re
from pathlib import Path
import pytest
from tests.test_data_page import *
from tests.test_data_page import EXAMPLES, said_of, place, files
OUT = {}
@pytest.mark.parametrize("number", range(len(EXAMPLES)))
def test_fill(number, place, monkeypatch):
    example = EXAMPLES[number]
    lines = said_of(example, place, monkeypatch)
    text = "\n".join("\n".join(textwrap.wrap(l, 100, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False)) for l in lines)
    OUT[number] = text
    page = ROOT / "docs" / "data.md"
    src = page.read_text()
    old = f"```{example.kind}\n{example.code}```\n```text\n{example.said}```"
    assert src.count(old) == 1
    page.write_text(src.replace(old, f"```{example.kind}\n{example.code}```\n```text\n{text}\n```"))
del test_an_example_is_read_as_printed_and_the_log_says_what_is_printed
