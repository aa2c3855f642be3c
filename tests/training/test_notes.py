"""What the log says before a fit: what was read, what is known already, what a step holds."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from ftray.callbacks import EvaluationCallback
from ftray.config import validated
from ftray.data.dataset import TrainSet, train_set
from ftray.data.readers import read_records
from ftray.training.job import Job, prepare
from ftray.training.notes import data_note, overlap_notes


def rows(*texts: str) -> TrainSet:
    """`text:label` or `query>document` as training rows."""
    records = [
        dict(zip(("query", "document"), text.split(">"), strict=True))
        if ">" in text
        else dict(zip(("text", "label"), text.split(":"), strict=True))
        for text in texts
    ]
    return train_set(read_records(records))


def labelled(classes: int, each: int, prefix: str = "") -> list[dict[str, str]]:
    return [
        {"text": f"{prefix}{c} number {i}", "label": f"c{c}"}
        for c in range(classes)
        for i in range(each)
    ]


def pairs(count: int) -> list[dict[str, str]]:
    return [{"query": f"q{i}", "document": f"d{i}"} for i in range(count)]


def prepared(model: Any, train: Any, **fields: Any) -> Job:
    fields = {"loss": "SupConLoss", "epochs": 1, "batch_size": 16, **fields}
    return prepare(validated({"model": str(model), "train_data": train, **fields}), "runs/x")


def step_note(model: Any, train: Any, **fields: Any) -> str:
    (note,) = (n for n in prepared(model, train, **fields).notes if n.startswith("Each step: "))
    return note


# ---------------------------------------------------------------- what was read


def test_rows_classes_queries_and_documents_are_counted(tiny_model) -> None:
    test = labelled(3, 4, "test ")
    callbacks = [EvaluationCallback(test[:5], test[5:])]
    job = prepared(tiny_model, labelled(3, 16), eval_data=labelled(3, 8), callbacks=callbacks)
    notes = [note for note in job.notes if ": " in note]
    assert any(n.startswith("train_data: ") and "48 texts with 3 labels" in n for n in notes)
    assert any(n.startswith("validation: ") and "24 texts with 3 labels" in n for n in notes)
    assert any(n.startswith("evaluation: ") and "queries: 5, documents: 7" in n for n in notes)


def test_what_is_held_out_is_counted_too() -> None:
    train, val = rows(*(f"{c} {i}:c{c}" for c in range(4) for i in range(8))).split(0.25, 0)
    assert "rows held out for the validation loss: 8 of 32" in data_note("train_data", train)
    assert data_note("validation", val).endswith(": 8 rows of 4 classes")
    _, val = rows(*(f"q{i}>d{i}" for i in range(8))).split(0.25, 0)
    assert data_note("validation", val).endswith(": 2 pairs in 2 groups")


# ---------------------------------------------------------------- what is known already


def test_query_texts_of_the_training_data_are_counted(tiny_model) -> None:
    train, test = labelled(3, 16), labelled(3, 4, "test ")
    callbacks = [
        EvaluationCallback(test, caption="new"),
        EvaluationCallback(train[:7] + test, caption="mixed"),
        EvaluationCallback(test[:6] + train[:1], test, caption="one"),
    ]
    notes = prepared(tiny_model, train, callbacks=callbacks).notes
    assert [n for n in notes if "also stand in" in n] == [
        "7 of 19 query texts of the evaluation 'mixed' also stand in the training data",
        "1 of 7 query texts of the evaluation 'one' also stand in the training data",
    ]


def test_documents_of_the_training_pairs_count_as_training_data(tiny_model) -> None:
    test = [{"query": "d3", "document": "x"}, {"query": "y", "document": "q3"}]
    notes = prepared(
        tiny_model,
        pairs(40),
        loss="InfoNCE",
        callbacks=[EvaluationCallback(test)],
    ).notes
    assert "1 of 2 query texts of the evaluation also stand in the training data" in notes


def test_labelled_validation_rows_count_by_their_text() -> None:
    train, val = rows("a:x", "b:x", "c:y", "d:y"), rows("c:x", "e:y", "a:x")
    assert overlap_notes(train, val, ()) == [
        "2 of 3 validation rows also stand in the training data"
    ]
    assert overlap_notes(train, rows("e:x", "f:y"), ()) == []


def test_validation_pairs_count_by_both_texts() -> None:
    train = rows("a>1", "b>2", "a>3")
    assert overlap_notes(train, rows("a>2", "b>1", "1>a", "z>1", "b>z"), ()) == []
    assert overlap_notes(train, rows("a>2", "a>3", "b>2", "x>y"), ()) == [
        "2 of 4 validation rows also stand in the training data"
    ]


def test_rows_that_were_held_out_are_not_training_data() -> None:
    train, val = rows(*(f"{c} {i}:c{c}" for c in range(4) for i in range(8))).split(0.25, 0)
    assert overlap_notes(train, val, ()) == []


def test_queries_that_were_held_out_are_not_training_data(tiny_model) -> None:
    train = labelled(4, 10)
    job = prepared(tiny_model, train, val_split=0.2, callbacks=[EvaluationCallback(train)])
    assert "32 of 40 query texts of the evaluation also stand in the training data" in job.notes


# ---------------------------------------------------------------- what a step holds


def test_negatives_of_a_query_are_those_of_the_global_batch(tiny_model) -> None:
    everywhere = "whatever the number of workers"
    assert step_note(tiny_model, pairs(40), loss="InfoNCE") == (
        "Each step: 16 pairs; each query is ranked against the 15 other documents of the global "
        f"batch (negatives), {everywhere}"
    )
    assert "ranked against up to 15 other documents" in step_note(
        tiny_model, pairs(40), loss="InfoNCE", sampler="random"
    )


def test_positives_and_negatives_of_a_class_balanced_step(tiny_model) -> None:
    assert step_note(tiny_model, labelled(6, 8), batch_size=16) == (
        "Each step: 4 classes x 4 texts; 3 positives and 12 negatives for each text, "
        "whatever the number of workers"
    )
    few = [*labelled(5, 8), {"text": "rare", "label": "rare"}]
    assert "up to 3 positives and up to 12 negatives" in step_note(tiny_model, few)
    assert "2 classes x 2 texts; 1 positive and 2 negatives" in step_note(
        tiny_model, labelled(2, 8), batch_size=4, num_items_per_class=2
    )


@pytest.mark.parametrize(
    ("loss", "taught"),
    [("MarginMSELoss", True), ("DistillKLDivLoss", True), ("TripletMarginLoss", False)],
)
def test_losses_without_negatives_of_other_rows_leave_no_row_out(
    tiny_model, loss: str, taught: bool
) -> None:
    """Ten queries with twenty negatives each: rows that share a query fill whole steps."""
    rows = [
        {"query": f"q{i % 10}", "document": f"d{i % 10}", "negative": f"n{i}", "score": 0.1}
        for i in range(200)
    ]
    if not taught:
        rows = [{k: v for k, v in row.items() if k != "score"} for row in rows]
    job = prepared(tiny_model, rows, loss=loss, batch_size=32, val_split=0.2)
    val_plan = job.val_plan()
    assert val_plan is not None
    for plan, data in ((job.plan(), job.train), (val_plan, job.val)):
        assert plan.left_out(0) == 0
        sizes = [len(plan.rows(0, step)) for step in range(plan.steps_per_epoch)]
        assert sum(sizes) == len(data)
    assert not any("take turns" in note for note in job.notes)
    fields = {"loss": loss, "batch_size": 32}
    assert step_note(tiny_model, rows, **fields).startswith("Each step: 32 triplets")
    crowded = step_note(tiny_model, rows, **fields, sampler="pairs")
    assert crowded.startswith("Each step: up to 32 triplets")


def test_what_a_step_holds_is_called_by_its_name() -> None:
    images = [{"image": np.full((4, 4), 9 * i, np.uint8), "label": f"c{i % 2}"} for i in range(16)]
    fields = {"batch_size": 8, "num_items_per_class": 4}
    assert "2 classes x 4 images; 3 positives and 4 negatives for each image" in step_note(
        "convnet", images, **fields
    )
    assert "8 images at random; those of its class are an image's positives" in step_note(
        "convnet", images, **fields, sampler="random"
    )
    both = [{"caption": f"text {i}", "image": one["image"]} for i, one in enumerate(images)]
    assert "a positive and up to 14 negatives for each item" in step_note(
        "clip-base-en", both, **fields, sampler="random"
    )


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"loss": "ArcFaceLoss"}, "16 texts, each placed among 6 classes"),
        ({"sampler": "random"}, "16 texts at random; those of its class are a text's positives"),
        ({"miner": "BatchHardMiner", "loss": "TripletMarginLoss"}, "; BatchHardMiner picks among"),
        (
            {"loss": "CrossBatchMemory", "loss_options": {"loss": "SupConLoss"}},
            "those that the loss remembers of the steps before",
        ),
    ],
)
def test_other_losses_samplers_and_miners_have_their_own_words(tiny_model, fields, words) -> None:
    assert words in step_note(tiny_model, labelled(6, 8), **fields)


def test_losses_on_labels_take_the_partner_of_a_pair_for_its_positive(tiny_model) -> None:
    assert "16 pairs; a positive and up to 30 negatives for each text" in step_note(
        tiny_model, pairs(40)
    )


def test_nothing_is_said_of_steps_that_there_will_not_be(tiny_model) -> None:
    notes = prepared(tiny_model, pairs(40), epochs=0).notes
    assert not any("negatives" in note for note in notes)


def test_losses_without_negatives_are_told_as_such(tiny_model) -> None:
    scored = [{**row, "score": i / 40} for i, row in enumerate(pairs(40))]
    note = step_note(tiny_model, scored, loss="CoSENTLoss")
    assert note.startswith("Each step: 16 pairs, ranked by their scores")
    note = step_note(tiny_model, scored, loss="CosineSimilarityLoss")
    assert note.startswith("Each step: 16 pairs, each compared with its score")
    note = step_note(tiny_model, pairs(40), loss="VICRegLoss")
    assert "each compared with itself; there are no negatives" in note
    options = {"loss": "CrossBatchMemory", "loss_options": {"loss": "SupConLoss"}, "dims": [8]}
    note = step_note(tiny_model, labelled(8, 8), loss="MatryoshkaLoss", loss_options=options)
    assert "that the loss remembers of the steps before" in note
