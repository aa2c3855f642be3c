"""Low-rank adapters: what gets them, what is trained, and what an artifact holds."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from ftray.errors import ConfigError
from ftray.media import Media
from ftray.models.artifact import save_encoder
from ftray.models.base import Encoder, Item
from ftray.models.lora import add_adapters
from ftray.models.lora_options import check_lora
from ftray.models.registry import load_encoder
from ftray.models.surgery import Surgery
from ftray.training.weights import copied, interpolated
from tests.models.captions import squares
from tests.tiny import (
    tiny_clip,
    tiny_image_model,
    tiny_siglip,
    tiny_text_model,
    tiny_two_towers,
)

PICTURE = Media(modality="image", address="sha256:0", data=squares()[0][1])
TEXTS: list[Item] = [("", "lost card"), ("", "why was my payment declined")]

# model, options, what is encoded, and how many layers get adapters
CASES: dict[str, tuple[str, dict[str, Any], list[Item], int]] = {
    "BERT: query and value": ("bert", {}, TEXTS, 4),
    "BERT: names": ("bert", {"target_modules": ["key", "output.dense"], "r": 2}, TEXTS, 6),
    "BERT: embeddings": ("bert", {"target_modules": ["word_embeddings"]}, TEXTS, 1),
    "BERT: one layer": ("bert", {"layers_to_transform": [1], "use_rslora": True}, TEXTS, 2),
    "two BERTs": ("routes", {}, [("query", "lost card"), ("document", "top up")], 8),
    "CLIP": ("clip", {"exclude_modules": ["fc1"]}, [*TEXTS, ("", PICTURE)], 22),
    "SigLIP, without torch's attention": ("siglip", {}, [*TEXTS, ("", PICTURE)], 27),
    "convolutions": ("resnet", {"target_modules": ["convolution"]}, [("", PICTURE)], 7),
    "vision transformer": ("vit", {"target_modules": "all-linear"}, [("", PICTURE)], 13),
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("models")
    return {
        "bert": tiny_text_model(root / "bert"),
        "routes": tiny_two_towers(root / "routes"),
        "clip": tiny_clip(root / "clip"),
        "siglip": tiny_siglip(root / "siglip"),
        "resnet": tiny_image_model(root / "resnet"),
        "vit": tiny_image_model(root / "vit", "vit"),
    }


def embedded(encoder: Encoder, items: list[Item]) -> Tensor:
    with torch.no_grad():
        return encoder.eval()(encoder.collate(items))


def adapted(encoder: Encoder) -> list[str]:
    """The layers that have adapters."""
    found = [name for name, _ in encoder.named_modules() if name.endswith("base_layer")]
    return [name.removesuffix(".base_layer") for name in found]


def draw(encoder: Encoder, seed: int = 3) -> None:
    """Let the adapters be as if they had been trained."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for name, weight in encoder.named_parameters():
            if "lora_" in name:
                weight.data += 0.2 * torch.randn_like(weight)


@pytest.mark.parametrize("case", CASES)
def test_the_artifact_is_the_plain_model_with_merged_weights(
    folders: dict[str, Path], tmp_path: Path, case: str
) -> None:
    name, options, items, layers = CASES[case]
    encoder = load_encoder(str(folders[name]))
    before = embedded(encoder, items)
    add_adapters(encoder, options, 0)
    assert len(adapted(encoder)) == layers
    assert torch.equal(embedded(encoder, items), before), "adapters begin as nothing"
    trained = [n for n, weight in encoder.named_parameters() if weight.requires_grad]
    assert trained and all(".lora_" in n for n in trained)
    draw(encoder)
    tuned, state = embedded(encoder, items), copied(encoder)
    assert (tuned - before).abs().max() > 0.1
    save_encoder(encoder, tmp_path / "saved")
    plain = load_encoder(str(tmp_path / "saved"))
    assert not adapted(plain) and "lora_" not in " ".join(plain.state_dict())
    scale = float(tuned.abs().max())
    assert (embedded(plain, items) - tuned).abs().max() < 1e-5 * max(scale, 1)
    after = encoder.state_dict()
    assert list(after) == list(state)
    assert all(torch.equal(after[n], tensor) for n, tensor in state.items()), "saving disturbs"
    assert torch.equal(embedded(encoder, items), tuned)


