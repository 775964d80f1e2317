"""Where the job of this process stands: what it does at the moment, and how far it is. One a process, as a worker is one rank.

The thread that does the job notes where it is; another one reads it and tells the coordinator (`coordinator/ray_pulse.py`), which
thereby sees a group that stands still (`coordinator/stall.py`). Noting costs microseconds and never waits.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from statistics import median

KEPT = 33
"""Newest intervals that a pace is the median of."""


class Doing(StrEnum):
    """What a rank is about."""

    NOTHING = "nothing"
    """It has no job."""
    PREPARING = "preparing"
    """What has no pace: building a model, compiling, a first pass, what lies between two kinds of passes."""
    LEARNING = "learning"
    SCORING = "scoring"
    DATA = "waiting for data"
    STORE = "waiting for the store"


@dataclass(frozen=True)
class Pulse:
    """Where a rank stands.

    Example: Pulse("4be1…-e3-2", Doing.LEARNING, step=120, marks=361, pace_s=0.8)
    """

    attempt: str = ""
    doing: Doing = Doing.NOTHING
    step: int = 0
    """Optimizer steps that are done."""
    marks: int = 0
    """Counts everything that got further: passes, batches, steps. Ranks in step have equal marks."""
    pace_s: float = 0.0
    """Median seconds of the newest steps (or scoring batches); 0 = not known yet."""


class _Noted:
    """The process's own notes. Calls of other threads than the job's (uploads in the background, prefetching) are passed over."""

    def __init__(self) -> None:
        self.began = threading.Event()
        """Set when a job begins: whoever tells of this process tells of that at once."""
        self._forget()

    def _forget(self) -> None:
        self._attempt, self._doing, self._step, self._marks = "", Doing.NOTHING, 0, 0
        self._thread = 0
        self._last: tuple[Doing, float] | None = None
        self._intervals: deque[float] = deque(maxlen=KEPT)

    def now(self) -> Pulse:
        """May be called from any thread."""
        intervals = list(self._intervals)
        pace_s = median(intervals) if intervals else 0.0
        return Pulse(self._attempt, self._doing, self._step, self._marks, pace_s)

    @contextmanager
    def job(self, attempt: str) -> Iterator[None]:
        """While the block runs, this thread does the attempt's job."""
        self._forget()
        self._attempt, self._doing, self._thread = attempt, Doing.PREPARING, threading.get_ident()
        self.began.set()
        try:
            yield
        finally:
            self._forget()

    def mark(self) -> None:
        """Something got further."""
        if threading.get_ident() == self._thread:
            self._marks += 1

    def passed(self, doing: Doing, step: int | None = None) -> None:
        """A pass of a kind that has a pace is done; from here on the next one of that kind is under way.

        Args:
            step: optimizer steps done so far, after a step.
        """
        if threading.get_ident() != self._thread:
            return
        now = time.monotonic()
        if self._last is not None and self._last[0] is doing:
            self._intervals.append(now - self._last[1])
        else:
            self._intervals.clear()
        self._last, self._doing = (doing, now), doing
        self._step = self._step if step is None else step
        self._marks += 1

    def prepare(self) -> None:
        """What comes now has no pace yet."""
        if threading.get_ident() == self._thread:
            self._doing, self._last = Doing.PREPARING, None
            self._marks += 1

    @contextmanager
    def waiting(self, what: Doing) -> Iterator[None]:
        """While the block runs, the job waits for something that has its own patience; then it goes on with what it did."""
        if threading.get_ident() != self._thread:
            yield
            return
        before, self._doing = self._doing, what
        try:
            yield
        finally:
            self._doing = before


pulse = _Noted()
