"""The model card of an artifact: its header is the hub's, its code runs, its numbers are the run's.

Nothing in it is made up, and nothing tells where on the machine things were.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from huggingface_hub import ModelCard
from peft import PeftModel
from PIL import Image
from transformers import AutoModel

import ftray
from ftray.callbacks import EvaluationCallback
from ftray.config import validated
from ftray.errors import ModelError
from ftray.report.card_facts import _bases, _licence, _trained, bare
from tests.tiny import tiny_clip, tiny_image_model, tiny_text_model

PROMPTS = {"query": "find: ", "document": ""}


def code_of(card: str) -> list[str]:
    return re.findall(r"```python\n(.*?)```", card, re.DOTALL)


def executed(card: str, folder: Path) -> None:
    """Run each block of code in the folder, as the card says."""
    Image.new("RGB", (40, 40), (200, 3, 90)).save(folder / "picture.jpg")
    here = Path.cwd()
    os.chdir(folder)
    try:
        blocks = code_of(card)
        assert blocks
        for block in blocks:
            exec(compile(block, "README.md", "exec"), {})
    finally:
        os.chdir(here)
        (folder / "picture.jpg").unlink()


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, labelled_csv: Path) -> ftray.Run:
    """A fit of a text model, which has a licence, with a head and two evaluations."""
    folder = tmp_path_factory.mktemp("card")
    model = tiny_text_model(folder / "base", prompts=PROMPTS)
    (model / "README.md").write_text("---\nlicense: mit\n---\n")
    return ftray.fit(
        model=str(model),
        train_data=str(labelled_csv),
        loss="SupConLoss",
        loss_options={"temperature": 0.2},
        epochs=2,
        batch_size=32,
        learning_rate=1e-3,
        output_dim=8,
        freeze=["*.embeddings"],
        ema_decay=0.5,
        model_options={"pooling": "max"},
        description="Of cards | and *banks*.",
        num_workers=0,
        storage_path=str(folder / "runs"),
        run_name="first",
        listeners=[],
        callbacks=[
            EvaluationCallback(str(labelled_csv), limit=5),
            EvaluationCallback(str(labelled_csv), limit=3, caption="three"),
        ],
    )


@pytest.fixture(scope="module")
def card(run: ftray.Run) -> str:
    return (Path(run.artifact_id) / "README.md").read_text(encoding="utf-8")


def test_the_header_is_that_of_the_hub(run: ftray.Run) -> None:
    header = ModelCard.load(Path(run.artifact_id) / "README.md").data
    assert header.license == "mit" and header.base_model is None  # a folder is no id
    assert header.library_name == "sentence-transformers"
    assert header.pipeline_tag == "sentence-similarity"
    rows = run.facts["data"]["train_data"]["rows"]
    assert {"ftray", "loss:SupConLoss", f"dataset_size:{rows}"} <= set(header.tags)
    assert {"ndcg_at_k", "recall_at_k"} <= set(header.metrics)


def test_its_code_runs(run: ftray.Run, card: str) -> None:
    assert len(code_of(card)) == 2 and "encode_query" in code_of(card)[0]
    executed(card, Path(run.artifact_id))


def test_its_numbers_are_those_of_the_run(run: ftray.Run, card: str) -> None:
    metrics = run.metrics()
    for heading, prefix in (("## Results", ""), ("### three", "three_")):
        table = card.split(heading, 1)[1]
        before, after = (metrics[side][f"{prefix}ndcg_at_k"] for side in ("before", "after"))
        assert f"| ndcg_at_k | {before:.4f} | {after:.4f} |" in table.split("\n\n")[1]
        assert before != after
    step = run.history().column("global_step").to_pylist()[-1]
    assert f"The weights are those of step {step}." in card
    data = run.facts["data"]
    assert f"| train_data | train.csv | {data['train_data']['rows']} rows" in card
    assert all(source["fingerprint"] in card for source in data.values())
    for told in ("temperature=0.2", "Learning rate: up to 0.001", "1 worker, cpu", "seed: 0"):
        assert told in card
    for told in (
        "- Trained: a linear layer behind the model, to 8 numbers; all weights but `*.embeddings`",
        "- Averaged: exponential moving average of the weights (ema_decay=0.5)",
        "- Options of the model: pooling=max",
        "Prompts, which a text's role puts before it (`role=` of `ftray.encode`): before a query "
        "`find: `.",
    ):
        assert told in card
    assert "Of cards | and *banks*." in card and "The base model's licence: mit." in card


def test_its_configuration_is_that_of_the_run(run: ftray.Run, card: str) -> None:
    (text,) = re.findall(r"```yaml\n(.*?)```", card, re.DOTALL)
    values = yaml.safe_load(text)
    assert values["train_data"] == "train.csv" and values["model"] == "base"
    again = validated(values).model_dump(exclude={"callbacks", "train_data", "model"})
    was = {**run.config}
    for name in ("storage_path", "run_name", "description", "csv_options"):
        was.pop(name), again.pop(name)
    assert again == {name: was[name] for name in again}
    assert len(values["callbacks"]) == 2


def test_nothing_in_it_is_of_the_machine(run: ftray.Run, card: str, labelled_csv: Path) -> None:
    environment = run.facts["environment"]
    for told in (run.path, str(Path.home()), str(labelled_csv.parent), str(Path.cwd()), "/tmp"):
        assert told not in card
    assert environment["folder"] not in card
    assert not re.search(rf"\b{re.escape(environment['host'])}\b", card)


def test_a_continued_fit_names_the_one_before(run: ftray.Run, labelled_csv: Path) -> None:
    """Also: without training there is nothing to say of it, and no description, no licence."""
    second = ftray.fit(
        model=run.config["model"],
        model_artifact=run.artifact_id,
        train_data=str(labelled_csv),
        loss="SupConLoss",
        epochs=0,
        num_workers=0,
        storage_path=str(Path(run.path).parent.parent),
        run_name="second",
        listeners=[],
    )
    card = (Path(second.artifact_id) / "README.md").read_text()
    assert "It began with the artifact of the run `first` (weights " in card
    assert "model_artifact: first/artifact" in card
    assert "Nothing was trained" in card and "## Results" not in card and "None" not in card
    assert "loss:SupConLoss" not in card
    texts = ["where is my card", "pay"]
    first, again = (ftray.encode(r.artifact_id, texts) for r in (run, second))
    assert np.array_equal(first, again)


# ---------------------------------------------------------------- parts


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("/home/me/data/train.csv", "train.csv"),
        ("~/data/folder/", "folder"),
        ("s3://bucket/data/train.parquet?region=x", "train.parquet"),
        ("C:\\data\\train.csv", "train.csv"),
        ("/runs/default/first/artifact", "first/artifact"),
        ({"train_data": "clients/acme/q.csv"}, {"train_data": "q.csv"}),
        (
            {"callbacks": [{"E": {"index_data": "a/b.csv"}}]},
            {"callbacks": [{"E": {"index_data": "b.csv"}}]},
        ),
        ({"model": "clients/acme/base"}, {"model": "base"}),
        (
            {"model_options": {"text": "a/b/c", "image": "x"}},
            {"model_options": {"text": "c", "image": "x"}},
        ),
        ({"model_artifact": "runs/default/first/artifact"}, {"model_artifact": "first/artifact"}),
        ({"model": "owner/name"}, {"model": "owner/name"}),
        ({"prompts": {"query": "and/or"}}, {"prompts": {"query": "and/or"}}),
        ({"a": ["/x/y", 3, None]}, {"a": ["y", 3, None]}),
    ],
)
def test_paths_are_their_last_part(given: Any, expected: Any) -> None:
    assert bare(given) == expected


@pytest.mark.parametrize(
    ("licence", "expected"),
    [
        (None, {}),
        ("apache-2.0", {"license": "apache-2.0"}),
        ("mit, apache-2.0", {"license": ["mit", "apache-2.0"]}),
        ("other (llama-3)", {"license": "other", "license_name": "llama-3"}),
    ],
)
def test_licences_have_the_hubs_form(licence: str | None, expected: dict[str, Any]) -> None:
    assert _licence(licence) == expected


@pytest.mark.parametrize(
    ("model", "options", "expected"),
    [
        ("minilm", {}, ["sentence-transformers/all-MiniLM-L6-v2"]),
        ("owner/name", {}, ["owner/name"]),
        ("convnet", {}, []),
        ("/home/me/model", {}, []),
        ("./a/model", {}, []),
        ("../model", {}, []),
        ("two-towers", {}, ["sentence-transformers/all-MiniLM-L6-v2", _bases("vit", {})[0]]),
        ("two-towers", {"image": "dinov2"}, [*_bases("minilm", {}), "facebook/dinov2-base"]),
    ],
)
def test_base_models_are_hub_ids(model: str, options: Any, expected: list[str]) -> None:
    assert _bases(model, {"model_options": options}) == expected


@pytest.mark.parametrize(
    ("fields", "head", "expected"),
    [
        ({}, None, []),
        ({"freeze": True}, {"dim": 4}, ["a linear layer behind the model, to 4 numbers; all else"]),
        ({"lora": {"r": 4}}, None, ["low-rank adapters (r=4), which are merged into the weights"]),
        ({"lora": {}}, {"dim": 4}, ["to 4 numbers; low-rank adapters (peft's defaults), which"]),
    ],
)
def test_what_was_trained_is_told(fields: Any, head: Any, expected: list[str]) -> None:
    found = [value for _, value in _trained(fields, {"head": head})]
    assert len(found) == len(expected)
    assert all(words in value for words, value in zip(expected, found, strict=True))


def test_a_run_that_fails_at_its_graphs_is_described_and_no_folder_is_an_id(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also: the adapters of a fit that goes on belong to the weights that it began with."""
    monkeypatch.chdir(tmp_path)
    tiny_text_model("mine/base", layers=1)
    Path("rows").mkdir()
    lines = [f"card number {i},c{i % 3}" for i in range(12)]
    Path("rows/train.csv").write_text("\n".join(["text,label", *lines]) + "\n")
    given: dict[str, Any] = {"model": "mine/base", "train_data": "rows/train.csv"}
    given |= {"loss": "SupConLoss", "epochs": 1, "batch_size": 6, "lora": {"r": 2}}
    given |= {"learning_rate": 1e-2, "num_workers": 0, "listeners": []}
    first = ftray.fit(**given)
    monkeypatch.setattr("ftray.models.onnx_export.export_graph", cannot_be_exported)
    with pytest.raises(ModelError, match="The artifact is there without it"):
        ftray.fit(model_artifact=first.artifact_id, run_name="next", to_onnx=True, **given)
    second = ftray.get_run("next")
    assert second.status() == "FAILED"
    base = tmp_path.resolve() / "mine" / "base"
    for run, began_with in ((first, str(base)), (second, first.artifact_id)):
        card = Path(run.artifact_id, "README.md").read_text()
        assert ModelCard(card).data.base_model is None and "mine/" not in card
        assert "model: base\n" in card and "`base`" in card
        assert "train_data: train.csv\n" in card and "rows/" not in card
        assert "low-rank adapters (r=2)" in card
        facts = json.loads(Path(run.artifact_id, "ftray.json").read_text())
        assert facts["base_model"] == str(base) and facts["began_with"] == began_with
        adapter = json.loads(Path(run.artifact_id, "adapter/adapter_config.json").read_text())
        assert adapter["base_model_name_or_path"] == began_with
        assert with_adapters(began_with, run.artifact_id) < 1e-6
        other = {str(base): first.artifact_id, first.artifact_id: str(base)}[began_with]
        assert with_adapters(other, run.artifact_id) > 1e-3


