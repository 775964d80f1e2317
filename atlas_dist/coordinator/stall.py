"""Does a group of workers stand still, and which of its ranks is behind? Pulses and a clock in, a verdict out; no Ray here.

    a rank that learns or scores    stands still after max(`stall_s`, 10 x its median step) without a mark
    one that prepares               after ten times that: first steps compile, models are built
    one that waits for data or the  never, while its process answers: those waits have their own patience and end in their own
    store                           errors
    one whose process is silent     as if it learnt, whatever it said it was doing (ten times that while its group prepares: an
                                    import, a compiler may keep its thread from answering)

The group stands still when none of its ranks moves and none is excused: all wait for each other in collectives, so one that
moves means that the others will. While a rank has yet to say its first word of a job, the others may wait ten times as long.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from atlas_dist.pulse import Doing, Pulse

PACES = 10.0
"""Median steps without a mark that are long enough."""
PREPARING = 10.0
"""How many times longer what has no pace may take."""
SILENT_S = 15.0
"""Seconds without a word from a process (they speak every few seconds) after which it counts as silent."""
LONGEST_LOOK_S = 10.0
"""At most so much time passes between two looks: a coordinator that was asleep has not seen a group stand still."""


@dataclass(frozen=True)
class Process:
    """A worker's process, so that it can be found on its node. `born`: when it started, in the kernel's ticks: a process id alone
    may be somebody else's by now."""

    node: str
    """Ray's id of the node."""
    host: str
    pid: int
    born: int
    stacks: str
    """The file there that its stacks go to when it gets the signal."""


@dataclass
class _Rank:
    process: Process
    pulse: Pulse
    still_s: float = 0.0
    """Since its last mark."""
    silent_s: float = 0.0
    """Since it last said anything."""


@dataclass(frozen=True)
class Stall:
    """An attempt whose ranks stand still."""

    attempt: str
    step: int
    reason: str
    behind: tuple[int, ...]
    processes: tuple[tuple[int, Process], ...]
    """(rank, its process)"""


@dataclass
class StallWatch:
    """Hears every rank of every attempt; asked now and then. Not thread-safe.

    Args:
        stall_s: see `cluster.stall_s`; 0 = nobody ever stands still.
        now: seconds that never run backwards.
    """

    stall_s: float
    now: Callable[[], float]
    _ranks: dict[str, dict[int, _Rank]] = field(default_factory=dict, init=False)
    _worlds: dict[str, int] = field(default_factory=dict, init=False)
    _looked: float | None = field(default=None, init=False)

    def heard(self, rank: int, world: int, process: Process, pulse: Pulse) -> None:
        """A rank of `world` says where it stands; its newest attempt is all that it does."""
        attempt = pulse.attempt
        if not attempt:
            return
        ranks = self._ranks.setdefault(attempt, {})
        if self._worlds.setdefault(attempt, world) != world:
            self._worlds[attempt] = world
            ranks.clear()
        known = ranks.get(rank)
        if known is None or known.process != process:
            ranks[rank] = _Rank(process, pulse)
            return
        if (pulse.marks, pulse.doing) != (known.pulse.marks, known.pulse.doing):
            known.still_s = 0.0
        known.pulse, known.silent_s = pulse, 0.0

    def forget(self, attempt: str) -> None:
        """It has ended."""
        self._ranks.pop(attempt, None)
        self._worlds.pop(attempt, None)

    def look(self, running: Sequence[str]) -> list[Stall]:
        """The attempts among `running` that stand still; each is told once. The others are forgotten."""
        now = self.now()
        passed = 0.0 if self._looked is None else min(max(0.0, now - self._looked), LONGEST_LOOK_S)
        self._looked = now
        for attempt in set(self._ranks) - set(running):
            self.forget(attempt)
        stalls = []
        for attempt, ranks in self._ranks.items():
            for rank in ranks.values():
                rank.still_s += passed
                rank.silent_s += passed
            if (stall := self._judged(attempt, ranks)) is not None:
                stalls.append(stall)
        for stall in stalls:
            self.forget(stall.attempt)
        return stalls

    def _judged(self, attempt: str, ranks: dict[int, _Rank]) -> Stall | None:
        if not self.stall_s:
            return None
        pace_s = max(rank.pulse.pace_s for rank in ranks.values())
        allowed = max(self.stall_s, PACES * pace_s)
        # A group that a rank has yet to join waits for it, as if it prepared.
        missing = tuple(number for number in range(self._worlds[attempt]) if number not in ranks)
        steps = any(rank.pulse.step for rank in ranks.values())
        for rank in ranks.values():
            silent = rank.silent_s > SILENT_S
            if rank.pulse.doing in (Doing.DATA, Doing.STORE) and not silent:
                return None
            # Ranks step together: where another one steps already, a silent one has prepared too, whatever it last said.
            prepares = rank.pulse.doing is Doing.PREPARING and not (silent and steps)
            if rank.still_s <= allowed * (PREPARING if missing or prepares else 1.0):
                return None
        behind = missing or _behind(ranks)
        still_s = min(rank.still_s for rank in ranks.values())
        known = f"its median step takes {pace_s:.2g} s" if pace_s else "no step has been timed yet"
        reason = f"no rank got further for {still_s:.0f} s ({known}): {_named(ranks, behind)}"
        step = min(rank.pulse.step for rank in ranks.values())
        return Stall(attempt, step, reason, behind, tuple((number, ranks[number].process) for number in sorted(ranks)))


def _behind(ranks: dict[int, _Rank]) -> tuple[int, ...]:
    """The ranks that the others wait for: the silent ones; else those with the fewest marks, unless all have as many."""
    silent = tuple(number for number, rank in sorted(ranks.items()) if rank.silent_s > SILENT_S)
    if silent:
        return silent
    fewest = min(rank.pulse.marks for rank in ranks.values())
    last = tuple(number for number, rank in sorted(ranks.items()) if rank.pulse.marks == fewest)
    return last if len(last) < len(ranks) or len(ranks) == 1 else ()


def _named(ranks: dict[int, _Rank], behind: tuple[int, ...]) -> str:
    if not behind:
        return "all ranks are equally far, their stacks tell which of them is not where the others are"
    named = []
    for number in behind[:8]:
        if number not in ranks:
            named.append(f"rank {number} has not said a word")
            continue
        rank = ranks[number]
        silent = f", its process silent for {rank.silent_s:.0f} s" if rank.silent_s > SILENT_S else ""
        named.append(f"rank {number} on {rank.process.host} is behind ({rank.pulse.doing} after step {rank.pulse.step}{silent})")
    return "; ".join(named) + (f" and {len(behind) - 8} more" if len(behind) > 8 else "")
