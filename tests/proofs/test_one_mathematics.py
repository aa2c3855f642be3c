"""Contract 2: one step's loss, gradients and weights are the same for every number of workers.

The table of steps is in `cases.py`. Each runs through `own_texts` and `forward_backward`, as in
the loop: in this process, and on 2 and (slow) 4 gloo ranks; and, independently of ftray's code, as
plain autograd over one padded forward of all texts.
"""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from ftray.data.dataset import StepRows
from ftray.losses.base import LossInputs, Shard
from ftray.losses.metric import MetricLoss
from ftray.losses.registry import build_loss
from ftray.models.registry import load_encoder
from ftray.models.text import TextEncoder
from ftray.runtime.process_group import SingleProcess
from ftray.training.reduce import deal, gather_rows
from tests.proofs.cases import (
    CASES,
    DATA,
    LAYOUTS,
    MAX_GRAD_NORM,
    MODELS,
    MUTATIONS,
    Case,
    Outcome,
    data_of,
    gather_shares,
    run_table,
)
from tests.proofs.gloo import WORLD_SIZES, Tables, run_ranks
from tests.tiny import tiny_text_model, tiny_two_towers

TOLERANCE = 1e-9
NOTHING = 1e-12
BROADCAST = [None, 0, {"a": [1.5, None], "b": "ü" * 5000}, "", ["x"] * 3]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    root: Path = tmp_path_factory.mktemp("models")
    made = {}
    for i, (name, options) in enumerate(MODELS.items()):
        others = {key: value for key, value in options.items() if key != "two_towers"}
        make = tiny_two_towers if "two_towers" in options else tiny_text_model
        made[name] = str(make(root / str(i), **others))
    return made


@pytest.fixture(scope="module")
def tables(folders: dict[str, str], one_thread: None) -> Tables:
    """World size to what each rank returned."""
    payload = {"models": folders, "cases": CASES, "mutations": [], "broadcast": BROADCAST}
    single = run_table(SingleProcess(torch.device("cpu")), payload)
    return Tables(single, run_table, {**payload, "mutations": list(MUTATIONS)})


@pytest.fixture(scope="module")
def encoders(folders: dict[str, str]) -> dict[str, TextEncoder]:
    return {name: load_encoder(folder).double() for name, folder in folders.items()}


def differences(got: Outcome, want: Outcome) -> dict[str, float]:
    """How far a step is from another: each vector relative to its own norm, the loss to itself."""
    found = {"loss": abs(got.loss - want.loss) / max(abs(want.loss), NOTHING)}
    for name, vector in want.vectors.items():
        norm = float(np.linalg.norm(vector))
        distance = float(np.linalg.norm(got.vectors[name] - vector))
        found[name] = distance / norm if norm > NOTHING else distance
    return found


# ------------------------------------------------------------------ any number of workers


@pytest.mark.parametrize("world_size", WORLD_SIZES)
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_a_step_is_the_same_for_every_number_of_workers(
    tables: Any, case: Case, world_size: int
) -> None:
    want = tables[1][0]["cases"][case.name]
    ranks = [table["cases"][case.name] for table in tables[world_size]]
    found = differences(ranks[0], want)
    assert max(found.values()) < TOLERANCE, found
    assert {rank.with_gradient for rank in ranks} == {want.with_gradient}
    assert len({rank.digest for rank in ranks}) == 1, "the ranks drift apart"
    assert sum(rank.texts for rank in ranks) == want.texts


@pytest.mark.parametrize("case", CASES[:: len(LAYOUTS)], ids=lambda case: case.name)
def test_a_step_is_the_same_in_every_layout(tables: Any, case: Case) -> None:
    assert case.layout == LAYOUTS[0]
    for layout in LAYOUTS[1:]:
        other = Case(case.loss, case.data, case.options, layout, case.model)
        found = differences(tables[1][0]["cases"][other.name], tables[1][0]["cases"][case.name])
        assert max(found.values()) < TOLERANCE, (layout, found)


