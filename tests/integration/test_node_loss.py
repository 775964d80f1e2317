"""A cluster of several nodes (Ray's own, on this machine) loses one in the middle of a stage.

Invariants: the run completes once there is room again; every job is committed once; the bank is bit for bit that of an
undisturbed run.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from atlas_dist.core.records import Commit
from tests.kits.run import Running, left_by
from tests.kits.stage import RELEASED, pack_toys, toy_config

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(900)]

SHORT = [
    "experiment=toy",
    RELEASED,
    "sequence.upstream=[toy_shape,toy_kin]",
    "train.budget.max_steps=24",
    "train.checkpoint_every=2",
]


@pytest.fixture
def nodes() -> Iterator[Any]:
    """A head without room for workers, and two nodes with room for one each."""
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    for _ in range(2):
        cluster.add_node(num_cpus=1)
    yield cluster
    cluster.shutdown()


def test_the_loss_of_a_node_costs_time_and_nothing_else(tmp_path: Path, nodes: Any) -> None:
    pack_toys(toy_config(tmp_path), samples=96)
    places = [*SHORT, f"shards.url={tmp_path}/shards"]
    calm = [*places, f"store.url={tmp_path}/calm", f"report={tmp_path}/calm-report"]
    Running(calm, tmp_path / "calm.txt").ends_with(0)

    mine = [*places, f"store.url={tmp_path}/store", f"report={tmp_path}/report", f"cluster.address={nodes.address}"]
    run = Running(mine, tmp_path / "run.txt")
    run.wait_for("dispatch order0-seed0/2 toy_kin stage2")
    lost = next(iter(nodes.worker_nodes))
    nodes.remove_node(lost, allow_graceful=False)
    nodes.add_node(num_cpus=1)
    run.ends_with(0)

    left = left_by(mine)
    commits = [e.record.job for e in left.entries if isinstance(e.record, Commit)]
    assert sorted(commits) == sorted(left.plan.jobs)
    assert left.hashes() == left_by(calm).hashes()
