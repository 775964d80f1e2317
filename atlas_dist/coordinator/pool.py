"""Between the coordinator's thread and the workers' calls: a mailbox a pool, and the events that come back.

No Ray here, so that it can be tested with threads alone. A *group* is one life of a pool's workers: when they are started again
(node loss, a crash) the new group has another id, and what the old one was doing is lost.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from atlas_dist.coordinator.dispatch import AttemptProgress, Event, Failed, Finished, Lost
from atlas_dist.core.attempts import Assignment, Failure, FailureKind
from atlas_dist.core.schedule import Capacity, Pool
from atlas_dist.core.types import WorkerGroupSpec


@dataclass(frozen=True)
class Lease:
    """What a group gets when it asks for work: a job, or nothing yet, or the word to go home."""

    assignment: Assignment | None = None
    go_home: bool = False


@dataclass(frozen=True)
class Waiting:
    """A pool whose workers are yet to come, or to come back."""

    pool: str
    workers: int
    """How many it asks for."""
    required_workers: int
    """How many it would begin with."""
    since_s: float
    """For how long by now."""
    why: str = ""
    """Why the workers before them went; "" when there were none."""
    fits: int | None = None
    """For how many of them the nodes that are up have room; None = not looked at yet."""


@dataclass
class PoolState:
    """One pool: who sits there, what waits for it, what it is doing."""

    spec: WorkerGroupSpec
    world: int
    """Ranks of the group that sits there; of one that is yet to come, the number that it needs at least."""
    group: str = ""
    waiting: Assignment | None = None
    running: str = ""
    leaving: str = ""
    """Why the group is being sent away to make room for another; "" = it is not."""
    vacant_since: float | None = None
    """When the last of its workers went, or when the pool began to wait for its first; None = somebody sits there."""
    left: str = ""
    """Why the workers before went."""

    @property
    def standing(self) -> str:
        """In words."""
        if not self.group:
            return "waits for workers"
        if self.leaving:
            return f"makes room for other workers: {self.leaving}"
        if self.vacant_since is not None:
            return f"waits for workers: {self.left}"
        return "works" if self.running else "idle"

    @property
    def idle(self) -> bool:
        return bool(self.group) and not self.running and not self.leaving and self.waiting is None


@dataclass
class PoolDispatcher:
    """The coordinator's Dispatcher on one side, the workers' requests on the other. Thread-safe.

    Args:
        worker groups: the pools.
        now: seconds that never run backwards.
    """

    worker_groups: Sequence[WorkerGroupSpec]
    now: Callable[[], float] = time.monotonic
    _pools: dict[str, PoolState] = field(init=False)
    _events: list[Event] = field(default_factory=list, init=False)
    _ended: set[str] = field(default_factory=set, init=False)
    _cancelled: set[str] = field(default_factory=set, init=False)
    _closing: bool = field(default=False, init=False)

    def __post_init__(self) -> None:
        self._pools = {spec.name: PoolState(spec, spec.required_workers, vacant_since=self.now()) for spec in self.worker_groups}
        self._changed = threading.Condition()

    # --- the coordinator's side -------------------------------------------------------------------------------------------------

    def capacity(self) -> Capacity:
        """A pool takes one job at a time, none before its workers have come, and none when they are being sent home."""
        with self._changed:
            return Capacity(
                pools=tuple(
                    Pool(
                        name,
                        free=int(state.idle and not self._closing),
                        total=1,
                        ranks=state.world,
                        limit=state.spec.workers,
                        takes=state.spec.takes,
                        standing=state.standing,
                    )
                    for name, state in self._pools.items()
                )
            )

    def start(self, assignment: Assignment) -> None:
        """Leave the job for the pool; its workers pick it up with their next `lease`."""
        with self._changed:
            self._pools[assignment.pool].waiting = assignment
            self._changed.notify_all()

    def poll(self) -> list[Event]:
        """What happened since the last call."""
        with self._changed:
            events, self._events = self._events, []
            return events

    def cancel(self, attempt: str) -> None:
        """Ask the workers to stop the attempt at their next progress report; drop it if it was not begun."""
        with self._changed:
            self._cancelled.add(attempt)
            for state in self._pools.values():
                if state.waiting is not None and state.waiting.attempt == attempt:
                    state.waiting = None
                    self._end(Lost(attempt, "cancelled before it began"))

    def leave(self, pool: str, group: str, reason: str) -> None:
        """Send `group` away, if it is the one that sits there: its job saves a checkpoint at its next report, and another group
        comes in its place."""
        with self._changed:
            state = self._pools[pool]
            if state.group == group:
                state.leaving = reason
                self._changed.notify_all()

    def comes_back(self, pool: str) -> bool:
        """Whether the pool's group was sent away and the next one is expected."""
        with self._changed:
            return bool(self._pools[pool].leaving) and not self._closing

    def waiting(self) -> tuple[Waiting, ...]:
        """The pools that have no workers now."""
        with self._changed:
            return tuple(
                Waiting(name, state.spec.workers, state.spec.required_workers, self.now() - state.vacant_since, state.left)
                for name, state in self._pools.items()
                if state.vacant_since is not None and not self._closing
            )

    def under_way(self) -> list[str]:
        """The attempts that a group is at now."""
        with self._changed:
            return [state.running for state in self._pools.values() if state.running and state.vacant_since is None]

    def vacated(self, pool: str, group: str, reason: str) -> None:
        """The place that `group` worked in is gone: whoever looks is told that the pool waits. What it was doing is lost when the
        next group comes, as ever: its own last word may be on its way."""
        with self._changed:
            state = self._pools[pool]
            if state.group == group and state.vacant_since is None:
                state.vacant_since, state.left = self.now(), reason

    def close(self) -> None:
        """Send every group home, and stop what runs at its next report (a checkpoint is saved first)."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()

    # --- the workers' side ------------------------------------------------------------------------------------------------------

    def lease(self, pool: str, group: str, wait_s: float, *, world: int = 0) -> Lease:
        """A job for `group` of `world` ranks (0 = as many as the pool has), waiting at most `wait_s` seconds for one."""
        with self._changed:
            state = self._pools[pool]
            if state.group != group:
                self._replaced(state, "the pool's workers were started again")
                state.group, state.world, state.leaving = group, world or state.spec.workers, ""
            if not state.leaving:
                state.vacant_since, state.left = None, ""
            if not self._closing and not state.leaving and state.waiting is None:
                self._changed.wait(wait_s)
            if self._closing or state.leaving or state.group != group:
                if state.leaving and state.group == group:
                    state.vacant_since, state.left = self.now(), state.leaving
                return Lease(go_home=True)
            if state.waiting is None:
                return Lease()
            assignment, state.waiting = state.waiting, None
            state.running = assignment.attempt
            return Lease(assignment)

    def progress(self, event: AttemptProgress) -> bool:
        """Note where an attempt is; True asks it to save a checkpoint and stop."""
        with self._changed:
            self._events.append(event)
            leaving = any(state.leaving for state in self._pools.values() if state.running == event.attempt)
            return self._closing or leaving or event.attempt in self._cancelled

    def finished(self, attempt: str) -> None:
        """The attempt has published its RESULT."""
        with self._changed:
            self._end(Finished(attempt))

    def failed(self, attempt: str, failure: Failure) -> None:
        """The attempt stopped without a result. The first rank to say so is believed."""
        with self._changed:
            was_cancelled = failure.kind is FailureKind.PREEMPTED and attempt in self._cancelled
            why = next((state.leaving for state in self._pools.values() if state.running == attempt), "")
            if why and failure.kind is FailureKind.PREEMPTED:
                failure = replace(failure, reason=f"{why}: {failure.reason}")
            self._end(Lost(attempt, failure.reason) if was_cancelled else Failed(attempt, failure))

    def gone(self, pool: str, reason: str) -> None:
        """The whole pool ended: its job is lost, and it has no room until a new group comes."""
        with self._changed:
            state = self._pools[pool]
            self._replaced(state, reason)
            state.group, state.world = "", state.spec.required_workers
            state.vacant_since, state.left = self.now(), reason

    def _replaced(self, state: PoolState, reason: str) -> None:
        if state.running:
            self._end(Lost(state.running, reason))

    def _end(self, event: Finished | Failed | Lost) -> None:
        """Record the end of an attempt once, and free its slot."""
        for state in self._pools.values():
            if state.running == event.attempt:
                state.running = ""
        if event.attempt not in self._ended:
            self._ended.add(event.attempt)
            self._events.append(event)
