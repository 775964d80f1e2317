"""What is so: where a run, its jobs and their attempts stand, as `core/ledger.py` folds it from what happened."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from atlas_dist.core.attempts import CommittedRef, Failure


class AttemptStatus(StrEnum):
    """Where an attempt stands."""

    RUNNING = "running"
    FAILED = "failed"
    """It ended, or was given up. Until it is abandoned its checkpoints may be continued and a late RESULT may be committed."""
    COMMITTED = "committed"
    ABANDONED = "abandoned"
    """Its files are being deleted; nothing of it may ever be used."""


@dataclass(frozen=True)
class Attempt:
    """One try at a job."""

    id: str
    job: str
    prefix: str
    epoch: int
    pool: str = ""
    status: AttemptStatus = AttemptStatus.RUNNING
    failure: Failure | None = None


class JobStatus(StrEnum):
    """Where a job stands."""

    PENDING = "pending"
    RUNNING = "running"
    COMMITTED = "committed"
    QUARANTINED = "quarantined"


@dataclass(frozen=True)
class JobState:
    """Everything that the rules of `core/schedule.py` need to know about one job."""

    key: str
    attempts: tuple[Attempt, ...] = ()
    committed: CommittedRef | None = None
    adopted_from: str = ""
    """The run whose fact this is, when it was not trained here."""
    quarantined: str = ""
    """Why it is not tried again; "" = it is not quarantined."""
    best_step: int = 0
    stuck: int = 0
    """Attempts in a row that were taken away without one step of progress."""
    stalls: int = 0
    """Attempts that stood still, since the job last got further."""
    poisons: int = 0
    """Attempts that the job itself ended by raising."""
    memory_failures: int = 0
    """Attempts that did not fit into a device's memory."""
    store_failures: int = 0
    """Attempts in a row that the object store ended."""
    nonfinite: tuple[int, ...] = ()
    """Steps that were not finite, oldest first."""
    failed_at: float = 0.0

    @property
    def status(self) -> JobStatus:
        """PENDING, RUNNING, COMMITTED or QUARANTINED."""
        if self.committed is not None:
            return JobStatus.COMMITTED
        if self.quarantined:
            return JobStatus.QUARANTINED
        return JobStatus.RUNNING if self.running else JobStatus.PENDING

    @property
    def running(self) -> Attempt | None:
        """The attempt that is under way."""
        return next((a for a in self.attempts if a.status is AttemptStatus.RUNNING), None)

    def number(self, attempt: str) -> int:
        """Which of the job's attempts it is, from 1; 0 = none of them (adopted from another run)."""
        return next((n for n, known in enumerate(self.attempts, 1) if known.id == attempt), 0)

    @property
    def failure(self) -> Failure | None:
        """How the newest ended attempt failed."""
        return next((a.failure for a in reversed(self.attempts) if a.failure is not None), None)


@dataclass(frozen=True)
class RunState:
    """The fold of a ledger. Holds only jobs that records speak of; sets are small indexes into them."""

    run: str = ""
    spec_digest: str = ""
    plan_digest: str = ""
    spec: Mapping[str, Any] = field(default_factory=dict)
    epoch: int = 0
    writer: str = ""
    """Who leads since the last election."""
    next_seq: int = 0
    jobs: Mapping[str, JobState] = field(default_factory=dict)
    attempts: Mapping[str, str] = field(default_factory=dict)
    """attempt -> job"""
    running: frozenset[str] = frozenset()
    """Attempts under way."""
    troubled: frozenset[str] = frozenset()
    """Jobs with a failure that are neither committed nor quarantined."""
    garbage: frozenset[str] = frozenset()
    """Ended attempts that nothing can use any more."""
    committed: int = 0
    """How many jobs are."""
    newest: str = ""
    """The job that this run committed last."""
    paused: str = ""
    cancelled: str = ""
    halted: str = ""
    finished: str = ""
    requests: frozenset[str] = frozenset()
    """Inbox requests that were answered."""

    def job(self, key: str) -> JobState:
        """The job's state; PENDING when nothing was recorded yet."""
        return self.jobs.get(key) or JobState(key)

    def attempt(self, attempt: str) -> Attempt:
        """The attempt called so. Raises KeyError."""
        return next(a for a in self.jobs[self.attempts[attempt]].attempts if a.id == attempt)
