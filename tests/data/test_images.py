"""Images in every form and every layout, and what is wrong with them, by row."""

from __future__ import annotations

import base64
import io
import json
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from docarray import BaseDoc, DocList
from docarray.documents import ImageDoc, TextDoc
from docarray.documents.legacy import LegacyDocument
from docarray.typing import ImageBytes, ImageUrl
from PIL import Image

from ftray.data.dataset import train_set
from ftray.data.evaluation import evaluation_data
from ftray.data.readers import read_records
from ftray.data.retrieval import retrieval_set
from ftray.models.pictures import decoded
from tests.data.pictured import (
    BOTH,
    IMAGE,
    TEXT,
    cells,
    csv,
    encoded,
    options,
    pictures,
    pixels,
    refused,
    rows,
    shown_pixels,
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return pictures(tmp_path, [f"img/{number}.png" for number in range(4)])


# ---------------------------------------------------------------- layouts of CSV


@pytest.mark.parametrize(
    ("lines", "modalities", "kind", "first"),
    [
        (["image,label", "img/0.png,a"], None, "labelled", ("0.png", "a")),
        (["label,image", "a,img/0.png"], None, "labelled", ("0.png", "a")),
        (["image,label,note", "img/0.png,a,x"], IMAGE, "labelled", ("0.png", "a")),
        (["path,label", "img/0.png,a"], IMAGE, "labelled", ("0.png", "a")),
        (["class,file", "a,img/0.png"], IMAGE, "labelled", ("0.png", "a")),
        (["path,label,split", "img/0.png,a,x"], None, "labelled", ("0.png", "a")),
        (["image,text", "img/0.png,red"], None, "pairs", ("red", "0.png")),
        (["text,image", "red,img/0.png"], None, "pairs", ("red", "0.png")),
        (["caption,image_path", "red,img/0.png"], BOTH, "pairs", ("red", "0.png")),
        (["photo,title,price", "img/0.png,red,3"], BOTH, "pairs", ("red", "0.png")),
        (["url,description", "img/0.png,red"], BOTH, "pairs", ("red", "0.png")),
        (["image,text,category", "img/0.png,red,c"], BOTH, "pairs", ("red", "0.png")),
        (["image,text,category", "img/0.png,red,c"], IMAGE, "labelled", ("0.png", "c")),
        (["image,text,category", "img/0.png,red,c"], TEXT, "labelled", ("red", "c")),
        (["query,document", "img/0.png,red"], BOTH, "pairs", ("0.png", "red")),
        (["query,document", "img/0.png,img/1.png"], None, "pairs", ("0.png", "1.png")),
        (["img/0.png,red shoe", "img/1.png,blue"], None, "pairs", ("red shoe", "0.png")),
        (["red shoe,img/0.png", "blue,img/1.png"], BOTH, "pairs", ("red shoe", "0.png")),
        (["img/0.png,a", "img/1.png,a"], None, "labelled", ("0.png", "a")),
        (["a,img/0.png", "a,img/1.png"], None, "labelled", ("0.png", "a")),
        (["a,img/0.png", "b,img/1.png"], IMAGE, "labelled", ("0.png", "a")),
        (["bild,wort", "img/0.png,a", "img/1.png,b"], BOTH, "pairs", ("a", "0.png")),
        (["img/0.png,img/1.png", "img/2.png,img/3.png"], None, "pairs", ("0.png", "1.png")),
        (["image1,image2,score", "img/0.png,img/1.png,1"], IMAGE, "scored", ("0.png", "1.png", 1)),
    ],
)
def test_layouts_of_csv(
    folder: Path, lines: list[str], modalities: Any, kind: str, first: tuple[Any, ...]
) -> None:
    path = csv(folder / "train.csv", lines)
    records = read_records(path, modalities=modalities)
    assert (records.kind, rows(records)[0]) == (kind, first)
    assert len(records.table) == len([line for line in lines if "img/" in line])


@pytest.mark.parametrize(
    ("given", "kind", "first"),
    [
        ({"columns": {"item": "image", "label": "name"}}, "labelled", ("0.png", "red")),
        ({"columns": {"query": "image", "document": "name"}}, "pairs", ("0.png", "red")),
        ({"columns": {"label": "group"}}, "labelled", ("0.png", "g")),
        ({"columns": {"query": "group"}}, "pairs", ("g", "0.png")),
        ({"columns": {"document": "image"}}, "pairs", ("red", "0.png")),
        (options(is_labeled=False), "pairs", ("red", "0.png")),
    ],
)
def test_what_the_user_says_goes_first(folder: Path, given: Any, kind: str, first: Any) -> None:
    path = csv(folder / "train.csv", ["image,name,group", "img/0.png,red,g"])
    records = read_records(path, modalities=BOTH, **given)
    assert (records.kind, rows(records)[0]) == (kind, first)


def test_is_labeled_decides_columns_without_names(folder: Path) -> None:
    path = csv(folder / "train.csv", ["red shoe,img/0.png", "blue shoe,img/1.png"])
    labelled = read_records(path, modalities=BOTH, **options(is_labeled=True))
    assert (labelled.kind, rows(labelled)[0]) == ("labelled", ("0.png", "red shoe"))
    pairs = read_records(path, modalities=IMAGE | TEXT, **options(is_labeled=False))
    assert (pairs.kind, rows(pairs)[0]) == ("pairs", ("red shoe", "0.png"))


def test_text_models_read_names_of_files_as_texts(folder: Path) -> None:
    path = csv(folder / "train.csv", ["text,label", "img/nowhere.png,a", "b.jpg,b"])
    assert rows(read_records(path, modalities=TEXT))[0] == ("img/nowhere.png", "a")
    texts = csv(folder / "texts.csv", ["text,label", "see a.png,a", "no image,b", "none,c"])
    assert rows(read_records(texts))[0] == ("see a.png", "a"), "one of three is no column of images"


def test_without_texts_every_string_is_an_address(tmp_path: Path) -> None:
    (tmp_path / "one").write_bytes(encoded(1))
    (tmp_path / "two.bin").write_bytes(encoded(2, "JPEG"))
    path = csv(tmp_path / "train.csv", ["item,label", "one,a", "two.bin,b"])
    assert rows(read_records(path, modalities=IMAGE)) == [("one", "a"), ("two.bin", "b")]
    bare = csv(tmp_path / "bare.csv", ["one,a", "two.bin,b"])
    assert rows(read_records(bare, modalities=IMAGE)) == [("one", "a"), ("two.bin", "b")]


@pytest.mark.parametrize(
    ("columns", "given"),
    [
        ("text,image", {}),
        ("caption,path", {}),
        ("text,photo", {"columns": {"query": "text", "document": "photo"}}),
        ("satz,bild", {"columns": {"query": "satz", "document": "bild"}}),  # the files are there
        ("satz,bild", {}),
    ],
)
def test_columns_of_images_are_images_whatever_their_files_are_called(
    tmp_path: Path, columns: str, given: Any
) -> None:
    pictures(tmp_path, ["0_0", "0_1.avif"])
    path = csv(tmp_path / "t.csv", [columns, "a red shoe,0_0", "a blue shoe,0_1.avif"])
    records = read_records(path, modalities=BOTH, **given)
    assert rows(records) == [("a red shoe", "0_0"), ("a blue shoe", "0_1.avif")]
    assert [one.modality for one in cells(records, "document")] == ["image", "image"]
    assert not [note for note in records.notes if "text tower" in note]


def test_addresses_without_an_ending_are_read_in_the_working_directory_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pictures(tmp_path, ["0", "1"])
    (tmp_path / "lists").mkdir()
    monkeypatch.chdir(tmp_path)
    path = csv(tmp_path / "lists/t.csv", ["satz,bild", "red,0", "blue,1"])
    images = cells(read_records(path, modalities=BOTH), "document")
    assert [one.address for one in images] == [str(tmp_path / name) for name in "01"]


def test_an_address_in_the_web_needs_no_ending_in_a_column_of_images() -> None:
    source = [{"text": "a red shoe", "image": "https://cdn.example/1"}]
    assert "index 0: 'https://cdn.example/1' is in the web" in refused(source, modalities=BOTH)


def test_a_column_that_is_named_as_what_the_model_does_not_take_may_hold_texts() -> None:
    source = [{"query": "a shoe", "features": "red, leather"}]
    given = {"query": "query", "document": "features"}
    records = read_records(source, modalities=BOTH, columns=given)
    assert rows(records) == [("a shoe", "red, leather")]


def test_paths_that_are_objects_are_no_texts(tmp_path: Path) -> None:
    pictures(tmp_path, ["0_0", "1.png"])
    source = [(Path(tmp_path / "0_0"), "a red shoe"), (Path(tmp_path / "1.png"), "a blue shoe")]
    records = read_records(source, modalities=BOTH)
    assert rows(records) == [("a red shoe", "0_0"), ("a blue shoe", "1.png")]
    frame = pd.DataFrame({"bild": [one for one, _ in source], "label": ["a", "b"]})
    assert rows(read_records(frame, modalities=IMAGE)) == [("0_0", "a"), ("1.png", "b")]
    labels = [{"image": encoded(0), "label": Path("a/b")}]
    assert read_records(labels).table["label"].to_pylist() == ["a/b"]
    message = refused(source[:1], modalities=TEXT)
    assert f"index 0, 'column 1': '{tmp_path}/0_0' is a path, but the model takes text" in message
    message = refused(source[:1])
    assert f"what the path '{tmp_path}/0_0' is, neither its ending tells nor the model" in message


def test_texts_alone_for_a_model_of_texts_and_images_are_said(folder: Path) -> None:
    lines = ["text,label", "a red shoe,a", "a blue shoe,b"]
    path = csv(folder / "t.csv", lines)
    note = "no column holds images: only the text tower takes what is there"
    assert note in read_records(path, modalities=BOTH).notes
    for modalities in (None, TEXT):
        assert note not in read_records(path, modalities=modalities).notes
    images = csv(folder / "i.csv", ["image,text", "img/0.png,a red shoe"])
    assert note not in read_records(images, modalities=BOTH).notes


# ---------------------------------------------------------------- addresses


def test_addresses_are_relative_to_the_file_or_else_to_the_working_directory(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inside = folder / "lists"
    inside.mkdir()
    monkeypatch.chdir(folder)
    here = read_records(csv(inside / "a.csv", ["image,label", "img/0.png,a"]))
    assert cells(here, "item")[0].address == str(folder / "img/0.png")
    assert "column 'image': files are relative to the working directory" in here.notes
    beside = read_records(csv(inside / "b.csv", ["image,label", "../img/./0.png,a"]))
    assert beside.table["item"] == here.table["item"]
    assert not [note for note in beside.notes if "working directory" in note]
    absolute = csv(inside / "c.csv", ["image,label", f"{folder}/img/../img/0.png,a"])
    uri = csv(inside / "d.csv", ["image,label", f"file://{folder}/img/0.png,a"])
    assert read_records(absolute).table == read_records(uri).table == here.table


def test_data_addresses_hold_their_image(tmp_path: Path) -> None:
    address = f"data:image/png;base64,{base64.b64encode(encoded(5)).decode()}"
    records = read_records([{"image": address, "label": "a"}])
    assert np.array_equal(shown_pixels(cells(records, "item")[0]), pixels(5))
    message = refused([{"image": address[:-1] + "*", "label": "a"}])
    assert message.endswith(
        "index 0: a data: address whose content is not base64 (column 'image')."
    )


@pytest.mark.parametrize(
    "read",
    [
        read_records,
        retrieval_set,
        lambda path: retrieval_set(
            path, csv(path.parent / "index.csv", ["image,label", "0.png,a"])
        ),
        lambda path: retrieval_set(
            csv(path.parent / "pairs.csv", ["text,image", "red,0.png", "blue,1.png"])
        ),
    ],
    ids=["training", "labelled", "labelled with an index", "pairs"],
)
def test_fingerprints_tell_other_files_apart_and_other_folders_not(
    tmp_path: Path, read: Callable[[Path], Any]
) -> None:
    def fingerprint(name: str, numbers: list[int]) -> str:
        folder = tmp_path / name
        folder.mkdir(exist_ok=True)
        for place, number in enumerate(numbers):
            (folder / f"{place}.png").write_bytes(encoded(number) + b"\0" * number)
        path = csv(folder / "t.csv", ["image,label", "0.png,a", "1.png,b"])
        return read(path).fingerprint

    assert fingerprint("one", [0, 1]) == fingerprint("two", [0, 1])
    assert fingerprint("two", [0, 2]) != fingerprint("one", [0, 1])


class Pictures(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        if self.path.startswith("/moved"):
            self.send_response(302)
            self.send_header("Location", "/0.png" if "web" in self.path else "file:///etc/passwd")
            self.end_headers()
        elif self.path.startswith("/0.png"):
            self.send_response(200)
            self.end_headers()
            self.wfile.write(encoded(0))
        else:
            self.send_error(404)

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def web(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.setenv(name, "127.0.0.1")
    server = ThreadingHTTPServer(("127.0.0.1", 0), Pictures)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()


def test_the_web_is_read_only_where_the_user_asks_for_it(tmp_path: Path, web: str) -> None:
    lines = ["image,label", f"{web}/0.png?size=4,a", f"{web}/moved/web.png,b"]
    path = csv(tmp_path / "train.csv", lines)
    message = refused(path)
    assert f"train.csv, line 2: '{web}/0.png?size=4' is in the web" in message
    assert "csv_options.fetch_urls = true" in message
    records = read_records(path, **options(fetch_urls=True))
    first, second = cells(records, "item")
    assert np.array_equal(shown_pixels(first), pixels(0)) and first.address == second.address
    for gone, why in (("9.png", "the server answers 404"), ("moved/away.png", "not allowed")):
        bad = csv(tmp_path / "bad.csv", [*lines, f"{web}/{gone},c"])
        message = refused(bad, **options(fetch_urls=True))
        assert f"bad.csv, line 4: '{web}/{gone}': " in message and why in message


def test_other_addresses_are_refused(tmp_path: Path) -> None:
    for address in ("s3://bucket/1.png", "ftp://host/1.png"):
        message = refused([{"image": address, "label": "a"}], modalities=IMAGE)
        assert f"index 0: '{address}' is no address that is read" in message


def test_convert_to_blob_reads_the_files_at_the_start(folder: Path) -> None:
    path = csv(folder / "train.csv", ["image,label", "img/0.png,a", "img/1.png,b"])
    kept, read = read_records(path), read_records(path, **options(convert_to_blob=True))
    assert len(kept.blobs) == 0 and len(read.blobs) == 2
    (folder / "img/1.png").unlink()
    assert np.array_equal(shown_pixels(cells(read, "item")[1]), pixels(1))


# ---------------------------------------------------------------- forms of an image


class Stored(BaseDoc):
    photo: ImageBytes
    label: str


class Shop(BaseDoc):
    picture: ImageDoc
    description: TextDoc


class Foreign(BaseDoc):
    bild: ImageUrl
    worte: str


class Post(BaseDoc):
    text: str
    url: ImageUrl


class LabelledImage(ImageDoc):
    label: str


def forms() -> dict[str, Any]:
    """One image with the label "a" in every form; `{path}` is its file."""
    array, data = pixels(0), encoded(0)
    struct = pa.struct({"bytes": pa.binary(), "path": pa.string()})
    stored = pa.array([{"bytes": data, "path": None}], struct)
    tensor = pa.FixedShapeTensorArray.from_numpy_ndarray(np.stack([array, array]))
    return {
        "bytes": [{"image": data, "label": "a"}],
        "tuple": [(data, "a"), (encoded(1), "a")],
        "label first": [{"label": "a", "image": bytearray(data)}],
        "PIL": [{"image": Image.fromarray(array), "label": "a"}],
        "array": [{"image": array, "label": "a"}],
        "floats": [{"image": array / np.float32(255), "label": "a"}],
        "lists": [{"image": array.tolist(), "label": "a"}],
        "struct": [{"image": {"bytes": data, "path": None}, "label": "a"}],
        "column of bytes": pa.table({"image": [data], "label": ["a"]}),
        "large": pa.table({"image": pa.array([data], pa.large_binary()), "label": [3]}),
        "column of structs": pa.table({"image": stored, "label": ["a"]}),
        "column of lists": pa.table({"image": [array.tolist()], "label": ["a"]}),
        "column of tensors": pa.table({"image": tensor, "label": ["a", "b"]}),
        "frame of bytes": pd.DataFrame({"image": [data], "label": ["a"]}),
        "frame of images": pd.DataFrame({"image": [Image.fromarray(array)], "label": ["a"]}),
        "ImageBytes": DocList[Stored]([Stored(photo=data, label="a")]),
        "tensor": DocList[LabelledImage]([LabelledImage(tensor=array, label="a")]),
        "bytes_": DocList[LabelledImage]([LabelledImage(bytes_=data, label="a")]),
        "legacy blob": DocList([LegacyDocument(blob=data, tags={"finetuner_label": "a"})]),
        "legacy tensor": DocList([LegacyDocument(tensor=array, tags={"finetuner_label": "a"})]),
    }


@pytest.mark.parametrize("form", forms())
@pytest.mark.parametrize("modalities", [None, IMAGE])
def test_an_image_is_the_same_in_every_form(form: str, modalities: Any) -> None:
    records = read_records(forms()[form], modalities=modalities)
    assert records.kind == "labelled"
    assert np.array_equal(shown_pixels(cells(records, "item")[0]), pixels(0))
    assert records.table["label"][0].as_py() in ("a", "3")


def test_tensors_of_torch_are_images(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    first = torch.tensor(pixels(0)).permute(2, 0, 1)
    floats = (first / 255).requires_grad_()
    for tensor in (first, floats):
        records = read_records([{"image": tensor, "label": "a"}])
        assert np.array_equal(shown_pixels(cells(records, "item")[0]), pixels(0))
    assert any("pixels from 0 to 1 taken as shares of 255" in note for note in records.notes)


def test_images_alone_are_items(folder: Path) -> None:
    for source in (
        [encoded(0), encoded(1)],
        [Image.fromarray(pixels(0)), Image.fromarray(pixels(1))],
        np.stack([pixels(0), pixels(1)]),
        [str(folder / "img/0.png"), str(folder / "img/1.png")],
        [folder / "img/0.png", folder / "img/1.png"],
        DocList[ImageDoc]([ImageDoc(url=str(folder / f"img/{i}.png")) for i in (0, 1)]),
    ):
        records = read_records(source, modalities=IMAGE)
        assert records.kind == "items"
        held = [shown_pixels(one) for one in cells(records, "item")]
        assert all(np.array_equal(held[i], pixels(i)) for i in (0, 1))


def test_a_path_is_the_address_that_it_holds(folder: Path) -> None:
    path = folder / "img/0.png"
    rows_ = [{"image": path, "label": "a"}]
    for source in (rows_, pd.DataFrame(rows_), [(path, "a"), (path, "a")]):
        for modalities in (None, IMAGE):
            records = read_records(source, modalities=modalities)
            assert rows(records)[0] == ("0.png", "a")


def test_files_of_rows_are_found_from_every_kind_of_source(folder: Path) -> None:
    table = pa.table({"image": ["img/0.png", "img/1.png"], "label": ["a", "b"]})
    pq.write_table(table, folder / "t.parquet")
    lines = [json.dumps(row) for row in table.to_pylist()]
    sources = [folder / "t.parquet", csv(folder / "t.jsonl", lines)]
    frame = table.to_pandas()
    frame["image"] = str(folder) + "/" + frame["image"]
    sources.append(frame)
    tables = [read_records(source).table for source in sources]
    assert tables[0] == tables[1] == tables[2]
    assert rows(read_records(sources[0])) == [("0.png", "a"), ("1.png", "b")]


@pytest.mark.parametrize("modalities", [None, BOTH])
def test_documents_with_a_text_and_an_image_are_pairs(folder: Path, modalities: Any) -> None:
    url = str(folder / "img/0.png")
    chunks = [LegacyDocument(url=url), LegacyDocument(text="red")]
    for docs in (
        DocList[Shop]([Shop(picture=ImageDoc(url=url), description=TextDoc(text="red"))]),
        DocList[Shop]([Shop(picture=ImageDoc(bytes_=encoded(0)), description=TextDoc(text="red"))]),
        DocList[Foreign]([Foreign(bild=url, worte="red")]),
        DocList[Post]([Post(text="red", url=url)]),
        DocList([LegacyDocument(chunks=chunks)]),
        DocList([LegacyDocument(chunks=chunks[::-1])]),
    ):
        records = read_records(docs, modalities=modalities)
        assert records.kind == "pairs" and records.table["query"].to_pylist() == ["red"]
        assert np.array_equal(shown_pixels(cells(records, "document")[0]), pixels(0))


def test_legacy_matches_may_be_images(folder: Path) -> None:
    query = LegacyDocument(text="red", matches=[LegacyDocument(url=str(folder / "img/2.png"))])
    assert rows(read_records(DocList([query]), modalities=BOTH)) == [("red", "2.png")]


def test_grey_and_transparent_images_and_other_kinds_are_kept(tmp_path: Path) -> None:
    for mode in ("1", "L", "LA", "P", "RGBA", "CMYK", "I;16"):
        image = Image.new(mode, (3, 2))
        records = read_records([{"image": image, "label": "a"}])
        assert shown_pixels(cells(records, "item")[0]).shape == (2, 3, 3)
    for kind in ("PNG", "JPEG", "GIF", "BMP", "WEBP", "TIFF"):
        assert len(read_records([{"image": encoded(0, kind), "label": "a"}]).blobs) == 1


def test_deep_pixels_of_pil_are_those_of_their_file(tmp_path: Path) -> None:
    """Grey of more than 8 bits keeps its high byte in memory as it does on the disk."""
    deep = np.array([[0, 255, 256], [0x8000, 0xABCD, 0xFFFF]])
    wide = Image.fromarray(np.where(deep == 0xFFFF, 70_000, deep).astype(np.int32))
    for image in (
        Image.fromarray(deep.astype(np.uint16)),
        Image.frombytes("I;16B", (3, 2), deep.astype(">u2").tobytes()),
        wide,
    ):
        ((media,),) = (cells(read_records([{"image": image, "label": "a"}]), "item"),)
        assert np.array_equal(np.asarray(decoded(media, "L")), deep >> 8), image.mode
    assert wide.mode == "I"


def test_pixels_of_pil_that_are_floats_or_damaged_are_refused() -> None:
    message = refused([{"image": Image.new("F", (3, 2), 0.5), "label": "a"}])
    assert message.startswith("a list of 1 record, index 0, 'image': an image of PIL's with float")
    cut = Image.open(io.BytesIO(encoded(0)[:60]))
    message = refused([{"image": cut, "label": "a"}])
    assert "index 0, 'image': an image of PIL's that cannot be decoded (" in message


# ---------------------------------------------------------------- what is wrong, and where


def many(folder: Path, bad: str, lines: int = 20) -> Path:
    """A CSV file whose 17th row (line 18) names `bad`."""
    names = [f"img/{number % 4}.png" for number in range(lines)]
    names[16] = bad
    return csv(folder / "train.csv", ["image,label", *(f"{name},c{len(name)}" for name in names)])


def test_a_missing_file_is_named_with_its_row(folder: Path) -> None:
    message = refused(many(folder, "img/x.png"))
    assert message.endswith("train.csv, line 18: there is no file 'img/x.png' (column 'image').")
    rows_ = [{"image": str(folder / "img/0.png"), "label": "a"}] * 16
    missing = str(folder / "y.png")
    message = refused([*rows_, {"image": missing, "label": "b"}])
    assert f"index 16: there is no file '{missing}'" in message
    both = csv(folder / "b.csv", ["image,label", "img/0.png,a", "x.png,b", "y.png,c"])
    assert "line 3: there is no file 'x.png'; 2 of 3 files are missing" in refused(both)


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (encoded(0)[:50], "is damaged"),
        (b"no image at all", "is no image that can be read"),
        (b"\xff\xd8\xff" + b"x" * 40, "is no image that can be read"),
    ],
)
def test_a_broken_image_is_named_with_its_row(folder: Path, content: bytes, why: str) -> None:
    (folder / "img/x.png").write_bytes(content)
    assert f"line 18: the image 'img/x.png' {why}" in refused(many(folder, "img/x.png"))
    table = pa.table({"image": [encoded(1), encoded(0)[:50]], "label": ["a", "b"]})
    assert "row 2: the image is damaged" in refused(table)
    assert "(column 'image')" in refused(table)


def test_an_empty_file_is_named_with_its_row(folder: Path) -> None:
    (folder / "img/x.png").write_bytes(b"")
    assert "line 18: the file 'img/x.png' is empty" in refused(many(folder, "img/x.png"))


@pytest.mark.parametrize("modalities", [None, IMAGE, BOTH])
def test_a_missing_address_is_no_missing_text(folder: Path, modalities: Any) -> None:
    path = csv(folder / "t.csv", ["image,label", "img/0.png,a", ",b"])
    assert "line 3: the image is empty (column 'image')" in refused(path, modalities=modalities)
    lines = ["img/0.png,red shoe", ",blue shoe"]
    path = csv(folder / "u.csv", lines)
    assert "line 2: the first image is empty" in refused(path, modalities=modalities)
    path = csv(folder / "v.csv", ["img/0.png,", "img/1.png,shoe"])
    message = refused(path, modalities=modalities)
    assert "line 1: the second text is empty" in message
    assert "Every row needs a first image and a second text." in message


def test_an_image_of_too_many_pixels_is_refused(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    for side in (11, 20):  # Pillow warns of the one and refuses the other
        Image.new("L", (side, side)).save(folder / "img/x.png")
        message = refused(many(folder, "img/x.png"))
        assert "line 18: the image 'img/x.png' has more than 100 pixels" in message


def test_large_data_is_opened_but_not_decoded(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "img/x.png").write_bytes(encoded(0)[:60])
    path = many(folder, "img/x.png")
    assert "is damaged" in refused(path)
    monkeypatch.setattr("ftray.data.pictures.DECODED_BYTES", 100)
    assert read_records(path).kind == "labelled"
    (folder / "img/x.png").write_bytes(b"nothing")
    assert "line 18: the image 'img/x.png' is no image" in refused(path)


def test_a_text_among_images_is_named_with_its_row(folder: Path) -> None:
    path = many(folder, "a red shoe")
    message = refused(path)
    assert "line 18: 'a red shoe' is of the kind 'text', but the column 'image' starts" in message
    assert "'image' at " in message and "Addresses end in .png" in message
    message = refused(path, modalities=BOTH)  # which knows that the column holds images
    assert "line 18: there is no file 'a red shoe' (column 'image')" in message
    source = [{"image": encoded(0), "label": "a"}, {"image": "hello", "label": "b"}]
    message = refused(source)
    assert "index 1: 'hello' is of the kind 'text', but the column 'image' starts" in message
    message = refused(source, modalities=BOTH)
    assert "index 1: there is no file 'hello' (column 'image')" in message


def test_points_among_images_are_named_with_their_row(folder: Path) -> None:
    (folder / "a.off").write_text("OFF")
    message = refused(many(folder, "a.off"))
    assert "line 18: 'a.off' is of the kind 'points', but the column 'image' starts" in message


def test_labels_in_the_place_of_images_are_recognised(folder: Path) -> None:
    path = csv(folder / "train.csv", ["image,name", "img/0.png,cat", "img/1.png,cat"])
    wrong = {"item": "name", "label": "image"}
    for modalities in (None, IMAGE, BOTH):
        message = refused(path, columns=wrong, modalities=modalities)
        assert "the labels (column 'image') are addresses, as 'img/0.png'" in message
        assert "Say {item: image, label: name}" in message
    table = pa.table({"image": [encoded(0)], "name": ["cat"]})
    message = refused(table, columns=wrong)
    assert "column 'image' holds binary, and label must be" in message
    assert "If they are the items" in message


def test_columns_without_addresses_are_refused_for_image_models(folder: Path) -> None:
    path = csv(folder / "train.csv", ["red shoe,cat", "blue shoe,cat"])
    message = refused(path, modalities=IMAGE)
    assert "takes image, but neither of the columns 'column 1' and 'column 2'" in message


def test_images_for_a_text_model_are_refused() -> None:
    message = refused([{"image": encoded(0), "label": "a"}], modalities=TEXT)
    assert "index 0, 'image': of the kind 'image', but the model takes text." in message


@pytest.mark.parametrize(
    ("value", "why"),
    [
        (b"GARBAGE here", "12 bytes that start with b'GARBAGE here' are no image"),
        (np.full((2, 2), 1.5), "an image of floats from 1.5 to 1.5. Valid: from 0 to 1"),
        (np.full((2, 2), np.nan), "an image with a pixel that is not finite"),
        (np.full((2, 2), 300), "Valid: whole numbers from 0 to 255"),
        (np.zeros((2, 2, 5), np.uint8), "an array of shape (2, 2, 5) is no image"),
        (np.zeros((0, 2), np.uint8), "an array of shape (0, 2) is no image"),
        (b"", "the image is empty (column 'image'). Every row needs an image and a label."),
    ],
)
def test_what_is_no_image_is_refused_with_its_row(value: Any, why: str) -> None:
    source = [{"image": encoded(0), "label": "a"}, {"image": value, "label": "b"}]
    message = refused(source, modalities=IMAGE)
    assert "index 1" in message and why in message


def test_texts_hold_no_u0000(tmp_path: Path) -> None:
    """It would be taken for the mark of a reference, to a file of the reader's choice."""
    bad = "\0i/etc/passwd"
    sources: list[Any] = [
        [{"text": "a", "label": "x"}, {"text": bad, "label": "y"}],
        pa.table({"text": ["a", bad], "label": ["x", "y"]}),
        DocList[TextDoc]([TextDoc(text="a"), TextDoc(text=bad)]),
        [("a", "b"), ("c", "d\0")],
    ]
    path = tmp_path / "t.jsonl"
    path.write_text("\n".join(json.dumps({"text": t, "label": "x"}) for t in ("a", bad)))
    sources.append(path)
    for source in sources:
        message = refused(source)
        assert "a text with the character U+0000" in message
        assert any(place in message for place in ("index 1", "row 2", "line 2"))
    table = tmp_path / "t.csv"
    table.write_bytes(b"text,label\na,x\n" + bad.encode() + b",y\n")
    message = refused(table, **options(encoding="utf-8"))
    assert "line 3" in message and "U+0000" in message


# ---------------------------------------------------------------- what becomes of them


def test_training_and_evaluation_take_images(folder: Path) -> None:
    lines = ["image,label", "img/0.png,a", "img/1.png,a", "img/2.png,b", "img/3.png,b"]
    path = csv(folder / "train.csv", lines)
    train = train_set(read_records(path, modalities=IMAGE), where="train_data")
    assert train.modalities == (IMAGE,) and train.n_groups == 2
    data = evaluation_data(path, modalities=IMAGE)
    assert len(data.query_texts) == 4
    pairs = csv(folder / "pairs.csv", ["text,image", "red,img/0.png", "blue,img/1.png"])
    found = evaluation_data(
        pairs, csv(folder / "index.csv", ["img/1.png", "img/0.png"]), modalities=BOTH
    )
    assert len(found.document_texts) == 2
    labelled = evaluation_data(
        pictures(folder / "q", ["a/1.png", "b/1.png"]),
        pictures(folder / "i", ["a/2.png", "b/2.png"]),
        modalities=IMAGE,
    )
    assert len(labelled.query_texts) == 2


def test_text_data_loads_no_image_library(tmp_path: Path) -> None:
    import subprocess

    csv(tmp_path / "t.csv", ["text,label", "a,x", "b,y"])
    code = (
        "import sys; from ftray.data.readers import read_records; read_records('t.csv');"
        "assert not {'PIL', 'torch', 'datasets'} & set(sys.modules)"
    )
    root = str(Path(__file__).parents[2])
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env={"PYTHONPATH": root}, check=True)


# ---------------------------------------------------------------- real data


def test_the_real_emoji_are_pairs_of_text_and_image(data_dir: Path) -> None:
    for source in (data_dir / "emoji/png_sample/captions.csv", data_dir / "emoji/png_sample"):
        for modalities in (None, BOTH):
            records = read_records(source, modalities=modalities)
            assert records.kind == "pairs" and len(records.table) == 96
            assert rows(records)[0] == ("keycap: #", "0023-fe0f-20e3.png")
    table = read_records(
        data_dir / "emoji/emoji.parquet", columns={"query": "name", "document": "image"}
    )
    assert len(table.table) == 1817


@pytest.mark.parametrize(
    ("name", "columns", "count", "labels"),
    [
        ("fashion_mnist/train_10k", {"item": "image", "label": "label_name"}, 10_000, 10),
        ("omniglot/background", {"item": "image", "label": "character"}, 3220, 161),
    ],
)
def test_real_images_in_parquet(
    data_dir: Path, name: str, columns: dict[str, str], count: int, labels: int
) -> None:
    records = read_records(data_dir / f"{name}.parquet", columns=columns, modalities=IMAGE)
    assert records.kind == "labelled"
    assert f"{count:,} images with {labels} labels" in records.notes


def test_addresses_that_a_text_model_reads_as_texts_are_said(tmp_path: Path) -> None:
    path = tmp_path / "shoes.csv"
    path.write_text("image,label\n" + "".join(f"shoe{i}.png,c{i % 2}\n" for i in range(6)))
    notes = read_records(path, modalities=frozenset({"text"})).notes
    assert any("'image' looks like addresses of images" in note for note in notes)
    path.write_text("text,label\n" + "".join(f"shoe {i},c{i % 2}\n" for i in range(6)))
    assert not any(
        "looks like" in n for n in read_records(path, modalities=frozenset({"text"})).notes
    )
