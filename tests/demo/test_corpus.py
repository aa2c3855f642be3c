from __future__ import annotations

import ast
import hashlib
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from ftray.demo.corpus import MASK, CodePair, CodeSearch, build_corpus
from ftray.errors import ConfigError, DataError

_FINGERPRINT = """
import hashlib
from ftray.demo.corpus import build_corpus
print(hashlib.sha256(repr(build_corpus()).encode()).hexdigest())
"""


@pytest.fixture(scope="module")
def corpus() -> CodeSearch:
    return build_corpus()


def _parts(corpus: CodeSearch) -> dict[str, list[CodePair]]:
    return {"train": corpus.train, "validation": corpus.validation, "test": corpus.test}


def _folded(text: str) -> str:
    """Lower case, white space and punctuation folded: written apart from the code under test."""
    return " ".join(re.findall(r"[^\W_]+", text.lower()))


def _folded_body(pair: CodePair) -> str:
    (function,) = ast.parse(pair.document).body
    assert isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef)
    return _folded("\n".join(map(ast.unparse, function.body)))


def _tree(root: Path, modules: int, functions: int) -> Path:
    for module in range(modules):
        text = "".join(
            f"def compute_{i}(left, right):\n"
            f'    """Compute the value number {i} of module {module}."""\n'
            f"    total = left * {i} + right * {module}\n"
            f"    return [total, left, right, {i}, {module}]\n\n"
            for i in range(functions)
        )
        (root / f"module{module}.py").write_text(text, encoding="utf-8")
    return root


def test_the_parts_have_the_sizes_asked_for(corpus: CodeSearch) -> None:
    assert {part: len(pairs) for part, pairs in _parts(corpus).items()} == {
        "train": 1536,
        "validation": 200,
        "test": 500,
    }
    assert corpus.files > 200


def test_no_module_is_in_two_parts(corpus: CodeSearch) -> None:
    modules = {part: {pair.module for pair in pairs} for part, pairs in _parts(corpus).items()}
    assert modules["train"].isdisjoint(modules["validation"] | modules["test"])
    assert modules["validation"].isdisjoint(modules["test"])
    for pairs in _parts(corpus).values():
        assert all(re.match(rf"{pair.module}(/|\.py:)", pair.location) for pair in pairs)


def test_the_test_part_is_not_one_module(corpus: CodeSearch) -> None:
    assert len({pair.module for pair in corpus.test}) >= 10


@pytest.mark.parametrize(
    ("earlier", "later"), [("train", "test"), ("validation", "test"), ("train", "validation")]
)
def test_no_body_or_docstring_of_a_later_part_occurs_in_an_earlier_one(
    corpus: CodeSearch, earlier: str, later: str
) -> None:
    first, second = _parts(corpus)[earlier], _parts(corpus)[later]
    assert {_folded(p.query) for p in first}.isdisjoint(_folded(p.query) for p in second)
    assert {_folded_body(p) for p in first}.isdisjoint(map(_folded_body, second))


def test_leaks_across_modules_are_removed_from_the_part_trained_on(tmp_path: Path) -> None:
    _tree(tmp_path, modules=40, functions=10)
    for module in range(40):
        with (tmp_path / f"module{module}.py").open("a", encoding="utf-8") as file:
            # One body, differently laid out, under 40 docstrings; one docstring over 40 bodies.
            space = "\n" * (module % 3)
            file.write(
                f'def copied(a, b):\n    """Copied text of number {module}."""\n'
                f"    c = a + b{space}\n    d = (a * b)\n    return [a, b, c, d, a]\n\n"
                f'def told(a, b):\n    """The same  text{"." * (module % 2)}"""\n'
                f"    c = a + {module}\n    d = b * {module}\n    return [a, b, c, d]\n\n"
            )
    corpus = build_corpus(train_pairs=999, validation_pairs=200, test_pairs=300, root=tmp_path)
    pairs = [pair for part in _parts(corpus).values() for pair in part]
    assert sum("Copied text" in pair.query for pair in pairs) == 1
    assert sum("same text" in pair.query for pair in pairs) == 1
    assert any("Copied text" in pair.query for pair in corpus.test)


def test_no_query_or_body_is_twice_in_a_part(corpus: CodeSearch) -> None:
    for pairs in _parts(corpus).values():
        assert len({_folded(pair.query) for pair in pairs}) == len(pairs)
        assert len({_folded_body(pair) for pair in pairs}) == len(pairs)


