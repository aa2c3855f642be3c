"""What a model card tells, from the record and the artifact, before it is Markdown.

Of the paths of data and models, and of absolute ones wherever they stand, only the last part is
told.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from ftray.models.catalogue import MODELS
from ftray.report.about import facts
from ftray.report.contents import Contents
from ftray.words import counted

__all__ = ["ARTIFACT", "bare", "header", "library_of", "training"]

ARTIFACT = "artifact"
_PICTURES = "image-feature-extraction"
PIPELINES = {"text": "sentence-similarity", "image": _PICTURES, "convnet": _PICTURES}
LIBRARIES = {"text": "sentence-transformers", "image": "transformers", "clip": "transformers"}
TOLD = (
    *("Trained", "Averaged", "Options of the model"),
    *("Loss", "Miner", "Epochs", "Batch", "Optimizer"),
)
TOWERS = {"text": "minilm", "image": "vit"}
"""What `TwoTowersOptions` has where nothing is given."""
OF_MODELS = ("model", "model_artifact", *TOWERS)
HUB_ID = re.compile(r"[\w\-.]+/[\w\-.]+")
ON_A_MACHINE = re.compile(r"[/~]|[A-Za-z]:\\|[a-z][a-z0-9+.\-]+://")


def bare(value: Any, name: str = "") -> Any:
    """A value in which paths of a machine, and URIs, are their last part.

    Args:
        value: of any form.
        name: the option that has it; of data and of models, relative paths are told so as well.
    """
    if isinstance(value, Mapping):
        return {key: bare(entry, str(key)) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [bare(entry, name) for entry in value]
    if isinstance(value, str) and (ON_A_MACHINE.match(value) or _is_relative(value, name)):
        parts = re.split(r"[/\\]", value.partition("?")[0].rstrip("/\\"))
        return "/".join(parts[-2:] if parts[-1] == ARTIFACT else parts[-1:])  # a run's name helps
    return value


def _is_relative(value: str, name: str) -> bool:
    """Whether the value of an option is the relative path of data, or of a model."""
    if name.endswith("_data"):
        return "/" in value or "\\" in value
    return name in OF_MODELS and bool(re.search(r"[/\\]", value)) and not _is_hub_id(value)


def header(contents: Contents, about: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of the card's header, as far as they are known.

    Args:
        contents: the record.
        about: what the artifact says of itself.
    """
    config, kind = contents.config, str(about.get("kind") or "")
    pipeline = PIPELINES.get(kind, "feature-extraction")
    rows = ((contents.facts.get("data") or {}).get("train_data") or {}).get("rows")
    metrics = [metric for event in contents.final for metric in event.metrics]
    tags = ["ftray", pipeline]
    tags += [f"loss:{config['loss']}"] if contents.step and config.get("loss") else []
    tags += [f"dataset_size:{rows}"] if contents.step and rows else []
    bases = _bases(str(about.get("base_model") or ""), config)
    fields = {
        **_licence(about.get("license")),
        "base_model": bases[0] if len(bases) == 1 else bases,
        "library_name": library_of(about),
        "pipeline_tag": pipeline,
        "tags": tags,
        "metrics": list(dict.fromkeys(metrics)),
    }
    return {name: value for name, value in fields.items() if value}


def library_of(about: Mapping[str, Any]) -> str:
    """What loads the folder; a model with a part that only ftray has (`note`) is ftray's."""
    return "ftray" if about.get("note") else LIBRARIES.get(str(about.get("kind")), "ftray")


def _licence(licence: Any) -> dict[str, Any]:
    """The fields of the hub; `read_licence` puts several, and a name, into one line."""
    if not licence:
        return {}
    named = re.fullmatch(r"other \((.+)\)", str(licence))
    if named:
        return {"license": "other", "license_name": named[1]}
    several = str(licence).split(", ")
    return {"license": several if len(several) > 1 else several[0]}


def _bases(model: str, config: Mapping[str, Any]) -> list[str]:
    """The hub ids of what the weights come from; a folder is none."""
    options = config.get("model_options") or {}
    if model == "two-towers":
        names = [str(options.get(tower, default)) for tower, default in TOWERS.items()]
    else:
        names = [model]
    ids = [MODELS[name].hub_id if name in MODELS else name for name in names]
    return [each for each in ids if each and _is_hub_id(each)]


def _is_hub_id(name: str) -> bool:
    """Whether a name may be one of the hub; a folder's path is none."""
    return bool(HUB_ID.fullmatch(name)) and name[0] not in "./~" and not os.path.isdir(name)


def training(contents: Contents, about: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """How the weights were trained: labels and values.

    Args:
        contents: the record, of a run with steps.
        about: what the artifact says of itself.
    """
    for label, value in (*_trained(contents.config, about), *facts(contents)):
        if label in TOLD:
            yield label, value
    config, started = contents.config, contents.started
    rates = contents.steps.learning_rate[np.isfinite(contents.steps.learning_rate)]
    if len(rates):
        yield "Learning rate", f"up to {rates.max():g}"
    for label in ("max_length", "seed"):
        if config.get(label) is not None:
            yield label, str(config[label])
    if started is not None:
        workers = counted(started.world_size, "worker")
        precision = started.hardware.get("precision")
        yield "Hardware", ", ".join(filter(None, [workers, started.device, precision]))
    if about.get("fingerprint"):
        yield "Fingerprint of the weights", str(about["fingerprint"])


def _trained(config: Mapping[str, Any], about: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """What of the model was trained, and what was done to it before: labels and values."""
    dim = (about.get("head") or {}).get("dim")
    head = f"a linear layer behind the model, to {dim} numbers" if dim else ""
    frozen, lora = config.get("freeze"), config.get("lora")
    what = "all weights"
    if frozen is True:
        what = "all else is frozen"
    elif frozen:
        what = f"all weights but {', '.join(f'`{name}`' for name in frozen)}"
    elif lora is not None:
        given = ", ".join(f"{name}={value}" for name, value in lora.items()) or "peft's defaults"
        what = f"low-rank adapters ({given}), which are merged into the weights"
    if head or frozen or lora is not None:
        yield "Trained", "; ".join(filter(None, [head, what]))
    if config.get("ema_decay") is not None:
        decay = config["ema_decay"]
        yield "Averaged", f"exponential moving average of the weights (ema_decay={decay:g})"
    options = bare(config.get("model_options") or {})
    told = [f"{name}={value}" for name, value in options.items() if name != "prompts"]
    if told:
        yield "Options of the model", ", ".join(told)
