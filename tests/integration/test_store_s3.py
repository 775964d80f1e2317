"""S3 as two servers speak it (moto, SeaweedFS), and as a spoiled network delivers it. Defends: nothing is absent, ours or applied
unless the server said so; what is read is what was asked for."""

from __future__ import annotations

import os
import pickle
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from atlas_dist.clock import SystemClock
from atlas_dist.errors import AlreadyExists, AuthError, DataError, MissingObject, PreconditionFailed, StoreError, UnknownOutcome
from atlas_dist.store import open_store
from atlas_dist.store.objects import ObjectStore
from atlas_dist.store.s3 import S3Options, S3Store
from atlas_dist.store.settle import Patience, create_settled
from tests.kits.proxy import Fault, FaultProxy, Kind
from tests.kits.servers import CREDENTIALS, Server, moto, seaweedfs

QUICK = Patience(first_s=0.01, longest_s=0.05, total_s=5.0)


@pytest.fixture(scope="module", params=["moto", "seaweedfs"])
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with moto() if request.param == "moto" else seaweedfs(tmp_path_factory.mktemp("weed")) as running:
        yield running


@pytest.fixture
def store(server: Server) -> ObjectStore:
    return open_store(server.url(uuid.uuid4().hex), options=server.options())


@pytest.fixture
def spoiled(server: Server) -> Iterator[tuple[FaultProxy, ObjectStore, ObjectStore]]:
    """A proxy, a store behind it (one try, short patience), and the same store without it."""
    prefix = uuid.uuid4().hex
    with FaultProxy(server.endpoint) as proxy:
        options = server.options(proxy.endpoint, attempts=1, read_timeout_s=1.0, check=False)
        yield proxy, open_store(server.url(prefix), options=options), open_store(server.url(prefix), options=server.options())


def read(store: ObjectStore, key: str, size: int) -> bytes:
    """A whole object by ranged reads, resuming cut ones."""
    data, at = bytearray(size), 0
    etag = store.stat(key).etag
    while at < size:
        at += store.read_range(key, at, memoryview(data)[at:], if_match=etag)
    return bytes(data)


def test_the_promises_of_a_store(store: ObjectStore, tmp_path: Path) -> None:
    store.create("a/b", b"12345")
    with pytest.raises(AlreadyExists):
        store.create("a/b", b"other")
    assert store.get("a/b") == b"12345"
    store.put("a/c", b"one")
    store.put("a/c", b"two!")
    assert store.get("a/c") == b"two!"
    assert [(i.key, i.size) for i in store.list("a/")] == [("a/b", 5), ("a/c", 4)]
    window = bytearray(3)
    etag = store.stat("a/b").etag
    assert store.read_range("a/b", 1, memoryview(window), if_match=etag) == 3
    assert window == b"234"
    assert store.read_range("a/b", 5, memoryview(window)) == 0
    with pytest.raises(PreconditionFailed):
        store.read_range("a/b", 0, memoryview(window), if_match="0" * 32)
    for call in (store.get, store.stat, lambda key: store.read_range(key, 0, memoryview(window))):
        with pytest.raises(MissingObject):
            call("a/none")
    with pytest.raises(DataError, match="5 bytes"):
        store.get("a/b", limit=4)
    store.delete("a/b")
    store.delete("a/b")
    assert [i.key for i in store.list("")] == ["a/c"]


def test_large_files_go_up_in_parts(store: ObjectStore, tmp_path: Path) -> None:
    path = tmp_path / "large"
    path.write_bytes(os.urandom((16 << 20) + 12345))
    info = store.put_file("x/large", path)
    assert info.size == path.stat().st_size
    assert read(store, "x/large", info.size) == path.read_bytes()


def test_many_keys_are_listed_in_pages(server: Server) -> None:
    store = S3Store(server.bucket, uuid.uuid4().hex, S3Options(endpoint_url=server.endpoint, page=3))
    keys = [f"many/{i:04d}" for i in range(10)]
    for key in keys:
        store.put(key, b"")
    assert [i.key for i in store.list("many/")] == keys


def test_a_store_travels_without_its_connections(store: ObjectStore) -> None:
    store.put("k", b"v")
    assert pickle.loads(pickle.dumps(store)).get("k") == b"v"


def test_a_child_process_makes_its_own_client(store: ObjectStore) -> None:
    """A client inherited over fork shares sockets: answers of one process reach the other."""
    for i in range(20):
        store.put(f"k{i}", str(i).encode())
    children = []
    for _ in range(2):
        pid = os.fork()
        if not pid:
            good = all(store.get(f"k{i}") == str(i).encode() for _ in range(3) for i in range(20))
            os._exit(0 if good else 1)
        children.append(pid)
    assert all(store.get(f"k{i}") == str(i).encode() for _ in range(3) for i in range(20))
    assert [os.waitpid(pid, 0)[1] for pid in children] == [0, 0]


