"""Reading sources: what is detected, what is said, and where exactly something is wrong."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from docarray.typing import ImageUrl

from ftray.data.inputs import read_inputs
from ftray.data.readers import CsvOptions, Records, read_records
from ftray.errors import DataError

LABELLED = "text,label\nwhere is my card,arrival\nlost my card,lost\n"


def written(folder: Path, content: str | bytes, name: str = "train.csv") -> Path:
    path = folder / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def rows(records: Records) -> list[tuple[str, ...]]:
    return [tuple(row.values()) for row in records.table.to_pylist()]


def refused(source: object, **options: object) -> str:
    with pytest.raises(DataError) as caught:
        read_records(source, **options)  # type: ignore[arg-type]
    return str(caught.value)


# What a source holds


@pytest.mark.parametrize(
    ("header", "kind"),
    [
        ("text,label", "labelled"),
        ("Label,Utterance", "labelled"),
        ("question,intent", "labelled"),
        ("query,document", "pairs"),
        ("question,answer", "pairs"),
        ("anchor,positive,negative", "triplets"),
        ("sentence1,sentence2,label", "pairs"),
        ("query,text", "pairs"),
        ("text", "items"),
        ("_id,title,text", "items"),
    ],
)
def test_column_names_tell_the_kind(tmp_path: Path, header: str, kind: str) -> None:
    cells = ",".join(f"some {name}" for name in header.split(","))
    records = read_records(written(tmp_path, f"{header}\n{cells}\n"))
    assert records.kind == kind
    assert rows(records)[0][0].startswith("some ")


def test_columns_go_to_their_role_whatever_their_order(tmp_path: Path) -> None:
    records = read_records(written(tmp_path, "label,text\narrival,where is my card\n"))
    assert rows(records) == [("where is my card", "arrival")]


def test_further_columns_are_ignored_and_said(tmp_path: Path) -> None:
    records = read_records(written(tmp_path, "text,label,split\na b,x,train\n"))
    assert records.table.column_names == ["item", "label"]
    assert "columns not read: 'split'" in records.notes


def test_an_ignored_score_of_pairs_is_said() -> None:
    row = {"sentence1": "a", "sentence2": "b", "score": 0.0}
    records = read_records([row], columns={"query": "sentence1", "document": "sentence2"})
    assert records.kind == "pairs"
    note = "'score' is not read: every pair counts as relevant (score: score in `columns` reads it)"
    assert note in records.notes


def test_every_source_gives_the_same_records(tmp_path: Path) -> None:
    dicts = [
        {"text": "where is my card", "label": "arrival"},
        {"text": "lost my card", "label": "lost"},
    ]
    table = pa.Table.from_pylist(dicts)
    pq.write_table(table, tmp_path / "train.parquet")
    sources = [
        written(tmp_path, LABELLED),
        str(written(tmp_path, LABELLED.replace(",", "\t"), "train.tsv")),
        written(tmp_path, LABELLED.replace(",", ";"), "semicolon.csv"),
        written(tmp_path, "\n".join(map(json.dumps, dicts)), "train.jsonl"),
        written(tmp_path, json.dumps(dicts, indent=1), "train.json"),
        tmp_path / "train.parquet",
        table,
        table.to_pandas(),
        dicts,
    ]
    read = [read_records(source) for source in sources]
    assert {records.fingerprint for records in read} == {read[0].fingerprint}
    assert all(rows(records) == rows(read[0]) for records in read)


def test_a_dialect_is_not_guessed(tmp_path: Path) -> None:
    lines = "where, is\tx\nlost, my\ty\n"
    guessed = read_records(written(tmp_path, lines))
    assert guessed.table["item" if guessed.kind == "labelled" else "query"][0].as_py() == "where"
    told = read_records(written(tmp_path, lines), csv_options={"dialect": "excel-tab"})
    assert set(told.table.to_pylist()[0].values()) == {"where, is", "x"}
    semicolon = written(tmp_path, "a;b\nc;d\n")
    given = read_records(semicolon, csv_options={"dialect": "unix", "delimiter": ";"})
    assert set(given.table.to_pylist()[0].values()) == {"a", "b"}, "a delimiter goes first"


def test_frames_are_read_as_tables(tmp_path: Path) -> None:
    frame = pd.DataFrame({"text": ["a", "b"], "label": [1.0, 2.0], 3: [0, 0]}, index=[7, 8])
    assert rows(read_records(frame)) == [("a", "1"), ("b", "2")]
    assert read_records(frame).place(1) == "a DataFrame of 2 rows, row 2"
    frame.loc[8, "text"] = None
    assert "a DataFrame of 2 rows, row 2: the text is empty" in refused(frame)
    assert "a DataFrame of 0 rows has no rows" in refused(frame[:0])


def test_tuples_are_pairs_and_strings_are_items() -> None:
    pairs = read_records([("a question", "an answer"), ("another", "its answer")])
    assert (pairs.kind, pairs.source) == ("pairs", "a list of 2 records")
    assert read_records(["one text", "two texts"]).kind == "items"


def test_records_are_returned_as_they_are() -> None:
    records = read_records(["a text"])
    assert read_records(records) is records


def test_integer_labels_are_read_as_strings() -> None:
    for source in (
        pa.table({"text": ["a", "b"], "label": [3, 12]}),
        [{"text": "a", "label": 3}, {"text": "b", "label": 12}],
    ):
        assert rows(read_records(source)) == [("a", "3"), ("b", "12")]


def test_dictionary_and_large_string_columns_are_read() -> None:
    table = pa.table(
        {
            "text": pa.array(["a", "b"], pa.large_string()),
            "label": pa.array(["x", "x"]).dictionary_encode(),
        }
    )
    assert rows(read_records(table)) == [("a", "x"), ("b", "x")]


def test_ids_of_the_source_are_kept() -> None:
    records = read_records([{"_id": 7, "text": "a"}, {"_id": 9, "text": "b"}])
    assert records.table["id"].to_pylist() == ["7", "9"]


def test_cells_lose_outer_white_space_only(tmp_path: Path) -> None:
    records = read_records(written(tmp_path, 'text,label\n"  two  words\t", x \n'))
    assert rows(records) == [("two  words", "x")]


def test_beir_folder_gives_the_judged_pairs(tmp_path: Path) -> None:
    written(tmp_path, '{"_id": "d1", "title": "T", "text": "body"}\n', "corpus.jsonl")
    written(tmp_path, '{"_id": "q1", "text": "what"}\n', "queries.jsonl")
    (tmp_path / "qrels").mkdir()
    written(tmp_path / "qrels", "query-id\tcorpus-id\tscore\nq1\td1\t1\n", "train.tsv")
    written(tmp_path / "qrels", "q1\td1\t0\n", "test.tsv")
    records = read_records(tmp_path)
    assert records.kind == "pairs"
    assert rows(records) == [("what", "T body", "q1")]


def test_reading_imports_neither_torch_nor_ray_nor_docarray() -> None:
    code = (
        "import sys; from ftray.data.readers import read_records; read_records(['a text']);"
        "sys.exit(','.join({'torch', 'ray', 'docarray'} & set(sys.modules)) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


# The user's columns


def test_columns_name_the_roles(tmp_path: Path) -> None:
    path = written(tmp_path, "satz,absicht,rest\nwo ist sie,ankunft,1\n")
    records = read_records(path, columns={"item": "satz", "label": "absicht"})
    assert rows(records) == [("wo ist sie", "ankunft")]


def test_a_partial_mapping_is_completed_by_name(tmp_path: Path) -> None:
    path = written(tmp_path, "text,tag,label\na b,x,y\n")
    assert rows(read_records(path, columns={"label": "tag"})) == [("a b", "x")]
    two = written(tmp_path, "frage,antwort\nwer,ich\n")
    assert rows(read_records(two, columns={"document": "frage"})) == [("ich", "wer")]


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"item": "txt"}, "has no column 'txt' for item. Did you mean 'text'?"),
        ({"lable": "label"}, "there is no role 'lable'. Did you mean 'label'?"),
        ({"item": "text", "label": "text"}, "stands for two roles"),
        ({"item": "text", "document": "label"}, "document, item do not go together"),
    ],
)
def test_wrong_columns_are_named(tmp_path: Path, columns: dict[str, str], message: str) -> None:
    assert message in refused(written(tmp_path, LABELLED), columns=columns)


def test_columns_need_a_header(tmp_path: Path) -> None:
    message = refused(
        written(tmp_path, LABELLED), columns={"item": "text"}, csv_options={"header": False}
    )
    assert "csv_options.header is false" in message


def test_columns_that_tell_nothing_are_listed(tmp_path: Path) -> None:
    message = refused(written(tmp_path, "foo,bar,baz\na b c,d,e\nf g h,h,i\n"))
    assert "the columns 'foo', 'bar', 'baz' do not tell which is the text" in message
    assert "`columns`" in message


def test_columns_that_tell_two_things_are_an_error() -> None:
    row = {"text": "a", "label": "b", "query": "c", "document": "d"}
    assert "Say which with `columns`" in refused([row])
    read = read_records([row], columns={"query": "query", "document": "document"})
    assert rows(read) == [("c", "d")]


def test_one_name_for_two_columns_is_an_error(tmp_path: Path) -> None:
    assert "two columns have the name 'text'" in refused(
        written(tmp_path, "text,text,label\na,b,c\n")
    )


# Two columns without telling names


def test_short_repeated_second_column_is_a_label(tmp_path: Path) -> None:
    path = written(tmp_path, "".join(f"text number {i},class{i % 2}\n" for i in range(8)))
    records = read_records(path)
    assert records.kind == "labelled" and records.table.num_rows == 8
    note = next(note for note in records.notes if "is_labeled" in note)
    assert "taken for item, label (2 distinct values in 8 rows" in note
    assert "csv_options.is_labeled = false" in note


def test_repeated_numbers_or_words_in_the_first_column_are_labels(tmp_path: Path) -> None:
    for label in ("{}", "class{}"):
        rows_ = [(label.format(i % 2), f"text number {i}") for i in range(8)]
        path = written(tmp_path, "".join(f"{a},{b}\n" for a, b in rows_))
        records = read_records(path)
        assert records.kind == "labelled"
        assert records.table.column_names == ["item", "label"]
        assert rows(records) == [(text, label) for label, text in rows_]
        note = next(note for note in records.notes if "is_labeled" in note)
        assert "taken for label, item (2 distinct values in 8 rows of the first)" in note


def test_a_query_with_several_documents_is_no_label() -> None:
    records = read_records([(f"what is {i % 2}", f"document {i}") for i in range(8)])
    assert records.kind == "pairs"


def test_distinct_second_column_is_a_document() -> None:
    records = read_records([(f"query {i}", f"document {i}") for i in range(8)])
    assert records.kind == "pairs"
    assert any("csv_options.is_labeled = true" in note for note in records.notes)


def test_is_labeled_decides() -> None:
    pairs = [("a", "b"), ("c", "d")]
    assert read_records(pairs, csv_options={"is_labeled": True}).kind == "labelled"
    assert read_records(pairs, csv_options={"is_labeled": False}).kind == "pairs"


def test_is_labeled_against_telling_names_is_an_error(tmp_path: Path) -> None:
    message = refused(written(tmp_path, LABELLED), csv_options={"is_labeled": False})
    assert "is_labeled is False" in message and "{query: text, document: label}" in message


# Rows taken, repeated, contradicting


def test_size_takes_the_first_rows_and_sampling_a_fixed_share(tmp_path: Path) -> None:
    path = written(tmp_path, "text\n" + "".join(f"text {i}\n" for i in range(1000)))
    first = read_records(path, csv_options=CsvOptions(size=10))
    assert rows(first) == [(f"text {i}",) for i in range(10)]
    drawn = read_records(path, csv_options={"sampling_rate": 0.1})
    assert drawn.table.num_rows == 100
    assert drawn.fingerprint == read_records(path, csv_options={"sampling_rate": 0.1}).fingerprint
    assert "100 of 1,000 rows drawn (sampling_rate)" in drawn.notes
    text, place = rows(drawn)[50][0], drawn.place(50)
    assert place.endswith(f"line {int(text.split()[1]) + 2}")


def test_size_and_sampling_hold_for_tables_too() -> None:
    table = pa.table({"text": [f"text {i}" for i in range(100)]})
    drawn = read_records(table, csv_options={"size": 50, "sampling_rate": 0.5})
    assert drawn.table.num_rows == 25
    number = int(rows(drawn)[-1][0].split()[1])
    assert number < 50 and drawn.place(24) == f"a table of 100 rows, row {number + 1}"


def test_options_without_meaning_are_said(tmp_path: Path) -> None:
    pq.write_table(pa.table({"text": ["a"]}), tmp_path / "a.parquet")
    records = read_records(tmp_path / "a.parquet", csv_options={"delimiter": ";"})
    assert "csv_options.delimiter: without meaning for Parquet" in records.notes


def test_repeats_and_texts_under_two_labels_are_counted_with_examples(tmp_path: Path) -> None:
    body = "".join(f"text {i},a\ntext {i},b\n" for i in range(5)) + "text 0,a\n"
    records = read_records(written(tmp_path, "text,label\n" + body))
    assert "rows that repeat an earlier one: 1" in records.notes
    assert (
        "5 texts under two labels or more: 'text 0' (a, b), 'text 1' (a, b), 'text 2' (a, b), …"
        in records.notes
    )


def test_label_conflicts_can_be_an_error(tmp_path: Path) -> None:
    path = written(tmp_path, "text,label\nt,a\nu,a\nt,b\n")
    message = refused(path, csv_options={"label_conflicts": "error"})
    assert f"{path}, line 4: 't' has the label 'b', but 'a' at {path}, line 2." in message
    assert "csv_options.label_conflicts = 'keep'" in message


# Errors, with their place


def test_missing_file_offers_the_nearest(tmp_path: Path) -> None:
    written(tmp_path, LABELLED)
    message = refused(tmp_path / "trian.csv", where="eval_data")
    assert message.startswith(f"eval_data: there is no file '{tmp_path / 'trian.csv'}'.")
    assert message.endswith("Did you mean 'train.csv'?")
    assert "Nor is there" in refused(tmp_path / "nowhere" / "train.csv")


def test_unknown_ending_lists_the_known(tmp_path: Path) -> None:
    message = refused(written(tmp_path, LABELLED, "train.xlsx"))
    assert "'.xlsx'" in message and "Valid: .csv, .tsv, .txt, .parquet, .json" in message


def test_folder_that_is_not_beir_is_an_error(tmp_path: Path) -> None:
    assert "is a folder, but not a BEIR folder, which holds corpus.jsonl" in refused(tmp_path)


@pytest.mark.parametrize("source", [None, 3, {"text": "a"}, {"a", "b"}])
def test_wrong_type_lists_what_is_accepted(source: object) -> None:
    message = refused(source)
    assert f"train_data: a {type(source).__name__} cannot be read. Valid: a path" in message
    assert "pyarrow.Table" in message and "DocList" in message


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ([], "train_data: the list is empty."),
        (["a", ""], "a list of 2 records, index 1: the text is empty"),
        (["a", ("b", "c")], "index 1: a tuple, but the first record is of another kind."),
        ([("a", "b"), ("a", "b", "c")], "index 1: a tuple of 3, but the first record has 2."),
        ([("a", "b", "c", "d")], "index 0: tuple of 4 is not a record."),
        ([object()], "is not a record. Valid: a dict with named texts"),
        ([{"text": "a", "label": "x"}, {"text": "b"}], "index 1: there is no 'label'"),
        ([{"text": "a", "label": None}], "index 0: the label is empty"),
        ([{"text": ["a"]}], "index 0, 'text': list is not a text."),
        (pa.table({"text": pa.array([], pa.string())}), "a table of 0 rows has no rows."),
        (pa.table({"text": ["a", None]}), "a table of 2 rows, row 2: the text is empty"),
        (pa.table({"text": [b"a"]}), "row 1, 'text': 1 bytes that start with b'a' are no image"),
    ],
)
def test_mistakes_in_python_records_are_placed(source: object, message: str) -> None:
    assert message in refused(source)


def test_broken_json_is_placed(tmp_path: Path) -> None:
    lines = written(tmp_path, '{"text": "a"}\n{"text": \n', "train.jsonl")
    assert f"{lines}, line 2: not valid JSON" in refused(lines)
    whole = written(tmp_path, '[{"text": "a"},\n {"text": }]', "train.json")
    assert f"{whole}, line 2: not valid JSON" in refused(whole)
    empty = written(tmp_path, '{"text": "a"}\n\n{"text": " "}\n', "train.ndjson")
    assert f"{empty}, line 3: the text is empty" in refused(empty)


def test_broken_parquet_is_an_error(tmp_path: Path) -> None:
    path = written(tmp_path, "no parquet", "train.parquet")
    assert f"{path} is not a readable Parquet file" in refused(path)
    pq.write_table(pa.table({"text": ["a", ""]}), path)
    assert f"{path}, row 2: the text is empty" in refused(path)


# Real data


@pytest.mark.skipif("FTRAY_DATA" not in os.environ, reason="FTRAY_DATA is not set")
def test_banking77_and_medquad_are_read_as_they_are() -> None:
    data = Path(os.environ["FTRAY_DATA"])
    banking = read_records(data / "banking77" / "train.csv")
    assert (banking.kind, banking.table.num_rows) == ("labelled", 10_003)
    assert "10,003 texts with 77 labels" in banking.notes
    medquad = read_records(data / "medquad" / "train.csv")
    assert (medquad.kind, medquad.table.num_rows) == ("pairs", 4_000)


def test_a_list_of_texts_to_encode_is_checked_too() -> None:
    texts = frozenset({"text"})
    part = read_inputs(["a", ""], modalities=texts).part(0, 2)
    assert part.items == part.names == ["a", ""] and part.ids is None
    for source, wrong in (
        (["a", "b\0ic.png"], "index 1: a text with the character U+0000"),
        (["a", "\0i/etc/hosts"], "index 1: a text with the character U+0000"),
        ([Path("a.txt")], "index 0: 'a.txt' is a path, but the model takes text"),
        (["a", Path("a.txt")], "index 1: 'a.txt' is a path, but the model takes text"),
        ([ImageUrl("a.png")], "index 0: the column 'text' holds an address of the kind 'image'"),
    ):
        with pytest.raises(DataError) as error:
            read_inputs(source, modalities=texts)
        assert wrong in str(error.value)
