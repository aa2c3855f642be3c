"""ONNX graphs: what onnxruntime computes is what the model does, with and without ftray."""

from __future__ import annotations

import json
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from pyarrow import fs
from torch import nn

import ftray
from ftray.errors import ConfigError, FtrayError, ModelError, StorageError
from ftray.models.artifact import save_encoder, write_artifact
from ftray.models.base import Encoder
from ftray.models.module import ModuleParts, keep_module
from ftray.models.onnx import GraphSession, load_onnx
from ftray.models.onnx_export import (
    _compare,
    _origin,
    _read,
    _take_along,
    check_exportable,
    check_kind,
    write_onnx,
)
from ftray.models.onnx_graphs import Graph, forwards_of
from ftray.models.registry import load_encoder, locate_model
from ftray.models.surgery import Surgery
from ftray.record.storage import Storage
from tests.models.test_packing import OTHERS, OWN, made
from tests.tiny import (
    tiny_clip,
    tiny_image_model,
    tiny_siglip,
    tiny_text_model,
    tiny_two_towers,
)

onnxruntime = pytest.importorskip("onnxruntime")

PROMPTS = {"query": "find: ", "document": "a text: "}
TEXTS = ["pay", "where is my card?", "long " * 80, "Top up £20, please; naïve café", "x y z"]
SAME = 1e-4
"""Of embeddings of about length one."""


def far(one: np.ndarray, other: np.ndarray) -> float:
    assert one.shape == other.shape and np.ptp(one) > 0.01
    return float(np.abs(one - other).max() / max(1.0, np.abs(one).max()))


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A text model with prompts and a head, exported."""
    folder = tmp_path_factory.mktemp("onnx")
    base = tiny_text_model(folder / "base", prompts=PROMPTS)
    encoder = load_encoder(str(base), surgery=Surgery(output_dim=12))
    assert ftray.to_onnx(encoder, folder / "text") == [folder / "text" / "onnx" / "model.onnx"]
    return folder / "text"


@pytest.fixture(scope="module")
def mlp(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The smallest of all."""
    folder = tmp_path_factory.mktemp("onnx") / "mlp"
    encoder = load_encoder("mlp", options={"input_size": 5, "hidden_sizes": [4], "l2": True})
    ftray.to_onnx(encoder, folder)
    return folder


# ---------------------------------------------------------------- without ftray


def test_onnxruntime_and_the_tokenizer_alone_give_the_embeddings(text: Path) -> None:
    """Batch sizes and lengths that nothing was traced with; prompts are put before the texts."""
    from sentence_transformers import SentenceTransformer
    from transformers import AutoTokenizer

    session = onnxruntime.InferenceSession(str(text / "onnx" / "model.onnx"))
    tokenizer = AutoTokenizer.from_pretrained(str(text))
    theirs = SentenceTransformer(str(text), device="cpu")
    for texts in (TEXTS, TEXTS[:1], TEXTS[2:3], TEXTS * 3):
        prompted = [PROMPTS["query"] + text for text in texts]
        tokens = tokenizer(
            prompted, padding=True, truncation=True, max_length=64, return_tensors="np"
        )
        (found,) = session.run(["sentence_embedding"], dict(tokens))
        assert far(theirs.encode_query(texts), found) < SAME


def test_inputs_and_outputs_have_the_names_that_others_look_for(text: Path) -> None:
    """Optimum reads `last_hidden_state` of `onnx/model.onnx`, and these names of axes."""
    from transformers import AutoModel, AutoTokenizer

    session = onnxruntime.InferenceSession(str(text / "onnx" / "model.onnx"))
    shapes = {value.name: value.shape for value in session.get_inputs()}
    assert set(shapes) == {"input_ids", "attention_mask", "token_type_ids"}
    assert {tuple(shape) for shape in shapes.values()} == {("batch_size", "sequence_length")}
    outputs = {value.name: value.shape for value in session.get_outputs()}
    assert outputs == {
        "sentence_embedding": ["batch_size", 12],
        "last_hidden_state": ["batch_size", "sequence_length", 32],
    }
    tokens = AutoTokenizer.from_pretrained(str(text))(TEXTS[1], return_tensors="pt")
    with torch.no_grad():
        want = AutoModel.from_pretrained(str(text)).eval()(**tokens).last_hidden_state
    feed = {name: value.numpy() for name, value in tokens.items()}
    (found,) = session.run(["last_hidden_state"], feed)
    assert far(want.numpy(), found) < SAME


