"""The average of weights: its formula, what it is of, and that training never sees it."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from ftray.training.average import Average

torch.set_num_threads(1)


def net() -> nn.Sequential:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3), nn.Linear(3, 2))
    module[2].requires_grad_(False)
    return module.double()


def changed(module: nn.Module, seed: int) -> dict[str, Tensor]:
    """What training does: new values for all that it changes."""
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.requires_grad:
                parameter += torch.randn(parameter.shape, generator=draw).to(parameter)
        for name, buffer in module.named_buffers():
            buffer += 1 if "num" in name else torch.rand(buffer.shape, generator=draw).to(buffer)
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}


@pytest.mark.parametrize("decay", [0.15, 0.9])
def test_it_is_what_the_formula_says(decay: float) -> None:
    module = net()
    average = Average(module, decay)
    want = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    for step in range(6):
        state = changed(module, step)
        average.follow()
        share = min(decay, (1 + step) / (10 + step))
        want = {
            name: share * want[name] + (1 - share) * state[name]
            if state[name].is_floating_point()
            else state[name]
            for name in state
        }
    got = average.weights()
    assert got.keys() == want.keys()
    for name, tensor in want.items():
        assert torch.allclose(got[name], tensor, rtol=1e-12, atol=0), name
    assert int(got["1.num_batches_tracked"]) == 6


def test_frozen_weights_are_not_copied() -> None:
    module = net()
    average = Average(module, 0.9)
    assert not [name for name in average.state_dict() if name.startswith("2.")]
    assert torch.equal(average.weights()["2.weight"], module[2].weight)


def test_training_goes_on_from_the_weights_themselves_bit_by_bit() -> None:
    module = net()
    average = Average(module, 0.9)
    state = changed(module, 0)
    average.follow()
    with pytest.raises(ValueError, match="an evaluation failed"), average.used():
        used = module.state_dict()
        assert all(torch.equal(used[n], t) for n, t in average.weights().items())
        assert not torch.equal(used["0.weight"], state["0.weight"])
        raise ValueError("an evaluation failed")
    assert all(torch.equal(module.state_dict()[n], t) for n, t in state.items())


def test_tied_weights_stay_tied() -> None:
    module = nn.ModuleDict({"words": nn.Embedding(5, 3), "out": nn.Linear(3, 5, bias=False)})
    module["out"].weight = module["words"].weight  # type: ignore[union-attr]
    average = Average(module, 0.9)
    changed(module, 0)
    average.follow()
    got = average.weights()
    assert torch.equal(got["words.weight"], got["out.weight"])
    average.put()
    assert module["out"].weight is module["words"].weight  # type: ignore[union-attr]
    assert torch.equal(module.state_dict()["words.weight"], got["words.weight"])


def test_it_continues_where_it_was() -> None:
    first, second = net(), net()
    one, other = Average(first, 0.99), Average(second, 0.99)
    for step in range(3):
        changed(first, step)
        one.follow()
    second.load_state_dict(first.state_dict())
    other.load_state_dict(one.state_dict())
    other.steps = one.steps
    for module, average in ((first, one), (second, other)):
        changed(module, 7)
        average.follow()
    assert all(torch.equal(t, other.weights()[n]) for n, t in one.weights().items())
    with pytest.raises(ValueError, match="other names"):
        one.load_state_dict({"0.weight": torch.zeros(3, 3)})
