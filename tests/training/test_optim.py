"""Optimizers and schedules by name: what decays, what is refused, and the learning rates."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from ftray.config import FitConfig
from ftray.errors import ConfigError
from ftray.losses.registry import build_loss
from ftray.training.optim import (
    NOT_STEPWISE,
    build_optimizer,
    build_optimizers,
    check_loss_optimizer,
    check_optimizer,
)
from ftray.training.precision import Precision
from ftray.training.schedule import (
    SCHEDULER_OPTIONS,
    SCHEDULERS,
    build_scheduler,
    check_length,
    check_scheduler,
)

torch.set_num_threads(1)

NEEDED = {
    "cosine_with_min_lr": {"min_lr_rate": 0.1},
    "warmup_stable_decay": {"num_decay_steps": 20},
}
"""Options without which a schedule cannot be."""
ADAPTIVE = ("AdamW", "Adam", "Adafactor", "Adagrad", "Adadelta", "Adamax", "NAdam", "RAdam")
USABLE = (*ADAPTIVE, "SGD", "ASGD", "RMSprop", "Rprop")


def config(**options: Any) -> FitConfig:
    return FitConfig(model="m", train_data="t", **options)


def encoder() -> nn.Sequential:
    return nn.Sequential(nn.Embedding(5, 4), nn.LayerNorm(4), nn.Linear(4, 3))


def proxies() -> nn.Module:
    return build_loss("ProxyAnchorLoss", {}, embedding_dim=3, n_groups=2, seed=0)


def no_parameters() -> nn.Module:
    return build_loss("TripletMarginLoss", {}, embedding_dim=3, n_groups=2, seed=0)


def rates(steps: int, total: int, **options: Any) -> list[float]:
    """The learning rate of each step."""
    given = config(learning_rate=1.0, optimizer="SGD", **options)
    optimizer = build_optimizer(given, encoder(), no_parameters())
    scheduler = build_scheduler(given, [optimizer], total)
    seen = []
    for _ in range(steps):
        seen.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return seen


def optimizer_refused(name: str, **options: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        check_optimizer(name, options)
    return str(caught.value)


def scheduler_refused(name: str | None, **options: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        check_scheduler(name, options)
    return str(caught.value)


# ---------------------------------------------------------------- optimizers


def test_biases_norms_and_the_loss_do_not_decay() -> None:
    net, loss = encoder(), proxies()
    optimizer = build_optimizer(config(optimizer_options={"weight_decay": 0.5}), net, loss)
    groups = {group["name"]: group for group in optimizer.param_groups}
    assert {name: group["weight_decay"] for name, group in groups.items()} == {
        "decayed": 0.5,
        "plain": 0.0,
        "loss": 0.0,
    }
    names = {id(p): name for name, p in net.named_parameters()}
    assert [names[id(p)] for p in groups["decayed"]["params"]] == ["0.weight", "2.weight"]
    assert [names[id(p)] for p in groups["plain"]["params"]] == ["1.weight", "1.bias", "2.bias"]
    assert [id(p) for p in groups["loss"]["params"]] == [id(p) for p in loss.parameters()]


@pytest.mark.parametrize("name", ["AdamW", "SGD", "Adafactor"])
def test_step_without_gradient_shrinks_only_what_decays(name: str) -> None:
    net, loss = encoder(), proxies()
    nn.init.ones_(net[2].bias)  # type: ignore[arg-type]
    given = config(optimizer=name, optimizer_options={"weight_decay": 0.5}, learning_rate=0.1)
    optimizer = build_optimizer(given, net, loss)
    everything = dict(net.named_parameters()) | dict(loss.named_parameters())
    before = {key: p.detach().clone() for key, p in everything.items()}
    for parameter in everything.values():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    changed = {key for key, p in everything.items() if not torch.equal(p, before[key])}
    assert changed == {"0.weight", "2.weight"}


def test_default_is_adamw_at_five_in_a_hundred_thousand() -> None:
    optimizer = build_optimizer(config(), encoder(), no_parameters())
    assert isinstance(optimizer, torch.optim.AdamW)
    assert {group["lr"] for group in optimizer.param_groups} == {5e-5}
    assert [group["name"] for group in optimizer.param_groups] == ["decayed", "plain"]


def test_frozen_weights_are_left_out() -> None:
    net = encoder()
    net[0].requires_grad_(False)
    optimizer = build_optimizer(config(), net, no_parameters())
    assert [len(group["params"]) for group in optimizer.param_groups] == [1, 3]


def test_every_optimizer_of_torch_is_taken_or_refused_for_a_reason() -> None:
    """A new one of torch's: add it to the list that is tried below, or say why it cannot be."""
    every = {
        name
        for name, cls in vars(torch.optim).items()
        if isinstance(cls, type)
        and issubclass(cls, torch.optim.Optimizer)
        and cls is not torch.optim.Optimizer
    }
    assert every == {*USABLE, *NOT_STEPWISE}