@pytest.mark.parametrize("world_size", WORLD_SIZES)
@pytest.mark.parametrize("name", MUTATIONS)
def test_a_mistake_is_noticed(tables: Any, name: str, world_size: int) -> None:
    want = tables[1][0]["cases"][MUTATIONS[name][0].name]
    got = tables[world_size][0]["mutations"][name]
    found = differences(got, want)
    assert max(found.values()) > 1000 * TOLERANCE, found


@pytest.mark.parametrize("world_size", WORLD_SIZES)
def test_ranks_have_many_texts_and_of_four_some_have_none(tables: Any, world_size: int) -> None:
    texts = [rank.texts for table in tables[world_size] for rank in table["cases"].values()]
    assert (min(texts) == 0) == (world_size == 4) and max(texts) > 8


def test_the_table_holds_what_it_should(tables: Any) -> None:
    """Several forwards, clipped gradients, and losses with parameters."""
    single = tables[1][0]["cases"]
    assert max(one.forwards for one in single.values()) > 5
    clipped = [one.norm > MAX_GRAD_NORM for one in single.values()]
    assert 0.3 < np.mean(clipped) < 0.9
    for case in CASES:
        outcome = single[case.name]
        learns = case.loss == "ArcFaceLoss" or "learnable" in case.name or case.loss == "CLIPLoss"
        assert bool(len(outcome.vectors["loss gradient"])) == learns
    twice = data_of(Case("SupConLoss", "labelled, texts under two labels"))
    rows = twice.step_rows(np.arange(len(twice)), roles_differ=False)
    assert (len(rows.rows), len(rows.texts), len(rows.labels)) == (14, 12, 14)


# ------------------------------------------------------------------ an independent oracle


def embedded(encoder: TextEncoder, model: str, items: list[tuple[str, str]]) -> Tensor:
    """Embeddings by transformers alone; of two towers, each for its own texts."""
    if model != "two towers":
        return pooled(encoder.model[0], model, items)
    rows, parts = [], []
    for role, tower in encoder.model[0].sub_modules.items():
        own = [i for i, (of_text, _) in enumerate(items) if of_text == role]
        rows += own
        parts.append(pooled(tower[0], model, [items[i] for i in own]))
    return torch.cat(parts)[torch.argsort(torch.tensor(rows))]


def pooled(transformer: Any, model: str, items: list[tuple[str, str]]) -> Tensor:
    """One padded forward, mean over tokens, length 1."""
    prompts = MODELS[model].get("prompts", {})
    tokenizer, bert = transformer.tokenizer, transformer.model
    texts = [prompts.get(role, "") + text for role, text in items]
    tokens = tokenizer(texts, padding=True, return_tensors="pt")
    weight = tokens["attention_mask"].double()
    if model == "unpooled prompts":
        for i, (role, _) in enumerate(items):
            prompt = tokenizer(prompts.get(role, ""), add_special_tokens=False)["input_ids"]
            weight[i, : 1 + len(prompt)] = 0
            if not prompt:
                weight[i, 0] = 1
    hidden = bert(**tokens).last_hidden_state
    mean = (hidden * weight[:, :, None]).sum(1) / weight.sum(1, keepdim=True)
    return mean / mean.norm(dim=1, keepdim=True)


def info_nce(
    queries: Tensor, documents: Tensor, texts: list[tuple[str, str]], scale: Any, symmetric: bool
) -> Tensor:
    total = torch.zeros((), dtype=torch.float64)
    for a, b in [(queries, documents), (documents, queries)][: 1 + symmetric]:
        for i, pair in enumerate(texts):
            others = [j for j, two in enumerate(texts) if j == i or not set(pair) & set(two)]
            logits = scale * (b[others] @ a[i])
            total = total + torch.logsumexp(logits, 0) - logits[others.index(i)]
    return total / len(texts) / (1 + symmetric)


