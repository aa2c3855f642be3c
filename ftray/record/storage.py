"""A folder on a local disk, a shared file system, or an object store (any pyarrow filesystem)."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import tempfile
import urllib.parse
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pyarrow import fs

from ftray.errors import StorageError

__all__ = ["Storage"]

URI = re.compile(r"^[A-Za-z][A-Za-z0-9+.-]*:/")
PARTIAL = re.compile(r"^\..*\.tmp$")
COPY_CHUNK_BYTES = 4 * 1024 * 1024


SECRET = re.compile(r"secret|password|token|key|credential", re.IGNORECASE)


def _check_no_secret(uri: str) -> None:
    """A URI goes to the record, to logs and to dashboards; a secret must not."""
    parts = urllib.parse.urlsplit(uri)
    named = [name for name, _ in urllib.parse.parse_qsl(parts.query) if SECRET.search(name)]
    if parts.password is not None or named:
        shown = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"
        raise StorageError(
            f"storage_path '{shown}' was given with credentials in it, which would stand in the "
            "record and in logs. Give them as environment variables (AWS_ACCESS_KEY_ID and "
            "AWS_SECRET_ACCESS_KEY, say), or as a role of the machine"
        )


class Storage:
    """Whole files under one folder; a file is written whole or not at all.

    Args:
        uri: a local path (made absolute), or a URI such as `s3://bucket/folder`.

    Raises:
        StorageError: for a URI that pyarrow does not understand, or that holds a password or a key.
    """

    def __init__(self, uri: str) -> None:
        if URI.match(uri):
            _check_no_secret(uri)
        self.uri = uri.rstrip("/") or "/"
        try:
            if URI.match(uri):
                self.filesystem, root = fs.FileSystem.from_uri(uri)
                self.root = root.rstrip("/")
            else:
                self.root = self.uri = os.path.abspath(os.path.expanduser(uri))
                self.filesystem = fs.LocalFileSystem()
        except (OSError, ValueError) as error:
            raise StorageError(f"storage_path '{uri}' cannot be used: {error}") from None

    def __reduce__(self) -> tuple[type[Storage], tuple[str]]:
        return Storage, (self.uri,)

    @property
    def name(self) -> str:
        """The folder's own name: the last part of its path, without a URI's options."""
        return str(self.root.rsplit("/", 1)[-1])

    @property
    def is_local(self) -> bool:
        """Whether the folder is a path of this machine (or mounted on it)."""
        return isinstance(self.filesystem, fs.LocalFileSystem)

    def under(self, *parts: str) -> Storage:
        """A folder below this one."""
        if not URI.match(self.uri):
            return Storage("/".join([self.uri, *parts]))
        place, mark, options = self.uri.partition("?")
        quoted = [urllib.parse.quote(part) for part in parts]
        return Storage("/".join([place.rstrip("/"), *quoted]) + mark + options)

    def path(self, name: str = "") -> str:
        """The file system's own path of a file here."""
        return f"{self.root}/{name}" if name else self.root

    def create(self, *, exclusive: bool = False) -> bool:
        """Make the folder; with `exclusive`, False if it was there already.

        Raises:
            StorageError: if it cannot be made.
        """
        try:
            if self.is_local:
                os.makedirs(os.path.dirname(self.root), exist_ok=True)
                try:
                    os.mkdir(self.root)
                except FileExistsError:
                    if not os.path.isdir(self.root):
                        raise
                    return not exclusive
                return True
            if exclusive and self.names():
                return False
            self.filesystem.create_dir(self.root, recursive=True)
            return True
        except OSError as error:
            raise StorageError(f"The folder {self.uri} cannot be made: {error}") from None

    def exists(self, name: str = "") -> bool:
        """Whether a file or folder is there."""
        info = self.filesystem.get_file_info(self.path(name))
        return bool(info.type != fs.FileType.NotFound)

    def modified_s(self, name: str) -> float | None:
        """When a file was written, in seconds since the epoch; None if it is not there.

        Of a file system that keeps no times it is 0.
        """
        info = self.filesystem.get_file_info(self.path(name))
        if info.type == fs.FileType.NotFound:
            return None
        return float((info.mtime_ns or 0) / 1e9)

    def names(self, folder: str = "") -> list[str]:
        """Names of the files and folders directly below, in order; none if there is no folder.

        Files that are being written are not there yet.
        """
        try:
            if self.is_local:  # pyarrow raises if the folder is made while it looks
                found = os.listdir(self.path(folder))
            else:
                selector = fs.FileSelector(self.path(folder), allow_not_found=True)
                found = [info.base_name for info in self.filesystem.get_file_info(selector)]
        except (FileNotFoundError, NotADirectoryError):
            return []
        return sorted(name for name in found if not PARTIAL.match(name))

    def read_bytes(self, name: str) -> bytes:
        """A whole file.

        Raises:
            FileNotFoundError: if it is not there.
        """
        with self.filesystem.open_input_stream(self.path(name)) as stream:
            return bytes(stream.read())

    def read_text(self, name: str) -> str:
        """A whole UTF-8 file."""
        return self.read_bytes(name).decode("utf-8")

    def write_bytes(self, name: str, data: bytes, *, content_type: str | None = None) -> None:
        """Write a whole file; readers see the old one or the new one.

        Args:
            name: of the file.
            data: what it is to hold.
            content_type: as which an object store is to serve it to a browser.

        Raises:
            StorageError: if it cannot be written.
        """
        path = self.path(name)
        try:
            if not self.is_local:
                metadata = {"Content-Type": content_type} if content_type else None
                with self.filesystem.open_output_stream(path, metadata=metadata) as stream:
                    stream.write(data)
                return
            folder, base = os.path.split(path)
            os.makedirs(folder, exist_ok=True)
            partial = f"{folder}/.{base}.{os.getpid()}.tmp"
            try:
                with open(partial, "wb") as file:
                    file.write(data)
                os.replace(partial, path)
            finally:
                with contextlib.suppress(OSError):
                    os.unlink(partial)
        except OSError as error:
            raise StorageError(f"{path} cannot be written: {error}") from None

    def write_text(self, name: str, text: str) -> None:
        """Write a whole UTF-8 file."""
        self.write_bytes(name, text.encode("utf-8"))

    def delete(self, name: str) -> None:
        """Delete a file or a folder with all it holds; nothing happens if it is not there."""
        info = self.filesystem.get_file_info(self.path(name))
        if info.type == fs.FileType.Directory:
            self.filesystem.delete_dir(self.path(name))
        elif info.type != fs.FileType.NotFound:
            self.filesystem.delete_file(self.path(name))

    def upload(self, local: Path, name: str) -> None:
        """Copy a local folder here as `name`.

        Raises:
            StorageError: if it cannot be written.
        """
        try:
            if self.is_local:  # pyarrow makes the folder only where there are others in it
                os.makedirs(self.path(name), exist_ok=True)
            fs.copy_files(
                str(local),
                self.path(name),
                source_filesystem=fs.LocalFileSystem(),
                destination_filesystem=self.filesystem,
                chunk_size=COPY_CHUNK_BYTES,
            )
        except OSError as error:
            raise StorageError(f"{self.path(name)} cannot be written: {error}") from None

    def download(self, name: str, local: Path) -> None:
        """Copy a folder from here to a local one."""
        fs.copy_files(
            self.path(name),
            str(local),
            source_filesystem=self.filesystem,
            destination_filesystem=fs.LocalFileSystem(),
            chunk_size=COPY_CHUNK_BYTES,
        )

    @contextmanager
    def local_copy(self, name: str) -> Iterator[Path]:
        """A folder as a local path: itself where local, else a temporary copy."""
        if self.is_local:
            yield Path(self.path(name))
            return
        folder = Path(tempfile.mkdtemp(prefix="ftray-"))
        try:
            self.download(name, folder)
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def check_writable(self) -> None:
        """Write and delete a small file.

        Raises:
            StorageError: if that fails, with the reason.
        """
        probe = f".ftray-{os.getpid()}"
        self.write_bytes(probe, b"")
        self.delete(probe)
