"""`ftray encode`."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from ftray.cli.columns import parse_columns
from ftray.errors import ConfigError, StorageError
from ftray.words import counted

__all__ = ["run"]


def run(
    model: str,
    data: str,
    output: str,
    role: str,
    batch_size: int,
    max_length: int | None,
    columns: Sequence[str],
    select_model: str | None = None,
) -> None:
    """Embed what is in a file; nothing that exists is overwritten."""
    target = Path(output)
    if target.suffix not in (".parquet", ".npy"):
        raise ConfigError(f"-o {output}: a file that ends in .parquet or .npy")
    if target.exists():
        raise StorageError(f"'{output}' exists already; nothing is overwritten")
    if not target.parent.is_dir():
        raise StorageError(f"There is no folder '{target.parent}' for '{output}'")
    if role not in ("", "query", "document"):
        raise ConfigError(f"--role {role}: query or document")
    import numpy as np
    import pyarrow as pa
    import pyarrow.parquet as pq

    from ftray.api import get_model
    from ftray.data.inputs import read_contents
    from ftray.evaluation.encode import encode_texts
    from ftray.models.registry import locate_model, model_modalities
    from ftray.models.selection import tower_modalities

    partial = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    _check_writable(partial, output)
    takes = model_modalities(locate_model(model))
    if select_model is not None:
        takes = tower_modalities(select_model, takes)
    items, names = read_contents(data, columns=parse_columns(columns), modalities=takes)
    encoder = get_model(model, select_model, max_length=max_length)
    vectors = encode_texts(encoder, items, role=role, batch_size=batch_size)
    try:
        with partial.open("wb") as file:
            if target.suffix == ".npy":
                np.save(file, vectors)
            else:
                flat = pa.array(vectors.reshape(-1))
                column = pa.FixedSizeListArray.from_arrays(flat, vectors.shape[1])
                pq.write_table(pa.table({"item": names, "embedding": column}), file)
        os.replace(partial, target)
    except OSError as error:
        raise StorageError(f"'{output}' cannot be written: {error.strerror or error}") from None
    finally:
        partial.unlink(missing_ok=True)
    print(f"{counted(len(items), 'embedding')} of width {vectors.shape[1]} in {output}")


def _check_writable(partial: Path, output: str) -> None:
    """Before texts are encoded for hours."""
    try:
        partial.touch()
        partial.unlink()
    except OSError as error:
        raise StorageError(f"'{output}' cannot be written: {error.strerror}") from None
