"""The chained log on one primitive, and artifacts that are believed only when hashed."""

from __future__ import annotations

import json
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
from safetensors.numpy import save

from atlas_dist.core.attempts import Blob, CommittedRef
from atlas_dist.core.records import Begin, Elect, Pause
from atlas_dist.errors import AlreadyExists, DataError, FencedError, StoreError, UnknownOutcome
from atlas_dist.store import log as log_module
from atlas_dist.store.artifacts import (
    fetch,
    fetch_checkpoint,
    newest_checkpoint,
    publish,
    read_result,
    save_checkpoint,
    verify,
)
from atlas_dist.store.log import RecordLog, threaded
from atlas_dist.store.objects import MemoryStore
from atlas_dist.store.safetensors_check import check_safetensors
from atlas_dist.store.settle import Patience
from tests.chaos.fakes import FakeClock, counted_ids

BEGIN = Begin(run="r", spec_digest="s", plan_digest="p")


class Flaky(MemoryStore):
    """Answers the next creates with what the test says: 'lost' (not applied) or 'unanswered' (applied)."""

    def __init__(self) -> None:
        super().__init__("flaky")
        self.fates: list[str] = []

    def create(self, key: str, data: bytes) -> None:
        fate = self.fates.pop(0) if self.fates else ""
        if fate != "lost":
            super().create(key, data)
        if fate:
            raise UnknownOutcome("no answer")


def open_log(store: MemoryStore, writer: str) -> RecordLog:
    patience = Patience(total_s=30.0)
    return RecordLog(store, "runs/r/ledger", writer=writer, clock=FakeClock(), new_id=counted_ids(writer), patience=patience)


def test_entries_are_chained_and_read_back() -> None:
    store = MemoryStore()
    log = open_log(store, "a")
    written = [log.append(0, BEGIN), log.append(1, Elect("x")), log.append(1, Pause("q", "why"))]
    assert open_log(store, "b").read_new() == written
    reader = RecordLog(store, "runs/r/ledger", writer="b", clock=FakeClock(), new_id=str, read_many=threaded)
    assert reader.read_new() == written
    assert reader.read_new() == []


def test_a_writer_behind_the_tail_is_fenced_and_stays_so() -> None:
    """Fencing by collision: nobody appends behind a tail that it has not replayed."""
    store = MemoryStore()
    first = open_log(store, "a")
    first.append(0, BEGIN)
    second = open_log(store, "b")
    second.read_new()
    second.append(1, Elect("b leads"))
    for _ in range(2):
        with pytest.raises((FencedError, StoreError)):
            first.append(1, Elect("a leads"))
    first.read_new()
    assert first.append(2, Elect("a leads")).seq == 2


@pytest.mark.parametrize("fates", [["lost"], ["unanswered"], ["lost", "lost", "unanswered"], ["unanswered", "lost"]])
def test_unknown_outcomes_are_settled(fates: list[str]) -> None:
    """Acknowledged entries are there; nothing is there twice."""
    store = Flaky()
    log = open_log(store, "a")
    log.append(0, BEGIN)
    store.fates = list(fates)
    log.append(1, Elect("x"))
    assert [e.seq for e in open_log(store, "b").read_new()] == [0, 1]


def test_an_append_that_stays_unknown_ends_the_log() -> None:
    store = Flaky()
    log = open_log(store, "a")
    log.append(0, BEGIN)
    store.fates = ["lost"] * 1000
    with pytest.raises(StoreError):
        log.append(1, Elect("x"))
    store.fates = []
    with pytest.raises(StoreError, match="replay first"):
        log.append(1, Elect("x"))
    log.read_new()
    log.append(1, Elect("x"))


