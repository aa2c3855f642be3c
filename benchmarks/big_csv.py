"""A CSV file of millions of rows to training data: time, and the memory it takes.

    python benchmarks/big_csv.py [--rows 5000000] [--write]

Two files are made: texts with labels, and pairs of query and document; of each, one row in five
repeats an earlier one. A fresh process reads each as `ftray fit` does, with nothing said about the
file (encoding, delimiter, header and kind are detected), and brings it into the form that training
needs: distinct texts, distinct rows, and the groups of pairs that share texts. How many of each
there must be is known from the making; it is checked first.

The memory of a process is all that stands in it (RSS), and the part that only it holds (anonymous):
the rest are pages of files, which the system takes back when it needs room. Both are reported above
what the process held when all modules were imported. The resulting data are part of it.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import common
import numpy as np

FORMS = ("labelled", "pairs")
LABELS = 1000
REPEATS = 0.2
SAMPLED_EVERY_S = 0.01
BLOCK = 100_000


def main() -> None:
    """Make the files, measure, report."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--rows", type=int, default=5_000_000)
    parser.add_argument("--write", action="store_true", help="write results/big_csv.md")
    parser.add_argument("--read", nargs=2, help=argparse.SUPPRESS)  # the process that is measured
    arguments = parser.parse_args()
    if arguments.read:
        print(json.dumps(read(*arguments.read)))
        return
    load = os.getloadavg()[0]
    rows = []
    with tempfile.TemporaryDirectory() as place:
        for form in FORMS:
            path = Path(place) / f"{form}.csv"
            expected = make(path, form, arguments.rows)
            common.say(f"{form}: {path.stat().st_size / 1e6:,.0f} MB")
            found = measured(form, path)
            for name, count in expected.items():
                what = f"{form}: {found[name]:,} {name}, not {count:,}"
                common.require(found[name] == count, what)
            common.say(json.dumps(found))
            rows.append(line(form, path, arguments.rows, found))
            path.unlink()
    head = ["file", "MB", "distinct rows", "distinct texts", "groups", "read s", "to data s"]
    head += ["base MB", "peak above it MB", "of it anonymous MB"]
    common.page(
        "big_csv",
        "A big CSV file in bounded memory",
        f"{arguments.rows:,} rows in each file, {REPEATS:.0%} of them repeat an earlier one; read "
        "with nothing said about the file, one fresh process each. Groups are classes, or "
        "connected groups of pairs. MB are millions of bytes; the peaks include the resulting "
        "data. Anonymous is what a process needs; the rest of its peak are pages of files, which "
        "the system takes back when it needs room.\n\n" + common.table(head, rows),
        threads=os.cpu_count() or 1,
        load=load,
        write=arguments.write,
    )


def line(form: str, path: Path, rows: int, found: dict[str, float]) -> list[str]:
    """A line of the table."""
    counts = [f"{found[name]:,.0f}" for name in ("rows", "texts", "groups")]
    seconds = [f"{found[name]:.1f}" for name in ("read_s", "data_s")]
    sizes = [f"{found[name] / 1e6:,.0f}" for name in ("base", "peak", "anonymous")]
    return [form, f"{path.stat().st_size / 1e6:,.0f}", *counts, *seconds, *sizes]


def make(path: Path, form: str, rows: int) -> dict[str, int]:
    """Write a file, and return how many rows, texts and groups ftray must find in it."""
    rng = np.random.default_rng(0)
    letters = np.array(list("abcdefghijklmnopqrstuvwxyz"))
    words = ["".join(rng.choice(letters, rng.integers(2, 11))) for _ in range(1024)]
    fresh = np.flatnonzero(rng.random(rows) >= REPEATS)
    fresh = np.union1d(fresh, [0])
    # the number of what stands in each row: its own, or that of an earlier row
    numbers = np.arange(rows)
    repeats = np.setdiff1d(numbers, fresh, assume_unique=True)
    earlier = np.searchsorted(fresh, repeats)
    numbers[repeats] = fresh[(rng.random(len(repeats)) * earlier).astype(np.int64)]
    # every fourth query asks for what the one before it asked for: two documents, one group
    queries = np.where(numbers % 4 == 3, numbers - 1, numbers)
    with path.open("w", encoding="utf-8", newline="\n") as file:
        file.write("text,label\n" if form == "labelled" else "query,document\n")
        for start in range(0, rows, BLOCK):
            cut = slice(start, start + BLOCK)
            texts = sentences(numbers[cut], words, 7)
            if form == "labelled":
                seconds = (f"label {number % LABELS}" for number in numbers[cut].tolist())
                cells = zip(texts, seconds, strict=True)
            else:
                cells = zip(sentences(queries[cut] + rows, words, 4), texts, strict=True)
            file.writelines(f"{first},{second}\n" for first, second in cells)
    distinct = len(fresh)
    if form == "labelled":
        return {"rows": distinct, "texts": distinct, "groups": len(np.unique(fresh % LABELS))}
    asked = len(np.unique(queries))
    return {"rows": distinct, "texts": distinct + asked, "groups": asked}


def sentences(numbers: np.ndarray, words: list[str], count: int) -> list[str]:
    """A text for each number, another one for each: `count` words and some digits."""
    mixed = (numbers.astype(np.uint64) + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
    picked = [(mixed >> np.uint64(64 - 9 * (i + 1))) & np.uint64(511) for i in range(count - 1)]
    picked += [numbers.astype(np.uint64) % np.uint64(512) + np.uint64(512)]
    rows = zip(*(column.tolist() for column in picked), numbers.tolist(), strict=True)
    return [" ".join([words[i] for i in places]) + f" {number}" for *places, number in rows]


def measured(form: str, path: Path) -> dict[str, float]:
    """Read a file in a process of its own, and watch what memory that takes."""
    command = [sys.executable, __file__, "--read", form, str(path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        anonymous = 0
        while process.poll() is None:
            try:
                anonymous = max(anonymous, memory(process.pid)["RssAnon"])
            except (OSError, KeyError):  # it has just ended
                break
            time.sleep(SAMPLED_EVERY_S)
        assert process.stdout is not None
        answer = process.stdout.read()
    common.require(process.returncode == 0, f"the process for {form} failed")
    found: dict[str, float] = json.loads(answer)
    return {**found, "anonymous": anonymous - found["base_anonymous"]}


def read(form: str, path: str) -> dict[str, float]:
    """What is measured; runs in a process of its own."""
    from ftray.data.dataset import train_set
    from ftray.data.readers import read_records

    base = memory()
    start = time.perf_counter()
    records = read_records(path)
    middle = time.perf_counter()
    data = train_set(records)
    end = time.perf_counter()
    assert data.kind == form
    common.say(f"read: {records.notes}")
    return {
        "rows": len(data),
        "texts": len(data.texts),
        "groups": data.n_groups,
        "read_s": middle - start,
        "data_s": end - middle,
        "base": base["VmRSS"],
        "base_anonymous": base["RssAnon"],
        "peak": memory()["VmHWM"] - base["VmRSS"],
    }


def memory(process: int | str = "self") -> dict[str, int]:
    """What Linux says of a process's memory, in bytes."""
    lines = Path(f"/proc/{process}/status").read_text(encoding="utf-8").splitlines()
    fields = (line.split() for line in lines if line.endswith(" kB"))
    return {name.rstrip(":"): 1024 * int(kilobytes) for name, kilobytes, _ in fields}


if __name__ == "__main__":
    main()
