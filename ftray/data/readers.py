"""Sources to records: paths, folders, archives, tables, lists, documents.

`read_records` finds out what a source holds (things with labels, pairs, pairs with a score, or
things alone; texts, images, points or features), checks every row and every file, and says in
`Records.notes` what it detected and what a user should know.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from pydantic import ValidationError

from ftray.config import CsvOptions
from ftray.data.addresses import Things, noun_of, things_in, unread_addresses
from ftray.data.cleaning import (
    check_cells,
    drawn_rows,
    fingerprint,
    scores_as_numbers,
    stripped,
    summary,
)
from ftray.data.columns import Kind, Layout, resolve
from ftray.data.conflicts import conflicts_in
from ftray.data.distinct import Coded, code
from ftray.data.files import Files, LocalFiles
from ftray.data.loading import Loaded, Unit
from ftray.data.resolving import Resolver
from ftray.data.roles import decided, implied, named_things, oriented
from ftray.data.sources import Request, described, load
from ftray.data.tables import let_pages_go
from ftray.data.teacher import teacher_scores
from ftray.data.values import TEXTS, Values
from ftray.errors import DataError, nearest
from ftray.media import NO_BLOBS, Blobs, Modality

__all__ = ["CsvOptions", "Records", "read_records"]


@dataclass(frozen=True, kw_only=True)
class Records:
    """What a source holds, cleaned.

    Args:
        kind: `labelled` (texts with labels), `pairs` (a query and a document relevant to it),
            `triplets` (with negatives too), `distillation` (with a teacher's scores of document and
            negatives besides), `scored` (two texts and how alike they are), or `items` (texts
            alone).
        table: string columns without nulls: item and label; query and document; or item. Triplets
            have negative, and where they have several negative_2, negative_3 and so on. Scored
            pairs have query, document, and score, a column of finite float64; triplets to distil
            from have score, of the document, and score_2, score_3 and so on, of the negatives:
            only the differences of these mean something. Also `id` where the
            source has ids of its own: a column named id or _id, or DocList documents that were all
            given an id. Of pairs, it is the query's id.
        source: the path or the object, for messages.
        notes: what was detected, and what a user should know.
        fingerprint: 16 hex digits of the SHA-256 of kind and cells; equal cells from another file
            format have the same.
        unit: what `positions` counts: lines, rows and records from 1, the index of a list from 0.
        positions: where each row stands in the source; None = they count on from the first.
        blobs: contents of things that are no texts and lie in no file; see `ftray.media`.
        stable: references to files, to what stands for them in fingerprints, wherever they lie.
        names: what the source calls the thing of each row, by role, where contents have names but
            no file, as in an archive.
        coded: the cells as numbers, where that was done already.
    """

    kind: Kind
    table: pa.Table
    source: str
    notes: tuple[str, ...]
    fingerprint: str
    unit: Unit = "row"
    positions: pa.ChunkedArray | None = None
    blobs: Blobs = NO_BLOBS
    stable: Mapping[str, str] = field(default_factory=dict)
    names: Mapping[str, pa.ChunkedArray] = field(default_factory=dict)
    coded: Coded | None = None

    @property
    def cells(self) -> Coded:
        """The cells as numbers."""
        return self.coded or code(self.table, self.kind)

    def place(self, row: int) -> str:
        """Where row `row` of the table came from, as `train.csv, line 17`."""
        return _place(self.source, self.unit, self.positions, row)


def read_records(
    source: Any,
    *,
    columns: Mapping[str, str] | None = None,
    csv_options: CsvOptions | Mapping[str, Any] | None = None,
    modalities: frozenset[Modality] | None = None,
    where: str = "train_data",
) -> Records:
    """Read a source; records that were read before are returned as they are.

    Of `csv_options`, `dialect`, `header`, `delimiter` and `quotechar` hold for CSV, `encoding` for
    JSON too, the others for every source.
    Of a BEIR folder the judged pairs are read: qrels/train.tsv, else the only .tsv there.

    Args:
        source: a path (.csv, .tsv, .txt, .parquet, .json, .jsonl, .ndjson; a folder of images, or
            an archive of one; a BEIR folder), a pyarrow.Table, a pandas.DataFrame, a
            datasets.Dataset, a list of dicts, of (a, b) or (a, b, score) tuples or of single
            things, or a docarray DocList.
        columns: our names (item, label, query, document, negative, score, document_score,
            negative_score, id) to the source's. Without it, names decide (`names.TELLING`,
            `roles.implied`).
        csv_options: how to read; what is left away is detected.
        modalities: what the model takes; None = not known: what the cells look like decides.
        where: the setting the source was given in, for messages.

    Raises:
        DataError: for anything that cannot be read, with its place.
    """
    if isinstance(source, Records):
        return source
    options = _options(csv_options)
    reading = _Reading(columns=dict(columns or {}), options=options, modalities=modalities)
    request = Request(
        choose=reading.choose,
        options=options,
        values=reading.values,
        named=bool(columns),
        where=where,
    )
    loaded = load(source, request)
    return reading.records(loaded, loaded.source or described(source))


def _options(given: CsvOptions | Mapping[str, Any] | None) -> CsvOptions:
    if isinstance(given, CsvOptions):
        return given
    try:
        return CsvOptions.model_validate(dict(given or {}))
    except ValidationError as error:
        first = error.errors()[0]
        key = str(first["loc"][0])
        if first["type"] == "extra_forbidden":
            known = nearest(key, CsvOptions.model_fields)
            raise DataError(f"csv_options: there is no option '{key}'.{known}") from None
        raise DataError(f"csv_options.{key} = {first['input']!r}: {first['msg']}.") from None


class _Reading:
    """One source on its way to records."""

    def __init__(
        self,
        *,
        columns: dict[str, str],
        options: CsvOptions,
        modalities: frozenset[Modality] | None,
    ) -> None:
        self.values = Values(modalities, options)
        self._columns = columns
        self._options = options
        self._modalities = modalities

    def choose(self, names: Sequence[str], source: str, of_things: bool) -> Layout:
        """The roles of a source's columns; `of_things` = it is known to name images."""
        known: frozenset[Modality] | None = self._modalities
        if known is None and of_things:
            known = frozenset(("text", "image"))
        labeled = self._options.is_labeled
        given = implied(names, self._columns, known, is_labeled=labeled)
        return resolve(names, given=given, is_labeled=labeled, source=source)

    def records(self, loaded: Loaded, source: str) -> Records:
        """Clean, decide what is undecided, check, draw the sample, and say what there is."""
        options, layout = self._options, loaded.layout
        notes = [*loaded.notes, *layout.notes]
        table = stripped(_first_rows(loaded, options.size))
        positions = loaded.positions
        place = partial(_place, source, loaded.unit, positions)
        check_cells(
            table, layout, place, lambda role, cells: noun_of(cells, self._modalities, role=role)
        )
        kind = layout.kind
        if kind in ("scored", "distillation"):
            table = scores_as_numbers(table, layout, place)
        if kind == "distillation":
            table = teacher_scores(table, layout, source)
        files = loaded.files or LocalFiles(".")
        table, layout, things = self._things(table, layout, files, place, source)
        if kind is None:
            kind, table, layout, things, note = decided(table, layout, things, self._modalities)
            notes.append(note)
            if kind == "scored":
                table = scores_as_numbers(table, layout, place)
        if options.sampling_rate is not None:
            table, positions, note = _drawn(table, positions, loaded.unit, options.sampling_rate)
            notes.append(note)
            place = partial(_place, source, loaded.unit, positions)
        resolver = Resolver(files, self.values, options, place)
        table = resolver.resolved(table, things, layout.columns)
        let_pages_go()
        blobs = self.values.blobs.finish()
        resolver.check(table, things, layout.columns, blobs)
        notes += [*resolver.notes, *([] if things else self._of_texts(table, layout))]
        cells = code(table, kind)
        notes += summary(table, kind, cells)
        notes += conflicts_in(kind, table, cells, place, allowed=options.label_conflicts == "keep")
        return Records(
            kind=kind,
            table=table,
            source=source,
            notes=tuple(notes),
            fingerprint=fingerprint(kind, resolver.stable_table(table, things)),
            unit=loaded.unit,
            positions=positions,
            blobs=blobs,
            stable=resolver.stable,
            names=resolver.names,
            coded=cells,
        )

    def _things(
        self,
        table: pa.Table,
        layout: Layout,
        files: Files,
        place: Callable[[int], str],
        source: str,
    ) -> tuple[pa.Table, Layout, Things]:
        """Which columns hold no texts, and the columns so that these stand where they belong."""
        if self._modalities != TEXTS:
            table, layout = oriented(table, layout, self._columns)

        def exist(names: Sequence[str]) -> bool:
            places = [place for place in (files, files.elsewhere()) if place is not None]
            return any(
                None not in place.sizes([place.located(name) for name in names]) for place in places
            )

        things = things_in(
            table,
            layout,
            self._modalities,
            named=named_things(layout, self._modalities),
            exist=exist,
            place=place,
            source=source,
        )
        return table, layout, things

    def _of_texts(self, table: pa.Table, layout: Layout) -> list[str]:
        """What to say where no column holds anything but texts."""
        if self._modalities is None:
            return []
        if self._modalities == TEXTS:
            return unread_addresses(table, layout.columns)
        plurals = {"image": "images", "points": "point clouds", "features": "vectors"}
        others = " or ".join(plurals[one] for one in sorted(self._modalities - TEXTS))
        return [f"no column holds {others}: only the text tower takes what is there"]


