"""How fast is the coordinator's thinking? `python -m tests.bench.bench_ledger` (add `--takeover` to wait for a real one, 20 s).

Replay of a 10,000-entry ledger from a local folder and (`--s3`) from S3 as SeaweedFS speaks it; one decision with 10,000 jobs in
the plan; the time from SIGKILL of a leader to the election of its follower with the default TTL of 15 s.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from atlas_dist.core.attempts import Blob
from atlas_dist.core.keys import sha256_hex
from atlas_dist.core.ledger import GENESIS, Entry, fold
from atlas_dist.core.plan import Plan
from atlas_dist.core.records import Begin, Commit, Dispatch, Elect, Pause, Record
from atlas_dist.core.schedule import Capacity, Frontier, Pool, next_actions
from atlas_dist.core.state import RunState
from atlas_dist.core.types import JobKind, StageJob, TaskKind, TaskSpec
from atlas_dist.store import open_store
from atlas_dist.store.log import RecordLog, threaded
from atlas_dist.store.objects import ObjectStore
from tests.chaos.fakes import FakeClock, counted_ids
from tests.kits.servers import seaweedfs

CAPACITY = Capacity((Pool("main", 8, 8),))


def wide_plan(jobs: int) -> Plan:
    """Many sequences of a chain with evaluations hanging off it; four parents a job."""
    task = TaskSpec("t", TaskKind.SINGLE, 2, 8, "t", "train", "val", "", "")
    plan: dict[str, StageJob] = {}
    chain: list[str] = []
    for i in range(jobs):
        training = i % 5 == 0
        if i % 500 == 0:
            chain = []
        key = f"{i:032x}"
        kind = JobKind.TRAIN if training else JobKind.EVAL
        plan[key] = StageJob(key, kind, task, "m", 0, tuple(chain[-4:]), priority=0 if training else 1)
        if training:
            chain.append(key)
    return Plan(plan, (), "bench")


def ledger(plan: Plan, entries: int) -> list[bytes]:
    """A true ledger of that length: every job dispatched and committed in order."""
    records: list[Record] = [Begin("bench", "s", "p"), Elect("x")]
    for key in plan.jobs:
        attempt = f"{key}-e1-1"
        prefix = f"runs/bench/attempts/{attempt}"
        records.append(Dispatch(key, attempt, prefix, "main", "its parents are committed"))
        records.append(Commit(key, attempt, prefix, (Blob("adapter.safetensors", 1 << 20, "0" * 64),), {"score": 50.0}))
    written, head = [], GENESIS
    for seq, record in enumerate(records[:entries]):
        written.append(Entry(seq, 1 if seq else 0, "w", f"nonce{seq}", head, 1e9 + seq, record).to_bytes())
        head = sha256_hex(written[-1])
    return written


def fill(store: ObjectStore, entries: list[bytes]) -> None:
    """Put the entries where a log expects them."""
    keys = [f"runs/bench/ledger/{seq:016d}" for seq in range(len(entries))]

    def put(key: str) -> bytes:
        store.put(key, entries[int(key[-16:])])
        return b""

    list(threaded(put, keys))


def replay(store: ObjectStore, read_many: Any) -> tuple[float, float]:
    """Seconds to read, verify and fold the whole ledger: entry by entry, and as a coordinator leaves it, in packs."""
    spent = []
    for _ in range(2):
        began = time.perf_counter()
        log = RecordLog(store, "runs/bench/ledger", writer="w", clock=FakeClock(), new_id=counted_ids(), read_many=read_many)
        state = fold(RunState(), log.read_new())
        spent.append(time.perf_counter() - began)
        assert state.next_seq >= 10_000
        log.append(1, Pause("q", "the append that writes what packs are missing"))
    return spent[0], spent[1]


def median_ms(call: Callable[[], object], times: int = 15) -> float:
    """Median milliseconds of a call."""
    spent = []
    for _ in range(times):
        began = time.perf_counter()
        call()
        spent.append(1000 * (time.perf_counter() - began))
    return statistics.median(spent)


def takeover_s() -> float:
    """Seconds from SIGKILL of the leader to its follower's election, default TTL, real processes on a folder."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "tests.chaos.node", folder, "run", "--ttl", "15", "--pace", "1", "--tasks", "4"]
        leader = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert leader.stdout is not None
        while json.loads(leader.stdout.readline())["event"] != "dispatch":
            pass
        follower = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert follower.stdout is not None
        time.sleep(4)
        leader.kill()
        began = time.perf_counter()
        while json.loads(follower.stdout.readline())["event"] != "elect":
            pass
        spent = time.perf_counter() - began
        follower.kill()
        leader.wait()
        follower.wait()
        return spent


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--takeover", action="store_true")
    parser.add_argument("--s3", action="store_true", help="also from SeaweedFS")
    options = parser.parse_args()
    plan = wide_plan(10_000)
    entries = ledger(plan, 10_000)
    with tempfile.TemporaryDirectory() as folder:
        local = open_store(folder)
        fill(local, entries)
        loose, packed = replay(local, map)
        print(f"replay of 10,000 entries, local folder: {packed:.2f} s in packs, {loose:.2f} s one by one")
    if options.s3:
        with tempfile.TemporaryDirectory() as folder, seaweedfs(Path(folder)) as server:
            store = open_store(server.url("bench"), options=server.options())
            fill(store, entries)
            loose, packed = replay(store, threaded)
            print(f"replay of 10,000 entries, S3 (SeaweedFS here): {packed:.2f} s in packs, {loose:.2f} s one by one")
    state = fold(RunState(), [Entry.from_bytes(data) for data in entries[:5002]])
    frontier = Frontier.of(plan, state)
    print(f"building the frontier of 10,000 jobs: {median_ms(lambda: Frontier.of(plan, state), 5):.1f} ms (once)")
    kept = median_ms(lambda: next_actions(plan, state, CAPACITY, 2e9, frontier=frontier))
    built = median_ms(lambda: next_actions(plan, state, CAPACITY, 2e9), 5)
    print(f"decision with 10,000 jobs, 2,500 of them committed: {kept:.2f} ms with a kept frontier, {built:.1f} ms from nothing")
    last = Entry.from_bytes(entries[5002])
    print(f"folding one more entry: {median_ms(lambda: fold(state, [last])):.2f} ms")
    if options.takeover:
        print(f"takeover after SIGKILL of the leader (TTL 15 s): {takeover_s():.1f} s")


if __name__ == "__main__":
    main()
