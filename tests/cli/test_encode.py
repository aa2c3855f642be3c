"""`ftray encode` and `ftray evaluate` of smaller embeddings."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

import ftray


def test_options_of_encode_are_those_of_python(
    cli: Any, tiny_model: Path, folder: Path, labelled_rows: list[dict[str, str]]
) -> None:
    lines = [
        json.dumps({"id": f"t{i}", "text": row["text"]}) for i, row in enumerate(labelled_rows)
    ]
    (folder / "texts.jsonl").write_text("\n".join(lines))
    made = ("--dims", 16, "--normalize", "--precision", "bf16", "--batch-size", 8)
    done = cli("encode", tiny_model, "texts.jsonl", "-o", "a.parquet", *made)
    assert done.code == 0 and done.out == "96 embeddings of width 16 in a.parquet\n", done.err
    table = pq.read_table("a.parquet")
    assert table["id"].to_pylist() == [f"t{i}" for i in range(96)]
    expected = ftray.encode(
        tiny_model,
        [row["text"] for row in labelled_rows],
        dims=16,
        normalize=True,
        precision="bf16",
        batch_size=8,
    )
    assert np.array_equal(np.array(table["embedding"].to_pylist(), np.float32), expected)


def test_queries_are_quantised_by_the_ranges_of_the_index(
    cli: Any, refused: Any, tiny_model: Path, labelled_csv: Path
) -> None:
    codes = ("--quantize", "int8")
    done = cli("encode", tiny_model, labelled_csv, "-o", "index.parquet", *codes)
    assert done.code == 0 and "96 embeddings of width 32 as int8" in done.out, done.err
    assert "give ranges, or write a .parquet" in refused(
        "encode", tiny_model, labelled_csv, "-o", "queries.npy", *codes
    )
    ranges = ("--ranges", "index.parquet")
    done = cli("encode", tiny_model, labelled_csv, "-o", "queries.npy", *codes, *ranges)
    assert done.code == 0, done.err
    index = pq.read_table("index.parquet")["embedding"].to_pylist()
    assert np.array_equal(np.load("queries.npy"), np.array(index, np.int8))


def test_force_replaces_a_file(
    cli: Any, tiny_model: Path, labelled_csv: Path, folder: Path
) -> None:
    Path("out.npy").write_bytes(b"old")
    assert cli("encode", tiny_model, labelled_csv, "-o", "out.npy").code == 2
    assert Path("out.npy").read_bytes() == b"old"
    assert cli("encode", tiny_model, labelled_csv, "-o", "out.npy", "--force").code == 0
    assert np.load("out.npy").shape == (96, 32)


def test_mistakes_are_one_line(refused: Any, tiny_model: Path, labelled_csv: Path) -> None:
    given = ("encode", tiny_model, labelled_csv, "-o", "out.npy")
    for options, message in (
        (("--quantize", "int7"), "Did you mean 'int8'"),
        (("--precision", "bf61"), "Did you mean 'bf16'"),
        (("--dims", 64), "dims = 64: the model's embeddings have 32 dimensions"),
        (("--quantize", "int8", "--ranges", "no.parquet"), "ranges: 'no.parquet' cannot be read"),
        (("--on-ray",), "on_ray = True needs num_workers"),
        (("--role", "querry"), "role = 'querry': there is no such role. Did you mean 'query'?"),
    ):
        assert message in refused(*given, *options)


def test_smaller_embeddings_are_shown_beside_the_whole_ones(
    cli: Any, refused: Any, tiny_model: Path, labelled_csv: Path, folder: Path
) -> None:
    given = ("evaluate", tiny_model, "--query", labelled_csv)
    small = ("--dims", 16, "--quantize", "binary", "--rescore", 0)
    done = cli(*given, *small)
    assert done.code == 0 and "float32, 32 dims, 128 bytes" in done.out, done.err
    assert "binary, 16 dims, Hamming alone, 2 bytes" in done.out
    options = {"dims": 16, "quantize": "binary", "rescore": 0}
    metrics = ftray.evaluate(tiny_model, labelled_csv, **options)
    whole = ftray.evaluate(tiny_model, labelled_csv)
    for name, value in metrics.items():
        row = next(line for line in done.out.splitlines() if name in line)
        assert f"{value:.5f}" in row and f"{whole[name]:.5f}" in row
    assert json.loads(cli(*given, *small, "--json").out) == pytest.approx(metrics)
    assert "rescore = [2] is for binary codes" in refused(*given, "--rescore", 2)
