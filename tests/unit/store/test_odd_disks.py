"""Folders that are not like a local disk: full, read-only, without hard links, NFS. Defends: what waiting cannot mend is said at
once; what was done counts as done, whatever the file system answered; foreign files are nobody's objects."""

from __future__ import annotations

import errno
import logging
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from atlas_dist.clock import Clock
from atlas_dist.config import load_config
from atlas_dist.coordinator.preflight import check_store
from atlas_dist.errors import AlreadyExists, MissingObject, StoreError, UnknownOutcome, Unreachable
from atlas_dist.store.artifacts import publish, save_checkpoint
from atlas_dist.store.doctor import examine, require_fit
from atlas_dist.store.local import LocalStore
from atlas_dist.store.objects import MemoryStore
from atlas_dist.store.settle import Patience, create_settled, retry_unavailable
from tests.chaos.fakes import FakeClock


def failing(number: int) -> Any:
    return mock.patch("os.fsync", side_effect=OSError(number, os.strerror(number)))


WRITES: dict[str, Callable[[LocalStore, Clock], Any]] = {
    "a checkpoint": lambda store, clock: save_checkpoint(store, "runs/r/attempts/a", 2, {"state.bin": b"x"}, clock=clock),
    "a result": lambda store, clock: publish(
        store, "runs/r/attempts/a", job="j", attempt="a", files={"f.bin": b"x"}, metrics={}, clock=clock
    ),
    "a record": lambda store, clock: create_settled(store, "runs/r/ledger/0", b"x", clock),
    "a rewrite": lambda store, clock: retry_unavailable(lambda: store.put("k", b"x"), clock),
}


@pytest.mark.parametrize("what", WRITES)
@pytest.mark.parametrize(
    ("number", "says"),
    [
        (errno.ENOSPC, "the disk is full.*Free some space"),
        (errno.EDQUOT, "quota.*Free some space"),
        (errno.EROFS, "read-only.*another|read-only.*can be written"),
        (errno.EFBIG, "no file of that size"),
    ],
)
def test_what_waiting_cannot_mend_is_said_at_once(what: str, number: int, says: str, tmp_path: Path) -> None:
    """A full disk was waited for, ten minutes and in silence, while a worker was deaf to SIGTERM."""
    clock = FakeClock()
    before = clock.monotonic()
    with failing(number), pytest.raises(StoreError, match=says):
        WRITES[what](LocalStore(tmp_path), clock)
    assert clock.monotonic() == before, "nobody waited"
    assert not [p for p in tmp_path.rglob("*") if p.is_file()]