def connected(pairs: list[tuple[str, str]]) -> dict[str, int]:
    """Text to the number of its group, by painting until nothing changes."""
    group = {text: i for i, text in enumerate(itertools.chain(*pairs))}
    for _ in group:
        for a, b in pairs:
            group[a] = group[b] = min(group[a], group[b])
    numbers = {name: i for i, name in enumerate(sorted(set(group.values())))}
    return {text: numbers[name] for text, name in group.items()}


def oracle(encoder: TextEncoder, case: Case) -> tuple[float, np.ndarray, np.ndarray]:
    """Loss, gradient of the encoder, gradient of the loss's parameters, by plain autograd."""
    encoder.requires_grad_(True)  # also of a pooler that no embedding depends on: it is zero
    options = dict(case.options)
    rows = DATA[case.data]
    groups = data_of(case).n_groups
    module = build_loss(
        case.loss, options, embedding_dim=encoder.embedding_dim, n_groups=groups, seed=0
    ).double()
    if "label" in rows[0]:
        items = list(dict.fromkeys(("", row["item"]) for row in rows))
        at = {item: i for i, item in enumerate(items)}
        every = embedded(encoder, case.model, items)
        names = list(dict.fromkeys(row["label"] for row in rows))
        labels = torch.tensor([names.index(row["label"]) for row in rows])
        loss = module.inner(every[[at["", row["item"]] for row in rows]], labels)
    else:
        sides = ("query", "document") if case.model != "plain" else ("", "")
        pairs = [(row["query"], row["document"]) for row in rows]
        items = list(dict.fromkeys(item for pair in pairs for item in zip(sides, pair)))  # noqa: B905
        at = {item: i for i, item in enumerate(items)}
        every = embedded(encoder, case.model, items)
        if isinstance(module, MetricLoss):
            group = connected(pairs)
            loss = module.inner(every, torch.tensor([group[text] for _, text in items]))
        else:
            queries = every[[at[sides[0], q] for q, _ in pairs]]
            documents = every[[at[sides[1], d] for _, d in pairs]]
            symmetric = case.loss != "MultipleNegativesRankingLoss"
            loss = info_nce(queries, documents, pairs, module.log_scale.exp(), symmetric)
    parameters = [*encoder.parameters(), *module.parameters()]
    found = torch.autograd.grad(loss, parameters, allow_unused=True, materialize_grads=True)
    n = len(list(encoder.parameters()))
    flat = [torch.cat([torch.zeros(0).double(), *(g.reshape(-1) for g in part)]).numpy()
            for part in (found[:n], found[n:])]  # fmt: skip
    return float(loss.detach()), flat[0], flat[1]


@pytest.mark.parametrize(
    "case",
    [c for c in CASES if not dict(c.options).get("triplets_per_anchor")],
    ids=lambda case: case.name,
)
def test_a_step_is_plain_autograd(
    tables: Any, encoders: dict[str, TextEncoder], case: Case
) -> None:
    got = tables[1][0]["cases"][case.name]
    loss, encoder_gradient, loss_gradient = oracle(encoders[case.model], case)
    assert got.loss == pytest.approx(loss, rel=TOLERANCE, abs=NOTHING)
    for name, want in (("encoder gradient", encoder_gradient), ("loss gradient", loss_gradient)):
        distance = np.linalg.norm(got.vectors[name] - want)
        norm = np.linalg.norm(want)
        assert distance < TOLERANCE * norm if norm > NOTHING else distance < NOTHING, name


# ------------------------------------------------------------------ the parts


