"""What a fit is worth: nDCG@20 on Banking77 before and after, over several seeds.

    python benchmarks/quality_banking77.py [--seeds 0 1 2] [--write]

The recipe is configs/banking77.yaml, a plain configuration for `ftray fit`: MiniLM, SupConLoss on
20 texts of each class, 3 epochs. The 3,080 test texts search the 10,003 training texts.

Correctness first: nDCG@20 before training, computed by ftray and independently of it, agrees to
1e-4 and is the known 0.8407; the first seed's artifact, loaded by sentence-transformers, gives the
nDCG@20 that the run reports.
"""

from __future__ import annotations

import argparse
import csv
import importlib.util
import os
import random
import statistics
import tempfile
from pathlib import Path

import common
import numpy as np
import torch
from rich.console import Console
from scipy import stats
from sentence_transformers import SentenceTransformer

import ftray
from ftray.config_file import load_config
from ftray.evaluation.intervals import paired_change
from ftray.models.quiet import quiet
from ftray.models.registry import locate_model
from ftray.report.console import RunConsole

CONFIG = common.FOLDER / "configs" / "banking77.yaml"
ZERO_SHOT, REFERENCE = 0.8407, 0.868
METRICS = ("ndcg_at_k", "average_precision", "precision_at_k", "hit_at_k", "reciprocal_rank")
K, MAX_LENGTH = 20, 48

Rows = list[dict[str, str]]


def main() -> None:
    """Check, fit, report."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--epochs", type=int, default=3, help="fewer for a trial")
    parser.add_argument("--queries", type=int, help="take only some, for a trial")
    parser.add_argument("--num-workers", default="auto", help="0 trains without Ray")
    parser.add_argument("--storage-path", help="keep the runs there; else they are deleted")
    parser.add_argument("--write", action="store_true", help="write results/quality_banking77.md")
    arguments = parser.parse_args()
    folder = common.data_file("banking77")
    if folder is None:
        parser.error("FTRAY_DATA must name the folder that holds banking77/")
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as place:
        queries = some_queries(folder / "test.csv", arguments.queries, Path(place))
        documents = folder / "train.csv"
        checked = check_zero_shot(queries, documents, whole=arguments.queries is None)
        runs = {}
        for seed in arguments.seeds:
            runs[seed] = fit(seed, queries, arguments, place)
            if len(runs) == 1:
                checked += check_artifact(runs[seed], queries, documents)
        common.page(
            "quality_banking77",
            "Quality on Banking77",
            report(runs, arguments, checked),
            threads=torch.get_num_threads(),
            load=load,
            write=arguments.write,
        )


def some_queries(path: Path, count: int | None, place: Path) -> Path:
    """The test file, or a file with `count` rows of it."""
    if count is None:
        return path
    part = place / "queries.csv"
    with part.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, ("text", "label"))
        writer.writeheader()
        writer.writerows(random.Random(0).sample(read(path), count))
    return part


def read(path: Path) -> Rows:
    """The rows of a file."""
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def distinct(rows: Rows) -> Rows:
    """The rows without those whose text stood before: equal texts are one query, one document."""
    return list({row["text"].strip(): row for row in reversed(rows)}.values())[::-1]


def fit(seed: int, queries: Path, arguments: argparse.Namespace, place: str) -> ftray.Run:
    """One run of the recipe."""
    overrides = {
        "seed": seed,
        "epochs": arguments.epochs,
        "num_workers": arguments.num_workers,
        "storage_path": arguments.storage_path or place,
        "experiment_name": "banking77",
        "callbacks.0.EvaluationCallback.query_data": queries,
    }
    config = load_config(CONFIG, [f"{key}={value}" for key, value in overrides.items()])
    return ftray.fit(config, listeners=[RunConsole(Console(stderr=True, highlight=False))])


# ------------------------------------------------------------------ correctness


def check_zero_shot(queries: Path, documents: Path, *, whole: bool) -> str:
    """Before training: ftray's nDCG is the independent one, and the known one."""
    model = load(locate_model("minilm"))
    model.max_seq_length = MAX_LENGTH
    ours = ftray.evaluate("minilm", queries, documents, limit=K, max_length=MAX_LENGTH)
    agreed = compare(ours["ndcg_at_k"], model, queries, documents)
    if whole:
        off = abs(ours["ndcg_at_k"] - ZERO_SHOT)
        common.require(off < 2e-3, f"nDCG@20 before training is off {ZERO_SHOT} by {off:.4f}")
    return f"Checked first: nDCG@{K} before training, {agreed}; "


def check_artifact(run: ftray.Run, queries: Path, documents: Path) -> str:
    """After training: what the run reports is what its artifact gives."""
    model = load(run.artifact_id)
    common.require(model.max_seq_length == MAX_LENGTH, "the artifact has another max_length")
    return f"of the first artifact, {compare(after(run), model, queries, documents)}."


def load(folder: str) -> SentenceTransformer:
    """A model as sentence-transformers loads it."""
    with quiet():
        return SentenceTransformer(folder, device="cpu")


