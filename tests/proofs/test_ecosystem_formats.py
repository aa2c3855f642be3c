"""Contract 6: others read what ftray writes, ftray reads theirs, and nothing is unpickled."""

from __future__ import annotations

import json
import pickle
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ftray.data.readers import read_records
from ftray.data.retrieval import read_beir
from ftray.errors import DataError, ModelError, StorageError
from ftray.evaluation.encode import encode_texts
from ftray.losses.registry import build_loss
from ftray.models.artifact import write_artifact
from ftray.models.registry import load_encoder
from ftray.models.text import TextEncoder
from ftray.record.storage import Storage
from ftray.training.checkpoint import (
    Position,
    Trained,
    latest_checkpoint,
    read_checkpoint,
    write_checkpoint,
)
from tests.tiny import tiny_text_model

PROMPTS = {"query": "find the answer to: ", "document": "text: "}
TEXTS = [
    "where is my card?",
    "I want to know why the exchange rate of my last payment in cash was not what you said it is",
    "x",
    "Top up £20, please; naïve café 東京 🙂",
    "long " * 100,
]


def trained(folder: Path, **options: Any) -> TextEncoder:
    """An encoder with weights of its own, no longer those of its folder."""
    encoder = load_encoder(str(tiny_text_model(folder / "base", **options)), max_length=24)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    return encoder


def artifact(folder: Path, encoder: TextEncoder) -> Path:
    write_artifact(Storage(str(folder / "run")), encoder, {"base_model": "tiny", "global_step": 3})
    return folder / "run" / "artifact"


# ------------------------------------------------------------------ artifacts


@pytest.mark.parametrize("pooling", ["mean", "cls", "max"])
@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize(
    ("prompts", "include_prompt"), [(None, True), (PROMPTS, True), (PROMPTS, False)]
)
def test_sentence_transformers_loads_an_artifact_and_gives_the_same_embeddings(
    tmp_path: Path, pooling: str, normalize: bool, prompts: Any, include_prompt: bool
) -> None:
    from sentence_transformers import SentenceTransformer

    encoder = trained(
        tmp_path,
        pooling=pooling,
        normalize=normalize,
        prompts=prompts,
        include_prompt=include_prompt,
    )
    folder = artifact(tmp_path, encoder)
    theirs = SentenceTransformer(str(folder), device="cpu")
    again = load_encoder(str(folder))
    assert theirs.max_seq_length == again.model.max_seq_length == 24
    seen = []
    for role in ("query", "document", ""):
        name = role if prompts and role else None
        want = theirs.encode(TEXTS, prompt_name=name, batch_size=2)
        for ours in (encoder, again):
            got = encode_texts(ours, TEXTS, role=role, batch_size=3)
            assert np.abs(got - want).max() < 1e-5
        lengths = np.linalg.norm(want, axis=1)
        assert np.allclose(lengths, 1, atol=1e-5) == normalize
        seen.append(want)
    assert (np.abs(seen[0] - seen[1]).max() > 1e-3) == bool(prompts)
    base = encode_texts(load_encoder(str(tmp_path / "base")), TEXTS)
    assert np.abs(base - seen[2]).max() > 1e-3, "the artifact holds the weights it began with"


def test_an_artifact_holds_its_weights_as_safetensors_only(tmp_path: Path) -> None:
    folder = artifact(tmp_path, trained(tmp_path, prompts=PROMPTS))
    files = [file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file()]
    assert {Path(file).suffix for file in files} <= {".json", ".safetensors", ".txt", ".md"}
    assert [file for file in files if file.endswith(".safetensors")] == ["model.safetensors"]
    facts = json.loads((folder / "ftray.json").read_text())
    assert facts["kind"] == "text" and facts["global_step"] == 3


# ------------------------------------------------------------------ nothing is unpickled


