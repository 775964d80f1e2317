"""Time as an argument. Clocks decide nothing here but patience: how long to wait, when to look again, what to print."""

from __future__ import annotations

import time
from typing import Protocol


class Clock(Protocol):
    """What the protocol may ask of time; tests pass a simulated one."""

    def wall(self) -> float:
        """Seconds since the Unix epoch, for people and for back-off across restarts; may jump."""
        ...

    def monotonic(self) -> float:
        """Seconds that never run backwards, of this process only."""
        ...

    def sleep(self, seconds: float) -> None:
        """Wait."""
        ...


class SystemClock:
    """The machine's own."""

    def wall(self) -> float:
        """Seconds since the Unix epoch."""
        return time.time()

    def monotonic(self) -> float:
        """Seconds that never run backwards."""
        return time.monotonic()

    def sleep(self, seconds: float) -> None:
        """Wait."""
        time.sleep(seconds)


class Stopwatch:
    """Seconds since it was made, or since the last `lap`."""

    def __init__(self) -> None:
        self._last = time.perf_counter()

    def lap(self) -> float:
        """Seconds since the last lap."""
        now = time.perf_counter()
        seconds, self._last = now - self._last, now
        return seconds
