"""The head's preStop hook, run for real in a process namespace of its own: it asks the driver, waits, and harms nobody else. The
workers', with stand-ins for Ray's commands."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

RAYJOB = yaml.safe_load((Path(__file__).parents[3] / "cluster/kuberay/base/rayjob.yaml").read_text())
CLUSTER = RAYJOB["spec"]["rayClusterSpec"]
HEAD, WORKER = (group["template"]["spec"]["containers"][0] for group in (CLUSTER["headGroupSpec"], *CLUSTER["workerGroupSpecs"]))
HOOK, WORKERS_HOOK = (container["lifecycle"]["preStop"]["exec"]["command"] for container in (HEAD, WORKER))

# The first line is the safety catch: outside a fresh namespace with its own /proc, nothing is done.
SCENE = """
[ "$$" -eq 1 ] && [ "$(ls -d /proc/[0-9]* | wc -l)" -lt 8 ] || exit 99
bash -c 'trap "sleep 1; echo saved > $0/checkpoint; exit 8" TERM; touch $0/up; while :; do sleep 0.1; done' "$1" atlas_dist run &
bash -c 'trap "touch $0/harmed" TERM; touch $0/other; while :; do sleep 0.1; done' "$1" somebody else &
while ! [ -e "$1/up" ] || ! [ -e "$1/other" ]; do sleep 0.05; done
shift
"$@" || exit 98
"""


def in_a_namespace(folder: Path, *command: str) -> subprocess.CompletedProcess[str]:
    scene = folder / "scene"  # in a file: the words of a driver must not stand in the scene's own command line
    scene.write_text(SCENE)
    unshare = ["unshare", "--pid", "--fork", "--mount-proc", "--kill-child", "bash", str(scene), str(folder)]
    return subprocess.run([*unshare, *command], capture_output=True, text=True, timeout=120, check=False)


@pytest.fixture
def namespaces() -> None:
    probe = ["unshare", "--pid", "--fork", "--mount-proc", "true"]
    if os.geteuid() != 0 or shutil.which("unshare") is None or subprocess.run(probe, capture_output=True, check=False).returncode:
        pytest.skip("process namespaces need root and unshare")


@pytest.mark.usefixtures("namespaces")
def test_the_hook_waits_for_the_drivers_checkpoint_and_touches_nobody_else(tmp_path: Path) -> None:
    done = in_a_namespace(tmp_path, *HOOK)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "checkpoint").read_text() == "saved\n"
    assert not (tmp_path / "harmed").exists()


@pytest.mark.usefixtures("namespaces")
def test_without_the_hook_nothing_is_saved(tmp_path: Path) -> None:
    assert in_a_namespace(tmp_path, "true").returncode == 0
    assert not (tmp_path / "checkpoint").exists()


@pytest.mark.parametrize("broken", [False, True])
def test_a_workers_hook_says_that_its_node_goes_and_waits_whatever_comes_of_it(tmp_path: Path, broken: bool) -> None:
    said = tmp_path / "said"
    stubs = {
        "python": "exit 1" if broken else "echo 0a1b",
        "ray": f'echo "$*" >> {said}; exit {int(broken)}',
        "sleep": f'echo "slept $1" >> {said}',
    }
    for name, body in stubs.items():
        (tmp_path / name).write_text(f"#!/bin/bash\n{body}\n")
        (tmp_path / name).chmod(0o755)
    env = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    done = subprocess.run(WORKERS_HOOK, env=env, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    drained, waited = said.read_text().splitlines()
    assert drained.startswith(f"drain-node --node-id {'' if broken else '0a1b'} --reason DRAIN_NODE_REASON_PREEMPTION")
    assert waited == "slept 60"
