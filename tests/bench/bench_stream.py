"""Streams against their peers: the same samples from the same loopback server, one process a reading, medians of interleaved
runs.

    python -m tests.bench.bench_stream                              what is installed here: ours, webdataset + boto3 and + curl
    python -m tests.bench.bench_stream --python PEERS/bin/python    also the peers of requirements-peers.txt, installed in PEERS

Three scenes: `parse` (loopback, to compressed samples), `distant` (30 ms to the first byte, 50 MiB/s a connection, to compressed
samples) and `decode` (loopback, to uint8 batches with the same JPEG decoder and two decoding threads or workers). CPU is user +
system time of the reader and its children. The limits at the end say what the machine could do at all. A peer that is missing is
skipped and named.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from atlas_dist.core.manifest import PART_BYTES, ShardManifest
from atlas_dist.core.types import TaskKind
from atlas_dist.data.crc import crc32c
from atlas_dist.data.manifest import write_manifest
from atlas_dist.data.sample import RawSample, dump_json
from atlas_dist.data.shardfile import PackedSample, write_shard
from atlas_dist.store import open_store

ROOT = Path(__file__).parents[2]
PEERS = ("webdataset_boto3", "webdataset_curl", "webdataset_awscli", "mosaicml", "litdata")
SCENES = {
    "parse": ("parse", {}, ("atlas", *PEERS)),
    "distant": ("parse", {"--first-byte": "0.03", "--rate": str(50 << 20)}, ("atlas16", "webdataset_boto3", "litdata")),
    "decode": ("decode", {}, ("atlas", "webdataset_boto3", "mosaicml", "litdata")),
}
TARGETS = {
    ("parse", "webdataset_boto3"): 3.0,
    ("parse", "webdataset_curl"): 2.5,
    ("parse", "webdataset_awscli"): 10.0,
    ("parse", "mosaicml"): 4.0,
    ("parse", "litdata"): 1.3,
    ("distant", "webdataset_boto3"): 6.0,
    ("distant", "litdata"): 1.4,
    ("decode", "webdataset_boto3"): 1.3,
    ("decode", "litdata"): 1.4,
    ("decode", "mosaicml"): 2.3,
}


def make_data(folder: Path, shards: int, shard_bytes: int) -> ShardManifest:
    """Tars of 256 x 256 JPEGs of about 30 KB (smooth noise, 64 different ones) with their manifest."""
    draw = np.random.default_rng(0)
    pictures = []
    for _ in range(64):
        coarse = Image.fromarray(draw.integers(0, 256, (64, 64, 3), np.uint8)).resize((256, 256), Image.Resampling.BICUBIC)
        fine = np.clip(np.asarray(coarse, np.int16) + draw.integers(-12, 13, (256, 256, 3)), 0, 255).astype(np.uint8)
        out = io.BytesIO()
        Image.fromarray(fine).save(out, "JPEG", quality=85)
        pictures.append(out.getvalue())
    each = shard_bytes // (len(pictures[0]) + 2048)
    (folder / "wds/train").mkdir(parents=True)
    infos = []
    for shard in range(shards):
        samples = [
            PackedSample(
                f"{shard * each + i:09d}",
                (("jpg", pictures[i % 64]), ("json", dump_json(RawSample(str(i), (("a picture",),), label=i % 10)))),
                i % 10,
            )
            for i in range(each)
        ]
        name = f"{shard:06d}.tar"
        infos.append(write_shard(folder / "wds/train" / name, name, samples, PART_BYTES))
    manifest = ShardManifest("wds", "train", TaskKind.SINGLE, 1, tuple("0123456789"), tuple(infos))
    write_manifest(open_store(str(folder)), manifest)
    return manifest


@contextlib.contextmanager
def served(folder: Path, options: dict[str, str]) -> Iterator[str]:
    """The endpoint of a server process for `folder`."""
    command = [sys.executable, "-m", "tests.bench.file_server", str(folder), *(part for pair in options.items() for part in pair)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT)
    try:
        assert process.stdout is not None
        yield f"http://127.0.0.1:{process.stdout.readline().strip()}"
    finally:
        process.terminate()
        process.wait()


def reading(python: str, reader: str, mode: str, folder: Path, endpoint: str) -> dict[str, float]:
    """One run of a reader. Raises RuntimeError with its last line when it fails."""
    command = [python, "-m", "tests.bench.stream_readers", reader, mode, str(folder.resolve()), endpoint]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, cwd=ROOT)
    lines = done.stdout.strip().splitlines()
    if done.returncode or (mode != "write" and not lines):
        raise RuntimeError((done.stderr.strip().splitlines() or ["no output"])[-1][:160])
    result: dict[str, float] = json.loads(lines[-1]) if mode != "write" else {}
    return result


def python_for(reader: str, peers: str) -> str:
    return peers if reader in ("mosaicml", "litdata", "webdataset_awscli") else sys.executable


def run_scene(name: str, folder: Path, manifest: ShardManifest, peers: str, runs: int) -> None:
    """Interleave the readers, print the medians and the ratios to ours."""
    mode, options, readers = SCENES[name]
    results: dict[str, list[dict[str, float]]] = {}
    skipped: dict[str, str] = {}
    with served(folder, options) as endpoint:
        for turn in range(runs + 1):  # the first turn warms caches and is not counted
            for reader in readers:
                if reader in skipped:
                    continue
                try:
                    result = reading(python_for(reader, peers), reader, mode, folder, endpoint)
                except (RuntimeError, subprocess.TimeoutExpired) as error:
                    skipped[reader] = str(error)
                    continue
                if result["samples"] != manifest.samples:
                    skipped[reader] = f"it saw {result['samples']:.0f} of {manifest.samples} samples"
                elif turn:
                    results.setdefault(reader, []).append(result)
    ours = readers[0]
    mib = manifest.size / 2**20
    print(f"\n{name}: {mib:.0f} MiB, {manifest.samples} samples, median of {runs}")
    print(f"  {'reader':18} {'s':>7} {'MiB/s':>7} {'samples/s':>10} {'CPU ms/MiB':>11} {'ours is':>9} {'asked':>6}")
    for reader in readers:
        if reader not in results:
            print(f"  {reader:18} skipped: {skipped.get(reader, 'no result')}")
            continue
        seconds = statistics.median(r["seconds"] for r in results[reader])
        cpu = statistics.median(r["cpu"] for r in results[reader]) / mib * 1e3
        ratio = seconds / statistics.median(r["seconds"] for r in results[ours])
        asked = TARGETS.get((name, reader))
        print(
            f"  {reader:18} {seconds:7.2f} {mib / seconds:7.0f} {manifest.samples / seconds:10.0f} {cpu:11.2f} "
            + ("" if reader == ours else f"{ratio:8.1f}x {f'{asked}x' if asked else '':>6}")
        )


def limits() -> None:
    """What memory and sockets allow in one process here, MiB/s."""
    block = np.ones(64 << 20, np.uint8)
    target = np.empty_like(block)
    target[:] = block

    def rate(work: object, mib: int) -> float:
        begin = time.perf_counter()
        work()  # type: ignore[operator]
        return mib / (time.perf_counter() - begin)

    memcpy = statistics.median(rate(lambda: np.copyto(target, block), 64) for _ in range(5))
    crc = statistics.median(rate(lambda: crc32c(block.data), 64) for _ in range(5))
    left, right = socket.socketpair()
    left_tcp = socket.create_server(("127.0.0.1", 0))
    sender = socket.create_connection(left_tcp.getsockname())
    receiver, _ = left_tcp.accept()

    def received() -> None:
        feeding = threading.Thread(target=lambda: [sender.sendall(block) for _ in range(8)])
        feeding.start()
        view, got = memoryview(target), 0
        while got < 8 * len(block):
            got += receiver.recv_into(view)
        feeding.join()

    tcp = statistics.median(rate(received, 512) for _ in range(5))
    for each in (left, right, left_tcp, sender, receiver):
        each.close()
    print(f"\nlimits, one process: memcpy {memcpy:.0f} MiB/s, CRC32C {crc:.0f} MiB/s, loopback TCP recv_into {tcp:.0f} MiB/s")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--python", default=sys.executable, help="interpreter that has the peers of requirements-peers.txt")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--shards", type=int, default=12)
    parser.add_argument("--decode-shards", type=int, default=3)
    parser.add_argument("--scenes", nargs="*", choices=SCENES, default=list(SCENES))
    given = parser.parse_args()
    base = Path(tempfile.mkdtemp(prefix="atlas-bench-"))
    try:
        for scene in given.scenes:
            count = given.decode_shards if scene == "decode" else given.shards
            folder = base / str(count)
            if not folder.exists():
                manifest = make_data(folder, count, 32 << 20)
                for writer in ("mosaicml", "litdata"):
                    with contextlib.suppress(RuntimeError):  # missing: its reading says so
                        reading(given.python, writer, "write", folder, "")
            run_scene(scene, folder, manifest, given.python, given.runs)
        limits()
    finally:
        shutil.rmtree(base)


if __name__ == "__main__":
    main()
