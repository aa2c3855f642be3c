"""`report.html`: one file that says what a run was, how it went, and what came of it.

It is made from the record alone, and shows itself without a network: no script, no font, no image
comes from elsewhere. What users wrote is escaped by the template engine.
"""

from __future__ import annotations

import math
import re
from functools import lru_cache
from typing import TYPE_CHECKING

from ftray.record.reader import RecordReader
from ftray.record.storage import Storage
from ftray.record.writer import DONE, PART

if TYPE_CHECKING:
    import jinja2

__all__ = ["RELOAD_EVERY_S", "REPORT", "fresh_report", "is_fresh", "render", "templates"]
__all__ += ["write_report"]

REPORT = "report.html"
STATUS = re.compile(r'<meta name="ftray-status" content="(\w+)">')
RELOAD_EVERY_S = 30


def write_report(storage: Storage) -> str:
    """Write `report.html` into a run directory; returns its path or URI.

    Args:
        storage: the run directory.

    Raises:
        StorageError: if it cannot be written.
    """
    text = render(RecordReader(storage))
    storage.write_bytes(REPORT, text.encode("utf-8", "replace"), content_type="text/html")
    return storage.under(REPORT).uri


def fresh_report(storage: Storage) -> str:
    """The path or URI of a run's `report.html`, written anew if the record has gone on since.

    Raises:
        StorageError: if it cannot be written.
    """
    return storage.under(REPORT).uri if is_fresh(storage) else write_report(storage)


def is_fresh(storage: Storage) -> bool:
    """Whether there is a report of the record as it stands."""
    written = storage.modified_s(REPORT)
    if not written:  # none, or nobody knows when
        return False
    said = STATUS.search(storage.read_text(REPORT)[:2000])
    status = RecordReader(storage).status()["status"]
    if said is None or said[1] != status or status not in DONE:
        return False
    parts = [name for name in storage.names("events") if PART.match(name)]
    names = ["run.yaml", "status.json", "examples.json", *(f"events/{name}" for name in parts[-1:])]
    times = [storage.modified_s(name) for name in names]
    return all(time_s is None or time_s <= written for time_s in times)


def render(reader: RecordReader) -> str:
    """The page of a run.

    Args:
        reader: of the run; it may be going on.
    """
    from ftray.report.contents import read_contents
    from ftray.report.view import view_of

    contents = read_contents(reader)
    values = view_of(contents)
    return templates().get_template("page.html").render(reload_s=RELOAD_EVERY_S, **values)


@lru_cache(maxsize=1)
def templates() -> jinja2.Environment:
    """The templates of pages; what they are given is escaped."""
    import jinja2

    from ftray.report.figures import number

    found = jinja2.Environment(
        loader=jinja2.PackageLoader("ftray.report", "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    found.filters.update(number=number, signed=_signed)
    return found


def _signed(value: float | None, digits: int = 4) -> str:
    """A change: `+0.0123`, `−0.0045`, `0.0000`, `NaN`; a dash where there is none."""
    if value is None:
        return "–"
    if math.isnan(value):
        return "NaN"
    text = f"{value:+.{digits}f}"
    return text[1:] if float(text) == 0 else text.replace("-", "−")
