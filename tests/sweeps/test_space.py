"""The search space: what is read, what is refused, and what is drawn from it."""

from __future__ import annotations

import math

import pytest

from ftray.errors import ConfigError
from ftray.sweeps.space import active_values, drawn_points, grid_points, parse_space

SPACE = {
    "learning_rate": {"loguniform": [1e-5, 1e-2]},
    "loss": {"choice": ["SupConLoss", "TripletMarginLoss"]},
    "loss_options.margin": {"uniform": [0.05, 0.5], "if": {"loss": "TripletMarginLoss"}},
    "epochs": {"randint": [1, 4]},
    "batch_size": {"lograndint": [16, 256]},
}


def test_draws_are_in_their_ranges_and_of_their_kinds() -> None:
    points = drawn_points(parse_space(SPACE), 500, seed=0)
    assert len(points) == 500
    rates = [point["learning_rate"] for point in points]
    assert all(1e-5 <= rate <= 1e-2 for rate in rates)
    below = sum(rate < math.sqrt(1e-5 * 1e-2) for rate in rates)
    assert 200 < below < 300, "half of a logarithmic range lies below its geometric mean"
    assert {point["epochs"] for point in points} == {1, 2, 3}
    sizes = [point["batch_size"] for point in points]
    assert all(type(size) is int and 16 <= size < 256 for size in sizes)
    assert 200 < sum(size < 64 for size in sizes) < 300
    assert {point["loss"] for point in points} == {"SupConLoss", "TripletMarginLoss"}


def test_a_field_is_varied_only_where_its_condition_is_met() -> None:
    for point in drawn_points(parse_space(SPACE), 50, seed=1):
        assert ("loss_options.margin" in point) == (point["loss"] == "TripletMarginLoss")


def test_the_same_seed_draws_the_same_and_more_draws_begin_alike() -> None:
    space = parse_space(SPACE)
    assert drawn_points(space, 8, seed=3) == drawn_points(space, 12, seed=3)[:8]
    assert drawn_points(space, 8, seed=3) != drawn_points(space, 8, seed=4)


def test_a_grid_has_every_combination_once() -> None:
    space = parse_space(
        {
            "loss_options.margin": {"grid": [0.1, 0.2], "if": {"loss": "TripletMarginLoss"}},
            "loss": {"grid": ["SupConLoss", "TripletMarginLoss"]},
            "seed": {"choice": [0, 1]},
        }
    )
    points = grid_points(space)
    assert len(points) == 2 * (1 + 2), "a margin that plays no part makes no second trial"
    assert len({repr(sorted(point.items())) for point in points}) == len(points)
    assert {"loss": "SupConLoss", "seed": 1} in points
    assert {"loss": "TripletMarginLoss", "loss_options.margin": 0.2, "seed": 0} in points


def test_each_draw_of_the_rest_goes_with_every_value_of_a_grid() -> None:
    space = parse_space({"seed": {"grid": [0, 1, 2]}, "learning_rate": {"uniform": [0.1, 0.2]}})
    points = drawn_points(space, 2, seed=0)
    assert [point["seed"] for point in points] == [0, 1, 2, 0, 1, 2]
    assert len({point["learning_rate"] for point in points}) == 2


def test_domains_of_ray_tune_are_taken() -> None:
    from ray import tune

    ours = parse_space(
        {
            "a": {"uniform": [0.0, 1.0]},
            "b": {"loguniform": [0.1, 1.0]},
            "c": {"randint": [1, 5]},
            "d": {"lograndint": [1, 5]},
            "e": {"choice": ["x", "y"]},
            "f": {"grid": [1, 2]},
        }
    )
    tunes = parse_space(
        {
            "a": tune.uniform(0.0, 1.0),
            "b": tune.loguniform(0.1, 1.0),
            "c": tune.randint(1, 5),
            "d": tune.lograndint(1, 5),
            "e": tune.choice(["x", "y"]),
            "f": tune.grid_search([1, 2]),
        }
    )
    assert tunes == ours
    with pytest.raises(ConfigError, match="Quantized"):
        parse_space({"a": tune.quniform(0.0, 1.0, 0.1)})


def test_conditions_may_hang_on_conditions() -> None:
    space = parse_space(
        {
            "c": {"choice": [1], "if": {"b": 1}},
            "b": {"choice": [1], "if": {"a": [1, 2]}},
            "a": {"choice": [1, 3]},
        }
    )
    assert active_values(space, {"a": 1, "b": 1, "c": 1}) == {"a": 1, "b": 1, "c": 1}
    assert active_values(space, {"a": 3, "b": 1, "c": 1}) == {"a": 3}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "space is empty"),
        ({"epochs": 3}, r"space.epochs = 3: a domain is expected, as in epochs: \{choice"),
        ({"epochs": {"unifrom": [0, 1]}}, "no domain 'unifrom'. Did you mean 'uniform'"),
        ({"epochs": {"uniform": [0, 1], "choice": [1]}}, "one domain is expected"),
        ({"epochs": {"uniform": [1]}}, "two numbers are expected"),
        ({"epochs": {"uniform": [True, 2]}}, "two numbers are expected"),
        ({"epochs": {"uniform": [2, 1]}}, "low must be less than high"),
        ({"epochs": {"loguniform": [0, 1]}}, "low must be above 0"),
        ({"epochs": {"randint": [1, 2.5]}}, "whole numbers"),
        ({"loss": {"choice": "SupConLoss"}}, "a list of values is expected"),
        ({"loss": {"choice": []}}, "a list of values is expected"),
        ({"seed": {"choice": [1], "if": {"los": 1}}, "loss": {"choice": ["a"]}}, "Did you mean"),
        ({"seed": {"choice": [1], "if": "loss"}}, "a mapping is expected"),
        (
            {"a": {"choice": [1], "if": {"b": 1}}, "b": {"choice": [1], "if": {"a": 1}}},
            "lead in a circle",
        ),
    ],
)
def test_what_is_no_space_is_refused(given: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse_space(given)


def test_a_grid_has_no_ranges() -> None:
    with pytest.raises(ConfigError, match=r"space.a is a range: give grid: \[...\]"):
        grid_points(parse_space({"a": {"uniform": [0, 1]}}))
