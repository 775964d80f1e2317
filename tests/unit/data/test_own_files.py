"""People's folders and zips: every file of a class is a sample or is counted, whatever it is called and wherever a link leads."""

from __future__ import annotations

import errno
import io
import json
import os
import re
import unicodedata
import zipfile
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from atlas_dist.data.leftout import by_reason, shown
from atlas_dist.data.pack import PackReport, run_pack
from atlas_dist.data.source import open_source
from atlas_dist.data.tasks import CONVERTERS
from atlas_dist.errors import DataError, StoreError
from atlas_dist.store.local import LocalStore
from atlas_dist.store.objects import ObjectStore
from tests.kits.data import memory_store


def picture(path: Path, number: int = 0, size: int = 12) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (size, size), (number * 9 % 256, 40, 90)).save(path)
    return path


def colours(root: Path, train: int = 12, val: int = 4) -> Path:
    for split, count in (("train", train), ("val", val)):
        for k, name in enumerate(("blue", "red")):
            for i in range(count):
                picture(root / split / name / f"{i}.png", i + 100 * k)
    return root


def packed(source: Path, split: str = "train", store: ObjectStore | None = None, max_bad: float = 0.01) -> PackReport:
    return run_pack("image_folder", source, store or memory_store(), "d", split, image_size=64, max_bad=max_bad)


