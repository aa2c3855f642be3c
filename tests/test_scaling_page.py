"""docs/scaling.md: its formulas give its examples, and are those of the code."""

from __future__ import annotations

import importlib
import math
import re
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.proofs.gloo import run_ranks

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "scaling.md").read_text(encoding="utf-8")
RESULTS = (ROOT / "benchmarks" / "results" / "scaling.md").read_text(encoding="utf-8")
TABLE = r"((?:\|.*\n)+)"
TABLES = dict(re.findall(rf"<!-- results: (.+) -->\n{TABLE}", PAGE))
MARKS = re.findall(r"<!-- results: (.+) -->", PAGE)
FORMULAS = re.findall(r"^\| (.+) \| `(.+)` \| ([\d,]+) \|$", PAGE, re.MULTILINE)


def benchmark(name: str) -> Any:
    """A script of benchmarks/ as a module."""
    folder = str(ROOT / "benchmarks")
    if folder not in sys.path:
        sys.path.append(folder)
    return importlib.import_module(name)


def example() -> dict[str, int]:
    """The values that the examples are for."""
    stated = PAGE.partition("The examples are for ")[2].partition(".\n")[0]
    return {name: int(value) for name, value in re.findall(r"(\w) =\s([\d_]+)", stated)}


def lines_of(table: str) -> tuple[list[str], list[list[str]]]:
    head, _, *lines = [
        [cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()
    ]
    return head, lines


@pytest.mark.parametrize(("what", "formula", "stated"), FORMULAS, ids=[f[0] for f in FORMULAS])
def test_a_formula_gives_its_example(what: str, formula: str, stated: str) -> None:
    value = eval(formula, {"ceil": math.ceil, "min": min, **example()})
    assert f"{round(value):,}" == stated


def test_the_formulas_are_those_of_the_model() -> None:
    model, e = benchmark("scaling_model"), example()
    U, D, P, T, A, W, N, Q, K, S = (e[name] for name in "UDPTAWNQKS")
    stated = [int(number.replace(",", "")) for *_, number in FORMULAS]
    assert stated == [
        model.gather_sent(U, D, W),
        model.index(U, D),
        round(model.ring(4 * U * D, W)),
        round(model.ring(4 * (P + T), W)),
        model.calls(P, W, by_rows=False)["all_reduce"] - 1,
        model.embeddings_sent(N, Q, D),
        model.sharded_search_sent(Q, D, K, S),
        model.index(N, D),
        model.auto_shards(N, e["M"], e["H"]),
        model.snapshots(A),
        model.checkpoint(A, P),
    ]


def test_the_constants_are_those_of_the_code() -> None:
    from ftray.cluster import shards
    from ftray.training import judge, reduce

    model = benchmark("scaling_model")
    assert model.BUCKET == reduce.BUCKET_ELEMENTS
    assert model.MAX_WAITING == judge.MAX_WAITING
    assert shards.BYTES_PER_VECTOR == 2 * model.FLOAT * model.ASSUMED_DIM
    assert shards.SHARE_OF_NODE == model.SHARE_OF_NODE


def count_steps(collectives: Any, losses: list[str]) -> dict[str, Any]:
    ranks = benchmark("scaling_ranks")
    return {loss: ranks.counted_step(loss, ranks.Counting()) for loss in losses}


def test_a_step_moves_what_the_model_says() -> None:
    scaling, model = benchmark("scaling_ranks"), benchmark("scaling_model")
    for rank in run_ranks(2, count_steps, list(scaling.LOSSES)):
        for loss, kind in scaling.LOSSES.items():
            step, by_rows = rank[loss], kind == "by rows"
            size = scaling.STEP_TEXTS, scaling.STEP_WIDTH, step["P"], step["T"], 2
            assert step["calls"] == model.calls(step["P"], 2, by_rows=by_rows)
            assert step["payload"] == model.payload(*size, by_rows=by_rows)
            assert step["sent"] == pytest.approx(model.step_sent(*size, by_rows=by_rows), rel=0.01)


def test_all_tables_have_a_place() -> None:
    assert sorted(MARKS) == sorted(benchmark("scaling").WORDS)


@pytest.mark.parametrize("name", MARKS)
def test_a_table_is_that_of_the_results(name: str) -> None:
    section = RESULTS.partition(f"\n## {name}\n")[2].partition("\n## ")[0]
    found = re.search(TABLE, section)
    assert found is not None
    assert TABLES[name] == found[1]


def test_the_predictions_follow_from_what_was_measured() -> None:
    scaling = benchmark("scaling")
    tables = {name: lines_of(table) for name, table in TABLES.items()}
    for name, predicted in (
        ("Predicted steps", scaling.predicted_steps(tables)),
        ("Predicted indexes", scaling.predicted_indexes(tables)),
    ):
        head, lines = tables[name]
        place = head.index("queries/s") if "queries/s" in head else None  # as many cores as there
        for stated, made in zip([head, *lines], [list(predicted[0]), *predicted[1]], strict=True):
            assert [cell for i, cell in enumerate(stated) if i != place] == [
                cell for i, cell in enumerate(made) if i != place
            ]


def test_what_the_text_says_of_the_measurements_is_about_true() -> None:
    scaling = benchmark("scaling")
    tables = {name: lines_of(table) for name, table in TABLES.items()}

    def number(name: str, line: int, column: str) -> float:
        return float(scaling.number(tables[name], line, column))

    (cell,) = re.findall(r"about (\d+) bytes for each pair of texts", PAGE)
    assert number("Losses", 2, "bytes a cell") == pytest.approx(int(cell), rel=0.2)
    (ident,) = re.findall(r"about (\d+) bytes each", PAGE)
    assert number("An index", -1, "bytes an id") == pytest.approx(int(ident), rel=0.15)
    (gpus,) = re.findall(r"Encoding is that of (\d+) GPUs", PAGE)
    encoding = 1e9 * benchmark("scaling_model").encode_s(1) / int(gpus)
    assert number("Predicted indexes", -1, "encoding, s") == pytest.approx(encoding, rel=0.01)
    (need,) = re.findall(r"64 GPUs need about (\d+) GB", PAGE)
    in_full = number("Predicted steps", 1, "loss in full, GB a GPU")
    assert in_full == pytest.approx(int(need), rel=0.2)
    assert in_full * (170 / 64) ** 2 > 80
    encode = number("Predicted steps", 0, "encode, ms")
    prepare = [number("Predicted steps", line, "prepare, ms") for line in (1, 3)]
    assert prepare[0] < encode < prepare[1]  # between 64 and 1,024 GPUs
    reduce = [number("Predicted steps", line, "reduce, ms") for line in (1, 2)]
    assert 0.25 < reduce[0] / encode < 0.4  # InfiniBand: a third
    assert reduce[1] > encode  # Ethernet: at once
    counted = number("Bytes of a step", 0, "counted ÷ formula")
    assert 1 <= counted < 1.01