def _first_rows(loaded: Loaded, size: int | None) -> pa.Table:
    """All rows that come of the first rows of the source."""
    if size is None or loaded.positions is None:
        return loaded.table.slice(0, size)
    starts = np.append(_starts(loaded.positions), loaded.table.num_rows)
    return loaded.table.slice(0, int(starts[min(size, len(starts) - 1)]))


def _starts(positions: pa.ChunkedArray) -> npt.NDArray[np.int64]:
    """Where the rows begin that come of another row of the source than those before them."""
    return np.flatnonzero(np.diff(positions.to_numpy(), prepend=-1))


def _drawn(
    table: pa.Table, positions: pa.ChunkedArray | None, unit: Unit, share: float
) -> tuple[pa.Table, pa.ChunkedArray, str]:
    """What comes of a share of the source's rows, where each stands, and what to say about it."""
    if positions is None:
        positions = pa.chunked_array([np.arange(table.num_rows) + (unit != "index")])
    positions = positions.slice(0, table.num_rows)
    starts = _starts(positions)
    drawn = drawn_rows(len(starts), share)
    is_drawn = np.zeros(len(starts), bool)
    is_drawn[drawn.to_numpy()] = True
    rows = pa.array(np.flatnonzero(np.repeat(is_drawn, np.diff(starts, append=table.num_rows))))
    note = f"{len(drawn):,} of {len(starts):,} rows drawn (sampling_rate)"
    return table.take(rows), positions.take(rows), note


def _place(source: str, unit: Unit, positions: pa.ChunkedArray | None, row: int) -> str:
    if positions is not None:
        return f"{source}, {unit} {positions[row].as_py()}"
    return f"{source}, {unit} {row + (unit != 'index')}"
