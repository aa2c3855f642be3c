"""Shared by all tests: quiet threads, small data, small models."""

from __future__ import annotations

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("RAY_AUTH_MODE", "disabled")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")

import random
from pathlib import Path

import pytest

WORDS = (
    "card bank money lost pin rate cash fee top up app phone alpha beta gamma delta open close "
    "find read write send mail file line code"
).split()


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from tests.tiny import tiny_text_model

    return tiny_text_model(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="session")
def dropout_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from tests.tiny import tiny_text_model

    return tiny_text_model(tmp_path_factory.mktemp("models") / "dropout", dropout=0.2)


@pytest.fixture(scope="session")
def labelled_rows() -> list[dict[str, str]]:
    """96 texts of 8 classes; each class has a word of its own, so that it can be learned."""
    draw = random.Random(0)
    return [
        {
            "text": " ".join([*draw.choices(WORDS, k=draw.randint(2, 9)), WORDS[i % 8]]),
            "label": f"c{i % 8}",
        }
        for i in range(96)
    ]


@pytest.fixture(scope="session")
def pair_rows() -> list[dict[str, str]]:
    """60 pairs; some share a query or a document."""
    draw = random.Random(1)
    rows = [
        {
            "query": " ".join(draw.choices(WORDS, k=4)),
            "document": " ".join(draw.choices(WORDS, k=draw.randint(5, 14))),
        }
        for _ in range(54)
    ]
    rows += [{"query": rows[i]["query"], "document": rows[i + 20]["document"]} for i in range(6)]
    return rows


@pytest.fixture(scope="session")
def labelled_csv(
    tmp_path_factory: pytest.TempPathFactory, labelled_rows: list[dict[str, str]]
) -> Path:
    path = tmp_path_factory.mktemp("data") / "train.csv"
    lines = ["text,label", *(f"{row['text']},{row['label']}" for row in labelled_rows)]
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.fixture(scope="session")
def data_dir() -> Path:
    if "FTRAY_DATA" not in os.environ:
        pytest.skip("FTRAY_DATA is not set: the real data sets are not here")
    return Path(os.environ["FTRAY_DATA"])
