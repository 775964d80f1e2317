"""Between the coordinator's thread and the workers' calls: a mailbox a pool, and the events that come back.

No Ray here, so that it can be tested with threads alone. A *group* is one life of a pool's workers: when they are started again
(node loss, a crash) the new group has another id, and what the old one was doing is lost.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from atlas_dist.coordinator.dispatch import Capacity, Event, Failed, Finished, Lost, Pool, Progress
from atlas_dist.core.types import Assignment, Failure, FailureKind, Gang


@dataclass(frozen=True)
class Lease:
    """What a group gets when it asks for work: a job, or nothing yet, or the word to go home."""

    assignment: Assignment | None = None
    go_home: bool = False


@dataclass
class _Seat:
    """One pool: who sits there, what waits for it, what it is doing."""

    gang: Gang
    world: int
    """Ranks of the group that sits there; of one that is yet to come, the fewest it may have."""
    group: str = ""
    waiting: Assignment | None = None
    running: str = ""
    leaving: str = ""
    """Why the group is being sent away to make room for another; "" = it is not."""

    @property
    def standing(self) -> str:
        """In words."""
        if not self.group:
            return "waits for workers"
        if self.leaving:
            return f"makes room for other workers: {self.leaving}"
        return "works" if self.running else "idle"

    @property
    def idle(self) -> bool:
        return bool(self.group) and not self.running and not self.leaving and self.waiting is None


@dataclass
class PoolDispatcher:
    """The coordinator's Dispatcher on one side, the workers' desk on the other. Thread-safe.

    Args:
        gangs: the pools.
    """

    gangs: Sequence[Gang]
    _seats: dict[str, _Seat] = field(init=False)
    _events: list[Event] = field(default_factory=list, init=False)
    _ended: set[str] = field(default_factory=set, init=False)
    _cancelled: set[str] = field(default_factory=set, init=False)
    _closing: bool = field(default=False, init=False)

    def __post_init__(self) -> None:
        self._seats = {gang.name: _Seat(gang, gang.fewest) for gang in self.gangs}
        self._changed = threading.Condition()

    # --- the coordinator's side -------------------------------------------------------------------------------------------------

    def capacity(self) -> Capacity:
        """A pool takes one job at a time, none before its workers have come, and none when they are being sent home."""
        with self._changed:
            return Capacity(
                pools=tuple(
                    Pool(
                        name,
                        free=int(seat.idle and not self._closing),
                        total=1,
                        gang=seat.world,
                        limit=seat.gang.workers,
                        takes=seat.gang.takes,
                        standing=seat.standing,
                    )
                    for name, seat in self._seats.items()
                )
            )

    def start(self, assignment: Assignment) -> None:
        """Put the job on the pool's desk; its workers pick it up with their next `lease`."""
        with self._changed:
            self._seats[assignment.pool].waiting = assignment
            self._changed.notify_all()

    def poll(self) -> list[Event]:
        """What happened since the last call."""
        with self._changed:
            events, self._events = self._events, []
            return events

    def cancel(self, attempt: str) -> None:
        """Ask the workers to stop the attempt at their next progress report; take it off the desk if it was not begun."""
        with self._changed:
            self._cancelled.add(attempt)
            for seat in self._seats.values():
                if seat.waiting is not None and seat.waiting.attempt == attempt:
                    seat.waiting = None
                    self._end(Lost(attempt, "cancelled before it began"))

    def leave(self, pool: str, group: str, reason: str) -> None:
        """Send `group` away, if it is the one that sits there: its job saves a checkpoint at its next report, and another group
        comes in its place."""
        with self._changed:
            seat = self._seats[pool]
            if seat.group == group:
                seat.leaving = reason
                self._changed.notify_all()

    def comes_back(self, pool: str) -> bool:
        """Whether the pool's group was sent away and the next one is expected."""
        with self._changed:
            return bool(self._seats[pool].leaving) and not self._closing

    def close(self) -> None:
        """Send every group home, and stop what runs at its next report (a checkpoint is saved first)."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()

    # --- the workers' side ------------------------------------------------------------------------------------------------------

    def lease(self, pool: str, group: str, wait_s: float, *, world: int = 0) -> Lease:
        """A job for `group` of `world` ranks (0 = as many as the pool has), waiting at most `wait_s` seconds for one."""
        with self._changed:
            seat = self._seats[pool]
            if seat.group != group:
                self._replaced(seat, "the pool's workers were started again")
                seat.group, seat.world, seat.leaving = group, world or seat.gang.workers, ""
            if not self._closing and not seat.leaving and seat.waiting is None:
                self._changed.wait(wait_s)
            if self._closing or seat.leaving or seat.group != group:
                return Lease(go_home=True)
            if seat.waiting is None:
                return Lease()
            assignment, seat.waiting = seat.waiting, None
            seat.running = assignment.attempt
            return Lease(assignment)

    def progress(self, event: Progress) -> bool:
        """Note where an attempt is; True asks it to save a checkpoint and stop."""
        with self._changed:
            self._events.append(event)
            leaving = any(seat.leaving for seat in self._seats.values() if seat.running == event.attempt)
            return self._closing or leaving or event.attempt in self._cancelled

    def finished(self, attempt: str) -> None:
        """The attempt has published its RESULT."""
        with self._changed:
            self._end(Finished(attempt))

    def failed(self, attempt: str, failure: Failure) -> None:
        """The attempt stopped without a result. The first rank to say so is believed."""
        with self._changed:
            asked = failure.kind is FailureKind.PREEMPTED and attempt in self._cancelled
            why = next((seat.leaving for seat in self._seats.values() if seat.running == attempt), "")
            if why and failure.kind is FailureKind.PREEMPTED:
                failure = replace(failure, reason=f"{why}: {failure.reason}")
            self._end(Lost(attempt, failure.reason) if asked else Failed(attempt, failure))

    def gone(self, pool: str, reason: str) -> None:
        """The whole pool ended: its job is lost, and it has no room until a new group comes."""
        with self._changed:
            seat = self._seats[pool]
            self._replaced(seat, reason)
            seat.group, seat.world = "", seat.gang.fewest

    def _replaced(self, seat: _Seat, reason: str) -> None:
        if seat.running:
            self._end(Lost(seat.running, reason))

    def _end(self, event: Finished | Failed | Lost) -> None:
        """Record the end of an attempt once, and free its seat."""
        for seat in self._seats.values():
            if seat.running == event.attempt:
                seat.running = ""
        if event.attempt not in self._ended:
            self._ended.add(event.attempt)
            self._events.append(event)
