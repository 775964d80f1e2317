"""Run a plan from the driver: cluster up, coordinator and pool started, watched to the end, taken down again.
 The driver owns everything and decides nothing. Ctrl-C asks the coordinator to stop: workers save a checkpoint, the ledger notes
it, and the same command goes on from there; a second Ctrl-C does not wait.
"""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

import ray

from atlas_dist.config import RunConfig
from atlas_dist.coordinator.ray_dispatch import CoordinatorActor, PoolRunner, cluster
from atlas_dist.coordinator.service import Snapshot
from atlas_dist.core.plan import Plan
from atlas_dist.errors import Paused

LOOK_EVERY_S = 0.25
GO_HOME_S = 30.0
"""Seconds that workers have to end after the run is over, before the cluster is left anyway."""

Watch = Callable[[Snapshot], None]


def drive(config: RunConfig, plan: Plan, spec: Mapping[str, Any], watch: Watch) -> Snapshot:
    """Run `plan` until it is complete or stops; `watch` sees every new snapshot.

    Raises:
        ConfigError: the cluster cannot be reached or can never hold the workers; the run exists with other settings.
        Paused: somebody asked it to stop.
        TrainingError, StoreError, FencedError: as the coordinator ended.
    """
    with cluster(config.cluster, config.train.workers):
        _hear_signals()  # after Ray has set its own
        actor = CoordinatorActor.options(  # type: ignore[attr-defined]
            name=f"coordinator-{config.run}"
        ).remote(config, plan, spec)
        runner = PoolRunner(config, actor)
        thread = threading.Thread(target=runner.run, name="pool", daemon=True)
        thread.start()
        try:
            last = _follow(actor, runner, watch)
        except KeyboardInterrupt:
            last = _stop(actor, runner, watch)
        thread.join(GO_HOME_S)
    if last.error is not None:
        raise last.error
    if last.status is None or not last.status.done:
        raise Paused(f"Run {config.run} was stopped; nothing learnt is lost.", fix="The same command goes on from there.")
    return last


def _hear_signals() -> None:
    """Ctrl-C and SIGTERM (`ray job stop`, a pod's end) both ask for an orderly stop, also where a shell started us deaf to
    Ctrl-C."""

    def stop(_number: int, _frame: object) -> None:
        raise KeyboardInterrupt

    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGINT, stop)
        signal.signal(signal.SIGTERM, stop)


def _follow(actor: Any, runner: PoolRunner, watch: Watch) -> Snapshot:
    """Look until the coordinator has ended, or the pool can't go on."""
    seen = 0
    while True:
        snapshot: Snapshot = ray.get(actor.snapshot.remote(seen))
        seen += len(snapshot.decisions)
        watch(snapshot)
        if snapshot.over:
            return snapshot
        if runner.error is not None:
            ray.get(actor.stop.remote())
            raise runner.error
        time.sleep(LOOK_EVERY_S)


def _stop(actor: Any, runner: PoolRunner, watch: Watch) -> Snapshot:
    ray.get(actor.stop.remote())
    return _follow(actor, runner, watch)
