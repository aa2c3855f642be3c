"""Layer-wise learning-rate decay: which layers a model has, and what each of their rates is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from ftray.config import FitConfig
from ftray.errors import ConfigError, FtrayError, ModelError
from ftray.losses.registry import build_loss
from ftray.models.base import Encoder
from ftray.models.registry import load_encoder
from ftray.training.groups import encoder_groups, layers_of
from ftray.training.optim import build_optimizers, check_optimizer
from tests.tiny import tiny_clip, tiny_image_model, tiny_text_model, tiny_two_towers

torch.set_num_threads(1)


def rate_of_each(encoder: nn.Module, decay: float = 0.5) -> dict[str, float]:
    """Names of weights to their rates, of which 1 is the full one."""
    rates = {
        id(p): group["lr"] for group in encoder_groups(encoder, 1.0, decay) for p in group["params"]
    }
    return {name: rates[id(p)] for name, p in encoder.named_parameters() if p.requires_grad}


def of(rates: dict[str, float], part: str) -> set[float]:
    return {rate for name, rate in rates.items() if part in name}


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Encoder:
    return load_encoder(str(tiny_text_model(tmp_path_factory.mktemp("text"))))


def test_a_bert_falls_from_layer_to_layer_to_its_embeddings(text: Encoder) -> None:
    rates = rate_of_each(text)
    (stack,) = layers_of(text)
    count = len(stack.layers)
    assert count >= 2
    for number in range(count):
        assert of(rates, f".layer.{number}.") == {0.5 ** (count - 1 - number)}
    assert of(rates, ".embeddings.") == {0.5**count}


@pytest.mark.parametrize("make", [tiny_text_model, tiny_image_model])
def test_a_head_takes_the_full_rate_wherever_it_is_kept(make: Any, tmp_path: Path) -> None:
    encoder = load_encoder(str(make(tmp_path / "m")))
    known = {name for name, _ in encoder.named_parameters()}
    encoder.attach_head(4)
    rates = rate_of_each(encoder)
    assert {rates[name] for name in rates if name not in known} == {1.0}
    assert min(rates.values()) < 1


def test_each_tower_has_its_own_layers(tmp_path: Path) -> None:
    rates = rate_of_each(load_encoder(str(tiny_clip(tmp_path / "clip"))))
    for tower in ("text_model", "vision_model"):
        assert of(rates, f"{tower}.encoder.layers.1.") == {1.0}
        assert of(rates, f"{tower}.encoder.layers.0.") == {0.5}
        assert of(rates, f"{tower}.embeddings.") == {0.25}
    assert of(rates, "vision_model.pre_layrnorm") == {0.25}
    assert of(rates, "vision_model.post_layernorm") == {1.0}
    assert of(rates, "_projection.") == {1.0}


def test_routes_of_queries_and_documents_are_towers(tmp_path: Path) -> None:
    encoder = load_encoder(str(tiny_two_towers(tmp_path / "two")))
    stacks = layers_of(encoder)
    assert len(stacks) == 2 and len({stack.label for stack in stacks}) == 2
    rates = rate_of_each(encoder)
    assert of(rates, ".embeddings.") == {0.5 ** len(stacks[0].layers)}


@pytest.mark.parametrize(("kind", "lowest"), [("vit", ".embeddings."), ("resnet", ".embedder.")])
def test_images_have_layers_or_stages(tmp_path: Path, kind: str, lowest: str) -> None:
    rates = rate_of_each(load_encoder(str(tiny_image_model(tmp_path / kind, kind))))
    assert max(rates.values()) == 1.0
    assert of(rates, lowest) == {min(rates.values())}
    assert min(rates.values()) <= 0.25


@pytest.mark.parametrize("name", ["convnet", "pointnet-base", "mlp"])
def test_nets_of_ours_have_layers(name: str) -> None:
    options: dict[str, Any] = {"input_size": 4, "hidden_sizes": [5, 5]} if name == "mlp" else {}
    encoder = load_encoder(name, options=options)
    rates = list(rate_of_each(encoder).values())
    assert rates[-1] == 1.0 and rates[0] == min(rates) < 1.0


class Flat(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Linear(2, 2)


def test_a_model_without_layers_says_so() -> None:
    with pytest.raises(ModelError, match=r"no layers can be told apart in 'Flat'. They are to be"):
        encoder_groups(Flat(), 1.0, 0.9)


def test_groups_are_named_so_that_rates_can_be_read(text: Encoder) -> None:
    groups = encoder_groups(text, 1.0, 0.5)
    assert groups[0]["lr"] == 1.0, "the first group's rate is that of the step"
    assert {group["rate_of"] for group in groups} >= {"layer_00", "layer_01", "embeddings"}
    assert len({group["name"] for group in groups}) == len(groups)
    by_rate: dict[str, set[float]] = {}
    for group in groups:
        by_rate.setdefault(group["rate_of"], set()).add(group["lr"])
    assert all(len(rates) == 1 for rates in by_rate.values())
    everything = [id(p) for group in groups for p in group["params"]]
    assert sorted(everything) == sorted(id(p) for p in text.parameters() if p.requires_grad)


@pytest.mark.parametrize("name", ["AdamW", "SGD", "Adafactor", "Rprop"])
def test_any_optimizer_takes_it_and_a_step_moves_lower_layers_less(name: str) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(*(nn.Linear(3, 3) for _ in range(3)))
    config = FitConfig(
        model="m",
        train_data="t",
        optimizer=name,
        learning_rate=0.1,
        optimizer_options={"layer_wise_lr_decay": 0.1},
    )
    loss = build_loss("TripletMarginLoss", {}, embedding_dim=3, n_groups=2, seed=0)
    (optimizer,) = build_optimizers(config, net, loss)
    before = [p.detach().clone() for p in net.parameters()]
    for parameter in net.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    moved = [float((p - b).detach().norm()) for p, b in zip(net.parameters(), before, strict=True)]
    assert moved[0] < moved[2] < moved[4] or name == "Adafactor"


@pytest.mark.parametrize("value", [0, 1.5, -1, True, "0.9"])
def test_a_decay_is_above_zero_and_at_most_one(value: Any) -> None:
    with pytest.raises(ConfigError, match=r"layer_wise_lr_decay = .*: above 0, and at most 1"):
        check_optimizer("AdamW", {"layer_wise_lr_decay": value})


def test_the_loss_has_no_layers() -> None:
    with pytest.raises(FtrayError, match=r"loss_optimizer_options.layer_wise_lr_decay: SGD has no"):
        check_optimizer("SGD", {"layer_wise_lr_decay": 0.9}, where="loss_optimizer", of_loss=True)
