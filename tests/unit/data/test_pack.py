"""Packing: the same bytes every time, resumable, and no manifest before everything is there."""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from atlas_dist.data.images import open_rgb, stored_form
from atlas_dist.data.leftout import LeftOut
from atlas_dist.data.manifest import read_manifest
from atlas_dist.data.pack import ShardDone, ShardJob, run_pack
from atlas_dist.data.source import ZipSource, open_source
from atlas_dist.data.split_part import SplitPart
from atlas_dist.data.tasks import CONVERTERS, converter
from atlas_dist.errors import ConfigError, DataError
from atlas_dist.store.local import LocalStore
from tests.kits.data import memory_store, pack_toy


def one_after_another(work: Callable[[ShardJob], ShardDone], jobs: Iterable[ShardJob]) -> Iterator[ShardDone]:
    return map(work, jobs)


class Killed(BaseException):
    """kill -9, as far as a test in one process can have it."""


def killed_after(done: int) -> Callable[..., Iterator[ShardDone]]:
    def run(work: Callable[[ShardJob], ShardDone], jobs: Iterable[ShardJob]) -> Iterator[ShardDone]:
        for number, job in enumerate(jobs):
            if number == done:
                raise Killed
            yield work(job)

    return run


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """An image folder with one damaged picture in 20."""
    for split, count in (("train", 20), ("val", 4)):
        for i in range(count):
            folder = tmp_path / "raw" / split / ("cat" if i % 2 else "dog")
            folder.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (40, 30), (i * 10, 0, 0)).save(folder / f"{i}.jpg")
    (tmp_path / "raw/train/dog/4.jpg").write_bytes((tmp_path / "raw/train/dog/4.jpg").read_bytes()[:300])
    return tmp_path / "raw"


def test_twice_and_anyhow_gives_the_same_digest(tmp_path):
    a = pack_toy(memory_store(), seed=3)
    b = pack_toy(LocalStore(tmp_path), seed=3, map_fn=one_after_another)
    assert a.digest == b.digest and a == b
    assert pack_toy(memory_store(), seed=4).digest != a.digest


def test_packing_again_does_nothing_and_other_content_is_refused():
    store = memory_store()
    first = pack_toy(store)
    steps: list[tuple[int, int]] = []
    assert pack_toy(store, progress=lambda *s: steps.append(s)) == first and steps == []
    with pytest.raises(DataError, match="exists with other content"):
        pack_toy(store, samples=61)
    assert pack_toy(store, samples=61, overwrite=True).samples == 61


def test_a_killed_pack_leaves_no_manifest_and_continues():
    store = memory_store()
    with pytest.raises(Killed):
        pack_toy(store, map_fn=killed_after(2))
    with pytest.raises(DataError, match="not finished"):
        read_manifest(store, "toy_shape", "train")
    how = {"options": {"task": "shape", "samples": 60, "side": 16}, "shard_samples": 16, "part_bytes": 1 << 12}
    report = run_pack("toy", None, store, "toy_shape", "train", **how)
    assert report.reused_shards == 2
    assert report.manifest == pack_toy(memory_store())
    assert not [o.key for o in store.list("toy_shape/") if "_pack" in o.key]


def test_unreadable_records_are_named_and_too_many_stop_the_pack(pictures):
    store = memory_store()
    with pytest.raises(DataError, match=r"1 of 20 .*train/dog/4.jpg"):
        run_pack("image_folder", pictures, store, "pets", "train", shard_samples=8)
    with pytest.raises(DataError):
        read_manifest(store, "pets", "train")
    report = run_pack("image_folder", pictures, store, "pets", "train", shard_samples=8, max_bad=0.1)
    assert [(e.record, e.reason) for e in report.left_out] == [("train/dog/4.jpg", "damaged picture")]
    assert report.manifest.samples == 19 and report.manifest.classes == ("cat", "dog")


def test_images_are_resized_once_and_never_enlarged(pictures):
    data = (pictures / "train/cat/1.jpg").read_bytes()
    kind, small = stored_form(data, 16)
    assert kind == "jpg" and open_rgb(small).size == (16, 16)
    assert stored_form(data, 64) == ("jpg", data) == stored_form(data, 0)
    with pytest.raises(DataError, match="neither JPEG nor PNG"):
        stored_form(b"\x7fELF", 0)


