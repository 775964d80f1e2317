"""The run as one process knows it: the log it has replayed, the state that means, and the only way to add to both."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import Any

from atlas_dist.clock import Clock
from atlas_dist.core.ledger import Entry, fold
from atlas_dist.core.plan import Plan
from atlas_dist.core.records import Adopt, Commit, Elect, Record
from atlas_dist.core.schedule import Frontier
from atlas_dist.core.state import RunState
from atlas_dist.runs.stores import open_ledger
from atlas_dist.store.log import Map
from atlas_dist.store.objects import ObjectStore
from atlas_dist.store.settle import Patience

LogSink = Callable[[str, Mapping[str, Any]], None]
"""Hears of every decision: what happened, and its fields with the reason among them."""


def log_line(event: str, fields: Mapping[str, Any]) -> None:
    """The default sink: one line an event through `logging`."""
    logging.getLogger("atlas_dist.coordinator").info("%s %s", event, " ".join(f"{k}={v}" for k, v in fields.items()))


class RunBook:
    """Log, state and frontier, kept in step."""

    def __init__(
        self,
        run: str,
        plan: Plan,
        store: ObjectStore,
        *,
        clock: Clock,
        ids: Callable[[], str],
        patience: Patience,
        log_sink: LogSink,
        read_many: Map,
    ) -> None:
        self.run = run
        self.plan = plan
        self.writer = ids()
        self.state = RunState(run=run)
        self.frontier = Frontier(plan)
        self.tell = log_sink
        self._log = open_ledger(store, run, writer=self.writer, clock=clock, new_id=ids, patience=patience, read_many=read_many)

    def replay(self) -> int:
        """Take in what others have written since; return how many entries. Raises StoreError, DataError."""
        entries = self._log.read_new()
        self._admit(entries)
        return len(entries)

    def overtaken(self) -> bool:
        """Whether somebody has written behind what is known here. Raises StoreError."""
        return self._log.peek()

    def record(self, record: Record, **details: Any) -> None:
        """Make it so. Nothing that `record` says may be done before this returns.

        Raises:
            FencedError: somebody else has written first; this process does not lead.
            StoreError: not known whether it was written; only a replay can tell.
        """
        epoch = self.state.epoch + isinstance(record, Elect)
        entry = self._log.append(epoch, record)
        self._admit([entry])
        names = {name: getattr(record, name) for name in ("job", "attempt", "request", "kind") if getattr(record, name, "")}
        reason = getattr(record, "reason", "")
        self.tell(type(record).__name__.lower(), {"seq": entry.seq, "epoch": epoch, **names, **details, "reason": reason})

    def _admit(self, entries: list[Entry]) -> None:
        self.state = fold(self.state, entries)
        for entry in entries:
            if isinstance(entry.record, Commit | Adopt):
                self.frontier.settle(entry.record.job)