@pytest.mark.parametrize("name", USABLE)
def test_every_optimizer_lowers_a_loss(name: str) -> None:
    torch.manual_seed(0)
    net = encoder()
    rate = 1.0 if name == "Adadelta" else 0.02
    optimizer = build_optimizer(config(optimizer=name, learning_rate=rate), net, no_parameters())
    losses = []
    for _ in range(30):
        loss = (net(torch.arange(5)) - 1).square().mean()
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert losses[-1] < losses[0]


def test_options_reach_the_optimizer() -> None:
    given = config(optimizer_options={"betas": [0.5, 0.6], "eps": 1e-3, "fused": False})
    (group, _) = build_optimizer(given, encoder(), no_parameters()).param_groups
    assert (list(group["betas"]), group["eps"], group["fused"]) == ([0.5, 0.6], 1e-3, False)


def test_unknown_optimizer_gets_the_nearest() -> None:
    assert optimizer_refused("AdamX").startswith("There is no optimizer 'AdamX'. Did you mean")
    assert "Did you mean 'SGD'" in optimizer_refused("sgd")


@pytest.mark.parametrize("name", ["LBFGS", "SparseAdam", "Muon"])
def test_optimizer_that_cannot_be_used_says_why(name: str) -> None:
    message = optimizer_refused(name)
    assert message.startswith(f"optimizer = '{name}' cannot be used here: it ")


def test_unknown_option_of_an_optimizer_gets_the_nearest() -> None:
    assert optimizer_refused("AdamW", weight_decy=0.1) == (
        "optimizer_options.weight_decy: AdamW has no such option. Did you mean 'weight_decay'?"
    )
    assert "SGD has no such option" in optimizer_refused("SGD", betas=[0.9, 0.99])


def test_learning_rate_is_not_an_option_of_the_optimizer() -> None:
    assert optimizer_refused("AdamW", lr=0.1) == (
        "optimizer_options.lr: give learning_rate instead"
    )


@pytest.mark.parametrize(
    ("name", "option", "value", "expected"),
    [
        ("AdamW", "weight_decay", "a tenth", "a number is expected, as 0.01"),
        ("AdamW", "betas", 0.9, "2 numbers are expected, as [0.9, 0.999]"),
        ("AdamW", "betas", [0.9], "2 numbers are expected"),
        ("AdamW", "betas", "xy", "2 numbers are expected"),
        ("AdamW", "amsgrad", "yes", "true or false is expected"),
        ("AdamW", "maximize", True, "it would raise the loss"),
        ("AdamW", "differentiable", True, "it is for gradients through the optimizer"),
        ("Adam", "capturable", True, "it is for CUDA graphs"),
        ("SGD", "momentum", True, "a number is expected, as 0"),
    ],
)
def test_a_value_of_another_kind_is_named(
    name: str, option: str, value: Any, expected: str
) -> None:
    message = optimizer_refused(name, **{option: value})
    assert message.startswith(f"optimizer_options.{option} = {value!r}: {expected}")


def test_usual_values_are_no_mistake() -> None:
    for options in ({"maximize": False, "capturable": False, "amsgrad": True}, {"fused": None}):
        check_optimizer("AdamW", options)
    check_optimizer("Adafactor", {"eps": [None, 1e-3]})
    check_optimizer("SGD", {"lr": 1, "momentum": 0.9}, of_loss=True)