def test_what_a_user_gets_wrong_is_said_clearly(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(StoreError, match=r"no bucket 'nobucket'.*Create it"):
        open_store("s3://nobucket/x", options=server.options())
    with pytest.raises(StoreError, match="endpoint_url"):
        open_store(server.url("x"), options=server.options("http://127.0.0.1:9", attempts=1, connect_timeout_s=1.0))
    for name in CREDENTIALS:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("HOME", "/nonexistent")
    with pytest.raises(AuthError, match="Set AWS credentials"):
        open_store(server.url("x"), options=server.options())


def test_wrong_credentials_are_an_auth_error(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    probe = open_store(server.url("auth"), options=server.options())
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "canary-wrong-secret")
    try:
        open_store(server.url("auth"), options=server.options())
    except AuthError as error:
        assert "canary" not in str(error)
    else:
        pytest.skip(f"{probe.url}: this server does not check signatures")


@pytest.mark.parametrize("kind", [Kind.RESET_AFTER_APPLY, Kind.ERROR_AFTER_APPLY, Kind.DELAY, Kind.SLOW_DOWN, Kind.CLOSE_EARLY])
def test_a_create_of_unknown_outcome_is_settled(spoiled: tuple[FaultProxy, ObjectStore, ObjectStore], kind: Kind) -> None:
    """Whatever happened to the answer: our bytes are there exactly once, and we know it."""
    proxy, store, direct = spoiled
    proxy.add(Fault(kind, method="PUT", seconds=1.5))
    with pytest.raises(UnknownOutcome):
        store.create("once", b"mine")
    proxy.add(Fault(kind, method="PUT", seconds=1.5, times=2))
    create_settled(store, "once", b"mine", SystemClock(), QUICK)
    assert direct.get("once") == b"mine"
    assert proxy.applied[kind] >= 2


@pytest.mark.parametrize("kind", [Kind.RESET_AFTER_APPLY, Kind.ERROR_AFTER_APPLY, Kind.SLOW_DOWN])
def test_a_lost_race_is_known_whatever_the_network_does(spoiled: tuple[FaultProxy, ObjectStore, ObjectStore], kind: Kind) -> None:
    proxy, store, direct = spoiled
    direct.create("taken", b"theirs")
    proxy.add(Fault(kind, method="PUT", times=2))
    with pytest.raises(AlreadyExists):
        create_settled(store, "taken", b"mine", SystemClock(), QUICK)
    assert direct.get("taken") == b"theirs"


def test_only_nosuchkey_means_absent(spoiled: tuple[FaultProxy, ObjectStore, ObjectStore]) -> None:
    """A 404 with half a body is trouble: taking it for absence would let a record be written twice."""
    proxy, store, direct = spoiled
    direct.put("there", b"x")
    for call in (store.get, store.stat):
        proxy.add(Fault(Kind.CUT_404, times=2))
        with pytest.raises(StoreError) as caught:
            call("there")
        assert not isinstance(caught.value, MissingObject)
        proxy.clear()
    assert store.get("there") == b"x"


@pytest.mark.parametrize("kind", [Kind.TRUNCATE, Kind.STALL, Kind.TRUNCATE_AT_TAR_HEADER])
def test_cut_bodies_are_short_and_resumed(spoiled: tuple[FaultProxy, ObjectStore, ObjectStore], kind: Kind) -> None:
    proxy, store, direct = spoiled
    content = os.urandom(200_000)
    direct.put("body", content)
    proxy.add(Fault(kind, method="GET", path="/body", seconds=1.5, times=2))
    assert read(store, "body", len(content)) == content
    proxy.clear()
    proxy.add(Fault(kind, method="GET", path="/body", seconds=1.5))
    with pytest.raises(StoreError):
        store.get("body")
    assert store.get("body") == content


def test_an_object_replaced_between_reads_is_noticed(spoiled: tuple[FaultProxy, ObjectStore, ObjectStore]) -> None:
    proxy, store, direct = spoiled
    direct.put("shard", b"a" * 1000)
    etag = store.stat("shard").etag
    window = bytearray(500)
    assert store.read_range("shard", 0, memoryview(window), if_match=etag) == 500
    proxy.add(Fault(Kind.MEANWHILE, method="GET", action=lambda: direct.put("shard", b"b" * 1000)))
    with pytest.raises(PreconditionFailed):
        store.read_range("shard", 500, memoryview(window), if_match=etag)
