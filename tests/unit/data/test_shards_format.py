"""Manifests, tars and samples: what is written is read back; what is damaged says so."""

from __future__ import annotations

import contextlib
import io
import json
import tarfile
from dataclasses import replace

import pytest
import webdataset
from hypothesis import given, settings
from hypothesis import strategies as st

from atlas_dist.core.manifest import ShardInfo, ShardManifest
from atlas_dist.core.types import TaskKind
from atlas_dist.data import tarwalk
from atlas_dist.data.crc import crc32c
from atlas_dist.data.inspect import Damage, run_index, run_verify
from atlas_dist.data.manifest import dump_manifest, parse_manifest, read_manifest
from atlas_dist.data.sample import EXTENSIONS, RawSample, dump_json, parse_sample
from atlas_dist.errors import DataError
from tests.kits.data import memory_store, pack_toy


def tar_of(files: dict[str, bytes], format: int = tarfile.USTAR_FORMAT) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=format) as tar:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return out.getvalue()


class TestTarWalk:
    @pytest.mark.parametrize("format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
    def test_finds_every_member_in_every_dialect(self, format):
        files = {"a.json": b"{}", "deep/" * 25 + "b.jpg": b"x" * 700, "c.0.jpg": b"", "ümlaut.txt": b"y" * 512}
        data = tar_of(files, format)
        found = {m.name: bytes(data[m.offset : m.offset + m.size]) for m in tarwalk.members(memoryview(data))}
        assert found == files

    def test_long_names_of_gnu_and_pax(self):
        name = "n" * 180 + ".json"
        for format in (tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
            assert [m.name for m in tarwalk.members(memoryview(tar_of({name: b"1", "b.json": b"2"}, format)))] == [name, "b.json"]

    def test_groups_by_key_and_passes_over_what_is_not_allowed(self):
        data = memoryview(tar_of({"1.jpg": b"a", "1.json": b"b", "1.exe": b"c", "2.0.JPG": b"d", "2.1.jpg": b"e", "noext": b"f"}))
        assert grouped(data) == [
            ("1", {"jpg": b"a", "json": b"b"}),
            ("2", {"0.jpg": b"d", "1.jpg": b"e"}),
        ]

    @settings(max_examples=80, deadline=None)
    @given(st.data(), st.sampled_from([tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]))
    def test_the_sweep_sees_what_the_walk_sees(self, draw, format):
        """Also where a file's content holds a header of its own, at the place of a header, and where names or the end are odd."""
        spoof = tar_of({"inner.json": b"i" * 40})
        content = st.sampled_from([b"", b"x", b"y" * 512, b"z" * 513, spoof, spoof[:512], bytes(1024)])
        name = st.sampled_from(["1.jpg", "1.json", "2.json", "a/3.png", "long/" * 30 + "4.json", "ümlaut.txt", "no", ".jpg"])
        files = draw.draw(st.dictionaries(name, content, max_size=6))
        tail = draw.draw(st.sampled_from([b"", spoof, b"odd"]))
        data = memoryview(tar_of(files, format) + tail)
        assert grouped(data, trusted=True) == grouped(data)

    @settings(max_examples=60, deadline=None)
    @given(st.integers(0, 6 * 512), st.integers(1, 255))
    def test_a_damaged_tar_never_gives_the_sweep_other_samples_than_the_walk(self, at, flip):
        data = bytearray(tar_of({"1.json": b"a" * 600, "1.jpg": b"b" * 30, "2.json": b""}))
        data[min(at, len(data) - 1)] ^= flip
        try:
            walked = grouped_by_walk(memoryview(data))
        except DataError:
            with pytest.raises(DataError):
                grouped(memoryview(data), trusted=True)
        else:
            assert grouped(memoryview(data), trusted=True) == walked

    @settings(max_examples=60, deadline=None)
    @given(st.integers(0, 5 * 512 + 900))
    def test_every_cut_is_noticed(self, length):
        whole = tar_of({"1.json": b"a" * 600, "2.json": b"b" * 30})
        content_end = 512 + 1024 + 512 + 512
        assert length >= content_end + 512 or _fails(whole[:length])

    @settings(max_examples=100, deadline=None)
    @given(st.binary(max_size=3000))
    def test_garbage_is_an_error_not_a_crash(self, data):
        with contextlib.suppress(DataError):
            list(tarwalk.members(memoryview(data)))

    def test_a_flipped_header_bit_fails_its_checksum(self):
        data = bytearray(tar_of({"1.json": b"a"}))
        data[3] ^= 1
        with pytest.raises(DataError, match="checksum"):
            list(tarwalk.members(memoryview(data)))


def grouped(data: memoryview, *, trusted: bool = False) -> list[tuple[str, dict[str, bytes]]]:
    """(key, content by extension) of every sample."""
    index = tarwalk.samples(data, EXTENSIONS, trusted=trusted)
    return [(key, {k: bytes(v) for k, v in index.content(i, data).items()}) for i, key in enumerate(index.keys)]


def grouped_by_walk(data: memoryview) -> list[tuple[str, dict[str, bytes]]]:
    """The same without sums of headers and without the sweep."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tarwalk, "_sweep", lambda _: None)
        return grouped(data, trusted=True)


def _fails(data: bytes) -> bool:
    try:
        list(tarwalk.members(memoryview(data)))
    except DataError:
        return True
    return False


class TestSample:
    def test_round_trip(self):
        raw = RawSample("x/1", (("q", "a"), ("q", "b")), ("p.jpg",), label=1)
        sample = parse_sample({"json": memoryview(dump_json(raw)), "1.png": memoryview(b"R"), "0.png": memoryview(b"L")})
        assert sample.texts == raw.texts and sample.label == 1
        assert [bytes(i) for i in sample.images] == [b"L", b"R"]

    def test_soft_targets(self):
        raw = RawSample("1", (("q",),), ("p.jpg",), targets={7: 0.3, 2: 0.9})
        assert parse_sample({"json": memoryview(dump_json(raw))}).targets == {2: 0.9, 7: 0.3}
        assert raw.index_label == 2

    def test_a_written_answer(self):
        raw = RawSample("1", (("q",),), ("p.jpg",), answer="ein roter Kreis, groß")
        sample = parse_sample({"json": memoryview(dump_json(raw))})
        assert sample.answer == raw.answer and sample.label == raw.index_label == -1 and sample.targets == {}

    @pytest.mark.parametrize("said", [b"5", b"null", b'["a"]', b'"\\ud800"'])
    def test_what_is_no_text_is_no_answer_and_no_fault_of_a_sample_with_a_label(self, said):
        sample = parse_sample({"json": memoryview(b'{"texts": [["q"]], "label": 1, "answer": ' + said + b"}")})
        assert (sample.answer, sample.label) == ("", 1)

    def test_ordinary_tars(self):
        sample = parse_sample({"jpg": memoryview(b"J"), "txt": memoryview(b" a cat \n"), "cls": memoryview(b"4")})
        assert sample.texts == (("a cat",),) and sample.label == 4

    @pytest.mark.parametrize(
        "body", [b"", b"[]", b'{"texts": [], "label": 1}', b'{"texts": ["ab"]}', b'{"label": "1"}', b"{" * 5000]
    )
    def test_nonsense_is_a_data_error(self, body):
        with pytest.raises(DataError):
            parse_sample({"json": memoryview(body)})


class TestManifest:
    manifest = ShardManifest(
        "d", "train", TaskKind.SINGLE, 1, ("a", "b"), (ShardInfo("000000.tar", 10240, 2, "0" * 64, (1, 2, 3), b"\0" * 8),), 4096
    )

    def test_round_trip(self):
        assert parse_manifest(dump_manifest(self.manifest), "x") == self.manifest

    def test_the_digest_is_of_content_only(self):
        moved = replace(self.manifest, dataset="copy", split="other", recipe="r", part_bytes=1 << 20)
        assert moved.digest == self.manifest.digest
        assert replace(self.manifest, classes=("a", "c")).digest != self.manifest.digest

    def test_a_missing_one_says_what_to_do(self):
        with pytest.raises(DataError, match="shards pack"):
            read_manifest(memory_store(), "d", "train")

    def test_a_torn_one(self):
        data = dump_manifest(self.manifest)
        for cut in (0, 1, len(data) // 2, len(data) - 3):
            with pytest.raises(DataError, match="damaged"):
                parse_manifest(data[:cut], "m")

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            (lambda m: m["shards"][0].update(name="../../etc/passwd.tar"), "safe name"),
            (lambda m: m["shards"][0].update(name="a.zip"), "not a .tar"),
            (lambda m: m["shards"][0].update(size=4096), "checksums"),
            (lambda m: m["shards"][0].update(samples=3), "labels"),
            (lambda m: m["shards"][0].update(sha256="1" * 64), "own digest"),
            (lambda m: m.update(version=2), "version"),
            (lambda m: m.update(extra=1), "extra"),
            (lambda m: m.update(kind="else"), "else"),
            (lambda m: m["shards"].append(m["shards"][0]), "twice"),
        ],
    )
    def test_what_does_not_hold_is_refused(self, change, message):
        body = json.loads(dump_manifest(self.manifest))
        change(body)
        with pytest.raises(DataError, match=message):
            parse_manifest(json.dumps(body).encode(), "m")

    def test_other_content_than_planned(self):
        store = memory_store()
        manifest = pack_toy(store)
        assert read_manifest(store, "toy_shape", "train", digest=manifest.digest) == manifest
        with pytest.raises(DataError, match="was planned"):
            read_manifest(store, "toy_shape", "train", digest="0" * 64)


class TestInspect:
    def test_an_ordinary_reader_reads_our_shards(self, tmp_path):
        store = memory_store()
        manifest = pack_toy(store, "pair", 20)
        seen = 0
        for shard in manifest.shards:
            (tmp_path / shard.name).write_bytes(store.get(f"toy_pair/train/{shard.name}"))
            for sample in webdataset.WebDataset(str(tmp_path / shard.name), shardshuffle=False).decode("pil"):
                assert sample["0.png"].size == sample["1.png"].size == (16, 16)
                assert sample["json"]["label"] in (0, 1)
                seen += 1
        assert seen == manifest.samples == 20

    def test_ordinary_tars_are_indexed(self, tmp_path):
        store = memory_store()
        pack_toy(store, "shape", 6)
        picture = store.get("toy_shape/train/000000.tar")
        image = tarwalk.samples(memoryview(picture), EXTENSIONS).content(0, memoryview(picture))["png"]
        for number in range(2):
            with webdataset.TarWriter(str(tmp_path / "x.tar")) as tar:
                for i in range(3 + number):
                    tar.write({"__key__": f"{number}-{i}", "png": bytes(image), "txt": "a shape", "cls": i})
            store.put(f"plain/train/part-{number}.tar", (tmp_path / "x.tar").read_bytes())
        manifest = run_index(store, "plain", "train", TaskKind.SINGLE, part_bytes=4096).manifest
        assert (manifest.samples, manifest.images, manifest.classes) == (7, 1, ("0", "1", "2", "3"))
        assert manifest.labels().tolist() == [0, 1, 2, 0, 1, 2, 3]
        assert run_verify(store, "plain", "train") == ()

    def test_verify_names_every_damaged_part(self):
        store = memory_store()
        manifest = pack_toy(store, samples=60)
        first, second = (f"toy_shape/train/{manifest.shards[i].name}" for i in (0, 2))
        data = bytearray(store.get(first))
        data[5000] ^= 1
        data[9000] ^= 1
        store.put(first, bytes(data))
        store.put(second, store.get(second)[:-1024])
        found = run_verify(store, "toy_shape", "train", tries=1)
        assert {(d.shard, d.where.partition(" (")[0]) for d in found} >= {("000000.tar", "part 1"), ("000000.tar", "part 2")}
        assert {d.shard for d in found} == {"000000.tar", "000002.tar"}
        assert all(isinstance(d, Damage) and d.reason for d in found)

    def test_a_cut_tar_is_not_indexed(self):
        store = memory_store()
        store.put("cut/train/0.tar", tar_of({"1.json": b'{"label": 0}'})[:1024])
        with pytest.raises(DataError, match="cut"):
            run_index(store, "cut", "train", TaskKind.SINGLE)


@given(st.binary(max_size=2000))
def test_crc32c_of_memory_equals_that_of_bytes(data):
    assert crc32c(memoryview(bytearray(data))) == crc32c(data)
