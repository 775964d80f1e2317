"""The coordinator as a Ray actor: a thread that decides and records, and the calls of workers and driver."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import ray

from atlas_dist.config import RunConfig
from atlas_dist.coordinator.dispatch import AttemptProgress
from atlas_dist.coordinator.pool import Lease, PoolDispatcher
from atlas_dist.coordinator.preflight_cluster import workers_that_fit
from atlas_dist.coordinator.ray_metrics import RunMetrics
from atlas_dist.coordinator.ray_probe import draining, node_resources, nodes_of, stands
from atlas_dist.coordinator.ray_pulse import GroupEnder
from atlas_dist.coordinator.service import RunService, Snapshot
from atlas_dist.coordinator.set_ups import SetUpFailures
from atlas_dist.coordinator.stall import Process
from atlas_dist.core.attempts import Failure
from atlas_dist.core.plan import Plan
from atlas_dist.logs import set_up
from atlas_dist.pulse import Pulse

log = logging.getLogger(__name__)

LEASE_WAIT_S = 2.0
DRAIN_CHECK_S = 2.0


@ray.remote(num_cpus=0, max_concurrency=32, max_restarts=0)
class CoordinatorActor:
    """The run's coordinator: a thread that decides and records, and the dispatcher that workers ask for jobs."""

    def __init__(self, config: RunConfig, plan: Plan, spec: Mapping[str, Any]) -> None:
        set_up(config.log.format, run=config.run, process="coordinator")
        self.metrics = RunMetrics(config.run)
        self.dispatcher = PoolDispatcher(config.worker_groups)
        self.set_ups = SetUpFailures({group.name: group.workers for group in config.worker_groups})
        self.placements: dict[str, tuple[str, str]] = {}
        """Pool -> its group of workers and the placement group that it lives in."""
        self.config = config
        self.fitting: dict[str, int] = {}
        """Pool that waits -> for how many of its workers there is room."""
        self.service = RunService(config, plan, spec, self.dispatcher)
        self.thread = threading.Thread(target=self.service.run, name="coordinator", daemon=True)
        self.thread.start()
        threading.Thread(target=self._watch_draining, name="drain-watch", daemon=True).start()
        self.stalls = GroupEnder(config, self.dispatcher, self.metrics)
        if config.cluster.stall_s:
            threading.Thread(target=self.stalls.watch, name="stall-watch", daemon=True).start()

    def _watch_draining(self) -> None:
        """Send groups away from nodes that are about to go, so that they save a checkpoint while they can; see for what the pools
        without workers wait."""
        while True:
            time.sleep(DRAIN_CHECK_S)
            try:
                self._look_for_room()
                going = draining()
                for pool, (group, placement_group) in list(self.placements.items()) if going else ():
                    if going & nodes_of(placement_group):
                        self.dispatcher.leave(pool, group, "a node of the group is being drained")
            except Exception as error:  # the cluster's head may be away for a moment; a notice missed is a node lost, no more
                log.warning("draining nodes could not be asked for: %s", error)

    def _look_for_room(self) -> None:
        for pool, (group, placement_group) in list(self.placements.items()):
            if placement_group and not stands(placement_group):
                self.dispatcher.vacated(pool, group, "a node of the group was lost, or a worker of it")
        waiting = {each.pool: each for each in self.dispatcher.waiting()}
        nodes = node_resources() if waiting else []
        worker_groups = {group.name: group for group in self.config.worker_groups}
        taken = sum(group.workers for name, group in worker_groups.items() if name not in waiting)
        self.fitting = {name: workers_that_fit(nodes, self.config.cluster, worker_groups[name], taken) for name in waiting}

    def lease(self, pool: str, group: str, world: int, placement_group: str) -> Lease:
        """A job for this group of `world` workers, which live in the placement group `placement_group`; waits a little for
        one."""
        self.placements[pool] = (group, placement_group)
        self.set_ups.succeeded(pool)
        return self.dispatcher.lease(pool, group, LEASE_WAIT_S, world=world)

    def set_up_failed(self, pool: str, reason: str, final: bool) -> None:
        """A worker of the pool ended before it could ask for work; `final`: another try would end the same way."""
        log.warning("a worker of pool %s could not be set up: %s", pool, reason)
        error = self.set_ups.failed(pool, reason, final=final)
        if error is not None:
            self.service.give_up(error)

    def progress(self, event: AttemptProgress) -> bool:
        """Note progress; True asks the workers to save and stop."""
        self.metrics.progress(event)
        self.service.note(event)
        return self.dispatcher.progress(event)

    def pulse(self, rank: int, world: int, process: Process, pulse: Pulse) -> None:
        """A rank says where it stands."""
        self.stalls.heard(rank, world, process, pulse)

    def finished(self, attempt: str) -> None:
        """An attempt's RESULT is in the store."""
        self.dispatcher.finished(attempt)

    def failed(self, attempt: str, failure: Failure) -> None:
        """An attempt ended without a result."""
        self.metrics.failed(failure.kind.value)
        self.dispatcher.failed(attempt, failure)

    def pool_gone(self, pool: str, reason: str) -> list[str]:
        """The pool's trainer ended. Returns the placement groups of the others."""
        self.dispatcher.gone(pool, reason)
        self.placements.pop(pool, None)
        return [placement_group for _, placement_group in self.placements.values()]

    def comes_back(self, pool: str) -> bool:
        """Whether the pool's group was sent away for another one to come."""
        return self.dispatcher.comes_back(pool)

    def stop(self) -> None:
        """Checkpoint, send the workers home, stop deciding."""
        self.service.stop()

    def snapshot(self, after: int = 0) -> Snapshot:
        """What a person wants to see."""
        snapshot = self.service.snapshot(after)
        if snapshot.status is not None:
            self.metrics.status(snapshot.status)
        waiting = tuple(replace(each, fits=self.fitting.get(each.pool)) for each in snapshot.waiting)
        return replace(snapshot, waiting=waiting)