def test_a_document_has_neither_its_name_nor_its_docstring(corpus: CodeSearch) -> None:
    root = Path(os.__file__).parent
    lines: dict[str, list[str]] = {}
    for pair in (pair for pairs in _parts(corpus).values() for pair in pairs):
        path, _, number = pair.location.rpartition(":")
        if path not in lines:
            lines[path] = (root / path).read_text(encoding="utf-8", errors="replace").split("\n")
        found = re.match(r"\s*(?:async\s+)?def\s+(\w+)", lines[path][int(number) - 1])
        assert found, pair.location
        assert not re.search(rf"\b{found[1]}\b", pair.document), pair.location
        assert re.match(rf"(async )?def {MASK}\(", pair.document), pair.location
        assert _folded(pair.query) not in _folded(pair.document), pair.location
        (function,) = ast.parse(pair.document).body
        assert isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef)
        assert ast.get_docstring(function) is None, pair.location


def test_a_query_is_one_line_of_words(corpus: CodeSearch) -> None:
    for pair in (pair for pairs in _parts(corpus).values() for pair in pairs):
        assert "\n" not in pair.query and not pair.query.startswith(">>>")
        assert len(pair.query.split()) >= 3


def test_trivial_bodies_are_left_out(corpus: CodeSearch) -> None:
    for pair in (pair for pairs in _parts(corpus).values() for pair in pairs):
        (function,) = ast.parse(pair.document).body
        assert isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef)
        match function.body:
            case [ast.Pass() | ast.Raise() | ast.Return(value=None | ast.Constant())]:
                pytest.fail(f"trivial: {pair}")
        assert len(_folded_body(pair).split()) >= 8


def test_test_suites_and_installed_packages_are_not_read(corpus: CodeSearch) -> None:
    for pair in (pair for pairs in _parts(corpus).values() for pair in pairs):
        folders = set(pair.location.split("/")[:-1])
        assert folders.isdisjoint({"test", "tests", "idle_test", "site-packages", "turtledemo"})


def test_two_builds_are_equal_whatever_the_hash_seed(corpus: CodeSearch) -> None:
    environment = {**os.environ, "PYTHONHASHSEED": "12345"}
    other = subprocess.run(
        [sys.executable, "-c", _FINGERPRINT],
        env=environment,
        cwd=Path(__file__).parents[2],
        check=True,
        capture_output=True,
        text=True,
    )
    assert other.stdout.strip() == hashlib.sha256(repr(corpus).encode()).hexdigest()


def test_another_seed_gives_another_split(tmp_path: Path) -> None:
    _tree(tmp_path, modules=30, functions=10)
    sizes = {"train_pairs": 100, "validation_pairs": 20, "test_pairs": 40}
    assert build_corpus(**sizes, root=tmp_path) == build_corpus(**sizes, root=tmp_path)
    assert build_corpus(**sizes, root=tmp_path) != build_corpus(**sizes, seed=1, root=tmp_path)


def test_a_file_that_does_not_parse_is_passed_over(tmp_path: Path) -> None:
    _tree(tmp_path, modules=30, functions=10)
    (tmp_path / "broken.py").write_text("def f(:\n", encoding="utf-8")
    assert build_corpus(validation_pairs=20, test_pairs=40, root=tmp_path).files == 30


def test_methods_coroutines_and_nested_docstrings(tmp_path: Path) -> None:
    _tree(tmp_path, modules=30, functions=10)
    (tmp_path / "extra.py").write_text(
        "class Client:\n"
        "    @staticmethod\n"
        "    async def download(url, tries):\n"
        '        """Ask again and again\n        until it answers.\n\n        More text here.\n'
        '        """\n'
        "        def attempt():\n"
        '            """Inner text that must go."""\n'
        "            return Client.download(url, tries - 1)\n"
        "        return [url, tries, await attempt()]\n",
        encoding="utf-8",
    )
    corpus = build_corpus(train_pairs=999, validation_pairs=99, test_pairs=99, root=tmp_path)
    pairs = [pair for part in _parts(corpus).values() for pair in part if pair.module == "extra"]
    assert pairs == [
        CodePair(
            query="Ask again and again until it answers.",
            document=f"async def {MASK}(url, tries):\n\n"
            "    def attempt():\n"
            f"        return Client.{MASK}(url, tries - 1)\n"
            "    return [url, tries, await attempt()]",
            module="extra",
            location="extra.py:3",
        )
    ]


def test_a_library_without_sources_is_an_error_that_names_the_folder(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=re.escape(str(tmp_path))):
        build_corpus(root=tmp_path)
    with pytest.raises(DataError, match=re.escape(str(tmp_path / "python311.zip"))):
        build_corpus(root=tmp_path / "python311.zip")
    with pytest.raises(DataError, match="Too few documented functions"):
        build_corpus(root=_tree(tmp_path, modules=4, functions=10))


def test_a_size_below_one_is_refused() -> None:
    with pytest.raises(ConfigError, match="test_pairs is 0"):
        build_corpus(test_pairs=0)
