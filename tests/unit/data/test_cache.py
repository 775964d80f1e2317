"""The node cache: bounded, shared, and never believed without a checksum."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from atlas_dist.data.batch import StreamLimits
from atlas_dist.data.cache import NodeCache
from atlas_dist.data.stream import open_stream
from atlas_dist.errors import ConfigError
from tests.kits.data import letter_tokenizer, memory_store, pack_toy, task_of


def files(folder: Path) -> int:
    return sum(p.stat().st_size for p in folder.glob("*.part"))


def test_what_was_written_is_read_and_the_oldest_goes_first(tmp_path):
    cache = NodeCache(tmp_path, 1000)
    for part in range(9):
        cache.write("a" * 64, part, memoryview(bytes([part]) * 100))
        os.utime(tmp_path / f"{'a' * 64}-{part}.part", (part, part))
    out = memoryview(bytearray(100))
    assert cache.read("a" * 64, 0, out) and bytes(out) == bytes(100)  # used now: it is the youngest
    for part in range(9, 12):
        cache.write("a" * 64, part, memoryview(bytes([part]) * 100))
        assert files(tmp_path) <= 1000
    assert cache.read("a" * 64, 0, out) and not cache.read("a" * 64, 1, out)
    cache.write("b" * 64, 0, memoryview(bytes(1001)))
    assert not cache.read("b" * 64, 0, memoryview(bytearray(1001)))


def test_a_short_or_long_file_is_a_miss(tmp_path):
    cache = NodeCache(tmp_path, 1000)
    cache.write("a" * 64, 0, memoryview(b"12345"))
    assert not cache.read("a" * 64, 0, memoryview(bytearray(4)))
    assert not cache.read("a" * 64, 0, memoryview(bytearray(6)))


def test_many_writers_keep_the_bound(tmp_path):
    def work(who: int) -> None:
        cache = NodeCache(tmp_path, 2000)
        for part in range(30):
            cache.write(f"{who:064d}", part, memoryview(bytes(100)))

    threads = [threading.Thread(target=work, args=(w,)) for w in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert 0 < files(tmp_path) <= 2000 and not list(tmp_path.glob(".new-*"))


def test_a_second_stream_fetches_nothing_and_rot_is_fetched_again(tmp_path):
    store = memory_store()
    manifest = pack_toy(store, "shape", 60)
    limits = StreamLimits(cache_dir=str(tmp_path), cache_bytes=1 << 20)

    def read() -> tuple[int, list[int]]:
        how = {"seed": 0, "rank": 0, "world": 1, "global_batch": 8, "limits": limits}
        with open_stream(store, manifest, task_of(manifest), letter_tokenizer(), 16, **how) as stream:
            seen = [int(i) for b in stream.epochs_from(0, stream.steps_per_epoch) for i in b.index if i >= 0]
            return stream.stats().bytes, seen

    first = read()
    assert first[0] == manifest.size
    assert read() == (0, first[1])
    rotten = sorted(tmp_path.glob("*.part"))[0]
    data = bytearray(rotten.read_bytes())
    data[7] ^= 1
    rotten.write_bytes(data)
    assert read() == (len(data), first[1])


def test_a_cache_without_a_bound_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="cache_mb"):
        NodeCache(tmp_path, 0)
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="cannot be made"):
        NodeCache(tmp_path / "file/x", 1)
