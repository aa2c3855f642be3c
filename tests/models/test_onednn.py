"""Linear layers by oneDNN, for a while: the same embeddings, and the model as it was."""

from __future__ import annotations

import copy
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import ftray
from ftray.callbacks import EvaluationCallback
from ftray.evaluation.encode import encode_texts
from ftray.models import onednn
from ftray.models.onednn import FASTER_FROM, LEAST_ROWS, faster_dtypes, use_onednn, with_onednn
from ftray.models.registry import load_encoder

TEXTS = [" ".join(["card", "bank", "lost"][i % 3] for _ in range(1 + i % 7)) for i in range(40)]


@pytest.fixture
def everywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """Any layer on any processor."""
    if not torch.backends.mkldnn.is_available():
        pytest.skip("this torch has no oneDNN")
    dtypes = frozenset({torch.float32, torch.bfloat16})
    monkeypatch.setattr(onednn, "faster_dtypes", lambda: dtypes)
    monkeypatch.setattr(onednn, "LEAST_WIDTH", 1)
    monkeypatch.setattr(onednn, "LEAST_ROWS", 1)


@pytest.fixture
def products(monkeypatch: pytest.MonkeyPatch, everywhere: None) -> list[int]:
    """How many rows oneDNN was given, each time."""
    found: list[int] = []
    real = onednn._product

    def product(rows: torch.Tensor, *others: Any) -> torch.Tensor:
        found.append(len(rows))
        return real(rows, *others)

    monkeypatch.setattr(onednn, "_product", product)
    return found


