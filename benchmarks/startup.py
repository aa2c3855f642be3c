"""Time to the first step, and what a fit without steps costs beside a bare `TorchTrainer.fit`.

    python benchmarks/startup.py [--runs 5] [--write]

Every run is a fresh process. Time to the first step: `python -m ftray fit` of MiniLM, without Ray
and on one Ray worker. No-op: the same with a tiny model and no epochs, which starts everything,
loads the model, and writes the artifact; beside it `startup_bare.py`, a `TorchTrainer.fit` of a
worker that does nothing, and of one that imports, loads and saves as any training must.

Correctness first: every run ends well, with the steps and the artifact that it should have. One
run of each goes first to warm the disk; then all take turns.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import string
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import common
import yaml

from ftray.cluster.connect import DEFAULTS
from ftray.events import FitEnded, FitStarted, Log, StepEnded
from ftray.models.quiet import quiet
from ftray.record.reader import RecordReader
from ftray.record.storage import Storage

PAIRS = 32
PROCESS_TIMEOUT_S = 300
LOCAL, RAY = "ftray in this process", "ftray on one Ray worker"
NOOP, NOOP_LOCAL = "ftray on one Ray worker, no-op", "ftray in this process, no-op"
EMPTY = "bare TorchTrainer, empty worker"
LOADS = "bare TorchTrainer, worker imports, loads, saves"

Times = dict[str, float]
"""When a stage was over, in seconds since the process was started."""


def main() -> None:
    """Measure and report."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--write", action="store_true", help="write results/startup.md")
    arguments = parser.parse_args()
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as place:
        contestants = prepare(Path(place))
        runs: dict[str, list[Times]] = {name: [] for name in contestants}
        for number in range(arguments.runs + 1):
            for name, run in contestants.items():
                times = run(Path(place) / f"{number}-{list(runs).index(name)}")
                common.say(f"run {number}, {name}: {times['gone']:.1f} s")
                if number:  # the first ones warm the disk
                    runs[name].append(times)
    common.page(
        "startup",
        "Start-up",
        report(runs),
        threads=os.cpu_count() or 1,
        load=load,
        write=arguments.write,
    )


def prepare(place: Path) -> dict[str, Callable[[Path], Times]]:
    """Write the data, the model and the configurations; returns who takes part."""
    tiny = str(tiny_model(place / "tiny"))
    data = place / "pairs.csv"
    lines = [f"how to do task {i},first do part {i} and then the rest" for i in range(PAIRS)]
    data.write_text("\n".join(["query,document", *lines]), encoding="utf-8")

    def config(model: str, epochs: int, num_workers: int) -> Path:
        path = place / f"{Path(model).name}-{num_workers}.yaml"
        options = {
            "model": model,
            "train_data": str(data),
            "loss": "MultipleNegativesRankingLoss",
            "epochs": epochs,
            "batch_size": PAIRS,
            "num_workers": num_workers,
        }
        path.write_text(yaml.safe_dump(options), encoding="utf-8")
        return path

    return {
        LOCAL: partial(fit, config("minilm", 1, 0), 1),
        RAY: partial(fit, config("minilm", 1, 1), 1),
        EMPTY: bare,
        LOADS: partial(bare, model=tiny),
        NOOP: partial(fit, config(tiny, 0, 1), 0),
        NOOP_LOCAL: partial(fit, config(tiny, 0, 0), 0),
    }


