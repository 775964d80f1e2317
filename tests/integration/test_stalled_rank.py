"""A rank that is stopped, and one that loops in a collective: the group stands still, is ended with its stacks kept, and goes on
from its checkpoint. On a real local Ray, with real processes."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from atlas_dist.app.child import Part
from atlas_dist.compose import compose_config
from atlas_dist.core.attempts import FailureKind
from atlas_dist.core.records import Commit, Dispatch, Fail
from atlas_dist.runs.stores import open_run_store
from atlas_dist.store.attempt_logs import rank_stacks
from tests.kits.run import TIMEOUT_S, Running, left_by
from tests.kits.stage import RELEASED, pack_toys, toy_config

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(900)]

LOOPS = """
import os, sys, threading, time

def loops_in_a_collective():
    while True:
        time.sleep(0.01)

def patch():
    while not hasattr(sys.modules.get("atlas_dist.train.worker"), "StageWorker"):
        time.sleep(0.05)
    import torch.distributed as dist
    true = dist.all_reduce
    def all_reduce(*args, **options):
        if dist.get_rank() == 1:
            try:
                os.unlink(os.environ["LOOP_ONCE"])
            except FileNotFoundError:
                pass
            else:
                loops_in_a_collective()
        return true(*args, **options)
    dist.all_reduce = all_reduce

if any("default_worker" in word for word in sys.orig_argv):
    threading.Thread(target=patch, daemon=True).start()
"""


def words(folder: Path) -> list[str]:
    pack_toys(toy_config(folder), samples=96)
    short = ["experiment=toy", RELEASED, "sequence.upstream=[toy_shape]", "sequence.downstream=[]", "train.budget.max_steps=60"]
    short += ["train.checkpoint_every=2", "train.log_every=1", "train.workers=2", "cluster.stall_s=20"]
    return [*short, f"store.url={folder}/store", f"shards.url={folder}/shards", f"report={folder}/report"]


def saved(store: Path) -> None:
    """Wait for the first checkpoint."""
    until = time.monotonic() + TIMEOUT_S
    while not list(store.glob("runs/*/attempts/*/checkpoints/*/DONE")):
        assert time.monotonic() < until, "no checkpoint"
        time.sleep(0.05)


def goes_on_after(folder: Path, mine: list[str], hurt: Callable[[Running], None], env: dict[str, str]) -> tuple[Fail, list[str]]:
    """Hurt the run in the middle of its first stage: how that attempt failed, and each rank's stacks."""
    run = Running(mine, folder / "run.txt", env=env)
    try:
        saved(folder / "store")
        hurt(run)
        run.ends_with(0)
    finally:
        run.sweep()
    left = left_by(mine)
    stalled = [entry.record for entry in left.entries if isinstance(entry.record, Fail)]
    assert [record.kind for record in stalled] == [FailureKind.STALLED], run.text()
    (failed,) = stalled
    again = [e.record for e in left.entries if isinstance(e.record, Dispatch) and e.record.job == failed.job][-1]
    assert again.resume_from.startswith(next(a.prefix for a in left.state.job(failed.job).attempts)), "from its own checkpoint"
    assert sorted(e.record.job for e in left.entries if isinstance(e.record, Commit)) == sorted(left.plan.jobs), "each once"
    config = compose_config(mine)
    store = open_run_store(config)
    stacks = [store.get(rank_stacks(config.run, failed.attempt, rank)).decode() for rank in range(2)]
    return failed, stacks


def test_a_rank_that_is_stopped(tmp_path: Path) -> None:
    def stop(run: Running) -> None:
        os.kill(run.parts(Part.WORKER)[0], signal.SIGSTOP)

    failed, stacks = goes_on_after(tmp_path, words(tmp_path), stop, {})
    assert "its process silent for" in failed.reason
    (stopped,) = [text for text in stacks if "T (stopped)" in text]
    assert "which the others wait for" in stopped
    assert all("train/loop.py" in text for text in stacks), "every rank's stack, the stopped one's too"


def test_a_rank_that_loops_in_a_collective(tmp_path: Path) -> None:
    (tmp_path / "path").mkdir()
    (tmp_path / "path/sitecustomize.py").write_text(LOOPS)
    flag = tmp_path / "loop-once"
    env = {"PYTHONPATH": str(tmp_path / "path"), "LOOP_ONCE": str(flag)}
    failed, stacks = goes_on_after(tmp_path, words(tmp_path), lambda _: flag.touch(), env)
    assert "no rank got further for" in failed.reason
    assert ["loops_in_a_collective" in text for text in stacks] == [False, True]
    assert "all_reduce" in stacks[0], "the other one waits there"
