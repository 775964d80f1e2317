"""A stage moves from 2 to 1 to 2 workers in its middle: every sample is seen exactly once an epoch, what is learnt is what the
undisturbed stage learns (to rounding; to the bit where the number of workers is the same), and predictions never depend on it.

Two workers are processes of their own; the one is this process. Nothing but the store is common to them.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load

from atlas_dist.core.attempts import CommittedRef
from atlas_dist.core.result_files import ADAPTER_FILE, TASK_FILE
from atlas_dist.store import artifacts
from tests.integration.elastic_rank import carry_out, committed
from tests.kits.stage import Bench, pack_toys, toy_config

SAMPLES, BATCH, STEPS = 40, 15, 8
"""An epoch takes three steps, the last partly masked; two workers cannot share a batch evenly; no pause below falls on the end of
an epoch."""
WORDS = [f"train.budget.max_steps={STEPS}", f"train.budget.global_batch={BATCH}", "train.budget.validations=2"]
WORDS += ["train.log_every=1", "train.checkpoint_every=0", "sequence.upstream=[toy_shape]", "sequence.downstream=[]"]
LEARN, SCORE = "1 toy_shape stage2", "1 eval toy_shape"


class Pair:
    """Two ranks that wait for orders."""

    def __init__(self, ranks: list[subprocess.Popen[str]]) -> None:
        self.ranks = ranks

    def do(self, order: dict[str, Any]) -> list[dict[str, Any]]:
        """What each rank says about the order."""
        for rank in self.ranks:
            assert rank.stdin is not None
            rank.stdin.write(json.dumps(order) + "\n")
            rank.stdin.flush()
        return [self._answer(rank) for rank in self.ranks]

    def _answer(self, rank: subprocess.Popen[str]) -> dict[str, Any]:
        assert rank.stdout is not None
        for line in rank.stdout:
            if line.startswith("answer "):
                answer: dict[str, Any] = json.loads(line.removeprefix("answer "))
                return answer
        raise AssertionError(f"a rank ended with {rank.wait()}")


@contextmanager
def two_workers(folder: Path, words: Sequence[str] = WORDS) -> Iterator[Pair]:
    """A gloo group of two processes."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    env = {**os.environ, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2"}
    command = [sys.executable, "-m", "tests.integration.elastic_rank", str(folder), *words]
    ranks = [
        subprocess.Popen(
            command, env={**env, "RANK": str(r), "LOCAL_RANK": str(r)}, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        for r in range(2)
    ]
    try:
        yield Pair(ranks)
        for rank in ranks:
            assert rank.stdin is not None
            rank.stdin.close()
        assert [rank.wait(60) for rank in ranks] == [0, 0]
    finally:
        for rank in ranks:
            rank.kill()


def learn(attempt: str, *, resume: str = "", stop_at: int = 10**9, zero: int = 0) -> dict[str, Any]:
    return {"job": LEARN, "attempt": attempt, "resume": resume, "stop_at": stop_at, "zero": zero}


def score(attempt: str, of: str) -> dict[str, Any]:
    return {"job": SCORE, "attempt": attempt, "from": [of]}


def tensors(ref: CommittedRef, store: Any, file: str) -> dict[str, torch.Tensor]:
    return load(artifacts.load(store, ref, file))


@pytest.mark.timeout(900)
def test_a_stage_moves_between_worlds_and_sees_every_sample_once(tmp_path: Path) -> None:
    config = toy_config(tmp_path, *WORDS)
    pack_toys(config, samples=SAMPLES)
    alone = Bench(config)
    with two_workers(tmp_path) as pair:
        calm = pair.do(learn("calm"))
        first = pair.do(learn("first", stop_at=2))
        second = [carry_out(alone.worker, alone.plan, learn("second", resume="first", stop_at=4))]
        third = pair.do(learn("third", resume="second", stop_at=5))
        last = pair.do(learn("last", resume="third"))
        pair.do(learn("same", resume="first"))
        pair.do(score("calm-by-two", "calm"))
        pair.do(score("last-by-two", "last"))
    carry_out(alone.worker, alone.plan, score("calm-by-one", "calm"))

    moved = [first, second, third, last]
    assert [(m[0]["world"], m[0]["resumed"], m[0]["stopped"]) for m in moved] == [(2, 0, 2), (1, 2, 4), (2, 4, 5), (2, 5, 0)]
    assert all(rank["stopped"] == m[0]["stopped"] for m in moved for rank in m), "whichever rank is heard first tells the step"
    assert {rank["kind"] for part in moved[:-1] for rank in part} == {"preempted"}
    assert steps_of(moved) == steps_of([calm]), "step by step the same global batch, whoever shares it"
    seen = Counter(seen_by(moved))
    assert max(seen.values()) == 1, "no sample twice in an epoch"
    assert Counter(epoch for epoch, _ in seen) == {0: SAMPLES, 1: SAMPLES, 2: 2 * BATCH}, "and every one of it"

    store = alone.context.store
    refs = {name: committed(store, name) for name in ("calm", "same", "last", "calm-by-one", "calm-by-two", "last-by-two")}
    assert {b.name: b.sha256 for b in refs["same"].blobs} == {b.name: b.sha256 for b in refs["calm"].blobs}
    for file in (ADAPTER_FILE, TASK_FILE):
        ours, theirs = (tensors(refs[name], store, file) for name in ("last", "calm"))
        assert ours.keys() == theirs.keys()
        for name, tensor in ours.items():
            torch.testing.assert_close(tensor, theirs[name], atol=1e-4, rtol=1e-3, msg=name)
    views = {name: refs[name].metrics["views"]["task"] for name in ("calm-by-one", "calm-by-two", "last-by-two")}
    assert views["calm-by-one"]["predictions_sha256"] == views["calm-by-two"]["predictions_sha256"], "bit for bit"
    assert views["last-by-two"]["score"] == views["calm-by-two"]["score"]


def steps_of(parts: list[list[dict[str, Any]]]) -> dict[int, list[int]]:
    """step -> the samples that all ranks together took, ascending; every rank takes part in every step."""
    steps: dict[int, list[int]] = {}
    for part in parts:
        for ranks in zip(*(rank["seen"] for rank in part), strict=True):
            (step,) = {step for step, _, _ in ranks}
            assert step not in steps, "no step twice"
            steps[step] = sorted(ordinal for _, _, taken in ranks for ordinal in taken)
    return steps


def seen_by(parts: list[list[dict[str, Any]]]) -> list[tuple[int, int]]:
    """(epoch, ordinal) of everything that any rank took."""
    return [(epoch, ordinal) for part in parts for rank in part for _, epoch, taken in rank["seen"] for ordinal in taken]