@pytest.mark.parametrize("world_size", [1, 2, 3, 4, 7])
@pytest.mark.parametrize("n", [0, 1, 2, 5, 64])
def test_deal_gives_every_position_once_ascending_and_evenly(n: int, world_size: int) -> None:
    sizes = np.random.default_rng(n).integers(1, 200, n).tolist()
    shares = deal(sizes, world_size)
    assert len(shares) == world_size
    assert sorted(np.concatenate(shares).tolist()) == list(range(n))
    assert all((np.diff(share) > 0).all() for share in shares)
    counts = [len(share) for share in shares]
    assert max(counts) - min(counts) <= 1
    loads = [sum(sizes[i] for i in share) for share in shares]
    assert max(loads) - min(loads) <= 2 * max(sizes, default=0)


@pytest.mark.parametrize("world_size", [1, *WORLD_SIZES])
def test_gather_puts_ragged_rows_in_their_places_on_every_rank(
    tables: Any, world_size: int
) -> None:
    for rank in tables[world_size]:
        for got, (table, _) in zip(rank["gathered"], gather_shares(world_size), strict=True):
            assert got.dtype == table.dtype and torch.equal(got, table)


def test_gather_carries_no_gradient() -> None:
    own = torch.ones(2, 3, requires_grad=True)
    alone = SingleProcess(torch.device("cpu"))
    assert not gather_rows(own, [np.arange(2)], alone).requires_grad


@pytest.mark.parametrize("world_size", [1, *WORLD_SIZES])
def test_broadcast_gives_every_rank_the_value_of_rank_0(tables: Any, world_size: int) -> None:
    for rank in tables[world_size]:
        assert rank["broadcast"] == BROADCAST


def test_an_exception_on_one_rank_fails_the_test_with_its_traceback() -> None:
    with pytest.raises(pytest.fail.Exception, match=r"rank 1 of 2(.|\n)*only rank 1"):
        run_ranks(2, fail_on_rank_1, None)


def fail_on_rank_1(collectives: Any, payload: None) -> None:
    if collectives.rank == 1:
        raise ZeroDivisionError("only rank 1")
    collectives.barrier()


# ------------------------------------------------------------------ why a text is encoded once


def test_a_text_encoded_twice_would_flip_a_reducer() -> None:
    """Losses that average over non-zero terms jump when equal texts differ in the last bit."""
    loss = MetricLoss("ContrastiveLoss", {}, 4, 2).double()
    vectors = functional.normalize(torch.randn(3, 4, generator=torch.Generator().manual_seed(0)))
    once = vectors.double()

    def value(embeddings: Tensor, items: list[int]) -> float:
        inputs = LossInputs(
            labels=torch.tensor([0, 0, 1, 1]),
            label_items=torch.tensor(items),
            columns=torch.zeros(4, 1, dtype=torch.long),
            text_ids=torch.zeros(4, 1, dtype=torch.long),
        )
        return float(loss(embeddings.requires_grad_(), inputs, Shard()).detach())

    nudged = once.clone()
    nudged[0, 0] += 1e-14
    assert value(nudged, [0, 0, 1, 2]) == pytest.approx(value(once, [0, 0, 1, 2]), rel=1e-12)
    twice = torch.cat([nudged[:1], once])
    assert abs(value(twice, [0, 1, 2, 3]) / value(once, [0, 0, 1, 2]) - 1) > 0.1


def test_equal_texts_of_a_step_are_one_item() -> None:
    def items(data: str, *, roles_differ: bool) -> StepRows:
        train = data_of(Case("", data))
        return train.step_rows(np.arange(len(train)), roles_differ=roles_differ)

    for data, roles_differ in itertools.product(DATA, (False, True)):
        rows = items(data, roles_differ=roles_differ)
        assert len(set(rows.texts)) == len(rows.texts)
        cells = [text for row in DATA[data] for key, text in row.items() if key != "label"]
        assert [rows.texts[i][1] for i in rows.columns.ravel()] == cells
        if not roles_differ:
            assert len(rows.texts) == len(set(cells))
    assert len(items("pairs, shared", roles_differ=True).texts) == 18
    assert len(items("pairs, shared", roles_differ=False).texts) == 15