@pytest.mark.parametrize("options", [{"betas": [0.9, 2]}, {"eps": -1}])
def test_impossible_value_is_an_error_of_the_configuration(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="optimizer_options do not fit AdamW: "):
        build_optimizer(config(optimizer_options=options), encoder(), no_parameters())


# ---------------------------------------------------------------- an optimizer for the loss


def with_own(**options: Any) -> list[torch.optim.Optimizer]:
    return build_optimizers(config(learning_rate=0.1, **options), encoder(), proxies())


def test_by_default_the_loss_has_no_optimizer_of_its_own() -> None:
    (one,) = with_own()
    assert [group["name"] for group in one.param_groups] == ["decayed", "plain", "loss"]


def test_the_loss_has_another_optimizer_with_a_rate_of_its_own() -> None:
    one, other = with_own(loss_optimizer="SGD", loss_optimizer_options={"lr": 0.5, "momentum": 0.9})
    assert [type(optimizer).__name__ for optimizer in (one, other)] == ["AdamW", "SGD"]
    assert [group["name"] for group in one.param_groups] == ["decayed", "plain"]
    (group,) = other.param_groups
    found = [group[name] for name in ("name", "lr", "momentum", "weight_decay")]
    assert found == ["loss", 0.5, 0.9, 0.0]


def test_without_a_name_it_is_of_the_same_class_with_the_same_rate() -> None:
    one, other = with_own(optimizer="Adam", loss_optimizer_options={"eps": 0.5})
    assert type(one) is type(other) is torch.optim.Adam
    assert [optimizer.param_groups[0]["lr"] for optimizer in (one, other)] == [0.1, 0.1]
    assert [optimizer.param_groups[0]["eps"] for optimizer in (one, other)] == [1e-8, 0.5]


def test_both_follow_one_schedule_and_are_clipped_together() -> None:
    given = config(
        learning_rate=0.1,
        loss_optimizer="SGD",
        loss_optimizer_options={"lr": 0.5},
        scheduler="linear",
        scheduler_options={"num_warmup_steps": 0},
    )
    net, loss = encoder(), proxies()
    optimizers = build_optimizers(given, net, loss)
    scheduler = build_scheduler(given, optimizers, 4)
    parameters = [*net.parameters(), *loss.parameters()]
    for parameter in parameters:
        parameter.grad = torch.ones_like(parameter)
    norm, _ = Precision("fp32", torch.device("cpu")).step(optimizers, 1.0)
    assert norm == pytest.approx(sum(p.numel() for p in parameters) ** 0.5)
    clipped = torch.cat([p.grad.reshape(-1) for p in parameters if p.grad is not None])
    assert float(clipped.norm()) == pytest.approx(1.0)
    scheduler.step()
    assert [o.param_groups[0]["lr"] for o in optimizers] == pytest.approx([0.075, 0.375])


@pytest.mark.parametrize(
    "options", [{"loss_optimizer": "SGD"}, {"loss_optimizer_options": {"lr": 0.1}}]
)
def test_a_loss_without_parameters_has_no_use_for_an_optimizer(options: dict[str, Any]) -> None:
    (name,) = options
    with pytest.raises(ConfigError, match=f"^{name}: TripletMarginLoss has no parameters of its"):
        check_loss_optimizer(config(**options), no_parameters())


def test_mistakes_in_the_optimizer_of_the_loss_name_its_fields() -> None:
    for options, message in (
        ({"loss_optimizer": "LBFGS"}, "loss_optimizer = 'LBFGS' cannot be used here"),
        ({"loss_optimizer": "sgd"}, "There is no optimizer 'sgd'. Did you mean 'SGD'"),
        (
            {"loss_optimizer": "SGD", "loss_optimizer_options": {"momentun": 1}},
            "loss_optimizer_options.momentun: SGD has no such option. Did you mean 'momentum'",
        ),
        (
            {"loss_optimizer_options": {"lr": -1}},
            "loss_optimizer_options do not fit AdamW: Invalid learning rate",
        ),
    ):
        with pytest.raises(ConfigError) as caught:
            with_own(**options)
        assert message in str(caught.value)


# ---------------------------------------------------------------- schedules


