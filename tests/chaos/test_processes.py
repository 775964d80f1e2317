"""Real processes, really killed: SIGKILL at every step of the protocol, on a folder and on S3; two coordinators at once under
SIGKILL and SIGSTOP with a spoiling proxy between them and the store. Judged by the simulation's own judge."""

from __future__ import annotations

import signal
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from atlas_dist.failpoints import POINTS
from atlas_dist.store import open_store
from atlas_dist.store.objects import ObjectStore
from tests.chaos import node
from tests.chaos.fire import acknowledged, chaos_on_a_folder, chaos_on_s3, start
from tests.chaos.judge import judge, ledger_of, objects_of
from tests.chaos.plans import small_plan
from tests.kits.servers import Server, moto

JOBS = len(small_plan(1).jobs)
ON_S3 = ("log.append.after", "dispatch.after_start", "publish.before_result", "commit.before_append", "commit.before_pointer")


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


def on_s3(server: Server, point: str) -> None:
    url = server.url(uuid.uuid4().hex)
    kill_then_recover(url, open_store(url, options=server.options()), point, "--endpoint", server.endpoint, "--ttl", "1.5")


@pytest.mark.parametrize("point", ON_S3)
def test_a_kill_at_a_commit_step_loses_nothing_on_s3(point: str, server: Server) -> None:
    on_s3(server, point)


@pytest.mark.slow
@pytest.mark.parametrize("point", [p for p in POINTS if p not in ON_S3 and not p.startswith("local.")])
def test_a_kill_at_any_other_step_loses_nothing_on_s3(point: str, server: Server) -> None:
    on_s3(server, point)


def test_two_coordinators_under_fire_on_a_folder() -> None:
    """Invariants: all of them, with SIGKILL and SIGSTOP at random moments."""
    assert chaos_on_a_folder(1)["elections"] > 1


def test_two_coordinators_under_fire_on_s3_behind_a_spoiling_proxy(server: Server) -> None:
    counted = chaos_on_s3(server, 2)
    assert any(kind.startswith("proxy") for kind in counted)
