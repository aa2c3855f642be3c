"""The model card of an artifact: its `README.md`, in the form of the Hugging Face hub.

It is made from the record and from the artifact itself; what is not known is left out. Of the paths
of data and models, and of absolute ones wherever they stand, only the last part is told.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import yaml

from ftray.models.catalogue import MODELS
from ftray.record.reader import RecordReader
from ftray.record.storage import Storage
from ftray.report.about import data, facts
from ftray.report.contents import Contents, read_contents
from ftray.report.reproduce import recipe
from ftray.words import counted

__all__ = ["CARD", "card_of", "write_card"]

ARTIFACT, CARD = "artifact", "README.md"
_PICTURES = "image-feature-extraction"
PIPELINES = {"text": "sentence-similarity", "image": _PICTURES, "convnet": _PICTURES}
LIBRARIES = {"text": "sentence-transformers", "image": "transformers", "clip": "transformers"}
THINGS = {"text": "texts", "image": "images", "convnet": "images", "mlp": "features"}
THINGS |= {"clip": "texts and images", "two-towers": "texts and images", "pointnet": "points"}
TOLD = (
    *("Trained", "Averaged", "Options of the model"),
    *("Loss", "Miner", "Epochs", "Batch", "Optimizer"),
)
TOWERS = {"text": "minilm", "image": "vit"}
"""What `TwoTowersOptions` has where nothing is given."""
NOT_TOLD = ("storage_path", "experiment_name", "description")
"""Of the configuration: where the run was kept, and what stands at the top of the card."""
POOLED = {"pooler": "outputs.pooler_output.flatten(1)", "cls": "outputs.last_hidden_state[:, 0]"}
OF_MODELS = ("model", "model_artifact", *TOWERS)
HUB_ID = re.compile(r"[\w\-.]+/[\w\-.]+")
ON_A_MACHINE = re.compile(r"[/~]|[A-Za-z]:\\|[a-z][a-z0-9+.\-]+://")
HERE = '"."'


def write_card(storage: Storage) -> None:
    """Write the card into the artifact of a run, if it has one that is not described yet.

    A run that fails after it was resumed may have the artifact of the attempt before.

    Args:
        storage: the run directory, with all events up to the end of the fit.

    Raises:
        StorageError: if it cannot be written.
    """
    there = [storage.exists(f"{ARTIFACT}/{name}") for name in ("ftray.json", CARD)]
    if there != [True, False]:
        return
    card = card_of(read_contents(RecordReader(storage)), storage.under(ARTIFACT))
    storage.write_text(f"{ARTIFACT}/{CARD}", card)


def card_of(contents: Contents, artifact: Storage) -> str:
    """The card of a run's artifact.

    Args:
        contents: the record.
        artifact: its folder.
    """
    about = _json(artifact, "ftray.json")
    sections = [
        f"# {contents.name}",
        str(contents.config.get("description") or "").strip(),
        _what_it_is(contents, about),
        "## How to use it\n\n" + "\n\n".join(_usage(about, artifact)),
        _section("Results", _results(contents)),
        _section("Training data", _sources(contents)),
        _section("Training", _training(contents, about)),
        _section("To do it again", _again(contents, about)),
        _section("Made with", _versions(contents)),
    ]
    body = "\n\n".join(filter(None, sections))
    return f"---\n{_header(contents, about)}---\n\n{body}\n"


def _json(folder: Storage, name: str) -> dict[str, Any]:
    try:
        found = json.loads(folder.read_text(name))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _section(title: str, lines: Iterator[str]) -> str:
    text = "\n".join(lines).strip()
    return f"## {title}\n\n{text}" if text else ""


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


# ---------------------------------------------------------------- header


def _header(contents: Contents, about: Mapping[str, Any]) -> str:
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
        "library_name": _library(about),
        "pipeline_tag": pipeline,
        "tags": tags,
        "metrics": list(dict.fromkeys(metrics)),
    }
    known = {name: value for name, value in fields.items() if value}
    return yaml.safe_dump(known, sort_keys=False, allow_unicode=True)


def _library(about: Mapping[str, Any]) -> str:
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


# ---------------------------------------------------------------- body


def _what_it_is(contents: Contents, about: Mapping[str, Any]) -> str:
    base = bare(about.get("base_model"), "model")
    known = [f"of `{base}`"] if base else []
    if contents.step:
        known.append(f"fine-tuned with {contents.config.get('loss')}")
    things = THINGS.get(str(about.get("kind")), "")
    what = f"Embeddings of {things}" if things else "Embeddings"
    lines = [f"{what}: the weights {', '.join(known)}, written by ftray."]
    if parent := about.get("parent"):
        mark = f" (weights {parent['fingerprint']})" if parent.get("fingerprint") else ""
        lines.append(f"It began with the artifact of the run `{parent.get('run')}`{mark}.")
    if about.get("license"):
        lines.append(f"The base model's licence: {about['license']}.")
    if note := about.get("note"):
        lines.append(f"{str(note).rstrip('.')}.")
    return " ".join(lines)


def _usage(about: Mapping[str, Any], artifact: Storage) -> Iterator[str]:
    yield "In this folder; elsewhere give its path instead of `.`:"
    kind, library = about.get("kind"), _library(about)
    if kind == "text" and library == "sentence-transformers":
        yield _code(
            _with_sentence_transformers(_json(artifact, "config_sentence_transformers.json"))
        )
    elif kind == "clip" and library == "transformers":
        yield _code(_with_clip(_json(artifact, "config.json")))
    elif kind == "image" and library == "transformers":
        pooling = (about.get("options") or {}).get("pooling")
        if pooling in POOLED:
            yield _code(_with_image_model(POOLED[pooling]))
    yield _code(_with_ftray(about, artifact))
    if kind == "text" and (prompts := _prompts(artifact)):
        words = ", ".join(f"before a {role} `{prompt}`" for role, prompt in prompts.items())
        yield f"Prompts, which a text's role puts before it (`role=` of `ftray.encode`): {words}."


def _prompts(artifact: Storage) -> dict[str, str]:
    """What stands before queries and before documents, where something does."""
    known = _json(artifact, "config_sentence_transformers.json").get("prompts") or {}
    return {role: known[role] for role in ("query", "document") if known.get(role)}


def _code(lines: Sequence[str]) -> str:
    return "\n".join(["```python", *lines, "```"])


def _with_sentence_transformers(config: Mapping[str, Any]) -> list[str]:
    lines = ["from sentence_transformers import SentenceTransformer", ""]
    lines += [f"model = SentenceTransformer({HERE})"]
    prompts = config.get("prompts") or {}
    if prompts.get("query") or prompts.get("document"):
        lines += ['queries = model.encode_query(["a question"])']
        lines += ['documents = model.encode_document(["an answer", "another one"])']
        return [*lines, "print(model.similarity(queries, documents))"]
    lines += ['embeddings = model.encode(["a text", "another one"])']
    return [*lines, "print(model.similarity(embeddings, embeddings))"]


def _with_clip(config: Mapping[str, Any]) -> list[str]:
    padding = '"max_length"' if str(config.get("model_type")).startswith("siglip") else "True"
    return [
        "from PIL import Image",
        "from transformers import AutoModel, AutoProcessor",
        "",
        f"model, processor = AutoModel.from_pretrained({HERE}), "
        f"AutoProcessor.from_pretrained({HERE})",
        'image = Image.open("picture.jpg")',
        'inputs = processor(text=["a text"], images=[image], '
        f'padding={padding}, truncation=True, return_tensors="pt")',
        "outputs = model(**inputs)",
        "print(outputs.text_embeds @ outputs.image_embeds.T)",
    ]


def _with_image_model(pooled: str) -> list[str]:
    return [
        "from PIL import Image",
        "from transformers import AutoImageProcessor, AutoModel",
        "",
        f"model = AutoModel.from_pretrained({HERE})",
        f"processor = AutoImageProcessor.from_pretrained({HERE})",
        'inputs = processor(images=[Image.open("picture.jpg")], return_tensors="pt")',
        "outputs = model(**inputs)",
        f"embeddings = {pooled}",
    ]


def _with_ftray(about: Mapping[str, Any], artifact: Storage) -> list[str]:
    kind = about.get("kind")
    things = {
        "text": '["a text", "another one"]',
        "clip": '["a text", "picture.jpg"]',
        "two-towers": '["a text", "picture.jpg"]',
        "pointnet": '["cloud.ply"]',
        "module": "things",
    }.get(str(kind), '["picture.jpg"]')
    lines = ["import ftray", ""]
    if kind == "mlp":
        width = (about.get("options") or {}).get("input_size")
        lines = ["import numpy as np", "import ftray", ""]
        things = f'np.ones((2, {width}), "float32")'
    if kind == "module":
        given = f"{HERE}, module={about.get('class', 'MyModule')}(), preprocess_fn=preprocess"
        return [*lines, f"model = ftray.get_model({given})", f"ftray.encode(model, {things})"]
    lines += [f"model = ftray.get_model({HERE})", f"embeddings = ftray.encode(model, {things})"]
    if artifact.exists("onnx"):
        lines += [
            "",
            "# the same by onnxruntime, from the graphs in onnx/",
            f"model = ftray.get_model({HERE}, is_onnx=True)",
            f"embeddings = ftray.encode(model, {things})",
        ]
    return lines


def _results(contents: Contents) -> Iterator[str]:
    for name in contents.names():
        before, after = contents.before(name), contents.after(name)
        sides = [event for event in (before, after) if event is not None]
        metrics = list(dict.fromkeys(metric for event in sides for metric in event.metrics))
        if not metrics:
            continue
        values = [{} if event is None else event.metrics for event in (before, after)]
        rows = [[m, *(_number(side.get(m)) for side in values)] for m in metrics]
        yield from (f"### {_cell(name)}", "") if name != "evaluation" else ()
        yield from _table(["metric", "before fine-tuning", "after"], rows)
        yield ""
    if contents.final and contents.ended is not None and contents.step:
        step = contents.ended.artifact_step
        weights = contents.ended.artifact_weights
        of = f"{weights} of step {step}" if weights else f"step {step}"
        yield f"The weights are those of {of}."


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"


def _sources(contents: Contents) -> Iterator[str]:
    rows = [
        [
            each["name"],
            ", ".join(bare(part, "train_data") for part in each["source"].split(", ")),
            each["size"],
            each["fingerprint"],
        ]
        for each in data(contents)
    ]
    if rows:
        yield from _table(["", "source", "size", "fingerprint"], rows)


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    yield f"| {' | '.join(head)} |"
    yield f"|{'---|' * len(head)}"
    for row in rows:
        yield f"| {' | '.join(map(_cell, row))} |"


def _cell(text: str) -> str:
    return " ".join(str(text).split()).replace("|", "\\|")


def _training(contents: Contents, about: Mapping[str, Any]) -> Iterator[str]:
    if not contents.step:
        yield "Nothing was trained: the weights are those of the base model."
        return
    for label, value in (*_trained(contents.config, about), *facts(contents)):
        if label in TOLD:
            yield f"- {label}: {value}"
    config, started = contents.config, contents.started
    rates = contents.steps.learning_rate[np.isfinite(contents.steps.learning_rate)]
    if len(rates):
        yield f"- Learning rate: up to {rates.max():g}"
    for label in ("max_length", "seed"):
        if config.get(label) is not None:
            yield f"- {label}: {config[label]}"
    if started is not None:
        workers = counted(started.world_size, "worker")
        precision = started.hardware.get("precision")
        yield "- Hardware: " + ", ".join(filter(None, [workers, started.device, precision]))
    if about.get("fingerprint"):
        yield f"- Fingerprint of the weights: {about['fingerprint']}"


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


def _again(contents: Contents, about: Mapping[str, Any]) -> Iterator[str]:
    found = recipe(contents.facts)
    if found is None:
        return
    values = bare(yaml.safe_load(found.text) or {})
    values = {name: value for name, value in values.items() if name not in NOT_TOLD}
    base = str(about.get("base_model") or "")
    if os.path.isabs(base):  # a folder: its name may look like a hub id
        values["model"] = bare(base)
    yield "`ftray fit config.yaml`, with this as `config.yaml` and the data beside it:"
    yield ""
    yield "```yaml"
    yield yaml.safe_dump(values, sort_keys=False, allow_unicode=True, width=88).rstrip()
    yield "```"
    if found.lost:
        yield ""
        yield f"It does not hold all of it: {'; '.join(bare(each) for each in found.lost)}."


def _versions(contents: Contents) -> Iterator[str]:
    known = contents.facts.get("environment") or {}
    found = {"Python": known.get("python"), **(known.get("versions") or {})}
    there = [f"{name} {version}" for name, version in found.items() if version]
    if there:
        yield ", ".join(there) + "."