@pytest.mark.parametrize("number", [errno.EIO, errno.ESTALE, errno.ENOTCONN, errno.ETIMEDOUT])
def test_what_may_pass_is_waited_for_and_told(number: int, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    clock, tries = FakeClock(), Patience(total_s=30.0)
    with failing(number), caplog.at_level(logging.WARNING), pytest.raises(StoreError):
        retry_unavailable(lambda: LocalStore(tmp_path).put("k", b"x"), clock, tries)
    assert clock.monotonic() > 15.0
    assert "the store is asked again for" in caplog.text


@pytest.mark.parametrize("error", [Unreachable("away", fix="Is the network up?"), UnknownOutcome("no answer", fix="Is it up?")])
def test_a_network_that_is_down_is_waited_for_although_there_is_advice(error: StoreError) -> None:
    left = [error, error]

    def read() -> str:
        if left:
            raise left.pop()
        return "there"

    assert retry_unavailable(read, FakeClock()) == "there"


def test_a_file_in_the_way_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(StoreError, match=r"a file stands where a folder should.*move it"):
        LocalStore(tmp_path / "file").put("a/b", b"")


# ---------------------------------------------------------------------------------------------------------------- no hard links


@pytest.fixture(params=[errno.EPERM, errno.ENOTSUP, errno.ENOSYS, errno.EINVAL])
def no_links(request: pytest.FixtureRequest) -> Iterator[None]:
    """vfat says EPERM; FUSE, CIFS and 9p the others."""
    with mock.patch("os.link", side_effect=OSError(request.param, os.strerror(request.param))):
        yield


@pytest.mark.usefixtures("no_links")
def test_a_folder_without_hard_links_is_refused_before_a_run_starts(tmp_path: Path) -> None:
    config = load_config({"store": {"url": str(tmp_path / "store")}})
    with pytest.raises(StoreError, match=r"store.url=.*hard links(.|\n)*local disk, NFS or S3"):
        check_store(config)
    store = LocalStore(tmp_path)
    report = examine(store, new_id=lambda: "exam")
    assert not report.fit
    assert str(report).count("hard links") == 1, "once, and not for every promise"
    with pytest.raises(StoreError, match=r"hard links(.|\n)*Put store.url on a local disk"):
        require_fit(store, new_id=lambda: "exam")
    assert not [p for p in tmp_path.rglob("*") if p.is_file()]


@pytest.mark.usefixtures("no_links")
def test_shards_may_lie_in_a_folder_without_hard_links(tmp_path: Path) -> None:
    """A stick is fine for data: they are written once by one writer, and need no exclusive create."""
    from tests.kits.stage import pack_toys, toy_config

    pack_toys(toy_config(tmp_path), samples=8)
    assert list(tmp_path.rglob("manifest.json"))


def test_a_folder_whose_names_cannot_be_synced_is_good_enough(tmp_path: Path) -> None:
    """CIFS and some FUSE know no fsync of a folder; then there is nothing more to do."""
    real = os.fsync

    def files_only(descriptor: int) -> None:
        if os.path.isdir(f"/proc/self/fd/{descriptor}"):
            raise OSError(errno.EINVAL, "Invalid argument")
        real(descriptor)

    with mock.patch("os.fsync", files_only):
        store = LocalStore(tmp_path)
        store.create("a/b", b"x")
        store.put("a/c", b"y")
        assert examine(store, new_id=lambda: "exam", writers=2, keys=2).fit
    assert (store.get("a/b"), store.get("a/c")) == (b"x", b"y")


# -------------------------------------------------------------------------------------------------------------------------- NFS


def done_but_failing(real: Callable[..., Any], number: int) -> Callable[..., Any]:
    """The request was done, its answer got lost, and the repeated one failed."""

    def call(*arguments: Any, **named: Any) -> None:
        real(*arguments, **named)
        raise OSError(number, os.strerror(number), *map(str, arguments[:1]))

    return call


def test_a_link_that_was_made_counts_although_nfs_says_that_the_name_is_taken(tmp_path: Path) -> None:
    store = LocalStore(tmp_path)
    with mock.patch("os.link", done_but_failing(os.link, errno.EEXIST)):
        store.create("a/b", b"mine")
    assert store.get("a/b") == b"mine"
    with pytest.raises(AlreadyExists):
        store.create("a/b", b"other")
    assert [p.name for p in tmp_path.rglob("*") if p.is_file()] == ["b"]


@pytest.mark.parametrize("from_file", [False, True])
def test_a_rename_that_was_done_counts_although_nfs_says_that_the_file_is_gone(from_file: bool, tmp_path: Path) -> None:
    store = LocalStore(tmp_path / "store")
    (tmp_path / "source").write_bytes(b"new")
    store.put("a/b", b"old")
    with mock.patch("os.replace", done_but_failing(os.replace, errno.ENOENT)):
        if from_file:
            store.put_file("a/b", tmp_path / "source")
        else:
            store.put("a/b", b"new")
    assert store.get("a/b") == b"new"


def test_a_rename_that_was_not_done_is_no_absence(tmp_path: Path) -> None:
    """`MissingObject` is a clear answer that nobody asks twice about."""
    store = LocalStore(tmp_path)
    with mock.patch("os.replace", side_effect=FileNotFoundError(errno.ENOENT, "gone", "x")), pytest.raises(StoreError) as caught:
        store.put("a/b", b"new")
    assert not isinstance(caught.value, MissingObject)


@pytest.mark.parametrize("name", [".nfs000000000001", ".DS_Store", "._0000", "Thumbs of mine.db", "lost+found", "naïve"])
def test_foreign_files_are_nobodys_objects(name: str, tmp_path: Path) -> None:
    store = LocalStore(tmp_path)
    store.create("runs/r/ledger/0", b"x")
    (tmp_path / "runs" / "r" / "ledger" / name).write_text("foreign")
    (tmp_path / f"{name}.d").mkdir()
    (tmp_path / f"{name}.d" / "x").write_text("foreign")
    assert [i.key for i in store.list("runs/r/ledger/")] == ["runs/r/ledger/0"]
    assert [i.key for i in store.list("")] == ["runs/r/ledger/0"]


# --------------------------------------------------------------------------------------------------------------------- the doctor


class Ignorant(MemoryStore):
    """Answers a conditional create as if there were no condition, like a server that does not know If-None-Match."""

    def create(self, key: str, data: bytes) -> None:
        self.put(key, data)


class Refusing(MemoryStore):
    """Says that it knows no conditional creates."""

    def create(self, key: str, data: bytes) -> None:
        raise StoreError("Cannot create: NotImplemented (501).", fix="This server can't do conditional writes.")


def test_the_doctor_gives_the_reason_of_a_store_without_conditional_creates() -> None:
    with pytest.raises(StoreError, match=r"FAIL .*ignores If-None-Match(.|\n)*NOT fit.*conditional writes"):
        require_fit(Ignorant(), new_id=lambda: "exam")
    with pytest.raises(StoreError, match=r"FAIL .*NotImplemented(.|\n)*NOT fit(.|\n)*can't do conditional writes") as caught:
        require_fit(Refusing(), new_id=lambda: "exam")
    assert len(str(caught.value).splitlines()) < 5
