"""How many texts the model will cut, from a sample that costs little."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

import ftray.training.opening as opening
from ftray.callbacks import EvaluationCallback
from ftray.config import validated
from ftray.models.registry import load_encoder
from ftray.models.text import TextEncoder
from ftray.runtime.local import LocalRuntime
from ftray.training.job import prepare
from ftray.training.loop import Loop
from ftray.training.opening import measure_lengths, tell_opening
from tests.tiny import tiny_text_model

LIMIT = 16


@pytest.fixture
def encoder(tiny_model: Path) -> TextEncoder:
    return load_encoder(str(tiny_model), max_length=LIMIT)


def words(*counts: int) -> list[str]:
    """Distinct texts of so many words, each of which is one token, one of them its number."""
    return [" ".join(["card"] * (count - 1) + [str(i % 10)]) for i, count in enumerate(counts)]


def told(
    model: Path, train: list[dict[str, str]], test: list[dict[str, str]] | None = None
) -> list[tuple[str, str]]:
    """Level and message of what is said of lengths."""
    callbacks = [EvaluationCallback(test)] if test else []
    fields = {"loss": "InfoNCE" if "query" in train[0] else "SupConLoss", "batch_size": 4}
    job = prepare(
        validated({"model": str(model), "train_data": train, "callbacks": callbacks, **fields}),
        "runs/x",
    )
    lines: list[tuple[str, str]] = []
    encoder = load_encoder(str(model), max_length=LIMIT)
    tell_opening(job, encoder, lambda message, level: lines.append((level, message)))
    return lines


def labelled(texts: list[str]) -> list[dict[str, str]]:
    return [{"text": text, "label": str(i % 2)} for i, text in enumerate(texts)]


# ---------------------------------------------------------------- counting tokens


def test_tokens_are_those_of_the_whole_text(encoder: TextEncoder) -> None:
    assert encoder.max_tokens() == LIMIT
    texts = ["card", "lost my card", *words(60)]
    assert encoder.token_counts(texts, "") == [3, 5, 62]  # two of them are special tokens
    assert encoder.token_counts(texts, "") == [
        load_encoder(encoder.name, max_length=64).collate([("", text)]).tokens for text in texts
    ]
    assert encoder.collate([("", text) for text in texts]).tokens == 3 + 5 + LIMIT


def test_the_prompt_of_the_role_counts(tmp_path: Path) -> None:
    model = tiny_text_model(tmp_path / "m", prompts={"query": "find: ", "document": ""})
    encoder = load_encoder(str(model))
    assert encoder.token_counts(["card"], "query") == [5]
    assert encoder.token_counts(["card"], "document") == [3]


def test_long_texts_are_counted_without_a_warning(
    encoder: TextEncoder, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    logger = logging.getLogger("transformers")
    logger.addHandler(caplog.handler)
    try:
        assert encoder.token_counts(words(500), "") == [502]
    finally:
        logger.removeHandler(caplog.handler)
    assert caplog.text == "" and capfd.readouterr().err == ""


# ---------------------------------------------------------------- sampling


def test_few_texts_are_all_counted(encoder: TextEncoder) -> None:
    texts = pa.array(words(3, 14, 15, 40))
    found = measure_lengths(encoder, [("", texts)], LIMIT)
    assert found == (4, 4, 2, 2, 42)


def test_many_texts_are_sampled_the_same_every_time(
    encoder: TextEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(opening, "SAMPLED", 50)
    monkeypatch.setattr(opening, "LONGEST", 10)
    looked_at: list[str] = []
    count = encoder.token_counts
    monkeypatch.setattr(
        encoder, "token_counts", lambda texts, role: looked_at.extend(texts) or count(texts, role)
    )
    texts = pa.array([f"{text} {i}" for i, text in enumerate(words(*([5, 30] * 200), 100))])
    found = measure_lengths(encoder, [("", texts)], LIMIT)
    assert (found.texts, found.sampled) == (401, 50)
    assert 15 < found.cut < 35 and found.cut < found.known_cut <= 60
    assert found.longest > 100
    assert len(looked_at) == len(set(looked_at)) <= 60
    first, looked_at[:] = list(looked_at), []
    assert measure_lengths(encoder, [("", texts)], LIMIT) == found and looked_at == first


def test_no_more_is_tokenised_than_takes_seconds(
    encoder: TextEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(opening, "MAX_CHARACTERS", 600)
    found = measure_lengths(encoder, [("", pa.array(words(*[20] * 60)))], LIMIT)
    assert found.texts == 60 and 1 <= found.sampled <= 6 and found.cut == found.sampled
    monkeypatch.setattr(opening, "MAX_CHARACTERS", 1)
    assert measure_lengths(encoder, [("", pa.array(words(20, 30)))], LIMIT).longest == 32


# ---------------------------------------------------------------- the lines


def test_share_and_longest_of_training_and_evaluation_texts(tiny_model: Path) -> None:
    train, test = labelled(words(*[5] * 29, 20, 30, 70)), labelled(words(*[6] * 7, 40))
    assert told(tiny_model, train[::-1], test) == [
        ("INFO", opening_line("23.1 % of the training texts (3 of 13)", 72)),
        ("INFO", opening_line("12.5 % of the evaluation texts (1 of 8)", 42)),
    ]


def opening_line(who: str, longest: int) -> str:
    cut = f"are longer than {LIMIT} tokens (max_length) and will be cut"
    return f"{who} {cut}; the longest has {longest}"


def test_what_is_sampled_is_called_so(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(opening, "SAMPLED", 8)
    texts = [f"{text} {i}" for i, text in enumerate(words(*[20] * 30))]
    (line,) = told(tiny_model, labelled(texts))
    assert line[1].startswith("100.0 % of the training texts (8 of 8 sampled) are longer than 16")


def test_a_few_long_texts_are_found_among_many(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(opening, "SAMPLED", 2)
    texts = [f"{text} {i}" for i, text in enumerate(words(*[4] * 200, 70))]
    (line,) = told(tiny_model, labelled(texts))
    assert line[0] == "INFO"
    assert line[1].startswith("Few training texts (at least 1 of 201) are longer than 16 tokens")


def test_nobody_is_bothered_where_everything_fits(tiny_model: Path) -> None:
    train = labelled(words(*range(2, 12)))
    assert told(tiny_model, train) == [
        (
            "DEBUG",
            "None of 10 training texts is longer than 16 tokens (max_length); the longest has 13",
        )
    ]


def test_texts_held_out_for_validation_are_not_training_texts(tiny_model: Path) -> None:
    model = load_encoder(str(tiny_model), max_length=LIMIT)
    fields = {"model": str(tiny_model), "loss": "SupConLoss", "batch_size": 4, "val_split": 0.5}
    job = prepare(
        validated({"train_data": labelled([f"card {i}" for i in range(40)]), **fields}), "runs/x"
    )
    lines: list[str] = []
    tell_opening(job, model, lambda message, level: lines.append(message))
    assert lines == [
        "None of 20 training texts is longer than 16 tokens (max_length); the longest has 5"
    ]


def test_roles_with_prompts_are_counted_apart(tmp_path: Path) -> None:
    model = tiny_text_model(tmp_path / "m", prompts={"query": "find " * 14, "document": ""})
    train = [{"query": f"card {i}", "document": f"bank {i}"} for i in range(8)]
    (line,) = told(model, train)
    assert line[1].startswith("50.0 % of the training texts (8 of 16) are longer")


def test_a_model_without_a_limit_cuts_nothing(tiny_model: Path) -> None:
    encoder = load_encoder(str(tiny_model))
    encoder.model.max_seq_length = int(1e30)
    assert encoder.max_tokens() is None


# ---------------------------------------------------------------- who looks, and when


class SecondRank(LocalRuntime):
    """Rank 1, as far as the opening goes."""

    rank = 1


@pytest.mark.parametrize(("runtime", "looks"), [(LocalRuntime, True), (SecondRank, False)])
def test_only_rank_0_looks(
    tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch, runtime: Any, looks: bool
) -> None:
    asked: list[str] = []
    monkeypatch.setattr(
        TextEncoder,
        "token_counts",
        lambda self, texts, role: asked.append(role) or [3] * len(texts),
    )
    fields = {"model": str(tiny_model), "loss": "SupConLoss", "batch_size": 4}
    job = prepare(
        validated({"train_data": labelled(words(*range(2, 12))), **fields}), f"{tmp_path}/run"
    )
    Loop(
        job, runtime(load_encoder(str(tiny_model)).device, (), lambda e: None, lambda: None)
    )._begin()
    assert bool(asked) is looks


def test_the_card_of_a_hub_model_is_read_again_once_it_is_loaded(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sentences = iter([(None, ""), ("mit", "The base model's licence: mit")])
    monkeypatch.setattr("ftray.training.job.read_licence", lambda place: next(sentences))
    monkeypatch.setattr(opening, "read_licence", lambda place: next(sentences))
    assert told(tiny_model, labelled(words(*range(2, 12))))[0] == (
        "INFO",
        "The base model's licence: mit",
    )
