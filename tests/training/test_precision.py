"""Autocast and loss scaling: lower precision, the same gradients."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

from ftray.training.precision import Precision

torch.set_num_threads(1)

CPU = torch.device("cpu")


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(16, 32), nn.Tanh(), nn.Linear(32, 8))


def flat_gradient(model: nn.Module) -> Tensor:
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


def backward(model: nn.Module, precision: Precision) -> Tensor:
    """A scaled backward; returns what the forward gave."""
    rows = torch.randn(12, 16, generator=torch.Generator().manual_seed(1))
    with precision.autocast():
        out: Tensor = model(rows)
    loss = out.float().square().mean()
    (loss * precision.scale()).backward()  # type: ignore[no-untyped-call]
    return out


def standing(model: nn.Module) -> torch.optim.SGD:
    """An optimizer whose steps change nothing."""
    return torch.optim.SGD(model.parameters(), lr=0.0)


@pytest.fixture
def exact() -> Iterator[Tensor]:
    """The gradient in single precision."""
    model = net()
    backward(model, Precision("fp32", CPU))
    yield flat_gradient(model)


def test_auto_is_single_precision_on_a_cpu() -> None:
    precision = Precision("auto", CPU)
    assert (precision.name, precision.scale(), precision.state_dict()) == ("fp32", 1.0, {})
    assert backward(net(), precision).dtype == torch.float32


@pytest.mark.parametrize(("name", "dtype"), [("bf16", torch.bfloat16), ("fp16", torch.float16)])
def test_forward_runs_in_the_lower_precision_and_weights_stay_single(
    name: str, dtype: torch.dtype
) -> None:
    model = net()
    assert backward(model, Precision(name, CPU)).dtype == dtype
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert flat_gradient(model).dtype == torch.float32


def test_bf16_needs_no_scale_and_gives_nearly_the_same_gradient(exact: Tensor) -> None:
    model, precision = net(), Precision("bf16", CPU)
    backward(model, precision)
    assert precision.scale() == 1.0
    gradient = flat_gradient(model)
    assert not torch.equal(gradient, exact)
    assert (gradient - exact).norm() < 0.02 * exact.norm()


def test_fp16_gradient_is_scaled_and_unscaled_again(exact: Tensor) -> None:
    model, precision = net(), Precision("fp16", CPU)
    scale = precision.scale()
    assert scale > 1000
    backward(model, precision)
    assert (flat_gradient(model) / scale - exact).norm() < 0.005 * exact.norm()
    norm, made = precision.step([standing(model)], max_grad_norm=None)
    assert made and (flat_gradient(model) - exact).norm() < 0.005 * exact.norm()
    assert norm == pytest.approx(float(exact.norm()), rel=0.005)


@pytest.mark.parametrize("fused", [True, False])
def test_fp16_step_moves_the_weights_as_single_precision_does(fused: bool) -> None:
    moved = []
    for name in ("fp32", "fp16"):
        model, precision = net(), Precision(name, CPU)
        start = torch.cat([p.detach().flatten().clone() for p in model.parameters()])
        optimizer = torch.optim.SGD(model.parameters(), lr=1.0, fused=fused)
        backward(model, precision)
        precision.step([optimizer], max_grad_norm=None)
        moved.append(torch.cat([p.detach().flatten() for p in model.parameters()]) - start)
    assert (moved[1] - moved[0]).norm() < 0.005 * moved[0].norm()


@pytest.mark.parametrize("name", ["fp32", "bf16", "fp16"])
def test_clipping_is_by_the_norm_over_all_weights_after_unscaling(name: str) -> None:
    model, precision = net(), Precision(name, CPU)
    backward(model, precision)
    other = nn.Parameter(torch.zeros(3))  # such as the loss's own
    other.grad = torch.full((3,), 2.0 * precision.scale())
    optimizer = torch.optim.SGD([{"params": model.parameters()}, {"params": [other]}], lr=0.0)
    norm, _ = precision.step([optimizer], max_grad_norm=0.5)
    assert norm > 12**0.5
    clipped = torch.cat([flat_gradient(model), other.grad]).norm()
    assert float(clipped) == pytest.approx(0.5, rel=1e-4)


def test_overflow_skips_the_step_and_lowers_the_scale() -> None:
    model, precision = net(), Precision("fp16", CPU)
    before = [p.detach().clone() for p in model.parameters()]
    scale = precision.scale()
    backward(model, precision)
    first = next(model.parameters())
    assert first.grad is not None
    first.grad[0, 0] = float("inf")
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    norm, made = precision.step([optimizer], max_grad_norm=1.0)
    assert norm == float("inf") and not made
    assert (precision.left_out, precision.in_a_row) == (1, 1)
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
    assert precision.scale() == scale / 2
    model.zero_grad()
    backward(model, precision)
    assert precision.step([optimizer], max_grad_norm=1.0)[1]
    assert (precision.left_out, precision.in_a_row) == (1, 0)


def test_scale_survives_a_restart() -> None:
    first, second = Precision("fp16", CPU), Precision("fp16", CPU)
    model = net()
    backward(model, first)
    next(model.parameters()).grad.fill_(float("inf"))  # type: ignore[union-attr]
    first.step([standing(model)], None)
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    assert second.scale() == first.scale() < Precision("fp16", CPU).scale()
    assert (second.left_out, second.in_a_row) == (1, 1)


@pytest.mark.parametrize("name", ["fp32", "fp16"])
def test_two_optimizers_step_together_or_not_at_all(name: str) -> None:
    """A gradient that is no number in one of them holds the other one up as well."""
    precision, models = Precision(name, CPU), [net(), net()]
    optimizers = [torch.optim.SGD(model.parameters(), lr=1.0) for model in models]
    for model in models:
        backward(model, precision)
    next(models[0].parameters()).grad.fill_(float("nan"))  # type: ignore[union-attr]
    before = [p.detach().clone() for model in models for p in model.parameters()]
    if name == "fp32":
        with pytest.raises(FloatingPointError):
            precision.step(optimizers, 1.0)
    else:
        precision.step(optimizers, 1.0)
    assert all(map(torch.equal, before, [p for model in models for p in model.parameters()]))
    for model in models:
        model.zero_grad()
        backward(model, precision)
    norm, _ = precision.step(optimizers, 1.0)
    assert 0 < norm < float("inf")
    after = [p for model in models for p in model.parameters()]
    assert not any(map(torch.equal, before, after))
