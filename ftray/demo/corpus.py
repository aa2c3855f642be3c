"""The demo's corpus: code search on the standard library of the running interpreter.

A query is the first paragraph of a function's docstring; its document is the function's source
without any docstring, and with its own name masked, so that neither gives the other away. The
parts are split by top-level package or module: what is tested was never seen in training.
Nothing is downloaded, and the same interpreter and seed give the same corpus everywhere.
"""

from __future__ import annotations

import ast
import hashlib
import os
import random
import re
import statistics
import sysconfig
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from ftray.errors import ConfigError, DataError

__all__ = ["MASK", "CodePair", "CodeSearch", "build_corpus"]

MASK = "_masked_"
"""What stands in a document where the function's own name stood."""

_EXCLUDED_FOLDERS = frozenset({"__pycache__", "idle_test", "test", "tests", "turtledemo"})
_MIN_QUERY_WORDS = 3
_MIN_BODY_WORDS = 8
_MIN_TRAIN_PAIRS = 100

_Function = ast.FunctionDef | ast.AsyncFunctionDef


@dataclass(frozen=True)
class CodePair:
    """One function: what it says it does, and what it does.

    Attributes:
        query: the first paragraph of its docstring, on one line.
        document: its source as `ast.unparse` writes it (signature on the first line, no comments,
            decorators or docstrings), its own name replaced by `MASK`.
        module: the top-level package or module it comes from, such as ``json``.
        location: file and line below the root, such as ``json/decoder.py:343``.
    """

    query: str
    document: str
    module: str
    location: str


@dataclass(frozen=True)
class CodeSearch:
    """The three parts; no module, normalised docstring or normalised body is in two of them.

    Attributes:
        train: pairs to train on.
        validation: pairs to stop and choose by.
        test: pairs to report.
        files: how many source files had at least one usable function.
    """

    train: list[CodePair]
    validation: list[CodePair]
    test: list[CodePair]
    files: int


def build_corpus(
    *,
    train_pairs: int = 1536,
    validation_pairs: int = 200,
    test_pairs: int = 500,
    seed: int = 0,
    root: Path | None = None,
) -> CodeSearch:
    """Read a Python source tree into query–document pairs for training, validation and test.

    Whole modules are dealt to the parts in an order that depends on `seed` alone; then pairs that
    would repeat one of a part judged later are removed, and each part is sampled down to its size.
    A tree too small for the sizes asked for gives smaller parts.

    Args:
        train_pairs: most pairs to train on, at least 1.
        validation_pairs: most pairs of the validation part, at least 1.
        test_pairs: most pairs of the test part, at least 1.
        seed: decides the split and the samples.
        root: the folder to read; the running interpreter's standard library by default.

    Raises:
        ConfigError: a size is below 1.
        DataError: the folder is missing, or has too few documented functions.
    """
    sizes = {"train": train_pairs, "validation": validation_pairs, "test": test_pairs}
    for part, size in sizes.items():
        if size < 1:
            raise ConfigError(f"{part}_pairs is {size}; at least 1 is needed.")
    folder = Path(sysconfig.get_path("stdlib")) if root is None else root
    found, files = _read_pairs(folder)
    parts = _split_by_module(found, sizes, seed=seed)

    seen: set[str] = set()
    # The part judged last keeps its pairs; what it repeats is taken from those before it.
    for part in ("test", "validation", "train"):
        parts[part] = _unseen(parts[part], seen)
        seen.update(key for pair in parts[part] for key in _keys(pair))
    _require_enough(parts, sizes, folder=folder, files=files)
    chosen = {part: _sample(parts[part], sizes[part], f"{seed}:{part}") for part in sizes}
    return CodeSearch(chosen["train"], chosen["validation"], chosen["test"], files)


def _require_enough(
    parts: dict[str, list[CodePair]], sizes: dict[str, int], *, folder: Path, files: int
) -> None:
    counts = {part: len(pairs) for part, pairs in parts.items()}
    enough = counts["train"] >= min(_MIN_TRAIN_PAIRS, sizes["train"])
    if enough and counts["validation"] and counts["test"]:
        return
    raise DataError(
        f"Too few documented functions under {folder}: {files} source files gave "
        f"{counts['train']} pairs to train on, {counts['validation']} to validate and "
        f"{counts['test']} to test; at least {min(_MIN_TRAIN_PAIRS, sizes['train'])}, 1 and 1 are "
        "needed. Some Python distributions ship their library without its sources: run the demo "
        "with another interpreter, or name a folder of Python packages as root."
    )


# Reading


def _read_pairs(root: Path) -> tuple[list[CodePair], int]:
    """All usable functions below `root`, in the order of files and lines, and the file count."""
    if not root.is_dir():
        raise DataError(
            f"No Python sources at {root}: it is not a folder. The demo reads the standard "
            "library's .py files there; name another folder of Python packages as root."
        )
    pairs: list[CodePair] = []
    files = 0
    for path in _source_files(root):
        of_file = list(_pairs_of_file(root, path))
        files += bool(of_file)
        pairs.extend(of_file)
    return pairs, files