def test_every_file_of_a_class_folder_is_a_sample_or_counted(tmp_path: Path) -> None:
    red = colours(tmp_path) / "train/red"
    for number, end in enumerate(("webp", "gif", "bmp", "tif", "avif", "JPEG", "jfif")):
        Image.new("RGB", (9, 9), (number, 0, 0)).save(red / f"w{number}.{end}", format="JPEG" if end == "jfif" else None)
    (red / "no-ending").write_bytes((red / "0.png").read_bytes())
    for quiet in ("._0.png", ".DS_Store", "Thumbs.db", "thumbs.db"):
        (red / quiet).write_bytes(b"\0\5\x16\7")
    (red / "notes.txt").write_text("mine")
    (red / "x.heic").write_bytes(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic")
    (red / "cut.png").write_bytes((red / "0.png").read_bytes()[:50])
    (red / "empty.jpg").write_bytes(b"")
    (red / "gone.png").symlink_to(tmp_path / "nowhere.png")
    report = packed(tmp_path, max_bad=0.2)
    assert report.manifest.samples == 24 + 8
    reasons = {reason: [e.record for e in entries] for reason, entries in by_reason(report.left_out).items()}
    assert reasons == {
        "not a picture that is read": ["train/red/notes.txt", "train/red/x.heic"],
        "a broken link": ["train/red/gone.png"],
        "damaged picture": ["train/red/cut.png"],
        "empty file": ["train/red/empty.jpg"],
    }
    with pytest.raises(
        DataError, match=r"5 of 37 records cannot be used, more than pack.max_bad=0.01: .*pack.max_bad=0.136"
    ) as refused:
        packed(tmp_path)
    assert "2 not a picture that is read: train/red/notes.txt" in str(refused.value)


def test_a_folder_beside_train_and_val_makes_no_class(tmp_path: Path) -> None:
    colours(tmp_path)
    picture(tmp_path / "test/images/0.png")
    assert packed(tmp_path).manifest.classes == ("blue", "red")
    own = CONVERTERS["image_folder"].run(tmp_path, "train", {}, ("train", "test"))
    assert own.classes == ("blue", "images", "red"), "the splits of the task count, whatever they are called"


NAMES = [
    "a.b.c",
    "with space",
    'it\'s "quoted"',
    "100%",
    "#1",
    "a,b=c",
    "[x]{y}",
    "back\\slash",
    "-dash",
    "日本語",
    "naïve",
    "tab\tand\nline",
    "u\u200bzero",
    "n" * 251,
]


@pytest.mark.parametrize("name", NAMES)
def test_folders_and_files_of_any_name_are_packed(tmp_path: Path, name: str) -> None:
    colours(tmp_path, 2, 2)
    for split in ("train", "val"):
        picture(tmp_path / split / name / f"{name}.png")
    report = packed(tmp_path)
    assert report.left_out == () and report.manifest.samples == 5 and name in report.manifest.classes


def test_names_that_are_no_utf8_are_packed_under_a_name_that_can_be_written(tmp_path: Path) -> None:
    colours(tmp_path, 2, 2)
    odd = os.fsdecode(os.fsencode(tmp_path / "train") + b"/caf\xe9")
    os.makedirs(odd)
    Image.new("RGB", (9, 9)).save(os.path.join(odd, "a.png"))
    report = packed(tmp_path)
    assert report.manifest.classes == ("blue", "caf\\xe9", "red") and report.manifest.samples == 5
    assert shown("caf\udce9") == "caf\\xe9" and shown("a\nb") == "a\\x0ab" and shown("日本") == "日本"


def test_two_normal_forms_of_one_name_are_one_class_and_one_file(tmp_path: Path) -> None:
    composed, separate = (unicodedata.normalize(form, "caf\u00e9") for form in ("NFC", "NFD"))
    colours(tmp_path / "a", 2, 2)
    picture(tmp_path / "a/train" / composed / "0.png")
    picture(tmp_path / "a/val" / separate / "0.png")
    assert packed(tmp_path / "a").manifest.classes == packed(tmp_path / "a", "val").manifest.classes == ("blue", composed, "red")
    picture(tmp_path / "b" / f"{separate}.png")
    source = open_source(tmp_path / "b")
    assert source.read(f"{composed}.png") == source.read(f"{separate}.png") and source.has(f"{composed}.png")


def test_a_link_inside_is_followed_and_one_that_leads_out_is_named(tmp_path: Path) -> None:
    root = colours(tmp_path / "data")
    (root / "train/blue").rename(root / "pool")
    (root / "train/blue").symlink_to("../pool")
    (root / "train/red/again").symlink_to("..")
    assert packed(root).manifest.samples == 24
    (root / "train/blue").unlink()
    (root / "pool").rename(tmp_path / "elsewhere")
    (root / "train/blue").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(DataError, match=r"train/blue is a link to .*elsewhere, out of"):
        packed(root)


def test_a_pipe_and_a_folder_called_like_a_picture_do_not_stop_a_pack(tmp_path: Path) -> None:
    colours(tmp_path)
    os.mkfifo(tmp_path / "train/red/pipe.png")
    picture(tmp_path / "train/red/odd.png/inner.png")
    report = packed(tmp_path, max_bad=0.1)
    assert report.manifest.samples == 25 and [e.reason for e in report.left_out] == ["not a plain file"]


# ------------------------------------------------------------------------------------------------------------------- zips


def zipped(root: Path, path: Path, top: str = "") -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for file in sorted(root.rglob("*.png")):
            archive.write(file, top + file.relative_to(root).as_posix())
    return path


def test_a_zip_made_by_a_mac_holds_no_more_than_its_data(tmp_path: Path) -> None:
    path = zipped(colours(tmp_path / "c"), tmp_path / "c.ZIP", "colours/")
    with zipfile.ZipFile(path, "a") as archive:
        for name in archive.namelist():
            archive.writestr("__MACOSX/" + name.rpartition("/")[0] + "/._" + name.rpartition("/")[2], b"\0\5\x16\7")
        archive.writestr("colours/.DS_Store", b"x")
    assert [packed(path, split).manifest.samples for split in ("train", "val")] == [24, 8]
    assert packed(path).left_out == ()


def test_a_damaged_member_is_one_unreadable_record(tmp_path: Path) -> None:
    path = zipped(colours(tmp_path / "c"), tmp_path / "c.zip")
    data = bytearray(path.read_bytes())
    info = zipfile.ZipFile(path).getinfo("train/red/3.png")
    at = info.header_offset + 30 + len(info.filename)
    for k in range(at, at + 30):
        data[k] ^= 0x5A
    path.write_bytes(data)
    with pytest.raises(DataError, match=r"1 of 24 .*damaged in the zip: train/red/3.png"):
        packed(path)
    assert packed(path, max_bad=0.1).manifest.samples == 23


def test_names_in_a_zip_are_read_as_their_maker_meant(tmp_path: Path) -> None:
    path = tmp_path / "c.zip"
    png = picture(tmp_path / "p.png").read_bytes()
    with zipfile.ZipFile(path, "w") as archive:
        for split in ("train", "val"):
            archive.writestr(f"{split}\\red\\0.png", png)
            info = zipfile.ZipInfo("x")
            info.filename = f"{split}/été/0.png".encode().decode("cp437")  # UTF-8 that does not say so
            archive.writestr(info, png)
    raw = path.read_bytes()
    with zipfile.ZipFile(path) as archive:  # cp437 letters make Python set the flag: take it away again
        for info in archive.infolist():
            assert info.filename
    report = packed(path)
    assert len(report.manifest.classes) == 2 and report.manifest.samples == 2 and "red" in report.manifest.classes
    assert path.read_bytes() == raw


# --------------------------------------------------------------------------------------------------------- packing again


def test_pictures_that_were_mended_in_place_are_noticed(tmp_path: Path) -> None:
    root, store = colours(tmp_path / "c"), LocalStore(tmp_path / "shards")
    first = packed(root, store=store)
    for file in (root / "train/red").iterdir():
        picture(file, 77)
    with pytest.raises(DataError, match=r"12 pictures of d/train have changed since it was packed: .*pack.overwrite=true"):
        packed(root, store=store)
    again = run_pack("image_folder", root, store, "d", "train", image_size=64, overwrite=True)
    assert again.manifest.digest != first.manifest.digest and again.manifest.samples == 24
    assert packed(root, store=store).manifest == again.manifest


def test_a_copied_folder_with_new_times_is_the_same(tmp_path: Path) -> None:
    root, store = colours(tmp_path / "c"), LocalStore(tmp_path / "shards")
    first = packed(root, store=store)
    for file in root.rglob("*.png"):
        os.utime(file, (1, 1))
    assert packed(root, store=store).manifest == first.manifest
    assert run_pack("image_folder", root, store, "d", "train", image_size=64, overwrite=True).manifest == first.manifest


def test_a_picture_more_is_refused_with_a_way_out_that_exists(tmp_path: Path) -> None:
    root, store = colours(tmp_path / "c"), LocalStore(tmp_path / "shards")
    packed(root, store=store)
    picture(root / "train/red/new.png")
    with pytest.raises(DataError, match=r"exists with other content .*pack.overwrite=true"):
        packed(root, store=store)


def test_what_was_packed_before_keeps_its_recipe() -> None:
    """Recipes name packed splits, digests their content and the jobs that learnt from it: pinned as version 0.1 made them."""
    store = memory_store()
    recipes = {
        name: run_pack(converter, None, store, name, "val", options=options, image_size=64).manifest.recipe[:16]
        for name, converter, options in (
            ("shape", "toy", {"task": "shape", "samples": 10}),
            ("pair", "toy", {"task": "pair", "samples": 10}),
            ("kin", "toy", {"task": "kin", "samples": 10}),
        )
    }
    assert recipes == PINNED


PINNED = {"shape": "b4e21802d85a9d15", "pair": "fa253c98bf304f65", "kin": "43ec93053522339f"}


# ------------------------------------------------------------------------------------------- names that lists of records give


def recorded(root: Path, member: str, name: str, *, zipped: bool) -> PackReport:
    """Pack one record that names its picture `name`; the picture lies at `member`."""
    out = io.BytesIO()
    Image.new("RGB", (6, 5), "red").save(out, "PNG")
    files = {member: out.getvalue(), "train.jsonl": json.dumps({"image": name, "text": "t", "label": "x"}).encode()}
    if zipped:
        with zipfile.ZipFile(root / "data.zip", "w") as archive:
            for file, content in files.items():
                archive.writestr(file, content)
    else:
        for file, content in files.items():
            (root / "data" / file).parent.mkdir(parents=True, exist_ok=True)
            (root / "data" / file).write_bytes(content)
    source = root / ("data.zip" if zipped else "data")
    return run_pack("classify_jsonl", source, memory_store(), "d", "train", max_bad=1.0)


@pytest.mark.parametrize("zipped", [False, True])
@pytest.mark.parametrize(
    ("member", "name"),
    [
        ("img/a.png", "./img/a.png"),
        ("img/a.png", "img//a.png"),
        ("img/a.png", "img\\a.png"),
        ("img/a.png", ".\\img\\a.png"),
        ("img/e\u0301.png", "img/\u00e9.png"),
        ("\u00e9/e\u0301.png", "e\u0301/\u00e9.png"),
        ("part1:/a.png", "part1:/a.png"),
    ],
)
def test_a_picture_is_found_however_a_list_writes_its_name(tmp_path: Path, member: str, name: str, zipped: bool) -> None:
    """A folder and a zip of it hold the same."""
    assert recorded(tmp_path, member, name, zipped=zipped).manifest.samples == 1


@pytest.mark.parametrize("zipped", [False, True])
@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("https://example.org/a.png", "a URL, not a file"),
        ("data:image/png;base64," + "iVBO" * 99, "a URL, not a file"),
        ("x" * 400, "unreadable file|missing file"),
        ("../a.png", "not a path inside the data set"),
        ("img/gone.png", "missing file"),
    ],
)
def test_a_name_that_is_no_file_is_one_unusable_record(tmp_path: Path, name: str, reason: str, zipped: bool) -> None:
    (left,) = recorded(tmp_path, "img/a.png", name, zipped=zipped).left_out
    assert re.fullmatch(reason, left.reason)


