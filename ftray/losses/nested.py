"""What the options of a loss that is made of others say: `MatryoshkaLoss`, `MultipleLosses`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from ftray.errors import ConfigError, nearest
from ftray.losses.values import checked_options, checked_positive

__all__ = ["MATRYOSHKA", "MULTIPLE", "WRAPPERS", "Asked", "Leaf", "inner_losses", "leaves"]
__all__ += ["matryoshka_dims", "within"]

MATRYOSHKA = "MatryoshkaLoss"
MULTIPLE = "MultipleLosses"

WRAPPERS = {
    MATRYOSHKA: (
        ("loss", "loss_options", "dims", "weights"),
        "{loss: MultipleNegativesRankingLoss, dims: [384, 256, 128]}",
    ),
    MULTIPLE: (("losses",), "{losses: [{loss: InfoNCE}, {loss: SupConLoss, weight: 0.5}]}"),
}
"""The options of each, and an example."""

EACH_ITS_OWN = (
    " pytorch-metric-learning's has; here each loss has its own: loss_options: {losses: [{loss: "
    "TripletMarginLoss, weight: 0.5, miner: BatchHardMiner}, {loss: SupConLoss}]}"
)
ENTRY = ("loss", "loss_options", "weight", "miner", "miner_options")


@dataclass(frozen=True, kw_only=True)
class Asked:
    """A loss inside another, as the options name it.

    Attributes:
        name: of the loss.
        options: its arguments.
        where: it stands in the options, for messages.
        weight: in the sum.
        miner: its name, or None.
        miner_options: its arguments.
    """

    name: str
    options: Mapping[str, Any]
    where: str
    weight: float = 1.0
    miner: str | None = None
    miner_options: Mapping[str, Any] = field(default_factory=dict)


class Leaf(NamedTuple):
    """A loss that is not made of others: its name, arguments and miner, and where it stands."""

    name: str
    options: Mapping[str, Any]
    miner: str | None
    where: str

    def __str__(self) -> str:
        mined = f" with miner {self.miner}" if self.miner else ""
        return f"{self.where}{self.name}{mined}"


@contextmanager
def within(where: str) -> Iterator[None]:
    """Say in a `ConfigError` which of the inner losses it is about."""
    try:
        yield
    except ConfigError as error:
        raise ConfigError(f"In {where}: {error}") from None


def leaves(
    name: str, options: Mapping[str, Any], miner: str | None = None, where: str = ""
) -> Iterator[Leaf]:
    """Each loss that is not made of others: of most, they themselves.

    Args:
        name: of the loss.
        options: its arguments.
        miner: that it is given; a wrapper hands it down.
        where: it stands, as a message begins.

    Raises:
        ConfigError: for options of a wrapper that cannot work.
    """
    if name not in WRAPPERS:
        yield Leaf(name, options, miner, where)
        return
    for asked in inner_losses(name, options):
        with within(asked.where):
            place = f"{where}In {asked.where}: "
            yield from leaves(asked.name, asked.options, asked.miner or miner, place)


def inner_losses(name: str, options: Mapping[str, Any]) -> list[Asked]:
    """The losses directly inside a wrapper: of `MatryoshkaLoss` one, whatever the dims.

    Raises:
        ConfigError: for options of the wrapper that cannot work.
    """
    known, example = WRAPPERS[name]
    for option in options:
        if option not in known:
            of_theirs = name == MULTIPLE and option in ("weights", "miners")
            hint = EACH_ITS_OWN if of_theirs else nearest(option, known)
            raise ConfigError(f"loss_options.{option}: {name} has no such option.{hint}")
    if name == MATRYOSHKA:
        matryoshka_dims(options)
        return [_asked(options, f"loss_options of {name}", f"loss_options: {example}")]
    given = options.get("losses")
    if not isinstance(given, list | tuple) or not given:
        raise ConfigError(
            f"loss_options.losses = {given!r}: {name} needs a list of losses: "
            f"loss_options: {example}"
        )
    return [_entry(entry, place, example) for place, entry in enumerate(given)]


def _entry(entry: Any, place: int, example: str) -> Asked:
    where = f"loss_options.losses[{place}]"
    if not isinstance(entry, Mapping):
        raise ConfigError(f"{where} = {entry!r}: a loss is given as in loss_options: {example}")
    for option in entry:
        if option not in ENTRY:
            raise ConfigError(f"{where}.{option} is unknown.{nearest(option, ENTRY)}")
    return _asked(entry, where, f"loss_options: {example}")


def _asked(given: Mapping[str, Any], where: str, example: str) -> Asked:
    name = given.get("loss")
    if not isinstance(name, str):
        raise ConfigError(f"In {where}: the name of a loss is missing: {example}")
    miner = given.get("miner")
    if miner is not None and not isinstance(miner, str):
        raise ConfigError(f"In {where}: miner = {miner!r}: the name of a miner is expected")
    with within(where):
        options = checked_options("loss_options", given.get("loss_options"))
        miner_options = checked_options("miner_options", given.get("miner_options"))
    return Asked(
        name=name,
        options=options,
        where=where,
        weight=checked_positive(f"{where}.weight", given.get("weight", 1.0)),
        miner=miner,
        miner_options=miner_options,
    )


def matryoshka_dims(options: Mapping[str, Any]) -> list[tuple[int, float]]:
    """Dims and weights of `MatryoshkaLoss`, the largest dim first.

    Raises:
        ConfigError: for dims that are no distinct positive numbers, or as many weights.
    """
    dims = options.get("dims")
    if (
        not isinstance(dims, list | tuple)
        or not dims
        or not all(isinstance(dim, int) and not isinstance(dim, bool) and dim > 0 for dim in dims)
        or len(set(dims)) < len(dims)
    ):
        raise ConfigError(
            f"loss_options.dims = {dims!r}: {MATRYOSHKA} needs a list of different whole numbers, "
            "the widths to shorten embeddings to, such as [384, 256, 128]"
        )
    weights = options.get("weights")
    if weights is None:
        weights = [1.0] * len(dims)
    if not isinstance(weights, list | tuple) or len(weights) != len(dims):
        raise ConfigError(
            f"loss_options.weights = {weights!r}: one for each of dims, which has {len(dims)}"
        )
    checked = [checked_positive("loss_options.weights", weight) for weight in weights]
    return sorted(zip(dims, checked, strict=True), reverse=True)
