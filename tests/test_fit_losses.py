"""Fits with losses made of others, several negatives and a teacher's scores, in this process."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.torch import load_file

import ftray
from ftray.callbacks import Callback
from ftray.errors import ConfigError, RunFailedError

FAIL_AT: list[int] = []

MIXED = {
    "loss": "MultipleLosses",
    "loss_options": {
        "losses": [
            {"loss": "CLIPLoss", "weight": 0.5},
            {"loss": "ArcFaceLoss", "weight": 0.05},
            {
                "loss": "CrossBatchMemory",
                "loss_options": {"loss": "TripletMarginLoss", "memory_size": 64},
                "miner": "DistanceWeightedMiner",
            },
        ]
    },
    "dims": [32, 8],
}


class FailOnce(Callback):
    """Fails at the steps of `FAIL_AT`, each once."""

    def on_train_batch_end(self, state: Any) -> None:
        if state.global_step in FAIL_AT:
            FAIL_AT.remove(state.global_step)
            raise RuntimeError("this once")


def fit(tmp_path: Path, **fields: Any) -> Any:
    fields = {
        "epochs": 2,
        "batch_size": 16,
        "num_workers": 0,
        "learning_rate": 1e-3,
        "storage_path": str(tmp_path / "runs"),
        **fields,
    }
    return ftray.fit(listeners=[], **fields)


def refused(tmp_path: Path, **fields: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        fit(tmp_path, **fields)
    return str(caught.value)


def losses(run: Any) -> list[float]:
    return [x for x in run.history()["loss"].to_pylist() if x is not None]


def taught(pairs: list[dict[str, str]]) -> list[dict[str, Any]]:
    """Each pair with the documents of two others as negatives, and three scores."""
    draw = np.random.default_rng(0)
    rows = []
    for i, row in enumerate(pairs[:32]):
        negatives = {
            "negative": pairs[(i + 7) % 50]["document"],
            "negative_2": pairs[(i + 11) % 50]["document"],
        }
        names = ("score", "score_2", "score_3")
        rows.append({**row, **negatives, **dict(zip(names, draw.uniform(size=3), strict=True))})
    return rows


def test_a_failed_run_with_a_mix_at_two_widths_continues_bit_equal(
    tmp_path: Path, dropout_model: Path, pair_rows: list[dict[str, str]]
) -> None:
    """Temperatures, proxies and memories of both widths are in the checkpoint."""
    fields = {
        "model": str(dropout_model),
        "train_data": pair_rows,
        "loss": "MatryoshkaLoss",
        "loss_options": MIXED,
        "val_split": 0.2,
        "callbacks": [FailOnce()],
    }
    whole = fit(tmp_path, run_name="whole", **fields)
    FAIL_AT.append(4)
    with pytest.raises(RunFailedError, match="this once"):
        fit(tmp_path, run_name="failed", **fields)
    failed = fit(tmp_path, run_name="failed", resume="auto", **fields)
    assert "Continuing from checkpoint epoch-0001" in failed.logs()
    assert losses(failed) == losses(whole)
    weights = [load_file(f"{run.artifact_id}/model.safetensors") for run in (whole, failed)]
    assert all((weights[1][name] == value).all() for name, value in weights[0].items())
    assert {"temperature_1_32", "temperature_1_8"} <= set(whole.history().column_names)


def test_a_teacher_and_several_negatives_teach(
    tmp_path: Path, tiny_model: Path, pair_rows: list[dict[str, str]]
) -> None:
    rows = taught(pair_rows)
    mix = [{"loss": "MultipleNegativesRankingLoss"}, {"loss": "DistillKLDivLoss"}]
    fields = {"model": str(tiny_model), "train_data": rows, "epochs": 4}
    run = fit(tmp_path, loss="MultipleLosses", loss_options={"losses": mix}, **fields)
    assert losses(run)[-1] < losses(run)[0]
    unscored = [{k: v for k, v in row.items() if not k.startswith("score")} for row in rows]
    run = fit(tmp_path, loss="TripletMarginLoss", **{**fields, "train_data": unscored})
    assert losses(run)[-1] < losses(run)[0]
    message = refused(tmp_path, loss="MultipleNegativesRankingLoss", **fields)
    assert "MarginMSELoss and DistillKLDivLoss" in message


def test_what_does_not_fit_is_refused_for_inner_losses_too(
    tmp_path: Path, tiny_model: Path, pair_rows: list[dict[str, str]], labelled_rows: Any
) -> None:
    def with_loss(loss: str, **fields: Any) -> str:
        options = {"loss": loss, "dims": [16]}
        given = {"model": str(tiny_model), "train_data": pair_rows, **fields}
        return refused(tmp_path, loss="MatryoshkaLoss", loss_options=options, **given)

    assert "learns from pairs" in with_loss("InfoNCE", train_data=labelled_rows)
    assert "learns from scored pairs" in with_loss("CoSENTLoss")
    assert "learns from a teacher's scores" in with_loss("MarginMSELoss")
    message = with_loss("ArcFaceLoss", train_data=labelled_rows, eval_data=labelled_rows[:20])
    assert "learns something for each class" in message
    assert with_loss("InfoNCE", miner="HDCMiner").startswith("In loss_options of MatryoshkaLoss: ")
    assert "There is no loss 'Infonse'. Did you mean 'InfoNCE'?" in with_loss("Infonse")
    wide = {"loss": "InfoNCE", "dims": [64, 16]}
    fields = {"model": str(tiny_model), "train_data": pair_rows, "loss": "MatryoshkaLoss"}
    message = refused(tmp_path, loss_options=wide, **fields)
    assert message.endswith("64, but the model's embeddings have only 32 dimensions")
