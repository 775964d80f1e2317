"""A run whose every job is a fact of other runs: they are taken over in the driver's process, and no cluster is started."""

from __future__ import annotations

import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from atlas_dist.config import RunConfig
from atlas_dist.coordinator.coordinator import Coordinator
from atlas_dist.coordinator.dispatch import Event, Lost
from atlas_dist.coordinator.service import Decision, Snapshot
from atlas_dist.coordinator.settings import CoordinatorSettings
from atlas_dist.core.attempts import Assignment
from atlas_dist.core.plan import Plan
from atlas_dist.core.schedule import Capacity, Pool
from atlas_dist.core.state import RunState
from atlas_dist.runs.results import known_results
from atlas_dist.runs.status import CoordinatorRole
from atlas_dist.store.log import threaded
from atlas_dist.store.objects import ObjectStore


@dataclass
class NoWorkers:
    """A Dispatcher with room for results that are there already; whatever is to be computed is lost at once."""

    asked: list[Assignment] = field(default_factory=list)
    """What was to be computed after all: a result turned out to be damaged."""
    _events: list[Event] = field(default_factory=list)

    def capacity(self) -> Capacity:
        return Capacity(pools=(Pool("known", free=int(not self.asked), total=1),))

    def start(self, assignment: Assignment) -> None:
        self.asked.append(assignment)
        self._events.append(Lost(assignment.attempt, "no workers were started: all results seemed to be there"))

    def poll(self) -> list[Event]:
        events, self._events = self._events, []
        return events

    def cancel(self, attempt: str) -> None:
        return


def all_known(plan: Plan, state: RunState, store: ObjectStore) -> bool:
    """Whether nothing of the plan is left to compute, by the names of results alone; whoever takes them over reads every byte."""
    left = [key for key in plan.jobs if state.job(key).committed is None]
    return set(left) <= known_results(store) if left else True


def take_over(config: RunConfig, plan: Plan, spec: Mapping[str, Any], store: ObjectStore) -> Snapshot | None:
    """Lead the run to its end without workers; None = it needs some after all, or somebody else leads it.

    Raises:
        ConfigError: the run exists with other settings. StoreError, FencedError: as a coordinator ends.
    """
    decisions: list[Decision] = []

    def note(event: str, fields: Mapping[str, Any]) -> None:
        decisions.append(Decision(len(decisions) + 1, time.time(), event, dict(fields)))

    workers = NoWorkers()
    coordinator = Coordinator(
        config.run,
        plan,
        store,
        workers,
        ids=lambda: uuid.uuid4().hex,
        spec=spec,
        log_sink=note,
        settings=CoordinatorSettings(ttl_s=config.cluster.heartbeat_ttl_s),
        read_many=threaded,
    )
    try:
        status = coordinator.open()
        while status.role is CoordinatorRole.LEADER and not status.done and not workers.asked:
            status = coordinator.tick()
    finally:
        coordinator.close()
    if not status.done:
        return None
    return Snapshot(status=status, over=True, error=status.error(), decisions=tuple(decisions))