def test_a_link_to_itself_is_one_unusable_record(tmp_path: Path) -> None:
    root = colours(tmp_path)
    (root / "train/blue/loop.png").symlink_to("loop.png")
    (left,) = packed(root, max_bad=0.1).left_out
    assert left.record == "train/blue/loop.png"


def test_what_programs_keep_beside_pictures_makes_no_class_no_sample_and_no_fault(tmp_path: Path) -> None:
    """A notebook's copies were a class of their own, and a folder's settings stopped a small pack."""
    root = colours(tmp_path)
    before = packed(root).manifest
    picture(root / "train/.ipynb_checkpoints/0-checkpoint.png")
    picture(root / "train/blue/.ipynb_checkpoints/0-checkpoint.png")
    picture(root / "train/blue/@eaDir/0.png")
    picture(root / "train/loose.png")
    (root / "train/blue/desktop.ini").write_text("[x]")
    (root / "train/README.txt").write_text("x")
    report = packed(root)
    assert (report.manifest.classes, report.manifest.samples) == (before.classes, before.samples)
    assert not any(left.bad for left in report.left_out)
    assert {reason: len(entries) for reason, entries in by_reason(report.left_out).items()} == {
        "a file of a program beside the data": 4,
        "a picture in no class folder": 1,
    }


def test_a_split_or_class_of_other_capitals_is_said(tmp_path: Path) -> None:
    root = colours(tmp_path)
    picture(root / "train/Blue/0.png")
    assert packed(root).notes == ("classes whose names differ by capitals only are several: Blue, blue",)
    (root / "train").rename(root / "Train")
    with pytest.raises(DataError, match=r"There is Train: rename it to train"):
        packed(root)


def test_a_full_temporary_disk_is_told_as_such(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("atlas_dist.data.pack.write_shard", full)
    with pytest.raises(StoreError, match=r"d/train/000000.tar to the temporary folder .*it is full.*TMPDIR"):
        packed(colours(tmp_path))
