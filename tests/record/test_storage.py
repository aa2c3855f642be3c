"""Whole files under one folder: on a local path, behind file://, and on another file system."""

from __future__ import annotations

import os
import pickle
import threading
import time
from pathlib import Path

import pytest

from ftray.errors import StorageError
from ftray.record.storage import Storage


@pytest.fixture(params=["path", "file", "mock"])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> Storage:
    """An empty folder: a local path, a file:// URI, or pyarrow's file system in memory."""
    uri = {"path": f"{tmp_path}/run", "file": f"file://{tmp_path}/run", "mock": "mock:///a/run"}
    made = Storage(uri[request.param])
    made.create()
    return made


@pytest.fixture(params=["path", "file"])
def local(request: pytest.FixtureRequest, tmp_path: Path) -> Storage:
    return Storage(f"{tmp_path}/run" if request.param == "path" else f"file://{tmp_path}/run")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with a file, and one more below."""
    (tmp_path / "source" / "sub").mkdir(parents=True)
    (tmp_path / "source" / "a.bin").write_bytes(b"\x00\xff")
    (tmp_path / "source" / "sub" / "b.txt").write_text("größe")
    return tmp_path / "source"


def tree(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


# ---------------------------------------------------------------- files


def test_file_is_read_as_it_was_written(storage: Storage) -> None:
    storage.write_bytes("a", b"\x00\xff" * 1000)
    storage.write_text("b", "größe\r\n")
    assert storage.read_bytes("a") == b"\x00\xff" * 1000
    assert storage.read_text("b") == "größe\r\n"
    storage.write_bytes("a", b"")
    assert storage.read_bytes("a") == b""
    assert storage.names() == ["a", "b"]


def test_missing_file_is_not_found(storage: Storage) -> None:
    assert not storage.exists("a")
    with pytest.raises(FileNotFoundError):
        storage.read_bytes("a")


def test_names_are_those_directly_below_in_order(storage: Storage, folder: Path) -> None:
    storage.upload(folder, "up")
    storage.write_text("z", "")
    storage.write_text("b", "")
    assert storage.names() == ["b", "up", "z"]
    assert storage.names("up") == ["a.bin", "sub"]
    assert storage.names("nowhere") == []


def test_a_file_that_is_being_written_has_no_name_yet(
    local: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen, replace = [], os.replace

    def look(source: str, target: str) -> None:
        seen.append((os.listdir(local.path("events")), local.names("events")))
        replace(source, target)

    monkeypatch.setattr(os, "replace", look)
    local.write_text("events/part-00000.jsonl", "1")
    assert seen == [([f".part-00000.jsonl.{os.getpid()}.tmp"], [])]
    local.write_text(".hidden", "")
    assert local.names() == [".hidden", "events"]


def test_delete_takes_files_and_whole_folders_and_what_is_not_there(
    storage: Storage, folder: Path
) -> None:
    storage.upload(folder, "up")
    storage.write_text("a", "")
    storage.delete("a")
    storage.delete("up")
    storage.delete("up")
    assert storage.names() == []
    assert storage.exists()


def test_folder_is_copied_there_and_back(storage: Storage, folder: Path, tmp_path: Path) -> None:
    storage.upload(folder, "up")
    storage.download("up", tmp_path / "back")
    assert tree(tmp_path / "back") == tree(folder)


def test_local_copy_holds_the_files_and_leaves_nothing_behind(
    storage: Storage, folder: Path
) -> None:
    storage.upload(folder, "up")
    with storage.local_copy("up") as copy:
        assert tree(copy) == tree(folder)
    assert copy.exists() == storage.is_local
    assert storage.names("up") == ["a.bin", "sub"]


def test_folders_of_a_name_are_made(local: Storage) -> None:
    local.write_text("events/part-0001/x.jsonl", "1")
    assert local.names("events") == ["part-0001"]


def test_reader_sees_the_old_file_or_the_new_one(local: Storage) -> None:
    contents = {bytes([65 + i]) * 300_000 for i in range(2)}
    local.write_bytes("a", min(contents))
    seen, done = set(), threading.Event()

    def write() -> None:
        for i in range(40):
            local.write_bytes("a", sorted(contents)[i % 2])
        done.set()

    writer = threading.Thread(target=write)
    writer.start()
    while not done.is_set():
        seen.add(local.read_bytes("a"))
    writer.join()
    assert seen <= contents
    assert local.names() == ["a"]


# ---------------------------------------------------------------- the folder


def test_exclusive_create_succeeds_once(local: Storage) -> None:
    assert local.create(exclusive=True)
    assert not local.create(exclusive=True)
    assert local.create()
    assert local.exists()


def test_exclusive_create_of_one_folder_has_one_winner(tmp_path: Path) -> None:
    won, start = [], threading.Barrier(8)

    def create() -> None:
        start.wait()
        won.append(Storage(f"{tmp_path}/runs/one").create(exclusive=True))

    threads = [threading.Thread(target=create) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(won) == [False] * 7 + [True]


def test_on_an_object_store_a_folder_with_files_is_taken() -> None:
    storage = Storage("mock:///a/run")
    assert storage.create(exclusive=True)
    storage.write_text("status.json", "{}")
    assert not storage.create(exclusive=True)
    assert storage.create()
    assert storage.names() == ["status.json"]


def test_folder_below_is_reached_from_above(local: Storage) -> None:
    below = local.under("default", "run-1")
    below.write_text("a", "1")
    assert local.read_text("default/run-1/a") == "1"
    assert below.uri == f"{local.uri}/default/run-1"
    assert Storage(local.uri + "/").uri == local.uri


def test_local_path_is_made_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    storage = Storage("runs")
    assert storage.uri == storage.path() == f"{tmp_path}/runs"
    assert Storage("~/runs").uri == f"{tmp_path}/home/runs"
    os.chdir("/")
    storage.write_text("a", "1")
    assert (tmp_path / "runs" / "a").read_text() == "1"


def test_local_path_may_hold_any_sign(tmp_path: Path) -> None:
    for name in ("run 1", "größe", "a#b", "a?b=c", "a%20b"):
        Storage(str(tmp_path)).under(name).write_text("a", name)
        assert (tmp_path / name / "a").read_text() == name


@pytest.mark.parametrize("name", ["run 1", "größe", "a#b", "a?b=c", "a%20b"])
def test_folder_below_a_uri_may_hold_any_sign(name: str, tmp_path: Path) -> None:
    Storage(f"file://{tmp_path}").under(name).write_text("a", name)
    assert (tmp_path / name / "a").read_text() == name


def test_folder_below_a_uri_with_options_is_another_folder(tmp_path: Path) -> None:
    below = Storage(f"file://{tmp_path}?region=eu").under("run")
    assert below.path() == f"{tmp_path}/run"
    assert below.uri == f"file://{tmp_path}/run?region=eu" and below.name == "run"


def test_storage_travels_to_workers(local: Storage) -> None:
    local.write_text("a", "1")
    there = pickle.loads(pickle.dumps(local))
    assert (there.uri, there.is_local, there.read_text("a")) == (local.uri, True, "1")


def test_other_file_systems_are_not_local(storage: Storage) -> None:
    assert storage.is_local == (not storage.uri.startswith("mock:"))


# ---------------------------------------------------------------- what cannot be written


def test_unknown_scheme_is_an_error_that_names_the_path() -> None:
    with pytest.raises(StorageError, match=r"storage_path 's4://bucket/x' cannot be used: "):
        Storage("s4://bucket/x")


@pytest.mark.parametrize("scheme", ["", "file://"])
def test_path_below_a_file_cannot_be_written(scheme: str, tmp_path: Path, folder: Path) -> None:
    (tmp_path / "file").write_text("")
    storage = Storage(f"{scheme}{tmp_path}/file/run")
    for attempt in (
        storage.check_writable,
        storage.create,
        lambda: storage.create(exclusive=True),
        lambda: storage.write_text("a", ""),
        lambda: storage.upload(folder, "up"),
    ):
        with pytest.raises(
            StorageError, match=rf"{tmp_path}/file/run.* cannot be (written|made): "
        ):
            attempt()
    assert not storage.exists()
    assert (tmp_path / "file").read_text() == ""


def test_file_in_place_of_a_folder_cannot_be_written(local: Storage) -> None:
    local.write_text("a/b", "1")
    with pytest.raises(StorageError, match=r"run/a cannot be written: "):
        local.write_text("a", "2")
    assert local.read_text("a/b") == "1"


def test_write_that_fails_leaves_no_partial_file(local: Storage) -> None:
    local.write_text("a/b", "1")
    with pytest.raises(StorageError):
        local.write_text("a", "2")
    assert local.names() == ["a"]


def test_check_leaves_nothing_behind(storage: Storage) -> None:
    storage.check_writable()
    assert storage.names() == []


def test_a_file_knows_when_it_was_written(storage: Storage) -> None:
    assert storage.modified_s("a") is None
    storage.write_bytes("a", b"1", content_type="text/html")
    assert storage.read_bytes("a") == b"1"
    assert storage.modified_s("a") is not None


def test_the_time_of_a_file_is_that_of_its_last_writing(local: Storage) -> None:
    local.write_text("a", "1")
    os.utime(local.path("a"), (12.5, 12.5))
    assert local.modified_s("a") == 12.5
    local.write_text("a", "2")
    assert abs((local.modified_s("a") or 0) - time.time()) < 60


@pytest.mark.parametrize(
    "uri",
    [
        "s3://ACCESS:hunter2@bucket/runs",
        "s3://bucket/runs?secret_key=hunter2",
        "s3://bucket/runs?access_key=hunter2&region=eu-west-1",
    ],
)
def test_a_uri_with_credentials_is_refused_and_not_repeated(uri: str) -> None:
    """They would stand in run.yaml, in logs and on dashboards."""
    with pytest.raises(StorageError, match="environment variables") as error:
        Storage(uri)
    assert "hunter2" not in str(error.value) and "s3://bucket/runs" in str(error.value)


def test_other_parts_of_a_uri_are_kept() -> None:
    uri = "s3://bucket/runs?region=eu-west-1&endpoint_override=localhost:9000"
    assert Storage(uri).uri == uri
