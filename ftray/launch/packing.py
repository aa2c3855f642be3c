"""What a job takes along: the files of this machine that a fit names, and the fit itself.

Files keep their places relative to each other: what lies below the current folder is found below
`here/`, where the job then is, so that the paths of a configuration, and the names in its data,
mean the same there. What lies elsewhere gets a folder that is named after its own.

Of a folder the hidden files stay behind, unless data names them: secrets lie in such, and Ray would
leave out what a `.gitignore` or a `.rayignore` names.
"""

from __future__ import annotations

import copy
import hashlib
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any

from ftray.callbacks.evaluation import EvaluationCallback
from ftray.data.folders import files_below
from ftray.errors import ConfigError, DataError, nearest
from ftray.words import counted

__all__ = ["HERE", "Luggage", "Packed", "unwrapped", "with_places", "wrapped"]

HERE, ELSEWHERE = "here", "elsewhere"
MODELS = ("model", "model_artifact")
"""The fields that name a model."""
DATA = "_data"
"""How the options end that take data."""
MB = 1 << 20
SHOWN = 12
COMPILED = "__pycache__"

Change = Callable[[str, Any], Any]


@dataclass(frozen=True)
class Packed:
    """Stands in a configuration for a file or folder that is taken along.

    Attributes:
        place: where it lies below the folder of files.
    """

    place: str


def with_places(fields: Mapping[str, Any], change: Change) -> dict[str, Any]:
    """A configuration whose model and data are changed, wherever they are named.

    Args:
        fields: of a `FitConfig`; nothing of it is changed.
        change: called with what it is, as messages name it, and the value.
    """
    changed = dict(fields)
    for name in (*MODELS, "train_data", "eval_data"):
        if changed.get(name) is not None:
            changed[name] = change(name, changed[name])
    if "callbacks" in changed:
        changed["callbacks"] = [
            _with_places(entry, f"callbacks[{number}]", change)
            for number, entry in enumerate(changed["callbacks"])
        ]
    return changed


def _with_places(entry: Any, where: str, change: Change) -> Any:
    """One callback: an object, a name, or `{name: {option: value}}`."""
    if isinstance(entry, EvaluationCallback):
        named = copy.copy(entry)
        for option, value in vars(entry).items():
            if option.endswith(DATA) and value is not None:
                setattr(named, option, change(f"{where}: {option}", value))
        return named
    if not isinstance(entry, Mapping):
        return entry
    return {
        name: {
            option: change(f"{where}: {name}: {option}", value)
            if str(option).endswith(DATA) and value is not None
            else value
            for option, value in options.items()
        }
        if isinstance(options, Mapping)
        else options
        for name, options in entry.items()
    }


@dataclass(frozen=True)
class _Wrapped:
    """An EvaluationCallback with its data, which it leaves behind where it is pickled."""

    kind: type[EvaluationCallback]
    state: dict[str, Any]


def wrapped(fields: Mapping[str, Any]) -> dict[str, Any]:
    """A configuration in a form that can be pickled without losing the data of callbacks."""
    return _callbacks_changed(
        fields,
        lambda entry: (
            _Wrapped(type(entry), vars(entry)) if isinstance(entry, EvaluationCallback) else entry
        ),
    )


