"""One or two workers, ZeRO 0 to 3: the same global batch gives the same losses (fp32, to 1e-4 over 20 steps)."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tests.integration.stagekit import pack_toys, toy_config

STEPS = 20
WORDS = [f"train.budget.max_steps={STEPS}", "train.log_every=1", "train.checkpoint_every=0", "train.budget.validations=1"]
TOPOLOGIES = {"1 worker, ZeRO 0": (1, [0]), "2 workers, ZeRO 0-3": (2, [0, 1, 2, 3])}


def curves(folder: Path, world: int, stages: list[int]) -> dict[int, list[list[float]]]:
    """{ZeRO stage: [losses of the first task's stage two, of the second's stage one, of its stage two]}."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    env = {**os.environ, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(world)}
    command = [sys.executable, "-m", "tests.integration.topology_rank", str(folder), json.dumps(stages), *WORDS]
    ranks = [
        subprocess.Popen(command, env={**env, "RANK": str(r), "LOCAL_RANK": str(r)}, stdout=subprocess.PIPE) for r in range(world)
    ]
    outputs = [rank.communicate(timeout=500)[0] for rank in ranks]
    assert [rank.returncode for rank in ranks] == [0] * world
    return {int(k): v for k, v in json.loads(outputs[0].splitlines()[-1]).items()}


@pytest.mark.timeout(900)
def test_losses_agree_over_20_steps(tmp_path: Path) -> None:
    pack_toys(toy_config(tmp_path), samples=96)
    found = {
        f"{world} workers, ZeRO {stage}": lines
        for world, stages in TOPOLOGIES.values()
        for stage, lines in curves(tmp_path, world, stages).items()
    }
    reference = found.pop("1 workers, ZeRO 0")
    assert all(len(line) == STEPS for line in reference)
    for name, lines in found.items():
        for ours, theirs in zip(lines, reference, strict=True):
            assert ours == pytest.approx(theirs, abs=1e-4), name
