"""`ftray evaluate`: the options of EvaluationCallback, as far as a command line can give them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import ftray
from tests.tiny import tiny_two_towers


def test_metrics_and_a_sample_of_the_queries(
    cli: Any, tiny_model: Path, labelled_csv: Path
) -> None:
    options = ["--metric", "ndcg_at_k", "--metric", "hit_at_k", "--query-sample-size", 20]
    done = cli("evaluate", tiny_model, "--query", labelled_csv, *options, "--json")
    expected = ftray.evaluate(
        tiny_model, labelled_csv, metrics=["ndcg_at_k", "hit_at_k"], query_sample_size=20
    )
    assert done.code == 0 and json.loads(done.out) == expected
    assert expected.keys() == {"ndcg_at_k", "hit_at_k"}


def test_towers(cli: Any, tmp_path: Path, pair_rows: list[dict[str, str]]) -> None:
    model = tiny_two_towers(tmp_path / "model")
    data = tmp_path / "pairs.csv"
    lines = ["query,document", *(f"{row['query']},{row['document']}" for row in pair_rows)]
    data.write_text("\n".join(lines))
    towers = ["--query-role", "document", "--index-role", "query"]
    done = cli("evaluate", model, "--query", data, *towers, "--json")
    turned = ftray.evaluate(model, data, query_role="document", index_role="query")
    assert json.loads(done.out) == turned != ftray.evaluate(model, data)


def test_mistakes_are_one_line(cli: Any, tiny_model: Path, labelled_csv: Path) -> None:
    for option, value, message in (
        ("--metric", "ndcg", "there is no 'ndcg'. Did you mean 'ndcg_at_k'"),
        ("--query-role", "query", "has no tower 'query': it encodes all texts alike"),
        ("--query-sample-size", 0, "--query-sample-size"),
    ):
        done = cli("evaluate", tiny_model, "--query", labelled_csv, option, value)
        assert done.code == 2 and message in done.err and "Traceback" not in done.err
