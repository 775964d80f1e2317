"""Two real coordinators under SIGKILL and SIGSTOP: `python -m tests.chaos.fire --rounds 10` does it many times and counts.

Half of the rounds use a local folder, half S3 (moto) behind the spoiling proxy. Every round is judged by the simulation's judge.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections import Counter
from pathlib import Path

from atlas_dist.store import open_store
from atlas_dist.store.objects import ObjectStore
from tests.chaos import node
from tests.chaos.judge import judge
from tests.chaos.plans import small_plan
from tests.kits.proxy import Fault, FaultProxy, Kind
from tests.kits.servers import Server, moto

SPOILED = (
    (Kind.RESET_AFTER_APPLY, "PUT"),
    (Kind.ERROR_AFTER_APPLY, "PUT"),
    (Kind.DELAY, "PUT"),
    (Kind.SLOW_DOWN, ""),
    (Kind.CLOSE_EARLY, ""),
    (Kind.TRUNCATE, "GET"),
    (Kind.FLIP, "GET"),
    (Kind.CUT_404, "GET"),
)


def start(url: str, run: str, *options: str, **environment: str) -> subprocess.Popen[str]:
    """A coordinator process (tests/chaos/node.py)."""
    command = [sys.executable, "-m", "tests.chaos.node", url, run, *options]
    return subprocess.Popen(command, env={**os.environ, **environment}, stdout=subprocess.PIPE, text=True, cwd=Path.cwd())


def acknowledged(output: str, run: str) -> list[tuple[str, str, str]]:
    """The commits that processes announced before they died."""
    lines = [json.loads(line) for line in output.splitlines() if line.startswith("{") and line.endswith("}")]
    return [(run, line["job"], "process") for line in lines if line["event"] in ("commit", "adopt")]


def spoil(proxy: FaultProxy, rate: float) -> None:
    """Every kind of fault now and then."""
    for kind, method in SPOILED:
        # Bit flips only where there is a hash to notice them: in the files of attempts.
        path = r"/attempts/.*(safetensors|trace|scores)" if kind is Kind.FLIP else ""
        chance = rate * 10 if kind is Kind.FLIP else rate
        proxy.add(Fault(kind, method=method, path=path, times=-1, chance=chance, seconds=2.5))


def ledger_longer_than(store: ObjectStore, length: int, patience_s: float = 60.0) -> int:
    """Wait until the ledger of `run` has grown; returns its length."""
    end = time.monotonic() + patience_s
    while (now := sum(1 for _ in store.list("runs/run/ledger/"))) <= length:
        assert time.monotonic() < end, f"the ledger stayed at {now} records for {patience_s:.0f} s"
        time.sleep(0.05)
    return now


def chaos(url: str, store: ObjectStore, seed: int, *options: str, blows: int = 4) -> Counter[str]:
    """One run, two coordinators: each is killed and started again, then each is stopped for longer than the TTL. Judged."""
    rng = random.Random(seed)
    arguments = ("--ttl", "1.0", "--tasks", "2", "--pace", "0.5", *options)
    running = [start(url, "run", *arguments) for _ in range(2)]
    output, counted, seen = "", Counter[str](), 0
    for blow in range(blows):
        if blow < blows // 2:
            # Not before somebody leads and works, or a slow machine would kill two processes that still import.
            seen = ledger_longer_than(store, seen)
        time.sleep(rng.uniform(0, 0.4) if blow < blows // 2 else rng.uniform(0.5, 1.5))
        victim, fatal = running[blow % 2], blow < blows // 2
        alive = victim.poll() is None
        if fatal:
            victim.kill()
        else:
            victim.send_signal(signal.SIGSTOP)
            time.sleep(rng.uniform(1.2, 2.0))
            victim.send_signal(signal.SIGCONT)
        counted["SIGKILL" if fatal else "SIGSTOP"] += alive
        for i, process in enumerate(running):
            if (process is victim and fatal) or process.poll() is not None:
                output += process.communicate()[0]
                counted["fenced (exit 7)"] += process.returncode == 7
                running[i] = start(url, "run", *arguments)
    for process in running:
        output += process.communicate(timeout=120)[0]
        counted["fenced (exit 7)"] += process.returncode == 7
        assert process.returncode in (0, 6, 7), output
    assert node.main([url, "run", *arguments]) == 0
    view = judge(store, {"run": len(small_plan(2).jobs)}, acknowledged(output, "run")).runs["run"]
    return counted + Counter(elections=view.epoch, commits=len(view.commits))


def chaos_on_a_folder(seed: int) -> Counter[str]:
    """One round on a local folder."""
    with tempfile.TemporaryDirectory() as folder:
        return chaos(folder, open_store(folder), seed)


def chaos_on_s3(server: Server, seed: int) -> Counter[str]:
    """One round on S3 behind a spoiling proxy."""
    url = server.url(uuid.uuid4().hex)
    with FaultProxy(server.endpoint, seed=seed) as proxy:
        spoil(proxy, 0.01)
        counted = chaos(url, open_store(url, options=server.options()), seed, "--endpoint", proxy.endpoint)
        return counted + Counter({f"proxy: {kind.value}": count for kind, count in proxy.applied.items()})


def main() -> None:
    """Many rounds, counted."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=10)
    options = parser.parse_args()
    total: Counter[str] = Counter()
    with moto() as server:
        for seed in range(options.rounds):
            total += chaos_on_s3(server, seed) if seed % 2 else chaos_on_a_folder(seed)
    print(f"{options.rounds} rounds, 0 violations")
    print("\n".join(f"{kind}: {count}" for kind, count in sorted(total.items())))


if __name__ == "__main__":
    main()
