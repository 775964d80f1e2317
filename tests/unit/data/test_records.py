"""People's files of records: read as their authors meant them, or refused with file, line and column."""

from __future__ import annotations

import json
import unicodedata
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from atlas_dist.data.pack import run_pack
from atlas_dist.data.records import read_records
from atlas_dist.data.tasks import CONVERTERS
from atlas_dist.data.tasks.base import RawSet
from atlas_dist.errors import DataError
from tests.kits.data import memory_store

ROWS: list[dict[str, Any]] = [{"text": f"t {i}", "label": "no" if i % 2 else "yes"} for i in range(6)]


def written(root: Path, rows: list[Any], split: str = "train", encoding: str = "utf-8", end: str = "\n") -> Path:
    root.mkdir(parents=True, exist_ok=True)
    lines = [row if isinstance(row, str) else json.dumps(row, ensure_ascii=False) for row in rows]
    (root / f"{split}.jsonl").write_bytes((end.join(lines) + end).encode(encoding, "surrogatepass"))
    return root


def classified(root: Path, split: str = "train", **options: Any) -> RawSet:
    return CONVERTERS["classify_jsonl"].run(root, split, {"image": "", **options})


def chosen(root: Path, **options: Any) -> RawSet:
    return CONVERTERS["choice_jsonl"].run(root, "train", options)


# ------------------------------------------------------------------------------------------------------------ encodings


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le-bom", "utf-16-be-bom", "utf-32"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_a_byte_order_mark_is_no_part_of_a_text(tmp_path: Path, encoding: str, end: str) -> None:
    rows = [{"text": "été שלום 日本", "label": "ja"}, {"text": "b", "label": "nein"}]
    if encoding.endswith("-bom"):
        text = "\ufeff" + "".join(json.dumps(r, ensure_ascii=False) + end for r in rows)
        (tmp_path / "train.jsonl").write_bytes(text.encode(encoding.removesuffix("-bom")))
    else:
        written(tmp_path, rows, encoding=encoding, end=end)
    raw = classified(tmp_path)
    assert [s.texts for s in raw.samples] == [(("été שלום 日本",),), (("b",),)] and raw.classes == ("ja", "nein")


def test_another_encoding_is_refused_with_its_line(tmp_path: Path) -> None:
    rows = [*ROWS[:3], {"text": "été", "label": "yes"}]
    with pytest.raises(DataError, match=r"train.jsonl, line 4, byte 11: not UTF-8.*iconv"):
        classified(written(tmp_path, rows, encoding="latin-1"))
    with pytest.raises(DataError, match="looks like UTF-16 without a byte order mark"):
        classified(written(tmp_path, ROWS, encoding="utf-16-le"))


# ------------------------------------------------------------------------------------------------- lines, columns, types


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ("{bad", r"line 11: not JSON \(column 2"),
        ('{"text": "a", "label": "b",}', r"line 11: not JSON \(column 2[78].*a comma too many"),
        ('{"text": "a", "label": NaN}', "line 11: not JSON .*NaN is not a value"),
        ('{"text": "a", "text": "b", "label": "c"}', "line 11: .*'text' stands twice"),
        ('["a", "b"]', "line 11: not an object but a list"),
        ('{"text": null, "label": "yes"}', "line 11: 'text' is null; a text is wanted"),
        ('{"text": true, "label": "yes"}', "line 11: 'text' is true; a text"),
        ('{"text": ["a"], "label": "yes"}', "line 11: 'text' is .*a text is wanted"),
        ('{"text": "a", "label": null}', "line 11: 'label' is null"),
        ('{"text": "a", "label": ""}', "line 11: 'label' is empty"),
        ('{"text": "a", "label": true}', "line 11: label True beside 'yes' of train.jsonl, line 1"),
        ('{"text": "a", "label": {"a": 1}}', "line 11: 'label' is"),
        ('{"text": "a"}', "line 11 has no field 'label'"),
        ('{"text": "\\ud800", "label": "yes"}', "line 11: 'text' holds half a character"),
        ('{"id": [], "text": "a", "label": "yes"}', "line 11: 'id' is"),
    ],
)
def test_a_line_is_named_as_editors_count(tmp_path: Path, row: str, said: str) -> None:
    rows = [*ROWS[:3], "", "   ", "", "", *ROWS[3:6], row, ROWS[0]]
    with pytest.raises(DataError, match=said):
        classified(written(tmp_path, rows))


