"""S3 as two servers speak it (moto, SeaweedFS), and as a spoiled network delivers it. Defends: nothing is absent, ours or applied
unless the server said so; what is read is what was asked for."""

from __future__ import annotations

import os
import pickle
import uuid
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from atlas_dist.clock import SystemClock
from atlas_dist.errors import (
    AlreadyExists,
    AuthError,
    DataError,
    ExpiredCredentials,
    MissingObject,
    PreconditionFailed,
    StoreError,
    UnknownOutcome,
    Unreachable,
)
from atlas_dist.store import StoreOptions, open_store
from atlas_dist.store.doctor import examine, require_fit
from atlas_dist.store.objects import ObjectStore
from atlas_dist.store.s3 import S3Options, S3Store
from atlas_dist.store.settle import Patience, create_settled
from tests.chaos.fire import acknowledged, ledger_longer_than, start
from tests.chaos.judge import judge, ledger_of, objects_of
from tests.chaos.plans import small_plan
from tests.kits.proxy import Fault, FaultProxy, Kind
from tests.kits.servers import CREDENTIALS, KEY_ID, SECRET, Server, moto, seaweedfs

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


# ------------------------------------------------------------------------------------------------ servers that differ from AWS


@pytest.mark.parametrize(
    "prefix",
    ["my data/x", "données/übung", "a+b=c,d", "run(1)/[x]", "it's 100%", "a#b", "a?b&c", "a;b@c$d!e~f", "a%20b", ".h/-x", "数据"],
)
def test_a_prefix_may_have_odd_letters(server: Server, prefix: str, tmp_path: Path) -> None:
    """Keys are ours and plain; the folder of the bucket that they lie below is somebody else's choice."""
    whole = f"{uuid.uuid4().hex}/{prefix}"
    store = open_store(server.url(whole), options=server.options())
    assert store.url == server.url(whole)
    store.create("a/b", b"12345")
    with pytest.raises(AlreadyExists):
        store.create("a/b", b"other")
    (tmp_path / "file").write_bytes(b"67")
    store.put_file("a/c", tmp_path / "file")
    assert [(i.key, i.size) for i in store.list("")] == [("a/b", 5), ("a/c", 2)]
    assert read(store, "a/b", 5) == b"12345"
    store.delete("a/b")
    assert [i.key for i in store.list("a/")] == ["a/c"]
    beside = open_store(server.url(f"{whole}y"), options=server.options())
    assert list(beside.list("")) == []


TRAILER = Fault(
    Kind.REFUSE,
    method="PUT",
    head="x-amz-(sdk-checksum|checksum-crc|trailer)",
    times=-1,
    status=501,
    says=("NotImplemented", "A header you sent is not implemented: x-amz-trailer"),
)


