"""CSV to Arrow: what is detected about a file, and where exactly it is wrong.

Python's `csv` module parses, for it knows the line of every row; rows go to Arrow in chunks.

Detected, unless `CsvOptions` says it:

- encoding: UTF-8 (with or without a byte order mark) if all of the file decodes, UTF-16 by its byte
  order mark, else the best guess of charset_normalizer (of equally good ones cp1252);
- delimiter: of `, ; tab |` the one that cuts the most of the first rows into the same number (more
  than one) of cells. (`csv.Sniffer` judges single characters instead; texts full of commas and
  apostrophes mislead it.) A .tsv file has tabs; a .txt file that no delimiter fits has one text
  a line; else comma;
- header: the first row is a header if two of its cells (or its only one) are known column names;
  also if all its cells are different short single words, none of which comes again in its column,
  and most cells of a column below are texts of several words; also if it holds no number, and all
  cells of a column below are numbers; the same of addresses of images or of points.
"""

from __future__ import annotations

import codecs
import csv
import io
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import TextIO

from charset_normalizer import from_bytes

from ftray.config import CsvOptions
from ftray.data.addresses import all_addresses
from ftray.data.arrow_values import check_marks
from ftray.data.cleaning import counted
from ftray.data.lists import check_no_lists
from ftray.data.loading import Choose, Loaded, known_encoding, undecodable
from ftray.data.names import KNOWN_NAMES
from ftray.data.roles import CAPTION_NAMES, FILE_NAMES, THING_NAMES
from ftray.data.tables import TableBuilder
from ftray.errors import DataError

__all__ = ["load_csv"]

_SAMPLE_CHARS = 1 << 16
_SAMPLE_ROWS = 200
_MAX_CELL_CHARS = 1 << 24
_ALL_NAMES = KNOWN_NAMES.union(THING_NAMES, FILE_NAMES, CAPTION_NAMES)
_DELIMITERS = {",": "comma", ";": "semicolon", "\t": "tab", "|": "bar"}
_FOREIGN = re.compile(r"\w*[^\W\x00-\x7f]\w*")
_NUMBER = re.compile(r"[-+]?\d+([.,]\d+)?")
_WORD = re.compile(r"[A-Za-z_][\w.-]{0,29}")


@dataclass(frozen=True, kw_only=True)
class _Dialect:
    """How a row is cut into cells; no delimiter = a line is one cell, no quotechar = no quoting."""

    delimiter: str | None
    quotechar: str | None

    def reader(self, lines: Iterator[str] | TextIO, *, strict: bool = True) -> Iterator[list[str]]:
        if self.delimiter is None:
            return ([line.rstrip("\r\n")] for line in lines)
        return csv.reader(
            lines,
            delimiter=self.delimiter,
            quotechar=self.quotechar,
            quoting=csv.QUOTE_MINIMAL if self.quotechar else csv.QUOTE_NONE,
            skipinitialspace=True,
            strict=strict,
        )


class _Rows:
    """The rows of an open CSV file, each with the line it starts on; blank lines are counted."""

    def __init__(self, file: TextIO, dialect: _Dialect, source: str) -> None:
        self.blank = 0
        self._source = source
        self._line = 0
        self._cells = dialect.reader(self._counted(file))

    def _counted(self, file: TextIO) -> Iterator[str]:
        for line in file:
            self._line += 1
            yield line

    def __iter__(self) -> Iterator[tuple[int, list[str]]]:
        while True:
            start = self._line + 1
            try:
                cells = next(self._cells, None)
            except csv.Error as error:
                raise self._error(start, str(error)) from None
            if cells is None:
                return
            if any(cell.strip() for cell in cells):
                yield start, cells
            else:
                self.blank += 1

    def _error(self, start: int, message: str) -> DataError:
        if "unexpected end of data" in message:
            what = "a quote is opened in this row and not closed before the end of the file."
        elif "field larger" in message:
            what = f"a cell of more than {_MAX_CELL_CHARS:,} characters; is a quote not closed?"
        elif "expected after" in message:
            what = "there is text after a closing quote."
        else:
            what = f"{message}."
        return DataError(
            f"{self._source}, line {start}: {what} A quote inside a quoted text is written twice "
            '(""); csv_options.quotechar = "" takes quotes as ordinary characters.'
        )


