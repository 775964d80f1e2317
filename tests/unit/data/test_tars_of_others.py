"""WebDataset tars that other programs wrote: what `shards index` finds, and what it says of the rest."""

from __future__ import annotations

import gzip
import io
import json
import re
import tarfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import webdataset
from PIL import Image

from atlas_dist.core.types import TaskKind
from atlas_dist.data import tarwalk
from atlas_dist.data.inspect import Indexed, run_index, run_verify, unlabelled
from atlas_dist.data.leftout import by_reason
from atlas_dist.data.sample import EXTENSIONS, Sample, parse_sample
from atlas_dist.errors import DataError
from atlas_dist.store.local import LocalStore
from atlas_dist.store.objects import MemoryStore
from tests.kits.data import memory_store


def png(number: int = 0, how: str = "PNG") -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (10, 8), (number * 11 % 256, 9, 9)).save(out, how)
    return out.getvalue()


def tar(members: Iterable[tuple[str, bytes | str]], form: int = tarfile.PAX_FORMAT) -> bytes:
    """(name, content) a member; a content of type str makes a symbolic link, a name that ends in a slash a folder."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=form) as archive:
        for name, content in members:
            info = tarfile.TarInfo(name)
            if isinstance(content, str):
                info.type, info.linkname = tarfile.SYMTYPE, content
                archive.addfile(info)
            elif name.endswith("/"):
                info.type = tarfile.DIRTYPE
                archive.addfile(info)
            else:
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))
    return out.getvalue()


def samples(count: int = 6, key: str = "{:04d}") -> list[tuple[str, bytes | str]]:
    return [(f"{key.format(i)}.{e}", c) for i in range(count) for e, c in (("png", png(i)), ("cls", b"%d" % (i % 2)))]


def indexed(*tars: bytes, kind: TaskKind = TaskKind.SINGLE, **beside: bytes) -> tuple[Indexed, MemoryStore]:
    store = memory_store()
    for number, data in enumerate(tars):
        store.put(f"d/train/{number}.tar", data)
    for name, data in beside.items():
        store.put(f"d/train/{name.replace('__', '.')}", data)
    return run_index(store, "d", "train", kind), store


def reasons(found: Indexed) -> dict[str, int]:
    return {reason: len(entries) for reason, entries in by_reason(found.left_out).items()}


def read(data: bytes) -> list[Sample]:
    view = memoryview(data)
    index = tarwalk.samples(view, EXTENSIONS)
    return [parse_sample(index.content(i, view)) for i in range(len(index))]


def test_tars_of_the_webdataset_library_are_whole() -> None:
    out = io.BytesIO()
    with webdataset.TarWriter(out) as writer:
        for i in range(5):
            writer.write({"__key__": f"a/{i:04d}", "png": np.zeros((8, 8, 3), np.uint8), "cls": i % 2, "txt": f"text {i}"})
    found, store = indexed(out.getvalue())
    assert found.manifest.samples == 5 and found.left_out == () and found.notes == ()
    assert run_verify(store, "d", "train") == ()
    assert [s.texts for s in read(out.getvalue())] == [((f"text {i}",),) for i in range(5)]


def test_the_caption_is_the_txt_and_img2datasets_own_files_are_no_samples() -> None:
    about = [{"url": "http://x", "caption": f"a dog {i}", "width": 48, "label": "dog"} for i in range(4)]
    parts: list[tuple[str, bytes | str]] = []
    for i, body in enumerate(about):
        parts += [(f"{i:09d}.jpg", png(i, "JPEG")), (f"{i:09d}.json", json.dumps(body).encode())]
        parts += [(f"{i:09d}.txt", f"a dog {i}\n".encode("utf-8-sig")), (f"{i:09d}.cls", b"1\n")]
    found, _ = indexed(tar(parts), **{"0__parquet": b"PAR1", "0_stats__json": b"{}"})
    assert found.manifest.samples == 4 and reasons(found) == {"a file beside the tars": 2}
    assert [s.texts for s in read(tar(parts))] == [((f"a dog {i}",),) for i in range(4)]
    assert [s.label for s in read(tar(parts))] == [1] * 4
    without = [(n, c) for n, c in parts if not n.endswith("txt")]
    assert read(tar(without))[2].texts == (("a dog 2",),), "the caption of its JSON where there is no .txt"


@pytest.mark.parametrize("form", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_long_and_odd_names_prefixes_and_folders_are_no_hindrance(form: int) -> None:
    parts = [("./", b""), ("./v2.0/", b""), *samples(3, "./v2.0/" + "d" * 150 + "/é 日本 {:04d}")]
    found, _ = indexed(tar(parts, form))
    assert found.manifest.samples == 3 and found.left_out == ()


def test_names_with_dots_are_counted_and_one_is_named() -> None:
    dotted = [(n.replace("0000", "a 2.0 0000"), c) for n, c in samples(5)]
    found, _ = indexed(tar(dotted))
    assert found.manifest.samples == 4
    dot = "members whose names have a dot before .{} (an extension begins at the first dot)"
    assert reasons(found) == {dot.format("png"): 1, dot.format("cls"): 1}
    assert "a 2.0 0000" in found.left_out[0].record
    with pytest.raises(DataError, match=r"holds no sample: .*dot before \.(png|cls).*img.v2.0000"):
        indexed(tar(samples(3, "img.v2.{:04d}")))


def test_samples_without_a_label_are_counted() -> None:
    some = [(n, c) for n, c in samples(20) if not (n.endswith("cls") and int(n[:4]) % 5 == 0)]
    found, store = indexed(tar(some))
    assert found.notes == ("4 of 20 samples have no label (first: 0000); training masks them",)
    assert unlabelled(found.manifest) == 4 and run_verify(store, "d", "train") == ()


def test_a_sample_without_its_picture_is_named() -> None:
    parts = [(n, c) for n, c in [*samples(4), *((f"{i:04d}.txt", b"t") for i in range(4))] if n != "0002.png"]
    parts.sort(key=lambda part: part[0])
    with pytest.raises(DataError, match=r"have \[0, 1\] images.*0002 of 0.tar has 0; 0000 of 0.tar has 1"):
        indexed(tar(parts))


def test_an_unsorted_tar_is_refused_and_doubled_keys_are_said() -> None:
    unsorted = sorted(samples(4), key=lambda part: part[0].rpartition(".")[2])
    with pytest.raises(DataError, match="not sorted"):
        indexed(tar(unsorted))
    with pytest.raises(DataError, match=r"not sorted: the members of sample 0000 do not follow each other.*--sort=name"):
        indexed(tar(sorted(samples(4), key=lambda part: part[0].endswith("cls"))))
    found, _ = indexed(tar([*samples(3), *samples(3)]))
    assert found.manifest.samples == 6 and found.notes == ("3 keys stand more than once (first: 0000); each is a sample",)


def test_empty_tars_are_said_and_nothing_at_all_is_refused() -> None:
    found, _ = indexed(tar(samples(2)), tar([]))
    assert found.manifest.samples == 2 and found.notes == ("1 tars hold no sample: 1.tar",)
    with pytest.raises(DataError, match="holds no sample: its tars are empty"):
        indexed(tar([]))


def test_compressed_tars_are_named_with_what_to_do() -> None:
    packed = gzip.compress(tar(samples(2)))
    with pytest.raises(DataError, match=r"no .tar in .*1 a compressed tar.*x.tar.gz.*gunzip"):
        indexed(x__tar__gz=packed)
    found, _ = indexed(tar(samples(2)), x__tar__zst=packed)
    assert found.manifest.samples == 2 and list(reasons(found)) == [
        "a compressed tar, which cannot be read in parts: decompress it"
    ]
    with pytest.raises(DataError, match=r"0.tar: it is compressed with gzip, in spite of its name"):
        indexed(packed)


def test_links_and_unknown_members_are_counted() -> None:
    found, _ = indexed(tar([*samples(2), ("0002.png", "0001.png"), ("0001.npy", b"x"), ("readme", b"x"), (".hidden.png", png())]))
    assert found.manifest.samples == 2
    assert reasons(found)["a symbolic link"] == 1 and reasons(found)["members ending in .npy"] == 1
    assert sum(reasons(found).values()) == 4


@pytest.mark.parametrize("how", ["webp", "gif", "bmp", "tiff", "avif"])
def test_pictures_of_every_kind_are_samples(how: str) -> None:
    parts: list[tuple[str, bytes | str]] = [("a." + how, png(3, how.upper())), ("a.cls", b"1")]
    found, store = indexed(tar(parts))
    assert found.manifest.images == 1 and run_verify(store, "d", "train") == ()


def test_a_preview_beside_the_picture_is_no_second_picture() -> None:
    parts: list[tuple[str, bytes | str]] = [("a.jpg", png(1, "JPEG")), ("a.webp", png(1, "WEBP")), ("a.cls", b"1")]
    assert [len(s.images) for s in read(tar(parts))] == [1]
    pair: list[tuple[str, bytes | str]] = [("a.0.webp", png(1, "WEBP")), ("a.1.jpg", png(2, "JPEG")), ("a.cls", b"1")]
    (sample,) = read(tar(pair))
    assert [bytes(i[:4]) for i in sample.images] == [b"RIFF", png(2, "JPEG")[:4]]


@pytest.mark.parametrize("body", [{"label": "dog"}, {"label": None}, {"label": 1.5}, [], 5, "x"])
def test_a_label_that_is_none_is_refused_by_name(body: Any) -> None:
    with pytest.raises(DataError, match=r"0.tar: sample a: its text or label cannot be read"):
        indexed(tar([("a.png", png()), ("a.json", json.dumps(body).encode())]))


def test_what_lies_behind_the_end_is_said() -> None:
    """Tars that were joined with cat: every reader stops at the first end."""
    found, store = indexed(tar(samples(2)) + tar(samples(3, "b{:03d}")))
    assert found.manifest.samples == 2 and len(found.left_out) == 1 and run_verify(store, "d", "train") == ()
    assert "tar -A" in found.left_out[0].reason and found.left_out[0].record == "0.tar: behind its end"


def test_a_sparse_file_is_no_picture() -> None:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for name, content in samples(2):
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content.encode() if isinstance(content, str) else content))
        info = tarfile.TarInfo("GNUSparseFile.1/0009.png")
        info.pax_headers = {"GNU.sparse.major": "1", "GNU.sparse.name": "0009.png"}
        info.size = 612
        archive.addfile(info, io.BytesIO(b"1\n0\n100\n".ljust(512, b"\0") + b"z" * 100))
    found, store = indexed(out.getvalue())
    assert found.manifest.samples == 2 and reasons(found) == {"a sparse file": 1} and run_verify(store, "d", "train") == ()


@pytest.mark.parametrize("label", [b"99999999999", b"2000000000"])
def test_a_label_that_is_an_id_is_refused(label: bytes) -> None:
    with pytest.raises(DataError, match=r"sample a: .*is no number of a class"):
        indexed(tar([("a.png", png()), ("a.cls", label)]))


@pytest.mark.parametrize(
    "body",
    [b'{"targets": {"1": NaN}}', b'{"targets": {"-1": 1}}', b'{"targets": {"x": 1}}', b'{"texts": [["\\ud800"]], "label": 1}'],
)
def test_targets_and_texts_that_cannot_be_learnt_from_are_refused(body: bytes) -> None:
    with pytest.raises(DataError, match="sample a: its text or label cannot be read"):
        indexed(tar([("a.png", png()), ("a.json", body)]), kind=TaskKind.ANSWERS)


def test_samples_of_another_kind_than_is_said_are_refused() -> None:
    with pytest.raises(DataError, match=r"have 1 images; those of --kind pair have two.*KEY.0.jpg"):
        indexed(tar(samples(2)), kind=TaskKind.PAIR)
    with pytest.raises(DataError, match=r"a text for each choice.*0000 of 0.tar has 1"):
        indexed(tar(samples(2)), kind=TaskKind.CHOICE)
    body = json.dumps({"texts": [["q", "a"], ["q", "b"]], "label": 1}).encode()
    found, _ = indexed(tar([("a.json", body), ("b.json", body)]), kind=TaskKind.CHOICE)
    assert found.manifest.samples == 2 and found.manifest.images == 0


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "it is empty"),
        (b"<html>404</html>", "it is a web page"),
        (b"version https://git-lfs.github.com/spec/v1\n", "pointer of Git LFS"),
        (b"\x04\x22\x4d\x18" + bytes(600), "compressed with lz4"),
    ],
)
def test_what_is_no_tar_is_called_what_it_is(data: bytes, said: str) -> None:
    with pytest.raises(DataError, match=rf"0.tar: .*{said}"):
        indexed(data)


def test_a_link_in_the_place_of_a_picture_is_named_and_forks_of_macos_are_quiet() -> None:
    with pytest.raises(DataError, match=r"sample 0004: .*0004.png is a symbolic link"):
        indexed(tar([*samples(2), ("0004.png", "0001.png"), ("0004.cls", b"1")]))
    forks = [(n, c) for name, content in samples(2) for n, c in ((f"._{name}", b"\0\5\x16\7"), (name, content))]
    found, _ = indexed(tar(forks))
    assert found.manifest.samples == 2 and found.left_out == ()


# ------------------------------------------------------------------------------------------------- no file without a word


def in_a_folder(root: Path, **files: bytes | str) -> Indexed:
    """Index a real folder; `__` in a name is a dot, a text makes a link."""
    folder = root / "d" / "train"
    folder.mkdir(parents=True)
    for name, content in files.items():
        path = folder / name.replace("__", ".")
        path.parent.mkdir(exist_ok=True)
        if isinstance(content, str):
            path.symlink_to(content)
        else:
            path.write_bytes(content)
    return run_index(LocalStore(root), "d", "train", TaskKind.SINGLE)


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("shard 1__tar", "a tar whose name cannot be a shard's"),
        ("données-1__tar", "a tar whose name cannot be a shard's"),
        ("a{000..009}__tar", "a tar whose name cannot be a shard's"),
        ("a+b,c%20__tar", "a tar whose name cannot be a shard's"),
        ("-1__tar", "a tar whose name cannot be a shard's"),
        ("1__TAR", "a tar whose name does not end in .tar"),
        ("below/1__tar", "a tar in a folder below"),
        ("été__tar__gz", "a compressed tar"),
    ],
)
def test_a_tar_that_is_not_indexed_is_named(tmp_path: Path, name: str, why: str) -> None:
    """A folder's store lists only what can be an object of ours: a tar called otherwise was left out without a word."""
    one = tar(samples(2))
    found = in_a_folder(tmp_path / "some", **{"0__tar": one, name: one})
    assert found.manifest.samples == 2
    (left,) = found.left_out
    assert left.record == name.replace("__", ".") and left.reason.startswith(why) and left.bad
    with pytest.raises(DataError, match=rf"There is no \.tar in .*1 {re.escape(why)}.*{re.escape(left.record)}") as caught:
        in_a_folder(tmp_path / "none", **{name: one})
    assert any(word in caught.value.fix for word in ("Rename", "Move", "Decompress"))


