"""What tells a run's driver to stop: Ctrl-C, SIGTERM (`ray job stop`, a pod's end), SIGHUP (a closed terminal), SIGQUIT.

The first of them asks for an orderly end. Of those that follow only Ctrl-C means "do not wait": a shell, `timeout` and systemd
send the same or another signal again, to the process and to its group, within the same moment.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType, TracebackType

STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)
OF_A_GROUP = (signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)
"""What reaches the driver's whole process group; Ray keeps its processes from SIGINT itself."""
SAME_MOMENT_S = 1.0

_Handler = Callable[[int, FrameType | None], object] | int | None


class StopSignals:
    """While it is entered, the first signal raises KeyboardInterrupt in the main thread. Elsewhere it does nothing.

    SIGHUP stays ignored where it was (`nohup`). Once a terminal has hung up, what was shown on it goes nowhere, instead of
    failing with every line.
    """

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self._now = now
        self._before: dict[signal.Signals, _Handler] = {}
        self._terminals: list[int] = []
        self._first = float("-inf")
        self.stopping = self.hurried = False
        """A signal came; a second Ctrl-C came."""

    def __enter__(self) -> StopSignals:
        self._terminals = [number for number in (1, 2) if _is_terminal(number)]
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.getsignal(number) for number in STOPPING}
        self.hear()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for number, handler in self._before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)

    def hear(self) -> None:
        """Take the signals; again after a library has taken some for itself. Also where a shell started us deaf to Ctrl-C."""
        for number, before in self._before.items():
            if number is not signal.SIGHUP or before is not signal.SIG_IGN:
                signal.signal(number, self._stop)

    def _stop(self, number: int, _frame: FrameType | None) -> None:
        if number == signal.SIGHUP:
            for terminal in self._terminals:
                to_nowhere(terminal)
        if self.stopping and (number != signal.SIGINT or self._now() - self._first < SAME_MOMENT_S):
            return
        if self.stopping:
            self.hurried = True
        else:
            self.stopping, self._first = True, self._now()
        raise KeyboardInterrupt


@contextmanager
def deaf_children() -> Iterator[None]:
    """Processes that this thread starts meanwhile never hear the signals of our group: who stops them is this process."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, OF_A_GROUP)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def to_nowhere(descriptor: int) -> None:
    """What is written to it from here on is lost, without an error."""
    with suppress(OSError, ValueError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, descriptor)
        os.close(nowhere)


def _is_terminal(number: int) -> bool:
    stream = {1: sys.__stdout__, 2: sys.__stderr__}[number]
    return stream is not None and os.isatty(number)