def replaced(model: nn.Module) -> list[nn.Module]:
    return [module for module in model.modules() if "forward" in vars(module)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("bias", [True, False])
def test_values_are_those_of_torch_for_any_shape(
    products: list[int], dtype: torch.dtype, bias: bool
) -> None:
    layer = nn.Linear(8, 4, bias=bias).to(dtype)
    values = [torch.randn(8), torch.randn(3, 8), torch.randn(2, 3, 8), torch.randn(1500, 8)]
    values += [torch.randn(0, 8), torch.randn(2, 0, 8), torch.randn(8, 65).T, torch.randn(3, 16)]
    values = [value[..., :8].to(dtype) for value in values]  # the last ones not contiguous
    plain = [layer(value) for value in values]
    with torch.no_grad(), with_onednn(nn.Sequential(layer)):
        for value, expected in zip(values, plain, strict=True):
            torch.testing.assert_close(layer(value), expected)
    assert products == [1, 3, 6, 1500, 65, 3]


def test_few_numbers_of_rows_are_multiplied(
    everywhere: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What oneDNN keeps for each of them would else grow without end."""
    filled = set()
    layer = nn.Linear(8, 4)
    real = nn.functional.pad
    monkeypatch.setattr(nn.functional, "pad", lambda *a: (filled.add(len(f := real(*a))), f)[1])
    monkeypatch.setattr(onednn, "_sizes", set())
    with torch.no_grad(), with_onednn(layer):
        for rows in range(1, 3000, 7):
            torch.testing.assert_close(
                layer(torch.ones(rows, 8)), layer(torch.ones(1, 8)).expand(rows, 4)
            )
    assert len(onednn._sizes) == onednn.MOST_SIZES
    assert 0 < len(filled) < 30 and max(filled) < 3000 + 256


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("width", "out"), [(384, 1536), (1536, 384), (70, 96)])
def test_no_bit_of_a_row_depends_on_how_many_there_are(
    everywhere: None, monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, width: int, out: int
) -> None:
    """Nor on the threads: else a run that goes on elsewhere would not give the same."""
    layer = nn.Linear(width, out).to(dtype)
    rows = torch.randn(300, width).to(dtype)
    threads = torch.get_num_threads()
    try:
        with torch.no_grad(), with_onednn(layer):
            whole = layer(rows)
            for most, count in ((0, 1), (64, 2)):
                monkeypatch.setattr(onednn, "MOST_SIZES", most)
                monkeypatch.setattr(onednn, "_sizes", set())
                torch.set_num_threads(count)
                for first, last in ((0, LEAST_ROWS), (5, 64), (100, 257), (1, 300)):
                    assert torch.equal(layer(rows[first:last]), whole[first:last])
    finally:
        torch.set_num_threads(threads)


def test_embeddings_are_equal_and_the_model_is_as_it_was(
    products: list[int], tiny_model: Path
) -> None:
    encoder = load_encoder(str(tiny_model))
    few = TEXTS[: FASTER_FROM - 1]
    plain = encode_texts(encoder, few, batch_size=None)
    assert not products, "a few texts are not worth it"
    faster = encode_texts(encoder, TEXTS, batch_size=None)
    assert products and not replaced(encoder)
    torch.testing.assert_close(torch.tensor(faster[: len(few)]), torch.tensor(plain))


def test_evaluations_use_it(
    products: list[int], tiny_model: Path, labelled_rows: list[dict[str, str]], tmp_path: Path
) -> None:
    data = {"query_data": labelled_rows[:8], "index_data": labelled_rows[8:24]}
    ftray.evaluate(str(tiny_model), data["query_data"], data["index_data"])
    assert products
    for frozen in (False, True):
        products.clear()
        ftray.fit(
            model=str(tiny_model),
            train_data=labelled_rows,
            epochs=1,
            num_workers=0,
            freeze=frozen,
            storage_path=str(tmp_path / str(frozen)),
            callbacks=[EvaluationCallback(**data)],
        )
        assert products


def test_what_trains_uses_it_where_there_is_no_gradient(
    products: list[int], tiny_model: Path, labelled_rows: list[dict[str, str]], tmp_path: Path
) -> None:
    def losses(**fields: Any) -> list[float]:
        products.clear()
        run = ftray.fit(
            model=str(tiny_model),
            train_data=labelled_rows,
            epochs=1,
            batch_size=2 * FASTER_FROM,
            loss="SupConLoss",
            num_workers=0,
            storage_path=str(tmp_path),
            **fields,
        )
        return [one["loss"] for one in run.history().to_pylist() if one["kind"] == "step"]

    losses()
    assert not products
    cached = losses(micro_batch_size=FASTER_FROM // 2)
    assert products
    with torch.backends.mkldnn.flags(enabled=False):
        assert losses(micro_batch_size=FASTER_FROM // 2) == pytest.approx(cached, abs=1e-5)
    assert not products
    losses(eval_data=labelled_rows)
    assert products
    losses(freeze=True)
    assert products, "what is frozen is encoded once, before training"


def test_the_model_is_as_it_was_after_errors(
    everywhere: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    with pytest.raises(RuntimeError, match="half way"), with_onednn(model):
        raise RuntimeError("half way")
    assert not replaced(model)
    real, calls = onednn._product, []

    def fails_at_the_second(*given: Any) -> Any:
        calls.append(given)
        if len(calls) == 2:
            raise MemoryError
        return real(*given)

    monkeypatch.setattr(onednn, "_product", fails_at_the_second)
    with pytest.raises(MemoryError), torch.no_grad(), with_onednn(model):
        model(torch.randn(2, 2))
    assert not replaced(model) and len(calls) == 2


@pytest.mark.parametrize("change", ["in place", "data", "parameter"])
def test_weights_that_change_meanwhile_are_seen(products: list[int], change: str) -> None:
    layer = nn.Linear(4, 4)
    value = torch.randn(3, 4)
    with torch.no_grad(), with_onednn(nn.Sequential(layer)):
        layer(value)
        assert len(products) == 1
        if change == "in place":
            layer.weight.fill_(1)
        elif change == "data":
            layer.weight.data = torch.ones(4, 4)
        else:
            layer.weight = nn.Parameter(torch.ones(4, 4))
        torch.testing.assert_close(layer(value), value.sum(1, keepdim=True) + layer.bias)
    assert len(products) == 1


def test_a_copy_computes_with_its_own_weights(products: list[int]) -> None:
    model = nn.Sequential(nn.Linear(4, 3))
    use_onednn(model)
    other = copy.deepcopy(model)
    with torch.no_grad():
        for weight in other.parameters():
            weight.zero_()
        assert not other(torch.randn(2, 4)).any()
        assert model(torch.randn(2, 4)).any()
    assert len(products) == 1


def test_gradients_autocast_and_other_types_go_torchs_way(products: list[int]) -> None:
    layer = nn.Linear(4, 3)
    value = torch.randn(2, 4)
    with with_onednn(layer):
        layer(value).sum().backward()
        assert layer.weight.grad is not None
        with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
            assert layer(value).dtype == torch.bfloat16
        with torch.no_grad(), pytest.raises(RuntimeError, match="dtype"):
            layer(value.double())
    assert not products


class Weight(torch.Tensor):
    """Of a library that computes otherwise."""


@pytest.mark.parametrize("kind", ["compiled", "hook", "class", "type", "weight", "thin", "off"])
def test_what_is_not_a_plain_layer_stays(
    everywhere: None, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    layer = nn.Linear(4, 3)
    assert use_onednn(nn.Linear(4, 3))
    if kind == "compiled":
        layer.forward = lambda value: value  # type: ignore[method-assign,assignment]
    elif kind == "hook":
        layer.register_forward_pre_hook(lambda module, _: None)
    elif kind == "class":
        layer = type("Own", (nn.Linear,), {})(4, 3)
    elif kind == "type":
        layer = layer.double()
    elif kind == "weight":
        layer.weight = nn.Parameter(torch.randn(3, 4).as_subclass(Weight))
    elif kind == "thin":
        monkeypatch.setattr(onednn, "LEAST_WIDTH", 4)
    with torch.backends.mkldnn.flags(enabled=kind != "off"):
        assert use_onednn(nn.Sequential(layer)) == []


def test_for_good_twice_is_once(everywhere: None) -> None:
    model = nn.Sequential(nn.Linear(4, 3))
    assert len(use_onednn(model)) == 1
    with with_onednn(model):
        assert replaced(model)
    assert replaced(model)


def test_threads_may_use_one_model(everywhere: None) -> None:
    model = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 4))
    value = torch.randn(2, 4)
    with torch.no_grad():
        want = model(value)
    wrong: list[Exception] = []

    def use() -> None:
        try:
            with torch.no_grad():
                for _ in range(200):
                    with with_onednn(model):
                        torch.testing.assert_close(model(value), want)
        except Exception as error:
            wrong.append(error)

    threads = [threading.Thread(target=use) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong and not replaced(model)


@pytest.fixture
def fresh() -> Iterator[None]:
    faster_dtypes.cache_clear()
    yield
    faster_dtypes.cache_clear()


@pytest.mark.parametrize(
    ("cpu", "capability", "fp32"),
    [
        ("GenuineIntel", "AVX512", False),  # MKL has AVX-512 there
        ("AuthenticAMD", "AVX512", True),
        ("AuthenticAMD", "AVX2", False),
    ],
)
def test_what_is_faster_depends_on_the_processor(
    fresh: None, monkeypatch: pytest.MonkeyPatch, cpu: str, capability: str, fp32: bool
) -> None:
    if not torch.backends.mkldnn.is_available():
        pytest.skip("this torch has no oneDNN")
    monkeypatch.setattr(onednn, "_cpu", lambda: f"vendor_id\t: {cpu}\n")
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    found = faster_dtypes()
    assert (torch.float32 in found) == fp32
    if capability != "AVX512":
        assert not found


def test_an_actor_that_encodes_uses_it_for_good(everywhere: None, tiny_model: Path) -> None:
    from ftray.cluster.encoders import EncoderActor
    from ftray.evaluation.encoders import packed_encoder

    actor = EncoderActor(packed_encoder(load_encoder(str(tiny_model))), torch.get_num_threads())
    assert replaced(actor._encoder)
    assert actor.encode("", TEXTS[:2]).shape[0] == 2


def test_a_served_model_uses_it_for_good(everywhere: None, tiny_model: Path) -> None:
    pytest.importorskip("ray.serve", reason="needs the extra serve")
    from ftray.cluster.serving import Embedder, ServingArgs

    assert replaced(Embedder(ServingArgs(model=str(tiny_model))).encoder)
