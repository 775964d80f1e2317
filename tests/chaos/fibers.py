"""Ordinary blocking code that can be suspended anywhere: greenlets where installed, else threads that hand a lock around.

Both give the same interleavings. A greenlet switch costs a microsecond; a thread switch costs a wake-up: milliseconds, when the
machine is loaded.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

try:
    import greenlet
except ImportError:  # the simulation then works too, only slower
    greenlet = None  # type: ignore[assignment]

threading.stack_size(512 * 1024)


class ThreadFiber:
    """A thread that runs only while it holds the baton. Without a body: the thread that is there already."""

    def __init__(self, body: Callable[[], None] | None, main: ThreadFiber | None) -> None:
        self._gate = threading.Lock()
        self._gate.acquire()
        if body is not None:
            threading.Thread(target=self._run, args=(body,), daemon=True).start()

    def _run(self, body: Callable[[], None]) -> None:
        self._gate.acquire()
        body()

    def pass_to(self, other: ThreadFiber) -> None:
        """Let `other` run; return when somebody passes to this one."""
        other._gate.release()
        self._gate.acquire()

    def end_in(self, other: ThreadFiber) -> None:
        """Let `other` run; the last thing that this one does."""
        other._gate.release()


class GreenletFiber:
    """The same by switching stacks in one thread."""

    def __init__(self, body: Callable[[], None] | None, main: GreenletFiber | None) -> None:
        if body is None or main is None:
            self._greenlet = greenlet.getcurrent()
        else:
            # One that ends passes its (empty) result to its parent, also when that is only starting.
            self._greenlet = greenlet.greenlet(lambda *_: body(), main._greenlet)

    def pass_to(self, other: GreenletFiber) -> None:
        """Let `other` run; return when somebody passes to this one."""
        other._greenlet.switch()

    def end_in(self, other: GreenletFiber) -> None:
        """Let `other` run; the last thing that this one does."""
        self._greenlet.parent = other._greenlet


Fiber = ThreadFiber if greenlet is None else GreenletFiber
