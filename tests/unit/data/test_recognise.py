"""Tables as the Hub has them: in numbered parts, with validation splits of several names and classes by number."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from atlas_dist.core.types import TaskKind
from atlas_dist.data.images import decode_picture
from atlas_dist.data.recognise import FoundTask, recognise
from atlas_dist.data.tasks import CONVERTERS
from atlas_dist.data.tasks.base import RawSet
from atlas_dist.errors import DataError
from tests.unit.data.test_parquet import png, rows, written

CLASSES = ["plane", "bird", "cat"]


def from_hub(table: list[dict[str, Any]], column: str = "label") -> pyarrow.Table:
    """A table with the note on its classes that the library `datasets` writes."""
    features = {column: {"names": CLASSES, "_type": "ClassLabel"}, "image": {"_type": "Image"}}
    note = {"huggingface": json.dumps({"info": {"features": features}})}
    return pyarrow.Table.from_pylist(table).replace_schema_metadata(note)


def parts(root: Path, split: str, table: list[dict[str, Any]], count: int, ending: str = "") -> None:
    size = -(-len(table) // count)
    for number in range(count):
        rows_here = table[number * size : (number + 1) * size]
        written(root / f"{split}-{number:05d}-of-{count:05d}{ending}.parquet", from_hub(rows_here))


def converted(found: FoundTask, split: str) -> RawSet:
    return CONVERTERS[found.converter].run(found.folder, split, found.options)


@pytest.mark.parametrize("below", ["", "data"])
@pytest.mark.parametrize("validation", ["val", "validation", "valid", "dev"])
def test_numbered_parts_are_one_split_in_order(tmp_path: Path, below: str, validation: str) -> None:
    parts(tmp_path / below, "train", rows(9), 3)
    parts(tmp_path / below, validation, rows(4), 2, "-a09b74b3ef9c3b56")
    parts(tmp_path / below, "test", rows(2), 1)
    found = recognise(tmp_path, 0.2)
    assert (found.kind, found.samples, found.options["image"]) == (TaskKind.SINGLE, 9, "image")
    train, val = converted(found, "train"), converted(found, "val")
    assert [sample.texts[0][0] for sample in train.samples] == [f"t {i}" for i in range(9)]
    assert [sample.label for sample in train.samples] == [["bird", "cat", "plane"].index(CLASSES[i % 3]) for i in range(9)]
    assert train.classes == val.classes == ("bird", "cat", "plane")
    assert len(val.samples) == 4 and len(converted(found, "test").samples) == 2
    for raw in (train, val):
        for number, sample in enumerate(raw.samples):
            assert (decode_picture(raw.source.read(sample.images[0])) == decode_picture(png(number))).all()


def test_without_a_validation_split_a_share_of_all_parts_is_held_out(tmp_path: Path) -> None:
    parts(tmp_path, "train", rows(60), 2)
    parts(tmp_path, "test", rows(6), 1)
    found = recognise(tmp_path, 0.25)
    train, val = converted(found, "train"), converted(found, "val")
    assert len(train.samples) + len(val.samples) == 60 and 5 <= len(val.samples) <= 25
    assert not {s.texts for s in train.samples} & {s.texts for s in val.samples}
    assert "train-00000-of-00002.parquet and 1 more are held out" in found.note


def test_a_part_that_is_missing_is_named(tmp_path: Path) -> None:
    parts(tmp_path, "train", rows(9), 3)
    parts(tmp_path, "validation", rows(3), 1)
    (tmp_path / "train-00001-of-00003.parquet").unlink()
    with pytest.raises(DataError, match=r"2 parts of 3: part 1 is missing"):
        recognise(tmp_path, 0.2)


def test_the_picture_may_have_a_column_of_any_name(tmp_path: Path) -> None:
    for split in ("train", "val"):
        table = [{"img": row["image"], "label": row["label"]} for row in rows(6)]
        written(tmp_path / f"{split}.parquet", pyarrow.Table.from_pylist(table))
    found = recognise(tmp_path, 0.2)
    assert found.options["image"] == "img" and found.options["text"] == ""
    assert converted(found, "train").classes == ("0", "1", "2"), "numbers that nobody named stay numbers"


@pytest.mark.parametrize(
    ("number", "said"), [(-1, "row 3: 'label' is null"), (3, "'label' is 3; the table names the classes 0 to 2")]
)
def test_a_number_that_names_no_class_is_refused_with_its_row(tmp_path: Path, number: int, said: str) -> None:
    table = rows(4)
    table[2]["label"] = number
    written(tmp_path / "train.parquet", from_hub(table))
    with pytest.raises(DataError, match=said):
        CONVERTERS["classify_jsonl"].run(tmp_path, "train", {})


def test_a_note_on_classes_that_is_none_changes_nothing(tmp_path: Path) -> None:
    for note in ("{", "[]", '{"info": null}', '{"info": {"features": {"label": {"_type": "ClassLabel"}}}}'):
        table = pyarrow.Table.from_pylist(rows(6)).replace_schema_metadata({"huggingface": note})
        written(tmp_path / "train.parquet", table)
        assert CONVERTERS["classify_jsonl"].run(tmp_path, "train", {}).classes == ("0", "1", "2")


@pytest.mark.parametrize("validation", ["validation", "valid", "dev"])
def test_a_validation_file_of_another_name_is_found(tmp_path: Path, validation: str) -> None:
    line = json.dumps({"text": "what", "label": "a"}) + "\n" + json.dumps({"text": "who", "label": "b"}) + "\n"
    (tmp_path / "train.jsonl").write_text(line * 3)
    (tmp_path / f"{validation}.jsonl").write_text(line)
    found = recognise(tmp_path, 0.2)
    assert len(converted(found, "val").samples) == 2 and "held" not in found.note


def test_a_star_names_all_that_match_and_may_stand_in_a_name_itself(tmp_path: Path) -> None:
    for number in (1, 2):
        (tmp_path / f"train_{number}.jsonl").write_text(json.dumps({"text": f"t{number}", "label": "a"}))
    (tmp_path / "odd*.jsonl").write_text(json.dumps({"text": "odd", "label": "a"}))
    (tmp_path / "oddity.jsonl").write_text(json.dumps({"text": "not this", "label": "a"}))
    run = CONVERTERS["classify_jsonl"].run
    options = {"image": ""}
    assert [s.texts[0][0] for s in run(tmp_path, "train", {**options, "file": "{split}_*.jsonl"}).samples] == ["t1", "t2"]
    assert [s.texts[0][0] for s in run(tmp_path, "train", {**options, "file": "odd*.jsonl"}).samples] == ["odd"]
