"""A cluster in one process: attempts that publish real artifacts through the real code, at once, when `poll` is called."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from safetensors.numpy import save

from atlas_dist.coordinator.dispatch import Event, Failed, Finished, Lost
from atlas_dist.core.attempts import Assignment, Failure, FailureKind
from atlas_dist.core.keys import digest_of
from atlas_dist.core.schedule import Capacity, Pool
from atlas_dist.core.types import JobKind
from atlas_dist.errors import DataError, StoreError
from atlas_dist.store.artifacts import load, publish
from atlas_dist.store.objects import ObjectStore


class FakeClock:
    """Time that moves only when somebody sleeps."""

    def __init__(self, start: float = 1_000_000.0) -> None:
        self.now = start

    def wall(self) -> float:
        return self.now

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


def counted_ids(prefix: str = "id") -> Callable[[], str]:
    """Unique names that are the same in every run of a test."""
    numbers = itertools.count()
    return lambda: f"{prefix}{next(numbers)}"


def adapter_bytes(job: str, parents: list[str]) -> bytes:
    """What training a job gives: a function of the job and of its inputs' bytes, as real training is."""
    seed = int(digest_of([job, *parents])[:8], 16)
    values = np.random.default_rng(seed).standard_normal(8).astype(np.float32)
    return save({"adapter.V": values})


def train(store: ObjectStore, assignment: Assignment, trace: str, **options: object) -> None:
    """A whole attempt: read the inputs (verified), "train", publish."""
    inputs = [ref for _, ref in sorted(assignment.inputs.items())]
    digests = []
    for ref in inputs:
        name = next(b.name for b in ref.blobs if b.name != "trace.json")
        digests.append(digest_of(load(store, ref, name).hex()))
    files = {"trace.json": json.dumps({"by": trace}).encode()}
    if assignment.job.kind is JobKind.TRAIN:
        files["adapter.safetensors"] = adapter_bytes(assignment.job.key, digests)
    else:
        files["scores.json"] = json.dumps({"score": len(digests)}).encode()
    publish(
        store,
        assignment.prefix,
        job=assignment.job.key,
        attempt=assignment.attempt,
        files=files,
        metrics={"score": 50.0},
        **options,  # type: ignore[arg-type]
    )


@dataclass
class FakeDispatcher:
    """Runs every attempt inside `poll`. `outcome(assignment)` may return a Failure instead of letting it train."""

    store: ObjectStore
    slots: int = 2
    outcome: Callable[[Assignment], Failure | None] = lambda _: None
    started: list[Assignment] = field(default_factory=list)
    waiting: list[Assignment] = field(default_factory=list)
    cancelled: list[str] = field(default_factory=list)
    hold: bool = False

    def capacity(self) -> Capacity:
        return Capacity((Pool("main", free=self.slots - len(self.waiting), total=self.slots),))

    def start(self, assignment: Assignment) -> None:
        self.started.append(assignment)
        self.waiting.append(assignment)

    def cancel(self, attempt: str) -> None:
        self.cancelled.append(attempt)

    def poll(self) -> list[Event]:
        events: list[Event] = [Lost(a.attempt, "cancelled") for a in self.waiting if a.attempt in self.cancelled]
        going = [a for a in self.waiting if a.attempt not in self.cancelled]
        self.waiting = going if self.hold else []
        for assignment in [] if self.hold else going:
            failure = self.outcome(assignment)
            if failure is not None:
                events.append(Failed(assignment.attempt, failure))
                continue
            events.append(self._train(assignment))
        return events

    def _train(self, assignment: Assignment) -> Event:
        try:
            train(self.store, assignment, assignment.attempt)
        except StoreError as error:
            return Failed(assignment.attempt, Failure(FailureKind.STORE, str(error)))
        except DataError as error:
            return Failed(assignment.attempt, Failure(FailureKind.PREEMPTED, str(error)))
        return Finished(assignment.attempt)