def _source_files(root: Path) -> list[Path]:
    found: list[Path] = []
    for folder, subfolders, names in os.walk(root):
        # site-packages, lib-dynload and config-3.11-… cannot be imported by name: no library.
        subfolders[:] = [
            name for name in subfolders if name.isidentifier() and name not in _EXCLUDED_FOLDERS
        ]
        found.extend(Path(folder, name) for name in names if name.endswith(".py"))
    return sorted(found, key=lambda path: path.relative_to(root).parts)


def _pairs_of_file(root: Path, path: Path) -> Iterator[CodePair]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # invalid escapes and the like are not ours to report
            tree = ast.parse(path.read_bytes())
    except (OSError, SyntaxError, ValueError):
        return
    relative = path.relative_to(root)
    module = relative.parts[0].removesuffix(".py")
    for function in _functions(tree):
        query = _query(ast.get_docstring(function) or "")
        if query is None:
            continue
        document = _document(function)
        if _is_trivial(function, document) or _normalise(query) in _normalise(document):
            continue
        yield CodePair(query, document, module, f"{relative.as_posix()}:{function.lineno}")


def _functions(node: ast.AST) -> Iterator[_Function]:
    """Functions and methods in order; those inside another function are part of its document."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, _Function):
            yield child
        elif isinstance(child, ast.stmt | ast.ExceptHandler):
            yield from _functions(child)


def _query(docstring: str) -> str | None:
    """The first paragraph on one line; None where it is no sentence about the function."""
    paragraph = " ".join(re.split(r"\n\s*\n", docstring.strip(), maxsplit=1)[0].split())
    if paragraph.startswith(">>>"):
        return None
    if re.fullmatch(r"[\w.]+\(.*\)(\s*->.*)?", paragraph):  # a signature, told again
        return None
    words = [word for word in paragraph.split() if re.search(r"[^\W\d_]{2}", word)]
    return paragraph if len(words) >= _MIN_QUERY_WORDS else None


def _document(function: _Function) -> str:
    """The function's code with its docstrings, decorators and name taken away (in place)."""
    name = function.name
    function.decorator_list = []
    for node in ast.walk(function):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            while node.body and _is_string(node.body[0]):
                del node.body[0]
            node.body = node.body or [ast.Pass()]
    return re.sub(rf"\b{re.escape(name)}\b", MASK, ast.unparse(function))


def _is_string(statement: ast.stmt) -> bool:
    return (
        isinstance(statement, ast.Expr)
        and isinstance(statement.value, ast.Constant)
        and isinstance(statement.value.value, str)
    )


def _is_trivial(function: _Function, document: str) -> bool:
    """Whether the body says too little to be found by: stubs, constants, short delegations."""
    match function.body:
        case [ast.Pass() | ast.Raise() | ast.Return(value=None | ast.Constant())]:
            return True
    return len(_normalise(_body(document)).split()) < _MIN_BODY_WORDS


# Splitting


def _split_by_module(
    pairs: Iterable[CodePair], sizes: dict[str, int], *, seed: int
) -> dict[str, list[CodePair]]:
    """Deal whole modules, in the order of a hash of their names, to the part that lacks the most.

    The parts grow in proportion to `sizes`. A module of more than a third of a part's share does
    not go there (unless it is of median size or below), or a test would be a test of one module.
    """
    modules: dict[str, list[CodePair]] = {}
    for pair in pairs:
        modules.setdefault(pair.module, []).append(pair)
    total = sum(map(len, modules.values()))
    share = {part: total * size / sum(sizes.values()) for part, size in sizes.items()}
    median = statistics.median(map(len, modules.values())) if modules else 0
    most = {part: max(share[part] / 3, median) for part in sizes} | {"train": total}
    parts: dict[str, list[CodePair]] = {part: [] for part in sizes}
    for module in sorted(modules, key=lambda name: _hash(f"{seed}:{name}")):
        of_module = modules[module]
        fitting = [part for part in sizes if len(of_module) <= most[part]]
        parts[min(fitting, key=lambda part: len(parts[part]) / share[part])].extend(of_module)
    return parts


def _unseen(pairs: Iterable[CodePair], seen: set[str]) -> list[CodePair]:
    """The pairs whose docstring and body are new: neither in `seen` nor in a pair before them."""
    known = set(seen)
    kept: list[CodePair] = []
    for pair in pairs:
        keys = _keys(pair)
        if known.isdisjoint(keys):
            kept.append(pair)
            known.update(keys)
    return kept


def _sample(pairs: list[CodePair], size: int, seed: str) -> list[CodePair]:
    ordered = sorted(pairs, key=lambda pair: pair.location)
    return random.Random(seed).sample(ordered, min(size, len(ordered)))


def _keys(pair: CodePair) -> tuple[str, str]:
    return _normalise(pair.query), _normalise(_body(pair.document))


def _body(document: str) -> str:
    return document.partition("\n")[2]


def _normalise(text: str) -> str:
    """Lower case, with all white space and punctuation folded to single spaces."""
    return re.sub(r"[\W_]+", " ", text.lower()).strip()


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