def test_a_link_to_a_tar_is_followed_and_a_broken_one_named(tmp_path: Path) -> None:
    one = tar(samples(2))
    assert in_a_folder(tmp_path / "whole", **{"0__tar": one, "1__tar": "0.tar"}).manifest.samples == 4
    found = in_a_folder(tmp_path / "broken", **{"0__tar": one, "1__tar": "gone.tar"})
    assert [(left.record, left.reason) for left in found.left_out] == [("1.tar", "a link that leads nowhere")]


def test_what_systems_leave_beside_tars_is_quiet(tmp_path: Path) -> None:
    found = in_a_folder(tmp_path, **{"0__tar": tar(samples(2)), "__DS_Store": b"x", "___0__tar": b"\0\5\26\7"})
    assert found.manifest.samples == 2 and found.left_out == ()


def test_a_mask_beside_a_picture_is_said() -> None:
    parts: list[tuple[str, bytes | str]] = [("a.jpg", png(1, "JPEG")), ("a.png", png(2)), ("a.cls", b"1")]
    found, _ = indexed(tar(parts))
    assert found.manifest.images == 2
    assert found.notes[0].startswith("1 samples have several pictures without a number (first: a)")
    pair: list[tuple[str, bytes | str]] = [("a.0.jpg", png(1, "JPEG")), ("a.1.jpg", png(2, "JPEG")), ("a.cls", b"1")]
    assert indexed(tar(pair), kind=TaskKind.PAIR)[0].notes == ()


