"""train/head_start.py: a head that starts from ridge regression, in a job of one rank."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest

from atlas_dist.coordinator.expand import expand
from atlas_dist.core.result_files import Details
from atlas_dist.core.results import TrainResult
from atlas_dist.core.types import Budget, HeadStart, Stage, TaskKind
from atlas_dist.methods import make_method
from atlas_dist.store import artifacts
from atlas_dist.train.augment import OFTEN
from atlas_dist.train.head_start import FAR, Length, is_fitted, starts_by_ridge
from tests.kits.stage import Bench, pack_toys, toy_config

WORDS = ("method=head_only", "sequence.upstream=[toy_shape]", "sequence.downstream=[]")


def bench(folder: Path, *words: str) -> Bench:
    """A bench for one task."""
    config = toy_config(folder, *WORDS, *words)
    pack_toys(config)
    return Bench(config)


def first_score(worker: Bench) -> tuple[TrainResult, list[dict[str, float]]]:
    """The job's result, and its validations."""
    job = next(iter(worker.plan.jobs.values()))
    ref = worker.learn(job)
    details = Details.from_json(artifacts.load(worker.context.store, ref, "details.json"))
    return TrainResult.of(ref), list(details.validation)


def test_a_ridge_start_is_validated_before_the_first_step_and_better_than_chance(tmp_path: Path) -> None:
    worker = bench(tmp_path, "train.stage2.max_steps=2", "train.budget.lr=1e-9")
    assert starts_by_ridge(next(iter(worker.plan.jobs.values())), Length(2, 1.0))
    _, validation = first_score(worker)
    assert validation[0]["step"] == 0
    classes = next(iter(worker.plan.jobs.values())).task.classes
    assert validation[0]["loss"] < math.log(classes) and validation[0]["score"] > 100.0 / classes + 5.0


def test_an_adapter_is_kept_only_after_it_learnt(tmp_path: Path) -> None:
    still = ("train.stage2.max_steps=2", "train.budget.lr=1e-9", "train.budget.head_lr=0")
    worker = bench(tmp_path, "method=individual_adapters", *still)
    result, validation = first_score(worker)
    assert validation[0]["step"] > 0 and result.best_step > 0
    classes = next(iter(worker.plan.jobs.values())).task.classes
    assert validation[0]["loss"] < math.log(classes), "the head starts fitted all the same"


def test_a_random_start_is_not_validated_at_zero(tmp_path: Path) -> None:
    worker = bench(tmp_path, "train.stage2.max_steps=2", "train.budget.lr=1e-9", "train.budget.head_start=random")
    _, validation = first_score(worker)
    assert validation[0]["step"] > 0


@pytest.mark.parametrize(("method", "expected"), [("atlas", HeadStart.AUTO), ("atlas_paper", HeadStart.RANDOM)])
def test_the_method_says_where_heads_start_unless_the_run_does(tmp_path: Path, method: str, expected: HeadStart) -> None:
    def of(*words: str) -> HeadStart:
        config = toy_config(tmp_path / "x", *WORDS[1:], f"method={method}", *words)
        base = make_method(config.method.name, config.method.settings).budget
        return config.tasks["toy_shape"].budgets(config.train, config.method, base)[Stage.TWO].head_start

    assert of() is expected
    assert of("train.budget.head_start=ridge") is HeadStart.RIDGE
    assert of("train.stage2.head_start=random") is HeadStart.RANDOM


def test_auto_fits_every_head_but_that_of_an_adapter_that_trains_for_long_on_many_samples(tmp_path: Path) -> None:
    config = toy_config(tmp_path, "method=atlas", "sequence.upstream=[toy_shape,toy_kin]", "sequence.downstream=[]")
    pack_toys(config)
    jobs = {job.label.split(" ", 1)[1]: job for job in expand(config).jobs.values() if job.stage is not None}
    own, one, two = jobs["toy_shape own stage2"], jobs["toy_kin stage1"], jobs["toy_kin stage2"]
    steps = math.ceil(FAR / own.budget.lr)
    short, long, longer = Length(steps - 1, 1.0), Length(steps, OFTEN - 0.1), Length(10 * steps, OFTEN - 0.1)
    assert is_fitted(own, short) and starts_by_ridge(own, short)
    assert not is_fitted(own, long), "its head learns along with what it reads"
    assert is_fitted(own, replace(long, passes=OFTEN)), "few samples, seen often, would be learnt by heart"
    answers = replace(own, task=replace(own.task, kind=TaskKind.ANSWERS))
    assert not is_fitted(answers, Length(1, 1.0)), "no class a sample to fit to"
    one, two = (replace(job, task=own.task) for job in (one, two))
    assert is_fitted(one, longer) and is_fitted(two, short) and not is_fitted(two, longer)
    assert starts_by_ridge(one, longer) and not starts_by_ridge(two, short), "stage two goes on with stage one's"


def test_the_rule_behind_auto_is_part_of_what_a_job_is() -> None:
    assert Budget(head_start=HeadStart.AUTO).as_stored()["head_start"] not in {kind.value for kind in HeadStart}


def test_a_fitted_head_has_a_rate_of_its_own(tmp_path: Path) -> None:
    worker = bench(tmp_path, "train.stage2.max_steps=2", "train.budget.lr=1e-9", "train.budget.head_lr=0.01")
    slow = bench(tmp_path / "slow", "train.stage2.max_steps=2", "train.budget.lr=1e-9", "train.budget.head_lr=0")
    assert first_score(worker)[1][-1]["loss"] != first_score(slow)[1][-1]["loss"]
