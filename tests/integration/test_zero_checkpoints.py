"""A stage is stopped in its middle at ZeRO 1, 2 and 3 with two workers, and goes on: with two workers to the last bit of what the
undisturbed stage learns; with one, and at another ZeRO stage, to rounding (sums of floats depend on who adds them).

Two workers are processes of their own; the one is this process. Nothing but the store is common to them.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from atlas_dist.core.result_files import ADAPTER_FILE, TASK_FILE
from atlas_dist.store import artifacts
from atlas_dist.store.local import LocalStore
from tests.integration.elastic_rank import carry_out, committed
from tests.integration.test_elastic import STEPS, WORDS, Pair, learn, tensors, two_workers
from tests.kits.stage import Bench, pack_toys, toy_config

SAMPLES, STOP = 40, 5
"""The stop is after the first of two validations, and not at a whole number of epochs."""
ODD = [*WORDS, "method.settings.rank=47"]
"""Two workers cannot share each parameter evenly."""


class Moves:
    """Stages that learn in the pair's two processes or here, all of them in one store."""

    def __init__(self, folder: Path, pair: Pair) -> None:
        self.folder, self.pair = folder, pair
        self.store = LocalStore(folder / "store")

    def by_two(self, attempt: str, **order: Any) -> None:
        """With two workers."""
        self._said(self.pair.do(learn(attempt, **order)), order)

    def by_one(self, attempt: str, **order: Any) -> None:
        """With one."""
        bench = Bench(toy_config(self.folder, *ODD, f"train.zero_stage={order['zero']}"))
        self._said([carry_out(bench.worker, bench.plan, learn(attempt, **order))], order)

    def _said(self, ranks: list[dict[str, Any]], order: dict[str, Any]) -> None:
        """Each rank stopped where it was told to, or came to the end from where the other attempt had stopped."""
        stopped, resumed = (order["stop_at"], 0) if "stop_at" in order else (0, STOP if "resume" in order else 0)
        assert [(rank["stopped"], rank["resumed"]) for rank in ranks] == [(stopped, resumed)] * len(ranks)
        assert all(len(rank["seen"]) == (stopped or STEPS - resumed) for rank in ranks), "no step is taken twice"

    def files(self, attempt: str) -> dict[str, str]:
        """file -> sha256, of everything that was learnt."""
        return {blob.name: blob.sha256 for blob in committed(self.store, attempt).blobs}

    def losses(self, attempt: str) -> list[float]:
        """Of the steps, from the first on, then of the validations."""
        details = json.loads(artifacts.load(self.store, committed(self.store, attempt), "details.json"))
        return [point["loss"] for point in (*details["curve"], *details["validation"])]

    def nearly_the_same(self, ours: str, theirs: str) -> None:
        """As `test_elastic` has it for two numbers of workers."""
        assert self.losses(ours) == pytest.approx(self.losses(theirs), abs=1e-4)
        for file in (ADAPTER_FILE, TASK_FILE):
            found, wanted = (tensors(committed(self.store, attempt), self.store, file) for attempt in (ours, theirs))
            assert found.keys() == wanted.keys()
            for name, tensor in found.items():
                torch.testing.assert_close(tensor, wanted[name], atol=1e-4, rtol=1e-3, msg=name)


@pytest.fixture(scope="module")
def moves(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Moves]:
    folder = tmp_path_factory.mktemp("zero")
    pack_toys(toy_config(folder, *ODD), samples=SAMPLES)
    with two_workers(folder, ODD) as pair:
        yield Moves(folder, pair)


@pytest.mark.timeout(900)
@pytest.mark.parametrize("zero", [1, 2, 3])
def test_a_stage_that_was_stopped_goes_on(moves: Moves, zero: int) -> None:
    moves.by_two(f"calm{zero}", zero=zero)
    moves.by_two(f"stopped{zero}", zero=zero, stop_at=STOP)
    moves.by_two(f"same{zero}", zero=zero, resume=f"stopped{zero}")
    assert moves.losses(f"same{zero}") == moves.losses(f"calm{zero}")
    assert moves.files(f"same{zero}") == moves.files(f"calm{zero}"), "every byte"
    moves.by_one(f"fewer{zero}", zero=zero, resume=f"stopped{zero}")
    moves.nearly_the_same(f"fewer{zero}", f"calm{zero}")


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_stage_goes_on_at_another_zero_stage_and_with_more_workers(moves: Moves) -> None:
    """What is stored knows nothing of who had which part."""
    moves.by_two("calm0", zero=0)
    for before, after in ((0, 1), (1, 3), (3, 2), (2, 0)):
        moves.by_two(f"half{before}", zero=before, stop_at=STOP)
        moves.by_two(f"changed{before}", zero=after, resume=f"half{before}")
        moves.nearly_the_same(f"changed{before}", "calm0")
    for zero in (1, 2, 3):
        moves.by_one(f"one{zero}", zero=zero, stop_at=STOP)
        moves.by_two(f"more{zero}", zero=zero, resume=f"one{zero}")
        moves.nearly_the_same(f"more{zero}", "calm0")
