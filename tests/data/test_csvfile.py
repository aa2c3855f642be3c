"""CSV files: what is detected about them, and where exactly they are wrong."""

from __future__ import annotations

from pathlib import Path

import pytest

from ftray.data.readers import Records, read_records
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


def test_header_of_unknown_words_is_detected_and_said(tmp_path: Path) -> None:
    path = written(tmp_path, "phrase,tag\nhow do I pay,pay\nwhere do I pay,pay\n")
    records = read_records(path)
    assert records.table.num_rows == 2
    assert any("line 1 was taken as the header (phrase, tag)" in note for note in records.notes)
    assert read_records(path, csv_options={"header": False}).table.num_rows == 3


def test_header_of_several_words_over_numbers_is_detected(tmp_path: Path) -> None:
    body = "".join(f"{i % 3};Wo ist Karte {i}\n" for i in range(9))
    records = read_records(written(tmp_path, "Kategorie;Anfrage des Kunden\n" + body))
    assert records.table.num_rows == 9 and records.kind == "labelled"
    assert any("header (Kategorie, Anfrage des Kunden)" in note for note in records.notes)


def test_numbers_in_the_first_row_are_no_header(tmp_path: Path) -> None:
    records = read_records(written(tmp_path, "where is it,1\nwhere am I,2\nwho is it,1\n"))
    assert records.table.num_rows == 3
    assert any("line 1 was taken as data" in note for note in records.notes)


def test_first_row_whose_label_recurs_is_no_header(tmp_path: Path) -> None:
    path = written(tmp_path, "hello,greeting\ngood day to you,greeting\nsee you soon,parting\n")
    assert read_records(path).table.num_rows == 3


@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
def test_delimiter_is_detected(tmp_path: Path, delimiter: str) -> None:
    text = '"one, two; three|four"'
    path = written(tmp_path, f"text{delimiter}label\n{text}{delimiter}x\nit's{delimiter}y\n")
    assert rows(read_records(path)) == [("one, two; three|four", "x"), ("it's", "y")]


def test_lines_of_a_txt_file_are_texts(tmp_path: Path) -> None:
    path = written(tmp_path, 'first, with a comma\nsecond "quoted\nthird, and, more\n', "q.txt")
    assert rows(read_records(path))[1] == ('second "quoted',)


def test_given_delimiter_may_be_written_as_an_escape(tmp_path: Path) -> None:
    path = written(tmp_path, "text\tlabel\na\tb\n")
    assert rows(read_records(path, csv_options={"delimiter": "\\t"})) == [("a", "b")]


def test_byte_order_marks_are_no_text(tmp_path: Path) -> None:
    for content in (LABELLED.encode("utf-8-sig"), LABELLED.encode("utf-16")):
        assert read_records(written(tmp_path, content)).kind == "labelled"
    path = written(tmp_path, LABELLED.encode("utf-8-sig"))
    assert read_records(path, csv_options={"encoding": "utf-8"}).kind == "labelled"


def test_guessed_encoding_is_said(tmp_path: Path) -> None:
    body = "".join(f"où est ma carte, numéro {i} après l'été,arrivée\n" for i in range(30))
    body = "text,label\n" + body.replace(", n", " n")
    records = read_records(written(tmp_path, body.encode("cp1252")))
    assert rows(records)[0] == ("où est ma carte numéro 0 après l'été", "arrivée")
    assert any(
        "encoding: cp1252 is a guess (it gives 'où'), for the file is not UTF-8" in note
        for note in records.notes
    )


def test_blank_lines_are_skipped_and_counted(tmp_path: Path) -> None:
    records = read_records(written(tmp_path, "text,label\n\na,x\n   \n,\nb,y\n\n"))
    assert rows(records) == [("a", "x"), ("b", "y")]
    assert "4 blank lines skipped" in records.notes


def test_quoted_texts_may_hold_line_breaks_and_doubled_quotes(tmp_path: Path) -> None:
    records = read_records(written(tmp_path, 'text,label\n"two\nlines ""so""",x\nb,y\n'))
    assert rows(records)[0] == ('two\nlines "so"', "x")
    assert records.place(1).endswith("train.csv, line 4")


def test_cells_longer_than_the_csv_modules_limit_are_read(tmp_path: Path) -> None:
    records = read_records(written(tmp_path, f"text,label\n{'word ' * 40_000},x\n"))
    assert len(rows(records)[0][0]) == 199_999


def test_many_chunks_are_one_table(tmp_path: Path) -> None:
    count = 120_001
    path = written(tmp_path, "text\n" + "".join(f"text {i}\n" for i in range(count)))
    records = read_records(path)
    assert records.table.num_rows == count
    assert rows(records)[-1] == (f"text {count - 1}",)
    assert records.place(count - 1).endswith(f"line {count + 1}")


# Errors, with their place


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", " is empty."),
        ("\n\n", " is empty."),
        ("text,label\n", " has a header (text, label) and no rows."),
        (
            "text,label\na,x\nb,c,y\n",
            ", line 3: 3 columns, but the header has 2. "
            "Texts with the delimiter inside need quotes.",
        ),
        ("a a,x\nb b\nc c,x\n", ", line 2: 1 column, but line 1 has 2. Texts with"),
        ("text,label\na,x\n,y\n", ", line 3: the text is empty (column 'text'). Every row needs"),
        ("text,label\na,x\n\nb,  \n", ", line 4: the label is empty (column 'label')."),
        ("query,answer\na,b\nc,\n", ", line 3: the document is empty (column 'answer')."),
        ('text,label\na,x\n"b,y\nc,z\n', ", line 3: a quote is opened in this row and not closed"),
        ('text,label\n"a" b,x\n', ", line 2: there is text after a closing quote."),
        (b"text,label\na\0b,x\n", " holds NUL bytes and is not a text file."),
    ],
)
def test_csv_mistakes_are_placed(tmp_path: Path, content: str | bytes, message: str) -> None:
    path = written(tmp_path, content)
    assert f"{path}{message}" in refused(path)


def test_unclosed_quote_tells_how_to_take_quotes_as_characters(tmp_path: Path) -> None:
    path = written(tmp_path, 'text\tlabel\n"b\ty\n', "train.tsv")
    assert 'csv_options.quotechar = ""' in refused(path)
    assert rows(read_records(path, csv_options={"quotechar": ""})) == [('"b', "y")]


def test_undecodable_byte_is_placed(tmp_path: Path) -> None:
    filler = "a text,x\n" * 20_000
    path = written(tmp_path, ("text,label\n" + filler + "für,y\n").encode("cp1252"))
    message = refused(path, csv_options={"encoding": "utf-8"})
    assert f"{path}, line 20002: not utf-8 text (byte 0xfc)." in message
    jsonl = written(tmp_path, b'{"text": "a"}\n{"text": "f\xfcr"}\n', "train.jsonl")
    assert f"{jsonl}, line 2: not utf-8 text (byte 0xfc)." in refused(jsonl)
    assert read_records(jsonl, csv_options={"encoding": "cp1252"}).kind == "items"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"encoding": "utf-88"}, "there is no encoding 'utf-88'. Did you mean 'utf-8'"),
        ({"delimitter": ";"}, "there is no option 'delimitter'. Did you mean 'delimiter'?"),
        ({"delimiter": ";;"}, "csv_options.delimiter = ';;': it must be one character."),
        ({"sampling_rate": 0}, "csv_options.sampling_rate = 0: "),
    ],
)
def test_wrong_options_are_named(tmp_path: Path, options: dict[str, object], message: str) -> None:
    assert message in refused(written(tmp_path, LABELLED), csv_options=options)
