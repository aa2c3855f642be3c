"""Models with a tower for queries and one for documents: sentence-transformers', and trained."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import ftray
from ftray.api import get_model
from ftray.callbacks import EvaluationCallback
from ftray.errors import ModelError
from ftray.evaluation.encode import encode_texts
from ftray.models.live import copy_model
from ftray.models.registry import load_encoder
from ftray.models.routes import local_towers
from ftray.models.text import TextEncoder
from tests.tiny import tiny_text_model, tiny_two_towers

TEXTS = [
    "card bank",
    "where is my money please tell me now",
    "a",
    "the transfer was declined and i want to know why it was",
    "",
]
ROLES = ("query", "document", "")
MODELS: dict[str, dict[str, Any]] = {
    "plain": {},
    "static queries": {"static_queries": True},
    "prompts": {"prompts": {"query": "find the answer: "}},
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("models")
    return {name: tiny_two_towers(root / name, **options) for name, options in MODELS.items()}


def theirs(folder: Path | str) -> dict[str, Any]:
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(str(folder), device="cpu")
    ways = (model.encode_query, model.encode_document, model.encode)
    return {role: encode(TEXTS) for role, encode in zip(ROLES, ways, strict=True)}


@pytest.mark.parametrize("name", MODELS)
def test_each_role_goes_the_way_it_goes_in_sentence_transformers(
    folders: dict[str, Path], name: str
) -> None:
    encoder, expected = get_model(folders[name]), theirs(folders[name])
    for role in ROLES:
        found = encode_texts(encoder, TEXTS, role=role)
        assert np.abs(found - expected[role]).max() < 1e-6, role
    assert np.abs(expected["query"] - expected["document"]).max() > 0.1
    assert encoder.towers == ("query", "document") and encoder.roles_differ


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("layout", ["padded", "bucketed"])
def test_a_batch_of_both_roles_is_what_each_is_alone(
    folders: dict[str, Path], name: str, layout: Any
) -> None:
    encoder = load_encoder(str(folders[name])).double().eval()
    items = [(role, text) for text in TEXTS for role in ROLES]
    together = encoder(encoder.collate(items, layout))
    alone = torch.cat([encoder(encoder.collate([item], layout)) for item in items])
    assert torch.allclose(together, alone, atol=1e-12, rtol=0)


@pytest.mark.parametrize("name", MODELS)
def test_both_towers_learn_and_the_artifact_is_the_same_model(
    folders: dict[str, Path], tmp_path: Path, pair_rows: list[dict[str, str]], name: str
) -> None:
    run = ftray.fit(
        model=str(folders[name]),
        train_data=pair_rows,
        loss="MultipleNegativesRankingLoss",
        learning_rate=1e-3,
        epochs=2,
        batch_size=16,
        num_workers=0,
        storage_path=str(tmp_path),
        listeners=[],
        callbacks=[EvaluationCallback(pair_rows)],
    )
    metrics = run.metrics()
    assert metrics["after"]["ndcg_at_k"] > metrics["before"]["ndcg_at_k"] + 0.03
    trained = get_model(run.artifact_id)
    before, after = theirs(folders[name]), theirs(run.artifact_id.removeprefix("file://"))
    for role in ROLES:
        assert np.abs(encode_texts(trained, TEXTS, role=role) - after[role]).max() < 1e-6
        assert np.abs(after[role] - before[role])[:4].max() > 1e-4, "this tower learned as well"
    direct = ftray.evaluate(trained, pair_rows)
    assert direct == pytest.approx(metrics["after"], abs=1e-12)


def test_a_fit_on_labels_says_which_tower_learns(
    folders: dict[str, Path], tiny_model: Path, tmp_path: Path, labelled_rows: list[dict[str, str]]
) -> None:
    def run_of(model: Path) -> ftray.Run:
        return ftray.fit(
            model=str(model),
            train_data=labelled_rows,
            loss="SupConLoss",
            learning_rate=1e-3,
            epochs=1,
            num_workers=0,
            storage_path=str(tmp_path),
            listeners=[],
        )

    run = run_of(folders["plain"])
    assert "Only the tower 'document' is trained: labelled texts have no queries" in run.logs()
    before, after = theirs(folders["plain"]), theirs(run.artifact_id.removeprefix("file://"))
    moved = {role: np.abs(after[role] - before[role]).max() for role in ROLES}
    assert moved["query"] < 1e-6 and moved["document"] > 1e-4
    assert "Only the tower" not in run_of(tiny_model).logs()


def test_towers_may_read_texts_of_different_lengths(folders: dict[str, Path]) -> None:
    encoder = get_model(folders["static queries"], max_length=16)
    assert [encoder.max_tokens(role) for role in ROLES] == [None, 16, 16]
    assert encoder.token_counts(["card bank"], "query") == [2]
    assert encoder.token_counts(["card bank"], "document") == [4]  # with [CLS] and [SEP]
    features = encoder.collate([("query", "card bank"), ("document", "card bank card")])
    assert (features.tokens, len(features.forwards)) == (2 + 5, 2)
    assert get_model(folders["plain"], max_length=16).max_tokens("query") == 16


def test_a_limit_is_refused_where_nothing_can_be_limited(tmp_path: Path) -> None:
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import StaticEmbedding

    tokenizer = SentenceTransformer(str(tiny_text_model(tmp_path / "a"))).tokenizer
    static = SentenceTransformer(modules=[StaticEmbedding(tokenizer, embedding_dim=8)])
    static.save(str(tmp_path / "b"), create_model_card=False)
    expected = static.encode(TEXTS)
    assert np.abs(encode_texts(get_model(tmp_path / "b"), TEXTS) - expected).max() < 1e-6
    with pytest.raises(ModelError, match=r"max_length = 16: '.*b' takes texts of any length"):
        get_model(tmp_path / "b", max_length=16)


def test_the_length_of_queries_is_read_as_sentence_transformers_reads_it(tmp_path: Path) -> None:
    folder = tiny_text_model(tmp_path / "short")
    assert get_model(folder).towers == local_towers(str(folder)) == ()
    options = json.loads((folder / "sentence_bert_config.json").read_text())
    (folder / "sentence_bert_config.json").write_text(json.dumps({**options, "query_length": 8}))
    encoder, expected = get_model(folder), theirs(folder)
    assert (encoder.max_tokens("query"), encoder.max_tokens("document")) == (8, 64)
    assert encoder.towers == ("query", "document") and local_towers(str(folder)) is None
    for role in ROLES:
        assert np.abs(encode_texts(encoder, TEXTS, role=role) - expected[role]).max() < 1e-6
    assert np.abs(expected["query"] - expected["document"])[3].max() > 1e-2


def test_what_cannot_be_compared_is_refused(tmp_path: Path) -> None:
    folder = tiny_two_towers(tmp_path / "widths", query_dim=16)
    with pytest.raises(ModelError, match="have the width 16 for queries and 32 for documents"):
        load_encoder(str(folder))


def test_a_role_without_a_route_is_refused(tmp_path: Path) -> None:
    folder = tiny_two_towers(tmp_path / "no default", default_route=None)
    encoder = get_model(folder)
    assert encode_texts(encoder, TEXTS, role="query").shape == (5, 32)
    message = "has no route for texts without a role, as labelled data has: its routes are 'query'"
    with pytest.raises(ModelError, match=message):
        encode_texts(encoder, TEXTS)
    config = folder / "router_config.json"
    config.write_text(config.read_text().replace('"query": [', '"QRY": ['))
    with pytest.raises(ModelError, match="has no route for the role 'query': its routes are 'QRY'"):
        load_encoder(str(folder))


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"prompts": {"query": "find: "}},
        {"prompts": {"query": "find: ", "document": "find: "}},
        {"prompts": {"document": "text: "}},
    ],
)
def test_towers_are_known_before_the_model_is_loaded(
    tmp_path: Path, options: dict[str, Any]
) -> None:
    folder = tiny_text_model(tmp_path / "model", **options)
    assert local_towers(str(folder)) == get_model(folder).towers


def test_towers_that_only_the_model_itself_knows_are_unknown(folders: dict[str, Path]) -> None:
    for place in (str(folders["plain"]), "some/hub-id", "s3://bucket/model"):
        assert local_towers(place) is None


def test_a_folder_of_transformers_alone_has_one_tower(tmp_path: Path) -> None:
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(str(tiny_text_model(tmp_path / "a")), device="cpu")
    model[0].model.save_pretrained(str(tmp_path / "b"))
    model.tokenizer.save_pretrained(str(tmp_path / "b"))
    assert local_towers(str(tmp_path / "b")) == get_model(tmp_path / "b").towers == ()


def test_the_fingerprint_of_a_model_object_knows_its_routes(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.base.modules import Router

    def fingerprint(**options: Any) -> str:
        model = SentenceTransformer(str(folders["plain"]), device="cpu")
        towers = dict(model[0].sub_modules.items())
        towers["query"][1].pooling_mode = options.pop("pooling", "mean")
        router = Router({name: list(parts) for name, parts in towers.items()}, **options)
        built = SentenceTransformer(modules=[router, model[1]], device="cpu")
        return copy_model(built, tmp_path / str(len(list(tmp_path.iterdir())))).fingerprint

    mapped = {"route_mappings": {("query", "text"): "query", (None, None): "document"}}
    found = [fingerprint(), fingerprint(), fingerprint(pooling="cls"), fingerprint(**mapped)]
    assert found[0] == found[1] and len(set(found)) == 3


def test_models_of_one_tower_are_not_asked_for_a_task(tiny_model: Path) -> None:
    encoder: TextEncoder = get_model(tiny_model)
    features = encoder.collate([("query", "card bank"), ("document", "card")], "padded")
    assert len(features.forwards) == 1 and "task" not in features.forwards[0]