class Trap:
    """Unpickling it leaves a file behind."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> tuple[Any, ...]:
        return open, (str(self.canary), "w")


class Watch:
    """Traps in a folder, and which of them were opened, as Python's audit events tell."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary
        self.traps: set[str] = set()
        self.opened: list[str] = []
        self.active = True

    def set_traps(self, folder: Path, *names: str) -> None:
        for name in names:
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("wb") as file:
                pickle.dump(Trap(self.canary), file)
            self.traps.add(str(path))

    def hook(self, event: str, arguments: tuple[Any, ...]) -> None:
        if self.active and event == "open" and str(arguments[0]) in self.traps:
            self.opened.append(str(arguments[0]))


@pytest.fixture
def watch(tmp_path: Path) -> Iterator[Watch]:
    found = Watch(tmp_path / "canary")
    sys.addaudithook(found.hook)
    yield found
    found.active = False


TRAPS = (
    "pytorch_model.bin",
    "model.pt",
    "model.pkl",
    "optimizer.pt",
    "rng_state.pth",
    "scheduler.pt",
    "state.pkl",
    "training_args.bin",
    "loss.bin",
    "1_Pooling/pytorch_model.bin",
    "2_Normalize/pytorch_model.bin",
)


def test_the_trap_works(tmp_path: Path, watch: Watch) -> None:
    """Both ways of noticing notice."""
    watch.set_traps(tmp_path, "model.pkl")
    with (tmp_path / "model.pkl").open("rb") as file:
        pickle.load(file).close()
    assert watch.opened and watch.canary.exists()
    watch.canary.unlink()
    with pytest.raises(Exception):
        torch.load(tmp_path / "model.pkl", weights_only=False)
    assert len(watch.opened) == 2 and watch.canary.exists()


def test_pickles_in_an_artifact_are_not_opened(tmp_path: Path, watch: Watch) -> None:
    encoder = trained(tmp_path)
    folder = artifact(tmp_path, encoder)
    watch.set_traps(folder, *TRAPS)
    again = load_encoder(str(folder))
    assert np.abs(encode_texts(again, TEXTS) - encode_texts(encoder, TEXTS)).max() < 1e-6
    assert not watch.opened and not watch.canary.exists()


def test_an_artifact_whose_weights_are_a_pickle_does_not_load(tmp_path: Path, watch: Watch) -> None:
    folder = artifact(tmp_path, trained(tmp_path))
    (folder / "model.safetensors").unlink()
    watch.set_traps(folder, "pytorch_model.bin")
    with pytest.raises(ModelError, match="safetensors"):
        load_encoder(str(folder))
    assert not watch.opened and not watch.canary.exists()
    watch.set_traps(folder, "model.safetensors")
    with pytest.raises(ModelError):
        load_encoder(str(folder))
    assert not watch.canary.exists()


def checkpointed(folder: Path) -> tuple[Storage, str, list[Any]]:
    """A checkpoint after a step, of a model, a loss with parameters and an optimizer with state."""
    encoder = trained(folder)
    loss = build_loss("ArcFaceLoss", {}, embedding_dim=32, n_groups=3, seed=0)
    parts: list[Any] = [encoder, loss]
    parts.append(torch.optim.AdamW([*encoder.parameters(), *loss.parameters()], lr=0.1))
    for parameter in (*encoder.parameters(), *loss.parameters()):
        parameter.grad = torch.randn_like(parameter)
    parts[2].step()
    storage = Storage(str(folder / "run"))
    held = Trained(encoder, loss, [parts[2]])
    return storage, write_checkpoint(storage, Position(epoch=1, global_step=5), held), parts


