"""Pools of different sizes on a cluster of several nodes (Ray's own, on this machine), told apart by their nodes' labels; and an
elastic pool that loses a node, goes on smaller and grows again."""

from __future__ import annotations

import time
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load

from atlas_dist.compose import compose_config
from atlas_dist.core.attempts import FailureKind
from atlas_dist.core.records import Commit, Dispatch, Fail
from atlas_dist.core.result_files import ADAPTER_FILE
from atlas_dist.core.types import JobKind
from atlas_dist.runs.stores import open_run_store
from atlas_dist.store import artifacts
from atlas_dist.store.curves import TRAIN, CurveReader
from tests.kits.run import TIMEOUT_S, Left, Running, left_by
from tests.kits.stage import RELEASED, pack_toys, toy_config

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(1800)]

SHORT = [
    "experiment=toy",
    RELEASED,
    "sequence.upstream=[toy_shape,toy_kin]",
    "sequence.downstream=[]",
    "train.checkpoint_every=2",
]
SHORT += ["train.log_every=1"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("pools")
    pack_toys(toy_config(path), samples=96)
    return path


@pytest.fixture
def cluster() -> Iterator[Any]:
    """A head without room for workers; nodes are added by the tests."""
    from ray.cluster_utils import Cluster

    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    yield made
    made.shutdown()


def words(folder: Path, store: str, *more: str) -> list[str]:
    return [*SHORT, f"store.url={folder}/{store}", f"shards.url={folder}/shards", f"report={folder}/report-{store}", *more]


def worlds(left: Left) -> dict[JobKind, set[int]]:
    """How many ranks did the jobs of each kind."""
    found: dict[JobKind, set[int]] = {kind: set() for kind in JobKind}
    for entry in left.entries:
        if isinstance(entry.record, Commit):
            found[left.plan.jobs[entry.record.job].kind].add(entry.record.metrics["world"])
    return found


def test_a_big_pool_learns_while_a_small_one_scores_the_same(folder: Path, cluster: Any) -> None:
    """Learning by two, scoring by one; the hashes are those of one pool of two: predictions do not depend on who scores."""
    short = "train.budget.max_steps=8"
    plain = words(folder, "one-pool", short)
    Running(plain, folder / "one-pool.txt").ends_with(0)

    cluster.add_node(num_cpus=2, labels={"size": "big"})
    cluster.add_node(num_cpus=1, labels={"size": "small"})
    pools = "cluster.pools={big:{workers:2,takes:[upstream],labels:{size:big}},"
    pools += "small:{workers:1,takes:[evaluation],labels:{size:small}}}"
    mine = words(folder, "two-sizes", short, pools, f"cluster.address={cluster.address}")
    run = Running(mine, folder / "two-sizes.txt")
    run.ends_with(0)
    assert "on 2 + 1 workers" in run.text()

    left = left_by(mine)
    assert worlds(left) == {JobKind.TRAIN: {2}, JobKind.EVAL: {1}}
    records = [entry.record for entry in left.entries if isinstance(entry.record, Dispatch)]
    assert {(left.plan.jobs[r.job].kind, r.pool) for r in records} == {(JobKind.TRAIN, "big"), (JobKind.EVAL, "small")}
    assert left.hashes() == left_by(plain).hashes()


def test_an_elastic_pool_goes_on_smaller_and_grows_again(folder: Path, cluster: Any) -> None:
    """Two nodes of one worker each; one is lost in the middle of a stage: one worker goes on, and two when a node comes back."""
    long = ["train.budget.max_steps=600", "sequence.upstream=[toy_shape]"]
    for _ in range(2):
        cluster.add_node(num_cpus=1)
    elastic = ["train.min_workers=1", "cluster.grow_every_s=3", f"cluster.address={cluster.address}"]
    mine = words(folder, "elastic", *long, *elastic)
    run = Running(mine, folder / "elastic.txt")
    saved(folder / "elastic")
    began = time.monotonic()
    cluster.remove_node(next(iter(cluster.worker_nodes)), allow_graceful=False)
    run.wait_for("by 1 worker")
    print(f"smaller after {time.monotonic() - began:.0f} s")
    cluster.add_node(num_cpus=1)
    began = time.monotonic()
    run.wait_for("attempt 3")
    print(f"grown after {time.monotonic() - began:.0f} s")
    run.ends_with(0)

    left = left_by(mine)
    done = [entry.record for entry in left.entries if isinstance(entry.record, Commit)]
    assert sorted(record.job for record in done) == sorted(left.plan.jobs), "each once"
    resumed = [entry.record.resume_from for entry in left.entries if isinstance(entry.record, Dispatch)]
    assert sum(bool(prefix) for prefix in resumed) == 2, "each further attempt went on from a checkpoint"
    (stage,) = [record for record in done if left.plan.jobs[record.job].kind is JobKind.TRAIN]
    points = CurveReader(open_run_store(compose_config(mine))).points(stage.prefix)
    assert [size for size, _ in groupby(p.values["workers"] for p in points if p.split == TRAIN)] == [2, 1, 2]
    calm = words(folder, "calm", *long)
    Running(calm, folder / "calm.txt").ends_with(0)
    undisturbed = left_by(calm)
    for job in left.plan.jobs.values():
        if job.kind is JobKind.TRAIN:
            ours, theirs = (adapter(one, where, job.key) for one, where in ((left, mine), (undisturbed, calm)))
            for name, tensor in ours.items():
                torch.testing.assert_close(tensor, theirs[name], atol=2e-3, rtol=2e-2, msg=name)


def test_a_node_that_is_drained_costs_no_step(folder: Path, cluster: Any) -> None:
    """What Ray is told when a spot node is reclaimed or a pod is stopped: the group saves a checkpoint at its next report, and
    goes on where there is room."""
    long = ["train.budget.max_steps=600", "sequence.upstream=[toy_shape]", "train.checkpoint_every=500"]
    first, _ = (cluster.add_node(num_cpus=1) for _ in range(2))
    mine = words(folder, "drained", *long, f"cluster.address={cluster.address}")
    run = Running(mine, folder / "drained.txt")
    run.wait_for("dispatch order0-seed0/1 toy_shape stage2")
    cluster.add_node(num_cpus=1)
    drain(cluster.address, first.node_id)
    began = time.monotonic()
    run.wait_for("is being drained: Paused: Stopped at step")
    print(f"stopped {time.monotonic() - began:.0f} s after the notice")
    run.ends_with(0)
    left = left_by(mine)
    (failed,) = [entry.record for entry in left.entries if isinstance(entry.record, Fail)]
    assert failed.kind is FailureKind.PREEMPTED
    stage = left.state.job(failed.job).committed
    assert stage is not None
    assert stage.metrics["resumed_at"] == failed.step > 0, "not one step was lost"


def saved(store: Path) -> None:
    """Wait for the first checkpoint of a run."""
    until = time.monotonic() + TIMEOUT_S
    while not list(store.glob("runs/*/attempts/*/checkpoints/*/DONE")):
        assert time.monotonic() < until, "no checkpoint"
        time.sleep(0.1)


def drain(address: str, node: str) -> None:
    """Tell Ray that the node goes, as the autoscaler and a node's own SIGTERM handler do."""
    from ray._raylet import GcsClient
    from ray.core.generated import autoscaler_pb2

    deadline_ms = int(time.time() * 1000) + 600_000
    reason = autoscaler_pb2.DrainNodeReason.DRAIN_NODE_REASON_PREEMPTION
    accepted, why = GcsClient(address=address).drain_node(node, reason, "reclaimed", deadline_ms)
    assert accepted, why


def adapter(left: Left, where: list[str], key: str) -> dict[str, torch.Tensor]:
    ref = left.state.job(key).committed
    assert ref is not None
    return load(artifacts.load(open_run_store(compose_config(where)), ref, ADAPTER_FILE))