def test_default_warms_up_over_a_tenth_and_falls_to_zero() -> None:
    seen = rates(101, 100)
    assert seen[:11] == pytest.approx([i / 10 for i in range(11)])
    assert seen[10:] == pytest.approx([1 - i / 90 for i in range(91)])


@pytest.mark.parametrize("name", sorted(set(SCHEDULERS) - {"constant"}))
@pytest.mark.parametrize("options", [{"warmup_ratio": 0.2}, {"num_warmup_steps": 20}])
def test_every_schedule_but_constant_warms_up(name: str, options: dict[str, Any]) -> None:
    options = {**NEEDED.get(name, {}), **options}
    seen = rates(100, 100, scheduler=name, scheduler_options=options)
    assert seen[:21] == pytest.approx([i / 20 for i in range(21)])
    assert max(seen) == pytest.approx(1)


@pytest.mark.parametrize(
    ("name", "middle", "end"),
    [
        ("constant", 1.0, 1.0),
        ("constant_with_warmup", 1.0, 1.0),
        ("linear", 0.5, 0.0),
        ("cosine", 0.5, 0.0),
        ("cosine_with_restarts", 0.5, 0.0),
        ("polynomial", 0.5, 1e-7),
        ("cosine_with_min_lr", 0.55, 0.1),
        ("warmup_stable_decay", 1.0, 0.0),
        ("inverse_sqrt", (1 + 40 / 20) ** -0.5, (1 + 80 / 20) ** -0.5),
    ],
)
def test_rate_in_the_middle_and_at_the_end(name: str, middle: float, end: float) -> None:
    options: dict[str, Any] = {} if name == "constant" else {"num_warmup_steps": 20}
    options |= NEEDED.get(name, {})
    if name == "inverse_sqrt":
        options["timescale"] = 20
    seen = rates(101, 100, scheduler=name, scheduler_options=options)
    assert seen[60] == pytest.approx(middle, rel=1e-6)
    assert seen[100] == pytest.approx(end, abs=1e-9)


@pytest.mark.parametrize(
    ("name", "option"),
    [(name, option) for name, options in SCHEDULER_OPTIONS.items() for option in sorted(options)],
)
def test_no_option_of_a_schedule_is_ignored(name: str, option: str) -> None:
    value = {
        "num_cycles": 3,
        "timescale": 7,
        "lr_end": 0.25,
        "power": 3,
        "min_lr": 0.2,
        "min_lr_rate": 0.2,
        "decay_type": "linear",
        "warmup_type": "cosine",
        "min_lr_ratio": 0.2,
        "num_decay_steps": 9,
    }[option]
    base = {"num_warmup_steps": 5, **NEEDED.get(name, {})}
    given = {k: v for k, v in base.items() if not (option == "min_lr" and k == "min_lr_rate")}
    changed = rates(30, 30, scheduler=name, scheduler_options={**given, option: value})
    assert changed != rates(30, 30, scheduler=name, scheduler_options=base)


@pytest.mark.parametrize("total", [0, 1, 2])
def test_shortest_runs_have_a_rate(total: int) -> None:
    assert rates(1, total) == [1.0]


def test_unknown_schedule_gets_the_nearest() -> None:
    assert scheduler_refused("cosin").startswith("There is no scheduler 'cosin'. Did you mean 'cos")


def test_unknown_option_of_a_schedule_gets_the_nearest() -> None:
    assert scheduler_refused(None, warmup_ration=0.1) == (
        "scheduler_options.warmup_ration: linear has no such option. Did you mean 'warmup_ratio'?"
    )
    assert "constant has no such option" in scheduler_refused("constant", power=2)
    assert "linear has no such option" in scheduler_refused("linear", num_cycles=2)


def test_warm_up_is_given_in_one_way() -> None:
    message = scheduler_refused("linear", warmup_ratio=0.1, num_warmup_steps=3)
    assert message == "scheduler_options: give warmup_ratio or num_warmup_steps, not both"