def unwrapped(fields: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration that `wrapped` was given."""

    def restored(entry: Any) -> Any:
        if not isinstance(entry, _Wrapped):
            return entry
        callback = entry.kind.__new__(entry.kind)
        vars(callback).update(entry.state)
        return callback

    return _callbacks_changed(fields, restored)


def _callbacks_changed(fields: Mapping[str, Any], change: Callable[[Any], Any]) -> dict[str, Any]:
    if "callbacks" not in fields:
        return dict(fields)
    return {**fields, "callbacks": [change(entry) for entry in fields["callbacks"]]}


class Luggage:
    """The files that are taken along.

    Args:
        shared: folders that the cluster sees under the same paths: what lies there stays there.
        kept: the folder of runs, if it is a local one; shared as well.
        limit_mb: how much may be taken along, in MiB.
    """

    def __init__(self, shared: Sequence[str | os.PathLike[str]], kept: str | None, limit_mb: float):
        self._shared = [Path(_absolute(folder)) for folder in shared]
        self._kept = [] if kept is None else [Path(kept)]
        self._limit_mb = limit_mb
        self._here = Path.cwd()
        self._places: dict[Path, str] = {}
        self._sizes: dict[str, int] = {}
        self.relies_on_shared = False
        """Whether something lies in a folder that was named as shared: it may not be here."""

    def __bool__(self) -> bool:
        return bool(self._places)

    def pack(self, where: str, value: Any) -> Any:
        """What the job is given in the place of a value; see `with_places`.

        Raises:
            DataError: if there is no such file.
            ModelError: if there is no such model.
        """
        if not isinstance(value, str | os.PathLike) or "://" in os.fspath(value):
            return value
        path = Path(_absolute(value))
        if where in MODELS and not self._is_folder_of_a_model(os.fspath(value), path):
            return value
        if self._stays(path):
            return str(path)
        if not path.exists():
            raise _missing(where, path)
        place = self._places.setdefault(path, self._place(path))
        self._sizes[f"{where} '{os.fspath(value)}'"] = _size(path)
        return Packed(place)

    def _is_folder_of_a_model(self, name: str, path: Path) -> bool:
        from ftray.models.catalogue import MODELS as REGISTERED
        from ftray.models.registry import locate_model

        is_path = name.startswith(("/", ".", "~"))
        if is_path and any(path.is_relative_to(folder) for folder in self._shared):
            return True
        locate_model(name)
        return name not in REGISTERED and path.is_dir()

    def _stays(self, path: Path) -> bool:
        if any(path.is_relative_to(folder) for folder in self._shared):
            self.relies_on_shared = True
            return True
        return any(path.is_relative_to(folder) for folder in self._kept)

    def _place(self, path: Path) -> str:
        if path.is_relative_to(self._here):
            return f"{HERE}/{path.relative_to(self._here).as_posix()}"
        return f"{_elsewhere(path.parent)}/{path.name}"

    def add_named(self, addresses: Iterable[str]) -> None:
        """Take along the files that data names.

        Args:
            addresses: their absolute paths.

        Raises:
            ConfigError: for one that the job could not find by its name.
        """
        given = dict(self._places)
        folders = {path.parent for path in given if path.is_file()}
        named = 0
        for path in map(Path, addresses):
            inside = next((folder for folder in path.parents if folder in given), None)
            goes_with_it = inside is not None and _travels(path.relative_to(inside))
            if goes_with_it or path in self._places or self._stays(path):
                continue
            above = next((folder for folder in path.parents if folder in folders), None)
            if inside is not None:
                place = f"{given[inside]}/{path.relative_to(inside).as_posix()}"
            elif path.is_relative_to(self._here):
                place = self._place(path)
            elif above is not None:
                place = f"{_elsewhere(above)}/{path.relative_to(above).as_posix()}"
            else:
                raise ConfigError(
                    f"The data names the file '{path}', which lies neither below the current "
                    "folder nor below that of the file that names it: a job cannot take it along. "
                    "Move it, or give a folder that the cluster sees as well with `shared`"
                )
            self._places[path] = place
            named += _size(path)
        if named:
            self._sizes["files that the data names"] = named

    def check(self, objects: int = 0) -> None:
        """Refuse what is too much.

        Args:
            objects: bytes of what is given as objects.

        Raises:
            ConfigError: with each file and its size, and the ways out.
        """
        sizes = {**self._sizes, **({"objects in the call": objects} if objects > MB else {})}
        total = sum(self._sizes.values()) + objects
        if total <= self._limit_mb * MB:
            return
        largest = sorted(sizes.items(), key=lambda entry: -entry[1])
        listed = ", ".join(f"{what}: {_mb(size)}" for what, size in largest[:SHOWN])
        more = f", and {counted(len(largest) - SHOWN, 'other')}" if len(largest) > SHOWN else ""
        raise ConfigError(
            f"The job would take along {_mb(total)} ({listed}{more}), and at most "
            f"{self._limit_mb:g} MB are allowed. Put them into a folder that the cluster sees "
            "under the same path, and name it with `shared`; or raise `max_upload_mb`"
        )

    def write(self, folder: Path) -> None:
        """Copy the files to their places below a folder."""
        (folder / HERE).mkdir(parents=True)
        (folder / HERE / ".keep").touch()  # a folder without files does not travel
        for path, place in self._places.items():
            for name in _files_of(path):
                target = folder / place / name
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(path / name, target)


def _absolute(path: str | os.PathLike[str]) -> str:
    return os.path.abspath(os.path.expanduser(path))


def _elsewhere(folder: Path) -> str:
    """Where files of a folder go: equal for equal folders, so that a resumed run finds its own."""
    return f"{ELSEWHERE}/{hashlib.sha256(os.fsencode(folder)).hexdigest()[:8]}"


def _missing(where: str, path: Path) -> DataError:
    others = [other.name for other in path.parent.iterdir()] if path.parent.is_dir() else []
    there = nearest(path.name, others).replace(" Valid:", " There are:")
    return DataError(
        f"{where}: there is no file '{path}'.{there} If only the cluster sees it, name its folder "
        "with `shared`"
    )


def _travels(name: PurePath) -> bool:
    """Whether a file goes along with the folder that it lies in, by its name there."""
    return not any(part.startswith(".") or part == COMPILED for part in name.parts)


def _files_of(path: Path) -> Iterator[str]:
    """What is copied of a file or folder: names below it, "" for a file. Links are followed.

    Raises:
        DataError: for a folder in it that cannot be read.
    """
    if not path.is_dir():
        yield ""
        return
    for name in files_below(path):
        if _travels(PurePath(name)) and (path / name).is_file():  # a link may lead nowhere
            yield name


def _size(path: Path) -> int:
    return sum((path / name).stat().st_size for name in _files_of(path))


def _mb(size: int) -> str:
    return f"{size / MB:.1f} MB"
