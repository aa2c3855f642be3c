"""WiSE-FT on Banking77: quality in the domain and out of it, between the weights before and after.

    FTRAY_DATA=... python benchmarks/wise_ft.py [--num-workers 0] [--storage-path runs] [--write]

The run is configs/banking77_wise_ft.yaml, a plain configuration for `ftray fit`: each alpha is
scored by both evaluations, and the best by nDCG@20 on Banking77's whole index is kept.

Correctness first: the ends of the curve are the evaluations before and after training to 1e-6, and
the artifact, loaded again, has the nDCG@20 of the alpha that was kept.
"""

from __future__ import annotations

import argparse
import os
import tempfile

import common
import torch
from rich.console import Console

import ftray
from ftray.config_file import load_config
from ftray.events import EvaluationEnded, FitEnded
from ftray.report.console import RunConsole
from ftray.run import Run

CONFIG = common.FOLDER / "configs" / "banking77_wise_ft.yaml"
IN, OUT = "banking77", "stsb"
SHOWN = {
    IN: ("hit_at_k", "precision_at_k", "average_precision", "ndcg_at_k"),
    OUT: ("spearman",),
}

Curve = dict[float, dict[str, float]]
"""For each alpha its metrics, by `{evaluation} {metric}`."""


def main() -> None:
    """Fit, check, report."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--num-workers", default="auto", help="0 trains without Ray")
    parser.add_argument("--storage-path", help="keep the run there; else it is deleted")
    parser.add_argument("--write", action="store_true", help="write results/wise_ft.md")
    arguments = parser.parse_args()
    common.require(common.data_file(IN) is not None, "set FTRAY_DATA")
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as place:
        overrides = [
            f"num_workers={arguments.num_workers}",
            f"storage_path={arguments.storage_path or place}",
        ]
        console = RunConsole(Console(stderr=True, highlight=False))
        run = ftray.fit(load_config(str(CONFIG), overrides), listeners=[console])
        curve, kept = read(run)
        check(run, curve, kept)
        common.page(
            "wise_ft",
            "WiSE-FT on Banking77",
            report(run, curve, kept),
            threads=torch.get_num_threads(),
            load=load,
            write=arguments.write,
        )


def read(run: Run) -> tuple[Curve, float]:
    """The curve, and the alpha that was kept."""
    curve: Curve = {}
    kept = float("nan")
    for event in run._record.events():
        if isinstance(event, EvaluationEnded) and event.alpha is not None:
            found = curve.setdefault(event.alpha, {})
            found.update({f"{event.name} {name}": v for name, v in event.metrics.items()})
        if isinstance(event, FitEnded):
            kept = float(event.artifact_weights.removeprefix("alpha "))
    return dict(sorted(curve.items())), kept


def check(run: Run, curve: Curve, kept: float) -> None:
    """The ends are the evaluations without interpolation; the artifact is what was kept."""
    plain: dict[str, list[dict[str, float]]] = {}
    for event in run._record.events():
        if isinstance(event, EvaluationEnded) and not event.weights:
            plain.setdefault(event.name, []).append(event.metrics)
    for alpha, place in ((0.0, 0), (1.0, -1)):
        for name, evaluations in plain.items():
            for metric, value in evaluations[place].items():
                there = curve[alpha][f"{name} {metric}"]
                common.require(abs(there - value) < 1e-6, f"{name} {metric} at {alpha}: {there}")
    folder = common.data_file(IN)
    assert folder is not None
    again = ftray.evaluate(
        run.artifact_id, str(folder / "test.csv"), str(folder / "train.csv"), max_length=48
    )
    there = curve[kept][f"{IN} ndcg_at_k"]
    common.require(abs(again["ndcg_at_k"] - there) < 1e-6, f"the artifact: {again['ndcg_at_k']}")


def report(run: Run, curve: Curve, kept: float) -> str:
    """The page's body."""
    names = [f"{name} {metric}" for name, metrics in SHOWN.items() for metric in metrics]
    rows = [
        [f"**{alpha:g}**" if alpha == kept else f"{alpha:g}"]
        + [f"{values[name]:.4f}" for name in names]
        for alpha, values in curve.items()
    ]
    value = {alpha: values[f"{IN} ndcg_at_k"] for alpha, values in curve.items()}
    out = {alpha: values[f"{OUT} spearman"] for alpha, values in curve.items()}
    best = max(value, key=value.__getitem__)
    common.require(best == kept, f"alpha {kept} was kept, but {best} is the best")
    return "\n\n".join(
        [
            common.versions("torch", "sentence-transformers", "transformers"),
            """The run is benchmarks/configs/banking77_wise_ft.yaml, seed 0: MiniLM, SupConLoss on
            1,540 texts, 3 epochs; theta = (1 - alpha) x before + alpha x after. In the domain:
            3,079 distinct test texts over 9,999 distinct texts, cut-off 20. Out of the domain:
            Spearman correlation on the open STS benchmark test pairs.""",
            common.table(["alpha", *names], rows),
            f"""The run kept alpha {kept:g} (bold), the best by nDCG@20: {value[kept]:.4f}, against
            {value[0.0]:.4f} before fine-tuning and {value[1.0]:.4f} after it. Out of the domain it
            has {out[kept]:.4f}, against {out[0.0]:.4f} before and {out[1.0]:.4f} after. Beats both
            ends: {"yes" if value[kept] > max(value[0.0], value[1.0]) else "no"}.""",
        ]
    )


if __name__ == "__main__":
    main()
