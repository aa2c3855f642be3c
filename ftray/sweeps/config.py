"""One model of a sweep: the YAML file of `ftray sweep`, and the arguments of `ftray.sweep()`."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from ftray.config import FitConfig, explained, validated
from ftray.config_file import apply_overrides, read_yaml, set_value
from ftray.errors import ConfigError, nearest
from ftray.record.environment import environment
from ftray.record.facts import data_facts, plain
from ftray.sweeps.space import Space, as_written, drawn_points, grid_points, parse_space

__all__ = ["CHANGED_IN_TRAINING", "SweepConfig", "load_sweep", "sweep_facts"]
__all__ += ["validated_sweep"]

NOT_VARIED = {
    "storage_path": "all trials are kept with the sweep",
    "experiment_name": "the trials are an experiment named as the sweep",
    "run_name": "trials are named by number",
    "resume": "trials go on with their sweep",
    "description": "it changes nothing",
    "num_workers": "as many trials run as find room, so all need the same",
    "device": "as many trials run as find room, so all need the same",
    "resources_per_worker": "as many trials run as find room, so all need the same",
    "resources_per_evaluator": "as many trials run as find room, so all need the same",
    "accelerator_type": "as many trials run as find room, so all need the same",
    "label_selector": "as many trials run as find room, so all need the same",
}
PLACES = ("storage_path", "experiment_name", "run_name", "resume")
CHANGED_IN_TRAINING = ("learning_rate", "optimizer_options", "loss_options", "max_grad_norm")
"""What PBT may vary: it changes a trial while it trains."""
DATA_FIELDS = ("train_data", "eval_data")
READS_DATA = (
    "train_data eval_data val_split columns csv_options model model_options callbacks "
    "preprocess_fn collate_fn"
).split()
"""Where one of these is varied, each trial reads the data itself."""


class SweepConfig(BaseModel):
    """What to try, how to choose, and when to stop.

    Attributes:
        fit: fields of `FitConfig`, which trials have where the space does not vary them.
        space: see `ftray.sweeps.space`.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, arbitrary_types_allowed=True)

    fit: dict[str, Any] = Field(description="Fields of FitConfig that all trials share.")
    space: dict[str, Any] = Field(description="What is varied: dotted names to domains.")
    metric: str = Field(description="Any metric of the run, as in monitor=.")
    mode: Literal["auto", "min", "max"] = "auto"
    num_samples: int = Field(10, ge=1, description="Trials; with grids: draws of all the rest.")
    search: Literal["random", "grid", "optuna"] = "random"
    search_options: dict[str, Any] = Field(
        default_factory=dict, description="Options of ray.tune's OptunaSearch."
    )
    scheduler: Literal["none", "asha", "median", "pbt"] = Field(
        "none", description="What ends trials early, or exchanges their weights (pbt)."
    )
    scheduler_options: dict[str, Any] = Field(
        default_factory=dict, description="Options of the scheduler of ray.tune."
    )
    stop: list[Any] = Field(
        default_factory=list,
        description="EarlyStopping, or stoppers of ray.tune, by name with their options or as "
        "objects: they end trials, or the sweep.",
    )
    time_budget_s: float | None = Field(
        None, gt=0, description="Then running trials are stopped, and none begins."
    )
    max_concurrent_trials: int | Literal["auto"] = Field(
        "auto", description="Trials at a time; auto = as many as find room in the cluster."
    )
    resources_per_trial: dict[str, float] | None = Field(
        None,
        description="Of a trial in one process (num_workers: 0), as {CPU: 2, GPU: 0.5}; None = one "
        "CPU, and one GPU where the cluster has any. Workers: fit.resources_per_worker.",
    )
    max_failures: int = Field(0, ge=0, le=100, description="How often a failed trial is repeated.")
    name: str | None = Field(None, description="Of the sweep; None = a fresh one.")
    storage_path: str = Field("runs", description="Folder or URI; the sweep is a folder in it.")
    resume: Literal["never", "auto", "must"] = Field(
        "never", description="Go on with the sweep of this name: auto if there is one, must."
    )
    seed: int = Field(0, ge=0, lt=2**31, description="Of the draws; trials have fit.seed.")

    @field_validator("name")
    @classmethod
    def _folder_name(cls, value: str | None) -> str | None:
        if value is not None and not re.fullmatch(r"[\w][\w.\- ]{0,127}", value):
            raise ValueError(
                f"'{value}' is to be a folder's name: letters, digits, '_', '-', '.' and spaces"
            )
        return value

    @field_validator("max_concurrent_trials", mode="before")
    @classmethod
    def _count(cls, value: Any) -> Any:
        if value != "auto" and (not str(value).isdecimal() or int(value) < 1):
            raise ValueError("a positive number of trials, or 'auto'")
        return value

    @field_validator("storage_path", mode="before")
    @classmethod
    def _path_to_str(cls, value: Any) -> Any:
        return value if value is None else str(value)

    @field_validator(
        "search_options", "scheduler_options", "stop", "resources_per_trial", mode="before"
    )
    @classmethod
    def _none_is_nothing(cls, value: Any, info: Any) -> Any:
        if value is None:
            return cls.model_fields[info.field_name].get_default(call_default_factory=True)
        return value

    @model_validator(mode="after")
    def _checked(self) -> SweepConfig:
        for key in set(self.fit) & set(PLACES):
            raise ConfigError(f"'{key}' cannot be given in a sweep: {NOT_VARIED[key]}")
        for key, domain in self.parsed_space.items():
            _check_key(key)
            if domain.kind == "grid" and self.search == "optuna":
                raise ConfigError(f"space.{key}: search: optuna knows no grid: give choice")
            if self.scheduler == "pbt":
                _check_for_pbt(key, domain.condition)
        if self.scheduler == "none" and self.scheduler_options:
            raise ConfigError("scheduler_options are given, and no scheduler: asha, median or pbt")
        if self.resources_per_trial is not None and self.fit.get("num_workers", "auto") != 0:
            raise ConfigError(
                "resources_per_trial is for trials in one process (fit.num_workers: 0): of trials "
                "with workers each takes fit.resources_per_worker"
            )
        for option in {"metric", "mode", "space"} & set(self.search_options):
            raise ConfigError(f"search_options.{option}: the sweep's own {option} counts")
        if self.search != "optuna" and self.search_options:
            raise ConfigError(f"search_options belong to search: optuna, not to {self.search}")
        if self.scheduler == "pbt" and self.max_concurrent_trials != "auto":
            raise ConfigError(
                "scheduler: pbt pauses trials for others, as many as resources permit: give "
                "resources_per_trial instead of max_concurrent_trials"
            )
        if self.scheduler == "pbt" and self.fit.get("num_workers", "auto") != 0:
            raise ConfigError(
                "scheduler: pbt pauses trials in the midst of training, which workers would not "
                "outlive in good order: give fit.num_workers: 0"
            )
        if self.scheduler == "pbt" and self.search != "random":
            raise ConfigError("scheduler: pbt draws its first values itself: search: random")
        if self.search == "grid":
            if "num_samples" in self.model_fields_set:
                raise ConfigError("search: grid tries every combination; num_samples has no use")
            grid_points(self.parsed_space)
        return self

    @cached_property
    def parsed_space(self) -> Space:
        """The space, read."""
        return parse_space(self.space)

    def points(self) -> list[dict[str, Any]]:
        """What the trials vary, by number; with Optuna that is decided while the sweep goes on."""
        if self.search == "grid":
            return grid_points(self.parsed_space)
        return drawn_points(self.parsed_space, self.num_samples, self.seed)

    @property
    def most_epochs(self) -> int:
        """The most that any trial trains."""
        domain = self.parsed_space.get("epochs")
        if domain is None:
            return int(self.fit.get("epochs", FitConfig.model_fields["epochs"].default))
        return max(domain.values) if domain.values else int(domain.high)

    @property
    def shares_data(self) -> bool:
        """Whether all trials have the same data, so that it is read once."""
        roots = {key.split(".")[0] for key in self.space}
        split_differs = "seed" in roots and bool(self.fit.get("val_split"))
        return not roots & set(READS_DATA) and not split_differs

    def fit_config(self, point: Mapping[str, Any], name: str, run_name: str) -> FitConfig:
        """The configuration of a trial.

        Args:
            point: what it varies.
            name: of the sweep.
            run_name: of the trial.

        Raises:
            ConfigError: if the values do not fit.
        """
        values = dict(self.fit)
        for key, value in point.items():
            values = set_value(values, key, value)
        if values.get("num_workers", "auto") != 0:  # or one trial would take all CPUs
            given = values.get("resources_per_worker") or {}
            values["resources_per_worker"] = {"CPU": 1, **given}
        place = {"storage_path": self.storage_path, "experiment_name": name, "run_name": run_name}
        return validated({**values, **place, "resume": "auto"}, where=run_name)


