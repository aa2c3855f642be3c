"""How a CSV file is read, and what models of options refuse."""

from __future__ import annotations

from typing import Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator

__all__ = ["CsvOptions", "Options", "check_resource", "is_yes_for_a_number"]


def is_yes_for_a_number(value: object, kind: Any) -> bool:
    """Whether a truth value was given where the annotation `kind` wants a number."""
    kinds = {kind, *get_args(kind)}
    return isinstance(value, bool) and bool(kinds & {int, float}) and bool not in kinds


def check_resource(name: str, amount: Any) -> None:
    """Refuse what Ray would wait for in vain: another spelling, a GPU and a half.

    Args:
        name: of the resource, by Ray's spelling.
        amount: how much of it is reserved; bytes of memory.

    Raises:
        ValueError: saying what is expected.
    """
    for known in ("CPU", "GPU", "memory"):
        if name.lower() == known.lower() and name != known:
            raise ValueError(f"'{name}' is written '{known}'")
    if name in ("TPU", "object_store_memory"):
        raise ValueError(f"'{name}': ftray has no use for it")
    number = isinstance(amount, int | float) and not isinstance(amount, bool)
    if not number or not 0 <= amount < float("inf"):
        raise ValueError(f"a number of at least 0 is expected for {name}")
    if name == "GPU" and amount > 1 and amount != int(amount):
        raise ValueError("a share of a GPU, or a whole number of them, is expected for GPU")


class Options(BaseModel):
    """What all models of options refuse: YAML's yes, and Python's True, for a number."""

    @field_validator("*", mode="before")
    @classmethod
    def _yes_is_no_number(cls, value: Any, info: ValidationInfo) -> Any:
        if is_yes_for_a_number(value, cls.model_fields[info.field_name or ""].annotation):
            raise ValueError("a number is expected, not yes or no")
        return value


class CsvOptions(Options):
    """How a CSV file is read; everything left at None is detected and said in the log."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    header: bool | None = Field(None, description="Whether the first row names the columns.")
    dialect: Literal["auto", "excel", "excel-tab", "unix"] = Field(
        "auto",
        description="How cells are parted: detected, or as Python's csv module names it; delimiter "
        "and quotechar go before it.",
    )
    delimiter: str | None = Field(None, description="One character between cells.")
    quotechar: str = Field('"', description="The character around cells that hold a delimiter.")
    encoding: str | None = Field(None, description="Text encoding, such as utf-8 or cp1252.")
    is_labeled: bool | None = Field(
        None,
        description="Two columns without telling names: true = item,label; false = query,document.",
    )
    label_conflicts: Literal["keep", "error"] = Field(
        "keep",
        description="A text with two labels, a pair with two scores: kept and said, or an error.",
    )
    size: int | None = Field(None, ge=1, description="Read only the first `size` rows.")
    sampling_rate: float | None = Field(
        None, gt=0, le=1, description="Read only this share of the rows, drawn with a fixed seed."
    )
    convert_to_blob: bool | None = Field(
        None,
        description="Whether files that the data names are read once, at the start, so that "
        "workers elsewhere need not see them; None = they are read when they are needed.",
    )
    fetch_urls: bool = Field(
        False, description="Whether what stands at http(s) addresses is fetched, at the start."
    )
    create_point_clouds: bool = Field(
        True,
        description="Whether meshes and point clouds become `point_cloud_size` points at the "
        "start; false = the encoder draws them.",
    )
    point_cloud_size: int = Field(
        2048, ge=3, description="Points of a cloud, drawn from the surface of a mesh."
    )
