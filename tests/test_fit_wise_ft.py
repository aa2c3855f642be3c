"""WiSE-FT: the artifact lies between the weights before and after training."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import ftray
from ftray.callbacks import BestModelCheckpoint, EvaluationCallback, WiSEFTCallback
from ftray.errors import ConfigError, RunFailedError
from ftray.events import EvaluationEnded
from ftray.training.weights import interpolated

ALPHAS = [0.0, 0.25, 0.5, 0.75, 1.0]


def fit(folder: Path, model: Path, rows: list[dict[str, str]], **fields: Any):
    return ftray.fit(
        listeners=[],
        **{
            "model": str(model),
            "train_data": rows,
            "loss": "SupConLoss",
            "epochs": 2,
            "batch_size": 32,
            "num_workers": 0,
            "learning_rate": 5e-3,
            "storage_path": str(folder),
            **fields,
        },
    )


def two_evaluations(rows, other) -> list[EvaluationCallback]:
    return [
        EvaluationCallback(rows[:40], rows[40:], caption="in"),
        EvaluationCallback(other, caption="out"),
    ]


def artifact(run) -> dict[str, torch.Tensor]:
    return load_file(f"{run.artifact_id}/model.safetensors")


def assert_between(run, before, after, alpha: float) -> None:
    for name, tensor in artifact(run).items():
        wanted = (1 - alpha) * before[name] + alpha * after[name]
        assert torch.allclose(tensor, wanted, atol=1e-7), name


@pytest.fixture(scope="module")
def plain(tmp_path_factory, tiny_model, labelled_rows):
    return fit(tmp_path_factory.mktemp("plain"), tiny_model, labelled_rows)


def test_one_alpha_is_between_the_ends(tmp_path, tiny_model, labelled_rows, pair_rows, plain):
    run = fit(
        tmp_path,
        tiny_model,
        labelled_rows,
        callbacks=[WiSEFTCallback(0.3), *two_evaluations(labelled_rows, pair_rows)],
    )
    before = load_file(tiny_model / "model.safetensors")
    assert_between(run, before, artifact(plain), 0.3)
    measured = ftray.evaluate(run.artifact_id, labelled_rows[:40], labelled_rows[40:])
    after = run.metrics()["after"]
    assert {k: after[f"in_{k}"] for k in measured} == pytest.approx(measured, abs=1e-6)
    facts = json.loads(Path(run.artifact_id, "ftray.json").read_text())
    assert facts["weights"] == "alpha 0.3"
    assert facts["metrics"] == pytest.approx(after)


def test_of_several_alphas_the_best_by_the_monitor_is_kept(
    tmp_path, tiny_model, labelled_rows, pair_rows, plain
):
    run = fit(
        tmp_path,
        tiny_model,
        labelled_rows,
        callbacks=[
            WiSEFTCallback(ALPHAS, monitor="out_ndcg_at_k"),
            *two_evaluations(labelled_rows, pair_rows),
        ],
    )
    found = [e for e in run._record.events() if isinstance(e, EvaluationEnded) and e.weights]
    curve = {e.alpha: e.metrics["ndcg_at_k"] for e in found if e.name == "out"}
    assert sorted(curve) == ALPHAS
    assert sorted({e.alpha for e in found if e.name == "in"}) == ALPHAS
    best = max(curve, key=curve.__getitem__)
    assert_between(run, load_file(tiny_model / "model.safetensors"), artifact(plain), best)
    assert run.metrics()["after"]["out_ndcg_at_k"] == curve[best]
    assert f"the artifact holds {1 - best:g} x pre-trained + {best:g} x fine-tuned" in run.logs()
    ends = [e for e in run._record.events() if isinstance(e, EvaluationEnded) and not e.weights]
    assert curve[0.0] == pytest.approx(ends[1].metrics["ndcg_at_k"], abs=1e-6)
    assert curve[1.0] == pytest.approx(ends[-1].metrics["ndcg_at_k"], abs=1e-6)


def test_the_best_epoch_is_what_is_interpolated(tmp_path, tiny_model, labelled_rows):
    """And a run without the callback holds its end."""
    callbacks = [
        BestModelCheckpoint("hit_at_k", mode="min"),
        EvaluationCallback(labelled_rows[:40], labelled_rows[40:], overlap=True),
    ]
    whole = fit(tmp_path, tiny_model, labelled_rows, epochs=3, callbacks=callbacks)
    mixed = fit(
        tmp_path, tiny_model, labelled_rows, epochs=3, callbacks=[*callbacks, WiSEFTCallback(0.5)]
    )
    facts = [json.loads(Path(r.artifact_id, "ftray.json").read_text()) for r in (whole, mixed)]
    assert facts[0]["global_step"] == facts[1]["global_step"]
    assert_between(mixed, load_file(tiny_model / "model.safetensors"), artifact(whole), 0.5)


def test_the_default_monitor_is_the_first_evaluations_ndcg(tmp_path, tiny_model, labelled_rows):
    run = fit(
        tmp_path,
        tiny_model,
        labelled_rows,
        callbacks=[
            EvaluationCallback(labelled_rows[:40], labelled_rows[40:]),
            {"WiSEFTCallback": {"alpha": [0, 1]}},
        ],
    )
    assert "ndcg_at_k" in run.logs().partition("WiSE-FT")[2].splitlines()[0]


@pytest.mark.parametrize(
    ("callback", "said"),
    [
        (lambda: WiSEFTCallback(1.5), r"alpha = 1.5: a number from 0 to 1"),
        (lambda: WiSEFTCallback([0.5, -0.1]), r"alpha = -0.1"),
        (lambda: WiSEFTCallback([]), "empty list"),
        (lambda: WiSEFTCallback(mode="best"), "best"),
    ],
)
def test_an_alpha_that_cannot_be_is_refused(callback, said):
    with pytest.raises(ConfigError, match=said):
        callback()


def test_alphas_without_an_evaluation_are_refused(tmp_path, tiny_model, labelled_rows):
    with pytest.raises(ConfigError, match=r"alpha = \[0.2, 0.8\].*EvaluationCallback"):
        fit(tmp_path, tiny_model, labelled_rows, callbacks=[WiSEFTCallback([0.2, 0.8])])
    with pytest.raises(ConfigError, match=r"monitors 'train_loss'.*EvaluationCallbacks only"):
        fit(
            tmp_path,
            tiny_model,
            labelled_rows,
            callbacks=[WiSEFTCallback(0.5, monitor="train_loss")],
        )
    assert not list(tmp_path.iterdir())


def test_weights_of_another_model_are_refused_by_name():
    with pytest.raises(RunFailedError, match=r"'layer\.b'"):
        interpolated(
            {"layer.a": torch.ones(2)}, {"layer.a": torch.ones(2), "layer.b": torch.ones(1)}, 0.5
        )


def test_whole_numbers_are_not_interpolated():
    mixed = interpolated(
        {"w": torch.zeros(2), "ids": torch.tensor([1, 2])},
        {"w": torch.ones(2), "ids": torch.tensor([1, 2])},
        0.25,
    )
    assert mixed["w"].tolist() == [0.25, 0.25]
    assert mixed["ids"].dtype == torch.int64