def tiny_model(folder: Path) -> Path:
    """A random BERT of one layer as a sentence-transformers folder: it costs nothing to load."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.base.modules import Normalize, Transformer
    from sentence_transformers.sentence_transformer.modules import Pooling
    from transformers import BertConfig, BertModel, BertTokenizer

    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *string.ascii_lowercase]
    vocab = {piece: i for i, piece in enumerate([*pieces, *(f"##{p}" for p in pieces[5:])])}
    config = BertConfig(
        vocab_size=len(vocab),
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=64,
    )
    raw = str(folder / "raw")
    with quiet():
        BertModel(config).save_pretrained(raw)
        BertTokenizer(vocab=vocab, model_max_length=64).save_pretrained(raw)
        parts = [Transformer(raw), Pooling(config.hidden_size, "mean"), Normalize()]
        SentenceTransformer(modules=parts, device="cpu").save(str(folder), create_model_card=False)
    return folder


# ------------------------------------------------------------------ runs


def process(words: list[str], log: Path) -> tuple[float, float]:
    """Run Python in a fresh process as ftray sets up its own: when it started and was gone."""
    environment = {**os.environ, "RAY_ADDRESS": "local", **DEFAULTS}
    with log.open("wb") as file:
        start = time.time()
        done = subprocess.run(
            [sys.executable, *words],
            stdout=file,
            stderr=subprocess.STDOUT,
            env=environment,
            timeout=PROCESS_TIMEOUT_S,
            check=False,
        )
    fine = done.returncode == 0
    common.require(fine, f"a process failed:\n{log.read_text(errors='replace')[-3000:]}")
    return start, time.time()


def fit(config: Path, steps: int, folder: Path) -> Times:
    """One `ftray fit` from the command line; its record says when it came to what."""
    folder.mkdir()
    words = ["-m", "ftray", "fit", str(config)]
    for setting in (f"storage_path={folder}", "run_name=run"):
        words += ["--set", setting]
    start, gone = process(words, folder / "log")
    record = RecordReader(Storage(str(folder / "default" / "run")))
    events, status = record.events(), record.status()
    ended = [event.time_s for event in events if isinstance(event, StepEnded)]
    common.require(
        status["status"] == "FINISHED"
        and len(ended) == steps
        and (folder / "default" / "run" / "artifact" / "modules.json").exists(),
        f"{config.name}: {status['status']} with {len(ended)} steps",
    )
    times = {
        "imports": next(event.time_s for event in events if isinstance(event, Log)),
        "ready": next(event.time_s for event in events if isinstance(event, FitStarted)),
        **({"step": ended[0]} if ended else {}),
        "done": next(event.time_s for event in events if isinstance(event, FitEnded)),
        "ended": status["ended_s"],
        "gone": gone,
    }
    return {stage: moment - start for stage, moment in times.items()}


def bare(folder: Path, model: str = "") -> Times:
    """One `TorchTrainer.fit`, with or without a model to load and save."""
    folder.mkdir()
    script = str(common.FOLDER / "startup_bare.py")
    saved = folder / "saved"
    words = [script, str(folder / "times"), *([model, str(saved)] if model else [])]
    start, gone = process(words, folder / "log")
    times = json.loads((folder / "times").read_text(encoding="utf-8"))
    common.require(saved.exists() == bool(model), "the bare worker did not do its work")
    return {stage: moment - start for stage, moment in {**times, "gone": gone}.items()}


# ------------------------------------------------------------------ the page


def report(runs: dict[str, list[Times]]) -> str:
    """The page's tables."""
    first = [[name, *spread(runs[name], "step")] for name in (LOCAL, RAY)]
    whole = [[name, *spread(runs[name], "gone")] for name in (EMPTY, LOADS, NOOP, NOOP_LOCAL)]
    over_empty, over_loads = (difference(runs[NOOP], runs[peer]) for peer in (EMPTY, LOADS))
    stages = [
        ["process started → imports, configuration and data are done", "", "imports"],
        ["→ the worker is ready: Ray, its processes, imports, the model", "imports", "ready"],
        ["  of which ray.init", "imports", "ray"],
        ["  of which until the worker's function is called", "ray", "worker"],
        ["  of which imports in the worker", "worker", "imported"],
        ["  of which loading the model", "imported", "ready"],
        ["→ the worker is done: the step, saving", "ready", "done"],
        ["→ Ray is stopped, the run is closed", "done", "ended"],
        ["  of which until fit returns", "done", "returned"],
        ["→ the process is gone", "ended", "gone"],
    ]
    columns = (EMPTY, LOADS, NOOP, RAY, LOCAL)
    parts = [
        [label, *(stage(runs[name], begin, end) for name in columns)]
        for label, begin, end in stages
    ]
    return f"""{common.versions("ray", "sentence-transformers", "transformers")}.

Medians of {len(runs[NOOP])} runs of each, all taking turns after one unmeasured run of each; every
run is a fresh process that starts its own Ray, with the same options and environment variables.

## To the end of the first step

MiniLM, {PAIRS} pairs of short texts in one step; from the start of the process `python -m ftray
fit` to the end of the first step, as the run's record has it.

{common.table(["", "median s", "min–max"], first)}

## A fit without steps

From the start of the process until it is gone. The no-op of ftray has no epochs and no evaluation;
it imports, loads and saves a tiny model, and keeps its record. The empty worker does none of that;
the other bare worker imports torch and sentence-transformers, loads the same model and saves it.

{common.table(["", "median s", "min–max"], whole)}

ftray's no-op takes {over_empty} longer than the bare `TorchTrainer.fit` with an empty worker, and
{over_loads} longer than the one whose worker does what any training must (target: at most 2 s).

## Where the time goes

Median seconds of each stage; an empty cell is a stage that a run does not have or does not tell.
In this process the model is loaded in the first stage.

{common.table(["stage", *columns], parts)}"""


def spread(runs: list[Times], stage_name: str) -> list[str]:
    """Median and range of the moments at which a stage was over."""
    values = [times[stage_name] for times in runs]
    return [f"{statistics.median(values):.1f}", f"{min(values):.1f}–{max(values):.1f}"]


def difference(own: list[Times], peer: list[Times]) -> str:
    """How much longer the whole process took: of the medians, and the range over the rounds."""
    pairs = [a["gone"] - b["gone"] for a, b in zip(own, peer, strict=True)]
    median = statistics.median(t["gone"] for t in own) - statistics.median(t["gone"] for t in peer)
    return f"{median:+.1f} s ({min(pairs):+.1f} to {max(pairs):+.1f} over the rounds)"


def stage(runs: list[Times], begin: str, end: str) -> str:
    """Median duration between two moments, if all runs have them."""
    if any(end not in times or (begin and begin not in times) for times in runs):
        return ""
    return f"{statistics.median(t[end] - (t[begin] if begin else 0.0) for t in runs):.2f}"


if __name__ == "__main__":
    main()
