"""Write the emoji set as pairs of text and image, for configs/emoji.yaml.

    FTRAY_DATA=... python benchmarks/prepare_emoji.py FOLDER

train.parquet has the 1,148 training emoji, each with its name, its name with three keywords, and up
to eight single keywords; val.parquet (100) and test.parquet (300) have the names alone.
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Iterator
from pathlib import Path

import common
import pyarrow as pa
import pyarrow.parquet as pq

SINGLE_KEYWORDS = 8


def main() -> None:
    """Write the three files."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder
    source = common.data_file("emoji/emoji.parquet")
    if source is None:
        parser.error("FTRAY_DATA must name the folder that holds emoji/")
    prepare(source, folder)


def prepare(source: Path, folder: Path) -> None:
    """Write the three files into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = pq.read_table(source).to_pylist()
    draw = random.Random(0)
    for split in ("train", "val", "test"):
        chosen = [row for row in rows if row["split"] == split]
        pairs = [
            {"text": text, "image": row["image"]}
            for row in chosen
            for text in (texts(row, draw) if split == "train" else [row["name"]])
        ]
        schema = pa.schema({"text": pa.string(), "image": pa.binary()})
        pq.write_table(pa.Table.from_pylist(pairs, schema), folder / f"{split}.parquet")


def texts(row: dict, draw: random.Random) -> Iterator[str]:
    """What is said of an emoji; different emoji may share a keyword."""
    words = [word for word in row["keywords"] if word != row["name"]]
    yield row["name"]
    if words:
        yield ", ".join([row["name"], *draw.sample(words, min(3, len(words)))])
    yield from draw.sample(words, min(SINGLE_KEYWORDS, len(words)))


if __name__ == "__main__":
    main()