def test_a_broken_ledger_is_refused() -> None:
    store = MemoryStore()
    log = open_log(store, "a")
    for _ in range(3):
        log.append(0, BEGIN)
    good = store.get("runs/r/ledger/0000000000000001")
    store.put("runs/r/ledger/0000000000000001", good.replace(b'"run":"r"', b'"run":"s"'))
    with pytest.raises(StoreError, match="chain is broken"):
        open_log(store, "b").read_new()
    store.delete("runs/r/ledger/0000000000000001")
    with pytest.raises(StoreError, match="gap"):
        open_log(store, "b").read_new()
    store.put("runs/r/ledger/0000000000000001", b"{")
    with pytest.raises(DataError, match="not JSON"):
        open_log(store, "b").read_new()


def packed_store(entries: int) -> MemoryStore:
    store = MemoryStore()
    with mock.patch.object(log_module, "PACK", 4):
        log = open_log(store, "a")
        for _ in range(entries):
            log.append(0, BEGIN)
    return store


class Counting(MemoryStore):
    """Counts the entries that are read one by one."""

    def __init__(self, base: MemoryStore) -> None:
        super().__init__()
        self._objects = base._objects
        self.read: list[str] = []

    def get(self, key: str, *, limit: int = 1 << 31) -> bytes:
        self.read.append(key)
        return super().get(key, limit=limit)


@pytest.mark.parametrize("entries", [3, 4, 5, 8, 9, 23])
def test_a_long_ledger_is_read_in_packs(entries: int) -> None:
    store = Counting(packed_store(entries))
    with mock.patch.object(log_module, "PACK", 4):
        assert [e.seq for e in open_log(store, "b").read_new()] == list(range(entries))
    packs = (entries - 1) // 4
    assert sum("-packs/" in key for key in store.read) == packs
    assert sum("/ledger/" in key for key in store.read) == entries - 4 * packs + packs


@pytest.mark.parametrize("damage", ["missing", "flipped", "short", "foreign", "junk"])
def test_a_wrong_pack_is_passed_over(damage: str) -> None:
    """Packs are a cache: only what the chain of hashes ties to real entries is believed."""
    store = packed_store(13)
    key = "runs/r/ledger-packs/0000000000000004"
    good = store.get(key)
    first = store.get("runs/r/ledger-packs/0000000000000000")
    changed = {
        "flipped": good.replace(b'"run":"r"', b'"run":"s"', 1),
        "short": good[: good.rindex(b"\n")],
        "foreign": first,
        "junk": b"{",
    }
    if damage == "missing":
        store.delete(key)
    else:
        store.put(key, changed[damage])
    with mock.patch.object(log_module, "PACK", 4):
        log = open_log(store, "b")
        assert [e.seq for e in log.read_new()] == list(range(13))
        log.append(0, BEGIN)
    assert store.get(key) == good, "the next leader mends it"


GOOD = save({"w": np.ones((2, 3), np.float32), "n": np.arange(4)})


def test_published_results_are_verified(tmp_path: Path) -> None:
    store = MemoryStore()
    (tmp_path / "notes.json").write_text("{}")
    files = {"adapter.safetensors": GOOD, "notes.json": tmp_path / "notes.json"}
    result = publish(store, "runs/r/attempts/x", job="j", attempt="x", files=files, metrics={"score": 1.5})
    assert read_result(store, "runs/r/attempts/x") == result
    verify(store, "runs/r/attempts/x", result.blobs)
    ref = CommittedRef("j", "x", "runs/r/attempts/x", result.blobs)
    assert fetch(store, ref, "adapter.safetensors", tmp_path / "in").read_bytes() == GOOD
    store.put("runs/r/attempts/x/adapter.safetensors", GOOD[:-1] + b"\x01")
    for call in (
        lambda: verify(store, ref.prefix, ref.blobs),
        lambda: fetch(store, ref, "adapter.safetensors", tmp_path / "in2"),
    ):
        with pytest.raises(DataError, match="damaged"):
            call()
    assert list((tmp_path / "in2").iterdir()) == []
    store.delete("runs/r/attempts/x/adapter.safetensors")
    with pytest.raises(DataError, match="missing"):
        verify(store, ref.prefix, ref.blobs)


