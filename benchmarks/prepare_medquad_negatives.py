"""Write MedQuAD's questions with their answers and hard negatives, for a config to train on.

    FTRAY_DATA=... python benchmarks/prepare_medquad_negatives.py --out FOLDER

train.parquet has the 4,000 training questions with `negative_1` to `negative_3`: for each question
the answers to others that `minilm` ranks highest, as sentence-transformers' `mine_hard_negatives`
finds them. Answers that score more than 95 % of what the question's own answer does are left out:
those may be right (NV-Retriever, Moreira et al. 2024). So are questions with fewer than three left.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import common
import pyarrow.parquet as pq
from datasets import Dataset
from sentence_transformers import SentenceTransformer
from sentence_transformers.util import mine_hard_negatives

from ftray.data.readers import read_records
from ftray.models.registry import locate_model

NEGATIVES = 3
NEAR = 0.05
"""Negatives score at least this share less than the question's own answer."""
SEARCHED = 100
"""So many answers are looked at for each question."""
MAX_LENGTH = 128


def main() -> None:
    """Write the file."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="the folder to write into")
    parser.add_argument("--limit", type=int, help="take only so many questions, the first ones")
    given = parser.parse_args()
    source = common.data_file("medquad/train.csv")
    if source is None:
        parser.error("FTRAY_DATA must name the folder that holds medquad/")
    prepare(source, given.out, given.limit)


def prepare(source: Path, folder: Path, limit: int | None = None) -> None:
    """Write the file into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    columns = {"query": "query", "document": "answer"}
    pairs = read_records(source, columns=columns, csv_options={"size": limit}).table
    model = SentenceTransformer(locate_model("minilm"), device="cpu")
    model.max_seq_length = MAX_LENGTH
    mined = mine_hard_negatives(
        Dataset(pairs),
        model,
        anchor_column_name="query",
        positive_column_name="document",
        num_negatives=NEGATIVES,
        relative_margin=NEAR,
        range_max=SEARCHED,
        output_format="n-tuple",
    )
    pq.write_table(mined.with_format("arrow")[:], folder / "train.parquet")
    common.say(f"{len(mined):,} of {len(pairs):,} questions have {NEGATIVES} hard negatives")


if __name__ == "__main__":
    main()
