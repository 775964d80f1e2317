"""The driver tells each decision once, also when somebody stops the run in the middle of it."""

from __future__ import annotations

from typing import Any

import pytest

from atlas_dist.coordinator import drive
from atlas_dist.coordinator.service import Decision, Snapshot


class Actor:
    """A coordinator with three decisions that ends when it is asked to stop."""

    def __init__(self) -> None:
        self.decisions = [Decision(n, 0.0, "dispatch", {}) for n in (1, 2, 3)]
        self.over = False
        self.snapshot = self.stop = self

    def remote(self, after: int | None = None) -> Any:
        if after is None:
            self.over = True
            self.decisions.append(Decision(4, 0.0, "pause", {}))
            return None
        return Snapshot(None, over=self.over, decisions=tuple(self.decisions[after:]))


def test_a_stop_does_not_tell_everything_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(drive.ray, "get", lambda value: value)
    actor, told, seen = Actor(), drive._Told(), []  # type: ignore[var-annotated]

    def watch(snapshot: Snapshot) -> None:
        seen.extend(decision.number for decision in snapshot.decisions)
        if not snapshot.over:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        drive._follow(actor, [], watch, told)
    drive._stop(actor, [], watch, told)
    assert seen == [1, 2, 3, 4]
