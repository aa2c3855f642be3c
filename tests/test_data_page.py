"""docs/data.md: its examples are read as they are printed, and its tables are the code's."""

from __future__ import annotations

import re
import shutil
import tarfile
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import yaml
from PIL import Image

import ftray
from ftray.config import CsvOptions, FitConfig, validated
from ftray.data import columns, roles
from ftray.data.folders import CAPTION_FILES
from ftray.data.pictures import IMAGE_SUFFIXES
from ftray.data.readers import read_records
from ftray.data.retrieval import read_beir
from ftray.data.sources import _ARCHIVES, _CSV, _JSON, _PARQUET
from ftray.errors import DataError
from ftray.models import registry as models
from ftray.training.job import prepare
from tests.data.pictured import encoded, off

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "data.md").read_text(encoding="utf-8")
SECTIONS = dict(re.findall(r"^## (.+)\n((?:(?!## ).*\n)*)", PAGE, re.MULTILINE))
BLOCK = re.compile(r"^(?:`([\w./-]+)`:\n)?```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


class Example(NamedTuple):
    """A configuration or a piece of Python, and what the log says of its data."""

    section: str
    kind: str
    code: str
    said: str


def examples() -> list[Example]:
    """Each ```yaml and ```python block with the ```text block behind it."""
    found = []
    for title, section in SECTIONS.items():
        blocks = [(kind, body) for _, kind, body in BLOCK.findall(section)]
        for (kind, body), (after, said) in zip(blocks, [*blocks[1:], ("", "")], strict=False):
            if kind in ("yaml", "python"):
                assert after == "text", f"{title}: {body}"
                found.append(Example(title, kind, body, said))
    return found


EXAMPLES = examples()
FILES = {name: body for name, _, body in BLOCK.findall(PAGE) if name and not name.endswith("/")}
THINGS = sorted(set(re.findall(r"[\w/]+\.(?:png|off|npy)", PAGE)))
"""Images, meshes and clouds that the page names anywhere."""


def slug(title: str) -> str:
    """How GitHub names the place of a heading."""
    return re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-")


def lines_of(said: str) -> list[str]:
    """The lines of a ```text block; one that begins with two spaces goes on with the one above."""
    return said.replace("\n  ", " ").splitlines()


def table(section: str, number: int = 0) -> list[list[str]]:
    """The rows of a table of a section, without its heading."""
    parts = re.findall(r"(?:^\|.*\n)+", SECTIONS[section], re.MULTILINE)
    return [cells(line) for line in parts[number].splitlines()[2:]]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with all files that the page shows or names."""
    folder = tmp_path_factory.mktemp("data")
    for number, name in enumerate(THINGS):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == ".png":
            path.write_bytes(encoded(number))
        elif path.suffix == ".off":
            path.write_text(off(number))
        else:
            np.save(path, np.random.default_rng(number).random((40, 3)))
    for name, body in FILES.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(body, encoding="utf-8")
    shutil.copy(folder / "train.csv", folder / "test.csv")
    with tarfile.open(folder / "pets.tar.gz", "w:gz") as archive:
        archive.add(folder / "pets", "pets")
    return folder


@pytest.fixture
def place(files: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The user is in that folder; `minilm` is a small model."""
    found = models._place_of
    minilm = {"minilm": str(tiny_model)}
    monkeypatch.setattr(
        models, "_place_of", lambda name, entry: minilm.get(name) or found(name, entry)
    )
    monkeypatch.chdir(files)
    return files


def notes_of(config: FitConfig, place: Path) -> list[str]:
    """What the log of a fit says of its data."""
    job = prepare(config, str(place / "run"))
    ours = ("train_data", *(spec.name for spec in job.evaluations))
    return [note for note in job.notes if note.startswith(tuple(f"{name}: " for name in ours))]


def said_of(example: Example, place: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The lines that the log has for an example."""
    if example.kind == "yaml":
        config = yaml.safe_load(example.code)
        others = re.findall(r"^train_data: .*# or (.+)$", example.code, re.MULTILINE)
        sources = [config["train_data"], *(name for more in others for name in more.split(", or "))]
        return [
            note
            for source in sources
            for note in notes_of(validated({**config, "train_data": source}), place)
        ]
    said: list[str] = []
    monkeypatch.setattr(
        ftray, "fit", lambda **fields: said.extend(notes_of(validated(fields), place))
    )
    code = compile(example.code, "docs/data.md", "exec", dont_inherit=True)
    exec(code, {"__name__": "__main__"})
    return said


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda one: f"{slug(one.section)}-{one.kind}")
def test_an_example_is_read_as_printed_and_the_log_says_what_is_printed(
    example: Example, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if "from datasets" in example.code:
        pytest.importorskip("datasets")
    assert said_of(example, place, monkeypatch) == lines_of(example.said)
