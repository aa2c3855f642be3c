"""docs/data.md: its examples are read as they are printed, and its tables are the code's."""

from __future__ import annotations

import json
import re
import shutil
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import yaml

import ftray
from ftray.config import CsvOptions, FitConfig, validated
from ftray.data import columns, roles
from ftray.data.folders import CAPTION_FILES
from ftray.data.names import TELLING
from ftray.data.pictures import IMAGE_SUFFIXES, POINT_SUFFIXES
from ftray.data.retrieval import read_beir
from ftray.data.sources import _ARCHIVES, _CSV, _JSON, _PARQUET
from ftray.errors import DataError
from ftray.losses.nested import WRAPPERS
from ftray.losses.registry import LOSS_NAMES, loss_needs
from ftray.models import registry as models
from ftray.training.job import prepare
from tests.data.pictured import FEATURES, IMAGE, TEXT, encoded, off, refused

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
SHOWN = PAGE.partition("\n## What is refused")[0]
THINGS = sorted(set(re.findall(r"[\w/]+\.(?:png|off|npy)", SHOWN)))
"""Images, meshes and clouds that the examples name."""


def cells(line: str) -> list[str]:
    """The cells of a line of a table."""
    return [part.strip() for part in line.strip().strip("|").split("|")]


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


def test_every_text_block_belongs_to_an_example() -> None:
    assert len(EXAMPLES) == PAGE.count("```text\n") == 15
    assert all(lines_of(example.said) for example in EXAMPLES)


# ---------------------------------------------------------------- its tables


def test_the_tables_of_names_are_the_codes() -> None:
    assert [(role.strip("`"), tuple(names.split(", "))) for role, names in table(NAMES)] == list(
        TELLING.items()
    )
    assert [tuple(names.split(", ")) for _, names in table(NAMES, 1)] == [
        roles.THING_NAMES,
        roles.FILE_NAMES,
        roles.CAPTION_NAMES,
    ]


def test_the_table_of_csv_options_is_the_codes() -> None:
    fields = CsvOptions.model_fields
    stated = {
        name.strip("`"): yaml.safe_load(default.strip("`"))
        for name, default, _ in table("csv_options")
    }
    assert stated == {name: field.default for name, field in fields.items()}


def test_the_table_of_kinds_has_the_columns_of_the_code() -> None:
    parts = re.search(r"(?:^\|.*\n)+", PAGE, re.MULTILINE)
    assert parts is not None
    stated = [cells(line)[1] for line in parts.group().splitlines()[2:-1]]
    assert stated == [f"`{','.join(names)}`" for names in columns.ROLES_OF.values()]


def test_the_losses_of_scored_pairs_and_of_a_teachers_scores_are_all_there_are() -> None:
    parts = re.search(r"(?:^\|.*\n)+", PAGE, re.MULTILINE)
    assert parts is not None
    stated = {
        row[0]: set(re.findall(r"`(\w+)`", row[2])) for row in map(cells, parts[0].splitlines())
    }
    for data, needs in (("scored pairs", "scores"), ("triplets with scores", "distillation")):
        plain = set(LOSS_NAMES) - set(WRAPPERS)
        assert stated[data] == {name for name in plain if loss_needs(name) == needs}


def test_the_endings_it_names_are_those_that_are_read() -> None:
    where = SECTIONS["Where files are looked for"]
    sentence = where.partition("they end in ")[2].partition(",\nor begin")[0]
    assert tuple(re.findall(r"\.\w+", sentence)) == (*IMAGE_SUFFIXES, *POINT_SUFFIXES)
    for ending in (*_CSV, *_JSON, *_PARQUET, *_ARCHIVES):
        assert f"`{ending}`" in PAGE or f"{ending})" in PAGE or f"{ending}," in PAGE, ending
    pictures = SECTIONS["Texts and images"]
    for name in CAPTION_FILES:
        stem, _, ending = name.partition(".")
        assert re.search(rf"`{stem}` \([^)]*\.{ending}\b", pictures), name


# ---------------------------------------------------------------- what is refused

NAMES = "Which column is what"
REFUSED = "What is refused"
SHOES = ["image,label", *(f"shoes/{n % 4 + 1}.png,boot" for n in range(20))]


def written(name: str, lines: list[str]) -> str:
    """A file of these lines, and its name."""
    Path(name).write_text("\n".join(lines) + "\n", encoding="utf-8")
    return name


def shoes(line: int, cells: str) -> str:
    """The rows of the page's shoes with another one in a line of the file."""
    return written("shoes.csv", [*SHOES[: line - 1], cells, *SHOES[line:]])


def a_damaged_image() -> str:
    Path("shoes/2.png").write_bytes(encoded(0)[:50])
    return refused(shoes(3, "shoes/2.png,boot"))