@pytest.mark.parametrize(
    ("train", "val", "classes"),
    [
        ([1, 0, 2, 10], [1], ("0", "1", "2", "10")),
        ([1, 0], [1.0, 0.0], ("0", "1")),
        ([0.5, 1.0, 1.5], [0.5], ("0.5", "1.0", "1.5")),
        ([True, False], [True], ("False", "True")),
        (["01", "1", "²"], ["1"], ("01", "1", "²")),
        (["a", 1], ["a"], ("1", "a")),
        (["only"], ["val only"], ("only", "val only")),
        (["caf\u00e9"], ["cafe\u0301"], ("caf\u00e9",)),
        (["cafe\u0301"], ["cafe\u0301"], ("cafe\u0301",)),
        (["a\0b", "שלום"], ["a\0b"], ("a\0b", "שלום")),
    ],
)
def test_labels_are_those_that_their_author_meant(
    tmp_path: Path, train: list[Any], val: list[Any], classes: tuple[str, ...]
) -> None:
    for split, labels in (("train", train), ("val", val)):
        written(tmp_path, [{"text": "t", "label": label} for label in labels], split)
    for split, labels in (("train", train), ("val", val)):
        raw = classified(tmp_path, split)
        assert raw.classes == classes
        names = [unicodedata.normalize("NFC", raw.classes[sample.label]) for sample in raw.samples]
        meant = [int(v) if isinstance(v, float) and str(v) not in classes else v for v in labels]
        assert names == [unicodedata.normalize("NFC", str(label)) for label in meant]


def test_numbers_are_texts_and_empty_and_doubled_ones_are_said(tmp_path: Path) -> None:
    rows = [{"id": 7, "text": 5, "label": "a"}, {"id": 7, "text": " ", "label": "b"}, {"id": None, "text": "c", "label": "a"}]
    raw = classified(written(tmp_path, rows))
    assert [s.texts for s in raw.samples] == [(("5",),), ((" ",),), (("c",),)]
    assert [s.id for s in raw.samples] == ["7", "7", "train-2"]
    assert "1 records have an empty text (first: 7)" in raw.notes[0] and "1 ids stand more than once" in raw.notes[1]


# ----------------------------------------------------------------------------------------------------------- choices


@pytest.mark.parametrize(
    ("choices", "answer", "right"),
    [
        (["a", "b", "c"], "b", 1),
        (["a", "b", "c"], 2, 2),
        (["a", "b", "c"], 2.0, 2),
        ([10, 20, 30], 10, 0),
        ([10, 20, 30], 1, 1),
        ([0, 1, 2], 2, 2),
        (["2", "1", "0"], "2", 0),
        (["cafe\u0301", "thé"], "caf\u00e9", 0),
    ],
)
def test_an_answer_is_the_choice_that_its_author_meant(tmp_path: Path, choices: list[Any], answer: Any, right: int) -> None:
    raw = chosen(written(tmp_path, [{"question": "q", "choices": choices, "answer": answer}]))
    assert raw.samples[0].label == right and raw.samples[0].texts == tuple(("q", str(c)) for c in choices)


def test_an_answer_that_could_be_two_choices_is_refused_until_it_is_said(tmp_path: Path) -> None:
    written(tmp_path, [{"question": "how many legs", "choices": [2, 1, 0], "answer": 2}])
    said = r"line 1: answer 2 of \[2, 1, 0\] is choice 0 by its text and choice 2 by its number.*answer_is"
    with pytest.raises(DataError, match=said):
        chosen(tmp_path)
    assert chosen(tmp_path, answer_is="text").samples[0].label == 0
    assert chosen(tmp_path, answer_is="number").samples[0].label == 2


