"""Batch normalisation in one process: torch's own, and what is refused."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from ftray.errors import ModelError, RunFailedError
from ftray.models.norm import GlobalBatchNorm, connect, synced

SHAPES = {
    "vectors": (7, 5),
    "sequences": (6, 5, 3),
    "images": (4, 5, 3, 2),
    "volumes": (3, 5, 2, 2, 2),
}
PLAIN = {2: nn.BatchNorm1d, 3: nn.BatchNorm1d, 4: nn.BatchNorm2d, 5: nn.BatchNorm3d}


def alone(tensor: torch.Tensor) -> None:
    """The sum over one rank."""


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("options", [{}, {"momentum": None}, {"affine": False, "eps": 0.1}])
def test_it_is_torchs_batch_normalisation(shape: tuple[int, ...], options: dict) -> None:
    """Outputs, gradients, running statistics, then evaluation; offset, to lose no digits."""
    torch.manual_seed(0)
    plain = PLAIN[len(shape)](5, **options).double()
    for parameter in plain.parameters():
        nn.init.normal_(parameter)
    ours = GlobalBatchNorm(5, **options).double()
    ours.load_state_dict(plain.state_dict())
    ours.all_reduce = alone
    for _ in range(3):
        inputs = [(torch.randn(shape).double() * 3 + 1000).requires_grad_()]
        inputs.append(inputs[0].detach().clone().requires_grad_())
        upstream = torch.randn(shape).double()
        for layer, given in zip((plain, ours), inputs, strict=True):
            layer.zero_grad()
            layer(given).backward(upstream)
        torch.testing.assert_close(inputs[1].grad, inputs[0].grad, rtol=1e-9, atol=1e-9)
        for want, got in zip(plain.parameters(), ours.parameters(), strict=True):
            torch.testing.assert_close(got.grad, want.grad, rtol=1e-9, atol=1e-9)
    for name, want in plain.state_dict().items():
        torch.testing.assert_close(ours.state_dict()[name], want, rtol=1e-12, atol=1e-12)
    plain.eval(), ours.eval()
    torch.testing.assert_close(ours(inputs[0]), plain(inputs[0]), rtol=1e-9, atol=1e-9)


def test_nothing_is_lost_far_from_zero_in_float32() -> None:
    torch.manual_seed(0)
    inputs = torch.randn(512, 3) * 1e-2 + 100
    layer = GlobalBatchNorm(3, affine=False, eps=0)
    layer.all_reduce = alone
    assert (layer(inputs).var(dim=0, unbiased=False) - 1).abs().max() < 1e-3


def test_a_single_row_has_no_variance() -> None:
    layer = GlobalBatchNorm(3)
    for all_reduce in (None, alone):
        layer.all_reduce = all_reduce
        with pytest.raises(RunFailedError, match="one row: give a larger batch_size"):
            layer(torch.ones(1, 3))
    assert layer.eval()(torch.ones(1, 3)).shape == (1, 3)


def test_layers_become_global_with_the_same_weights_and_names() -> None:
    shared = nn.BatchNorm1d(4)
    net = nn.Sequential(
        nn.Linear(4, 4), shared, nn.ReLU(), nn.Sequential(nn.BatchNorm1d(4), shared)
    )
    before = copy.deepcopy(net)
    seen: list[str] = []
    shared.register_forward_hook(lambda *_: seen.append("hook"))
    assert synced(net)
    assert isinstance(net[1], GlobalBatchNorm) and net[3][1] is net[1] is shared
    assert list(net.state_dict()) == list(before.state_dict())
    inputs = torch.randn(6, 4)
    torch.testing.assert_close(net(inputs), before(inputs))
    assert seen == ["hook"] * 2
    connect(net, alone)
    assert net[3][0].all_reduce is net[1].all_reduce is alone
    torch.testing.assert_close(net(inputs), before(inputs))
    assert synced(net)
    assert not synced(nn.Sequential(nn.Linear(2, 2), nn.LayerNorm(2)))


def test_layers_that_do_more_are_refused() -> None:
    class Activated(nn.BatchNorm2d):
        def forward(self, input: torch.Tensor) -> torch.Tensor:
            return super().forward(input).relu()

    with pytest.raises(ModelError, match=r"'0' \(Activated\).*batch_norm: frozen"):
        synced(nn.Sequential(Activated(2)))
    with pytest.raises(ModelError, match="track_running_stats=True"):
        synced(nn.Sequential(nn.BatchNorm1d(2, track_running_stats=False)))