def labels_and_items_exchanged() -> str:
    lines = ["image,name", "shoes/1.png,boot", "shoes/2.png,boot"]
    wrong = {"item": "name", "label": "image"}
    return refused(written("shoes.csv", lines), columns=wrong, modalities=IMAGE)


def vectors(second: str) -> str:
    lines = [f'{{"features": {numbers}, "label": "a"}}' for numbers in ("[1, 2, 3]", second)]
    return refused(written("features.jsonl", lines), modalities=FEATURES)


def taught(name: str, second: dict[str, list[object]]) -> str:
    """The page's rows with negatives, the second one with other lists."""
    rows = [json.loads(line) for line in FILES[name].splitlines()]
    return refused(written(name, [json.dumps(row) for row in (rows[0], {**rows[1], **second})]))


def absent_documents() -> str:
    path = Path("science/qrels/test.tsv")
    path.write_text("query-id\tcorpus-id\tscore\nq1\td9\t1\n")
    with pytest.raises(DataError) as error:
        read_beir("science")
    return str(error.value)


def a_folder_of_splits() -> str:
    for name in ("train", "test"):
        Path("pets", name).mkdir()
        shutil.move(f"pets/{'cat' if name == 'train' else 'dog'}", f"pets/{name}")
    return refused("pets")


def packed(name: str, content: bytes) -> str:
    with zipfile.ZipFile("pets.zip", "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        archive.writestr(name, content)
    return refused("pets.zip")


CASES: dict[str, Callable[[], str]] = {
    "a damaged image": a_damaged_image,
    "a file that is missing": lambda: refused(shoes(18, "shoes/17.png,boot")),
    "a row without negatives": lambda: taught("hard.jsonl", {"neg": []}),
    "scores that do not fit the negatives": lambda: taught("taught.jsonl", {"score": [1]}),
    "scores of other numbers": lambda: refused(
        written(
            "taught.csv",
            ["query,pos,neg_1,neg_2,score_1,score_3", "close it?,by menu,no,at nine,2,1"],
        )
    ),
    "lists in a CSV file": lambda: refused(
        written("hard.csv", ["query,pos,neg", "a,b,\"['c', 'd']\""])
    ),
    "an empty cell": lambda: refused(shoes(3, ",boot")),
    "an address in the web": lambda: refused(shoes(2, "https://shop.example/1.png,boot")),
    "texts among images": lambda: refused(shoes(3, "a red shoe,boot")),
    "labels and items exchanged": labels_and_items_exchanged,
    "images for a model without them": lambda: refused(
        [{"image": encoded(0), "label": "boot"}], modalities=TEXT
    ),
    "a number that is not finite": lambda: vectors("[1, NaN, 3]"),
    "vectors of two widths": lambda: vectors("[1, 2]"),
    "a delimiter without quotes": lambda: refused(
        written("tickets.csv", ["text,label", "My card is gone, what now?,lost_card"])
    ),
    "a quote that is not closed": lambda: refused(
        written("tickets.csv", ["text,label", "where is it?,card", '"so what?,pin'])
    ),
    "a text with U+0000": lambda: refused(
        written(
            "tickets.jsonl", ['{"text": "a", "label": "b"}', '{"text": "a\\u0000", "label": "b"}']
        )
    ),
    "judgements of documents that are absent": absent_documents,
    "a folder of splits": a_folder_of_splits,
    "a way out of an archive": lambda: packed("../1.png", encoded(0)),
    "a bomb": lambda: packed("cat/1.png", bytes(101 << 20)),
    "a path for a model of texts": lambda: refused([Path("a.txt")], modalities=TEXT),
}
"""Each row of the table, and what makes its message."""


def test_every_row_of_what_is_refused_has_its_case() -> None:
    assert [row[0] for row in table(REFUSED)] == list(CASES)


@pytest.mark.parametrize("case", CASES)
def test_what_is_refused_is_refused_as_stated(
    case: str, files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("shoes", "pets", "science"):
        shutil.copytree(files / name, tmp_path / name)
    monkeypatch.chdir(tmp_path)
    ((begins, does),) = [row[1:] for row in table(REFUSED) if row[0] == case]
    assert does
    assert CASES[case]().startswith(begins.strip("`"))


# ---------------------------------------------------------------- its form


def test_tables_are_whole_and_lines_short() -> None:
    fenced = False
    width = 0
    for line in PAGE.splitlines():
        fenced ^= line.startswith("```")
        if line.startswith("|") and not fenced:
            width = width or len(cells(line))
            assert len(cells(line)) == width, line
        else:
            width = 0
            assert len(line) <= 100, line


def test_links_lead_somewhere() -> None:
    found = re.findall(r"\]\(([\w./-]+)\)", PAGE)
    assert found
    for target in found:
        assert (ROOT / "docs" / target).exists(), target
