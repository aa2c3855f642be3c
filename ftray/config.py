"""One model of a fit: the YAML file, `--set a.b=c`, and the arguments of `fit()`.

What YAML cannot hold (a DocList, a pyarrow.Table, a callback object) is accepted from Python; the
record then keeps its class path and fingerprint and says `reproducible: false`.
"""

from __future__ import annotations

import datetime
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, ValidationInfo, field_validator

from ftray.csv_options import CsvOptions, Options, check_resource
from ftray.errors import ConfigError, nearest

__all__ = ["CsvOptions", "FitConfig", "explained", "is_live", "model_prefix", "validated"]

Precision = Literal["auto", "fp32", "bf16", "fp16"]
MAX_SHARDS = 1024
SHOWN = (str, Path, int, float, list, tuple, dict, type(None))

FORMERLY = {
    "configure_optimizer": "optimizer, scheduler and their options are given by name.",
    "layer_name": "Give the torch.nn.Module that ends there as model.",
    "lr": "Did you mean 'learning_rate'?",
    "projection_head": "output_dim attaches a linear layer.",
    "public": "Nothing is uploaded: the artifact is a folder of yours.",
    "scheduler_step": "It is an option of scheduler_options.",
    "to_embedding_model": "A model is taken as it is; give the torch.nn.Module that ends in the "
    "embedding.",
}
"""What Finetuner's `fit` had, or many would type, and what is here instead."""