def _check_key(key: str) -> None:
    root = key.split(".")[0]
    if root in NOT_VARIED:
        raise ConfigError(f"space.{key} cannot be varied: {NOT_VARIED[root]}")
    if root not in FitConfig.model_fields:
        raise ConfigError(
            f"space.{key}: there is no option.{nearest(root, FitConfig.model_fields)}"
        )


def _check_for_pbt(key: str, condition: Mapping[str, Any]) -> None:
    root = key.split(".")[0]
    if root not in CHANGED_IN_TRAINING:
        raise ConfigError(
            f"space.{key}: scheduler: pbt changes values while a trial trains, which is possible "
            f"for {', '.join(CHANGED_IN_TRAINING)}"
        )
    if condition:
        raise ConfigError(f"space.{key}: scheduler: pbt knows no conditions")


def validated_sweep(values: Mapping[str, Any], *, where: str = "") -> SweepConfig:
    """A `SweepConfig` from plain values.

    Raises:
        ConfigError: naming the key, what was given, what is allowed, and the nearest valid key.
    """
    try:
        return SweepConfig.model_validate(dict(values))
    except ValidationError as error:
        raise ConfigError(explained(error, SweepConfig, where)) from None
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}" if where else str(error)) from None


def sweep_facts(sweep: SweepConfig) -> dict[str, Any]:
    """What `sweep.yaml` holds: the configuration, whether it can be had back from that, and where.

    Data in memory are described, and the space stands in our own words.
    """
    fit = {
        name: data_facts(value) if name in DATA_FIELDS else plain(_without_data(value))
        for name, value in sweep.fit.items()
    }
    space = {name: plain(as_written(domain)) for name, domain in sweep.parsed_space.items()}
    names = [name for name in SweepConfig.model_fields if name not in ("fit", "space")]
    rest = {name: plain(getattr(sweep, name)) for name in names}
    found = [*fit.values(), *space.values(), *rest.values()]
    return {
        "config": {
            "fit": {name: value for name, (value, _) in fit.items()},
            "space": {name: value for name, (value, _) in space.items()},
            **{name: value for name, (value, _) in rest.items()},
        },
        "reproducible": all(exact for _, exact in found),
        "environment": environment(),
    }


def _without_data(value: Any) -> Any:
    """Options in which data in memory, such as an `EvaluationCallback` may have, are described."""
    if isinstance(value, Mapping):
        return {
            key: data_facts(entry)[0] if str(key).endswith("_data") else _without_data(entry)
            for key, entry in value.items()
        }
    return [_without_data(entry) for entry in value] if isinstance(value, list) else value


def load_sweep(path: str | Path, overrides: Sequence[str] = ()) -> SweepConfig:
    """Read the YAML file of a sweep; `${VAR}` stands for an environment variable.

    Its `fit` holds the fields of FitConfig, or names a YAML file that does.

    Args:
        path: the file.
        overrides: `a.b=c` texts, as in `fit.epochs=2`.

    Raises:
        ConfigError: for a missing or malformed file, an unset variable, or a wrong key or value.
    """
    values = read_yaml(path)
    if isinstance(values.get("fit"), str):
        values["fit"] = read_yaml(values["fit"])
    values = apply_overrides(values, overrides)
    if "model" in values and "fit" not in values:
        raise ConfigError(
            f"{path} looks like a fit: a sweep has its fields under 'fit:', beside 'space:' and "
            "'metric:'"
        )
    return validated_sweep(values, where=str(path))
