"""Folders of images and archives of them, and archives that mean harm."""

from __future__ import annotations

import io
import os
import stat
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ftray.data.inputs import read_inputs
from ftray.data.readers import read_records
from ftray.data.retrieval import retrieval_set
from tests.data.pictured import (
    BOTH,
    IMAGE,
    cells,
    csv,
    encoded,
    off,
    pictures,
    pixels,
    refused,
    rows,
    shown_pixels,
)

NAMES = ["cat/0.png", "cat/1.png", "dog/old/2.png", "dog/3.png"]
LABELLED = [("0.png", "cat"), ("1.png", "cat"), ("3.png", "dog"), ("2.png", "dog")]


@pytest.fixture
def classes(tmp_path: Path) -> Path:
    return pictures(tmp_path / "pets", NAMES)


def zipped(folder: Path, path: Path, inside: str = "") -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for file in sorted(folder.rglob("*")):
            archive.write(file, inside + str(file.relative_to(folder)))
    return path


def tarred(folder: Path, path: Path, inside: str = ".") -> Path:
    with tarfile.open(path, "w:gz" if path.suffix in (".gz", ".tgz") else "w") as archive:
        archive.add(folder, inside)
    return path


# ---------------------------------------------------------------- folders


def test_class_folders_are_labels(classes: Path) -> None:
    (classes / ".hidden").mkdir()
    (classes / ".hidden/4.png").write_bytes(b"x")
    (classes / "cat/.DS_Store").write_bytes(b"x")
    (classes / "cat/notes.txt").write_text("x")
    for modalities in (None, IMAGE, BOTH):
        records = read_records(classes, modalities=modalities)
        assert records.kind == "labelled" and rows(records) == LABELLED
    assert "labels are the folders: cat, dog" in records.notes
    assert "1 file of other kinds not read" in records.notes
    assert "4 images with 2 labels" in records.notes
    assert np.array_equal(shown_pixels(cells(records, "item")[0]), pixels(0))


def test_linked_class_folders_are_followed_and_loops_left(classes: Path, tmp_path: Path) -> None:
    elsewhere = pictures(tmp_path / "elsewhere", ["a/4.png", "5.png"])
    (classes / "owl").symlink_to(elsewhere)
    (classes / "dog/old/again").symlink_to(classes)
    (classes / "dog/6.png").symlink_to(classes / "cat/0.png")
    records = read_records(classes, modalities=IMAGE)
    assert rows(records) == [
        *LABELLED[:3],
        ("6.png", "dog"),
        LABELLED[3],
        ("5.png", "owl"),
        ("4.png", "owl"),
    ]


