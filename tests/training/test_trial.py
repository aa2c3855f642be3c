"""What a loss cannot do is found on the driver, before a worker, a trial step or a run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from ftray.config import FitConfig
from ftray.errors import ConfigError, DataError
from ftray.models.registry import load_encoder
from ftray.models.surgery import Surgery
from ftray.models.width import ends_normalised, known_width
from ftray.training.job import Job, prepare

WIDE = {"loss": "MultipleNegativesRankingLoss", "dims": [33, 8]}
TAUGHT: list[dict[str, Any]] = [
    {"query": f"q{i}", "document": f"d{i}", "negative": f"n{i}", "score": 5.0 + i} for i in range(8)
]
TRIPLETS = [{key: row[key] for key in ("query", "document", "negative")} for row in TAUGHT]


def prepared(model: Path, **fields: Any) -> Job:
    given = {"train_data": TAUGHT, "num_workers": 0, "batch_size": 4, **fields}
    return prepare(FitConfig(model=str(model), **given), "")


def refused(model: Path, **fields: Any) -> str:
    with pytest.raises((ConfigError, DataError)) as caught:
        prepared(model, **fields)
    return str(caught.value)


def test_dims_wider_than_the_model_are_refused(tiny_model: Path) -> None:
    fields = {"loss": "MatryoshkaLoss", "train_data": TRIPLETS}
    message = refused(tiny_model, loss_options=WIDE, **fields)
    assert message == "loss_options.dims: 33, but the model's embeddings have only 32 dimensions"
    assert prepared(tiny_model, loss_options={**WIDE, "dims": [32]}, **fields)
    assert prepared(tiny_model, loss_options=WIDE, output_dim=40, **fields), "the head is wider"
    assert "only 16" in refused(tiny_model, loss_options=WIDE, output_dim=16, **fields)


def test_a_width_that_is_told_is_that_of_the_model(tiny_model: Path, tmp_path: Path) -> None:
    from tests.tiny import tiny_clip

    for folder in (tiny_model, tiny_clip(tmp_path / "clip")):
        width = load_encoder(str(folder)).embedding_dim
        assert known_width(str(folder), {}, Surgery()) == width
    assert ends_normalised(str(tiny_model)) and not ends_normalised(str(tmp_path / "clip"))
    assert known_width("new:pointnet-base", {"output_dim": 7}, Surgery()) == 7
    assert known_width("sentence-transformers/all-MiniLM-L6-v2", {}, Surgery()) == 384
    assert known_width("someone/else", {}, Surgery()) is None
    assert known_width(str(tiny_model), {}, Surgery(output_dim=5)) == 5


def test_options_are_tried_before_a_batch_size_is_measured(tiny_model: Path) -> None:
    fields = {"loss": "TripletMarginLoss", "train_data": TRIPLETS, "batch_size": "auto"}
    message = refused(tiny_model, loss_options={"margin": "x"}, device="cpu", **fields)
    assert message.startswith("loss_options do not fit TripletMarginLoss: ")


@pytest.mark.parametrize(
    ("loss", "options"),
    [
        ("MarginMSELoss", {"similarity": "cosine"}),
        ("MatryoshkaLoss", {"loss": "MarginMSELoss", "dims": [8]}),
    ],
)
def test_margins_that_no_model_reaches_are_refused(
    tiny_model: Path, loss: str, options: dict[str, Any]
) -> None:
    message = refused(tiny_model, loss=loss, loss_options=options)
    assert "the teacher's margins are as wide as 12, but those of cosines" in message
    assert "loss_options: {teacher_temperature: 12}" in message
    narrow = [{**row, "score": row["score"] / 6} for row in TAUGHT]
    assert prepared(tiny_model, loss=loss, loss_options=options, train_data=narrow)


def test_margins_that_this_model_does_not_reach_are_noted(tiny_model: Path) -> None:
    said = [note for note in prepared(tiny_model, loss="MarginMSELoss").notes if "length 1" in note]
    assert len(said) == 1 and "whose margins are 2 at most: MarginMSELoss will not reach" in said[0]
    assert not any("length 1" in n for n in prepared(tiny_model, loss="DistillKLDivLoss").notes)


def test_messages_name_the_loss_that_lacks_something(tiny_model: Path) -> None:
    inner = {"loss": "TripletMarginLoss", "dims": [8, 4]}
    mined = {"loss": "MatryoshkaLoss", "loss_options": inner, "miner": "BatchHardMiner"}
    fields = {"loss": "MultipleLosses", "train_data": TRIPLETS}
    message = refused(tiny_model, loss_options={"losses": [{"loss": "InfoNCE"}, mined]}, **fields)
    assert message.startswith(
        "In loss_options.losses[1]: In loss_options of MatryoshkaLoss: TripletMarginLoss with "
        "miner BatchHardMiner does not learn from given negatives"
    )
    labelled = [{"item": f"t{i}", "label": i % 2} for i in range(8)]
    mix = {"losses": [{"loss": "SupConLoss"}, {"loss": "InfoNCE"}]}
    message = refused(tiny_model, loss_options=mix, **{**fields, "train_data": labelled})
    assert message.startswith("In loss_options.losses[1]: InfoNCE learns from pairs")
    message = refused(tiny_model, loss_options=mix, **{**fields, "train_data": TAUGHT})
    assert "In loss_options.losses[0]: SupConLoss does not learn from these" in message
