"""train/starts.py: coefficients that start from what an earlier task made of the same adapters."""

from __future__ import annotations

from pathlib import Path
from unittest.mock import Mock

import pytest
import torch
from torch import Tensor

from atlas_dist.core.results import MEAN, NOTHING, SelectResult, TrainResult
from atlas_dist.train import learn, starts
from atlas_dist.train.inputs import coefficients_of, read_task
from atlas_dist.train.starts import composite
from tests.kits.stage import Bench, pack_toys, toy_config

SITE = "coefficients/L0.aftmlp/start"
SLOPE = "coefficients/L0.aftmlp/slope"


def like(count: int) -> dict[str, Tensor]:
    return {SITE: torch.full((count,), 1.0 / count)}


def test_a_composite_is_what_the_task_reads_with_its_own_adapter_at_one() -> None:
    found = composite(like(3), {SITE: torch.tensor([0.4, -0.2])}, ["a", "b"], "c", ["a", "b", "c"])
    assert found[SITE].tolist() == pytest.approx([0.4, -0.2, 1.0])


def test_adapters_that_only_one_of_the_two_sees_are_left_out() -> None:
    found = composite(like(3), {SITE: torch.tensor([0.4, -0.2])}, ["gone", "b"], "c", ["c", "new", "b"])
    assert found[SITE].tolist() == pytest.approx([1.0, 0.0, -0.2])


def test_of_a_task_that_reads_no_other_only_its_adapter_is_read() -> None:
    assert composite(like(2), {}, [], "b", ["a", "b"])[SITE].tolist() == [0.0, 1.0]


def test_slopes_are_taken_over_and_the_own_adapter_has_none() -> None:
    shape = {**like(2), SLOPE: torch.zeros(2, 4)}
    found = composite(shape, {SITE: torch.tensor([0.5]), SLOPE: torch.ones(1, 4)}, ["a"], "b", ["a", "b"])
    assert found[SITE].tolist() == [0.5, 1.0] and found[SLOPE].tolist() == [[1.0] * 4, [0.0] * 4]


def bench(folder: Path, *words: str) -> Bench:
    """A bench for three tasks of which the second grows on top of the first, in steps too small to move anything."""
    still = (
        "train.budget.max_steps=1",
        "train.stage1.max_steps=1",
        "train.stage1.lr=1e-9",
        "method.settings.coefficient_lr=1e-9",
    )
    tasks = ("+task@tasks.toy_truth=toy_truth", "sequence.upstream=[toy_shape,toy_pair,toy_truth]", "sequence.downstream=[]")
    config = toy_config(folder, "method=atlas", "method.settings.expand=always", *tasks, *still, *words)
    pack_toys(config, samples=48)
    return Bench(config)


def test_the_start_with_the_smallest_loss_of_a_fit_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    worker = bench(tmp_path)
    job = worker.learn_until("3 toy_truth stage1")
    first, second = job.bank
    before = SelectResult.of(worker.done[second])
    read = coefficients_of(read_task(worker.context.store, worker.done[second]))
    assert before.form in ("own", "both") and bool(read) == (before.form == "both")
    for wanted, started_from in enumerate((MEAN, NOTHING, first, second)):
        counted = iter(range(9))
        monkeypatch.setattr(starts, "loss_of_fit", lambda *_, at=counted, best=wanted: float(next(at) != best))
        ref = worker.learn(job)
        assert TrainResult.of(ref).started_from == started_from
        assert next(counted) == 4, "each is tried once"
        for name, value in coefficients_of(read_task(worker.context.store, ref)).items():
            of_first = read[name][0].item() if read else 0.0
            expected = {MEAN: [0.5, 0.5], NOTHING: [0.0, 0.0], first: [1.0, 0.0], second: [of_first, 1.0]}[started_from]
            assert value.tolist() == pytest.approx(expected, abs=1e-6), name
    worker.learn_until("3 toy_truth select")
    assert SelectResult.of(worker.learn(worker.job("3 toy_truth select"))).started_from == second


def test_the_real_losses_choose_and_any_number_of_tries_agrees(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    losses: list[float] = []
    real = starts.loss_of_fit

    def noted(*given: object) -> float:
        losses.append(real(*given))  # type: ignore[arg-type]
        return losses[-1]

    monkeypatch.setattr(starts, "loss_of_fit", noted)
    worker = bench(tmp_path)
    job = worker.learn_until("2 toy_pair stage1")
    names = (MEAN, NOTHING, *job.bank)
    started = TrainResult.of(worker.learn(job)).started_from
    assert started == names[losses.index(min(losses))] and len(set(losses)) > 1
    again = list(losses)
    losses.clear()
    assert TrainResult.of(worker.learn(job)).started_from == started and losses == again


def test_a_stage_that_goes_on_from_a_checkpoint_knows_where_it_started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    worker = bench(tmp_path, "train.stage1.max_steps=6", "train.checkpoint_every=2")
    job = worker.learn_until("2 toy_pair stage1")
    whole = worker.learn(job)
    choices = Mock(wraps=learn.choose_start)
    monkeypatch.setattr(learn, "choose_start", choices)
    resumed = worker.learn_in_two(job, step=4)
    assert choices.call_count == 1, "it is chosen once"
    assert TrainResult.of(resumed).started_from == TrainResult.of(whole).started_from != ""
    assert TrainResult.of(resumed).resumed_at > 0
    one, other = (read_task(worker.context.store, ref) for ref in (whole, resumed))
    assert all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize(
    "words", [("method.settings.start=mean",), ("train.budget.head_start=random", "train.stage1.head_start=random")]
)
def test_it_starts_from_the_mean_where_it_is_told_to_or_no_head_is_fitted(tmp_path: Path, words: tuple[str, ...]) -> None:
    worker = bench(tmp_path, *words)
    job = worker.learn_until("2 toy_pair stage1")
    assert TrainResult.of(worker.learn(job)).started_from == ""
