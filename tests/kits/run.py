"""`atlas-dist run` as a user starts it, and what it left in its store."""

from __future__ import annotations

import time
from dataclasses import dataclass

from atlas_dist.app.child import RunProcess
from atlas_dist.compose import compose_config
from atlas_dist.coordinator.expand import expand
from atlas_dist.core.ledger import Entry
from atlas_dist.core.plan import Plan
from atlas_dist.core.state import RunState
from atlas_dist.report.facts import RunFacts, gather
from atlas_dist.runs.status import load_run
from atlas_dist.runs.stores import open_run_store

TIMEOUT_S = 2400.0
"""Only so that what hangs ends: on shared cores a run of half a minute may take half an hour."""


class Running(RunProcess):
    """A run that a test waits for."""

    def wait_for(self, text: str) -> None:
        """Until the output holds `text`. What never says it is ended."""
        until = time.monotonic() + TIMEOUT_S
        try:
            while text not in self.text():
                assert self.process.poll() is None, f"it ended with {self.process.returncode}:\n{self.text()}"
                assert time.monotonic() < until, f"no {text!r} in:\n{self.text()}"
                time.sleep(0.05)
        except AssertionError:
            self.sweep()
            raise

    def ends_with(self, code: int) -> None:
        """Wait for the end and check the exit code."""
        assert self.finish(TIMEOUT_S) == code, self.text()

    def stops_alone_with(self, code: int) -> None:
        """Wait for the end, check the exit code, and that it left nothing running. What does not end is ended."""
        try:
            assert self.process.wait(TIMEOUT_S) == code, self.text()
            assert self.left_running(patience_s=120) == []
        finally:
            self.sweep()


@dataclass(frozen=True)
class Left:
    """What a run left: its plan, its ledger, its results."""

    plan: Plan
    state: RunState
    entries: list[Entry]
    facts: RunFacts

    def hashes(self) -> dict[str, dict[str, str]]:
        """job -> file -> sha256 of everything committed."""
        refs = {key: self.state.job(key).committed for key in self.plan.jobs}
        return {key: {b.name: b.sha256 for b in ref.blobs} for key, ref in refs.items() if ref}


def left_by(words: list[str]) -> Left:
    """Read a run's store."""
    config = compose_config(words)
    plan, store = expand(config), open_run_store(config)
    state, entries = load_run(store, config.run)
    return Left(plan, state, entries, gather(plan, state, store))
