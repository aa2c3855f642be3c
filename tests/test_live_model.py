"""A fit of a model object: a copy is trained, the user's object stays as it was."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file

import ftray
from ftray.callbacks import BestModelCheckpoint, Callback, EvaluationCallback
from ftray.errors import ConfigError, ModelError, RunFailedError
from ftray.models.live import copy_model
from ftray.models.registry import load_encoder
from ftray.run import Run, find_run


@pytest.fixture
def model(tiny_model: Path) -> Any:
    from sentence_transformers import SentenceTransformer

    return SentenceTransformer(str(tiny_model), device="cpu")


@pytest.fixture
def fit(tmp_path: Path, labelled_rows: list[Any]) -> Any:
    def call(**fields: Any) -> Run:
        values = {
            "train_data": labelled_rows,
            "loss": "SupConLoss",
            "epochs": 2,
            "batch_size": 32,
            "num_workers": 0,
            "learning_rate": 1e-3,
            "storage_path": str(tmp_path / "runs"),
            "run_name": "one",
            **fields,
        }
        return ftray.fit(listeners=[], **values)

    return call


def state(model: Any) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


class FailOnce(Callback):
    def __init__(self) -> None:
        self.failed = False

    def on_epoch_end(self, state: Any) -> None:
        if state.epoch == 1 and not self.failed:
            self.failed = True
            raise ValueError("no good")


def test_the_object_is_not_changed_and_gives_what_its_folder_gives(
    fit: Any, model: Any, tiny_model: Path, labelled_rows: list[Any]
) -> None:
    model.train()  # as the user left it
    before, gradients = state(model), [p.requires_grad for p in model.parameters()]
    callbacks = [EvaluationCallback(labelled_rows), BestModelCheckpoint("tiny_ndcg_at_k")]
    run = fit(model=model, callbacks=callbacks)
    after = model.state_dict()
    assert before.keys() == after.keys() and model.training
    assert all(tensor.equal(after[name]) for name, tensor in before.items())
    assert [p.requires_grad for p in model.parameters()] == gradients
    assert all(p.grad is None for p in model.parameters())

    by_name = fit(model=str(tiny_model), callbacks=callbacks, run_name="two")
    one, two = (load_file(f"{r.artifact_id}/model.safetensors") for r in (run, by_name))
    assert all(tensor.equal(two[name]) for name, tensor in one.items())
    assert run.metrics() == by_name.metrics()
    assert "Metric: 'tiny_ndcg_at_k' before fine-tuning" in run.logs()
    assert run.facts["reproducible"] is False and run.model == "tiny"
    assert by_name.facts["reproducible"] is False and by_name.model == str(tiny_model)
    assert ftray.encode(run.artifact_id, ["card"]).shape == (1, 32)


def test_the_licence_of_an_object_is_that_of_its_card(
    fit: Any, tmp_path: Path, tiny_model: Path
) -> None:
    from sentence_transformers import SentenceTransformer

    folder = tmp_path / "carded"
    shutil.copytree(tiny_model, folder)
    (folder / "README.md").write_text("---\nlicense: mit\n---\n# A card")
    run = fit(model=SentenceTransformer(str(folder), device="cpu"))
    assert run.facts["license"] == "mit" and run.logs().count("model's licence") == 1
    assert json.loads(Path(run.artifact_id, "ftray.json").read_text())["license"] == "mit"


def test_a_run_of_an_object_continues_with_the_same_weights_only(
    fit: Any, model: Any, tmp_path: Path
) -> None:
    callback = FailOnce()
    with pytest.raises(RunFailedError, match="no good"):
        fit(model=model, callbacks=[callback])
    run = find_run("one", storage_path=str(tmp_path / "runs"))
    first = run.facts["model"]["fingerprint"]
    again = {"resume": "auto", "callbacks": [callback]}
    weight = next(model.parameters())
    with torch.no_grad():
        weight[0, 0] += 1
    with pytest.raises(ConfigError, match=f"fingerprint was {first}, and is "):
        fit(model=model, **again)
    with torch.no_grad():
        weight[0, 0] -= 1
    with pytest.raises(ConfigError, match=r"started with model = '.*SentenceTransformer', not"):
        fit(model="minilm", **again)
    assert fit(model=model, **again).status() == "FINISHED"
    facts = yaml.safe_load(Path(run.path, "run.yaml").read_text())
    assert facts["model"] == {"name": "tiny", "fingerprint": first}


def test_frozen_weights_of_an_object_stay(fit: Any, model: Any) -> None:
    names = [name for name, _ in model.named_parameters() if "embeddings" in name]
    for name in names:
        model.get_parameter(name).requires_grad_(False)
    run = fit(model=model)
    base, trained = (
        load_encoder(place).model.state_dict() for place in (f"{run.path}/model", run.artifact_id)
    )
    same = {name for name, tensor in base.items() if tensor.equal(trained[name])}
    assert set(names) <= same < set(base)


def test_the_fingerprint_is_of_all_that_embeddings_depend_on(model: Any, tmp_path: Path) -> None:
    def fingerprint(number: int) -> str:
        return copy_model(model, tmp_path / str(number)).fingerprint

    first = fingerprint(0)
    assert fingerprint(1) == first
    seen = {first}
    changes = [
        lambda: setattr(model, "max_seq_length", 16),
        lambda: setattr(model, "prompts", {"query": "find: "}),
        lambda: setattr(model[1], "pooling_mode", "cls"),
        lambda: next(model.parameters()).requires_grad_(False),
        lambda: model.half(),
    ]
    for number, change in enumerate(changes, start=2):
        change()
        seen.add(fingerprint(number))
    assert len(seen) == 1 + len(changes)


def test_a_copy_in_half_precision_is_loaded_in_float32(model: Any, tmp_path: Path) -> None:
    expected = model.encode(["card lost"])
    copy = copy_model(model.to(torch.bfloat16), tmp_path)
    loaded = load_encoder(f"file://{copy.folder}")
    assert next(loaded.parameters()).dtype == torch.float32
    assert np.allclose(ftray.encode(loaded, ["card lost"]), expected, atol=0.02)


def test_objects_that_cannot_be_trained_are_refused(fit: Any, model: Any, tmp_path: Path) -> None:
    for wrong in (load_encoder, 3, None):
        with pytest.raises(ConfigError, match=r"model = .*torch.nn.Module object is expected"):
            fit(model=wrong)
    with pytest.raises(ModelError, match=r"module of .*failed: TypeError.*no preprocess_fn"):
        fit(model=torch.nn.Linear(2, 2))
    model.truncate_dim = 8
    with pytest.raises(ModelError, match="truncate_dim = 8, but a fit trains whole embeddings"):
        fit(model=model)
    with pytest.raises(ModelError, match=r"The folder 'file:///nowhere' holds no model"):
        fit(model="file:///nowhere")
    with pytest.raises(ModelError, match=r"The model 's9://b' cannot be reached"):
        fit(model="s9://b")
    assert not (tmp_path / "runs").exists()
