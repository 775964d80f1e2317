"""Signals that stop a run, in a child process that waits like the driver. Defends: each asks for one orderly end; what a shell or
a supervisor sends twice is not impatience; `nohup` holds; processes of ours do not hear what their group is told."""

from __future__ import annotations

import os
import pty
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from atlas_dist.coordinator.stop_signals import StopSignals

DRIVER = """
import signal, subprocess, sys, time
from pathlib import Path
from atlas_dist.coordinator.stop_signals import StopSignals, deaf_children
here = Path(sys.argv[1])
with StopSignals() as signals:
    with deaf_children():
        child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(120)"])
    signals.hear()
    (here / "child").write_text(str(child.pid))
    try:
        (here / "ready").touch()  # as soon as it is there a signal may come
        while True:
            time.sleep(0.02)
    except KeyboardInterrupt:
        (here / "asked").touch()
    hurried = False
    try:
        until = time.monotonic() + float(sys.argv[2])
        while time.monotonic() < until:
            print("a line", flush=True)
            time.sleep(0.02)
    except KeyboardInterrupt:
        hurried = True
    alive = child.poll() is None
    child.kill()
    (here / "result").write_text(f"{hurried=} {alive=} {signals.hurried=}")
sys.exit(8)
"""


def appears(path: Path) -> None:
    until = time.monotonic() + 120
    while not path.exists():
        assert time.monotonic() < until, f"{path} never came"
        time.sleep(0.02)


def as_from_a_terminal() -> None:
    """Hear signals, though the tests themselves may have been started by `nohup` or in the background of a script."""
    for number in (signal.SIGHUP, signal.SIGINT, signal.SIGQUIT):
        signal.signal(number, signal.SIG_DFL)


def driver(folder: Path, linger_s: float = 0.5, **options: object) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-c", DRIVER, str(folder), str(linger_s)]
    options = {"stdout": subprocess.DEVNULL, "preexec_fn": as_from_a_terminal, **options}
    process = subprocess.Popen(command, start_new_session=True, **options)  # type: ignore[call-overload]
    appears(folder / "ready")
    return process  # type: ignore[no-any-return]


def result(process: subprocess.Popen[bytes], folder: Path) -> str:
    assert process.wait(120) == 8
    return (folder / "result").read_text()


TO: dict[str, Callable[[int, int], None]] = {"the driver": os.kill, "its group": os.killpg}


@pytest.mark.parametrize("to", TO)
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGINT])
def test_each_asks_for_one_orderly_end(number: signal.Signals, to: str, tmp_path: Path) -> None:
    process = driver(tmp_path)
    if number is signal.SIGINT and to == "its group":
        process.send_signal(number)  # Ray keeps its processes from this one itself
    else:
        TO[to](process.pid, number)
    assert result(process, tmp_path) == "hurried=False alive=True signals.hurried=False"


@pytest.mark.parametrize("again", [signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT])
def test_what_is_sent_again_is_no_impatience(again: signal.Signals, tmp_path: Path) -> None:
    """`timeout` and systemd send twice, to the process and its group; a shell sends SIGHUP beside the kernel's."""
    process = driver(tmp_path)
    process.send_signal(signal.SIGTERM)
    appears(tmp_path / "asked")
    for _ in range(3):
        os.killpg(process.pid, again)
    assert result(process, tmp_path) == "hurried=False alive=True signals.hurried=False"


def test_a_second_ctrl_c_does_not_wait(tmp_path: Path) -> None:
    process = driver(tmp_path, linger_s=60.0)
    process.send_signal(signal.SIGINT)
    appears(tmp_path / "asked")
    time.sleep(1.2)
    process.send_signal(signal.SIGINT)
    assert result(process, tmp_path) == "hurried=True alive=True signals.hurried=True"


def test_under_nohup_a_closed_terminal_is_nothing(tmp_path: Path) -> None:
    process = driver(tmp_path, preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN))
    os.killpg(process.pid, signal.SIGHUP)
    time.sleep(0.5)
    assert not (tmp_path / "asked").exists()
    process.send_signal(signal.SIGTERM)
    assert result(process, tmp_path) == "hurried=False alive=True signals.hurried=False"


def test_lines_for_a_terminal_that_has_gone_are_lost_without_an_error(tmp_path: Path) -> None:
    """Closing a window sends SIGHUP, and from then on every write to it fails."""
    ours, theirs = pty.openpty()
    process = driver(tmp_path, stdout=theirs, stderr=theirs)
    os.close(theirs)
    os.close(ours)
    os.killpg(process.pid, signal.SIGHUP)
    assert result(process, tmp_path) == "hurried=False alive=True signals.hurried=False"


def test_handlers_are_given_back() -> None:
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGINT)]
    with StopSignals():
        assert signal.getsignal(signal.SIGTERM) != before[0]
    assert [signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGINT)] == before


def test_in_a_thread_nothing_is_taken() -> None:
    before = signal.getsignal(signal.SIGTERM)
    seen: list[object] = []

    def enter() -> None:
        with StopSignals():
            seen.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    assert seen == [before]