class FitConfig(Options):
    """Everything a fit can be told. `ftray.fit(**fields)` takes the same names."""

    model_config = ConfigDict(
        extra="forbid",
        arbitrary_types_allowed=True,
        validate_assignment=True,
        protected_namespaces=(),
    )

    model: str | Any = Field(
        description="A registry name, a Hugging Face id, a local folder, an ftray artifact, or an "
        "object, which is copied and not changed: a SentenceTransformer, or any torch.nn.Module."
    )
    train_data: Any = Field(
        description="A CSV, Parquet or JSONL path, a DocList, a pyarrow.Table, or records."
    )
    eval_data: Any = Field(None, description="Data for the validation loss.")
    val_split: float = Field(
        0.0, ge=0, lt=1, description="Share of train_data held out for the validation loss."
    )
    model_options: dict[str, Any] = Field(
        default_factory=dict, description="Options of the model; `ftray models NAME` lists them."
    )
    model_artifact: str | None = Field(
        None,
        description="The artifact of an earlier fit of `model`, to begin with its weights; the "
        "optimizer begins anew.",
    )
    output_dim: int | None = Field(
        None,
        ge=1,
        description="Width D of the embeddings; where it is not the model's own, a linear layer is "
        "trained behind it.",
    )
    freeze: bool | list[str] = Field(
        False,
        description="Weights that are not trained: true = all, with a linear layer trained behind "
        "them; or names of weights or modules, as ['*.embeddings.*', '*.layer.[0-3].*'].",
    )
    lora: dict[str, Any] | None = Field(
        None,
        description="Train low-rank adapters beside the weights, which stay: options of peft's "
        "LoraConfig, as {r: 16, lora_alpha: 32, target_modules: [query, value]}; {} = its own.",
    )
    preprocess_fn: Any = Field(
        None, description="With a torch.nn.Module: makes of one value what is collated."
    )
    collate_fn: Any = Field(
        None, description="With a torch.nn.Module: makes a batch of a list of them."
    )
    columns: dict[str, str] | None = Field(
        None, description="Our column names to those of the data, as {item: text, label: intent}."
    )
    csv_options: CsvOptions = CsvOptions()

    loss: str = Field("TripletMarginLoss", description="Name of a loss; see docs/losses.md.")
    loss_options: dict[str, Any] = Field(default_factory=dict)
    miner: str | None = Field(
        None, description="A miner of pytorch-metric-learning, over the whole global batch."
    )
    miner_options: dict[str, Any] = Field(default_factory=dict)
    epochs: int = Field(5, ge=0, description="0 evaluates only.")
    batch_size: int | Literal["auto"] = Field(
        64,
        description="Rows of a whole step, over all workers. The default shrinks to fit; auto = "
        "the largest power of two, up to 1,024, that fits into the memory, found by trying.",
    )
    micro_batch_size: int | None = Field(
        None,
        ge=1,
        description="Texts that a worker encodes together; less memory, same mathematics, two "
        "forwards a text. None = all of its texts.",
    )
    sampler: Literal["auto", "class", "random", "pairs"] = "auto"
    num_items_per_class: int = Field(4, ge=2, description="K of a class-balanced batch P x K.")
    packing: Literal["auto", "packed", "bucketed", "padded"] = Field(
        "auto",
        description="How the texts of a step are laid out for the encoder, a choice of speed: end "
        "to end in rows, by length, or as they come; auto = what costs the least.",
    )
    max_length: int | None = Field(
        None, ge=8, description="Longest text in tokens; None = as the model says."
    )

    augmentation: Literal["auto", "none"] | dict[str, Any] = Field(
        "auto",
        description="What training does to images and point clouds: as suits the model, nothing, "
        "or operations with their strengths, as {flip: 0.5, shift: 0.1}.",
    )
    data_workers: int | Literal["auto"] = Field(
        "auto",
        description="Processes that decode ahead, for each worker; auto = 2, and 0 for texts.",
    )

    optimizer: str = Field("AdamW", description="Name of a class of torch.optim.")
    optimizer_options: dict[str, Any] = Field(
        default_factory=dict,
        description="Its own, and layer_wise_lr_decay: each layer's rate beside that of the layer "
        "above it.",
    )
    loss_optimizer: str | None = Field(
        None,
        description="A class of torch.optim for the loss's own parameters (class centres, "
        "temperature); None = they are a group of the optimizer.",
    )
    loss_optimizer_options: dict[str, Any] = Field(
        default_factory=dict,
        description="Options of the loss's optimizer, lr among them (None = learning_rate); "
        "without a loss_optimizer it is of the class of the optimizer.",
    )
    learning_rate: float | None = Field(
        None, gt=0, le=1, description="None = 5e-5; 1e-3 for convnet, mlp and pointnet-base."
    )
    scheduler: str | None = Field(
        None,
        description="A scheduler of transformers; None = linear warm-up and linear decay.",
    )
    scheduler_options: dict[str, Any] = Field(
        default_factory=dict,
        description="warmup_ratio (0.1) or num_warmup_steps; num_training_steps (auto); "
        "scheduler_step: batch, or epoch, which counts in epochs; and the scheduler's own.",
    )
    max_grad_norm: float | None = Field(
        1.0, gt=0, description="Gradient clipping over all weights, the loss's own included."
    )
    ema_decay: float | None = Field(
        None,
        gt=0,
        lt=1,
        description="Evaluate and keep an exponential moving average of the weights, which leaves "
        "such a share of itself at each step, 0.999 say.",
    )
    precision: Precision = Field(
        "auto", description="auto = bf16 (else fp16) autocast on a GPU, fp32 on a CPU."
    )
    compile: bool = Field(
        False, description="Compile the model with torch.compile: its first steps take longer."
    )
    seed: int = Field(0, ge=0, lt=2**31)

    to_onnx: bool = Field(
        False, description="Write the model also as ONNX, in `onnx/` of the artifact."
    )

    callbacks: list[Any] = Field(default_factory=list)

    num_workers: int | Literal["auto"] = Field(
        "auto", description="0 = this process, no Ray; N; auto = one per GPU, else 1."
    )
    device: Literal["auto", "cpu", "cuda"] = "auto"
    storage_path: str = Field("runs", description="Folder or URI under which runs are kept.")
    experiment_name: str = "default"
    run_name: str | None = None
    description: str | None = None
    resume: Literal["never", "auto", "must"] = Field(
        "never",
        description="Continue the run `run_name` from its newest checkpoint: auto if there is one, "
        "must. A run that is FINISHED has nothing to continue and is refused.",
    )
    max_failures: int = Field(
        2, ge=0, le=100, description="How often lost workers are replaced before the run fails."
    )
    resources_per_worker: dict[str, float] | None = Field(
        None,
        description="What each worker on Ray reserves on its node, as {CPU: 4, GPU: 1, memory: "
        "8e9}; what is not named is found: the CPUs that all can have, a GPU where there are any.",
    )
    accelerator_type: str | None = Field(
        None, description="Train on nodes with this GPU alone, by Ray's name for it, such as A100."
    )
    label_selector: dict[str, str] | None = Field(
        None,
        description="Train on nodes of Ray with these labels alone, as {zone: a, disk: in(ssd, "
        "nvme), spot: '!yes'}.",
    )
    resources_per_evaluator: dict[str, float] | None = Field(
        None,
        description="What each evaluation with overlap reserves, such as a share of a GPU, {GPU: "
        "0.25}; None = a GPU that the workers leave free, or nothing.",
    )
    index_shards: int | Literal["auto"] = Field(
        "auto",
        description="On Ray, in how many parts the index of an evaluation is held, each by an "
        "actor; the results are the same. auto = 1; more if it takes much of a node's memory.",
    )
    log_rows: bool = Field(
        False, description="Log which rows each rank encodes in each step (for audits)."
    )

    @field_validator("storage_path", "model_artifact", mode="before")
    @classmethod
    def _path_to_str(cls, value: Any) -> Any:
        if value == "":  # such as a variable that is empty
            raise ValueError("a folder or a URI is expected")
        return str(value) if isinstance(value, Path) else value

    @field_validator("train_data", mode="before")
    @classmethod
    def _something(cls, value: Any) -> Any:
        if value is None:
            raise ValueError("a path, a table or records are expected")
        return value

    @field_validator("model", mode="before")
    @classmethod
    def _name_or_live(cls, value: Any) -> Any:
        if isinstance(value, str | Path):
            return str(value)
        if not is_live(value):
            raise ValueError(
                "a registry name, a Hugging Face id, a folder or an artifact as text, or a "
                "sentence_transformers.SentenceTransformer or torch.nn.Module object is expected"
            )
        return value

    @field_validator(
        "csv_options",
        "model_options",
        "freeze",
        "augmentation",
        "loss_options",
        "miner_options",
        "optimizer_options",
        "loss_optimizer_options",
        "scheduler_options",
        "callbacks",
        mode="before",
    )
    @classmethod
    def _none_is_nothing(cls, value: Any, info: ValidationInfo) -> Any:
        """A key left empty in YAML, and None in Python, stand for the default."""
        if value is None and info.field_name is not None:
            return cls.model_fields[info.field_name].get_default(call_default_factory=True)
        return value

    @field_validator("freeze", mode="before")
    @classmethod
    def _names_of_layers(cls, value: Any) -> Any:
        """One name is a list of one; the words of YAML for yes and no stay what they are."""
        if isinstance(value, str) and value.lower() not in ("true", "false"):
            return [value]
        if isinstance(value, list | tuple) and all(isinstance(name, str) for name in value):
            return list(value)
        if not isinstance(value, bool | str | None):
            raise ValueError("true, false, or names of layers are expected, as ['*.embeddings']")
        return value

    @field_validator("num_workers", mode="before")
    @classmethod
    def _worker_count(cls, value: Any) -> Any:
        if value != "auto" and not str(value).isdecimal():
            raise ValueError("0 (this process), a positive number of workers, or 'auto'")
        return value

    @field_validator("batch_size", mode="before")
    @classmethod
    def _rows_of_a_step(cls, value: Any) -> Any:
        if value != "auto" and not (str(value).isdecimal() and int(value) >= 2):
            was = "; Finetuner's None is 'auto' here" if value is None else ""
            raise ValueError(f"a number of rows from 2, or 'auto'{was}")
        return value

    @field_validator("data_workers", mode="before")
    @classmethod
    def _process_count(cls, value: Any) -> Any:
        if value != "auto" and not str(value).isdecimal():
            raise ValueError("0 (none), a number of processes, or 'auto'")
        return value

    @field_validator("resources_per_worker", "resources_per_evaluator", mode="before")
    @classmethod
    def _resources(cls, value: Any) -> Any:
        if isinstance(value, dict):
            for name, amount in value.items():
                check_resource(str(name), amount)
        return value

    @field_validator("index_shards", mode="before")
    @classmethod
    def _shard_count(cls, value: Any) -> Any:
        if value != "auto" and not (str(value).isdecimal() and 1 <= int(value) <= MAX_SHARDS):
            raise ValueError(f"a number of shards from 1 to {MAX_SHARDS:,}, or 'auto'")
        return value

    @field_validator("experiment_name", "run_name")
    @classmethod
    def _folder_name(cls, value: str | None) -> str | None:
        if value is not None and not re.fullmatch(r"[\w][\w.\- ]{0,127}", value):
            raise ValueError(
                f"'{value}' is to be a folder's name: letters, digits, '_', '-', '.' and spaces"
            )
        return value

    @property
    def batch_size_is_explicit(self) -> bool:
        """Whether the user gave the batch size (an explicit one never shrinks silently)."""
        return "batch_size" in self.model_fields_set


