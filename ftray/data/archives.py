"""Archives of images, read member by member; nothing is ever unpacked onto the disk.

An archive may come from anywhere, so whatever could reach outside of it, or fill the memory, is
refused before anything is read.
"""

from __future__ import annotations

import lzma
import posixpath
import re
import stat
import tarfile
import zipfile
import zlib
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from ftray.data.files import Files
from ftray.data.folders import caption_file
from ftray.errors import DataError
from ftray.words import counted

__all__ = ["Archive", "open_archive"]

MAX_TOTAL_BYTES = 20 << 30
MAX_MEMBER_BYTES = 256 << 20
MAX_RATIO = 200
RATIO_FROM_BYTES = 100 << 20
"""Less than this is no danger, however well it is compressed."""
MAX_FACTS_BYTES = 1 << 20
"""Of what a tar says of one file (a long name, PAX headers), which is read as a whole."""
MAX_ALL_FACTS_BYTES = 256 << 20
MAX_NAME_CHARS = 4096

_DRIVE = re.compile(r"[a-zA-Z]:")


@dataclass(frozen=True, kw_only=True)
class _Member:
    """What the archive says of one thing in it; `odd` = why it is refused."""

    name: str
    size: int
    packed: int | None
    odd: str | None


class Archive(Files):
    """The files of an archive, all of them checked by what it says of them.

    Args:
        path: the archive.

    Attributes:
        root: the folder around everything, if there is one; names are relative to it.
        names: the files by their names in the archive, hidden ones left out, sorted.

    Raises:
        DataError: for a damaged archive, or one with a member that could do harm.
    """

    lasting = False

    def __init__(self, path: Path) -> None:
        self.path = path
        self.root = ""
        with self._readable():
            self._sizes = self._listed()
        self._find_root()

    @property
    def names(self) -> list[str]:
        """The files by their names below the root, hidden ones left out, sorted."""
        inside = (name.removeprefix(self.root) for name in self._sizes)
        return sorted(name for name in inside if not _hidden(name))

    def located(self, name: str) -> str:
        """See `Files`."""
        return posixpath.normpath(self.root + name)

    def sizes(self, located: Sequence[str]) -> list[int | None]:
        """See `Files`."""
        return [self._sizes.get(name) for name in located]

    def contents(self, located: Sequence[str]) -> Iterator[tuple[str, bytes]]:
        """See `Files`; in the order of the archive."""
        with self._readable():
            yield from self._contents(set(located))

    @abstractmethod
    def _members(self) -> Iterator[_Member]:
        """What the archive says of all that is in it, folders left out."""

    @abstractmethod
    def _contents(self, wanted: set[str]) -> Iterator[tuple[str, bytes]]:
        """The files of these names."""

    def _listed(self) -> dict[str, int]:
        sizes: dict[str, int] = {}
        total, whole = 0, self.path.stat().st_size
        for member in self._members():
            place = f"{self.path}, '{member.name[:120]}'"
            if reason := member.odd or _odd_name(member.name):
                raise DataError(f"{place}: {reason}, which is not read.")
            total += member.size
            if member.size > MAX_MEMBER_BYTES:
                raise DataError(
                    f"{place}: {_mb(member.size)}. Valid: up to {_mb(MAX_MEMBER_BYTES)}."
                )
            if total > MAX_TOTAL_BYTES:
                raise DataError(
                    f"{place}: the files come to more than {_mb(MAX_TOTAL_BYTES)} here."
                )
            for size, packed in ((member.size, member.packed), (total, whole)):
                if size > RATIO_FROM_BYTES and packed is not None and size > MAX_RATIO * packed:
                    raise DataError(
                        f"{place}: {_mb(size)} packed into {counted(packed, 'byte')} are a bomb, "
                        f"and not read. Valid: up to {MAX_RATIO} times."
                    )
            name = posixpath.normpath(member.name)
            if name in sizes:
                raise DataError(f"{place}: there are two files of this name.")
            sizes[name] = member.size
        if not sizes:
            raise DataError(f"{self.path} holds no files.")
        return sizes

    def _find_root(self) -> None:
        """Leave away a folder that is around the class folders, or around the captions."""
        names = self.names
        tops = {name.split("/", 1)[0] for name in names}
        if len(tops) != 1 or not all("/" in name for name in names):
            return
        top = tops.pop() + "/"
        deep = all(name.count("/") > 1 for name in names)
        if deep or caption_file(name.removeprefix(top) for name in names) is not None:
            self.root = top

    @contextmanager
    def _readable(self) -> Iterator[None]:
        try:
            yield
        except (
            *(zipfile.BadZipFile, tarfile.TarError, zlib.error, lzma.LZMAError),
            *(EOFError, OSError, NotImplementedError, RuntimeError),
        ) as error:
            reason = str(error).partition("\n")[0].rstrip(":") or type(error).__name__
            raise DataError(f"{self.path} is not a readable archive: {reason}.") from None


