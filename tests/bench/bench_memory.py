"""Peak memory of a run's processes: `python -m tests.bench.bench_memory` (some minutes; `--status` for the ledger alone).

A demo worker, the coordinator and the driver of a real run, as the kernel counts them (VmHWM), and `atlas-dist status` on a
ledger of 12,298 records: dispatch and commit of every job of 24 orders under 16 seeds.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path

from atlas_dist.app.child import Part, RunProcess
from atlas_dist.app.composed import compose_run
from atlas_dist.core.attempts import Blob
from atlas_dist.core.keys import sha256_hex
from atlas_dist.core.ledger import GENESIS, Entry
from atlas_dist.core.plan import Plan
from atlas_dist.core.records import Begin, Commit, Dispatch, Elect, Record
from atlas_dist.core.types import JobKind
from atlas_dist.runs import layout
from atlas_dist.store.objects import ObjectStore
from tests.kits.stage import pack_toys


def peak_mb(pid: int) -> int:
    """Most memory that a process has had, in MiB; 0 when it is gone."""
    with suppress(OSError):
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) >> 10
    return 0


def of_a_run(words: list[str], folder: Path) -> dict[str, int]:
    """Kind of process -> the most that one of its kind has had."""
    run = RunProcess([], folder / "run.log", command=words[0]) if words == ["demo"] else RunProcess(words, folder / "run.log")
    peaks = dict.fromkeys((part.value for part in Part), 0)
    try:
        while run.process.poll() is None:
            for part in Part:
                peaks[part.value] = max([peaks[part.value], *map(peak_mb, run.parts(part))])
            time.sleep(1.0)
        if run.process.returncode:
            raise SystemExit(run.text()[-2000:])
    finally:
        run.sweep()
    return peaks


def write(store: ObjectStore, run: str, plan: Plan, spec: dict[str, object]) -> int:
    """A true ledger in which every job is dispatched and committed; how many entries it has."""
    records: list[Record] = [Begin(run, "s", plan.digest, spec), Elect("the run begins")]
    for key, job in plan.jobs.items():
        attempt, prefix = f"{key}-e1-1", f"runs/{run}/attempts/{key}-e1-1"
        blobs = tuple(Blob(name, 1 << 20, "0" * 64) for name in ("adapter.safetensors", "adapter_config.json", "details.json"))
        views = {view.value: {"score": 50.0, "loss": 1.0, "samples": 64, "predictions_sha256": "0" * 64} for view in job.views}
        seconds = {"setup": 0.1, "training": 2.0, "stepping": 1.5, "waiting": 0.1}
        metrics = {"views": views} if job.kind is JobKind.EVAL else {"score": 50.0, "steps": 20, "seconds": seconds}
        records += [
            Dispatch(key, attempt, prefix, "main", "its parents are committed"),
            Commit(key, attempt, prefix, blobs, metrics),
        ]
    head = GENESIS
    for seq, record in enumerate(records):
        data = Entry(seq, int(seq > 0), "w" * 32, f"{seq:032x}", head, 1.7e9 + seq, record).to_bytes()
        head = sha256_hex(data)
        store.put(f"{layout.ledger(run)}/{seq:016d}", data)
    return len(records)


def of_status(folder: Path, seeds: int) -> tuple[int, int, float]:
    """(records, MiB, seconds of processor time) of `atlas-dist status --json`."""
    places = [f"store.url={folder}/store", f"shards.url={folder}/shards"]
    words = ["experiment=orders_toy", f"seeds=[{','.join(map(str, range(seeds)))}]", *places]
    composed = compose_run(*words)
    pack_toys(composed.config, samples=16)
    records = write(composed.store, composed.config.run, composed.plan(), composed.specification())
    done = subprocess.Popen([sys.executable, "-m", "atlas_dist", "status", "--json", *words], stdout=subprocess.DEVNULL)
    _, code, used = os.wait4(done.pid, 0)
    if code:
        raise SystemExit(f"status ended with {code}")
    return records, used.ru_maxrss >> 10, used.ru_utime + used.ru_stime


def main() -> None:
    """Measure, print tables in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--status", action="store_true", help="the ledger alone, no run")
    parser.add_argument("--seeds", type=int, default=16, help="384 jobs a seed")
    parser.add_argument("words", nargs="*", default=["demo"], help="what to run: `demo`, or settings")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="atlas-memory-") as name:
        print("| what | peak MiB |\n|---|---|")
        records, most, spent = of_status(Path(name), options.seeds)
        print(f"| `status` on {records:,} records ({spent:.1f} s of processor time) | {most:,} |", flush=True)
        if not options.status:
            os.chdir(name)
            for part, peak in of_a_run(options.words, Path(name)).items():
                print(f"| {part} | {peak:,} |")


if __name__ == "__main__":
    main()