def is_live(model: object) -> bool:
    """Whether a model is given as an object: a `SentenceTransformer`, or another module.

    Asked without importing torch: where there is an object, it is imported already.
    """
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(model, torch.nn.Module)


def model_prefix(model: str) -> str:
    """A model's name as metric lines write it: the last part of a path, with underscores."""
    return model.rstrip("/").rsplit("/", 1)[-1].replace("-", "_")


def validated(values: Mapping[str, Any], *, where: str = "") -> FitConfig:
    """A `FitConfig` from plain values.

    Args:
        values: field names and values.
        where: the file the values come from, for messages.

    Raises:
        ConfigError: naming the key, what was given, what is allowed, and the nearest valid key.
    """
    try:
        return FitConfig.model_validate(dict(values))
    except ValidationError as error:
        raise ConfigError(explained(error, FitConfig, where)) from None


def explained(error: ValidationError, model: type[BaseModel], where: str = "") -> str:
    """What pydantic found wrong, for people.

    Args:
        error: what it raised.
        model: what was validated.
        where: the file the values come from.
    """
    prefix = f"{where}: " if where else ""
    return prefix + "; ".join(_explain(e, model) for e in error.errors())


def _explain(error: Any, model: type[BaseModel]) -> str:
    path = ".".join(str(part) for part in error["loc"])
    key = str(error["loc"][-1]) if error["loc"] else ""
    if error["type"] == "extra_forbidden":
        if path in FORMERLY and model is FitConfig:
            return f"there is no option '{path}'. {FORMERLY[path]}"
        known = CsvOptions if error["loc"][0] == "csv_options" else model
        return f"there is no option '{path}'.{nearest(key, known.model_fields)}"
    if error["type"] == "missing":
        return f"'{path}' is missing"
    given = error.get("input")
    if error["type"] == "string_type" and isinstance(given, int | float | datetime.date):
        return (
            f'{path} = {given}: a text is expected; quotes make one of it, as in {key}: "{given}"'
        )
    if not isinstance(given, SHOWN):  # a module may print as hundreds of lines
        given = type(given)
    message = str(error["msg"]).removeprefix("Value error, ")
    return f"{path} = {given!r}: {message[:1].lower()}{message[1:]}"