def test_a_graph_tells_nothing_of_the_machine(text: Path) -> None:
    held = (text / "onnx" / "model.onnx").read_bytes()
    for told in (str(Path(ftray.__file__).parent), str(Path(torch.__file__).parent), str(text)):
        assert told.encode() not in held
    assert b'File "' not in held and b"stack_trace" not in held


# ---------------------------------------------------------------- with ftray


@pytest.mark.parametrize("role", ["query", "document", ""])
def test_a_loaded_graph_encodes_as_the_model_does(text: Path, role: str) -> None:
    model, graph = ftray.get_model(text), ftray.get_model(text, is_onnx=True)
    assert graph.embedding_dim == 12 and graph.max_tokens() == 64 and graph.roles_differ
    want = ftray.encode(model, TEXTS, role=role)
    assert far(want, ftray.encode(graph, TEXTS, role=role)) < SAME
    assert far(want, ftray.encode(graph, TEXTS, role=role, batch_size=1)) < SAME
    assert ftray.encode(graph, []).shape == (0, 12)


def test_a_loaded_graph_is_evaluated_as_the_model_is(text: Path) -> None:
    rows = [{"text": f"{w} number {i}", "label": w} for w in ("card", "pay") for i in range(6)]
    found = [ftray.evaluate(ftray.get_model(text, is_onnx=x), rows) for x in (False, True)]
    assert found[0] == pytest.approx(found[1]) and found[0]["ndcg_at_k"] > 0


def test_the_weights_of_the_model_are_let_go(text: Path) -> None:
    graph = ftray.get_model(text, is_onnx=True)
    assert {weight.device.type for weight in graph.parameters()} == {"meta"}
    assert graph.device.type == "cpu"
    with pytest.raises(ModelError, match="compute in float32, not in bfloat16"):
        ftray.encode(graph, TEXTS, precision="bf16")
    with pytest.raises(ModelError, match="was loaded as ONNX"):
        ftray.to_onnx(graph, text.with_name("again"))
    with pytest.raises(ModelError, match="was loaded as ONNX"):
        graph.save(text)


def test_a_tower_is_selected(text: Path) -> None:
    """Here a role: prompts make two of one graph."""
    tower = ftray.get_model(text, "query", is_onnx=True)
    want = ftray.encode(ftray.get_model(text), TEXTS, role="query")
    assert far(want, ftray.encode(tower, TEXTS)) < SAME
    with pytest.raises(ConfigError, match=r"'image': .* has the towers"):
        ftray.get_model(text, "image", is_onnx=True)


def test_options_that_the_graph_does_not_follow_are_refused(text: Path) -> None:
    with pytest.raises(ConfigError, match=r"model_options.pooling: .* prompts alone can be given"):
        ftray.get_model(text, is_onnx=True, model_options={"pooling": "max"})
    with pytest.raises(ConfigError, match="Did you mean 'pooling'"):
        ftray.get_model(text, is_onnx=True, model_options={"poling": "max"})
    other = {"model_options": {"prompts": {"query": "another: "}}}
    found = [ftray.get_model(text, is_onnx=x, **other) for x in (False, True)]
    embeddings = [ftray.encode(model, TEXTS, role="query") for model in found]
    assert far(*embeddings) < SAME
    plain = ftray.encode(ftray.get_model(text, is_onnx=True), TEXTS, role="query")
    assert far(plain, embeddings[1]) > SAME


def test_a_gpu_that_onnxruntime_cannot_use_is_no_cpu(mlp: Path) -> None:
    if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        pytest.skip("this onnxruntime computes on GPUs")
    with pytest.raises(ModelError, match=r"device = 'cuda': .* Install onnxruntime-gpu"):
        ftray.get_model(mlp, is_onnx=True, device="cuda")
    things = np.ones((2, 5), "float32")
    assert ftray.encode(ftray.get_model(mlp, is_onnx=True, device="auto"), things).shape == (2, 4)


