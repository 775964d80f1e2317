"""Is the leader alive? A counter that it rewrites, watched by others on their own clocks. Never a reason to believe anything.

Safety rests on the ledger alone: a leader that is wrongly taken for dead collides on its next append, and stops.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any

from atlas_dist.clock import Clock
from atlas_dist.core.keys import canonical_json
from atlas_dist.core.records import from_json
from atlas_dist.errors import AtlasError, DataError, MissingObject, StoreError
from atlas_dist.runs import layout
from atlas_dist.store.artifacts import read_json
from atlas_dist.store.objects import ObjectStore

TTL_S = 15.0
_LIMIT = 1 << 20


@dataclass(frozen=True)
class PoolHeartbeat:
    """A pool as its leader sees it: how many workers it has, of how many, and what they do (in words)."""

    workers: int
    of: int
    standing: str


@dataclass(frozen=True)
class Heartbeat:
    """What a leader says of itself, for followers and for people."""

    epoch: int
    writer: str = ""
    beat: int = 0
    """Counts up with every heartbeat."""
    at: float = 0.0
    """Wall clock of the leader's machine, seconds since 1970; 0 = it does not say."""
    released: bool = False
    """The leader has left."""
    running: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    """attempt -> (step, of how many)"""
    pools: Mapping[str, PoolHeartbeat] = field(default_factory=dict)

    @classmethod
    def from_json(cls, raw: object) -> Heartbeat:
        """Lenient: another version may say less (then its defaults hold) or more. Raises DataError for another form."""
        known = {f.name for f in fields(cls)}
        found = {"epoch": 0, **{name: value for name, value in raw.items() if name in known}} if isinstance(raw, dict) else raw
        heartbeat = from_json(cls, found)
        try:
            running = {str(attempt): (int(step), int(total)) for attempt, (step, total) in heartbeat.running.items()}
        except (TypeError, ValueError) as error:
            raise DataError(f"Heartbeat.running is {heartbeat.running!r:.80}: {error}.") from error
        pools = {str(name): from_json(PoolHeartbeat, pool) for name, pool in heartbeat.pools.items()}
        return replace(heartbeat, running=running, pools=pools)


def read_heartbeat(store: ObjectStore, run: str, epoch: int) -> Heartbeat | None:
    """What the leader of an epoch said last; None when it cannot be read: nothing depends on it."""
    try:
        return Heartbeat.from_json(read_json(store, layout.beat(run, epoch), limit=_LIMIT))
    except AtlasError:
        return None


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
        self,
        epoch: int,
        running: Mapping[str, tuple[int, int]],
        *,
        pools: Mapping[str, PoolHeartbeat] | None = None,
        released: bool = False,
    ) -> None:
        """Say that this epoch's leader is alive, or (`released`) that it has left; the rest and the time are for people."""
        self.last = self.clock.monotonic()
        self.beats += 1
        heartbeat = Heartbeat(epoch, self.writer, self.beats, self.clock.wall(), released, running, pools or {})
        try:
            self.store.put(layout.beat(self.run, epoch), canonical_json(heartbeat))
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