def cannot_be_exported(encoder: Any, *rest: Any) -> None:
    raise ModelError(f"'{encoder.name}' cannot be exported as ONNX")


def with_adapters(base: str, artifact: str) -> float:
    """How far a model with an artifact's adapters, by peft, is from the artifact's weights."""
    adapters = Path(artifact, "adapter")
    merged = PeftModel.from_pretrained(AutoModel.from_pretrained(base), str(adapters))
    state = merged.merge_and_unload().state_dict()
    wanted = AutoModel.from_pretrained(artifact).state_dict()
    return max(float((state[name] - weight).abs().max()) for name, weight in wanted.items())


# ---------------------------------------------------------------- every kind

IMAGES = [{"image": f"{i}.png", "label": f"c{i % 3}"} for i in range(12)]
PAIRS = [{"query": f"card number {i}", "document": f"{i}.png"} for i in range(12)]
FEATURES = [{"features": [float(i), i % 3, i % 2], "label": f"c{i % 3}"} for i in range(12)]
TOWERS = {"model_options": {"text": "text", "image": "image"}}
NET = {"model_options": {"channels": [4, 8]}}

KINDS: dict[str, tuple[str, Any, str, dict[str, Any]]] = {
    "text": (
        "text",
        [{"text": f"card {r['label']} {i}", "label": r["label"]} for i, r in enumerate(IMAGES)],
        "SupConLoss",
        {},
    ),
    "image": ("image", IMAGES, "SupConLoss", {}),
    "clip": ("clip", PAIRS, "CLIPLoss", {}),
    "two-towers": ("two-towers", PAIRS, "CLIPLoss", TOWERS),
    "convnet": ("convnet", IMAGES, "SupConLoss", NET),
    "mlp": ("mlp", FEATURES, "SupConLoss", {}),
}
MAKERS: dict[str, Callable[[str], Path]] = {
    "text": tiny_text_model,
    "image": tiny_image_model,
    "clip": tiny_clip,
}