def test_a_folder_that_cannot_be_read_is_named(
    classes: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scan = os.scandir

    def closed(path: str) -> Any:
        if path.endswith("dog"):
            raise PermissionError(13, "Permission denied", path)
        return scan(path)

    monkeypatch.setattr(os, "scandir", closed)  # the tests may run as root, who may read all
    message = refused(classes)
    assert message == f"The folder '{classes}/dog' cannot be read: Permission denied."


def test_what_is_encoded_needs_no_class_folders(classes: Path, tmp_path: Path) -> None:
    flat = pictures(tmp_path / "flat", ["a.png", "b.png"])
    splits = pictures(tmp_path / "splits", ["train/cat/0.png", "test/cat/1.png"])
    (classes / "5.png").write_bytes(encoded(5))
    for folder, count in ((flat, 2), (splits, 2), (classes, 5)):
        assert "Valid: a folder for each class" in refused(folder) or folder == splits
        part = read_inputs(folder, modalities=IMAGE).part(0, 9)
        items, names = part.items, part.names
        assert len(items) == count and {one.modality for one in items} == {"image"}
        assert names == [one.address for one in items]
        assert names == sorted(str(path) for path in folder.rglob("*.png"))


def test_an_index_may_be_a_folder_without_classes(tmp_path: Path) -> None:
    flat = pictures(tmp_path / "flat", ["a.png", "b.png", "c.png"])
    pairs = csv(tmp_path / "pairs.csv", ["text,image", "red,flat/a.png", "blue,flat/c.png"])
    found = retrieval_set(pairs, flat, modalities=BOTH)
    assert len(found.document_ids) == 3
    assert [found.relevant(query)[0].tolist() for query in range(2)] == [[0], [2]]


@pytest.mark.parametrize("pack", ["zip", "tar.gz"])
def test_images_of_an_archive_are_called_as_in_it(classes: Path, tmp_path: Path, pack: str) -> None:
    (classes / "dog/7.png").write_bytes((classes / "cat/0.png").read_bytes())  # equal to another
    make: Callable[..., Path] = zipped if pack == "zip" else tarred
    part = read_inputs(make(classes, tmp_path / f"p.{pack}"), modalities=IMAGE).part(0, 9)
    items, names = part.items, part.names
    assert names == ["cat/0.png", "cat/1.png", "dog/3.png", "dog/7.png", "dog/old/2.png"]
    assert items[0] == items[3] and items[0].address.startswith("sha256:")
    assert np.array_equal(shown_pixels(items[4]), pixels(2))


def test_class_folders_of_meshes(tmp_path: Path) -> None:
    for number, name in enumerate(("chair", "chair", "desk")):
        (tmp_path / name).mkdir(exist_ok=True)
        (tmp_path / name / f"{number}.off").write_text(off(number))
    records = read_records(tmp_path)
    assert records.table["label"].to_pylist() == ["chair", "chair", "desk"]
    assert {one.modality for one in cells(records, "item")} == {"points"}


CAPTIONS = {
    "captions.csv": "image,text\ncat/0.png,a cat\ndog/3.png,a dog\n",
    "metadata.csv": "file_name,text\ncat/0.png,a cat\ndog/3.png,a dog\n",
    "metadata.jsonl": '{"file_name": "cat/0.png", "text": "a cat"}\n'
    '{"file_name": "dog/3.png", "text": "a dog"}\n',
}
PAIRS = [("a cat", "0.png"), ("a dog", "3.png")]


@pytest.mark.parametrize("name", CAPTIONS)
@pytest.mark.parametrize("modalities", [None, BOTH])
def test_a_file_of_captions_goes_before_class_folders(
    classes: Path, name: str, modalities: Any
) -> None:
    (classes / name).write_text(CAPTIONS[name])
    records = read_records(classes, modalities=modalities)
    assert records.kind == "pairs" and rows(records) == PAIRS
    assert records.source == str(classes / name)


def test_labels_in_a_file_of_hugging_face(classes: Path) -> None:
    csv(classes / "metadata.csv", ["file_name,label", "cat/0.png,c", "dog/3.png,d"])
    assert rows(read_records(classes, modalities=IMAGE)) == [("0.png", "c"), ("3.png", "d")]


def test_a_missing_image_of_captions_is_named_with_its_row(classes: Path) -> None:
    csv(classes / "captions.csv", ["image,text", "cat/0.png,a", "cat/x.png,b"])
    message = refused(classes)
    assert message.startswith(f"{classes}/captions.csv, line 3: there is no file 'cat/x.png'")


def test_folders_that_are_none_of_these(tmp_path: Path, classes: Path) -> None:
    (tmp_path / "empty").mkdir()
    message = refused(tmp_path / "empty")
    assert "is a folder, but not a BEIR folder" in message
    assert "nor does it hold images" in message and "a folder for each class" in message
    (classes / "5.png").write_bytes(encoded(5))
    message = refused(classes)
    assert "holds '5.png' outside of any class folder. Valid: a folder for each class" in message
    flat = pictures(tmp_path / "flat", ["a.png", "b.png"])
    assert "holds 'a.png' outside of any class folder, and 1 more" in refused(flat)
    message = refused(flat, columns={"item": "image"})
    assert "holds class folders, which have no columns" in message
    splits = pictures(tmp_path / "splits", ["train/cat/0.png", "test/cat/1.png"])
    message = refused(splits)
    assert f"holds splits, test, train, and not classes. Give one, as '{splits}/test'" in message


@pytest.mark.parametrize("pack", ["folder", "zip", "tar.gz"])
def test_a_broken_image_is_named(classes: Path, tmp_path: Path, pack: str) -> None:
    (classes / "dog/3.png").write_bytes(encoded(3)[:50])
    source = classes
    if pack != "folder":
        make: Callable[..., Path] = zipped if pack == "zip" else tarred
        source = make(classes, tmp_path / f"pets.{pack}")
    message = refused(source)
    assert message.startswith(f"{source}, file 3: the image '")
    assert "dog/3.png' is damaged" in message


# ---------------------------------------------------------------- archives


@pytest.mark.parametrize("name", ["p.zip", "p.tar", "p.tar.gz", "p.tgz"])
@pytest.mark.parametrize("inside", ["", "data/pets/"])
def test_archives_are_read_as_the_folder_in_them(
    classes: Path, tmp_path: Path, name: str, inside: str
) -> None:
    pack: Callable[..., Path] = zipped if name == "p.zip" else tarred
    path = pack(classes, tmp_path / name, inside)
    if inside:  # one folder around everything is no class
        path = pack(classes, tmp_path / name, inside.split("/")[0] + "/")
    before = sorted(tmp_path.rglob("*"))
    records = read_records(path, modalities=IMAGE)
    assert records.kind == "labelled"
    assert records.table["label"].to_pylist() == ["cat", "cat", "dog", "dog"]
    held = [shown_pixels(one) for one in cells(records, "item")]
    assert all(np.array_equal(held[i], pixels(n)) for i, n in enumerate((0, 1, 3, 2)))
    assert sorted(tmp_path.rglob("*")) == before, "nothing is unpacked"
    assert len(records.blobs) == 4


@pytest.mark.parametrize("name", CAPTIONS)
@pytest.mark.parametrize("pack", ["zip", "tar"])
def test_archives_with_captions(classes: Path, tmp_path: Path, name: str, pack: str) -> None:
    (classes / name).write_text(CAPTIONS[name])
    make: Callable[..., Path] = zipped if pack == "zip" else tarred
    for inside in ("", "pets/"):
        path = make(classes, tmp_path / f"p.{pack}", inside)
        records = read_records(path)
        assert records.kind == "pairs"
        assert records.table["query"].to_pylist() == ["a cat", "a dog"]
        assert np.array_equal(shown_pixels(cells(records, "document")[1]), pixels(3))
    (classes / name).write_text(CAPTIONS[name].replace("dog/3", "dog/x"))
    message = refused(make(classes, tmp_path / f"p.{pack}"))
    assert f"p.{pack}/{name}, line " in message and "there is no file 'dog/x.png'" in message


def test_captions_reach_nothing_outside_of_their_archive(classes: Path, tmp_path: Path) -> None:
    (tmp_path / "secret.png").write_bytes(encoded(9))
    for outside in ("../secret.png", str(tmp_path / "secret.png"), f"file://{tmp_path}/secret.png"):
        csv(classes / "captions.csv", ["image,text", f"{outside},a"])
        path = zipped(classes, tmp_path / "p.zip")
        message = refused(path)
        assert "captions.csv, line 2: there is no file '" in message and "secret.png'" in message


def with_member(path: Path, name: str, **about: Any) -> Path:
    """An archive with a good image, and a member that is asked for."""
    content = about.pop("content", encoded(0))
    if path.suffix == ".zip":
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("cat/0.png", encoded(0))
            info = zipfile.ZipInfo(name)
            info.external_attr = about.get("mode", 0) << 16
            archive.writestr(info, content)
    else:
        with tarfile.open(path, "w") as tar:
            for one, kind in (("cat/0.png", tarfile.REGTYPE), (name, about.get("kind", b"0"))):
                member = tarfile.TarInfo(one)
                member.type, member.linkname = kind, about.get("link", "")
                member.size = len(content) if kind == tarfile.REGTYPE else 0
                tar.addfile(member, io.BytesIO(content))
    return path


@pytest.mark.parametrize("suffix", [".zip", ".tar"])
@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("../cat/1.png", "a path with '..'"),
        ("cat/../../1.png", "a path with '..'"),
        ("..\\1.png", "a path with '..'"),
        ("/etc/1.png", "an absolute path"),
        ("C:\\1.png", "an absolute path"),
        ("cat/0.png", "there are two files of this name"),
        ("cat/./0.png", "there are two files of this name"),
    ],
)
@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_paths_out_of_an_archive_are_refused(
    tmp_path: Path, suffix: str, name: str, why: str
) -> None:
    path = with_member(tmp_path / f"p{suffix}", name)
    message = refused(path)
    assert message.startswith(f"{path}, '{name}': {why}")