def load_csv(
    path: Path, options: CsvOptions, choose: Choose, *, source: str, named: bool
) -> Loaded:
    """Read a CSV file.

    Args:
        path: the file.
        options: what is known about it; the rest is detected.
        choose: column names to roles.
        source: the file's name, for messages.
        named: the user names columns, so that there must be a header.

    Raises:
        DataError: with file and line; see the module's tests for each.
    """
    encoding, notes = _encoding(path, options, source)
    try:
        with path.open(encoding=encoding, newline="") as file, _long_cells():
            dialect, said = _dialect(file, path, options)
            rows = _Rows(file, dialect, source)
            return _load(rows, options, choose, source=source, named=named, notes=(*notes, *said))
    except UnicodeError:
        hint = (
            "Leave csv_options.encoding away to have it detected, or name the file's own."
            if options.encoding
            else "Name the file's own encoding with csv_options.encoding, such as cp1252."
        )
        raise undecodable(path, encoding, source, hint) from None


@contextmanager
def _long_cells() -> Iterator[None]:
    """Lift csv's limit of 131,072 characters a cell, which is a setting of the process."""
    before = csv.field_size_limit(_MAX_CELL_CHARS)
    try:
        yield
    finally:
        csv.field_size_limit(before)


def _load(
    rows: _Rows,
    options: CsvOptions,
    choose: Choose,
    *,
    source: str,
    named: bool,
    notes: Sequence[str],
) -> Loaded:
    stream = iter(rows)
    head = list(islice(stream, _SAMPLE_ROWS))
    if not head:
        raise DataError(f"{source} is empty.")
    header = _has_header([cells for _, cells in head], options, source, named)
    line, first = head[0]
    said = list(notes)
    if header:
        head = head[1:]
        if not head:
            raise DataError(f"{source} has a header ({', '.join(first)}) and no rows.")
        if options.header is None and not named and not _known_header(first):
            said.append(
                f"line {line} was taken as the header ({', '.join(first)}); "
                "csv_options.header = false if it is data"
            )
    elif options.header is None and len(first) > 1:
        said.append(f"line {line} was taken as data; csv_options.header = true if it is a header")
    width = len(first)
    numbered = [f"column {place}" for place in range(1, width + 1)]
    names = [name.strip() or numbered[i] for i, name in enumerate(first)] if header else numbered
    layout = choose(names)
    places = [names.index(name) for name in layout.columns.values()]
    builder = TableBuilder(tuple(layout.columns))
    for number, cells in islice(chain(head, stream), options.size):
        if len(cells) != width:
            other = f"the header has {width}" if header else f"line {line} has {width}"
            plural = "" if len(cells) == 1 else "s"
            raise DataError(
                f"{source}, line {number}: {len(cells)} column{plural}, but {other}. "
                "Texts with the delimiter inside need quotes."
            )
        builder.add((cells[place] for place in places), number)
    table, positions = builder.finish()
    check_no_lists(table, layout, source)
    for column in table.columns:
        check_marks(column, lambda row: f"{source}, line {positions[row].as_py()}")
    if rows.blank:
        said.append(f"{counted(rows.blank, 'blank line')} skipped")
    return Loaded(layout=layout, table=table, unit="line", positions=positions, notes=tuple(said))


def _has_header(
    rows: Sequence[Sequence[str]], options: CsvOptions, source: str, named: bool
) -> bool:
    if named:
        if options.header is False:
            raise DataError(
                f"{source}: `columns` names columns, but csv_options.header is false. "
                "Leave one of them away."
            )
        return True
    if options.header is not None:
        return options.header
    first = [cell.strip() for cell in rows[0]]
    if _known_header(first):
        return True
    below = [row for row in rows[1:] if len(row) == len(first)]
    if not below or len(set(first)) < len(first):
        return False
    columns = [[row[i].strip() for row in below] for i in range(len(first))]
    if any(all(_NUMBER.fullmatch(cell) for cell in column) for column in columns):
        return not any(_NUMBER.fullmatch(cell) for cell in first)
    addresses = [all_addresses(column) for column in columns]
    if any(addresses):
        return not any(all_addresses([first[i]]) for i, found in enumerate(addresses) if found)
    if not all(_WORD.fullmatch(cell) for cell in first):
        return False
    recurs = any(cell in column for cell, column in zip(first, columns, strict=True))
    has_texts = any(2 * sum(" " in cell for cell in column) > len(column) for column in columns)
    return has_texts and not recurs


def _known_header(cells: Sequence[str]) -> bool:
    telling = KNOWN_NAMES if len(cells) == 1 else _ALL_NAMES
    known = sum(cell.strip().lower() in telling for cell in cells)
    return known >= min(2, len(cells))


