"""The launcher file fits Ray's own schema, the Slurm script is a script, and both keep what the manifests keep.

No cloud and no Slurm was at hand: neither has been tried for real.
"""

from __future__ import annotations

import json
import os
import shutil
import stat
import subprocess
import time
from pathlib import Path

import jsonschema
import pytest
import ray
import yaml

CLUSTER = Path(__file__).parents[3] / "cluster"
LAUNCHER = yaml.safe_load((CLUSTER / "ray/launcher.yaml").read_text())
SBATCH = CLUSTER / "slurm/atlas.sbatch"


def test_the_launcher_fits_rays_schema() -> None:
    schema = json.loads((Path(ray.__file__).parent / "autoscaler/ray-schema.json").read_text())
    jsonschema.validate(LAUNCHER, schema)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(LAUNCHER | {"max_worker": 4}, schema)


def test_the_launcher_asks_for_a_token_and_keeps_the_head_free() -> None:
    assert "-e RAY_AUTH_MODE=token" in LAUNCHER["docker"]["run_options"]
    assert LAUNCHER["available_node_types"]["head"]["resources"] == {"CPU": 0}
    assert any(
        "RAY_JOB_STOP_WAIT_TIME_S=100" in c and "--dashboard-host=127.0.0.1" in c for c in LAUNCHER["head_start_ray_commands"]
    )
    profiles = {n: t["node_config"]["IamInstanceProfile"]["Name"] for n, t in LAUNCHER["available_node_types"].items()}
    assert profiles == {"head": "atlas-dist-coordinator", "worker": "atlas-dist-worker"}


@pytest.fixture
def fake_slurm(tmp_path: Path) -> dict[str, str]:
    """Slurm's and Ray's commands as scripts that write down how they were called; the driver says paused."""
    log = tmp_path / "calls"
    tools = {
        "scontrol": 'echo "scontrol $*" >> "$CALLS"; [ "$1" = show ] && printf "node1\\nnode2\\n" || true',
        "srun": 'echo "srun $* cpus=${SRUN_CPUS_PER_TASK:-}" >> "$CALLS"; case "$*" in *hostname*) echo 10.0.0.1 ;; esac',
        "ray": "true",
        "sleep": "true",
        "python": 'echo "python $*" >> "$CALLS"; [ "$1" = - ] && { cat > /dev/null; exit 0; }; trap "exit 8" TERM; '
        'touch "$CALLS.started"; while :; do /bin/sleep 0.05; done',
    }
    for name, body in tools.items():
        path = tmp_path / name
        path.write_text(f"#!/bin/bash\n{body}\n")
        path.chmod(path.stat().st_mode | stat.S_IXUSR)
    slurm = {"SLURM_JOB_ID": "77", "SLURM_JOB_NODELIST": "node[1-2]", "SLURM_JOB_NUM_NODES": "2", "SLURM_GPUS_ON_NODE": "4"}
    return {**os.environ, **slurm, "CALLS": str(log), "PATH": f"{tmp_path}:{os.environ['PATH']}"}


def warned_while_it_runs(environment: dict[str, str]) -> str:
    """Start the script, send Slurm's warning once the driver runs, wait for the end of a paused run; what was called."""
    script = subprocess.Popen(["bash", str(SBATCH), "experiment=toy"], env=environment)
    calls = Path(environment["CALLS"])
    # Ray's own commands run beside the driver: they may be later than it on a busy machine.
    while not calls.with_name("calls.started").exists() or calls.read_text().count("ray start") < 2:
        assert script.poll() is None
        time.sleep(0.02)
    script.terminate()
    assert script.wait(60) == 8
    return calls.read_text()


@pytest.mark.skipif(shutil.which("bash") is None, reason="no bash")
def test_slurms_warning_reaches_the_driver_and_a_paused_run_is_queued_again(fake_slurm: dict[str, str]) -> None:
    said = warned_while_it_runs(fake_slurm)
    assert "python -m atlas_dist run cluster=ray experiment=toy" in said
    assert "scontrol requeue 77" in said
    assert "ray start --head --node-ip-address=10.0.0.1 --port=20077" in said
    starts = [line for line in said.splitlines() if "ray start" in line]
    assert len(starts) == 2
    assert all(line.endswith("cpus=32") for line in starts), "a step has one core unless it is told otherwise"
    assert "--exclude=node1 ray start --address=10.0.0.1:20077" in said


@pytest.mark.skipif(shutil.which("bash") is None, reason="no bash")
def test_a_warning_before_the_driver_listens_queues_the_run_again_too(fake_slurm: dict[str, str]) -> None:
    """The driver's Python has a second of imports before it has a handler: the script, not luck, decides what becomes of it."""
    driver = Path(fake_slurm["CALLS"]).with_name("python")
    driver.write_text(
        '#!/bin/bash\n[ "$1" = - ] && { cat > /dev/null; exit 0; }\ntouch "$CALLS.started"\nwhile :; do /bin/sleep 0.05; done\n'
    )
    assert "scontrol requeue 77" in warned_while_it_runs(fake_slurm)
