"""One long-lived TorchTrainer a pool, kept alive by the driver until the coordinator sends it home.

The driver owns the actor and the trainers; nothing is detached, so `ray job stop` and Ctrl-C free everything. What must survive
is in the ledger. A fresh `fit()` costs 16 to 23 s, the next job of a pool a tenth of a second: pools live as long as the run.
"""

from __future__ import annotations

import os
import sys
import uuid
from collections.abc import Collection
from dataclasses import dataclass
from tempfile import mkdtemp
from typing import Any

import ray
from ray.train import FailureConfig, ScalingConfig
from ray.train import RunConfig as RayRunConfig
from ray.train.torch import TorchConfig, TorchTrainer
from ray.util.placement_group import (
    PlacementGroup,
    placement_group_table,
    remove_placement_group,
)

from atlas_dist.config import Isolation, RunConfig
from atlas_dist.coordinator.ray_worker import pool_main
from atlas_dist.core.types import WorkerGroupSpec
from atlas_dist.errors import AtlasError, TrainingError

FIT_TRIES = 5
"""Times a pool's trainer is started again after its controller died; restarts of workers alone are Ray Train's and not
counted."""
COLLECTIVE_S = 300
"""Seconds that a rank waits for the others in a collective before the group counts as broken."""


UNNEEDED_CALLBACKS = ("DatasetsCallback", "PlacementGroupCleanerCallback")
"""Helpers of Ray Train that a pool has no use for, each a process that takes two seconds of a core to start: there are no Ray
Data sets, and `_remove_placement_groups` frees what a controller left."""


class PoolTrainer(TorchTrainer):  # type: ignore[misc]
    """Ray Train's, without these helpers. It asks its trainers for them by this name from 2.55, the oldest that we take, on;
    where it no longer does, they are started again."""

    def _create_default_callbacks(self) -> list[Any]:
        return [callback for callback in super()._create_default_callbacks() if type(callback).__name__ not in UNNEEDED_CALLBACKS]


@dataclass
class PoolRunner:
    """Keeps a pool of workers alive until the coordinator sends it home; runs in a thread of the driver."""

    config: RunConfig
    actor: Any
    group: WorkerGroupSpec
    error: BaseException | None = None

    def run(self) -> None:
        """Start trainers until the run is over."""
        try:
            for attempt in range(FIT_TRIES):
                if self._serve(attempt):
                    return
                if ray.get(self.actor.snapshot.remote()).over:
                    return
            raise TrainingError(
                f"The workers' controller died {FIT_TRIES} times.", fix="Ray's logs, and `atlas-dist logs --attempt ID`, say why."
            )
        except BaseException as error:  # handed to the main thread, which raises it
            self.error = error

    def _serve(self, attempt: int) -> bool:
        """One trainer after the other: a group is sent away from a node that is about to go, and with isolation per_job after
        each job. False when a controller died."""
        try:
            while True:
                self._trainer(attempt).fit()
                again = self.config.train.isolation is Isolation.PER_JOB or ray.get(self.actor.comes_back.remote(self.group.name))
                if not again or ray.get(self.actor.snapshot.remote()).over:
                    return True
        except AtlasError:
            raise
        except Exception as error:  # Ray's own errors have no common base worth naming
            taken = ray.get(self.actor.pool_gone.remote(self.group.name, f"the trainer ended: {type(error).__name__}"))
            if os.environ.get("ATLAS_DEBUG"):
                print(error, file=sys.stderr)
            _remove_placement_groups(taken)
            return False

    def _trainer(self, attempt: int) -> PoolTrainer:
        config, cluster_config, group = self.config, self.config.cluster, self.group
        resources = {"CPU": cluster_config.cpus_per_worker}
        gpus = cluster_config.gpus
        if gpus:
            resources["GPU"] = gpus
        return PoolTrainer(
            pool_main,
            train_loop_config={"config": config, "actor": self.actor, "pool": group.name},
            scaling_config=ScalingConfig(
                num_workers=(group.min_workers, group.workers) if 0 < group.min_workers < group.workers else group.workers,
                use_gpu=bool(gpus),
                resources_per_worker=resources,
                label_selector=dict(group.labels) or None,
                elastic_resize_monitor_interval_s=cluster_config.grow_every_s,
            ),
            torch_config=TorchConfig(backend="nccl" if gpus else "gloo", timeout_s=COLLECTIVE_S),
            run_config=RayRunConfig(
                name=f"{config.run}-{group.name}-{attempt}-{uuid.uuid4().hex[:8]}",
                storage_path=mkdtemp(prefix="atlas-ray-"),
                failure_config=FailureConfig(max_failures=-1),
            ),
        )


def _remove_placement_groups(taken: Collection[str]) -> None:
    """Remove the placement groups of this driver's job that no other pool lives in.

    A trainer's controller that is killed leaves its group's placement group reserved, and nobody could ever start again. Ray
    Train has an actor that should see to it, but that one can't tell which cluster it is in where a host runs several. The last
    four bytes of a group's id are its job's.
    """
    job = ray.get_runtime_context().get_job_id()
    for key, group in placement_group_table().items():
        if key.endswith(job) and key not in taken and group["state"] != "REMOVED":
            remove_placement_group(PlacementGroup(ray.PlacementGroupID.from_hex(key)))