def test_a_claimed_size_is_never_allocated_on_trust() -> None:
    store = MemoryStore()
    store.put("p/x.bin", b"small")
    with pytest.raises(DataError, match="5 bytes instead of"):
        verify(store, "p", [Blob("x.bin", 1 << 60, "0" * 64)])


@pytest.mark.parametrize("name", ["../x", "RESULT", "checkpoints", ".x", "a/b"])
def test_file_names_are_checked(name: str) -> None:
    with pytest.raises(DataError):
        publish(MemoryStore(), "p", job="j", attempt="x", files={name: b""}, metrics={})


def test_metrics_must_be_finite() -> None:
    with pytest.raises(DataError, match="finite"):
        publish(MemoryStore(), "p", job="j", attempt="x", files={}, metrics={"loss": float("nan")})


def test_a_result_is_published_once() -> None:
    store = MemoryStore()
    for _ in range(2):
        publish(store, "p", job="j", attempt="x", files={}, metrics={})
    with pytest.raises(AlreadyExists):
        publish(store, "p", job="j", attempt="x", files={}, metrics={"other": 1})


def _cut(data: bytes) -> bytes:
    return data[:-1]


def _header(change: dict[str, object]) -> bytes:
    length = int.from_bytes(GOOD[:8], "little")
    header = json.loads(GOOD[8 : 8 + length])
    header["w"].update(change)
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + GOOD[8 + length :]


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"", "too short"),
        (b"\xff" * 100, "not a safetensors"),
        (_cut(GOOD), "beyond the end"),
        (GOOD + b"x", "behind its last tensor"),
        (_header({"dtype": "F8"}), "dtype"),
        (_header({"shape": [2, 4]}), "bytes are not"),
        (_header({"shape": [-2, -3]}), "shape"),
        (_header({"data_offsets": [0, 24]}), "overlap|hole"),
        (_header({"extra": 1}), "described"),
        (save({"w": np.array([1.0, np.nan], np.float32)}), "not finite"),
        (save({"w": np.array([1.0, np.inf], np.float16)}), "not finite"),
        (save({"w": np.array([-np.inf])}), "not finite"),
    ],
)
def test_bad_safetensors_are_refused(data: bytes, why: str) -> None:
    with pytest.raises(DataError, match=why):
        check_safetensors(data, "x.safetensors")


def test_good_safetensors_pass_and_tell_their_shapes() -> None:
    assert check_safetensors(GOOD, "x") == {"w": ("F32", (2, 3)), "n": ("I64", (4,))}


def test_the_newest_whole_checkpoint_is_found(tmp_path: Path) -> None:
    """Torn, damaged and too-late checkpoints are passed over."""
    store = MemoryStore()
    first = save_checkpoint(store, "runs/r/attempts/one", 10, {"state.bin": b"ten"})
    save_checkpoint(store, "runs/r/attempts/one", 20, {"state.bin": b"twenty"})
    third = save_checkpoint(store, "runs/r/attempts/two", 30, {"state.bin": b"thirty"})
    store.put("runs/r/attempts/two/checkpoints/00000040/state.bin", b"no DONE")
    attempts = ["runs/r/attempts/two", "runs/r/attempts/one"]
    assert newest_checkpoint(store, attempts) == third
    assert (newest_checkpoint(store, attempts, before=30) or first).step == 20
    store.put(f"{third.prefix}/state.bin", b"thirtY")
    assert (newest_checkpoint(store, attempts) or first).step == 20
    fetched = fetch_checkpoint(store, first.prefix, first.digest, tmp_path)
    assert fetched == first
    assert (tmp_path / "state.bin").read_bytes() == b"ten"
    with pytest.raises(DataError, match="not the one"):
        fetch_checkpoint(store, first.prefix, "0" * 64, tmp_path)
