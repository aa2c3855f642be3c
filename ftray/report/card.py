"""The model card of an artifact: its `README.md`, in the form of the Hugging Face hub.

It is made from the record and from the artifact itself; what is not known is left out.
`card_facts` finds what is told; here is how it is written.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import yaml

from ftray.record.reader import RecordReader
from ftray.record.storage import Storage
from ftray.report.about import data
from ftray.report.card_facts import ARTIFACT, bare, header, library_of, training
from ftray.report.contents import Contents, read_contents
from ftray.report.reproduce import recipe

__all__ = ["CARD", "card_of", "write_card"]

CARD = "README.md"
THINGS = {"text": "texts", "image": "images", "convnet": "images", "mlp": "features"}
THINGS |= {"clip": "texts and images", "two-towers": "texts and images", "pointnet": "points"}
NOT_TOLD = ("storage_path", "experiment_name", "description")
"""Of the configuration: where the run was kept, and what stands at the top of the card."""
POOLED = {"pooler": "outputs.pooler_output.flatten(1)", "cls": "outputs.last_hidden_state[:, 0]"}
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
    head = yaml.safe_dump(header(contents, about), sort_keys=False, allow_unicode=True)
    return f"---\n{head}---\n\n{body}\n"


def _json(folder: Storage, name: str) -> dict[str, Any]:
    try:
        found = json.loads(folder.read_text(name))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _section(title: str, lines: Iterator[str]) -> str:
    text = "\n".join(lines).strip()
    return f"## {title}\n\n{text}" if text else ""


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
    kind, library = about.get("kind"), library_of(about)
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
    for label, value in training(contents, about):
        yield f"- {label}: {value}"


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