def test_a_graph_goes_to_other_processes(mlp: Path) -> None:
    graph = load_onnx(str(mlp))
    things = np.random.default_rng(0).standard_normal((3, 5)).astype("float32")
    again: Encoder = pickle.loads(pickle.dumps(graph))
    want = ftray.encode(load_encoder(str(mlp)), things)
    assert far(want, ftray.encode(graph, things)) < SAME
    assert np.array_equal(ftray.encode(again, things), ftray.encode(graph, things))


def test_a_graph_at_a_uri(mlp: Path) -> None:
    things = np.random.default_rng(0).standard_normal((3, 5)).astype("float32")
    graph = load_onnx(f"file://{mlp}")
    assert far(ftray.encode(load_encoder(str(mlp)), things), ftray.encode(graph, things)) < SAME


# ---------------------------------------------------------------- the folder


def test_what_the_artifact_says_of_its_origin_goes_along(mlp: Path, tmp_path: Path) -> None:
    source = tmp_path / "source"
    facts = {"base_model": "mlp", "run": "runs/default/first", "license": "mit"}
    write_artifact(Storage(str(source)), load_encoder(str(mlp)), facts)
    (source / "artifact" / "README.md").write_text("# A card\n")
    ftray.to_onnx(f"file://{source}/artifact", tmp_path / "target")
    kept = json.loads((tmp_path / "target" / "ftray.json").read_text())
    assert kept == json.loads((source / "artifact" / "ftray.json").read_text())
    assert (tmp_path / "target" / "README.md").read_text() == "# A card\n"
    with pytest.raises(StorageError, match="exists already; nothing is overwritten"):
        ftray.to_onnx(mlp, tmp_path / "target")


def test_the_adapters_beside_merged_weights_go_along(tmp_path: Path) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    encoder = load_encoder(str(tiny_two_towers(tmp_path / "b")), surgery=Surgery(lora={"r": 2}))
    save_encoder(encoder, source)
    with _read(f"file://{source}") as (_, place):
        _take_along(place, target)
    files = sorted(file.relative_to(target) for file in target.rglob("*") if file.is_file())
    assert [file.parts[:2] for file in files] == 2 * [("adapter", "document")] + 2 * [
        ("adapter", "query")
    ]
    assert all((target / file).read_bytes() == (source / file).read_bytes() for file in files)


def test_the_licence_of_a_registered_model_goes_along() -> None:
    place = locate_model("minilm")
    facts = _origin("minilm", place)
    assert facts["base_model"] == "sentence-transformers/all-MiniLM-L6-v2"
    assert facts["license"] == "apache-2.0" and "began_with" not in facts


def test_the_card_of_a_registered_model_goes_along(tmp_path: Path) -> None:
    place = locate_model("minilm")
    _take_along(place, tmp_path / "target")
    assert os.listdir(tmp_path / "target") == ["README.md"]
    assert (tmp_path / "target" / "README.md").read_text() == Path(place, "README.md").read_text()


def test_a_graph_is_compared_once_where_the_roles_are_equal(text: Path, tmp_path: Path) -> None:
    """Inputs of three roles, and of one where there are no prompts."""
    graph = Graph(name="model", role="", modality="text", hidden=True)
    assert len(list(forwards_of(load_encoder(str(text)), graph, 2, 3))) == 3
    plain = load_encoder(str(tiny_text_model(tmp_path / "plain", layers=1)))
    assert len(list(forwards_of(plain, graph, 2, 3))) == 1


def test_an_artifact_with_graphs(mlp: Path, tmp_path: Path) -> None:
    storage = Storage(str(tmp_path))
    write_artifact(storage, load_encoder(str(mlp)), {"base_model": "mlp"}, to_onnx=True)
    assert storage.names("artifact/onnx") == ["model.onnx"]
    write_artifact(storage, load_encoder(str(mlp)), {"base_model": "mlp"})
    assert not storage.exists("artifact/onnx")  # it would be that of other weights


def test_an_artifact_is_not_lost_where_its_graph_fails(tmp_path: Path) -> None:
    storage = Storage(str(tmp_path))
    encoder = load_encoder("pointnet-base", options={"width": 0.1})
    with pytest.raises(
        ModelError, match=r"to_onnx: .*The artifact is there without it: .*artifact"
    ):
        write_artifact(storage, encoder, {"base_model": "pointnet-base"}, to_onnx=True)
    assert load_encoder(storage.path("artifact")).embedding_dim == 512
    assert not storage.exists("artifact/onnx")