def compare(ours: float, model: SentenceTransformer, queries: Path, documents: Path) -> str:
    """End the script unless the independent nDCG is ours to 1e-4."""
    asked, known = distinct(read(queries)), distinct(read(documents))
    vectors = [
        model.encode([row["text"] for row in rows], normalize_embeddings=True)
        for rows in (asked, known)
    ]
    scores = vectors[0] @ vectors[1].T
    relevant = np.array([r["label"] for r in asked])[:, None] == [r["label"] for r in known]
    found = {"the formula": formula_ndcg(scores, relevant)}
    if importlib.util.find_spec("pytrec_eval"):
        found["pytrec_eval"] = trec_ndcg(scores, relevant)
    for name, value in found.items():
        off = abs(value - ours)
        common.require(off < 1e-4, f"nDCG@{K} is {ours:.5f}, but {value:.5f} by {name}")
    values = ", ".join(f"{value:.5f} by {name}" for name, value in found.items())
    sizes = f"{len(asked):,} distinct queries over {len(known):,} distinct documents"
    return f"{ours:.5f} by ftray, {values} over sentence-transformers' embeddings ({sizes})"


def formula_ndcg(scores: np.ndarray, relevant: np.ndarray) -> float:
    """Mean over queries, `(Q, N)`: Järvelin and Kekäläinen 2002, gains 0 and 1."""
    best = np.argsort(-scores, axis=1, kind="stable")[:, :K]
    discount = 1 / np.log2(np.arange(2, K + 2))
    dcg = np.take_along_axis(relevant, best, axis=1) @ discount
    ideal = np.cumsum(discount)[np.minimum(relevant.sum(axis=1), K) - 1]
    return float((dcg / ideal).mean())


def trec_ndcg(scores: np.ndarray, relevant: np.ndarray) -> float:
    """Mean over queries, `(Q, N)`, by trec_eval."""
    import pytrec_eval

    qrels = {str(q): {str(d): 1 for d in row.nonzero()[0]} for q, row in enumerate(relevant)}
    run = {}
    for q, row in enumerate(scores):
        best = np.argpartition(-row, 2 * K)[: 2 * K]  # trec_eval breaks ties itself
        run[str(q)] = {str(d): float(row[d]) for d in best}
    measured = pytrec_eval.RelevanceEvaluator(qrels, {f"ndcg_cut.{K}"}).evaluate(run)
    return statistics.fmean(values[f"ndcg_cut_{K}"] for values in measured.values())


# ------------------------------------------------------------------ the page


def after(run: ftray.Run) -> float:
    """The nDCG of the weights in the artifact."""
    return run.metrics()["after"]["ndcg_at_k"]


def report(runs: dict[int, ftray.Run], arguments: argparse.Namespace, checked: str) -> str:
    """The page: each seed, their mean and its interval."""
    first = next(iter(runs.values()))
    before = first.metrics()["before"]
    rows = [["before training", *(f"{before[name]:.4f}" for name in METRICS), ""]]
    for seed, run in runs.items():
        values = run.metrics()["after"]
        pair = (run.per_query(when)["ndcg_at_k"].to_numpy() for when in ("before", "after"))
        change = paired_change(*pair)
        interval = f"{change.mean:+.4f} ({change.low:+.4f} to {change.high:+.4f})"
        rows.append([f"seed {seed}", *(f"{values[name]:.4f}" for name in METRICS), interval])
    means = [statistics.fmean(r.metrics()["after"][n] for r in runs.values()) for n in METRICS]
    rows.append(["mean", *(f"{value:.4f}" for value in means), ""])
    rows.append(["reference, one seed", f"{REFERENCE:.4f}", *[""] * len(METRICS)])
    head = ["", "nDCG@20", "AP@20", "P@20", "hit@20", "RR@20"]
    head += ["change of nDCG@20, 95 % interval, paired bootstrap over queries"]
    whole = arguments.epochs == 3 and arguments.queries is None
    trial = "" if whole else "**A trial**, not the recipe. "
    verdict = ("met" if means[0] >= REFERENCE else "missed") if whole else "see the whole recipe"
    workers = first.config["num_workers"]
    mean = mean_with_interval([after(run) for run in runs.values()])
    return f"""{trial}The recipe is [configs/banking77.yaml](../configs/banking77.yaml);
epochs {arguments.epochs}, num_workers {workers}. {common.versions("sentence-transformers", "ray")}.

{checked}

{common.table(head, rows)}

nDCG@20 after training: {mean}. Target: a mean of at least {REFERENCE}: {verdict}. The reference is
the same recipe in a plain PyTorch loop with bf16 autocast. 15 % of the index are texts that were
trained on; they are in the index before training as well."""


def mean_with_interval(values: list[float]) -> str:
    """Mean over seeds and its 95 % interval by Student's t."""
    mean = statistics.fmean(values)
    if len(values) < 2:
        return f"{mean:.4f} (one seed, no interval)"
    error = statistics.stdev(values) / len(values) ** 0.5
    half = float(stats.t.ppf(0.975, len(values) - 1)) * error
    return f"mean {mean:.4f}, 95 % interval over seeds {mean - half:.4f} to {mean + half:.4f}"


if __name__ == "__main__":
    main()
