"""The stream over a real S3 protocol, and under every fault that the proxy knows: nothing lost, repeated or corrupt, or a clear
error."""

from __future__ import annotations

import gc
import itertools
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import psutil
import pytest
import torch

from atlas_dist.core.manifest import ShardManifest
from atlas_dist.data.batch import StreamLimits
from atlas_dist.data.manifest import read_manifest
from atlas_dist.data.stream import Stream, open_stream
from atlas_dist.errors import DataError, StoreError
from atlas_dist.store import ObjectStore, open_store, plain_http
from tests.kits.data import letter_tokenizer, memory_store, pack_toy, task_of
from tests.kits.proxy import Fault, FaultProxy, Kind
from tests.kits.servers import CREDENTIALS, Server, moto, seaweedfs

SAMPLES, BATCH = 60, 8


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with moto() as running:
        pack_toy(open_store(running.url("data"), options=running.options()), "truth", SAMPLES)
        yield running


@pytest.fixture(scope="module")
def reference() -> list[tuple[list[int], int]]:
    """What an undisturbed stream from memory yields: the samples and a hash of the pixels of every step."""
    store = memory_store()
    with opened(store, pack_toy(store, "truth", SAMPLES)) as stream:
        return read(stream)


def opened(store: ObjectStore, manifest: ShardManifest, rank: int = 0, world: int = 1, **limits: int) -> Stream:
    return open_stream(
        store,
        manifest,
        task_of(manifest),
        letter_tokenizer(),
        16,
        seed=1,
        rank=rank,
        world=world,
        global_batch=BATCH,
        limits=StreamLimits(fetch_threads=4, **limits),
    )


def read(stream: Stream) -> list[tuple[list[int], int]]:
    """(samples, hash of pixels and texts) of each step of two epochs."""
    seen = []
    for batch in stream.epochs_from(0, 2 * stream.steps_per_epoch):
        content = torch.cat([batch.pixels.flatten().long(), batch.input_ids.flatten()])
        weights = torch.arange(1, len(content) + 1)
        seen.append((batch.index.tolist(), int((content * weights % 1000003).sum())))
    return seen


READ_TIMEOUT_S = 1.5
"""Enough for an answer on busy cores."""
LONGER_S = 2.0


def through(proxy: FaultProxy, server: Server) -> tuple[ObjectStore, ShardManifest]:
    options = server.options(proxy.endpoint, attempts=1, read_timeout_s=READ_TIMEOUT_S)
    manifest = read_manifest(open_store(server.url("data"), options=server.options()), "toy_truth", "train")
    return open_store(server.url("data"), options=options), manifest


HEALING = {
    Kind.RESET_AFTER_APPLY: {},
    Kind.CLOSE_EARLY: {},
    Kind.SLOW_DOWN: {},
    Kind.ERROR_AFTER_APPLY: {},
    Kind.CUT_404: {},
    Kind.TRUNCATE: {},
    Kind.TRUNCATE_AT_TAR_HEADER: {},
    Kind.FLIP: {"times": 2},  # a part that fails its checksum three times is called damaged, rightly
    Kind.STALL: {"seconds": LONGER_S, "times": 3},
    Kind.DELAY: {"seconds": LONGER_S, "times": 3},
    Kind.THROTTLE: {"rate": 40_000, "times": 5},
}


@pytest.fixture(params=["one system call", "the SDK's own read"])
def body(request, monkeypatch):
    """How bodies come in: toy parts are so small that only the second way would be taken."""
    monkeypatch.setattr(plain_http, "SMALL", 2 if request.param == "one system call" else 1 << 30)


@pytest.mark.parametrize("kind", HEALING)
def test_what_can_heal_heals_without_a_trace(kind, server, reference, monkeypatch):
    monkeypatch.setattr(plain_http, "SMALL", 2)
    with FaultProxy(server.endpoint, seed=3) as proxy:
        store, manifest = through(proxy, server)
        proxy.add(Fault(kind, method="GET", path=r"\.tar", **{"times": 12, "chance": 0.4, **HEALING[kind]}))
        with opened(store, manifest) as stream:
            assert read(stream) == reference
            stats = stream.stats()
        assert proxy.applied[kind] > 0
        assert stats.bytes == manifest.size and stats.bad == ()
        assert stats.retries > 0 or kind is Kind.THROTTLE


def test_all_faults_at_once(server, reference, body):
    with FaultProxy(server.endpoint, seed=4) as proxy:
        store, manifest = through(proxy, server)
        for kind, how in HEALING.items():
            proxy.add(Fault(kind, method="GET", path=r"\.tar", **{"times": 4, **how, "chance": 0.1, "seconds": LONGER_S}))
        with opened(store, manifest) as stream:
            assert read(stream) == reference


