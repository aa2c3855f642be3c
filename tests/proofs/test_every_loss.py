"""Contract 2, wide: every loss and miner, any number of workers, any size of micro batch.

The list is in `every_loss.py`. What one process computes in one forward is also compared with plain
autograd, so that agreement is not agreement on something wrong. Four workers, and micro batches of
one text, take minutes on two cores: `make test-slow` has them.
"""

from __future__ import annotations

import contextlib
from typing import Any

import numpy as np
import pytest
import torch

from ftray.losses.metric import METRIC_LOSSES, MINERS
from ftray.losses.registry import LOSS_NAMES
from ftray.models.registry import load_encoder
from ftray.runtime.process_group import SingleProcess
from ftray.training import step as steps
from ftray.training.step import LOSS_STREAM, forward_backward, loss_inputs, own_texts, seeded
from tests.proofs.every_loss import (
    ENTRIES,
    SEED,
    Entry,
    Outcome,
    data_of,
    gradient,
    run_table,
    step_rows,
)
from tests.proofs.gloo import run_ranks
from tests.tiny import tiny_text_model

TOLERANCE = 1e-9
NOTHING = 1e-12
SIZES: list[int | None] = [None, 3]
SLOW_SIZES: list[int | None] = [1]
"""Of micro batches, None for the whole."""
ALONE = SingleProcess(torch.device("cpu"))

pytestmark = pytest.mark.filterwarnings("ignore:Using a non-tuple sequence")  # HistogramLoss


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tiny_text_model(tmp_path_factory.mktemp("model")))


@pytest.fixture(scope="module")
def payload(model: str, one_thread: None) -> dict[str, Any]:
    return {"model": model, "entries": ENTRIES, "sizes": SIZES}


@pytest.fixture(scope="module")
def alone(payload: dict[str, Any]) -> dict[Any, Outcome]:
    """What one process computes."""
    return run_table(ALONE, payload)


@pytest.fixture(scope="module")
def two(payload: dict[str, Any]) -> list[dict[Any, Outcome]]:
    """What each of two ranks returned."""
    return run_ranks(2, run_table, payload, 300)


@pytest.fixture(scope="module")
def one_slowly(payload: dict[str, Any]) -> dict[Any, Outcome]:
    """What one process computes, one text at a time."""
    return run_table(ALONE, {**payload, "sizes": SLOW_SIZES})


@pytest.fixture(scope="module")
def two_slowly(payload: dict[str, Any]) -> list[dict[Any, Outcome]]:
    """What each of two ranks returned, one text at a time."""
    return run_ranks(2, run_table, {**payload, "sizes": SLOW_SIZES}, 300)


@pytest.fixture(scope="module")
def four(payload: dict[str, Any]) -> list[dict[Any, Outcome]]:
    """What each of four ranks returned, with every size."""
    return run_ranks(4, run_table, {**payload, "sizes": SIZES + SLOW_SIZES}, 300)


def differences(got: Outcome, want: Outcome) -> dict[str, float]:
    """How far one is from the other: each vector relative to its own norm, losses to themselves."""
    vectors = {"losses": np.array(want.losses), **want.vectors}
    found = {}
    for name, vector in vectors.items():
        other = np.array(got.losses) if name == "losses" else got.vectors[name]
        norm, distance = float(np.linalg.norm(vector)), float(np.linalg.norm(other - vector))
        found[name] = distance / norm if norm > NOTHING else distance
    return found


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: entry.name)
@pytest.mark.parametrize("size", SIZES, ids=lambda size: f"micro {size or 'whole'}")
def test_training_is_the_same_for_any_micro_batches(
    alone: Any, entry: Entry, size: int | None
) -> None:
    check_same([alone[entry.name, size]], alone[entry.name, None])


@pytest.mark.slow
@pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: entry.name)
def test_training_is_the_same_one_text_at_a_time(
    alone: Any, one_slowly: Any, two_slowly: Any, entry: Entry
) -> None:
    for ranks in ([one_slowly], two_slowly):
        check_same([table[entry.name, 1] for table in ranks], alone[entry.name, None])


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: entry.name)
@pytest.mark.parametrize("size", SIZES, ids=lambda size: f"micro {size or 'whole'}")
def test_training_is_the_same_for_two_workers(
    two: Any, alone: Any, entry: Entry, size: int | None
) -> None:
    check_same([table[entry.name, size] for table in two], alone[entry.name, None])


@pytest.mark.slow
@pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: entry.name)
@pytest.mark.parametrize("size", SIZES + SLOW_SIZES, ids=lambda size: f"micro {size or 'whole'}")
def test_training_is_the_same_for_four_workers(
    four: Any, alone: Any, entry: Entry, size: int | None
) -> None:
    check_same([table[entry.name, size] for table in four], alone[entry.name, None])