@pytest.mark.parametrize(
    "options",
    [
        {"warmup_ratio": 1.5},
        {"warmup_ratio": "a tenth"},
        {"num_warmup_steps": -1},
        {"num_warmup_steps": 2.5},
    ],
)
def test_impossible_warm_up_names_key_and_value(options: dict[str, Any]) -> None:
    ((key, value),) = options.items()
    assert scheduler_refused("linear", **options).startswith(
        f"scheduler_options.{key} = {value!r}: "
    )


@pytest.mark.parametrize(
    ("name", "option", "value", "expected"),
    [
        ("polynomial", "power", 0, "a number above 0"),
        ("cosine_with_min_lr", "min_lr_rate", -0.1, "a number from 0 to 1"),
        ("warmup_stable_decay", "min_lr_ratio", 2, "a number from 0 to 1"),
        ("warmup_stable_decay", "num_decay_steps", 0.5, "zero or more steps"),
        ("constant", "warmup_ratio", 0.1, "constant has no warm-up; constant_with_warmup has"),
        ("constant", "num_warmup_steps", 2, "constant has no warm-up; constant_with_warmup has"),
    ],
)
def test_impossible_values_of_a_schedule_are_named(
    name: str, option: str, value: Any, expected: str
) -> None:
    message = scheduler_refused(name, **{option: value})
    assert message == f"scheduler_options.{option} = {value!r}: {expected}"


def test_constant_takes_what_says_nothing_of_a_warm_up() -> None:
    given = {"scheduler_step": "epoch", "num_warmup_steps": 0, "num_training_steps": "auto"}
    assert rates(3, 3, scheduler="constant", scheduler_options=given) == [1.0] * 3


@pytest.mark.parametrize(
    ("name", "option", "value", "expected"),
    [
        ("polynomial", "lr_end", 2.0, "from 0 to below the learning rate, 1"),
        ("polynomial", "lr_end", 1.0, "from 0 to below the learning rate, 1"),
        ("polynomial", "lr_end", -1e-3, "from 0 to below the learning rate, 1"),
        ("cosine_with_min_lr", "min_lr", 1.5, "from 0 to the learning rate, 1"),
        ("cosine_with_min_lr", "min_lr", -0.1, "from 0 to the learning rate, 1"),
    ],
)
def test_a_last_rate_is_not_above_the_first_nor_below_zero(
    name: str, option: str, value: float, expected: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        rates(1, 10, scheduler=name, scheduler_options={option: value})
    assert str(caught.value) == f"scheduler_options.{option} = {value!r}: {expected}"


def test_a_schedule_that_refuses_its_options_is_an_error_of_the_configuration() -> None:
    with pytest.raises(ConfigError, match=r"scheduler_options do not fit warmup_stable_decay: "):
        given = {"num_decay_steps": 2, "decay_type": "sudden"}
        rates(1, 10, scheduler="warmup_stable_decay", scheduler_options=given)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("linear", {"num_warmup_steps": 5}, "a warm-up of 5 steps, but there are only 4 steps"),
        (
            "linear",
            {"num_warmup_steps": 3, "scheduler_step": "epoch"},
            "a warm-up of 3 epochs, but there are only 2 epochs",
        ),
        (
            "cosine",
            {"num_training_steps": 100},
            "a warm-up of 10 steps, but there are only 4 steps",
        ),
        (
            "warmup_stable_decay",
            {"num_warmup_steps": 2, "num_decay_steps": 3},
            "a warm-up of 2 steps and a decay of 3, but there are only 4 steps",
        ),
    ],
)
def test_a_run_is_as_long_as_its_schedule_needs(
    name: str, options: dict[str, Any], message: str
) -> None:
    given = config(scheduler=name, scheduler_options=options, epochs=2)
    with pytest.raises(ConfigError) as caught:
        check_length(given, 4)
    assert str(caught.value) == f"scheduler_options: {message} (given: {options})"
    check_length(given.model_copy(update={"epochs": 50}), 100)


def test_a_schedule_that_is_over_earlier_is_long_enough_as_well() -> None:
    given = config(scheduler_options={"num_training_steps": 2, "num_warmup_steps": 3})
    with pytest.raises(ConfigError, match="a warm-up of 3 steps, but there are only 2 steps"):
        check_length(given, 400)