@pytest.mark.parametrize("what", ["ftray.models.onnx_graphs._write", "pyarrow.fs.copy_files"])
def test_an_artifact_is_not_lost_where_the_disk_is_full(
    mlp: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    storage, real = Storage(str(tmp_path)), fs.copy_files

    def full(first: Any, target: Any, *rest: Any, **more: Any) -> None:
        if str(target).endswith("artifact"):  # the model's own files
            return real(first, target, *rest, **more)
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(what, full)
    message = "to_onnx: .*No space left on device.* The artifact is there without it: .*artifact"
    with pytest.raises(ModelError, match=message):
        write_artifact(storage, load_encoder(str(mlp)), {"base_model": "mlp"}, to_onnx=True)
    assert load_encoder(storage.path("artifact")).embedding_dim == 4
    assert not storage.exists("artifact/onnx")


def test_a_graph_that_differs_is_refused(mlp: Path, tmp_path: Path) -> None:
    """The graph of other weights, of another width, and of inputs of one size alone."""
    encoder = load_encoder(str(mlp)).eval()
    graph = Graph(name="model", role="", modality="features")
    _compare(encoder, graph, GraphSession(mlp / "onnx" / "model.onnx"))
    with torch.no_grad():
        next(encoder.parameters()).add_(0.01)
    with pytest.raises(ModelError, match=r"gives other embeddings than the model: .* apart on"):
        _compare(encoder, graph, GraphSession(mlp / "onnx" / "model.onnx"))
    other = load_encoder("mlp", options={"input_size": 6})
    with pytest.raises(ModelError, match="does not run on 1 x 6"):
        _compare(other.eval(), graph, GraphSession(mlp / "onnx" / "model.onnx"))


# ---------------------------------------------------------------- what is refused


def test_models_without_a_graph_are_refused_with_the_reason(tmp_path: Path) -> None:
    def refused(encoder: Encoder) -> str:
        with pytest.raises(ModelError) as caught:
            write_onnx(encoder, tmp_path / "target")
        assert not (tmp_path / "target").exists() and not list(tmp_path.glob(".ftray*"))
        return str(caught.value)

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(2, 3)

    parts = ModuleParts(module=Net())
    keep_module(parts, tmp_path / "net")
    assert "torch.onnx.export" in refused(load_encoder(str(tmp_path / "net"), module=parts))
    assert "loops that depend on the cloud" in refused(load_encoder("pointnet-base"))
    prompted = tiny_text_model(tmp_path / "prompted", prompts=PROMPTS, include_prompt=False)
    assert "leaves out the tokens of the prompt" in refused(load_encoder(str(prompted)))
    static = tiny_two_towers(tmp_path / "static", static_queries=True)
    assert "static embeddings take texts end to end" in refused(load_encoder(str(static)))


def test_without_prompts_a_pooling_that_would_leave_them_out_is_no_hindrance(
    tmp_path: Path,
) -> None:
    check_exportable(load_encoder(str(tiny_text_model(tmp_path / "model", include_prompt=False))))


def test_missing_packages_are_named_with_the_line_that_installs_them(
    mlp: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import importlib.util
    import sys

    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "onnxscript" else find(name)
    )
    with pytest.raises(ModelError, match=r"ONNX needs onnxscript, .* pip install 'ftray\[onnx\]'"):
        check_kind("text", "minilm")
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(ModelError, match=r"onnxruntime, not installed .*'ftray\[onnx\]'"):
        load_onnx(str(mlp))


def test_a_folder_without_graphs_says_how_to_get_them(tmp_path: Path) -> None:
    folder = tiny_text_model(tmp_path / "model")
    with pytest.raises(ModelError, match=r"holds no ONNX graphs .* ftray export .*model -o FOLDER"):
        ftray.get_model(folder, is_onnx=True)


@pytest.mark.parametrize("model", ["pointnet-base", "module"])
def test_a_fit_is_refused_before_it_begins(tmp_path: Path, model: str) -> None:
    given: Any = nn.Linear(2, 3) if model == "module" else model
    rows = [{"features": np.ones(2, "float32") * i, "label": f"c{i % 2}"} for i in range(8)]
    with pytest.raises(FtrayError, match="cannot be exported as ONNX"):
        ftray.fit(
            model=given,
            train_data=rows,
            to_onnx=True,
            num_workers=0,
            storage_path=str(tmp_path / "runs"),
            listeners=[],
        )
    assert not list(tmp_path.glob("runs/*/*"))


# ---------------------------------------------------------------- every kind


def two_towers(folder: Path) -> Encoder:
    text, image = tiny_text_model(folder / "t"), tiny_image_model(folder / "i", "vit")
    options = {"text": str(text), "image": str(image), "output_dim": 12}
    return load_encoder("two-towers", options=options)


KINDS: dict[str, Callable[[Path], Encoder]] = {
    "routes": lambda folder: load_encoder(str(tiny_two_towers(folder))),
    "gem": lambda folder: load_encoder(str(tiny_text_model(folder)), options={"pooling": "gem"}),
    "max": lambda folder: load_encoder(str(tiny_text_model(folder)), options={"pooling": "max"}),
    "lora": lambda folder: load_encoder(str(tiny_text_model(folder)), surgery=Surgery(lora={})),
    "clip": lambda folder: load_encoder(str(tiny_clip(folder)), surgery=Surgery(output_dim=9)),
    "siglip": lambda folder: load_encoder(str(tiny_siglip(folder))),
    "resnet": lambda folder: load_encoder(str(tiny_image_model(folder, "resnet"))),
    "vit": lambda folder: load_encoder(
        str(tiny_image_model(folder, "vit")), surgery=Surgery(output_dim=9)
    ),
    "resized": lambda folder: load_encoder(
        str(tiny_image_model(folder, "vit")), options={"image_size": 48, "pooling": "mean"}
    ),
    "dinov2": lambda folder: load_encoder(str(tiny_image_model(folder, "dinov2"))),
    "efficientnet": lambda folder: load_encoder(str(tiny_image_model(folder, "efficientnet"))),
    "convnet": lambda folder: load_encoder("convnet", options={"pooling": "meanmax"}),
    "two-towers": two_towers,
    "minilm": lambda folder: load_encoder("minilm"),
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_model_has_graphs_that_do_what_it_does(tmp_path: Path, kind: str) -> None:
    """Several batches, and queries and documents, or texts and images, in one."""
    encoder = KINDS[kind](tmp_path / "base")
    folder = tmp_path / "made"
    files = ftray.to_onnx(encoder, folder)
    names = {"routes": ["document", "query"]}.get(kind, ["image", "text"])
    one = kind not in ("routes", "clip", "siglip", "two-towers")
    assert sorted(file.stem for file in files) == (["model"] if one else names)
    model, graph = ftray.get_model(folder), ftray.get_model(folder, is_onnx=True)
    draw = np.random.default_rng(0)
    things: list[Any] = list(TEXTS) if "text" in encoder.modalities else []
    if "image" in encoder.modalities:
        for number in range(3):
            pixels = draw.integers(0, 255, (30, 40, 3), np.uint8)
            Image.fromarray(pixels).save(tmp_path / f"{number}.png")
            things.append(str(tmp_path / f"{number}.png"))
    for role in ("query", "document", ""):
        for size in (1, 2, len(things)):
            want = ftray.encode(model, things[:size], role=role)
            assert far(want, ftray.encode(graph, things[:size], role=role)) < SAME
    for name in model.towers:
        towers = [ftray.get_model(folder, name, is_onnx=x) for x in (False, True)]
        own = [thing for thing in things if (thing.endswith(".png")) is (name == "image")]
        found = [ftray.encode(tower, own) for tower in towers]
        assert far(*found) < SAME


ARCHITECTURES = (
    "albert camembert deberta-v2 distilbert electra modernbert mpnet roberta roformer t5 "
    "xlm-roberta"
).split()


@pytest.mark.slow
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_text_models_of_every_architecture_have_a_graph(tmp_path: Path, name: str) -> None:
    """Absolute, relative and rotary positions, and windows of attention; the export compares."""
    encoder = made(tmp_path / "base", name, {**OWN, **OTHERS}[name])
    (file,) = ftray.to_onnx(encoder, tmp_path / "made")
    graph = ftray.encode(ftray.get_model(tmp_path / "made", is_onnx=True), TEXTS)
    assert far(ftray.encode(encoder, TEXTS), graph) < SAME and file.name == "model.onnx"