@pytest.mark.parametrize(
    "row",
    [
        {"question": "q", "choices": "abc", "answer": 0},
        {"question": "q", "choices": ["a", None], "answer": 0},
        {"question": "q", "choices": ["a", "b"], "answer": True},
        {"question": "q", "choices": ["a", "b"], "answer": -1},
        {"question": "q", "choices": ["a", "b"], "answer": "c"},
        {"question": None, "choices": ["a", "b"], "answer": 0},
    ],
)
def test_a_question_of_other_types_is_refused_with_its_line(tmp_path: Path, row: dict[str, Any]) -> None:
    with pytest.raises(DataError, match=r"train.jsonl, line 1"):
        chosen(written(tmp_path, [row]))


# ------------------------------------------------------------------------------------------------- tables and Parquet


def test_csv_tsv_and_parquet_say_the_same_as_json_lines(tmp_path: Path) -> None:
    rows = [{"text": 'one, "two"\nthree', "label": "a"}, {"text": "été", "label": "b"}]
    expected = [(s.texts, s.label) for s in classified(written(tmp_path / "j", rows)).samples]
    for end, mark in (("csv", ","), ("tsv", "\t"), ("csv", ";")):
        folder = tmp_path / f"{end}{ord(mark)}"
        folder.mkdir()
        quoted = "\r\n".join(mark.join(f'"{v.replace(chr(34), chr(34) * 2)}"' for v in row.values()) for row in rows)
        (folder / f"train.{end}").write_bytes(f"text{mark}label\r\n\r\n{quoted}\r\n".encode("utf-8-sig"))
        assert [(s.texts, s.label) for s in classified(folder).samples] == expected
    (tmp_path / "p").mkdir()
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "p/train.parquet")
    assert [(s.texts, s.label) for s in classified(tmp_path / "p").samples] == expected


def test_choices_of_a_table_are_a_list_in_a_cell_or_columns(tmp_path: Path) -> None:
    cell = '"[""red"", ""blue""]"'
    (tmp_path / "train.csv").write_text(f"question,choices,answer\nwhich,{cell},blue\nwhich,{cell},0\n")
    assert [s.label for s in chosen(tmp_path).samples] == [1, 0]
    (tmp_path / "train.csv").write_text("question,a,b,answer\nwhich,red,blue,blue\nhow many,2,0,2\n")
    assert [s.label for s in chosen(tmp_path, choices="a,b").samples] == [1, 0]
    (tmp_path / "train.csv").write_text("question,a,b,answer\nhow many,1,0,1\n")
    with pytest.raises(DataError, match=r"train.csv, line 2: answer '1'.*choice 0 by its text and choice 1 by its number"):
        chosen(tmp_path, choices="a,b")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("text,label\na,b\n\nc\n", r"train.csv, line 4: 1 cells, the header has 2"),
        ('text,label\n"a\nb",c\nd,e,f\n', r"train.csv, line 4: 3 cells"),
        ("text,text\na,b\n", "line 1: two columns have one name"),
        ('text,label\n"a"x,b\n', "line 2: not a table"),
        ("text,label\na,\n", "line 2: 'label' is empty"),
    ],
)
def test_a_row_that_is_none_is_refused_with_its_line(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "train.csv").write_text(text)
    with pytest.raises(DataError, match=said):
        classified(tmp_path)


def test_a_parquet_file_that_is_none_is_refused(tmp_path: Path) -> None:
    (tmp_path / "train.parquet").write_bytes(b"PAR1 broken")
    with pytest.raises(DataError, match=r"train.parquet is not readable as Parquet"):
        classified(tmp_path)