def test_the_adapter_alone_is_pefts(folders: dict[str, Path], tmp_path: Path) -> None:
    from peft import PeftModel
    from transformers import AutoModel

    for name in ("bert", "clip"):
        encoder: Any = load_encoder(str(folders[name]), surgery=Surgery(lora={"r": 4}))
        draw(encoder)
        save_encoder(encoder, tmp_path / name, {"base_model": str(folders[name])})
        base = AutoModel.from_pretrained(str(folders[name]))
        found = PeftModel.from_pretrained(base, str(tmp_path / name / "adapter"))
        assert found.peft_config["default"].base_model_name_or_path == str(folders[name])
        ((_, backbone),) = encoder.backbones.items()
        ours = {n: w for n, w in backbone.named_parameters() if "lora_" in n}
        theirs = {n: w for n, w in found.base_model.model.named_parameters() if "lora_" in n}
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(weight, theirs[n]) for n, weight in ours.items())


def test_two_models_have_an_adapter_each(folders: dict[str, Path], tmp_path: Path) -> None:
    save_encoder(load_encoder(str(folders["routes"]), surgery=Surgery(lora={})), tmp_path)
    assert sorted(p.name for p in (tmp_path / "adapter").iterdir()) == ["document", "query"]


def test_a_static_tower_is_frozen_as_what_has_adapters_is(tmp_path: Path) -> None:
    folder = str(tiny_two_towers(tmp_path, static_queries=True))
    encoder = load_encoder(folder, surgery=Surgery(lora={}))
    trained = {n for n, weight in encoder.named_parameters() if weight.requires_grad}
    assert trained and all(".lora_" in name for name in trained)


def test_what_names_layers_is_carried_out(folders: dict[str, Path]) -> None:
    options = {
        "target_modules": ["query", "key", "value"],
        "exclude_modules": ["key"],
        "rank_pattern": {"query": 2},
        "alpha_pattern": {"1.attention.self.value": 3.0},
        "layers_to_transform": [1],
        "layers_pattern": "layer",
    }
    encoder = load_encoder(str(folders["bert"]), surgery=Surgery(lora=options))
    found = {name.rsplit(".", 1)[-1]: encoder.get_submodule(name) for name in adapted(encoder)}
    layers: dict[str, Any] = found
    assert {name: layer.r["default"] for name, layer in layers.items()} == {"query": 2, "value": 8}
    assert (layers["query"].scaling["default"], layers["value"].scaling["default"]) == (4, 3 / 8)


def test_the_seed_alone_decides_how_adapters_begin(folders: dict[str, Path]) -> None:
    def made(seed: int) -> dict[str, Tensor]:
        torch.rand(seed + 1)  # whatever was drawn before
        return copied(load_encoder(str(folders["bert"]), seed=seed, surgery=Surgery(lora={})))

    first, again, other = made(0), made(0), made(1)
    assert all(torch.equal(first[n], again[n]) for n in first)
    differ = [n for n in first if not torch.equal(first[n], other[n])]
    assert differ and all(".lora_A." in n for n in differ)


def test_what_stands_behind_the_model_is_trained_besides(folders: dict[str, Path]) -> None:
    surgery = Surgery(lora={}, output_dim=8)
    encoder = load_encoder(str(folders["bert"]), surgery=surgery)
    trained = {n for n, weight in encoder.named_parameters() if weight.requires_grad}
    others = [n for n in trained if ".lora_" not in n]
    assert len(trained) == 9 and len(others) == 1 and others[0].startswith(encoder.head_prefix)


def test_a_frozen_tower_gets_no_adapters(folders: dict[str, Path]) -> None:
    clip = load_encoder(
        str(folders["clip"]), options={"frozen": ["text"]}, surgery=Surgery(lora={})
    )
    assert adapted(clip) and not [name for name in adapted(clip) if "text" in name]
    towers = {"text": str(folders["bert"]), "image": str(folders["vit"])}
    both = load_encoder("two-towers", options=towers, surgery=Surgery(lora={}))
    assert {name.split(".")[1] for name in adapted(both)} == {"text", "image"}
    one = load_encoder(
        "two-towers", options={**towers, "frozen": ["image"]}, surgery=Surgery(lora={})
    )
    assert {name.split(".")[1] for name in adapted(one)} == {"text"}
    trained = {n.split(".")[0] for n, w in one.named_parameters() if w.requires_grad}
    assert trained == {"encoders", "projections"}


@contextmanager
def plain_layers(encoder: Encoder) -> Iterator[dict[str, Tensor]]:
    from ftray.models.lora import merged

    with merged(encoder):
        yield copied(encoder)