def test_an_object_replaced_while_it_is_read_is_an_error_that_names_it(server):
    store = open_store(server.url("replaced"), options=server.options())
    manifest = pack_toy(store, "truth", SAMPLES)
    key = f"toy_truth/train/{manifest.shards[1].name}"
    other = bytearray(store.get(key))
    for at in range(0, len(other), 1000):
        other[at] ^= 0x55
    with FaultProxy(server.endpoint) as proxy:
        through_proxy = open_store(server.url("replaced"), options=server.options(proxy.endpoint))
        swap = Fault(Kind.MEANWHILE, method="GET", path=r"000001\.tar", action=lambda: store.put(key, bytes(other)))
        proxy.add(swap)
        with opened(through_proxy, manifest) as stream, pytest.raises(DataError, match=r"000001\.tar, bytes .* replaced"):
            read(stream)


def test_a_store_that_stays_away_is_an_error_after_some_patience(server):
    with FaultProxy(server.endpoint) as proxy:
        store, manifest = through(proxy, server)
        proxy.add(Fault(Kind.SLOW_DOWN, method="GET", path=r"\.tar", times=-1))
        with opened(store, manifest, tries=3) as stream, pytest.raises(StoreError, match=r"in 3 tries: .*SlowDown"):
            read(stream)
    assert not [t.name for t in threading.enumerate() if t.name.startswith("atlas-")]


@pytest.fixture(scope="module")
def keeps_alive(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server that leaves connections open (moto closes each after its answer)."""
    with seaweedfs(tmp_path_factory.mktemp("weed")) as running:
        pack_toy(open_store(running.url("data"), options=running.options()), "truth", SAMPLES)
        yield running


def connections_to(server: Server) -> int:
    """Open connections of this process to the server; other tests' servers in this process have sockets of their own."""
    gc.collect()
    port = urlsplit(server.endpoint).port
    return sum(bool(c.raddr) and c.raddr.port == port for c in psutil.Process().net_connections("tcp"))


@pytest.mark.parametrize("steps", [None, 2], ids=["read to the end", "left in the middle"])
def test_no_socket_and_no_thread_outlives_the_stream_and_its_store(keeps_alive, steps, body):
    assert not connections_to(keeps_alive)
    store = open_store(keeps_alive.url("data"), options=keeps_alive.options())
    manifest = read_manifest(store, "toy_truth", "train")
    with opened(store, manifest) as stream:
        assert len(list(itertools.islice(stream.epochs_from(0, 2 * stream.steps_per_epoch), steps))) == (steps or 16)
        assert connections_to(keeps_alive)
    assert not [t.name for t in threading.enumerate() if t.name.startswith("atlas-")]
    del store, stream
    # A client lies in reference cycles. While another thread of this process collects, a collection here returns at once.
    give_up_at = time.monotonic() + 60.0
    while connections_to(keeps_alive) and time.monotonic() < give_up_at:
        time.sleep(0.1)
    assert not connections_to(keeps_alive)


READS_FOR_EVER = """
import signal, sys, threading
signal.signal(signal.SIGINT, signal.default_int_handler)  # whatever started this test may have been deaf to it
from tests.integration.test_stream_store import open_store, opened, read_manifest
from atlas_dist.store import StoreOptions
store = open_store(sys.argv[1], options=StoreOptions(endpoint_url=sys.argv[2], check=False))
try:
    with opened(store, read_manifest(store, "toy_truth", "train")) as stream:
        for batch in stream.epochs_from(0, 10**9):
            if batch.step == 5:
                print("reading", flush=True)
finally:
    print([t.name for t in threading.enumerate() if t.name.startswith("atlas-")], flush=True)
"""


def test_ctrl_c_ends_the_stream_and_its_process(server):
    words = [server.url("data"), server.endpoint]
    process = subprocess.Popen(
        [sys.executable, "-c", READS_FOR_EVER, *words],
        cwd=Path(__file__).parents[2],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, **CREDENTIALS},
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "reading\n"
        process.send_signal(signal.SIGINT)
        output, errors = process.communicate(timeout=60)
    finally:
        process.kill()
    assert output == "[]\n", "every thread of the stream has ended"
    assert errors.rstrip().endswith("KeyboardInterrupt")


def test_ranks_over_s3_share_the_epoch(server, reference):
    store = open_store(server.url("data"), options=server.options())
    manifest = read_manifest(store, "toy_truth", "train")
    ranks = []
    for rank in range(2):
        with opened(store, manifest, rank, 2) as stream:
            ranks.append(read(stream))
    assert [a[0] + b[0] for a, b in zip(*ranks, strict=True)] == [samples for samples, _ in reference]


def test_another_server_of_the_protocol(keeps_alive, reference):
    store = open_store(keeps_alive.url("data"), options=keeps_alive.options())
    with opened(store, read_manifest(store, "toy_truth", "train")) as stream:
        assert read(stream) == reference
