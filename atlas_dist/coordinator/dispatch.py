"""The seam between deciding and computing: what the coordinator asks of a cluster, and what it hears back.

The coordinator never trusts an event with a result: `Finished` only says where to look. Events may come twice, late, or about
attempts of an earlier coordinator; the ledger decides what they mean.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from atlas_dist.core.attempts import Assignment, Failure
from atlas_dist.core.schedule import Capacity


@dataclass(frozen=True)
class Finished:
    """The attempt has published its RESULT."""

    attempt: str


@dataclass(frozen=True)
class Failed:
    """The attempt ended without a RESULT and says why."""

    attempt: str
    failure: Failure


@dataclass(frozen=True)
class AttemptProgress:
    """The attempt is at `step` of `total`. Not recorded: for people, and for the rule about attempts that get nowhere."""

    attempt: str
    step: int
    total: int
    metrics: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Lost:
    """The attempt's workers went away (node loss, preemption, cancelled) without saying anything."""

    attempt: str
    reason: str = "its workers went away"


Event = Finished | Failed | AttemptProgress | Lost


class Dispatcher(Protocol):
    """Starts attempts on pools of workers and reports what became of them. No method waits for training."""

    def capacity(self) -> Capacity:
        """The pools and their free slots now (attempts that were started are already subtracted)."""
        ...

    def start(self, assignment: Assignment) -> None:
        """Begin an attempt on the pool `assignment.pool`. What goes wrong becomes an event, not an exception."""
        ...

    def poll(self) -> list[Event]:
        """What happened since the last call, oldest first; returns at once."""
        ...

    def cancel(self, attempt: str) -> None:
        """Stop an attempt; `Lost` follows when its workers are free again. Unknown attempts are fine."""
        ...
