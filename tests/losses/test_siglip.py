"""The pairwise sigmoid loss against its formula, and against transformers' SigLIP."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor

from ftray.errors import ConfigError
from ftray.losses.base import LossInputs, Shard
from ftray.losses.registry import build_loss
from ftray.losses.sigmoid import SigLIPLoss

torch.set_num_threads(1)

WHOLE = Shard()
DISTINCT = [[0, 1], [2, 3], [4, 5], [6, 7], [8, 9]]
SHARED = [[0, 1], [0, 2], [3, 1], [4, 0], [5, 6], [7, 7], [8, 7]]


def batch(text_ids: list[list[int]], seed: int = 0) -> tuple[Tensor, LossInputs]:
    """Random float64 embeddings of the distinct texts, and the pairs that they form."""
    ids = torch.tensor(text_ids)
    texts, columns = ids.unique(return_inverse=True)
    draw = torch.Generator().manual_seed(seed)
    embeddings = torch.randn(len(texts), 8, dtype=torch.float64, generator=draw)
    inputs = LossInputs(
        labels=torch.zeros(len(texts), dtype=torch.long),
        label_items=torch.arange(len(texts)),
        columns=columns,
        text_ids=ids,
    )
    return embeddings.requires_grad_(), inputs


def formula(embeddings: Tensor, inputs: LossInputs, temperature: float, bias: float) -> Tensor:
    """Zhai et al. 2023, equation 1, without the terms of pairs that share a text."""
    unit = embeddings / embeddings.norm(dim=1, keepdim=True)
    pairs, texts = inputs.columns.tolist(), [set(row) for row in inputs.text_ids.tolist()]
    terms = []
    for i, (query, _) in enumerate(pairs):
        for j, (_, document) in enumerate(pairs):
            if i == j or not texts[i] & texts[j]:
                z = 1 if i == j else -1
                logit = unit[query] @ unit[document] / temperature + bias
                terms.append(torch.log(1 / (1 + torch.exp(-z * logit))))
    return -torch.stack(terms).sum() / len(pairs)


@pytest.mark.parametrize("text_ids", [DISTINCT, SHARED], ids=["distinct", "shared"])
@pytest.mark.parametrize(("temperature", "bias"), [(0.1, -10.0), (0.5, 1.5)])
def test_it_is_its_formula(text_ids: list[list[int]], temperature: float, bias: float) -> None:
    embeddings, inputs = batch(text_ids)
    loss = SigLIPLoss(temperature, bias).double()(embeddings, inputs, WHOLE)
    expected = formula(embeddings, inputs, temperature, bias)
    torch.testing.assert_close(loss, expected, rtol=1e-6, atol=0)
    (gradient,) = torch.autograd.grad(loss, embeddings)
    (expected_gradient,) = torch.autograd.grad(expected, embeddings)
    torch.testing.assert_close(gradient, expected_gradient, rtol=1e-5, atol=1e-8)


def test_it_starts_where_siglip_started() -> None:
    loss = build_loss("SigLIPLoss", {}, embedding_dim=8, n_groups=2, seed=0)
    assert isinstance(loss, SigLIPLoss)
    assert float(loss.log_scale.detach()) == pytest.approx(math.log(10))
    assert loss.scalars() == pytest.approx({"temperature": 0.1, "bias": -10})
    fixed = SigLIPLoss(learnable=False)
    assert fixed.scalars() == {} and not any(p.requires_grad for p in fixed.parameters())
    with pytest.raises(ConfigError, match=r"loss_options\.temperature = 0: a positive number"):
        SigLIPLoss(0)


@pytest.mark.parametrize("text_ids", [DISTINCT, SHARED], ids=["distinct", "shared"])
@pytest.mark.parametrize("world_size", [2, 3, 9])
def test_shards_sum_to_the_whole(text_ids: list[list[int]], world_size: int) -> None:
    embeddings, inputs = batch(text_ids)
    loss = SigLIPLoss(0.3, -1).double()
    over = [embeddings, *loss.parameters()]
    whole = loss(embeddings, inputs, WHOLE)
    parts = [
        loss(embeddings, inputs, Shard(rank=rank, world_size=world_size))
        for rank in range(world_size)
    ]
    torch.testing.assert_close(sum(parts), whole, rtol=1e-12, atol=1e-12)
    gradients = torch.autograd.grad(whole, over)
    found = [torch.autograd.grad(part, over) for part in parts]
    for i, gradient in enumerate(gradients):
        assert gradient.abs().max() > 0
        total = torch.stack([each[i] for each in found]).sum(0)
        torch.testing.assert_close(total, gradient, rtol=1e-11, atol=1e-11)


def test_it_is_the_loss_of_transformers(tmp_path: Path) -> None:
    """`SiglipModel(return_loss=True)`, with the scale and the bias of that model."""
    from transformers import AutoModel

    from ftray.models.registry import load_encoder
    from tests.models.captions import squares
    from tests.models.pictures import picture
    from tests.tiny import tiny_siglip

    folder = tiny_siglip(tmp_path)
    model = AutoModel.from_pretrained(folder).double().eval()
    with torch.no_grad():
        model.logit_scale.fill_(1.3), model.logit_bias.fill_(-2.0)
    encoder = load_encoder(str(folder)).double().eval()
    # words that its tokenizer knows: no two texts may have the same tokens
    texts = ["a card", "money", "bank transfer", "time to pay", "phone"]
    items = [("", text) for text in texts]
    items += [("", picture(data)) for _, data in squares()[: len(texts)]]
    features = encoder.collate(items)
    embeddings = encoder(features)
    text, image = features.forwards
    theirs = model(
        input_ids=text["input_ids"], pixel_values=image["pixel_values"].double(), return_loss=True
    )
    n = len(texts)
    columns = torch.stack([torch.arange(n), torch.arange(n) + n], dim=1)
    inputs = LossInputs(
        labels=torch.arange(n), label_items=torch.arange(n), columns=columns, text_ids=columns
    )
    loss = SigLIPLoss(math.exp(-1.3), -2).double()
    ours = loss(embeddings, inputs, WHOLE)
    torch.testing.assert_close(ours, theirs.loss, rtol=1e-6, atol=0)
    ours.backward()
    theirs.loss.backward()
    for number, name in ((loss.log_scale, "logit_scale"), (loss.bias, "logit_bias")):
        assert number.grad is not None
        torch.testing.assert_close(number.grad, getattr(model, name).grad[0], rtol=1e-5, atol=0)
    own = dict(encoder.model.named_parameters())
    for name, weight in model.named_parameters():
        if weight.grad is not None and not name.startswith("logit"):
            torch.testing.assert_close(own[name].grad, weight.grad, rtol=1e-5, atol=1e-9)
