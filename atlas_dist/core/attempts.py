"""What an attempt is given, what it leaves and how it fails. Frozen, JSON-shaped.

An *attempt* is one try at a job by one coordinator epoch; attempts are garbage until the ledger commits one of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from atlas_dist.core.types import StageJob


@dataclass(frozen=True)
class Blob:
    """One file of an attempt. `sha256` is of the whole file."""

    name: str
    size: int
    sha256: str


@dataclass(frozen=True)
class CommittedRef:
    """Where a committed result lies: the attempt's prefix in the store and its files."""

    job: str
    attempt: str
    prefix: str
    blobs: tuple[Blob, ...]
    metrics: Mapping[str, Any] = field(default_factory=dict)

    def blob(self, name: str) -> Blob:
        """The file called `name`; KeyError when the result has none."""
        for blob in self.blobs:
            if blob.name == name:
                return blob
        raise KeyError(f"{self.attempt} has no file {name}: it has {[b.name for b in self.blobs]}")


@dataclass(frozen=True)
class Assignment:
    """What a pool receives: the job, the attempt it belongs to, where to write, and the committed inputs it may read.

    Example: Assignment(job=…, attempt="4be1…-e3-2", prefix="runs/demo/attempts/4be1…-e3-2", inputs={"9c0…": CommittedRef(…)})
    """

    job: StageJob
    attempt: str
    prefix: str
    inputs: Mapping[str, CommittedRef]
    resume_from: str = ""
    """Prefix of the complete, verified checkpoint of an earlier attempt of the same job to continue from ("" = none)."""
    resume_digest: str = ""
    """sha256 of that checkpoint's DONE file, as the ledger knows it: nothing else may be loaded."""
    pool: str = ""
    """Which pool of workers runs it."""
    halvings: int = 0
    """How often the micro batch is halved, because earlier attempts ran out of a device's memory."""


@dataclass(frozen=True)
class StageResult:
    """What an attempt says when it is done: written by rank 0 as `<prefix>/RESULT`, verified by the coordinator, then committed.

    `metrics` is a JSON object: at least `score` (percent) for training and `views` for evaluations; see `train/worker.py`.
    """

    job: str
    attempt: str
    blobs: tuple[Blob, ...]
    metrics: Mapping[str, Any]


class FailureKind(StrEnum):
    """Why an attempt ended without a result; each has its own retry rule (docs/reliability.md, Retries)."""

    PREEMPTED = "preempted"
    """The node, the worker or the pool went away. Does not count, unless no attempt makes progress."""
    STORE = "store"
    """The bucket throttled or was away: back off and wait."""
    NONFINITE = "nonfinite"
    """NaN or infinite loss at a step: replay once from the last finite checkpoint; the same step again is poison."""
    DEVICE = "device"
    """A GPU, or the communicator of the group, is broken until its process is replaced: counts as taken away."""
    STALLED = "stalled"
    """No rank took a step for far longer than its steps take: in new processes, a few times at the same step."""
    MEMORY = "memory"
    """Training did not fit into the device's memory: again with half the micro batch, the same global batch."""
    POISON = "poison"
    """The job itself raises: a few tries, then it is quarantined."""
    FATAL = "fatal"
    """Config, schema, auth: never retried."""


@dataclass(frozen=True)
class Failure:
    """How an attempt failed. `step` is the last finished step (progress), or for `nonfinite` the step that was not finite."""

    kind: FailureKind
    reason: str
    step: int = 0
