"""Run a plan from the driver: cluster up, coordinator and pool started, watched to the end, taken down again.

The driver owns everything and decides nothing. Ctrl-C asks the coordinator to stop: workers save a checkpoint, the ledger notes
it, and the same command goes on from there; a second Ctrl-C does not wait.
"""

from __future__ import annotations

import signal
import threading
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import ray
from ray.exceptions import RayActorError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from atlas_dist.config import RunConfig
from atlas_dist.coordinator.preflight import LOCAL
from atlas_dist.coordinator.ray_actor import CoordinatorActor
from atlas_dist.coordinator.ray_cluster import cluster
from atlas_dist.coordinator.ray_probe import check_cluster_nodes
from atlas_dist.coordinator.ray_runner import PoolRunner
from atlas_dist.coordinator.service import Snapshot
from atlas_dist.core.plan import Plan
from atlas_dist.errors import Paused, TrainingError

POLL_EVERY_S = 0.25
GO_HOME_S = 30.0
"""Seconds that workers have to end after the run is over, before the cluster is left anyway."""

OnSnapshot = Callable[[Snapshot], None]


def drive(config: RunConfig, plan: Plan, spec: Mapping[str, Any], on_snapshot: OnSnapshot) -> Snapshot:
    """Run `plan` until it is complete or stops; `on_snapshot` sees every new snapshot.

    Raises:
        ConfigError: the cluster cannot be reached or can never hold the workers; the run exists with other settings.
        Paused: somebody asked it to stop.
        TrainingError, StoreError, FencedError: as the coordinator ended; TrainingError also when its process was killed.
    """
    with cluster(config.cluster, config.worker_groups):
        _hear_signals()  # after Ray has set its own
        if config.cluster.address != LOCAL:
            check_cluster_nodes(config)
        actor = CoordinatorActor.options(**_on_drivers_node(config.run)).remote(config, plan, spec)  # type: ignore[attr-defined]
        runners = [PoolRunner(config, actor, group) for group in config.worker_groups]
        threads = [threading.Thread(target=runner.run, name=runner.group.name, daemon=True) for runner in runners]
        for thread in threads:
            thread.start()
        told = _Told()
        try:
            last = _follow(actor, runners, on_snapshot, told)
        except KeyboardInterrupt:
            last = _stop(actor, runners, on_snapshot, told)
        except RayActorError as error:
            raise TrainingError(
                f"The coordinator of run {config.run} died: {str(error).splitlines()[0]}",
                fix="Nothing recorded is lost: the same command goes on from there.",
            ) from error
        until = time.monotonic() + GO_HOME_S
        for thread in threads:
            thread.join(max(0.0, until - time.monotonic()))
    if last.error is not None:
        raise last.error
    if last.status is None or not last.status.done:
        raise Paused(f"Run {config.run} was stopped; nothing learnt is lost.", fix="The same command goes on from there.")
    return last


def _on_drivers_node(run: str) -> dict[str, Any]:
    """Where the coordinator lives: on the driver's node, so that no other node's loss can take it (and, on a cloud, with the
    rights of the head and not of the workers). Its name is its own: whoever submits a run twice attaches."""
    node = ray.get_runtime_context().get_node_id()
    strategy = NodeAffinitySchedulingStrategy(node_id=node, soft=False)
    return {"name": f"coordinator-{run}-{uuid.uuid4().hex[:8]}", "scheduling_strategy": strategy}


def _hear_signals() -> None:
    """Ctrl-C and SIGTERM (`ray job stop`, a pod's end) both ask for an orderly stop, also where a shell started us deaf to
    Ctrl-C."""

    def stop(_number: int, _frame: object) -> None:
        raise KeyboardInterrupt

    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGINT, stop)
        signal.signal(signal.SIGTERM, stop)


@dataclass
class _Told:
    """How many decisions the watcher has been told of: none of them twice, also when a stop interrupts the telling."""

    decisions: int = 0


def _follow(actor: Any, runners: Sequence[PoolRunner], on_snapshot: OnSnapshot, told: _Told) -> Snapshot:
    """Look until the coordinator has ended, or the pool can't go on."""
    while True:
        snapshot: Snapshot = ray.get(actor.snapshot.remote(told.decisions))
        told.decisions += len(snapshot.decisions)
        on_snapshot(snapshot)
        if snapshot.over:
            return snapshot
        broken = next((runner.error for runner in runners if runner.error is not None), None)
        if broken is not None:
            ray.get(actor.stop.remote())
            raise broken
        time.sleep(POLL_EVERY_S)


def _stop(actor: Any, runners: Sequence[PoolRunner], on_snapshot: OnSnapshot, told: _Told) -> Snapshot:
    ray.get(actor.stop.remote())
    return _follow(actor, runners, on_snapshot, told)
