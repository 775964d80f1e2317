"""The newest of what this process has said, for whoever keeps it where it outlives the process and its machine.

A Ray worker's standard error is a file of its node, and so is the output of a driver that Ray's job server started. All that is
written there counts, also by libraries that do not use Python's logging (NCCL, CUDA, the interpreter on a crash). Where the
output is a terminal or a pipe there is no file to read: then the records of Python's logging are kept in memory.
"""

from __future__ import annotations

import logging
import os
import stat
from collections import deque
from pathlib import Path
from types import TracebackType

from atlas_dist.logs import ContextFilter, TextForm
from atlas_dist.redact import redact

LIMIT = 256 << 10
"""Most bytes of a tail."""
STDOUT, STDERR = 1, 2
LEFT_OUT = "[earlier lines are left out]\n"


class OutputTail:
    """What file descriptor `stream` of this process was given since this object was made; a context manager.

    Args:
        stream: a file descriptor.
        limit: bytes of the newest output that are kept.
    """

    def __init__(self, stream: int = STDERR, *, limit: int = LIMIT) -> None:
        self.limit = limit
        self._path = _file_behind(stream)
        self._begin = self._path.stat().st_size if self._path else 0
        self._records = None if self._path else _LastRecords(limit)

    @property
    def from_file(self) -> bool:
        """Whether it is read from a file, so that everything is in it."""
        return self._path is not None

    def __enter__(self) -> OutputTail:
        if self._records is not None:
            logging.root.addHandler(self._records)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._records is not None:
            logging.root.removeHandler(self._records)

    def text(self) -> str:
        """At most `limit` bytes of whole lines, without secrets."""
        if self._path is None:
            return self._records.text() if self._records is not None else ""
        try:
            with self._path.open("rb") as file:
                size = file.seek(0, os.SEEK_END)
                begin = self._begin if self._begin <= size else 0  # somebody has shortened the file
                cut = max(begin, size - self.limit)
                file.seek(cut)
                data = file.read(size - cut)
        except OSError:
            return ""
        if cut > begin:
            return LEFT_OUT + redact(data.partition(b"\n")[2].decode(errors="replace"))
        return redact(data.decode(errors="replace"))


class _LastRecords(logging.Handler):
    """The newest records in the form that this process writes them in, at most `limit` bytes."""

    def __init__(self, limit: int) -> None:
        super().__init__()
        written = [h for h in logging.root.handlers if any(isinstance(f, ContextFilter) for f in h.filters)]
        self.setFormatter(written[0].formatter if written else TextForm())
        self.addFilter(next(iter(written[0].filters)) if written else ContextFilter({}))
        self._limit, self._size, self._cut = limit, 0, False
        self._lines: deque[str] = deque()

    def emit(self, record: logging.LogRecord) -> None:
        """Keep one more, and forget the oldest."""
        line = self.format(record) + "\n"
        self._lines.append(line)
        self._size += len(line.encode())
        while self._size > self._limit and len(self._lines) > 1:
            self._size -= len(self._lines.popleft().encode())
            self._cut = True

    def text(self) -> str:
        """All that is kept."""
        self.acquire()
        try:
            return (LEFT_OUT if self._cut else "") + "".join(self._lines)
        finally:
            self.release()


def _file_behind(stream: int) -> Path | None:
    """The path of the regular file that a descriptor writes to; None when it is something else, or closed."""
    path = Path(f"/proc/self/fd/{stream}")
    try:
        return path if stat.S_ISREG(path.stat().st_mode) else None
    except OSError:
        return None
