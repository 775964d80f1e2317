"""What a worker of a pool does from its first line to its last, with a coordinator that is made up and no Ray."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from atlas_dist import device
from atlas_dist.config import RunConfig
from atlas_dist.coordinator import ray_worker
from atlas_dist.coordinator.pool import Lease
from atlas_dist.core.attempts import FailureKind
from atlas_dist.train import loop
from atlas_dist.train.engine import join_alone
from atlas_dist.train.worker import GroupBroken
from tests.kits.stage import Bench, pack_toys, toy_config


class Actor:
    """Hands out leases in order; notes what it is told."""

    def __init__(self, leases: list[Lease]) -> None:
        self.leases = leases
        self.told: list[tuple[Any, ...]] = []

    def __getattr__(self, name: str) -> Any:
        class Method:
            def remote(_, *args: Any) -> Any:
                if name == "lease":
                    return self.leases.pop(0)
                self.told.append((name, *args))
                return False

        return Method()


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[RunConfig]:
    config = toy_config(tmp_path, "train.budget.max_steps=2", "cluster.gpus_per_worker=0", "cluster.stall_s=0")
    pack_toys(config)
    monkeypatch.setattr(ray_worker.ray, "get", lambda value: value)
    monkeypatch.setattr(ray_worker.ray, "wait", lambda *_, **__: ([], []))
    monkeypatch.setattr(ray_worker, "get_current_placement_group", lambda: None)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)  # a GPU is there; Ray gave it to somebody else
    join_alone()
    yield config
    device.take(None)
    device.set_arithmetic()
    gc.unfreeze()


def test_it_sets_up_works_and_goes_home_beside_a_gpu_that_is_not_its_own(config: RunConfig) -> None:
    bench = Bench(config)
    job = bench.learn_until(next(job.label for job in bench.plan.jobs.values() if job.stage))
    actor = Actor([Lease(), Lease(bench.assignment(job)), Lease(go_home=True)])
    ray_worker.pool_main({"config": config, "actor": actor, "pool": "main"})
    told = [name for name, *_ in actor.told]
    assert told[-1] == "finished" and "failed" not in told and "set_up_failed" not in told
    assert device.device() == torch.device("cpu")


def test_it_tells_of_a_broken_device_and_ends(config: RunConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: Any) -> Any:
        raise torch.AcceleratorError("CUDA error: an illegal memory access was encountered")

    bench = Bench(config)
    job = bench.learn_until(next(job.label for job in bench.plan.jobs.values() if job.stage))
    monkeypatch.setattr(loop, "_passes", fails)
    actor = Actor([Lease(bench.assignment(job)), Lease(go_home=True)])
    with pytest.raises(GroupBroken):
        ray_worker.pool_main({"config": config, "actor": actor, "pool": "main"})
    assert [(name, failure.kind) for name, _, failure, *_ in actor.told] == [("failed", FailureKind.DEVICE)]
    assert actor.leases, "it asks for no other job: Ray replaces the process"


def test_a_backbone_that_is_not_there_is_told_before_it_ends(config: RunConfig) -> None:
    broken = config.model_copy(update={"backbone": config.backbone.model_copy(update={"source": "/nowhere"})})
    actor = Actor([])
    with pytest.raises(Exception, match="nowhere"):
        ray_worker.pool_main({"config": broken, "actor": actor, "pool": "main"})
    ((name, pool, reason, final),) = actor.told
    assert (name, pool, final) == ("set_up_failed", "main", True)
    assert "/nowhere" in reason