def test_a_checkpoint_is_json_and_safetensors_and_pickles_beside_it_are_not_opened(
    tmp_path: Path, watch: Watch
) -> None:
    storage, name, (encoder, loss, optimizer) = checkpointed(tmp_path)
    folder = Path(storage.path(f"checkpoints/{name}"))
    assert {file.name for file in folder.iterdir()} == {
        *("model.safetensors", "loss.safetensors", "optimizer.safetensors", "state.json")
    }
    parameters = [*encoder.parameters(), *loss.parameters()]
    want = [p.detach().clone() for p in parameters]
    moments = [optimizer.state[p]["exp_avg"].clone() for p in parameters]
    with torch.no_grad():
        for parameter in parameters:
            parameter.zero_()
            optimizer.state[parameter]["exp_avg"].zero_()
    watch.set_traps(folder, *TRAPS)
    watch.set_traps(folder.parent, "latest.pkl", "epoch-0009/state.pkl")
    assert latest_checkpoint(storage) == name
    held = Trained(encoder, loss, [optimizer])
    assert read_checkpoint(storage, name, held).global_step == 5
    assert all(map(torch.equal, want, parameters))
    assert all(map(torch.equal, moments, [optimizer.state[p]["exp_avg"] for p in parameters]))
    assert not watch.opened and not watch.canary.exists()


@pytest.mark.parametrize("name", ["model", "loss", "optimizer"])
def test_a_checkpoint_with_a_pickle_for_its_weights_does_not_load(
    tmp_path: Path, watch: Watch, name: str
) -> None:
    storage, checkpoint, parts = checkpointed(tmp_path)
    folder = Path(storage.path(f"checkpoints/{checkpoint}"))
    watch.set_traps(folder, f"{name}.safetensors")
    encoder, loss, optimizer = parts
    with pytest.raises(StorageError, match=checkpoint):
        read_checkpoint(storage, checkpoint, Trained(encoder, loss, [optimizer]))
    assert not watch.canary.exists()


@pytest.mark.parametrize("name", ["data.pkl", "data.csv", "data.jsonl", "data.parquet", "data.pt"])
def test_a_data_file_is_never_unpickled(tmp_path: Path, watch: Watch, name: str) -> None:
    watch.set_traps(tmp_path, name)
    with pytest.raises(DataError):
        read_records(tmp_path / name)
    assert not watch.canary.exists()


# ------------------------------------------------------------------ BEIR

QRELS = {
    "with header": "query-id\tcorpus-id\tscore\nq1\td1\t2\nq1\td2\t1\nq2\td3\t1\nq2\td1\t0\n",
    "without header": "q1\td1\t2\nq1\td2\t1\nq2\td3\t1\nq2\td1\t0\n",
    "TREC": "q1\t0\td1\t2\nq1\t0\td2\t1\nq2\t0\td3\t1\nq2\t0\td1\t0\n",
    "TREC, blanks": "q1 0 d1 2\nq1 0 d2 1\nq2 0 d3 1\nq2 0 d1 0\n",
}


@pytest.mark.parametrize("form", QRELS)
def test_a_beir_folder_is_read_as_it_is(tmp_path: Path, form: str) -> None:
    corpus = [
        {"_id": "d1", "title": "Cards", "text": "arrive by mail", "metadata": {"url": "x"}},
        {"_id": "d2", "title": "", "text": "Call us"},
        {"_id": "d3", "text": "Call us"},
    ]
    queries = [{"_id": f"q{i}", "text": f"question {i}", "metadata": {}} for i in (1, 2, 3)]
    for name, records in (("corpus", corpus), ("queries", queries)):
        lines = [json.dumps(record) for record in records]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(lines) + "\n")
    (tmp_path / "qrels").mkdir()
    (tmp_path / "qrels" / "test.tsv").write_text(QRELS[form])
    data = read_beir(tmp_path)
    assert data.query_ids == ["q1", "q2"] and data.document_ids == ["d1", "d2", "d3"]
    assert data.document_texts.to_pylist() == ["Cards arrive by mail", "Call us", "Call us"]
    found = {
        query: {data.document_ids[d]: float(g) for d, g in zip(*data.relevant(i), strict=True)}
        for i, query in enumerate(data.query_ids)
    }
    assert found == {"q1": {"d1": 2.0, "d2": 1.0}, "q2": {"d3": 1.0}}
