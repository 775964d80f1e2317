"""The head's preStop hook, run for real in a process namespace of its own: it asks the driver, waits, and harms nobody else."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

RAYJOB = yaml.safe_load((Path(__file__).parents[3] / "cluster/kuberay/base/rayjob.yaml").read_text())
HEAD = RAYJOB["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]["containers"][0]
HOOK = HEAD["lifecycle"]["preStop"]["exec"]["command"]

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


@pytest.fixture(autouse=True)
def _possible() -> None:
    probe = ["unshare", "--pid", "--fork", "--mount-proc", "true"]
    if os.geteuid() != 0 or shutil.which("unshare") is None or subprocess.run(probe, capture_output=True, check=False).returncode:
        pytest.skip("process namespaces need root and unshare")


def test_the_hook_waits_for_the_drivers_checkpoint_and_touches_nobody_else(tmp_path: Path) -> None:
    done = in_a_namespace(tmp_path, *HOOK)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "checkpoint").read_text() == "saved\n"
    assert not (tmp_path / "harmed").exists()


def test_without_the_hook_nothing_is_saved(tmp_path: Path) -> None:
    assert in_a_namespace(tmp_path, "true").returncode == 0
    assert not (tmp_path / "checkpoint").exists()
