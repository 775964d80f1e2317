"""Checkpoints that are written while the next steps are taken: the step pays for a copy, a thread for the store.

At most one checkpoint is being written. One that is taken meanwhile waits, and a newer one takes its place: a store that is
slower than the checkpoints gets fewer of them, and never holds up a step. So the process holds two copies of the trained state at
most.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping
from contextvars import copy_context
from dataclasses import dataclass

log = logging.getLogger(__name__)

Files = Mapping[str, bytes]


@dataclass(frozen=True)
class _Taken:
    step: int
    pack: Callable[[], Files]


class BackgroundCheckpoints:
    """Writes checkpoints from a thread of its own.

    Args:
        write: stores the files of the checkpoint after a step; called in the thread.
    """

    def __init__(self, write: Callable[[int, Files], None]) -> None:
        self._write = write
        self._changed = threading.Condition()
        self._waiting: _Taken | None = None
        self._busy = False
        self._closed = False
        self._error: Exception | None = None
        self._thread: threading.Thread | None = None

    def put(self, step: int, pack: Callable[[], Files]) -> None:
        """Write the checkpoint after `step` as soon as the one before is written. `pack` makes its files, in the thread: whatever
        it reads must not change any more."""
        with self._changed:
            if self._thread is None:
                # With the job's context, so that what is logged says whose it is.
                self._thread = threading.Thread(target=copy_context().run, args=(self._run,), name="checkpoints", daemon=True)
                self._thread.start()
            if self._waiting is not None:
                log.info("the store is slow: the checkpoint at step %d is left out for a newer one", self._waiting.step)
            self._waiting = _Taken(step, pack)
            self._changed.notify_all()

    @property
    def error(self) -> Exception | None:
        """What ended the writing; nothing more is written after it."""
        with self._changed:
            return self._error

    def settle(self, timeout_s: float | None = None) -> Exception | None:
        """Wait until all that was put is written, or for so long. What ended the writing, or None."""
        with self._changed:
            self._changed.wait_for(lambda: self._error or not (self._busy or self._waiting), timeout_s)
            return self._error

    def close(self, timeout_s: float) -> None:
        """Let what is being written end, for so long at most; what waits is dropped, and so is an error: the stage has ended
        another way."""
        with self._changed:
            self._closed, self._waiting = True, None
            self._changed.notify_all()
        if self._thread is not None:
            self._thread.join(timeout_s)

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._closed or self._waiting)
                taken, self._waiting = self._waiting, None
                if self._closed or taken is None:
                    return
                self._busy = True
            try:
                self._write(taken.step, taken.pack())
            except Exception as error:  # the job's thread raises it, as if it had written itself
                with self._changed:
                    self._error, self._busy, self._waiting = error, False, None
                    self._changed.notify_all()
                return
            with self._changed:
                self._busy = False
                self._changed.notify_all()
