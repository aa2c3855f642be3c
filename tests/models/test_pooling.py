"""Generalised-mean pooling: its definition, its gradient, and where it is kept."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Dense, Normalize
from sentence_transformers.sentence_transformer.modules import Pooling
from torch import Tensor

from ftray.errors import ConfigError, ModelError
from ftray.evaluation.encode import encode_texts
from ftray.models.artifact import save_encoder
from ftray.models.base import Encoder
from ftray.models.pooling import generalised_mean
from ftray.models.registry import load_encoder
from tests.models.pictures import random_pictures
from tests.tiny import tiny_image_model, tiny_text_model, tiny_two_towers

TEXTS = ["card bank", "where is my money please tell me now", "a", ""]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_text_model(tmp_path_factory.mktemp("models") / "text")


def drawn(n: int = 5, length: int = 7, dim: int = 4) -> tuple[Tensor, Tensor]:
    """Features of any sign and a mask that hides other features, larger than all."""
    rng = torch.Generator().manual_seed(0)
    features = torch.randn(n, length, dim, generator=rng, dtype=torch.float64)
    lengths = torch.tensor([1, 2, length, 4, 3])[:n]
    mask = (torch.arange(length) < lengths[:, None]).long()
    return torch.where(mask[:, :, None] == 1, features, 1e6 * features.abs()), mask


def oracle(row: np.ndarray, p: float) -> np.ndarray:
    """Of one item, `(l, D)`, without a mask, as the formula is written."""
    least = np.minimum(row.min(0), 0)
    return least + ((row - least) ** p).mean(0) ** (1 / p)


@pytest.mark.parametrize("p", [1.0, 1.5, 3.0, 10.0])
def test_it_is_the_formula_over_the_positions_that_count(p: float) -> None:
    features, mask = drawn()
    got = generalised_mean(features, torch.tensor([p]).double(), mask).numpy()
    for row, real, found in zip(features.numpy(), mask.numpy(), got, strict=True):
        assert np.allclose(found, oracle(row[real == 1], p), rtol=1e-9)


def test_of_features_that_are_not_negative_it_is_the_authors() -> None:
    features, mask = drawn()
    authors = features.clamp(min=1e-6).pow(3).mul(mask[:, :, None]).sum(1)
    authors = (authors / mask.sum(1, keepdim=True)).pow(1 / 3)
    got = generalised_mean(features.clamp(min=1e-6), torch.tensor([3.0]).double(), mask)
    assert torch.allclose(got, authors, rtol=1e-9)


def test_at_one_it_is_the_mean_and_far_out_the_maximum() -> None:
    features, mask = drawn()
    hidden = mask[:, :, None] == 0
    mean = features.masked_fill(hidden, 0).sum(1) / mask.sum(1, keepdim=True)
    largest = features.masked_fill(hidden, -torch.inf).amax(1)
    assert torch.allclose(generalised_mean(features, torch.ones(1).double(), mask), mean)
    far = generalised_mean(features, torch.tensor([2000.0]).double(), mask)
    assert torch.allclose(far, largest, rtol=0, atol=0.01)


def test_its_gradient_is_that_of_finite_differences_and_never_large() -> None:
    features, mask = drawn()
    features = features.clamp(-3, 3).requires_grad_()
    p = torch.tensor([2.5], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x, q: generalised_mean(x, q, mask), (features, p))
    generalised_mean(features, p, mask).sum().backward()
    assert float(features.grad.abs().max()) < 1 + 1e-9  # type: ignore[union-attr]
    assert not features.grad[mask == 0].any()  # type: ignore[index]


@pytest.mark.parametrize("p", [1.0, 0.5, -2.0])
def test_below_one_it_is_the_mean_and_may_come_back(p: float) -> None:
    features, mask = drawn()
    features.requires_grad_()
    exponents = [torch.tensor([q], dtype=torch.float64, requires_grad=True) for q in (p, 1.0)]
    found = [generalised_mean(features, q, mask) for q in exponents]
    assert torch.equal(*found)
    found[0].sum().backward()
    assert float(features.grad.abs().max()) <= 1  # type: ignore[union-attr]
    found[1].sum().backward()
    assert exponents[0].grad == exponents[1].grad != 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("scale", [0.0, 1e-6, 1.0, 6e4])
@pytest.mark.parametrize("p", [0.001, 1.0, 3.0, 100.0])
def test_nothing_overflows(dtype: torch.dtype, scale: float, p: float) -> None:
    features, mask = drawn()
    mask[1] = 0  # such as a text of which only the prompt is left
    small = (features.clamp(-1, 1) * scale).to(dtype).requires_grad_()
    exponent = torch.tensor([p], requires_grad=True)
    got = generalised_mean(small, exponent, mask)
    got.float().sum().backward()
    assert got.dtype == dtype
    for value in (got, small.grad, exponent.grad):
        assert torch.isfinite(value).all()  # type: ignore[arg-type]


# ------------------------------------------------------------------ text models


def vectors(encoder: Encoder, role: str = "") -> np.ndarray:
    return encode_texts(encoder, TEXTS, role=role)


@pytest.mark.parametrize("how", ["mean", "max", "cls", "lasttoken", "weightedmean"])
def test_the_other_poolings_are_those_of_sentence_transformers(
    folder: Path, tmp_path: Path, how: str
) -> None:
    encoder = load_encoder(str(folder), options={"pooling": how})
    save_encoder(encoder, tmp_path)
    theirs = SentenceTransformer(str(tmp_path), device="cpu")
    assert theirs[1].pooling_mode == how
    assert np.abs(theirs.encode(TEXTS) - vectors(encoder)).max() < 1e-6
    expected = SentenceTransformer(
        str(tiny_text_model(tmp_path / "made", pooling=how)), device="cpu"
    )
    assert np.abs(expected.encode(TEXTS) - vectors(encoder)).max() < 1e-6


def test_gem_of_a_text_does_not_depend_on_what_it_is_padded_with(folder: Path) -> None:
    encoder = load_encoder(str(folder), options={"pooling": "gem"}).double().eval()
    items = [("", text) for text in TEXTS]
    with torch.no_grad():
        together = encoder(encoder.collate(items, "padded"))
        alone = torch.cat([encoder(encoder.collate([item])) for item in items])
        bucketed, packed = (encoder(encoder.collate(items, how)) for how in ("bucketed", "packed"))  # type: ignore[arg-type]
    for other in (alone, bucketed, packed):
        assert float((together - other).abs().max()) < 1e-12
    plain = load_encoder(str(folder))
    assert np.abs(vectors(plain) - together.float().numpy()).max() > 0.01


def test_an_artifact_with_gem_loads_in_ftray_and_sentence_transformers_refuses_it(
    folder: Path, tmp_path: Path
) -> None:
    encoder = load_encoder(str(folder), options={"pooling": "gem", "pooling_p": 2.0})
    with torch.no_grad():
        encoder.get_parameter("model.1.gem.p").fill_(4.5)  # as if it had been learnt
    save_encoder(encoder, tmp_path)
    again = load_encoder(str(tmp_path))
    assert float(again.get_parameter("model.1.gem.p").detach()) == 4.5
    assert np.array_equal(vectors(encoder), vectors(again))
    kept = load_encoder(str(tmp_path), options={"pooling": "gem"})
    assert float(kept.get_parameter("model.1.gem.p").detach()) == 4.5
    # the same YAML continues from the artifact
    same = load_encoder(str(tmp_path), options={"pooling": "gem", "pooling_p": 2.0})
    assert float(same.get_parameter("model.1.gem.p").detach()) == 4.5
    with pytest.raises(ConfigError, match=r"pooling_p = 3: '.*' was made with 2, which"):
        load_encoder(str(tmp_path), options={"pooling": "gem", "pooling_p": 3.0})
    note = json.loads((tmp_path / "ftray.json").read_text())["note"]
    assert "SentenceTransformer(folder) refuses it" in note
    with pytest.raises(ValueError, match="not part of Sentence Transformers"):
        SentenceTransformer(str(tmp_path), device="cpu")
    trusting = SentenceTransformer(str(tmp_path), device="cpu", trust_remote_code=True)
    assert np.abs(trusting.encode(TEXTS) - vectors(again)).max() < 1e-6


def test_the_code_of_a_folder_is_not_run(folder: Path, tmp_path: Path) -> None:
    """ftray loads its own class, and neither a class of a file beside the weights nor another's."""
    save_encoder(load_encoder(str(folder), options={"pooling": "gem"}), tmp_path)
    for name in ("ftray.models.stack", "stack"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('it ran')", encoding="utf-8")
    load_encoder(str(tmp_path))
    modules = json.loads((tmp_path / "modules.json").read_text())
    modules[1]["type"] = "stack.GeMPooling"
    (tmp_path / "modules.json").write_text(json.dumps(modules), encoding="utf-8")
    with pytest.raises(ModelError, match="cannot be loaded"):
        load_encoder(str(tmp_path))


def test_both_towers_get_it(tmp_path: Path) -> None:
    folder = tiny_two_towers(tmp_path / "towers")
    encoder = load_encoder(str(folder), options={"pooling": "gem"})
    assert sum(name.endswith("gem.p") for name, _ in encoder.named_parameters()) == 2
    save_encoder(encoder, tmp_path / "again")
    again = load_encoder(str(tmp_path / "again"))
    for role in ("query", "document"):
        assert np.array_equal(vectors(encoder, role), vectors(again, role))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"pooler": "gem"}, "Finetuner's pooler is called 'pooling' here"),
        ({"pooling": "GeM"}, r"pooling = 'GeM'"),
        ({"pooling_p": 2.0}, "belongs to pooling: gem, and not to auto"),
        ({"pooling": "gem", "pooling_p": 0.5}, "pooling_p = 0.5"),
    ],
)
def test_what_it_does_not_take(folder: Path, options: Any, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        load_encoder(str(folder), options=options)


def test_a_model_that_does_not_pool_tokens_has_no_pooling(tmp_path: Path) -> None:
    folder = tiny_two_towers(tmp_path / "towers", static_queries=True)
    static = SentenceTransformer(str(folder), device="cpu")[0].sub_modules["query"]
    SentenceTransformer(modules=list(static), device="cpu").save(str(tmp_path / "static"))
    with pytest.raises(ConfigError, match="does not pool tokens"):
        load_encoder(str(tmp_path / "static"), options={"pooling": "mean"})


def test_a_pooling_of_another_width_is_refused_where_a_layer_follows(
    folder: Path, tmp_path: Path
) -> None:
    parts = list(SentenceTransformer(str(folder), device="cpu"))
    both = [parts[0], Pooling(32, ("mean", "max"))]
    SentenceTransformer(modules=[*both, Dense(64, 16)], device="cpu").save(str(tmp_path / "dense"))
    said = "pooling = 'cls' gives 32 numbers, but the Dense that follows in '.*' takes the 64 of"
    with pytest.raises(ConfigError, match=said):
        load_encoder(str(tmp_path / "dense"), options={"pooling": "cls"})
    SentenceTransformer(modules=[*both, Normalize()], device="cpu").save(str(tmp_path / "last"))
    narrow = load_encoder(str(tmp_path / "last"), options={"pooling": "cls"})
    assert narrow.own_dim == vectors(narrow).shape[1] == 32


# ------------------------------------------------------------------ image models


def of_pictures(encoder: Encoder) -> Tensor:
    encoder.eval()
    with torch.no_grad():
        return encoder(encoder.collate([("", one) for one in random_pictures(3)]))


@pytest.mark.parametrize("kind", ["resnet", "vit"])
def test_a_vision_model_pools_its_last_layer(tmp_path: Path, kind: str) -> None:
    folder = str(tiny_image_model(tmp_path / kind, kind))
    at_one = load_encoder(folder, options={"pooling": "gem", "pooling_p": 1.0})
    mean = load_encoder(folder, options={"pooling": "mean"})
    assert torch.allclose(of_pictures(at_one), of_pictures(mean), atol=1e-6)
    encoder = load_encoder(folder, options={"pooling": "gem"})
    (p,) = (weight for name, weight in encoder.named_parameters() if name == "pooling.p")
    with torch.no_grad():
        p.fill_(5.0)
    save_encoder(encoder, tmp_path / "again")
    again = load_encoder(str(tmp_path / "again"))
    want = of_pictures(encoder)
    assert torch.equal(of_pictures(again), want)
    assert not torch.allclose(of_pictures(again), of_pictures(mean), atol=1e-3)
    assert "GeM" in json.loads((tmp_path / "again" / "ftray.json").read_text())["note"]
    for same in ({"pooling": "gem", "pooling_p": 3.0}, {"pooling": "auto"}):
        assert torch.equal(of_pictures(load_encoder(str(tmp_path / "again"), options=same)), want)
    with pytest.raises(ConfigError, match=r"pooling_p = 2.0: '.*' was made with 3.0"):
        load_encoder(str(tmp_path / "again"), options={"pooling_p": 2.0})


def test_a_convnet_pools_its_maps(tmp_path: Path) -> None:
    options = {"channels": [4, 8], "pooling": "gem", "pooling_p": 2.0}
    encoder = load_encoder("convnet", options=options)
    save_encoder(encoder, tmp_path)
    assert load_file(tmp_path / "model.safetensors")["pooling.gem.p"].tolist() == [2.0]
    assert torch.equal(of_pictures(load_encoder(str(tmp_path))), of_pictures(encoder))
    assert encoder.get_parameter("net.output.weight").shape == (64, 8)
