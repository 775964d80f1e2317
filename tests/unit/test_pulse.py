"""What a rank notes of itself, and what it does not."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from atlas_dist import pulse as module
from atlas_dist.pulse import Doing, pulse
from atlas_dist.store.noted import NotedStore
from atlas_dist.store.objects import MemoryStore


def test_nobody_is_at_anything_outside_a_job() -> None:
    pulse.passed(Doing.LEARNING, 3)
    assert pulse.now() == module.Pulse()


def test_a_step_has_a_pace_and_a_wait_gives_back_what_was(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([0.0, 2.0, 3.0, 9.0, 9.5])
    monkeypatch.setattr(module.time, "monotonic", lambda: next(clock))
    with pulse.job("a1"):
        assert pulse.now().doing is Doing.PREPARING
        for step in (1, 2, 3, 4):
            pulse.passed(Doing.LEARNING, step)
        assert (pulse.now().step, pulse.now().pace_s) == (4, 2.0), "the median of 2, 1 and 6 s"
        with pulse.waiting(Doing.DATA):
            assert pulse.now().doing is Doing.DATA
        assert pulse.now().doing is Doing.LEARNING
        pulse.prepare()
        pulse.passed(Doing.SCORING)
        assert (pulse.now().step, pulse.now().pace_s) == (4, 0.0), "another kind of pass has its own pace"
    assert pulse.now() == module.Pulse()


def test_an_upload_in_the_background_is_no_wait_of_the_job() -> None:
    seen = []

    class Looking(MemoryStore):
        def put(self, key: str, data: bytes) -> None:
            seen.append(pulse.now().doing)

    store = NotedStore(Looking("x"))
    with pulse.job("a1"):
        store.put("a", b"")
        other = threading.Thread(target=store.put, args=("b", b""))
        other.start()
        other.join()
    assert seen == [Doing.STORE, Doing.PREPARING]


STUCK = """
import faulthandler, signal, sys
faulthandler.register(signal.SIGUSR2, open(sys.argv[1], "wb"), all_threads=True)
def waits_in_a_collective():
    print("here", flush=True)
    while True:
        pass
waits_in_a_collective()
"""


@pytest.mark.parametrize("stopped", [False, True])
def test_a_process_that_stands_still_leaves_its_stack_and_ends(tmp_path: Path, stopped: bool) -> None:
    """As the task on its node does it: also one that is stopped and can do nothing itself."""
    from atlas_dist.coordinator.ray_pulse import born, end_processes
    from atlas_dist.coordinator.stall import Process
    from atlas_dist.store import open_store

    stacks = tmp_path / "stacks.txt"
    stuck = subprocess.Popen([sys.executable, "-c", STUCK, str(stacks)], stdout=subprocess.PIPE)
    try:
        assert stuck.stdout is not None and stuck.stdout.readline() == b"here\n"
        if stopped:
            os.kill(stuck.pid, signal.SIGSTOP)
            os.waitid(os.P_PID, stuck.pid, os.WSTOPPED)
        ours = Process("node", "host", stuck.pid, born(stuck.pid), str(stacks))
        others = Process("node", "host", os.getpid(), born(os.getpid()) + 1, str(stacks))
        told = end_processes((f"file://{tmp_path}/store", "", ""), "r", "a1", [(3, ours), (4, others)], (3,))
        assert stuck.wait(30) == -signal.SIGKILL
    finally:
        stuck.kill()
        stuck.wait()
    assert told == [f"rank 3 (process {stuck.pid}) is ended"], "a process id that is another's by now is let alone"
    text = open_store(f"file://{tmp_path}/store").get("logs/r/a1/rank-0003.stacks.log").decode()
    assert "waits_in_a_collective" in text
    assert "which the others wait for" in text and ("T (stopped)" in text) == stopped
