"""The driver's view of a run, with a pretended coordinator: each decision is shown once, a stop is not waited for without end."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from atlas_dist.coordinator import drive
from atlas_dist.coordinator.service import Decision, Snapshot
from atlas_dist.errors import TrainingError


class Actor:
    """Its methods answer at once; `ray.get` hands the answer on."""

    def __init__(self, decisions: Sequence[Decision], over_after: int) -> None:
        self.decisions, self.over_after, self.asked, self.stopped = decisions, over_after, 0, False
        self.snapshot, self.stop = _Method(self._snapshot), _Method(self._stop)

    def _snapshot(self, after: int) -> Snapshot:
        self.asked += 1
        known = self.decisions[: self.asked]
        return Snapshot(status=None, over=self.asked >= self.over_after, decisions=tuple(known[after:]))

    def _stop(self) -> None:
        self.stopped = True


class _Method:
    def __init__(self, call: Any) -> None:
        self.remote = call


class Runner:
    error: BaseException | None = None


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(drive.ray, "get", lambda answer: answer)
    monkeypatch.setattr(drive, "POLL_EVERY_S", 0.0)


DECISIONS = [Decision(n, 0.0, f"event{n}", {}) for n in range(1, 7)]


def test_after_ctrl_c_no_decision_is_shown_again() -> None:
    shown: list[int] = []

    def watch(snapshot: Snapshot) -> None:
        shown.extend(d.number for d in snapshot.decisions)
        if shown[-1:] == [3] and len(shown) == 3:
            raise KeyboardInterrupt

    followed = drive._Followed(Actor(DECISIONS, 7), [], watch)
    with pytest.raises(KeyboardInterrupt):
        followed.to_the_end()
    assert followed.to_the_end().over
    assert shown == [1, 2, 3, 4, 5, 6]


def test_a_coordinator_that_does_not_come_to_an_end_is_left() -> None:
    """It waits for a store that is away; the ledger goes on from wherever it was."""
    actor = Actor(DECISIONS, 10**9)
    assert not drive._Followed(actor, [], lambda _: None).to_the_end(0.05).over


def test_workers_that_cannot_be_started_end_the_run() -> None:
    actor, runner = Actor(DECISIONS, 10**9), Runner()
    runner.error = TrainingError("no workers")
    with pytest.raises(TrainingError, match="no workers"):
        drive._Followed(actor, [runner], lambda _: None).to_the_end()  # type: ignore[list-item]
    assert actor.stopped
