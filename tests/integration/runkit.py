"""`atlas-dist run` as a user starts it: a process with its output, found workers to kill, and what the run left in its store."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
import uuid
from dataclasses import dataclass, field
from pathlib import Path

from atlas_dist.compose import compose_config
from atlas_dist.coordinator.expand import expand
from atlas_dist.coordinator.status import load_run
from atlas_dist.core.ledger import Entry, RunState
from atlas_dist.core.plan import Plan
from atlas_dist.report.facts import RunFacts, gather
from atlas_dist.train.context import open_run_store

TAG = "ATLAS_TEST_RUN"


@dataclass
class Running:
    """One `atlas-dist` process. `words` are its overrides; its workers are known by a tag in their environment."""

    words: list[str]
    output: Path
    env: dict[str, str] = field(default_factory=dict)
    command: str = "run"

    def __post_init__(self) -> None:
        self.tag = uuid.uuid4().hex
        env = {**os.environ, **self.env, TAG: self.tag, "PYTHONUNBUFFERED": "1"}
        # A session of its own, with Ctrl-C allowed: a shell's background jobs ignore it.
        self.process = subprocess.Popen(
            [sys.executable, "-m", "atlas_dist", self.command, *self.words],
            stdout=self.output.open("w"),
            stderr=subprocess.STDOUT,
            env=env,
            start_new_session=True,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
        )

    def text(self) -> str:
        return self.output.read_text()

    def wait_for(self, text: str, timeout: float = 300.0) -> None:
        """Until the output holds `text`."""
        until = time.monotonic() + timeout
        while text not in self.text():
            assert self.process.poll() is None, f"it ended with {self.process.returncode}:\n{self.text()}"
            assert time.monotonic() < until, f"no {text!r} in:\n{self.text()}"
            time.sleep(0.05)

    def finish(self, timeout: float = 500.0) -> int:
        """Wait for the end; the exit code. Whatever is left of its processes is ended."""
        try:
            return self.process.wait(timeout)
        finally:
            for pid in self._family():
                _kill(pid)

    def interrupt(self) -> None:
        """Ctrl-C."""
        self.process.send_signal(signal.SIGINT)

    def workers(self) -> list[int]:
        """Process ids of the training workers, in the order they were started."""
        return [pid for pid in self._family() if "RayTrainWorker" in _title(pid)]

    def _family(self) -> list[int]:
        found = []
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit() and int(entry.name) != os.getpid():
                try:
                    if f"{TAG}={self.tag}".encode() in (entry / "environ").read_bytes():
                        found.append(int(entry.name))
                except OSError:
                    continue
        return sorted(found)


def _title(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace")
    except OSError:
        return ""


def _kill(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


@dataclass(frozen=True)
class Left:
    """What a run left: its plan, its ledger, its results."""

    plan: Plan
    state: RunState
    entries: list[Entry]
    facts: RunFacts

    def hashes(self) -> dict[str, dict[str, str]]:
        """job -> file -> sha256 of everything committed."""
        refs = {key: self.state.job(key).committed for key in self.plan.jobs}
        return {key: {b.name: b.sha256 for b in ref.blobs} for key, ref in refs.items() if ref}


def left_by(words: list[str]) -> Left:
    """Read a run's store."""
    config = compose_config(words)
    plan, store = expand(config), open_run_store(config)
    state, entries = load_run(store, config.run)
    return Left(plan, state, entries, gather(plan, state, store))