def test_a_server_without_checksums_names_the_setting_and_works_with_it(
    server: Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """boto3 1.36 and later add checksums that older servers refuse; it is not conditional writes that they lack."""
    (tmp_path / "large").write_bytes(os.urandom((16 << 20) + 1))
    with FaultProxy(server.endpoint) as proxy:
        proxy.add(replace(TRAILER))
        options = server.options(proxy.endpoint, attempts=2)
        store = open_store(server.url(uuid.uuid4().hex), options=options)
        for write in (
            lambda: store.create("k", b"x"),
            lambda: store.put("k", b"x"),
            lambda: store.put_file("k", tmp_path / "large"),
        ):
            with pytest.raises(StoreError, match=r"x-amz-trailer.*AWS_REQUEST_CHECKSUM_CALCULATION=when_required") as caught:
                write()
            assert "conditional writes" not in str(caught.value)
        with pytest.raises(StoreError, match=r"FAIL .*x-amz-trailer(.|\n)*AWS_REQUEST_CHECKSUM_CALCULATION=when_required"):
            require_fit(store, new_id=lambda: "exam")
        monkeypatch.setenv("AWS_REQUEST_CHECKSUM_CALCULATION", "when_required")
        monkeypatch.setenv("AWS_RESPONSE_CHECKSUM_VALIDATION", "when_required")
        store = open_store(server.url(uuid.uuid4().hex), options=options)
        assert examine(store, new_id=lambda: "exam", writers=2, keys=2).fit
        assert store.put_file("k", tmp_path / "large").size == (16 << 20) + 1


@pytest.mark.parametrize(("status", "code"), [(501, "NotImplemented"), (400, "InvalidArgument")])
def test_a_server_without_conditional_creates_is_refused_with_its_reason(server: Server, status: int, code: str) -> None:
    with FaultProxy(server.endpoint) as proxy:
        says = (code, "If-None-Match is not supported on PUT")
        proxy.add(Fault(Kind.REFUSE, method="PUT", head="if-none-match", times=-1, status=status, says=says))
        store = open_store(server.url(uuid.uuid4().hex), options=server.options(proxy.endpoint))
        with pytest.raises(
            StoreError, match=r"FAIL .*If-None-Match is not supported(.|\n)*can't do conditional writes"
        ) as caught:
            require_fit(store, new_id=lambda: "exam")
        assert "CHECKSUM" not in str(caught.value)
        assert sum(method == "PUT" for method, _ in proxy.requests) == 1, "one clear answer is enough"


def test_a_server_named_by_the_sdks_own_setting_is_asked_by_path(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """bucket.localhost is no host: few servers but AWS' have names for buckets."""
    port = server.endpoint.rpartition(":")[2]
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", f"http://localhost:{port}")
    store = open_store(server.url(uuid.uuid4().hex))
    store.put("k", b"v")
    assert store.get("k") == b"v"
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "http://localhost:9")
    with pytest.raises(Unreachable, match=r"http://localhost:9"):
        open_store(server.url("x"), options=StoreOptions(attempts=1, connect_timeout_s=1.0))


def test_a_style_that_the_profile_asks_for_is_kept(server: Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Some servers refuse paths: who has one says so to the SDK."""
    (tmp_path / "config").write_text("[default]\ns3 =\n  addressing_style = virtual\n")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    port = server.endpoint.rpartition(":")[2]
    with pytest.raises(StoreError) as caught:
        open_store(server.url("x"), options=server.options(f"http://s3.invalid:{port}", attempts=1, connect_timeout_s=1.0))
    assert "bucket.s3.invalid" in str(caught.value)


EXPIRED = ("ExpiredToken", "The provided token has expired.")


def test_a_token_that_ends_is_looked_for_again(server: Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Whoever renews the credentials file in time does not interrupt a run."""
    for name in CREDENTIALS:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
    secret = f"aws_secret_access_key = {SECRET}\n"
    (tmp_path / "credentials").write_text(f"[default]\naws_access_key_id = old\n{secret}")
    with FaultProxy(server.endpoint) as proxy:
        proxy.add(Fault(Kind.REFUSE, head="Credential=old/", times=-1, says=EXPIRED))
        store = open_store(server.url(uuid.uuid4().hex), options=server.options(proxy.endpoint, check=False))
        (tmp_path / "file").write_bytes(b"x")
        calls = {
            "create": lambda: store.create("c", b"x"),
            "put": lambda: store.put("p", b"x"),
            "upload": lambda: store.put_file("f", tmp_path / "file"),
            "get": lambda: store.get("c"),
            "stat": lambda: store.stat("c"),
            "list": lambda: list(store.list("")),
        }
        for name, call in calls.items():
            with pytest.raises(ExpiredCredentials, match=r"token has expired.*get new credentials") as caught:
                call()
            assert caught.value.exit_code == 4, name
        (tmp_path / "credentials").write_text(f"[default]\naws_access_key_id = {KEY_ID}\n{secret}")
        for call in calls.values():
            call()
        assert store.get("c") == b"x"


def test_a_token_that_ends_in_the_middle_of_a_run_costs_nothing(tmp_path: Path) -> None:
    """It is said, with exit code 4; with new credentials the same command goes on and completes the run."""
    with moto() as server, FaultProxy(server.endpoint) as proxy:
        url = server.url(uuid.uuid4().hex)
        options = ("--endpoint", proxy.endpoint, "--tasks", "2", "--pace", "0.3")
        process = start(url, "run", *options)
        store = open_store(url, options=server.options())
        ledger_longer_than(store, 3)
        proxy.add(Fault(Kind.REFUSE, times=-1, says=EXPIRED))
        output, _ = process.communicate(timeout=120)
        assert process.returncode == ExpiredCredentials.exit_code, output
        assert "get new credentials" in output
        before = ledger_of(objects_of(store), "run")
        proxy.clear()
        process = start(url, "run", *options)
        more, _ = process.communicate(timeout=120)
        assert process.returncode == 0, more
        after = ledger_of(objects_of(store), "run")
        assert {key: after[key] for key in before} == before
        judge(store, {"run": len(small_plan(2).jobs)}, acknowledged(output + more, "run"))


WORDS = {
    "a clock that is off": (403, "RequestTimeTooSkewed", "The difference is too large.", AuthError, "clock of this machine"),
    "another region": (
        400,
        "AuthorizationHeaderMalformed",
        "the region 'x' is wrong; expecting 'y'",
        StoreError,
        "expecting 'y'.*region",
    ),
    "a full bucket": (
        507,
        "XMinioStorageFull",
        "Storage backend has reached its limit.",
        StoreError,
        "has reached its limit.*Make room",
    ),
    "a read-only key": (403, "AccessDenied", "not allowed to perform: s3:PutObject", AuthError, "s3:PutObject.*policy"),
    "something else": (400, "OddRequest", "The moon is in the wrong place.", StoreError, "The moon is in the wrong place"),
}


@pytest.mark.parametrize("case", WORDS)
def test_what_the_server_said_is_passed_on(spoiled: tuple[FaultProxy, ObjectStore, ObjectStore], case: str) -> None:
    proxy, store, _ = spoiled
    status, code, message, kind, says = WORDS[case]
    proxy.add(Fault(Kind.REFUSE, method="PUT", times=-1, status=status, says=(code, message)))
    with pytest.raises(kind, match=says):
        store.put("k", b"x")


def test_a_head_that_is_refused_says_why(spoiled: tuple[FaultProxy, ObjectStore, ObjectStore]) -> None:
    """The answer to a HEAD has no body, so no reason."""
    proxy, store, _ = spoiled
    proxy.add(Fault(Kind.REFUSE, times=-1, status=403, says=("AccessDenied", "s3:GetObject is not allowed")))
    with pytest.raises(AuthError, match="s3:GetObject is not allowed"):
        store.stat("k")