@pytest.mark.slow
@pytest.mark.parametrize("more", [{}, {"output_dim": 6}], ids=["", "head"])
@pytest.mark.parametrize("kind", KINDS)
def test_an_artifact_of_every_kind_is_described_exported_and_continued(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, more: dict[str, Any]
) -> None:
    """The card's code runs; the graphs are the model; a fit begins with it under both names."""
    monkeypatch.chdir(tmp_path)
    for name, make in MAKERS.items():
        make(name)
    draw = np.random.default_rng(0)
    for i in range(12):
        Image.fromarray(draw.integers(0, 255, (32, 32, 3), np.uint8)).save(f"{i}.png")
    model, data, loss, options = KINDS[kind]
    given: dict[str, Any] = {"train_data": data, "loss": loss, "num_workers": 0}
    given |= {"data_workers": 0, "listeners": []}
    run = ftray.fit(model=model, epochs=1, batch_size=6, to_onnx=True, **given, **options, **more)
    things: Any = {
        "text": ["a card", "pay"],
        "clip": ["a card", "0.png"],
        "two-towers": ["a card", "0.png"],
        "mlp": np.eye(3, dtype="float32"),
    }.get(kind, ["0.png", "1.png"])
    want = ftray.encode(run.artifact_id, things)
    graph = ftray.encode(ftray.get_model(run.artifact_id, is_onnx=True), things)
    assert np.abs(want - graph).max() < 1e-4 * max(1.0, float(np.abs(want).max()))
    named = ftray.fit(model=model, model_artifact=run.artifact_id, epochs=0, **given)
    plain = ftray.fit(model=run.artifact_id, epochs=0, **given)
    trained = ftray.fit(
        model=model, model_artifact=run.artifact_id, epochs=1, batch_size=6, **given
    )
    for again in (named, plain):
        assert np.array_equal(want, ftray.encode(again.artifact_id, things))
    assert not np.array_equal(want, ftray.encode(trained.artifact_id, things))
    card = Path(run.artifact_id, "README.md").read_text()
    ModelCard(card).data.to_dict()
    executed(card, Path(run.artifact_id))
    if more and kind in ("image", "clip", "mlp"):
        assert "library_name: ftray" in card and "head.safetensors" in card
    if kind == "text":
        assert "library_name: sentence-transformers" in card and len(code_of(card)) == 2