def test_a_zip_is_read_like_a_folder_and_nothing_leaves_it(pictures, tmp_path):
    path = tmp_path / "raw.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for file in sorted(pictures.rglob("*.jpg")):
            archive.write(file, f"top/{file.relative_to(pictures)}")
        archive.writestr("top/../../escaped.jpg", b"x")
    before = sorted(tmp_path.rglob("*"))
    source = open_source(path)
    assert source.read("val/cat/1.jpg") == open_source(pictures).read("val/cat/1.jpg")
    assert not [n for n in source.names() if ".." in n]
    for name in ("../x", "/etc/passwd", "a/../../b", "", "a\\b"):
        with pytest.raises(DataError, match="not a path inside"):
            source.read(name)
    packed = run_pack("image_folder", path, memory_store(), "pets", "val", shard_samples=8)
    assert packed.manifest.samples == 4
    assert sorted(tmp_path.rglob("*")) == before


def test_a_link_out_of_the_folder_is_refused(pictures):
    (pictures / "train/cat/99.jpg").symlink_to("/etc/hostname")
    with pytest.raises(DataError, match="leads out"):
        open_source(pictures).read("train/cat/99.jpg")


def test_sources_that_are_none(tmp_path):
    (tmp_path / "broken.zip").write_bytes(b"PK\3\4 broken")
    with pytest.raises(DataError, match="not a readable zip"):
        ZipSource(tmp_path / "broken.zip")
    with pytest.raises(DataError, match="neither a folder nor"):
        open_source(tmp_path / "absent")


def test_a_split_in_two_parts_loses_no_record_and_shares_no_picture():
    whole = converter("easyvqa").run(None, "val", {})
    parts = [SplitPart("val", *ends).taken(whole) for ends in ((0.0, 0.3), (0.3, 1.0))]
    assert sorted(s.id for part in parts for s in part.samples) == sorted(s.id for s in whole.samples)
    shown = [{s.images[0] for s in part.samples} for part in parts]
    assert not shown[0] & shown[1]
    assert 0.2 < len(shown[0]) / len(shown[0] | shown[1]) < 0.4
    assert {part.classes for part in parts} == {whole.classes}


def test_what_cannot_be_used_counts_in_one_part_alone():
    whole = converter("toy").run(None, "val", {"samples": 60})
    bad = tuple(LeftOut(f"r{n}", "damaged") for n in range(40))
    whole = replace(whole, bad=bad, left_out=tuple((f"l{n}", "no label") for n in range(40)))
    parts = [SplitPart("val", *ends).taken(whole) for ends in ((0.0, 0.5), (0.5, 1.0))]
    assert sorted(each.record for part in parts for each in part.bad) == sorted(each.record for each in bad)
    assert sorted(each for part in parts for each in part.left_out) == sorted(whole.left_out)
    assert all(part.bad and part.left_out for part in parts)


def test_a_part_is_packed_under_its_own_name_and_an_empty_one_is_refused():
    store, of = memory_store(), {"samples": 60}
    manifests = [
        run_pack("toy", None, store, "toy", split, options=of, part=SplitPart("val", *ends)).manifest
        for split, ends in (("test", (0.0, 0.5)), ("val", (0.5, 1.0)))
    ]
    assert [read_manifest(store, "toy", split).samples for split in ("test", "val")] == [m.samples for m in manifests]
    assert sum(m.samples for m in manifests) == 60 and min(m.samples for m in manifests) > 15
    with pytest.raises(DataError, match=r"None of the 60 records of 'val' .*from 0 to 1e-09"):
        run_pack("toy", None, store, "toy", "none", options=of, part=SplitPart("val", 0.0, 1e-9))


def test_unknown_names_list_the_valid_ones():
    with pytest.raises(ConfigError, match="places365"):
        converter("place365")
    with pytest.raises(ConfigError, match="Options: task, samples"):
        CONVERTERS["toy"].run(None, "train", {"sampels": 3})
    with pytest.raises(ConfigError, match="train, val"):
        CONVERTERS["nlvr"].run(None, "tets", {})
    with pytest.raises(ConfigError, match="needs a source"):
        CONVERTERS["nlvr"].run(None, "train", {})


@pytest.mark.parametrize("task", ["shape", "truth", "kin", "pair", "ask"])
def test_every_toy_packs(task):
    manifest = pack_toy(memory_store(), task, 20)
    assert manifest.samples == 20 and manifest.labels() is not None
