"""The head's preStop hook, run for real in a process namespace of its own: it asks the driver, waits, and harms nobody else. The
workers', with stand-ins for Ray's commands."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

RAYJOB = yaml.safe_load((Path(__file__).parents[3] / "cluster/kuberay/job/rayjob.yaml").read_text())
CLUSTER = RAYJOB["spec"]["rayClusterSpec"]
HEAD, WORKER = (group["template"]["spec"]["containers"][0] for group in (CLUSTER["headGroupSpec"], *CLUSTER["workerGroupSpecs"]))
HOOK, WORKERS_HOOK = (container["lifecycle"]["preStop"]["exec"]["command"] for container in (HEAD, WORKER))

DRIVER = """
import pathlib, signal, sys, time
folder = pathlib.Path(sys.argv[1])
def save(*_):
    time.sleep(1)
    (folder / "checkpoint").write_text("saved\\n")
    sys.exit(8)
signal.signal(signal.SIGTERM, save)
(folder / "up").touch()
while True:
    time.sleep(0.1)
"""
# The driver is the child of a shell that has its words too: Ray starts a job so, and takes it for failed when the shell ends.
# The first line is the safety catch: outside a fresh namespace with its own /proc, nothing is done.
SCENE = """
[ "$$" -eq 1 ] && [ "$(ls -d /proc/[0-9]* | wc -l)" -lt 8 ] || exit 99
wrapped='trap "touch $0/shell-harmed; exit 1" TERM; python3 "$0/driver" "$0" atlas_dist run; echo $? > "$0/code"'
sh -c "$wrapped" "$1" atlas_dist run &
bash -c 'trap "touch $0/harmed" TERM; touch $0/other; while :; do sleep 0.1; done' "$1" somebody else &
while ! [ -e "$1/up" ] || ! [ -e "$1/other" ]; do sleep 0.05; done
shift
"$@" || exit 98
"""


def in_a_namespace(folder: Path, *command: str) -> subprocess.CompletedProcess[str]:
    scene = folder / "scene"  # in a file: the words of a driver must not stand in the scene's own command line
    scene.write_text(SCENE)
    (folder / "driver").write_text(DRIVER)
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
    assert (tmp_path / "code").read_text() == "8\n", "the shell lives, and has the driver's exit code"
    assert not (tmp_path / "shell-harmed").exists()
    assert not (tmp_path / "harmed").exists()


@pytest.mark.usefixtures("namespaces")
def test_without_the_hook_nothing_is_saved(tmp_path: Path) -> None:
    assert in_a_namespace(tmp_path, "true").returncode == 0
    assert not (tmp_path / "checkpoint").exists()


TRAINS = """
[ "$$" -eq 1 ] && [ "$(ls -d /proc/[0-9]* | wc -l)" -lt 8 ] || exit 99
PATH=$1:$PATH
bash -c 'exec -a "ray::RayTrainWorker.run_train_fn" bash -c "touch $0/trains; while ! [ -e $0/saved ]; do :; done; exit"' "$1" &
bash -c 'exec -a "ray::IDLE" bash -c "while :; do /bin/sleep 0.1; done"' &
while ! [ -e "$1/trains" ]; do /bin/sleep 0.05; done
shift
"$@" || exit 98
"""
IDLE = """
[ "$$" -eq 1 ] && [ "$(ls -d /proc/[0-9]* | wc -l)" -lt 8 ] || exit 99
PATH=$1:$PATH
bash -c 'exec -a "ray::IDLE" bash -c "while :; do /bin/sleep 0.1; done"' &
shift
"$@" || exit 98
"""


def workers_hook(folder: Path, scene: str, *, broken: bool = False, leaves_after: int = 3) -> list[str]:
    """What the hook does in a process namespace of its own, with stand-ins for Ray's commands: each line one call. The group
    has saved its checkpoint, and its process ends, after `leaves_after` seconds of waiting."""
    said = folder / "said"
    stubs = {
        "python": "exit 1" if broken else "echo 0a1b",
        "ray": f'echo "$*" >> {said}; exit {int(broken)}',
        "sleep": f"echo waits >> {said}; "
        f'[ "$(grep -c waits {said})" -lt {leaves_after} ] || touch {folder}/saved; exec /bin/sleep 0.2',
    }
    for name, body in stubs.items():
        (folder / name).write_text(f"#!/bin/bash\n{body}\n")
        (folder / name).chmod(0o755)
    file = folder / "scene"
    file.write_text(scene)
    unshare = ["unshare", "--pid", "--fork", "--mount-proc", "--kill-child", "bash", str(file), str(folder)]
    done = subprocess.run([*unshare, *WORKERS_HOOK], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return said.read_text().splitlines() if said.exists() else []


@pytest.mark.usefixtures("namespaces")
@pytest.mark.parametrize("broken", [False, True])
def test_a_workers_hook_says_that_its_node_goes_and_stays_until_the_group_has_left(tmp_path: Path, broken: bool) -> None:
    """Whatever comes of the notice: the group may have been told by somebody else."""
    drained, *waits = workers_hook(tmp_path, TRAINS, broken=broken)
    assert drained.startswith(f"drain-node --node-id {'' if broken else '0a1b'} --reason DRAIN_NODE_REASON_PREEMPTION")
    assert 3 <= len(waits) < 60


@pytest.mark.usefixtures("namespaces")
def test_a_workers_hook_waits_no_longer_than_a_minute(tmp_path: Path) -> None:
    _, *waits = workers_hook(tmp_path, TRAINS, leaves_after=1000)
    assert len(waits) == 60


@pytest.mark.usefixtures("namespaces")
def test_a_pod_without_a_training_worker_goes_at_once(tmp_path: Path) -> None:
    """Its GPUs are free and its replacement comes: KubeRay counts a pod that is being stopped as one that is there."""
    assert workers_hook(tmp_path, IDLE) == []


def test_the_hook_knows_what_ray_calls_its_training_workers() -> None:
    """A worker's process is called `ray::<class>` and, during a call, `ray::<class>.<method>` (seen with Ray 2.60)."""
    from ray.train.v2._internal.execution.worker_group import RayTrainWorker

    assert re.search(r"\^ray::(\S+)'", WORKERS_HOOK[-1])[1] == "[A-Za-z]*TrainWorker"  # type: ignore[index]
    assert re.fullmatch("[A-Za-z]*TrainWorker", RayTrainWorker.__name__)
