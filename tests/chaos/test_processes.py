"""Real processes, really killed: SIGKILL at every step of the protocol, on a folder and on S3; two coordinators at once under
SIGKILL and SIGSTOP with a spoiling proxy between them and the store. Judged by the simulation's own judge."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from atlas_dist.failpoints import POINTS
from atlas_dist.store import open_store
from atlas_dist.store.objects import ObjectStore
from tests.chaos import node
from tests.chaos.judge import judge, ledger_of, objects_of
from tests.chaos.plans import small_plan
from tests.faults.proxy import Fault, FaultProxy, Kind
from tests.faults.servers import Server, moto

JOBS = len(small_plan(1).jobs)
ON_S3 = ("log.append.after", "dispatch.after_start", "publish.before_result", "commit.before_append", "commit.before_pointer")


def start(url: str, run: str, *options: str, **environment: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "tests.chaos.node", url, run, *options]
    return subprocess.Popen(command, env={**os.environ, **environment}, stdout=subprocess.PIPE, text=True, cwd=Path.cwd())


def acknowledged(output: str, run: str) -> list[tuple[str, str, str]]:
    """The commits that a process announced."""
    lines = [json.loads(line) for line in output.splitlines() if line.endswith("}")]
    return [(run, line["job"], "process") for line in lines if line["event"] in ("commit", "adopt")]


def kill_then_recover(url: str, store: ObjectStore, point: str, *options: str) -> None:
    """Invariants: acknowledged commits survive, the ledger is unchanged, and the next process completes the run."""
    if point.startswith("adopt"):
        assert node.main([url, "other", *options]) == 0
    process = start(url, "run", *options, ATLAS_FAILPOINT=point)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == -signal.SIGKILL, f"{point} was never passed: {output}"
    before = objects_of(store)
    assert node.main([url, "run", *options]) == 0
    after = objects_of(store)
    old = ledger_of(before, "run")
    assert {key: after[key] for key in old} == old
    runs = {"run": JOBS, "other": JOBS} if point.startswith("adopt") else {"run": JOBS}
    judge(store, runs, acknowledged(output, "run"))


@pytest.mark.parametrize("point", POINTS)
def test_a_kill_at_any_step_loses_nothing_on_a_folder(point: str, tmp_path: Path) -> None:
    kill_then_recover(str(tmp_path), open_store(str(tmp_path)), point)


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with moto() as running:
        yield running


@pytest.mark.parametrize("point", ON_S3)
def test_a_kill_at_any_step_loses_nothing_on_s3(point: str, server: Server) -> None:
    url = server.url(uuid.uuid4().hex)
    kill_then_recover(url, open_store(url, options=server.options()), point, "--endpoint", server.endpoint, "--ttl", "1.5")


def spoil(proxy: FaultProxy, rate: float) -> None:
    """Every kind of fault now and then, on any request."""
    for kind, method in (
        (Kind.RESET_AFTER_APPLY, "PUT"),
        (Kind.ERROR_AFTER_APPLY, "PUT"),
        (Kind.SLOW_DOWN, ""),
        (Kind.CLOSE_EARLY, ""),
        (Kind.TRUNCATE, "GET"),
        (Kind.FLIP, "GET"),
        (Kind.CUT_404, "GET"),
    ):
        # Bit flips only where there is a hash to notice them: in the files of attempts.
        path = r"/attempts/.*(safetensors|trace|scores)" if kind is Kind.FLIP else ""
        proxy.add(Fault(kind, method=method, path=path, times=-1, chance=rate, seconds=3.0))


def chaos(url: str, store: ObjectStore, seed: int, *options: str, blows: int = 4) -> None:
    """Two coordinators for one run: one is killed, then the other; then each is stopped for longer than the TTL."""
    rng = random.Random(seed)
    arguments = ("--ttl", "1.0", "--tasks", "2", "--pace", "0.2", *options)
    running = [start(url, "run", *arguments) for _ in range(2)]
    output = ""
    for blow in range(blows):
        time.sleep(rng.uniform(0.5, 1.5))
        victim = running[blow % 2]
        if blow < blows // 2:
            victim.kill()
        else:
            victim.send_signal(signal.SIGSTOP)
            time.sleep(rng.uniform(1.2, 2.0))
            victim.send_signal(signal.SIGCONT)
        for i, process in enumerate(running):
            if (process is victim and blow < blows // 2) or process.poll() is not None:
                output += process.communicate()[0]
                running[i] = start(url, "run", *arguments)
    for process in running:
        output += process.communicate(timeout=120)[0]
        assert process.returncode in (0, 6, 7), output
    assert node.main([url, "run", *arguments]) == 0
    judge(store, {"run": len(small_plan(2).jobs)}, acknowledged(output, "run"))


def test_two_coordinators_under_fire_on_a_folder(tmp_path: Path) -> None:
    """Invariants: all of them, with SIGKILL and SIGSTOP at random moments."""
    chaos(str(tmp_path), open_store(str(tmp_path)), 1)


def test_two_coordinators_under_fire_on_s3_behind_a_spoiling_proxy(server: Server) -> None:
    url = server.url(uuid.uuid4().hex)
    with FaultProxy(server.endpoint, seed=2) as proxy:
        spoil(proxy, 0.01)
        chaos(url, open_store(url, options=server.options()), 2, "--endpoint", proxy.endpoint)
        assert proxy.applied
    print({kind.name: count for kind, count in proxy.applied.items()})
