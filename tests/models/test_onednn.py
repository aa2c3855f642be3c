"""Linear layers by oneDNN, for a while: the same embeddings, and the model as it was."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from ftray.evaluation.encode import encode_texts
from ftray.models import onednn
from ftray.models.onednn import FASTER_FROM, faster_dtypes, use_onednn, with_onednn
from ftray.models.registry import load_encoder

TEXTS = [" ".join(["card", "bank", "lost"][i % 3] for _ in range(1 + i % 7)) for i in range(40)]


@pytest.fixture
def everywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """float32 by oneDNN on any processor."""
    if not torch.backends.mkldnn.is_available():
        pytest.skip("this torch has no oneDNN")
    monkeypatch.setattr(onednn, "faster_dtypes", lambda: frozenset({torch.float32}))


def replaced(model: nn.Module) -> list[nn.Module]:
    return [module for module in model.modules() if "forward" in vars(module)]


def test_values_are_those_of_torch_for_any_shape(everywhere: None) -> None:
    layer = nn.Linear(8, 4)
    values = [torch.randn(8), torch.randn(3, 8), torch.randn(0, 8), torch.randn(2, 3, 8)]
    values += [torch.randn(8, 5).T, torch.randn(3, 16)[:, ::2]]
    for one in (layer, nn.Linear(8, 4, bias=False)):
        plain = [one(value) for value in values]
        with torch.no_grad(), with_onednn(nn.Sequential(one)):
            assert replaced(one)
            for value, expected in zip(values, plain, strict=True):
                torch.testing.assert_close(one(value), expected)


def test_embeddings_are_equal_and_the_model_is_as_it_was(
    everywhere: None, tiny_model: Path
) -> None:
    encoder = load_encoder(str(tiny_model))
    plain = encode_texts(encoder, TEXTS[: FASTER_FROM - 1], batch_size=None)
    seen = []
    encoder.register_forward_hook(lambda *_: seen.append(len(replaced(encoder))))
    faster = encode_texts(encoder, TEXTS, batch_size=None)
    assert seen and all(seen)
    assert not replaced(encoder)
    torch.testing.assert_close(torch.tensor(faster[: len(plain)]), torch.tensor(plain))


def test_a_few_texts_are_not_worth_it(everywhere: None, tiny_model: Path) -> None:
    encoder = load_encoder(str(tiny_model))
    seen = []
    encoder.register_forward_hook(lambda *_: seen.append(len(replaced(encoder))))
    encode_texts(encoder, TEXTS[: FASTER_FROM - 1], batch_size=None)
    assert seen and not any(seen)


def test_the_model_is_as_it_was_after_an_error(everywhere: None) -> None:
    model = nn.Sequential(nn.Linear(2, 2))
    with pytest.raises(RuntimeError, match="half way"), with_onednn(model):
        raise RuntimeError("half way")
    assert not replaced(model)


def test_weights_that_were_trained_meanwhile_are_seen(everywhere: None) -> None:
    model = nn.Sequential(nn.Linear(4, 4))
    value = torch.randn(3, 4)
    with torch.no_grad():
        with with_onednn(model):
            model(value)
        model[0].weight.mul_(2)
        expected = model(value)
        with with_onednn(model):
            torch.testing.assert_close(model(value), expected)


def test_gradients_autocast_and_other_types_go_torchs_way(everywhere: None) -> None:
    layer = nn.Linear(4, 3)
    value = torch.randn(2, 4)
    with with_onednn(layer):
        layer(value).sum().backward()
        assert layer.weight.grad is not None
        with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
            assert layer(value).dtype == torch.bfloat16
        with torch.no_grad(), pytest.raises(RuntimeError, match="dtype"):
            layer(value.double())


@pytest.mark.parametrize("kind", ["compiled", "hook", "class", "type"])
def test_what_is_not_a_plain_layer_stays(everywhere: None, kind: str) -> None:
    layer = nn.Linear(4, 3)
    if kind == "compiled":
        layer.forward = lambda value: value  # type: ignore[method-assign,assignment]
    elif kind == "hook":
        layer.register_forward_pre_hook(lambda module, _: None)
    elif kind == "class":
        layer = type("Own", (nn.Linear,), {})(4, 3)
    else:
        layer = layer.double()
    assert use_onednn(nn.Sequential(layer)) == []


def test_for_good_twice_is_once(everywhere: None) -> None:
    model = nn.Sequential(nn.Linear(4, 3))
    assert len(use_onednn(model)) == 1
    with with_onednn(model):
        assert replaced(model)
    assert replaced(model)


def test_what_is_faster_depends_on_the_processor(monkeypatch: pytest.MonkeyPatch) -> None:
    """MKL has AVX-512 on Intel's processors."""
    if not torch.backends.mkldnn.is_available():
        pytest.skip("this torch has no oneDNN")
    found = {}
    for cpu, capability in (
        ("GenuineIntel", "AVX512"),
        ("AuthenticAMD", "AVX512"),
        ("AuthenticAMD", "AVX2"),
    ):
        faster_dtypes.cache_clear()
        monkeypatch.setattr(onednn, "_cpu", lambda cpu=cpu: f"vendor_id\t: {cpu}\n")
        monkeypatch.setattr(
            torch.backends.cpu, "get_cpu_capability", lambda capability=capability: capability
        )
        found[cpu, capability] = torch.float32 in faster_dtypes()
    faster_dtypes.cache_clear()
    assert list(found.values()) == [False, True, False]
