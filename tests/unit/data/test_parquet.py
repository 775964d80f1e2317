"""Pictures within Parquet, as Hugging Face data sets and img2dataset write them: packed like files, never all in memory."""

from __future__ import annotations

import io
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from PIL import Image

from atlas_dist.core.types import TaskKind
from atlas_dist.data import parquet
from atlas_dist.data.images import decode_picture, open_rgb
from atlas_dist.data.pack import PackReport, run_pack
from atlas_dist.data.parquet import Embedded, Pictures, WithEmbedded, read_rows
from atlas_dist.data.source import open_source
from atlas_dist.data.tasks import CONVERTERS
from atlas_dist.errors import DataError
from atlas_dist.store.local import LocalStore
from tests.kits.data import memory_store


def png(number: int, how: str = "PNG") -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (10, 8), (number * 5 % 256, 9, 90)).save(out, how)
    return out.getvalue()


def rows(count: int = 30, how: str = "struct") -> list[dict[str, Any]]:
    def cell(i: int) -> Any:
        return png(i) if how == "binary" else {"bytes": png(i), "path": f"{i}.png"}

    return [{"image": cell(i), "text": f"t {i}", "label": i % 3} for i in range(count)]


def written(path: Path, table: list[dict[str, Any]] | pyarrow.Table, **options: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    found = table if isinstance(table, pyarrow.Table) else pyarrow.Table.from_pylist(table)
    pyarrow.parquet.write_table(found, path, **options)
    return path.parent


def packed(root: Path, store: Any = None, **options: Any) -> PackReport:
    return run_pack("classify_jsonl", root, store or memory_store(), "d", "train", options=options, image_size=64, max_bad=0.2)


@pytest.mark.parametrize("how", ["struct", "binary"])
def test_pictures_within_a_table_are_packed_to_their_pixels(tmp_path: Path, how: str) -> None:
    root = written(tmp_path / "train.parquet", rows(how=how), row_group_size=7)
    report = packed(root)
    assert report.manifest.samples == 30 and report.left_out == () and report.manifest.classes == ("0", "1", "2")
    raw = CONVERTERS["classify_jsonl"].run(root, "train", {})
    for number, sample in enumerate(raw.samples):
        assert (decode_picture(raw.source.read(sample.images[0])) == decode_picture(png(number))).all()
        assert sample.texts == ((f"t {number}",),) and raw.source.has(sample.images[0])


def test_large_types_categories_and_lists_are_read(tmp_path: Path) -> None:
    cells = pyarrow.array([png(i) for i in range(6)], pyarrow.large_binary())
    table = pyarrow.table(
        {
            "image": cells,
            "text": pyarrow.array([f"t {i}" for i in range(6)], pyarrow.large_string()),
            "label": pyarrow.array(["b", "a"] * 3).dictionary_encode(),
            "tags": pyarrow.array([["x"], []] * 3),
        }
    )
    report = packed(written(tmp_path / "train.parquet", table))
    assert report.manifest.samples == 6 and report.manifest.classes == ("a", "b")
    choices = [{"question": "which", "choices": ["red", "blue"], "answer": 1, "image": {"bytes": png(1), "path": None}}]
    raw = CONVERTERS["choice_jsonl"].run(written(tmp_path / "c/train.parquet", choices), "train", {"image": "image"})
    assert raw.samples[0].label == 1 and raw.source.read(raw.samples[0].images[0]) == png(1)


def test_a_path_without_bytes_is_a_file_and_nothing_at_all_is_refused_with_its_row(tmp_path: Path) -> None:
    table = rows(4)
    table[2]["image"] = {"bytes": None, "path": "own.png"}
    root = written(tmp_path / "train.parquet", table)
    (root / "own.png").write_bytes(png(77))
    raw = CONVERTERS["classify_jsonl"].run(root, "train", {})
    assert raw.source.read(raw.samples[2].images[0]) == png(77) and packed(root).manifest.samples == 4
    for nothing in ({"bytes": None, "path": None}, None):
        table[1]["image"] = nothing
        with pytest.raises(DataError, match=r"train.parquet, row 2: 'image' is null"):
            packed(written(tmp_path / "train.parquet", table))


def test_bytes_that_are_no_picture_are_counted_by_row_and_bytes_are_no_text(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = rows(30)
    table[4]["image"]["bytes"] = b"not a picture"
    table[5]["image"]["bytes"] = b""
    table[6]["image"]["bytes"] = png(6) + bytes(2000)
    monkeypatch.setattr(parquet, "PICTURE_CAP", 1500)
    root = written(tmp_path / "train.parquet", table)
    report = packed(root)
    assert report.manifest.samples == 27
    said = {e.record: (e.reason, e.detail) for e in report.left_out}
    assert said["train-4"][0] == "not a picture that is read" and "train.parquet/4/image" in said["train-4"][1]
    assert said["train-5"][0] == "empty file" and said["train-6"][0] == "too large a file"
    with pytest.raises(DataError, match=r"train.parquet, row 1: 'image' is bytes; a text is wanted"):
        packed(root, text="image")


def test_listing_holds_no_picture_and_pairs_are_two_columns(tmp_path: Path) -> None:
    table = [{"left": {"bytes": png(i), "path": None}, "right": png(i + 9), "text": "t", "label": "ab"[i % 2]} for i in range(6)]
    root = written(tmp_path / "train.parquet", table)
    for row in read_rows((root / "train.parquet").read_bytes(), "x"):
        assert isinstance(row["left"], Embedded) and isinstance(row["right"], Embedded)
    report = packed(root, image="left,right")
    assert report.manifest.samples == 6 and report.manifest.images == 2


def in_lists(counts: list[int | None], kind: str = "list") -> pyarrow.Table:
    """A table whose column `images` has so many pictures a row; None = a null in place of the list."""
    picture = pyarrow.struct([("bytes", pyarrow.binary()), ("path", pyarrow.string())])
    types = {"list": pyarrow.list_(picture), "large": pyarrow.large_list(picture), "fixed": pyarrow.list_(picture, 2)}
    number = iter(range(1000))
    cells = [None if n is None else [{"bytes": png(next(number)), "path": "x"} for _ in range(n)] for n in counts]
    labels = pyarrow.array([f"c{at % 2}" for at in range(len(counts))])
    return pyarrow.table({"images": pyarrow.array(cells, types[kind]), "label": labels})


@pytest.mark.parametrize("kind", ["list", "large", "fixed"])
def test_lists_of_two_pictures_are_pairs_in_their_order(tmp_path: Path, kind: str) -> None:
    """As the Hub has several pictures a row; the row groups are smaller than the table."""
    root = written(tmp_path / "train.parquet", in_lists([2] * 20, kind), row_group_size=7)
    raw = CONVERTERS["classify_jsonl"].run(root, "train", {"image": "images", "text": ""})
    assert (raw.kind, raw.images, len(raw.samples)) == (TaskKind.PAIR, 2, 20)
    read = [raw.source.read(name) for sample in raw.samples for name in sample.images]
    assert read == [png(number) for number in range(40)]
    assert packed(root, image="images", text="").manifest.samples == 20


def test_a_list_of_one_picture_is_that_picture(tmp_path: Path) -> None:
    root = written(tmp_path / "train.parquet", in_lists([1] * 5))
    raw = CONVERTERS["classify_jsonl"].run(root, "train", {"image": "images", "text": ""})
    assert (raw.kind, raw.images) == (TaskKind.SINGLE, 1)
    assert [raw.source.read(*sample.images) for sample in raw.samples] == [png(number) for number in range(5)]


@pytest.mark.parametrize(
    ("counts", "said"),
    [
        ([2, 2, 1], r"row 3: 'images' has 1 pictures; the first record has 2"),
        ([3, 3], r"row 1: 'images' has 3 pictures; one or two are wanted"),
        ([1, None], r"row 2: 'images' is null"),
        ([2, 0], r"row 2: 'images' has 0 pictures; the first record has 2"),
    ],
)
def test_other_numbers_of_pictures_are_refused_with_their_row(tmp_path: Path, counts: list[int | None], said: str) -> None:
    root = written(tmp_path / "train.parquet", in_lists(counts))
    with pytest.raises(DataError, match=said):
        CONVERTERS["classify_jsonl"].run(root, "train", {"image": "images", "text": ""})


def test_a_list_of_names_is_a_pair_as_well(tmp_path: Path) -> None:
    for name in ("a.png", "b.png"):
        (tmp_path / name).write_bytes(png(ord(name[0])))
    (tmp_path / "train.jsonl").write_text('{"image": ["a.png", "b.png"], "text": "t", "label": "x"}\n')
    raw = CONVERTERS["classify_jsonl"].run(tmp_path, "train", {})
    assert (raw.kind, [sample.images for sample in raw.samples]) == (TaskKind.PAIR, [("a.png", "b.png")])


def test_pictures_that_changed_within_the_table_are_noticed(tmp_path: Path) -> None:
    root, store = written(tmp_path / "r/train.parquet", rows(8)), LocalStore(tmp_path / "s")
    first = packed(root, store)
    assert packed(root, store).manifest == first.manifest
    table = rows(8)
    table[3]["image"]["bytes"] = png(200)
    written(tmp_path / "r/train.parquet", table)
    with pytest.raises(DataError, match=r"1 pictures of d/train have changed since it was packed: train-3"):
        packed(root, store)


def test_another_process_reads_the_same(tmp_path: Path) -> None:
    root = written(tmp_path / "train.parquet", rows(5))
    source = WithEmbedded(open_source(root), "train.parquet")
    sent = pickle.loads(pickle.dumps(source))
    assert sent.read("train.parquet/3/image") == source.read("train.parquet/3/image") == png(3)
    with pytest.raises(DataError, match="no picture in row 9"):
        sent.read("train.parquet/8/image")
    pictures = Pictures((root / "train.parquet").read_bytes, "t")
    held = pictures.of(Embedded("t", 2, "image"))
    assert (np.asarray(open_rgb(held.read_bytes())) == decode_picture(png(2))).all() and str(held) == "t/2/image"


@pytest.mark.parametrize("how", ["fixed size", "dictionary", "large"])
def test_pictures_of_every_type_of_bytes_are_packed(tmp_path: Path, how: str) -> None:
    pictures = [png(n % 3) for n in range(6)]
    kinds = {"fixed size": pyarrow.binary(len(pictures[0])), "large": pyarrow.large_binary(), "dictionary": pyarrow.binary()}
    cells = pyarrow.array([p.ljust(len(pictures[0]), b"\0")[: len(pictures[0])] for p in pictures], kinds[how])
    cells = cells.dictionary_encode() if how == "dictionary" else cells
    root = written(tmp_path / "train.parquet", pyarrow.table({"image": cells, "label": [0, 1] * 3}))
    assert packed(root, text="").manifest.samples == 6
    raw = CONVERTERS["classify_jsonl"].run(root, "train", {"text": ""})
    assert [raw.source.read(s.images[0]) for s in raw.samples] == [c.as_py() for c in cells]


@pytest.mark.parametrize(
    "odd",
    [
        pyarrow.array([1 << 50, 1], pyarrow.timestamp("s")),
        pyarrow.array([1, 2], pyarrow.timestamp("s", tz="Nowhere/Else")),
        pyarrow.array([(1 << 55) // 86_400_000 * 86_400_000, 0], pyarrow.date64()),
        pyarrow.array([1, 2], pyarrow.duration("ns")),
        pyarrow.nulls(2),
    ],
    ids=lambda cells: str(cells.type),
)
def test_a_column_that_python_has_no_value_for_spoils_no_record(tmp_path: Path, odd: Any) -> None:
    root = written(tmp_path / "train.parquet", pyarrow.table({"text": ["a", "b"], "label": ["x", "y"], "odd": odd}))
    assert CONVERTERS["classify_jsonl"].run(root, "train", {"image": ""}).classes == ("x", "y")


def test_a_text_of_other_bytes_is_refused_with_its_row(tmp_path: Path) -> None:
    ends = np.array([0, 1, 3], np.int32).tobytes()
    cells = pyarrow.Array.from_buffers(pyarrow.string(), 2, [None, pyarrow.py_buffer(ends), pyarrow.py_buffer(b"a\xff\xfe")])
    root = written(tmp_path / "train.parquet", pyarrow.table({"text": cells, "label": ["x", "y"]}))
    with pytest.raises(DataError, match=r"train.parquet, row 2: 'text' is not UTF-8"):
        CONVERTERS["classify_jsonl"].run(root, "train", {"image": ""})
