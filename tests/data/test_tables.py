"""Tables that are built row by row: in memory while they are small, in a file when they are not."""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from ftray.data import tables
from ftray.data.dataset import train_set
from ftray.data.readers import read_records
from ftray.data.tables import TableBuilder
from ftray.errors import DataError

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


def built(rows: int) -> tuple[pa.Table, pa.ChunkedArray]:
    builder = TableBuilder(("query", "document"))
    for row in range(rows):
        builder.add((f" q{row}\t", None if row % 3 == 0 else f"d{row}"), 2 * row)
    return builder.finish()


@pytest.mark.parametrize("held", [1, 1 << 25], ids=["in a file", "in memory"])
@pytest.mark.parametrize("rows", [1, 6, 7, 50])
def test_rows_come_out_as_they_went_in(
    held: int, rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tables, "_CHUNK_ROWS", 7)
    monkeypatch.setattr(tables, "_HELD_BYTES", held)
    before = pa.total_allocated_bytes()
    table, positions = built(rows)
    assert table["query"].to_pylist() == [f"q{row}" for row in range(rows)]
    assert table["document"].to_pylist() == [f"d{row}" if row % 3 else None for row in range(rows)]
    assert positions.to_pylist() == [2 * row for row in range(rows)]
    assert (table.column_names, table.schema.types) == (["query", "document"], [pa.string()] * 2)
    assert (pa.total_allocated_bytes() > before) == (held > 1)
    assert pickle.loads(pickle.dumps(table)).equals(table)


def test_long_cells_end_a_chunk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tables, "_CHUNK_CHARACTERS", 100)
    builder = TableBuilder(("item",))
    for row in range(5):
        builder.add(("x" * 60,), row)
    assert [len(chunk) for chunk in builder.finish()[0]["item"].chunks] == [2, 2, 1]


def test_folder_for_temporary_files_that_takes_nothing_is_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(tables, "_HELD_BYTES", 1)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "gone"))
    with pytest.raises(DataError, match=r"temporary files, '.*gone', cannot take the data: .* TMP"):
        built(1)


def test_many_rows_are_what_a_few_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """200,000 rows through the file, against the same rows counted by hand."""
    monkeypatch.setattr(tables, "_HELD_BYTES", 1 << 20)
    rng = np.random.default_rng(0)
    count = 200_000
    numbers = rng.integers(0, 120_000, count).tolist()
    pairs = [(f"what is thing {n // 2}?", f"it is number {n}, or so") for n in numbers]
    path = tmp_path / "pairs.csv"
    lines = "".join(f'"{query} ","{document}"\n' for query, document in pairs)
    path.write_text("query,document\n" + lines, encoding="utf-8")
    same = [{"query": query, "document": document} for query, document in pairs]
    records = read_records(path)
    data = pickle.loads(pickle.dumps(train_set(records)))
    distinct = list(dict.fromkeys(pairs))
    texts = data.texts.to_pylist()
    assert texts == list(dict.fromkeys([q for q, _ in pairs] + [d for _, d in pairs]))
    assert [(texts[q], texts[d]) for q, d in data.rows.tolist()] == distinct
    assert f"rows that repeat an earlier one: {count - len(distinct):,}" in data.notes
    assert data.n_groups == len({n // 2 for n in numbers})
    by_group: dict[int, set[str]] = {}
    for group, (query, _) in zip(data.groups.tolist(), distinct, strict=True):
        by_group.setdefault(group, set()).add(query)
    assert all(len(queries) == 1 for queries in by_group.values())
    assert records.place(count - 1) == f"{path}, line {count + 1}"
    assert records.fingerprint == read_records(same).fingerprint


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="/proc tells the memory")
def test_a_million_rows_take_little_memory(tmp_path: Path) -> None:
    """In a process of its own; strings that stand in memory more than once take more."""
    script = (
        "import json, sys, pathlib; sys.path.insert(0, sys.argv[1]); import big_csv\n"
        "path = pathlib.Path(sys.argv[2]) / 'pairs.csv'\n"
        "expected = big_csv.make(path, 'pairs', 1_000_000)\n"
        "print(json.dumps([expected, big_csv.measured('pairs', path)]))"
    )
    command = [sys.executable, "-c", script, str(BENCHMARKS), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    expected, found = json.loads(done.stdout)
    assert {name: found[name] for name in expected} == expected
    assert found["anonymous"] < 350e6
