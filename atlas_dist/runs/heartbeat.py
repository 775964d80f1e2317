"""Is the leader alive? A counter that it rewrites, watched by others on their own clocks. Never a reason to believe anything.

Safety rests on the ledger alone: a leader that is wrongly taken for dead collides on its next append, and stops.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from atlas_dist.clock import Clock
from atlas_dist.core.keys import canonical_json
from atlas_dist.errors import AtlasError, MissingObject, StoreError
from atlas_dist.runs import layout
from atlas_dist.store.artifacts import read_json
from atlas_dist.store.objects import ObjectStore

TTL_S = 15.0
_LIMIT = 1 << 20


@dataclass
class HeartbeatWriter:
    """The leader's side: beats every `ttl / 5` seconds; a store in trouble is not its business."""

    store: ObjectStore
    run: str
    writer: str
    clock: Clock
    ttl_s: float = TTL_S
    beats: int = 0
    last: float = float("-inf")

    def due(self) -> bool:
        """Whether it is time to beat."""
        return self.clock.monotonic() - self.last >= self.ttl_s / 5.0

    def beat(
        self, epoch: int, running: Mapping[str, Any], *, pools: Mapping[str, Any] | None = None, released: bool = False
    ) -> None:
        """Say that this epoch's leader is alive, or (`released`) that it has left; the rest and the time are for people."""
        self.last = self.clock.monotonic()
        self.beats += 1
        body = {"epoch": epoch, "writer": self.writer, "beat": self.beats, "released": released, "at": self.clock.wall()}
        body |= {"running": running, "pools": pools or {}}
        try:
            self.store.put(layout.beat(self.run, epoch), canonical_json(body))
        except StoreError:
            return


@dataclass
class LeaderMonitor:
    """A follower's side: the leader is silent when nothing has changed for `ttl` seconds of this process's own clock."""

    store: ObjectStore
    run: str
    clock: Clock
    ttl_s: float = TTL_S
    seen: object = None
    since: float = float("inf")

    def restart(self) -> None:
        """Something else showed that the leader lives (or that the leader is a new one): be patient afresh."""
        self.since = self.clock.monotonic()

    def silent(self, epoch: int) -> str:
        """Why the leader of `epoch` should be replaced; "" while it should not."""
        beat: Any
        try:
            beat = read_json(self.store, layout.beat(self.run, epoch), limit=_LIMIT)
        except MissingObject:
            beat = None
        except AtlasError:
            beat = self.seen  # can't look: no news is not bad news, but time goes on
        if isinstance(beat, dict) and beat.get("released"):
            return f"the coordinator of epoch {epoch} has left"
        if beat != self.seen or self.since == float("inf"):
            self.seen = beat
            self.restart()
        quiet = self.clock.monotonic() - self.since
        return f"the coordinator of epoch {epoch} was silent for {quiet:.0f} s" if quiet >= self.ttl_s else ""
