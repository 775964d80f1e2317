"""One or two workers, ZeRO 0 to 3: the same global batch gives the same losses (fp32, to 1e-4 over 20 steps)."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.kits.stage import pack_toys, toy_config

STEPS = 20
WORDS = [f"train.budget.max_steps={STEPS}", "train.log_every=1", "train.checkpoint_every=0", "train.budget.validations=1"]
TOPOLOGIES = {"1 worker, ZeRO 0": (1, [0]), "2 workers, ZeRO 0-3": (2, [0, 1, 2, 3])}


def curves(
    folder: Path, world: int, stages: list[int], words: Sequence[str] = WORDS, *, apart: bool = False
) -> dict[int, list[list[float]]]:
    """{ZeRO stage: of the first three training jobs, the losses of the steps, then those of each validation}; in ATLAS as
    released these are stage two, then stages one and two of the next task.

    `apart`: ZeRO-3 divides parameters of every size, and validations tell their scores as well. (Two numbers of workers round
    differently, and what has learnt next to nothing answers otherwise then.)
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    env = {**os.environ, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(world)}
    command = [
        sys.executable,
        "-m",
        "tests.integration.topology_rank",
        str(folder),
        json.dumps(stages),
        json.dumps(apart),
        *words,
    ]
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
    assert all(len(line) == STEPS + 1 for line in reference)
    for name, lines in found.items():
        for ours, theirs in zip(lines, reference, strict=True):
            assert ours == pytest.approx(theirs, abs=1e-4), name


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_zero_3_with_layers_computed_again_learns_the_same(tmp_path: Path) -> None:
    """In backward ZeRO-3 fetches a layer's parameters a second time, for a layer that is computed a second time."""
    pack_toys(toy_config(tmp_path), samples=48)
    short = ["train.budget.max_steps=6", "train.log_every=1", "train.checkpoint_every=0", "train.budget.validations=1"]
    whole = curves(tmp_path, 2, [0], short, apart=True)[0]
    again = curves(tmp_path, 2, [3], [*short, "train.activation_checkpointing=true"], apart=True)[3]
    assert [len(line) for line in whole] == [8, 8, 8]
    for ours, theirs in zip(again, whole, strict=True):
        assert ours == pytest.approx(theirs, abs=1e-4)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize(("adapter", "tiles"), [("bottleneck", 1), ("lora", 1), ("lora", 2)])
def test_answers_that_are_written_are_learnt_the_same_with_zero_3(tmp_path: Path, adapter: str, tiles: int) -> None:
    """A task of classes, then one whose answers are written, alone and with the first one's adapter. Each rank's answers end
    after another number of tokens (topology_rank.py), and each token needs every rank."""
    words = [
        *("sequence=toy_decoder", "sequence.upstream=[toy_shape,toy_say]", "backbone=random_smolvlm", "method=atlas"),
        *("method.settings.rank=4", f"method.settings.adapter={adapter}", "train.eval_batch=1", "train.budget.global_batch=8"),
        *("train.budget.max_steps=3", "train.log_every=1", "train.checkpoint_every=0", "train.budget.validations=1"),
        f"backbone.tiles={tiles}",
    ]
    pack_toys(toy_config(tmp_path, *words), samples=16)
    whole = curves(tmp_path, 2, [0], words, apart=True)[0]
    apart = curves(tmp_path, 2, [3], [*words, "train.activation_checkpointing=true"], apart=True)[3]
    assert [len(line) for line in whole] == [5, 5, 5]
    for ours, theirs in zip(apart, whole, strict=True):
        assert ours == pytest.approx(theirs, abs=1e-4)


@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    ("method", "settings"),
    [
        ("ewc", ["method.settings.fisher_samples=16", "method.settings.weight=1e4"]),
        ("lwf", []),
        ("experience_replay", ["method.settings.every=2", "method.settings.capacity=24"]),
        ("i2i", []),
    ],
)
def test_rivals_learn_the_same_with_two_workers(tmp_path: Path, method: str, settings: list[str]) -> None:
    pack_toys(toy_config(tmp_path), samples=48)
    short = ["train.budget.max_steps=6", "train.log_every=1", "train.checkpoint_every=0", "train.budget.validations=1"]
    # With an epsilon of 1e-8 AdamW turns rounding of the smallest gradients into whole steps; gradients are the point here.
    words = [*short, "train.budget.global_batch=16", "train.budget.eps=1e-4", f"method={method}", *settings]
    one, two = (curves(tmp_path, world, [0], words)[0] for world in (1, 2))
    assert len(one) == 3
    for ours, theirs in zip(two, one, strict=True):
        assert ours == pytest.approx(theirs, abs=1e-4)