@pytest.mark.parametrize("target", ["query", "word_embeddings"])
def test_between_two_models_lies_the_product_of_the_factors(
    folders: dict[str, Path], target: str
) -> None:
    """WiSE-FT of A and B each would move the weights by alpha², not by alpha."""
    encoder = load_encoder(
        str(folders["bert"]), surgery=Surgery(lora={"target_modules": [target]})
    ).double()
    initial = copied(encoder)
    draw(encoder)
    tuned = copied(encoder)
    ends = []
    for state in (initial, tuned, interpolated(initial, tuned, 0.25)):
        encoder.load_state_dict(state)
        with plain_layers(encoder) as weights:
            ends.append(weights)
    before, after, between = ends
    moved = 0.0
    for name, weight in between.items():
        wanted = 0.75 * before[name] + 0.25 * after[name] if weight.is_floating_point() else weight
        assert torch.allclose(weight, wanted, rtol=0, atol=1e-12), name
        moved += float((after[name] - before[name]).abs().sum())
    assert moved > 1


MISTAKES: dict[str, tuple[dict[str, Any], str]] = {
    "an option that peft has not": ({"rank": 4}, "no option 'rank'"),
    "a slip": ({"lora_alhpa": 4}, "Did you mean 'lora_alpha'"),
    "an option that cannot be merged": ({"modules_to_save": ["x"]}, "no option 'modules_to_save'"),
    "no rank": ({"r": 0}, "lora.r = 0: input should be greater than or equal to 1"),
    "yes": ({"r": True}, "lora.r = True: a number is expected"),
    "a layer": ({"target_modules": ["quary"]}, "no layer 'quary'. Did you mean 'query'"),
    "an expression": ({"target_modules": "query"}, "no layer whose whole name is like 'query'"),
    "no expression": ({"target_modules": "("}, r"'\(' is no regular expression: missing \)"),
    "nor to exclude": ({"exclude_modules": "("}, r"'\(' is no regular expression: missing \)"),
    "nor of ranks": ({"rank_pattern": {"(": 4}}, r"'\(' is no regular expression: missing \)"),
    "nothing": ({"target_modules": []}, r"target_modules = \[\]: nothing is chosen"),
    "a list of layers": (
        {"target_modules": ["layer"]},
        "'layer' is encoder.layer of '.*', a ModuleList, which can have no adapters",
    ),
    "to exclude": ({"exclude_modules": ["quer"]}, "no layer 'quer' .* Did you mean 'query'"),
    "ranks": ({"rank_pattern": {"quer": 4}}, "called 'quer'. Did you mean 'query'"),
    "ranks of others": ({"rank_pattern": {"key": 4}}, "that has adapters is called 'key'"),
    "alphas": ({"alpha_pattern": {"vlaue": 4}}, "called 'vlaue'. Did you mean 'value'"),
    "a number": ({"layers_to_transform": [0, 99]}, "has no layer 99, but those from 0 to 1"),
    "a pattern": (
        {"layers_to_transform": [0], "layers_pattern": "lyer"},
        "has no such layers. Did you mean 'layer'",
    ),
    "a pattern alone": (
        {"layers_pattern": "layer"},
        "layers_to_transform counts, which is left out",
    ),
    "numbers and all": (
        {"layers_to_transform": [0], "target_modules": "all-linear"},
        "it goes with a list of names, and target_modules is the text 'all-linear'",
    ),
    "two": ({"target_modules": ["query", "vlaue"]}, "no layer 'vlaue'. Did you mean 'value'"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_explained(folders: dict[str, Path], mistake: str) -> None:
    options, words = MISTAKES[mistake]
    with pytest.raises(ConfigError, match=words):
        load_encoder(str(folders["bert"]), surgery=Surgery(lora=options))


def test_what_has_no_transformer_in_it_is_refused(folders: dict[str, Path]) -> None:
    with pytest.raises(ConfigError, match="'convnet' is none: leave lora out"):
        load_encoder("convnet", surgery=Surgery(lora={}))
    towers = {"text": str(folders["bert"]), "image": "convnet"}
    with pytest.raises(ConfigError, match="'convnet' is none"):
        load_encoder("two-towers", options=towers, surgery=Surgery(lora={}))
    with pytest.raises(ConfigError, match=r"freeze = true and lora: .* give one of the two"):
        load_encoder(str(folders["bert"]), surgery=Surgery(lora={}, freeze=True))


def test_without_peft_it_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"pip install 'ftray\[lora\]'"):
        check_lora({}, "text", "minilm")