@pytest.mark.parametrize(
    ("ext", "content", "said"),
    [
        ("cls", b"dog", "its .cls is 'dog'; the number of a class is wanted"),
        ("cls", b"1.0", "its .cls is '1.0'"),
        ("cls", b"", "its .cls is empty"),
        ("json", b"", "its .json is empty"),
        ("json", b"[1]", "its .json is no object but a list"),
        ("json", b"null", "its .json is no object but null"),
        ("json", b"{'label': 1}", "its .json is not JSON"),
        ("json", b'{"label": null}', "label null is not an integer"),
        ("json", b'{"label": "3"}', "label '3' is not an integer; the number of a class is wanted"),
    ],
)
def test_what_is_wrong_with_a_member_is_told_in_its_own_words(ext: str, content: bytes, said: str) -> None:
    with pytest.raises(DataError, match=rf"0.tar: sample a: its text or label cannot be read \({re.escape(said)}"):
        indexed(tar([("a.png", png()), (f"a.{ext}", content)]))


def test_keys_that_several_tars_have_and_a_tar_that_stands_twice_are_said() -> None:
    one, other = tar(samples(3)), tar([*samples(1), *samples(2, "b{:03d}")])
    assert indexed(one, tar(samples(3, "c{:03d}")))[0].notes == ()
    found, _ = indexed(one, tar(samples(2, "c{:03d}")), other)
    assert found.manifest.samples == 8
    assert found.notes == ("1 keys stand in more than one tar (again in 2.tar); each is a sample",)
    assert "1.tar holds the same bytes as 0.tar: its samples count twice" in indexed(one, one)[0].notes


def test_a_long_link_and_a_label_of_the_archive_are_told_once_or_not_at_all() -> None:
    """GNU tar keeps a link's long target, and the name of the archive, in members of their own."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.GNU_FORMAT) as archive:
        for name, kind, target in (("label", b"V", ""), ("l" * 150 + ".png", tarfile.SYMTYPE, "t" * 150)):
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, target
            archive.addfile(info)
        for name, content in samples(2):
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content.encode() if isinstance(content, str) else content))
    found, store = indexed(out.getvalue())
    assert found.manifest.samples == 2 and reasons(found) == {"a symbolic link": 1}
    assert found.left_out[0].record.endswith("l.png") and run_verify(store, "d", "train") == ()
