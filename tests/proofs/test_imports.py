"""Contract 5: Ray stays in `ftray/cluster/`, and the light parts import nothing heavy."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import ftray
from ftray import callbacks

PACKAGE = Path(ftray.__file__).parent
HEAVY = "ray torch transformers docarray faiss pandas sentence_transformers".split()
LIGHT = {
    "import ftray": HEAVY,
    f"from ftray.callbacks import {', '.join(callbacks.__all__)}": HEAVY,
    "import ftray.config": HEAVY,
    # what Ray's controller and the mailbox import: they start while workers wait for a core
    "import ftray.cluster.bridge, ftray.cluster.failures": ["torch", "transformers", "faiss"],
    # num_workers=0: the loop, with all that it needs, knows no Ray
    "import ftray.training.loop, ftray.runtime.local, sentence_transformers": ["ray"],
}


def loaded_by(statement: str, names: list[str]) -> list[str]:
    """Which of the modules are in sys.modules after a statement, in a fresh process."""
    program = f"{statement}\nimport sys\nprint(*[n for n in {names} if n in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


@pytest.mark.parametrize("statement", LIGHT)
def test_importing_brings_in_nothing_heavy(statement: str) -> None:
    assert loaded_by(statement, LIGHT[statement]) == []


def test_a_heavy_import_is_noticed() -> None:
    assert loaded_by("import ftray, faiss", HEAVY) == ["faiss"]


def imports_of(source: str, package: str) -> Iterator[tuple[int, str]]:
    """(line, module) of every import of a package: at the top, in functions, or by name."""
    for node in ast.walk(ast.parse(source)):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and not node.level:
            names = [node.module or ""]
        elif isinstance(node, ast.Call) and node.args:
            function = node.func
            called = getattr(function, "attr", getattr(function, "id", ""))
            first = node.args[0]
            if called in ("import_module", "__import__") and isinstance(first, ast.Constant):
                names = [str(first.value)]
        for name in names:
            if name == package or name.startswith(f"{package}."):
                yield node.lineno, name


MODULES = sorted(file for file in PACKAGE.rglob("*.py"))
OUTSIDE = [file for file in MODULES if PACKAGE / "cluster" not in file.parents]


def test_only_the_cluster_package_imports_ray() -> None:
    found = [
        f"{file.relative_to(PACKAGE.parent)}:{line} imports {name}"
        for file in OUTSIDE
        for line, name in imports_of(file.read_text(encoding="utf-8"), "ray")
    ]
    assert not found, "\n".join(found)
    assert len(OUTSIDE) > 40


@pytest.mark.parametrize(
    "line",
    [
        "import ray",
        "import ray.train as train",
        "import os, ray",
        "from ray import tune",
        "from ray.train.torch import TorchTrainer",
        "if True:\n    def f():\n        import ray",
        "import importlib\nimportlib.import_module('ray.data')",
        "__import__('ray')",
    ],
)
def test_an_import_of_ray_in_any_form_is_noticed(line: str) -> None:
    for file in (PACKAGE / "training" / "loop.py", PACKAGE / "callbacks" / "base.py"):
        source = file.read_text(encoding="utf-8")
        assert not list(imports_of(source, "ray"))
        start = "from __future__ import annotations\n"
        assert start in source
        assert list(imports_of(source.replace(start, f"{start}{line}\n", 1), "ray"))
    assert not list(imports_of("import rays\nfrom arrays import ray\nray = 1", "ray"))
