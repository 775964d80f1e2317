"""One or two workers, ZeRO 0 to 3: the same global batch gives the same losses (fp32, to 1e-4 over 20 steps)."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.kits.stage import pack_toys, toy_config

STEPS = 20
SHORT = ["train.budget.max_steps=6", "train.log_every=1", "train.checkpoint_every=0", "train.budget.validations=1"]
WORDS = [f"train.budget.max_steps={STEPS}", *SHORT[1:]]
RIVALS = {
    "ewc": ["method.settings.fisher_samples=16", "method.settings.weight=1e4"],
    "lwf": [],
    "experience_replay": ["method.settings.every=2", "method.settings.capacity=24"],
    "i2i": [],
}
# With an epsilon of 1e-8 AdamW turns rounding of the smallest gradients into whole steps; gradients are the point here.
RIVALS_LEARN = [*SHORT, "train.budget.global_batch=16", "train.budget.eps=1e-4"]

Lines = list[list[float]]


@dataclass(frozen=True)
class Asked:
    """One run whose losses are asked for."""

    folder: Path
    words: Sequence[str]
    zero: int = 0


def curves(world: int, asked: Mapping[str, Asked], *, apart: bool = False) -> dict[str, Lines]:
    """For each run, of its first three training jobs the losses of the steps, then those of each validation; in ATLAS as released
    these are stage two, then stages one and two of the next task. All of them in the same processes: starting one takes longer
    than what it learns here.

    `apart`: ZeRO-3 divides parameters of every size, and validations tell their scores as well. (Two numbers of workers round
    differently, and what has learnt next to nothing answers otherwise then.)
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    env = {**os.environ, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(world)}
    runs = {
        name: [str(run.folder), *run.words, f"train.workers={world}", f"train.zero_stage={run.zero}"]
        for name, run in asked.items()
    }
    command = [sys.executable, "-m", "tests.integration.topology_rank", json.dumps(apart), json.dumps(runs)]
    ranks = [
        subprocess.Popen(command, env={**env, "RANK": str(r), "LOCAL_RANK": str(r)}, stdout=subprocess.PIPE) for r in range(world)
    ]
    outputs = [rank.communicate(timeout=800)[0] for rank in ranks]
    assert [rank.returncode for rank in ranks] == [0] * world
    found: dict[str, Lines] = json.loads(outputs[0].splitlines()[-1])
    return found


def agree(ours: Lines, theirs: Lines) -> None:
    """To 1e-4, step by step."""
    assert len(ours) == len(theirs) == 3
    for line, other in zip(ours, theirs, strict=True):
        assert line == pytest.approx(other, abs=1e-4)


@pytest.fixture(scope="module")
def learnt(tmp_path_factory: pytest.TempPathFactory) -> dict[int, dict[str, Lines]]:
    """By number of workers: ATLAS as released by ZeRO stage, and every rival."""
    folder, small = tmp_path_factory.mktemp("toys"), tmp_path_factory.mktemp("small")
    pack_toys(toy_config(folder), samples=96)
    pack_toys(toy_config(small), samples=48)
    rivals = {name: Asked(small, [*RIVALS_LEARN, f"method={name}", *words]) for name, words in RIVALS.items()}
    one = {"ZeRO 0": Asked(folder, WORDS)}
    two = {f"ZeRO {zero}": Asked(folder, WORDS, zero) for zero in range(4)}
    return {1: curves(1, one | rivals), 2: curves(2, two | rivals)}


@pytest.mark.timeout(900)
@pytest.mark.parametrize("zero", range(4))
def test_losses_agree_over_20_steps(learnt: dict[int, dict[str, Lines]], zero: int) -> None:
    reference = learnt[1]["ZeRO 0"]
    assert all(len(line) == STEPS + 1 for line in reference)
    agree(learnt[2][f"ZeRO {zero}"], reference)


@pytest.mark.timeout(900)
@pytest.mark.parametrize("method", RIVALS)
def test_rivals_learn_the_same_with_two_workers(learnt: dict[int, dict[str, Lines]], method: str) -> None:
    agree(learnt[2][method], learnt[1][method])


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_zero_3_with_layers_computed_again_learns_the_same(tmp_path: Path) -> None:
    """In backward ZeRO-3 fetches a layer's parameters a second time, for a layer that is computed a second time."""
    pack_toys(toy_config(tmp_path), samples=48)
    again = Asked(tmp_path, [*SHORT, "train.activation_checkpointing=true"], zero=3)
    found = curves(2, {"whole": Asked(tmp_path, SHORT), "again": again}, apart=True)
    assert [len(line) for line in found["whole"]] == [8, 8, 8]
    agree(found["again"], found["whole"])


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
    divided = Asked(tmp_path, [*words, "train.activation_checkpointing=true"], zero=3)
    found = curves(2, {"whole": Asked(tmp_path, words), "divided": divided}, apart=True)
    assert [len(line) for line in found["whole"]] == [5, 5, 5]
    agree(found["divided"], found["whole"])