@pytest.mark.parametrize(
    ("text", "labels"),
    [
        ("sep=;\r\ntext;label\r\nhello;x\r\n", ["x"]),
        ("text\tlabel\nhello, you\tx\n", ["x"]),
        ("text|label\nhello|x\n", ["x"]),
        ("text,label,,\na,x,,\nb,y,,\n", ["x", "y"]),
        ('text, label\n"a, b", "x"\n"c", "y"\n', ["x", "y"]),
        ('text,label\n"a, ""b""",x\n c,y\n', ["x", "y"]),
        ("text,label\na,cat\nb, cat\nc,cat\u200b\n", ["cat", "cat", "cat"]),
        ("text,label\n" + "a" * 200_000 + ",x\n", ["x"]),
        ('"text, long";label;text\nu;x;a\n', ["x"]),
        ("text,label\na,1\nb,1.0\nc,2\nd,01\n", ["1", "1", "2", "01"]),
        ("text,label\na,1.0\nb,2.0\nc,1.5\n", ["1.0", "2.0", "1.5"]),
        ("text,label\na,1.0\nb,one\n", ["1.0", "one"]),
        ("text,label\na,True\nb,false\nc,TRUE\n", ["True", "False", "True"]),
        ("text,label\na,true\nb,false\n", ["true", "false"]),
        ("text,label\na,true\nb,True\nc,maybe\n", ["true", "True", "maybe"]),
    ],
)
def test_a_table_is_read_as_its_program_meant_it(tmp_path: Path, text: str, labels: list[str]) -> None:
    (tmp_path / "train.csv").write_text(text, newline="")
    raw = classified(tmp_path)
    assert [raw.classes[sample.label] for sample in raw.samples] == labels
    if "\n c,y" in text:
        assert raw.samples[-1].texts == ((" c",),), "a space that stands before no quote is part of its cell"


def test_labels_of_a_table_are_those_of_both_its_splits(tmp_path: Path) -> None:
    """A table whose column had a gap once is written with 1.0 for 1."""
    (tmp_path / "train.csv").write_text("text,label\na,1.0\nb,2.0\n")
    (tmp_path / "val.csv").write_text("text,label\na,2\n")
    assert [classified(tmp_path, split).classes for split in ("train", "val")] == [("1", "2")] * 2
    assert [sample.label for sample in classified(tmp_path).samples] == [0, 1]


def test_labels_that_read_like_an_empty_cell_are_said(tmp_path: Path) -> None:
    (tmp_path / "train.csv").write_text("text,label\na,NA\nb,nan\nc,x\n")
    raw = classified(tmp_path)
    assert raw.classes == ("NA", "nan", "x")
    assert raw.notes == ("classes that may mean no label at all: NA, nan",)


@pytest.mark.parametrize("text", ["[{}, {}]", "\n [\n{},\n{}\n]\n", "\ufeff[{},{}]", "{}\n\ufeff{}\n"])
@pytest.mark.parametrize("name", ["train.jsonl", "train.json", "train.JSONL"])
def test_an_array_of_objects_is_read_as_its_objects(tmp_path: Path, text: str, name: str) -> None:
    for row in (
        '{"text": "a", "label": "x"}',
        '{"text": "b",\n "label": "y"}' if text[0] == "\n" else '{"text": "b", "label": "y"}',
    ):
        text = text.replace("{}", row, 1)
    (tmp_path / name).write_text(text, encoding="utf-8")
    raw = classified(tmp_path)
    assert raw.classes == ("x", "y") and [s.texts for s in raw.samples] == [(("a",),), (("b",),)]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('[{"text": "a", "label": "x"},\n {"text": null, "label": "y"}]', "train.jsonl, item 2: 'text' is null"),
        ('[{"text": "a", "label": "x"},\n]', r"train.jsonl, line 2: not JSON \(column 1: .*a comma too many"),
        ('[{"text": "a", "label": "x"},\n {"text": "b" "label": "y"}]', r"train.jsonl, line 2: not JSON \(column 15"),
        ('[{"text": "a", "label": "x"}, 5]', "train.jsonl, item 2: not an object but a number"),
        (
            '{"text": "a", "label": "x"}{"text": "b", "label": "y"}\n',
            r"line 1: not JSON \(column 28: Extra data.*jq -c . train.jsonl",
        ),
        ('{\n "text": "a",\n "label": "x"\n}\n', r"line 1: not JSON .*over several lines.*jq -c"),
        ("{'text': 'a', 'label': 'x'}\n", r"line 1: not JSON .*double quotes.*json.dumps"),
        ('{"text": "a", "label": "x"},\n', r"line 1: not JSON .*a comma too many\)\.$"),
        ("null\n", "line 1: not an object but null"),
    ],
)
def test_json_that_is_no_record_a_line_says_what_it_is(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "train.jsonl").write_text(text)
    with pytest.raises(DataError, match=said):
        classified(tmp_path)


