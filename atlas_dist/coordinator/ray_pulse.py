"""The stall watch's hands: pulses from workers to the coordinator, and the end of a group that stands still.

A process that hangs in a library or is stopped cannot end itself, so a task on its node does it from outside: a signal makes
the interpreter write the stacks of all its threads (faulthandler needs no turn of Python's), SIGKILL follows, and Ray Train
starts the group again.
"""

from __future__ import annotations

import faulthandler
import logging
import os
import signal
import socket
import tempfile
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from atlas_dist.config import RunConfig
from atlas_dist.coordinator.pool import PoolDispatcher
from atlas_dist.coordinator.ray_metrics import RunMetrics
from atlas_dist.coordinator.stall import Process, Stall, StallWatch
from atlas_dist.core.attempts import Failure, FailureKind
from atlas_dist.errors import AtlasError
from atlas_dist.pulse import Pulse, pulse
from atlas_dist.store import StoreOptions, open_store
from atlas_dist.store.attempt_logs import rank_stacks

log = logging.getLogger(__name__)

BEAT_S = 2.0
LOOK_S = 2.0
STACKS_SIGNAL = signal.SIGUSR2
WRITTEN_S = 5.0
"""Seconds that a process has to write its stacks."""
TASK_S = 120.0
"""Seconds for a task on a node to start, take stacks and end the processes there."""
Place = tuple[str, str, str]


class PulseSender(threading.Thread):
    """A worker's side: tells the coordinator every two seconds where its job stands, and at once that one has begun: a rank that
    is stopped right then is known already."""

    def __init__(self, actor: Any, rank: int, world: int) -> None:
        super().__init__(name="pulse", daemon=True)
        self._actor, self._rank, self._world = actor, rank, world
        # Kept open for good: the signal may come at any time.
        self._file = tempfile.NamedTemporaryFile("wb", prefix="atlas-stacks-", suffix=".txt")  # noqa: SIM115
        faulthandler.register(STACKS_SIGNAL, self._file, all_threads=True)
        here = ray.get_runtime_context().get_node_id()
        self._process = Process(here, socket.gethostname(), os.getpid(), born(os.getpid()), self._file.name)

    def run(self) -> None:
        """Until the process ends."""
        while True:
            pulse.began.clear()
            told = self._actor.pulse.remote(self._rank, self._world, self._process, pulse.now())
            pulse.began.wait(BEAT_S)
            while not ray.wait([told], timeout=BEAT_S)[0]:  # one at a time: a coordinator that is slow is not flooded
                pass


class GroupEnder:
    """The coordinator's side: hears pulses, and ends groups that stand still."""

    def __init__(self, config: RunConfig, dispatcher: PoolDispatcher, metrics: RunMetrics) -> None:
        self._config, self._dispatcher, self._metrics = config, dispatcher, metrics
        self._watch = StallWatch(config.cluster.stall_s, time.monotonic)
        self._lock = threading.Lock()

    def heard(self, rank: int, world: int, process: Process, at: Pulse) -> None:
        """A rank says where it stands."""
        with self._lock:
            self._watch.heard(rank, world, process, at)

    def watch(self) -> None:
        """The body of a thread: look, and look again."""
        while True:
            time.sleep(LOOK_S)
            running = self._dispatcher.under_way()
            with self._lock:
                stalls = self._watch.look(running)
            for stall in stalls:
                self._end(stall)

    def _end(self, stall: Stall) -> None:
        """Say it first, or ranks that see another one die would give that as the reason; then take the stacks, then the
        processes."""
        reason = f"{stall.reason}. Stacks: atlas-dist logs --attempt {stall.attempt[:12]}"
        log.warning("attempt %s stands still: %s", stall.attempt, reason)
        self._metrics.failed(FailureKind.STALLED.value)
        self._dispatcher.failed(stall.attempt, Failure(FailureKind.STALLED, reason, stall.step))
        store = self._config.store
        place = (store.url, store.endpoint_url, store.region)
        nodes: dict[str, list[tuple[int, Process]]] = {}
        for rank, process in stall.processes:
            nodes.setdefault(process.node, []).append((rank, process))
        tasks = [
            _on(node).remote(place, self._config.run, stall.attempt, processes, stall.behind) for node, processes in nodes.items()
        ]
        # A node that is away itself has no task: Ray finds that out and replaces the group.
        done, _ = ray.wait(tasks, num_returns=len(tasks), timeout=TASK_S)
        for task in done:
            with suppress(ray.exceptions.RayError):
                for line in ray.get(task):
                    log.warning("attempt %s: %s", stall.attempt, line)


def _on(node: str) -> Any:
    strategy = NodeAffinitySchedulingStrategy(node_id=node, soft=False)
    return ray.remote(num_cpus=0, max_retries=0, scheduling_strategy=strategy)(end_processes)


def end_processes(
    place: Place, run: str, attempt: str, processes: list[tuple[int, Process]], behind: tuple[int, ...] = ()
) -> list[str]:
    """On their node: the stacks of the processes that are still those meant, their end, then their stacks into the store. What
    was done, a line a rank."""
    found = [(rank, process) for rank, process in processes if born(process.pid) == process.born]
    taken = {rank: _stacks_of(rank, process, behind) for rank, process in found}
    for _, process in found:
        with suppress(ProcessLookupError):
            os.kill(process.pid, signal.SIGKILL)
    told = [f"rank {rank} (process {process.pid}) is ended" for rank, process in found]
    try:
        url, endpoint, region = place
        store = open_store(url, options=StoreOptions(endpoint, region))
        for rank, text in taken.items():
            store.put(rank_stacks(run, attempt, rank), text.encode())
    except AtlasError as error:
        told.append(f"its stacks are lost: {error}")
    return told


def _stacks_of(rank: int, process: Process, behind: tuple[int, ...]) -> str:
    """The stacks of all threads of a process; a stopped one goes on for so long."""
    path = Path(process.stacks)
    state = _state(process.pid)
    before = _size(path)
    with suppress(ProcessLookupError):
        os.kill(process.pid, STACKS_SIGNAL)
        os.kill(process.pid, signal.SIGCONT)
    until, size = time.monotonic() + WRITTEN_S, before
    while time.monotonic() < until:
        time.sleep(0.2)
        if before < (now := _size(path)) == size:
            break
        size = now
    text = path.read_bytes()[before:].decode(errors="replace") if size > before else ""
    which = ", which the others wait for" if rank in behind else ""
    head = f"rank {rank}{which}: process {process.pid} on {process.host}, {state}"
    return f"{head}\n{text or 'It wrote no stacks.'}\n"


def born(pid: int) -> int:
    """When a process started, in the kernel's ticks; 0 = there is none."""
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19])
    except (OSError, ValueError, IndexError):
        return 0


def _state(pid: int) -> str:
    """As the kernel names it: `S (sleeping)`, `T (stopped)`."""
    with suppress(OSError):
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("State:"):
                return line.partition(":")[2].strip()
    return "gone"


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0
