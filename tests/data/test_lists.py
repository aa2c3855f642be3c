"""Lists in rows: where they may stand, in which forms, and how rows with them are counted."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from ftray.data.readers import read_records
from ftray.errors import DataError

A = {"query": "a", "document": "b"}
NESTED = [
    {"query": "q", "pos": ["a", "b", "c"], "neg": ["x", "y"]},
    {"query": "r", "pos": ["d"], "neg": ["z", "w"]},
    {"query": "s", "pos": ["e", "f"], "neg": ["u", "v"]},
]


def refused(source: Any) -> str:
    with pytest.raises(DataError) as caught:
        read_records(source)
    return str(caught.value)


# ---------------------------------------------------------------- rows of the source are counted


@pytest.mark.parametrize(("size", "documents"), [(1, "abc"), (2, "abcd"), (3, "abcdef")])
def test_size_takes_whole_rows_of_the_source(size: int, documents: str) -> None:
    for source in (NESTED, pa.Table.from_pylist(NESTED)):
        records = read_records(source, csv_options={"size": size})
        assert records.table["document"].to_pylist() == list(documents)
        assert f"{len(documents)} triplets with 2 negatives each" in records.notes
        assert any(
            note.startswith(f"{size} row{'s' * (size > 1)} with {len(documents)} documents in")
            for note in records.notes
        )


def test_sampling_draws_whole_rows_of_the_source() -> None:
    rows = [{"query": f"q{i}", "pos": [f"a{i}", f"b{i}", f"c{i}"]} for i in range(20)]
    records = read_records(rows, csv_options={"sampling_rate": 0.25})
    assert "5 of 20 rows drawn (sampling_rate)" in records.notes
    queries = records.table["query"].to_pylist()
    assert sorted(queries.count(query) for query in set(queries)) == [3] * 5
    assert {records.place(row) for row in range(15)} == {
        f"a list of 20 records, index {query[1:]}" for query in queries
    }


# ---------------------------------------------------------------- what is a list


@pytest.mark.parametrize("kind", [object, str])
def test_arrays_of_texts_are_lists(kind: type) -> None:
    rows = [
        {
            "query": row["query"],
            "pos": np.array(row["pos"], kind),
            "neg": np.array(row["neg"], kind),
        }
        for row in NESTED
    ]
    assert read_records(rows).fingerprint == read_records(NESTED).fingerprint
    scored = [row | {"score": np.array([2.5, 1.0], np.float32)} for row in rows[1:2]]
    assert read_records(scored).kind == "distillation"
    assert "index 1: 'neg' holds a str, but others a list" in refused(
        [{**A, "neg": np.array(["c"], kind)}, {**A, "neg": "c"}]
    )


def test_arrays_of_vectors_are_several_where_the_name_says_so() -> None:
    vector, several = np.ones(3), np.eye(3)[:2]
    features = frozenset({"features"})
    rows = [{"query": vector, "document": vector, "negatives": several}]
    table = read_records(rows, modalities=features).table  # type: ignore[arg-type]
    assert "negative_2" in table.column_names
    rows = [{"query": vector, "document": vector, "negative": vector}]
    table = read_records(rows, modalities=features).table  # type: ignore[arg-type]
    assert "negative_2" not in table.column_names


@pytest.mark.parametrize("name", ["pos", "neg", "neg_2"])
def test_lists_written_as_texts_are_refused(name: str, tmp_path: Path) -> None:
    plain = [{"query": f"q{i}", "pos": f"d{i}", "neg": "x", "neg_2": "y"} for i in range(20)]
    rows = [{**row, name: "['n1', \"it's\"]"} for row in plain]
    path = tmp_path / "t.csv"
    pd.DataFrame(rows).to_csv(path, index=False)
    said = f"the column '{name}' holds lists written as texts, such as ['n1', \"it's\"]. Lists need"
    assert said in refused(path)
    assert said in refused(pd.read_csv(path))
    for cell in ("[a] is no list", "[1]", "[see] what ['a']", "[]"):
        pd.DataFrame([{**row, name: cell} for row in plain]).to_csv(path, index=False)
        assert read_records(path).kind == "triplets"
    some = [*rows[:10], *plain[10:]]  # half of them are no lists: those are texts
    pd.DataFrame(some).to_csv(path, index=False)
    assert read_records(path).kind == "triplets"


MAY = (
    "Only documents, negatives and a teacher's scores may be lists, in named columns and in every "
    "row, the first too."
)


@pytest.mark.parametrize(
    ("rows", "place"),
    [
        ([{**A, "query": ["a", "b"]}], "index 0, 'query': list is not a text."),
        ([A, {**A, "document": ["c", "d"]}], "index 1, 'document': list is not a text."),
        ([{**A, "neg": "c"}, {**A, "neg": ["c"]}], "index 1, 'neg': list is not a text."),
        (
            [{**A, "neg": "c", "score": 1}, {**A, "neg": "c", "score": [1]}],
            "index 1, 'score': list is not a text.",
        ),
        ([{"text": "a", "label": ["x", "y"]}], "index 0, 'label': list is not a text."),
        ([{**A, "score": [1.0, 2.0]}], "index 0, 'score': list is not a text."),
        ([("a", "b", ["c", "d"])], "index 0, 'column 3': list is not a text."),
        (pa.table({"text": [["a"]], "label": ["x"]}), "'text' holds list<item: string>"),
        (pa.table({"text": ["a"], "label": [["x"]]}), "'label' holds list<item: string>"),
    ],
)
def test_lists_elsewhere_are_refused_with_where_they_may_be(rows: Any, place: str) -> None:
    message = refused(rows)
    assert place in message and MAY in message
