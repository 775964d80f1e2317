"""A run as a child process, and the processes it starts, found by a tag in their environment (Linux)."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Mapping, Sequence
from enum import StrEnum
from pathlib import Path

TAG = "ATLAS_RUN_TAG"


class Part(StrEnum):
    """A kind of process of a run, by what its command line shows."""

    DRIVER = "driver"
    WORKER = "RayTrainWorker"
    CONTROLLER = "TrainController"
    COORDINATOR = "CoordinatorActor"


class RunProcess:
    """`atlas-dist run` in a session of its own, its output in a file.

    Args:
        words: its overrides. output: file for everything it prints. env: added to this process's environment.
    """

    def __init__(self, words: Sequence[str], output: Path, env: Mapping[str, str] | None = None, command: str = "run") -> None:
        self.output = output
        self.tag = uuid.uuid4().hex
        with output.open("w") as file:
            self.process = subprocess.Popen(  # noqa: S603 - our own program with our own words
                [sys.executable, "-m", "atlas_dist", command, *words],
                stdout=file,
                stderr=subprocess.STDOUT,
                env={**os.environ, **(env or {}), TAG: self.tag, "PYTHONUNBUFFERED": "1"},
                start_new_session=True,
            )

    def text(self) -> str:
        """What it has printed."""
        return self.output.read_text(errors="replace")

    def parts(self, part: Part) -> list[int]:
        """Process ids of one kind, oldest first."""
        if part is Part.DRIVER:
            return [self.process.pid] if self.process.poll() is None else []
        return [pid for pid in self._family() if part.value in _title(pid)]

    def interrupt(self) -> None:
        """Ctrl-C."""
        self.process.send_signal(signal.SIGINT)

    def finish(self, timeout: float | None = None) -> int:
        """Wait for the end and return the exit code; whatever is left of its family is ended."""
        try:
            return self.process.wait(timeout)
        finally:
            self.sweep()

    def left_running(self, patience_s: float = 10.0) -> list[int]:
        """Processes of this run that are still there so long after its end."""
        until = time.monotonic() + patience_s
        while (left := self._family()) and time.monotonic() < until:
            time.sleep(0.1)
        return left

    def sweep(self) -> None:
        """End every process that carries this run's tag."""
        for pid in self._family():
            kill(pid)

    def _family(self) -> list[int]:
        mark = f"{TAG}={self.tag}".encode()
        found = []
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit() and int(entry.name) != os.getpid():
                with contextlib.suppress(OSError):
                    if mark in (entry / "environ").read_bytes():
                        found.append(int(entry.name))
        return sorted(found)


def kill(pid: int) -> None:
    """SIGKILL; a process that is gone already is fine."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def _title(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace")
    except OSError:
        return ""
