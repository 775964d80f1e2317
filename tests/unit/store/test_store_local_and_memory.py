"""The folder and the memory store keep the promises of objects.py; what goes wrong with a disk is said clearly."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from atlas_dist.errors import AlreadyExists, AuthError, ConfigError, DataError, MissingObject, PreconditionFailed, StoreError
from atlas_dist.store import open_store
from atlas_dist.store.doctor import examine, require_fit
from atlas_dist.store.local import LocalStore
from atlas_dist.store.objects import MemoryStore, ObjectStore


@pytest.fixture(params=["local", "memory"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> ObjectStore:
    return LocalStore(tmp_path / "not yet there") if request.param == "local" else MemoryStore("test")


def test_the_promises_of_a_store(store: ObjectStore, tmp_path: Path) -> None:
    store.create("a/b", b"12345")
    with pytest.raises(AlreadyExists):
        store.create("a/b", b"other")
    assert store.get("a/b") == b"12345"
    before = store.stat("a/b").etag
    store.put("a/c", b"one")
    store.put("a/b", b"54321")
    assert store.stat("a/b").etag != before
    (tmp_path / "file").write_bytes(b"x" * 10)
    assert store.put_file("a.d/e", tmp_path / "file").size == 10
    assert [i.key for i in store.list("a")] == ["a.d/e", "a/b", "a/c"]
    assert [i.key for i in store.list("a/")] == ["a/b", "a/c"]
    assert [i.key for i in store.list("none/")] == []
    window = bytearray(3)
    assert store.read_range("a/b", 1, memoryview(window), if_match=store.stat("a/b").etag) == 3
    assert window == b"432"
    assert store.read_range("a/b", 4, memoryview(window)) == 1
    assert store.read_range("a/b", 9, memoryview(window)) == 0
    with pytest.raises(PreconditionFailed):
        store.read_range("a/b", 0, memoryview(window), if_match="else")
    for call in (store.get, store.stat, lambda key: store.read_range(key, 0, memoryview(window))):
        with pytest.raises(MissingObject):
            call("a/none")
    with pytest.raises(DataError, match="5 bytes"):
        store.get("a/b", limit=4)
    store.delete("a/b")
    store.delete("a/b")
    assert [i.key for i in store.list("a/")] == ["a/c"]


@pytest.mark.parametrize("key", ["../x", "a/../../x", "/etc/x", "a//b", "a/.hidden", "", "a/-b", "a\x00b"])
def test_no_key_climbs_out(store: ObjectStore, key: str) -> None:
    """Keys are built from names of users, manifests and ledgers."""
    for call in (lambda: store.create(key, b""), lambda: store.put(key, b"")):
        with pytest.raises(DataError):
            call()


def test_one_of_many_creators_wins(store: ObjectStore) -> None:
    """Invariant: at most one commit a job, because one creator a key."""
    for n in range(10):
        wins: list[int] = []

        def create(i: int, n: int = n, wins: list[int] = wins) -> None:
            try:
                store.create(f"race/{n}", str(i).encode())
                wins.append(i)
            except AlreadyExists:
                pass

        threads = [threading.Thread(target=create, args=(i,)) for i in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert [str(i).encode() for i in wins] == [store.get(f"race/{n}")]


def test_a_full_disk_is_said_clearly_and_leaves_nothing(tmp_path: Path) -> None:
    store = LocalStore(tmp_path)
    with (
        mock.patch("os.fsync", side_effect=OSError(errno.ENOSPC, "No space left on device")),
        pytest.raises(StoreError, match=r"disk is full.*Free some space"),
    ):
        store.create("a", b"x" * 100)
    assert list(tmp_path.rglob("*")) == []


def test_a_file_system_without_hard_links_is_refused(tmp_path: Path) -> None:
    def no_links(*_: Any) -> None:
        raise OSError(errno.EPERM, "Operation not permitted")

    with mock.patch.object(Path, "hardlink_to", no_links), pytest.raises((StoreError, AuthError), match="hard links"):
        LocalStore(tmp_path).create("a", b"x")


def test_a_create_survives_a_kill_at_every_step(tmp_path: Path) -> None:
    """Killed before the link: nothing there. Killed after: all of it. Never a part."""
    script = "import sys; from atlas_dist.store import open_store; open_store(sys.argv[1]).create('k', b'whole')"
    for point, expected in (("local.create.before_link", []), ("local.create.after_link", ["k"])):
        root = tmp_path / point
        environment = {**os.environ, "ATLAS_FAILPOINT": point, "PYTHONPATH": str(Path.cwd())}
        done = subprocess.run([sys.executable, "-c", script, str(root)], env=environment, check=False)
        assert done.returncode == -9
        store = LocalStore(root)
        assert [i.key for i in store.list("")] == expected
        assert all(store.get(key) == b"whole" for key in expected)


def test_open_store_reads_urls(tmp_path: Path) -> None:
    assert open_store(str(tmp_path)).url == f"file://{tmp_path}"
    assert open_store(f"file://{tmp_path}/with%20space").url == f"file://{tmp_path}/with space"
    assert open_store("memory://one") is open_store("memory://one")
    for url in ("ftp://x/y", "s3:///prefix", "s3://key:secret@bucket/x"):
        with pytest.raises(ConfigError):
            open_store(url)


def test_the_doctor_passes_good_stores(store: ObjectStore) -> None:
    report = examine(store, new_id=lambda: "exam")
    assert report.fit, str(report)
    assert list(store.list("")) == []


class Racy(MemoryStore):
    """Looks, then writes: what a store without conditional writes amounts to."""

    def create(self, key: str, data: bytes) -> None:
        if any(info.key == key for info in self.list(key)):
            raise AlreadyExists(key)
        threading.Event().wait(0.001)
        self.put(key, data)


class Forgetful(MemoryStore):
    """Lists what was there a while ago."""

    def list(self, prefix: str) -> Any:
        return iter(list(super().list(prefix))[:-1])


@pytest.mark.parametrize(("bad", "promise"), [(Racy(), "atomic"), (Forgetful(), "listed at once")])
def test_the_doctor_refuses_bad_stores(bad: ObjectStore, promise: str) -> None:
    with pytest.raises(StoreError, match=rf"FAIL  .*{promise}(.|\n)*NOT fit"):
        require_fit(bad, new_id=lambda: "exam")
