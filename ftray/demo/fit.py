"""The demo: fine-tune MiniLM to search the Python standard library by description."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.syntax import Syntax
from rich.table import Table

from ftray.api import encode, fit, get_model, list_runs
from ftray.callbacks import BestModelCheckpoint, EarlyStopping, EvaluationCallback
from ftray.config import FitConfig, validated
from ftray.demo.corpus import CodePair, CodeSearch, build_corpus
from ftray.errors import RunNotFoundError
from ftray.evaluation.intervals import paired_change
from ftray.evaluation.search import ExactIndex
from ftray.report.command import command
from ftray.run import Run

__all__ = ["EXPERIMENT", "answer", "demo_config", "run_demo"]

EXPERIMENT = "demo"
MAX_LENGTH = 64
EXAMPLES = 50


def demo_config(corpus: CodeSearch, **overrides: Any) -> FitConfig:
    """The fit of the demo, as a user would write it."""
    fields: dict[str, Any] = {
        "model": "minilm",
        "train_data": _records(corpus.train),
        "eval_data": _records(corpus.validation),
        "loss": "MultipleNegativesRankingLoss",
        "epochs": 2,
        "batch_size": 64,
        "learning_rate": 1e-4,
        "max_length": MAX_LENGTH,
        "callbacks": [
            EvaluationCallback(
                _records(corpus.test), gather_examples=True, num_example_queries=EXAMPLES
            ),
            BestModelCheckpoint(monitor="val_loss"),
            EarlyStopping(monitor="val_loss", patience=1),
        ],
        "experiment_name": EXPERIMENT,
    }
    return validated({**fields, **overrides})


def _records(pairs: Sequence[CodePair]) -> list[dict[str, str]]:
    return [{"query": pair.query, "document": pair.document} for pair in pairs]


def run_demo(console: Console, **overrides: Any) -> Run:
    """Build the corpus, fine-tune, and show what has changed.

    Args:
        console: where to show it.
        **overrides: fields of `FitConfig`, such as num_workers or storage_path.
    """
    console.print("[bold]Code search on your own Python[/]: from a description to the function")
    corpus = build_corpus()
    console.print(
        f"{corpus.files} files of the standard library: {len(corpus.train)} pairs to train on, "
        f"{len(corpus.validation)} for the validation loss, {len(corpus.test)} to test.\n"
        "Test functions come from modules that are never trained on.",
        soft_wrap=True,
    )
    run = fit(demo_config(corpus, **overrides))
    console.print()
    run.display_metrics()
    _show_interval(console, run)
    _show_examples(console, run, corpus)
    console.print(
        f"Artifact: [bold]{run.artifact_id}[/] (loads in ftray and SentenceTransformer)",
        soft_wrap=True,
    )
    console.print(f"Run:      [bold]{run.path}[/]\n", soft_wrap=True)
    console.print("Next:")
    storage = overrides.get("storage_path", "runs")
    place = "" if storage == "runs" else f" --storage-path {storage}"
    console.print(f'  {command()} demo --ask "remove a directory and everything in it"{place}')
    console.print(f"  {command()} show {run.path}", soft_wrap=True)
    return run


def _show_examples(console: Console, run: Run, corpus: CodeSearch) -> None:
    """The best three functions for three queries, before and after; ✓ is the right one."""
    place = {pair.document: pair for pair in corpus.test}
    results = run.example_results()
    for why, query in _instructive(results):
        old = results["before"][query]
        count = len(results["before"])
        headline = f"[bold yellow]{escape(query)}[/] [dim]({why}, of {count} examples)[/]"
        table = Table(title=headline, title_justify="left", expand=False)
        for title in ("", "Before", "After"):
            table.add_column(title)
        new = results["after"].get(query, [])
        for rank, matches in enumerate(zip(old[:3], new[:3], strict=True), start=1):
            table.add_row(str(rank), *(_match(match, place[match["text"]]) for match in matches))
        console.print(table)


def _instructive(results: dict[str, dict[str, list[Any]]]) -> list[tuple[str, str]]:
    """Of the example queries those that gained and lost most, and the first that did neither."""

    def score(side: str, query: str) -> float:
        hits = [i for i, m in enumerate(results[side].get(query, []), start=1) if m["relevant"]]
        return 1 / hits[0] if hits else 0.0

    gain = {query: score("after", query) - score("before", query) for query in results["before"]}
    order = sorted(gain, key=lambda query: -gain[query])
    same = [query for query in gain if gain[query] == 0 and score("after", query) == 1]
    shown = [("gained most", order[0]), ("lost most", order[-1])]
    return shown[:1] + [("found before and after", query) for query in same[:1]] + shown[1:]


def _match(match: dict[str, Any], pair: CodePair) -> str:
    mark = "[green]✓[/]" if match["relevant"] else "·"
    shown = pair.query if len(pair.query) <= 60 else pair.query[:59] + "…"
    return f"{mark} [bold]{pair.location}[/] [dim]{escape(shown)}[/]"


def _show_interval(console: Console, run: Run) -> None:
    before, after = run.per_query("before"), run.per_query("after")
    change = paired_change(before["reciprocal_rank"], after["reciprocal_rank"])
    console.print(
        f"Mean reciprocal rank over {len(before)} unseen queries: {change.mean:+.4f} "
        f"(95 % interval, paired over queries: {change.low:+.4f} to {change.high:+.4f})",
        soft_wrap=True,
    )


def answer(console: Console, question: str, storage_path: str, k: int = 3) -> None:
    """Search all functions of the corpus for a question, with the newest demo run's artifact.

    Raises:
        RunNotFoundError: if there is no finished demo run.
    """
    runs = [run for run in list_runs(EXPERIMENT, storage_path) if run.status() == "FINISHED"]
    if not runs:
        raise RunNotFoundError(f"No demo run is finished under '{storage_path}': run `ftray demo`")
    corpus = build_corpus()
    model = get_model(runs[-1].artifact_id)
    pairs = [*corpus.test, *corpus.validation, *corpus.train]
    console.print(f"Searching {len(pairs)} functions …")
    index = ExactIndex(model.embedding_dim)
    index.add([str(i) for i in range(len(pairs))], encode(model, [p.document for p in pairs]))
    scores, found = index.search(encode(model, [question]), k)
    for score, position in zip(scores[0].tolist(), found[0].tolist(), strict=True):
        pair = pairs[position]
        console.print(f"\n[bold]{pair.location}[/] ({score:.3f})  {pair.query}", highlight=False)
        lines = pair.document.splitlines()[:8]
        console.print(Syntax("\n".join(lines), "python", background_color="default"))