class _Zip(Archive):
    def _members(self) -> Iterator[_Member]:
        with zipfile.ZipFile(self.path) as archive:
            for info in archive.infolist():
                if not info.is_dir():
                    yield _Member(
                        name=info.filename,
                        size=info.file_size,
                        packed=info.compress_size,
                        odd=_odd_info(info),
                    )

    def _contents(self, wanted: set[str]) -> Iterator[tuple[str, bytes]]:
        with zipfile.ZipFile(self.path) as archive:
            for info in archive.infolist():
                if (name := posixpath.normpath(info.filename)) in wanted:
                    yield name, archive.read(info)  # no more than the size that was checked


_FACTS = (
    *(tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK),
    *(tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE),
)


class _TarInfo(tarfile.TarInfo):
    """A member that is refused before tarfile reads what would fill the memory."""

    def _proc_member(self, archive: _TarFile) -> tarfile.TarInfo:
        # tarfile asks this of every header; it reads names and PAX headers whole, whatever their
        # size, and the maps of sparse files block by block without an end.
        if self.type == tarfile.GNUTYPE_SPARSE:
            raise _sparse(archive, self)
        if self.type in _FACTS:
            archive.facts += self.size
            for size, valid, of in (
                (self.size, MAX_FACTS_BYTES, "of one file"),
                (archive.facts, MAX_ALL_FACTS_BYTES, "of its files"),
            ):
                if not 0 <= size <= valid:
                    raise DataError(
                        f"{archive.name!s}: {_mb(size)} of names and headers {of}, which are not "
                        f"read. Valid: up to {_mb(valid)}."
                    )
        found: tarfile.TarInfo = super()._proc_member(archive)  # type: ignore[misc]
        return found

    def _proc_gnusparse_10(self, info: tarfile.TarInfo, facts: object, archive: _TarFile) -> None:
        raise _sparse(archive, info)


def _sparse(archive: tarfile.TarFile, info: tarfile.TarInfo) -> DataError:
    return DataError(f"{archive.name!s}, '{info.name[:120]}': a sparse file, which is not read.")


class _TarFile(tarfile.TarFile):
    """A tar of such members; `facts` is how many bytes of names and PAX headers were read."""

    tarinfo = _TarInfo
    members: list[tarfile.TarInfo]
    facts = 0


class _Tar(Archive):
    def _members(self) -> Iterator[_Member]:
        with _TarFile.open(self.path) as archive:
            while (info := archive.next()) is not None:
                archive.members.clear()  # each would keep its PAX headers
                if not info.isdir():
                    odd = None if info.isreg() else _kind_of(info)
                    yield _Member(name=info.name, size=info.size, packed=None, odd=odd)

    def _contents(self, wanted: set[str]) -> Iterator[tuple[str, bytes]]:
        with _TarFile.open(self.path) as archive:
            while (info := archive.next()) is not None:
                archive.members.clear()
                name = posixpath.normpath(info.name)
                file = archive.extractfile(info) if name in wanted and info.isreg() else None
                if file is not None:
                    yield name, file.read()


def open_archive(path: Path) -> Archive:
    """An archive with all that is in it checked.

    Raises:
        DataError: see `Archive`.
    """
    return _Zip(path) if path.suffix.lower() == ".zip" else _Tar(path)


def _odd_name(name: str) -> str | None:
    if name.startswith(("/", "\\")) or _DRIVE.match(name):
        return "an absolute path"
    if ".." in PurePosixPath(name.replace("\\", "/")).parts:
        return "a path with '..'"
    return f"a name of {len(name):,} characters" if len(name) > MAX_NAME_CHARS else None


def _odd_info(info: zipfile.ZipInfo) -> str | None:
    if info.flag_bits & 0x1:
        return "an encrypted file"
    kind = stat.S_IFMT(info.external_attr >> 16)
    if kind in (0, stat.S_IFREG):
        return None
    return "a link" if kind == stat.S_IFLNK else "neither a file nor a folder"


def _kind_of(info: tarfile.TarInfo) -> str:
    return "a link" if info.issym() or info.islnk() else "neither a file nor a folder"


def _hidden(name: str) -> bool:
    return any(part.startswith(".") or part == "__MACOSX" for part in PurePosixPath(name).parts)


def _mb(size: int) -> str:
    return f"{size / (1 << 20):,.0f} MB"