@pytest.mark.parametrize(
    ("kind", "why"),
    [
        (tarfile.SYMTYPE, "a link"),
        (tarfile.LNKTYPE, "a link"),
        (tarfile.CHRTYPE, "neither a file nor a folder"),
        (tarfile.BLKTYPE, "neither a file nor a folder"),
        (tarfile.FIFOTYPE, "neither a file nor a folder"),
    ],
)
def test_links_and_devices_in_a_tar_are_refused(tmp_path: Path, kind: bytes, why: str) -> None:
    path = with_member(tmp_path / "p.tar", "cat/1.png", kind=kind, link="/etc/passwd")
    assert refused(path) == f"{path}, 'cat/1.png': {why}, which is not read."


def fact(path: Path, kind: bytes, content: bytes, times: int = 1) -> Path:
    """A tar of one image whose name or PAX header is large."""
    with tarfile.open(path, "w:gz") as archive:
        for number in range(times):
            info = tarfile.TarInfo("././@LongLink")
            info.type, info.size = kind, len(content)
            whole = content + bytes(-len(content) % tarfile.BLOCKSIZE)
            archive.fileobj.write(info.tobuf(tarfile.GNU_FORMAT) + whole)  # type: ignore[union-attr]
            archive.offset += tarfile.BLOCKSIZE + len(whole)
            image = tarfile.TarInfo(f"cat/{number}.png")
            image.size = len(encoded(0))
            archive.addfile(image, io.BytesIO(encoded(0)))
    return path


