"""Folders of images or point clouds: a folder for each class, or a file of captions beside them."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path, PurePosixPath
from typing import NoReturn

import pyarrow as pa

from ftray.data.columns import Layout
from ftray.data.files import Files
from ftray.data.loading import Loaded
from ftray.data.pictures import IMAGE_SUFFIXES, POINT_SUFFIXES
from ftray.errors import DataError
from ftray.media import Modality, reference
from ftray.words import counted

__all__ = ["CAPTION_FILES", "caption_file", "files_below", "load_classes"]

CAPTION_FILES = (
    *("captions.csv", "captions.jsonl"),
    *("metadata.csv", "metadata.jsonl", "metadata.parquet"),
)
"""Files that say what each image is, the second of them as Hugging Face's ImageFolder has them."""

_SPLITS = {"train", "training", "val", "valid", "validation", "dev", "test"}
_VALID = (
    "Valid: a folder for each class, as cats/1.png; or "
    f"{' or '.join((', '.join(CAPTION_FILES[:-1]), CAPTION_FILES[-1]))}, which names the images."
)


def files_below(folder: Path) -> list[str]:
    """The files below a folder by their names in it, hidden ones left out, sorted.

    Links are followed, but not to a folder that one is in already.

    Raises:
        DataError: for a folder in it that cannot be read.
    """
    names: list[str] = []
    around = {os.fspath(folder): frozenset((os.path.realpath(folder),))}
    for where, folders, files in os.walk(folder, onerror=_unreadable, followlinks=True):
        above = around.pop(where)
        paths = {name: os.path.join(where, name) for name in folders if not name.startswith(".")}
        real = {name: os.path.realpath(path) for name, path in paths.items()}
        folders[:] = [name for name in paths if real[name] not in above]
        around |= {paths[name]: above | {real[name]} for name in folders}
        inside = Path(where).relative_to(folder)
        names += [(inside / name).as_posix() for name in files if not name.startswith(".")]
    return sorted(names)


def _unreadable(error: OSError) -> NoReturn:
    raise DataError(f"The folder '{error.filename}' cannot be read: {error.strerror}.") from None


def caption_file(names: Iterable[str]) -> str | None:
    """The file that says what each image is, if there is one at the top."""
    there = set(names)
    return next((name for name in CAPTION_FILES if name in there), None)


def load_classes(names: Sequence[str], files: Files, *, source: str, where: str) -> Loaded:
    """Images or point clouds with their folders for labels.

    What is only to be encoded needs no labels; an index may have none: if no file lies in a folder,
    there are none.

    Args:
        names: the files, by their names in the folder.
        files: where they are.
        source: the folder, for messages.
        where: the setting it was given in; "data" is to be encoded, "index_data" is an index.

    Raises:
        DataError: for a folder without class folders where labels are needed.
    """
    kinds = {name: _modality(name) for name in names}
    items = [name for name, modality in kinds.items() if modality is not None]
    if not items:
        raise DataError(
            f"{where}: '{source}' is a folder, but not a BEIR folder, which holds corpus.jsonl, "
            f"queries.jsonl and qrels/*.tsv; nor does it hold images or point clouds. {_VALID}"
        )
    loose = [name for name in items if "/" not in name]
    cells = [reference(kinds[name] or "image", name) for name in items]
    others = len(names) - len(items)
    notes = [f"{counted(others, 'file')} of other kinds not read"] if others else []
    if where == "data" or (where == "index_data" and len(loose) == len(items)):
        return Loaded(
            layout=Layout(kind="items", columns={"item": "file"}),
            table=pa.table({"item": cells}),
            unit="file",
            notes=tuple(notes),
            files=files,
        )
    if loose:
        raise DataError(
            f"{where}: '{source}' holds '{loose[0]}' outside of any class folder"
            f"{f', and {len(loose) - 1:,} more' if loose[1:] else ''}. {_VALID}"
        )
    labels = [name.split("/", 1)[0] for name in items]
    distinct = sorted(set(labels))
    if {label.lower() for label in distinct} <= _SPLITS:
        raise DataError(
            f"{where}: '{source}' holds splits, {', '.join(distinct)}, and not classes. Give one, "
            f"as '{os.path.join(source, distinct[0])}'."
        )
    shown = f"{', '.join(distinct[:5])}{', …' if distinct[5:] else ''}"
    return Loaded(
        layout=Layout(kind="labelled", columns={"item": "file", "label": "folder"}),
        table=pa.table({"item": cells, "label": labels}),
        unit="file",
        notes=(f"labels are the folders: {shown}", *notes),
        files=files,
    )


def _modality(name: str) -> Modality | None:
    suffix = PurePosixPath(name).suffix.lower()
    if suffix in IMAGE_SUFFIXES:
        return "image"
    return "points" if suffix in POINT_SUFFIXES else None