def test_what_fits_is_no_mistake() -> None:
    for name, options in (
        (None, {}),
        ("linear", {"num_warmup_steps": 4}),
        ("constant", {"num_training_steps": 1000}),
        ("linear", {"num_training_steps": 100, "num_warmup_steps": 0}),
        ("warmup_stable_decay", {"num_warmup_steps": 2, "num_decay_steps": 2}),
        ("warmup_stable_decay", {"num_training_steps": 40, "num_decay_steps": 30}),
    ):
        check_length(config(scheduler=name, scheduler_options=options, epochs=2), 4)


# ---------------------------------------------------------------- in epochs, and for how long


def rates_of_epochs(epochs: int, steps: int = 3, **options: Any) -> list[list[float]]:
    """The learning rate of each step of each epoch, with a tick for each epoch."""
    scheduler = options.pop("scheduler", "linear")
    given = config(
        learning_rate=1.0,
        optimizer="SGD",
        scheduler=scheduler,
        scheduler_options={"scheduler_step": "epoch", **options},
    )
    optimizer = build_optimizer(given, encoder(), no_parameters())
    schedule = build_scheduler(given, [optimizer], steps * epochs, epochs)
    seen: list[list[float]] = []
    for _ in range(epochs):
        seen.append([])
        for step in range(steps):
            seen[-1].append(optimizer.param_groups[0]["lr"])
            schedule.step(epoch_ends=step == steps - 1)
    return seen


def test_a_tick_for_each_epoch_keeps_the_rate_within_it() -> None:
    seen = rates_of_epochs(4, num_warmup_steps=0)
    assert seen == [pytest.approx([rate] * 3) for rate in (1.0, 0.75, 0.5, 0.25)]


def test_warm_up_in_epochs_does_not_lose_the_first_one() -> None:
    assert [rates[0] for rates in rates_of_epochs(5, num_warmup_steps=1)] == pytest.approx(
        [1 / 2, 1, 3 / 4, 2 / 4, 1 / 4]
    )
    seen = [rates[0] for rates in rates_of_epochs(10)]  # a tenth of them
    assert seen[:3] == pytest.approx([0.5, 1.0, 8 / 9])


@pytest.mark.parametrize("name", sorted(set(SCHEDULERS) - {"constant"}))
def test_without_warm_up_an_epoch_has_the_rate_of_its_number(name: str) -> None:
    needed = {**NEEDED.get(name, {}), "num_warmup_steps": 0}
    if "num_decay_steps" in needed:
        needed["num_decay_steps"] = 3
    in_epochs = [each[0] for each in rates_of_epochs(8, scheduler=name, **needed)]
    assert in_epochs == pytest.approx(rates(8, 8, scheduler=name, scheduler_options=needed))


def test_a_schedule_may_end_before_training_or_after_it() -> None:
    options = {"num_warmup_steps": 0, "num_training_steps": 10}
    early = rates(15, 20, scheduler="cosine", scheduler_options=options)
    assert early[5] == pytest.approx(0.5) and early[10:] == pytest.approx([0.0] * 5)
    late = rates(5, 5, scheduler="linear", scheduler_options=options)
    assert late == pytest.approx([1.0, 0.9, 0.8, 0.7, 0.6])
    auto = {**options, "num_training_steps": "auto"}
    assert rates(5, 10, scheduler="linear", scheduler_options=auto) == pytest.approx(late)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"scheduler_step": "step"},
            "scheduler_options.scheduler_step = 'step': 'batch' (the rate",
        ),
        ({"num_training_steps": 0}, "scheduler_options.num_training_steps = 0: 'auto', or one"),
        ({"num_training_steps": True}, "scheduler_options.num_training_steps = True: 'auto'"),
    ],
)
def test_impossible_lengths_name_key_and_value(options: dict[str, Any], message: str) -> None:
    assert scheduler_refused("linear", **options).startswith(message)
    assert scheduler_refused("constant", **options).startswith(message)


@pytest.mark.parametrize("name", ["reduce_lr_on_plateau", "greedy"])
def test_schedules_that_follow_a_metric_are_refused_with_the_reason(name: str) -> None:
    assert scheduler_refused(name).startswith(f"scheduler = '{name}' cannot be used here: it follo")