def _dialect(file: TextIO, path: Path, options: CsvOptions) -> tuple[_Dialect, tuple[str, ...]]:
    """How to cut rows; leaves `file` at its start."""
    quotechar = _character("quotechar", options.quotechar) if options.quotechar else None
    if options.delimiter is not None:
        delimiter = _character("delimiter", options.delimiter.replace("\\t", "\t"))
        return _Dialect(delimiter=delimiter, quotechar=quotechar), ()
    if options.dialect != "auto":
        delimiter = "\t" if options.dialect == "excel-tab" else ","
        return _Dialect(delimiter=delimiter, quotechar=quotechar), ()
    if path.suffix.lower() == ".tsv":
        return _Dialect(delimiter="\t", quotechar=quotechar), ()
    sample = file.read(_SAMPLE_CHARS)
    file.seek(0)
    share, found = max(
        (_share(sample, _Dialect(delimiter=mark, quotechar=quotechar)), -place, mark)
        for place, mark in enumerate(_DELIMITERS)
    )[::2]
    if path.suffix.lower() == ".txt" and share < 1:
        return _Dialect(delimiter=None, quotechar=None), ("each line is one text",)
    delimiter = found if share > 0 else ","
    said = () if delimiter == "," else (f"delimiter: {_DELIMITERS[delimiter]} (detected)",)
    return _Dialect(delimiter=delimiter, quotechar=quotechar), said


def _share(sample: str, dialect: _Dialect) -> float:
    """Share of the sample's rows with the most frequent width; 0 where that is one cell."""
    rows = dialect.reader(io.StringIO(sample, newline=""), strict=False)
    widths = [len(row) for row in islice(rows, _SAMPLE_ROWS) if row]
    if len(sample) == _SAMPLE_CHARS and 1 < len(widths) < _SAMPLE_ROWS:
        widths.pop()  # cut off in the middle of a row
    if not widths:
        return 0.0
    width, count = Counter(widths).most_common(1)[0]
    return count / len(widths) if width > 1 else 0.0


def _character(option: str, given: str) -> str:
    if len(given) != 1 or given in "\r\n":
        raise DataError(f"csv_options.{option} = {given!r}: it must be one character.")
    return given


def _encoding(path: Path, options: CsvOptions, source: str) -> tuple[str, tuple[str, ...]]:
    if options.encoding is not None:
        return known_encoding(options.encoding), ()
    with path.open("rb") as file:
        start = file.read(4)
        if start.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
            return "utf-16", ("encoding: utf-16 (by its byte order mark)",)
        file.seek(0)
        decoder = codecs.getincrementaldecoder("utf-8-sig")()
        offset = 0
        try:
            while block := file.read(1 << 20):
                if b"\0" in block:
                    raise DataError(
                        f"{source} holds NUL bytes and is not a text file. If it is UTF-16 without "
                        "a byte order mark, set csv_options.encoding to utf-16-le."
                    )
                decoder.decode(block)
                offset += len(block)
            decoder.decode(b"", final=True)
        except UnicodeDecodeError as error:
            # The block's first bytes may have been carried over from the one before.
            file.seek(max(0, offset + error.start - _SAMPLE_CHARS // 2))
            sample = file.read(_SAMPLE_CHARS)
        else:
            return "utf-8-sig", ()
    guess = _guessed_encoding(sample)
    if guess is None:
        raise DataError(
            f"{source} is neither UTF-8 nor any text encoding that could be recognised. "
            "Name it with csv_options.encoding, such as cp1252."
        )
    word = _FOREIGN.search(sample.decode(guess, errors="ignore"))
    shown = f" (it gives '{word.group()}')" if word else ""
    return guess, (
        f"encoding: {guess} is a guess{shown}, for the file is not UTF-8; "
        "csv_options.encoding sets it",
    )


def _guessed_encoding(sample: bytes) -> str | None:
    """charset_normalizer's best; of equally good ones cp1252, the far most frequent in files.

    Its own order is the alphabet's, which makes French into cp1250 ("oů est").
    """
    matches = from_bytes(sample)
    best = matches.best()
    if best is None:
        return None
    score = (best.chaos, best.coherence)
    equal = [match for match in matches if (match.chaos, match.coherence) == score]
    names = {name for match in equal for name in (match.encoding, *match.could_be_from_charset)}
    return "cp1252" if "cp1252" in names else best.encoding
