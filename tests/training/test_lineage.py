"""`model_artifact`: whose weights a fit begins with, and what is refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from ftray.config import FitConfig, validated
from ftray.errors import ConfigError, ModelError
from ftray.models.artifact import write_artifact
from ftray.models.registry import load_encoder
from ftray.record.storage import Storage
from ftray.training.job import prepare
from ftray.training.lineage import parent_of, starting_place


@pytest.fixture
def made(tmp_path: Path) -> Callable[[str], Path]:
    """`made(base)`: the artifact of a run whose model had that name."""

    def write(base: str) -> Path:
        run = tmp_path / "runs" / "first"
        facts = {"base_model": base, "run": str(run)}
        encoder = load_encoder("mlp", options={"input_size": 3, "hidden_sizes": [2]}, seed=7)
        write_artifact(Storage(str(run)), encoder, facts)
        return run / "artifact"

    return write


def config(model: Any, artifact: Any = None, **more: Any) -> FitConfig:
    return validated({"model": model, "model_artifact": artifact, "train_data": "x.csv", **more})


def test_the_weights_are_those_of_the_artifact_and_the_name_is_the_models(
    made: Callable[[str], Path],
) -> None:
    artifact = made("mlp")
    rows = [
        {"features": torch.full((3,), float(i)).numpy(), "label": f"c{i % 2}"} for i in range(8)
    ]
    given = {"train_data": rows, "num_workers": 0, "loss": "SupConLoss"}
    job = prepare(validated({"model": "mlp", "model_artifact": artifact, **given}), "/nowhere")
    assert job.config.model == "mlp" and job.model == str(artifact)
    assert f"It begins with the weights of {artifact} of the run 'first'" in "\n".join(job.notes)
    encoder = job.encoder(torch.device("cpu"))
    assert encoder.name == "mlp" and encoder.embedding_dim == 2
    want = load_encoder(str(artifact)).state_dict()
    assert all(torch.equal(want[name], value) for name, value in encoder.state_dict().items())
    fresh = prepare(validated({"model": "mlp", **given}), "/nowhere")
    assert fresh.parent is None and fresh.encoder(torch.device("cpu")).embedding_dim == 3
    again = prepare(validated({"model": "mlp", "model_artifact": artifact, **given}), "", known=job)
    assert again.model == job.model
    assert prepare(validated({"model": "mlp", **given}), "", known=job).model == fresh.model


def test_an_artifact_names_the_one_it_began_with(made: Callable[[str], Path]) -> None:
    artifact = made("mlp")
    facts = json.loads((artifact / "ftray.json").read_text())
    assert parent_of(str(artifact)) == {"run": "first", "fingerprint": facts["fingerprint"]}
    assert parent_of(f"file://{artifact}") == parent_of(str(artifact))
    assert parent_of("sentence-transformers/all-MiniLM-L6-v2") is None
    assert parent_of("new:mlp") is None


def test_a_fingerprint_is_that_of_the_weights(tmp_path: Path) -> None:
    def fingerprint(name: str, **options: Any) -> str:
        encoder = load_encoder("mlp", options={"input_size": 3}, **options)
        write_artifact(Storage(str(tmp_path / name)), encoder, {"base_model": name})
        facts = json.loads((tmp_path / name / "artifact" / "ftray.json").read_text())
        return str(facts["fingerprint"])

    first, second, other = fingerprint("a"), fingerprint("b"), fingerprint("c", seed=1)
    assert first == second != other and len(first) == 16


@pytest.mark.parametrize(
    ("base", "model"),
    [
        ("openai/clip-vit-base-patch32", "clip-base-en"),
        ("resnet-base", "resnet50"),
        ("mlp", "mlp"),
    ],
)
def test_names_of_one_model_are_the_same(
    made: Callable[[str], Path], base: str, model: str
) -> None:
    artifact = made(base)
    assert starting_place(config(model, artifact)) == str(artifact)


def test_a_folder_is_the_same_by_any_path(
    made: Callable[[str], Path], tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    artifact = made(str(tiny_model))
    monkeypatch.chdir(tiny_model.parent)
    assert starting_place(config(f"./{tiny_model.name}", artifact)) == str(artifact)


def test_the_artifact_of_another_model_is_refused(
    made: Callable[[str], Path], tiny_model: Path
) -> None:
    artifact = made("minilm")
    message = "model = 'mlp', but model_artifact = '.*' was made from 'minilm': give model = 'mini"
    with pytest.raises(ConfigError, match=message):
        starting_place(config("mlp", artifact))
    shutil.rmtree(artifact)
    with pytest.raises(ModelError):
        starting_place(config("minilm", artifact))
    with pytest.raises(ConfigError, match=r"is no artifact of a fit: .*give model = '"):
        starting_place(config("minilm", tiny_model))


def test_a_model_object_brings_its_weights(made: Callable[[str], Path]) -> None:
    with pytest.raises(ConfigError, match="the object brings its weights"):
        starting_place(config(torch.nn.Linear(1, 1), made("mlp")))


def test_an_artifact_goes_along_with_a_job(
    made: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ftray.launch.packing import Luggage, Packed, with_places

    artifact = made("mlp")
    (tmp_path / "x.csv").write_text("a\n")
    monkeypatch.chdir(tmp_path)
    luggage = Luggage([], None, 10)
    fields = {"model": "mlp", "model_artifact": str(artifact), "train_data": "x.csv"}
    packed = with_places(fields, luggage.pack)
    assert packed["model"] == "mlp" and isinstance(packed["model_artifact"], Packed)
    luggage.write(tmp_path / "there")
    place = tmp_path / "there" / packed["model_artifact"].place
    assert (place / "model.safetensors").is_file()