def test_a_field_or_file_of_another_case_is_named(tmp_path: Path) -> None:
    (tmp_path / "train.CSV").write_text("Text,label\na,x\n")
    with pytest.raises(DataError, match=r"train.CSV, line 2 has no field 'text'.*Rename 'Text' to 'text'"):
        classified(tmp_path)
    (tmp_path / "train.CSV").rename(tmp_path / "train.csv.gz")
    with pytest.raises(DataError, match=r"it has train.csv.gz. Decompress it first"):
        classified(tmp_path)


def test_an_answer_may_be_a_letter(tmp_path: Path) -> None:
    rows = [{"question": "q", "choices": ["red", "blue", "A"], "answer": answer} for answer in ("B", "A", "red", 1)]
    assert [s.label for s in chosen(written(tmp_path, rows)).samples] == [1, 2, 0, 1], "a text comes before a letter"
    with pytest.raises(DataError, match=r"line 1: 3 choices, answer 'D'"):
        chosen(written(tmp_path, [{**rows[0], "answer": "D"}]))


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"PK\3\4 sheet", "a zip or a spreadsheet"),
        (b"\x1f\x8b\x08", "compressed with gzip.*gunzip"),
        (b"version https://git-lfs.github.com/spec/v1\n", "pointer of Git LFS.*git lfs pull"),
        (b"PAR1", "Parquet, in spite of its name"),
        (b'{"text": "a", "label": "x"}\n' + bytes(64), "line 2: not JSON"),
    ],
)
def test_what_is_no_text_is_called_what_it_is(tmp_path: Path, data: bytes, said: str) -> None:
    (tmp_path / "train.jsonl").write_bytes(data)
    with pytest.raises(DataError, match=f"train.jsonl.*{said}"):
        classified(tmp_path)


def test_labels_that_look_alike_are_one_and_blank_ones_none(tmp_path: Path) -> None:
    def classes(*labels: str) -> tuple[str, ...]:
        return classified(written(tmp_path, [{"text": "t", "label": label} for label in labels])).classes

    assert classes("cat", " cat ", "dog") == ("cat", "dog")
    assert classes("cat\u00a0", "\ufeffcat", "cat\u200b") == ("cat",)
    assert classes(" cat ", " cat ") == (" cat ",), "as it is written where everybody writes it alike"
    raw = classified(written(tmp_path, [{"text": "t", "label": label} for label in ("Cat", "cat")]))
    assert raw.classes == ("Cat", "cat") and "differ by capitals only" in raw.notes[-1]
    with pytest.raises(DataError, match="line 2: 'label' is blank"):
        classes("a", " \u200b ")


# ------------------------------------------------------------------------------------------------------- one file for both


def test_a_share_of_one_file_is_held_out_by_its_records(tmp_path: Path) -> None:
    rows = [{"text": f"t {i}", "label": "ab"[i % 2]} for i in range(60)]
    written(tmp_path, rows, "all")
    options = {"file": "all.jsonl", "held_out": 0.25}
    train, val = ({s.texts for s in classified(tmp_path, split, **options).samples} for split in ("train", "val"))
    assert not train & val and len(train) + len(val) == 60 and 5 <= len(val) <= 25
    written(tmp_path, rows[:30], "all")
    assert {s.texts for s in classified(tmp_path, "val", **options).samples} <= val, "a record stays where it was"


def test_texts_over_the_limit_are_counted_and_said(tmp_path: Path) -> None:
    written(tmp_path, ROWS)
    report = run_pack(
        "classify_jsonl",
        tmp_path,
        memory_store(),
        "d",
        "train",
        options={"image": ""},
        long_texts=lambda texts: [n for n, (text,) in enumerate(texts) if text in ("t 2", "t 4")],
    )
    assert report.notes == ("2 of 6 records have a text of more tokens than max_text: they will be cut (first: train-2)",)


def test_every_converter_counts_lines_as_editors_do() -> None:
    found = list(read_records(b'{"a": 1}\n\n\n{"a": 2}\n', "x.json"))
    assert [(r.number, r.where) for r in found] == [(1, "x.json, line 1"), (4, "x.json, line 4")]
