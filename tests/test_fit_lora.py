"""Fits that train little beside frozen weights: low-rank adapters, and heads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import ftray
from ftray.callbacks import Callback, EvaluationCallback, WiSEFTCallback
from ftray.errors import ConfigError
from ftray.models.text import TextEncoder
from ftray.record import session
from ftray.training import frozen

LORA = {"lora": {"r": 4, "lora_alpha": 16, "lora_dropout": 0.2}, "learning_rate": 1e-2}
HEAD = {"freeze": True, "learning_rate": 1e-2}


def fit(folder: Path, model: Path, rows: list[dict[str, str]], **fields: Any) -> ftray.Run:
    return ftray.fit(
        listeners=[],
        **{
            "model": str(model),
            "train_data": rows,
            "loss": "SupConLoss",
            "epochs": 2,
            "batch_size": 32,
            "num_workers": 0,
            "storage_path": str(folder),
            "run_name": "run",
            **fields,
        },
    )


def weights(folder: str) -> dict[str, torch.Tensor]:
    """Of all modules of an artifact, the adapter left out."""
    files = sorted(Path(folder).rglob("model.safetensors"))
    return {
        f"{file.parent.relative_to(folder)}/{name}": tensor
        for file in files
        for name, tensor in load_file(file).items()
    }


def losses(run: ftray.Run) -> list[float]:
    return [loss for loss in run.history()["loss"].to_pylist() if loss is not None]


@pytest.fixture(scope="module")
def adapted(tmp_path_factory, dropout_model, labelled_rows) -> ftray.Run:
    return fit(tmp_path_factory.mktemp("adapted"), dropout_model, labelled_rows, **LORA)


def test_adapters_learn_and_are_merged_into_the_artifact(adapted, dropout_model) -> None:
    from sentence_transformers import SentenceTransformer

    epochs = [loss for loss in adapted.history()["train_loss"].to_pylist() if loss is not None]
    assert epochs[-1] < epochs[0]
    before, after = weights(str(dropout_model)), weights(str(adapted.artifact_id))
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert before.keys() == after.keys()
    assert len(changed) == 4 and all("query.weight" in n or "value.weight" in n for n in changed)
    texts = ["lost card", "top up"]
    plain = SentenceTransformer(str(adapted.artifact_id), device="cpu").encode(texts)
    assert abs(plain - ftray.encode(str(adapted.artifact_id), texts)).max() < 1e-5
    adapter = load_file(f"{adapted.artifact_id}/adapter/adapter_model.safetensors")
    assert len(adapter) == 8 and all(name.startswith("base_model.model.") for name in adapter)
    kept = load_file(f"{adapted.path}/checkpoints/epoch-0002/optimizer.safetensors")
    assert len(kept) == 3 * 8, "the optimizer knows the adapters alone"
    assert f"of which {4 * 2 * 4 * 32:,} are trained" in adapted.logs()
    assert "Time: " in adapted.logs() and "frozen weights" not in adapted.logs()


def test_between_adapters_lie_weights_between(
    tmp_path, adapted, dropout_model, labelled_rows
) -> None:
    run = fit(tmp_path, dropout_model, labelled_rows, callbacks=[WiSEFTCallback(0.3)], **LORA)
    before, after = weights(str(dropout_model)), weights(str(adapted.artifact_id))
    for name, weight in weights(str(run.artifact_id)).items():
        wanted = 0.7 * before[name] + 0.3 * after[name]
        assert torch.allclose(weight, wanted, atol=1e-6), name


class Fails(Callback):
    """Ends the first attempt in its second epoch."""

    at = 5

    def on_train_batch_end(self, state: Any) -> None:
        if state.global_step == type(self).at:
            raise RuntimeError("power cut")


@pytest.mark.parametrize("fields", [LORA, HEAD], ids=["adapters", "head"])
def test_a_run_continues_to_bit_equal_weights(
    tmp_path, dropout_model, labelled_rows, fields, monkeypatch
) -> None:
    fields = {**fields, "epochs": 2, "callbacks": [Fails()]}
    with pytest.raises(Exception, match="power cut"):
        fit(tmp_path / "cut", dropout_model, labelled_rows, **fields)
    monkeypatch.setattr(Fails, "at", -1)
    with pytest.raises(ConfigError, match=r"started with (lora|freeze) ="):
        other = {"lora": {"r": 8}} if "lora" in fields else {"freeze": False}
        fit(tmp_path / "cut", dropout_model, labelled_rows, resume="must", **{**fields, **other})
    cut = fit(tmp_path / "cut", dropout_model, labelled_rows, resume="must", **fields)
    assert "Continuing from checkpoint epoch-0001" in cut.logs()
    whole = fit(tmp_path / "whole", dropout_model, labelled_rows, **fields)
    assert losses(cut) == losses(whole)
    ours, theirs = weights(str(cut.artifact_id)), weights(str(whole.artifact_id))
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_what_is_frozen_is_encoded_once(
    tmp_path, dropout_model, labelled_rows, monkeypatch
) -> None:
    """Training, validation loss and evaluations; to the same numbers as without."""
    passed = 0
    real, plain = TextEncoder.first_part, TextEncoder.encode

    def first_part(self: Any, inputs: Any) -> Any:
        nonlocal passed
        passed += 1
        return real(self, inputs)

    def encode(self: Any, inputs: Any) -> Any:
        assert self.head_prefix is None, "encoded again, once the fit has begun"
        return plain(self, inputs)

    def options() -> dict[str, Any]:
        evaluation = EvaluationCallback(labelled_rows[:20], labelled_rows[20:])
        return {**HEAD, "epochs": 3, "val_split": 0.2, "callbacks": [evaluation]}

    with monkeypatch.context() as patch:
        patch.setattr(TextEncoder, "first_part", first_part)
        patch.setattr(TextEncoder, "encode", encode)
        once = fit(tmp_path / "once", dropout_model, labelled_rows, **options())
    assert 0 < passed < 10
    assert (
        f"Frozen: {len(labelled_rows)} texts of the training and validation data are "
        in once.logs()
    )
    monkeypatch.setattr(frozen, "MAX_BYTES", 0)
    always = fit(tmp_path / "always", dropout_model, labelled_rows, **options())
    assert losses(once) == pytest.approx(losses(always), rel=1e-4)
    for when in ("before", "after"):
        assert once.metrics()[when] == pytest.approx(always.metrics()[when], abs=1e-3)
    ours, theirs = weights(str(once.artifact_id)), weights(str(always.artifact_id))
    assert all(torch.allclose(ours[name], theirs[name], atol=1e-4) for name in ours)


def test_a_stop_is_heard_while_what_is_frozen_is_encoded(
    tmp_path, dropout_model, labelled_rows, monkeypatch
) -> None:
    real, passed = TextEncoder.first_part, []

    def first_part(self: Any, inputs: Any) -> Any:
        passed.append(inputs)
        if len(passed) == 2:  # the first is an example
            ftray.get_run("run", storage_path=str(tmp_path)).stop()
        return real(self, inputs)

    monkeypatch.setattr(frozen, "BATCH", 1)
    monkeypatch.setattr(session, "CHECK_EVERY_S", 0.0)
    monkeypatch.setattr(TextEncoder, "first_part", first_part)
    run = fit(tmp_path, dropout_model, labelled_rows, **HEAD)
    assert run.status() == "STOPPED" and len(passed) < 5 < len(labelled_rows)
    assert "The run is to stop: what is frozen is not encoded" in run.logs()
    assert not losses(run) and (Path(run.artifact_id) / "ftray.json").exists()


def test_a_conflict_is_told_before_anything_is_read(tmp_path, dropout_model) -> None:
    for model, fields, words in (
        (dropout_model, {"lora": {}, "freeze": True}, "freeze = true and lora: .* one of the two"),
        (dropout_model, {"lora": {"rank": 4}}, "lora has no option 'rank'"),
        (Path("convnet"), {"lora": {}}, "'convnet' is none: leave lora out"),
    ):
        with pytest.raises(ConfigError, match=words):
            fit(tmp_path, model, [], **{"train_data": "nowhere.csv", **fields})
    assert not list(tmp_path.iterdir())