def check_same(ranks: list[Outcome], want: Outcome) -> None:
    found = differences(ranks[0], want)
    assert max(found.values()) < TOLERANCE, found
    assert len({rank.digest for rank in ranks}) == 1, "the ranks drift apart"
    assert all(np.isfinite(ranks[0].losses))


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: entry.name)
def test_the_first_step_is_plain_autograd(alone: Any, model: str, entry: Entry) -> None:
    """One padded forward, the loss as the library computes it, `backward`."""
    got = alone[entry.name, None]
    encoder = load_encoder(model).double().train()
    rows = step_rows(entry)[0]
    loss = entry.build(encoder.embedding_dim, data_of(entry)[0].n_groups).train()
    embeddings = encoder(encoder.collate(rows.texts, "padded"))
    inputs = loss_inputs(rows, torch.device("cpu"))
    with seeded(SEED, 0, 0, LOSS_STREAM):
        if entry.data in ("triplets", "negatives") and entry.loss in METRIC_LOSSES:
            queries, documents, *negatives = inputs.columns.T
            given = [(queries, documents, column) for column in negatives]
            triplets = tuple(map(torch.cat, zip(*given, strict=True)))
            value = loss.inner(embeddings, indices_tuple=triplets)
        elif entry.loss in METRIC_LOSSES:
            picked = embeddings[inputs.label_items]
            mined = loss.miner(picked, inputs.labels) if entry.miner else None
            value = loss.inner(picked, inputs.labels, mined)
        else:
            value = loss(embeddings, inputs, steps.shard_of(ALONE))
    value.backward()
    assert got.losses[0] == pytest.approx(float(value.detach()), rel=TOLERANCE)
    assert abs(got.losses[0]) > NOTHING, "a step that teaches nothing proves nothing"
    for name, module in (("encoder", encoder), ("loss", loss)):
        want = gradient(module)
        distance = np.linalg.norm(got.vectors[f"{name} gradient 0"] - want)
        assert distance <= TOLERANCE * np.linalg.norm(want), name


@pytest.mark.slow
def test_some_ranks_have_no_texts(four: Any) -> None:
    ranks = [table[ENTRIES[0].name, 1] for table in four]
    assert [min(rank.texts) for rank in ranks].count(0) == 1


def test_the_list_is_whole(alone: Any) -> None:
    """Every loss and miner on offer; several forwards; losses that learn."""
    assert {entry.loss for entry in ENTRIES} == set(LOSS_NAMES)
    assert {entry.miner for entry in ENTRIES} - {None} == MINERS
    assert sum(rank.forwards for rank in alone.values()) > 10 * len(ENTRIES)
    learned = {
        entry.loss
        for entry in ENTRIES
        if np.linalg.norm(alone[entry.name, None].vectors["loss update"])
    }
    assert learned >= {"ArcFaceLoss", "CLIPLoss", "MarginLoss", "SoftTripleLoss", "P2SGradLoss"}
    assert "SigLIPLoss" in learned


# ------------------------------------------------------------------ the second pass


@pytest.fixture(scope="module")
def dropped(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tiny_text_model(tmp_path_factory.mktemp("dropout"), dropout=0.3)
    return load_encoder(str(folder)).double().train()


def gradients(encoder: Any, size: int | None, *, replay: bool = True) -> tuple[float, np.ndarray]:
    entry = Entry("SupConLoss")
    rows = step_rows(entry)[0]
    own = own_texts(encoder, rows, "bucketed", ALONE, size)
    loss = entry.build(encoder.embedding_dim, 4)
    context = contextlib.nullcontext() if replay else pytest.MonkeyPatch.context()
    with context as patch:
        if patch is not None:  # every forward draws anew
            patch.setattr(steps, "seeded", lambda *_: contextlib.nullcontext())
        result = forward_backward(encoder, loss, rows, own, ALONE, seed=(1, 2, 3))
    flat = torch.cat([p.grad.reshape(-1) for p in encoder.parameters() if p.grad is not None])
    return result.loss, flat.numpy()


def test_the_second_pass_drops_what_the_first_one_dropped(dropped: Any) -> None:
    """With dropout, the cached gradient is that of one pass whose graphs are kept."""
    rows = step_rows(Entry("SupConLoss"))[0]
    own = own_texts(dropped, rows, "bucketed", ALONE, 5)
    loss = Entry("SupConLoss").build(dropped.embedding_dim, 4)
    for parameter in dropped.parameters():
        parameter.grad = None
    kept = []
    for number, micro in enumerate(own.micro_batches):
        with seeded(1, 2, 3, 0, number):
            kept.append(dropped(micro.features))
    order = torch.from_numpy(np.concatenate([m.places for m in own.micro_batches]))
    embeddings = torch.cat(kept)[torch.argsort(order)]
    value = loss(embeddings, loss_inputs(rows, torch.device("cpu")), steps.shard_of(ALONE))
    value.backward()
    parts = [p.grad.reshape(-1) for p in dropped.parameters() if p.grad is not None]
    want = torch.cat(parts).numpy().copy()
    got_loss, got = gradients(dropped, 5)
    assert got_loss == pytest.approx(float(value.detach()), rel=1e-12)
    assert np.linalg.norm(got - want) < TOLERANCE * np.linalg.norm(want)
    _, other = gradients(dropped, 5, replay=False)
    assert np.linalg.norm(other - want) > 0.01 * np.linalg.norm(want)


def test_a_micro_batch_keeps_no_graph_in_the_first_pass(dropped: Any) -> None:
    """At most `micro_batch_size` texts hold activations at a time."""
    widest, graphs = [], []
    real = type(dropped).forward

    def forward(self: Any, features: Any) -> torch.Tensor:
        embeddings = real(self, features)
        widest.append(len(embeddings))
        graphs.append(embeddings.requires_grad)
        return embeddings

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(dropped), "forward", forward)
        gradients(dropped, 5)
        assert (widest, graphs) == ([4] * 6, [False] * 3 + [True] * 3)
        widest.clear(), graphs.clear()
        gradients(dropped, None)
        assert (widest, graphs) == ([12], [True])
