"""What the benchmarks share: where they run, statistics, tables, and pages of results.

Scripts import this module before torch: it sets what OpenMP and the tokenizers read only once.
"""

from __future__ import annotations

import datetime
import os
import platform
import shlex
import statistics
import subprocess
import sys
import textwrap
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

__all__ = [
    "command",
    "commit",
    "data_file",
    "machine",
    "page",
    "quartiles",
    "require",
    "say",
    "table",
    "versions",
]

FOLDER = Path(__file__).resolve().parent


def machine(threads: int) -> str:
    """One sentence: processor, cores, threads, memory, Python, torch."""
    cores = os.cpu_count()
    gib = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return (
        f"{_processor()}, {cores} cores, {threads} threads, {gib:.0f} GiB, {platform.system()}, "
        f"Python {platform.python_version()}, torch {metadata.version('torch')}, "
        f"OMP_WAIT_POLICY={os.environ['OMP_WAIT_POLICY']}"
    )


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def commit() -> str:
    """The commit of the checkout, and whether `ftray/` or `benchmarks/` differ from it."""

    def git(*words: str) -> str:
        answer = subprocess.run(
            ["git", "-C", str(FOLDER.parent), *words], capture_output=True, text=True, check=False
        )
        return answer.stdout.strip()

    changed = git("status", "--porcelain", "--untracked-files=no", "--", "ftray", "benchmarks")
    return (git("rev-parse", "--short", "HEAD") or "unknown") + (" with changes" if changed else "")


def versions(*packages: str) -> str:
    """`name version` of each package, with commas between."""
    return ", ".join(f"{name} {metadata.version(name)}" for name in packages)


def command() -> str:
    """How the script was called, as a reader would write it."""
    words = ["python", f"benchmarks/{Path(sys.argv[0]).name}", *sys.argv[1:]]
    data = "FTRAY_DATA=... " if "FTRAY_DATA" in os.environ else ""
    return data + " ".join(map(shlex.quote, words))


def data_file(*parts: str) -> Path | None:
    """A file under `$FTRAY_DATA`, or None where that is not set."""
    root = os.environ.get("FTRAY_DATA")
    return Path(root).joinpath(*parts) if root else None


def quartiles(values: Sequence[float]) -> tuple[float, float, float]:
    """First quartile, median, third quartile."""
    if len(values) < 2:
        return values[0], values[0], values[0]
    first, middle, third = statistics.quantiles(values, n=4, method="inclusive")
    return first, middle, third


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    return "\n".join(f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *rows))


def page(name: str, title: str, body: str, *, threads: int, load: float, write: bool) -> None:
    """Print a page of results, and write it to `results/<name>.md` if asked to.

    Args:
        name: of the file.
        title: its headline.
        body: Markdown.
        threads: of each contestant.
        load: the machine's load average when the script began.
        write: whether to write the file.
    """
    where = (
        f"`{command()}` at commit {commit()}, {datetime.date.today().isoformat()}; "
        f"{machine(threads)}. Load average before: {load:.2f}."
    )
    text = "\n\n".join(map(wrapped, [f"# {title}", where, *body.strip().split("\n\n")])) + "\n"
    print(text)
    if write:
        path = FOLDER / "results" / f"{name}.md"
        path.write_text(text, encoding="utf-8")
        say(f"Written: benchmarks/results/{path.name}")


def wrapped(block: str) -> str:
    """A paragraph in lines of at most 100 characters; headlines and tables as they are."""
    if block.startswith(("#", "|")):
        return block
    return textwrap.fill(
        " ".join(block.split()), 100, break_long_words=False, break_on_hyphens=False
    )


def say(what: str) -> None:
    """How far we are; standard output is for the page."""
    print(what, file=sys.stderr, flush=True)


def require(fine: bool, problem: str) -> None:
    """End the script: what does not agree is not timed."""
    if not fine:
        sys.exit(f"{Path(sys.argv[0]).name}: {problem}")
