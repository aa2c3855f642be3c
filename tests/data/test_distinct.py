"""Numbers of equal cells and rows: as a dictionary counts them, whatever the hashes do."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ftray.data import distinct
from ftray.data.cleaning import fingerprint
from ftray.data.dataset import train_set
from ftray.data.distinct import coded, numbered, numbered_rows
from ftray.data.readers import read_records

quick = settings(max_examples=60, deadline=None, derandomize=True)

REAL = distinct._hashes
HASHES: dict[str, Callable[[pa.Array], Any]] = {
    "as it is": REAL,
    "of 4 bits": lambda part: REAL(part) & 15,
    "all alike": lambda part: np.zeros(len(part), np.int64),
}


@pytest.fixture(params=HASHES)
def hashing(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distinct, "_hashes", HASHES[request.param])


def by_hand(*columns: list[str]) -> tuple[list[str], list[list[int]]]:
    known: dict[str, int] = {}
    codes = [[known.setdefault(cell, len(known)) for cell in column] for column in columns]
    return list(known), codes


def check(columns: list[pa.ChunkedArray]) -> pa.Array:
    values, codes = coded(*columns)
    want_values, want_codes = by_hand(*(column.to_pylist() for column in columns))
    assert values.to_pylist() == want_values
    assert [column.tolist() for column in codes] == want_codes
    return values


cell = st.text(alphabet="aé\0 ", max_size=3)


@pytest.mark.parametrize("name", HASHES)
def test_cells_are_numbered_by_what_they_are(name: str) -> None:
    @quick
    @given(
        chunks=st.lists(st.lists(st.tuples(cell, cell), max_size=9), min_size=1, max_size=3),
        start=st.integers(0, 4),
        kind=st.sampled_from([pa.string(), pa.large_string()]),
    )
    def holds(chunks: list[list[tuple[str, str]]], start: int, kind: pa.DataType) -> None:
        columns = []
        for side in (0, 1):
            arrays = [pa.array([row[side] for row in chunk], kind) for chunk in chunks]
            columns.append(pa.chunked_array([array.slice(start) for array in arrays], kind))
        check(columns)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(distinct, "_hashes", HASHES[name])
        holds()


def test_collisions_join_nothing_in_a_table_of_many_parts(
    hashing: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(distinct, "_CHUNK_ROWS", 7)
    monkeypatch.setattr(distinct, "_BLOCK_KEYS", 16)
    rng = np.random.default_rng(0)
    chunks = [[f"text {n}" for n in rng.integers(0, 60, size)] for size in (50, 0, 3, 90)]
    check([pa.chunked_array(chunks, pa.string())])


def test_more_than_32_bits_of_text_get_64_bit_offsets(monkeypatch: pytest.MonkeyPatch) -> None:
    column = pa.chunked_array([["abc", "de", "abc"], ["fgh", "de"]])
    assert check([column]).type == pa.string()
    monkeypatch.setattr(distinct, "_MAX_BYTES", 7)
    assert check([column]).type == pa.large_string()


@quick
@given(
    keys=st.lists(st.integers(-(2**63), 2**63 - 1) | st.integers(0, 5), max_size=40),
    block=st.sampled_from([1, 4, 1 << 20]),
)
def test_keys_are_numbered_in_order_of_first_appearance(keys: list[int], block: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(distinct, "_BLOCK_KEYS", block)
        codes, first = numbered(np.array(keys, np.int64))
    known: dict[int, int] = {}
    assert codes.tolist() == [known.setdefault(key, len(known)) for key in keys]
    assert first.tolist() == [keys.index(key) for key in known]


rows = st.lists(st.tuples(*[st.sampled_from([0, 1, 2**40, 2**62])] * 3), min_size=1, max_size=20)


@quick
@given(rows=rows)
def test_rows_are_told_apart_where_their_numbers_are_large(rows: list[tuple[int, ...]]) -> None:
    codes, first = numbered_rows(*np.array(rows, np.int64).T)
    known: dict[tuple[int, ...], int] = {}
    assert codes.tolist() == [known.setdefault(row, len(known)) for row in rows]
    assert first.tolist() == [rows.index(row) for row in known]


def test_training_data_is_the_same_whatever_the_hashes_do(hashing: None) -> None:
    rng = np.random.default_rng(1)
    texts = [(f"q{a}", f"d{b}") for a, b in rng.integers(0, 40, (150, 2))]
    records = read_records([{"query": query, "document": document} for query, document in texts])
    data = train_set(records)
    cells = data.texts.to_pylist()
    assert [(cells[q], cells[d]) for q, d in data.rows] == list(dict.fromkeys(texts))
    assert records.fingerprint == fingerprint("pairs", records.table)
    labels = [("a", "x"), ("b", "y"), ("a", "x"), ("a", "z"), ("c", "x")]
    assert read_records([{"item": a, "label": b} for a, b in labels]).notes[-2:] == (
        "rows that repeat an earlier one: 1",
        "1 text under two labels or more: 'a' (x, z)",
    )