def header(size: int) -> bytes:
    """A PAX header of one comment."""
    return f"{size} comment=".encode().ljust(size - 1, b"x") + b"\n"


@pytest.mark.parametrize(
    ("kind", "content"),
    [
        (tarfile.GNUTYPE_LONGNAME, b"cat/" + b"a" * (2 << 20)),
        (tarfile.GNUTYPE_LONGLINK, b"a" * (2 << 20)),
        (tarfile.XHDTYPE, header(2 << 20)),
        (tarfile.XGLTYPE, header(2 << 20)),
    ],
)
def test_long_names_and_headers_of_a_tar_are_no_bombs(
    tmp_path: Path, kind: bytes, content: bytes
) -> None:
    path = fact(tmp_path / "p.tar.gz", kind, content)
    assert path.stat().st_size < 10_000
    message = refused(path)
    assert message == (
        f"{path}: 2 MB of names and headers of one file, which are not read. Valid: up to 1 MB."
    )


def test_headers_of_many_files_are_no_bomb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = fact(tmp_path / "p.tar.gz", tarfile.XHDTYPE, header(60_000), times=4)
    assert len(read_records(path).table) == 4
    monkeypatch.setattr("ftray.data.archives.MAX_ALL_FACTS_BYTES", 200_000)
    assert "of names and headers of its files, which are not read" in refused(path)


def test_long_names_are_refused(tmp_path: Path) -> None:
    name = b"cat/" + b"a" * 5000
    path = fact(tmp_path / "p.tar.gz", tarfile.GNUTYPE_LONGNAME, name)
    assert "a name of 5,004 characters, which is not read" in refused(path)
    path = fact(tmp_path / "p.tar.gz", tarfile.GNUTYPE_LONGNAME, b"cat/" + b"a" * 300 + b".png")
    assert read_records(path).table["label"].to_pylist() == ["cat"]


def test_sparse_files_of_a_tar_are_refused(tmp_path: Path) -> None:
    """Their maps are read block by block, without an end."""
    path = with_member(tmp_path / "p.tar", "cat/1.png", kind=tarfile.GNUTYPE_SPARSE)
    assert refused(path) == f"{path}, 'cat/1.png': a sparse file, which is not read."
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as tar:
        member = tarfile.TarInfo("cat/1.png")
        member.pax_headers = {"GNU.sparse.major": "1", "GNU.sparse.minor": "0"}
        member.size = 512
        tar.addfile(member, io.BytesIO(b"1\n0\n0\n".ljust(512, b"\0")))
    assert refused(path) == f"{path}, 'cat/1.png': a sparse file, which is not read."


def test_links_in_a_zip_are_refused(tmp_path: Path) -> None:
    path = with_member(tmp_path / "p.zip", "cat/1.png", mode=stat.S_IFLNK | 0o777)
    assert refused(path) == f"{path}, 'cat/1.png': a link, which is not read."


def test_encrypted_files_are_refused(tmp_path: Path) -> None:
    path = with_member(tmp_path / "p.zip", "cat/1.png")
    raw = bytearray(path.read_bytes())
    at = raw.rfind(b"PK\x01\x02")
    raw[at + 8] |= 1
    path.write_bytes(raw)
    assert refused(path) == f"{path}, 'cat/1.png': an encrypted file, which is not read."


def test_bombs_are_refused_before_they_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unread(*_: Any) -> bytes:
        raise AssertionError("a bomb was opened")

    zeros = bytes(101 << 20)
    path = tmp_path / "p.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        archive.writestr("cat/0.png", zeros)
    tar = tmp_path / "p.tar.gz"
    with tarfile.open(tar, "w:gz", compresslevel=1) as packed:
        member = tarfile.TarInfo("cat/0.png")
        member.size = len(zeros)
        packed.addfile(member, io.BytesIO(zeros))
    monkeypatch.setattr(zipfile.ZipFile, "read", unread)
    monkeypatch.setattr(tarfile.TarFile, "extractfile", unread)
    for bomb in (path, tar):
        message = refused(bomb)
        assert message.startswith(f"{bomb}, 'cat/0.png': 101 MB packed into ")
        assert "are a bomb" in message


def test_many_small_files_may_be_a_bomb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ftray.data.archives.RATIO_FROM_BYTES", 100_000)
    path = tmp_path / "p.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for number in range(30):
            archive.writestr(f"cat/{number}.png", bytes(90_000))
    assert "are a bomb" in refused(path)


def test_members_and_archives_have_a_largest_size(
    classes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = zipped(classes, tmp_path / "p.zip")
    monkeypatch.setattr("ftray.data.archives.MAX_MEMBER_BYTES", 20)
    assert "p.zip, 'cat/0.png': 0 MB. Valid: up to" in refused(path)
    monkeypatch.undo()
    monkeypatch.setattr("ftray.data.archives.MAX_TOTAL_BYTES", 300)
    assert "the files come to more than" in refused(path)


@pytest.mark.parametrize("name", ["p.zip", "p.tar", "p.tar.gz"])
def test_damaged_archives_are_refused(classes: Path, tmp_path: Path, name: str) -> None:
    pack: Callable[..., Path] = zipped if name == "p.zip" else tarred
    path = pack(classes, tmp_path / name)
    whole = path.read_bytes()
    for content in (b"no archive", whole[: len(whole) // 2]):
        path.write_bytes(content)
        message = refused(path)
        assert message.startswith(str(path)) and "\n" not in message
    path.write_bytes(b"")
    assert refused(path) == f"{path} is empty."


def test_hidden_files_of_macos_are_left_out(classes: Path, tmp_path: Path) -> None:
    path = zipped(classes, tmp_path / "p.zip")
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("__MACOSX/cat/._0.png", b"x")
    assert len(read_records(path).table) == 4
