"""train/head_end.py: a head that is fitted once more whenever a stage is validated, in a job of one rank."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from atlas_dist.core.result_files import Details
from atlas_dist.core.results import TrainResult
from atlas_dist.core.types import Budget, Stage, TaskKind
from atlas_dist.methods import make_method
from atlas_dist.store import artifacts
from atlas_dist.train.head_end import is_refitted
from tests.kits.stage import Bench, pack_toys, toy_config

ONE = ("sequence.upstream=[toy_shape]", "sequence.downstream=[]")
STILL = ("train.stage2.max_steps=2", "train.budget.lr=1e-9", "train.budget.head_start=random")


def learn(folder: Path, *words: str) -> tuple[TrainResult, Details]:
    """One task's result, and how it went."""
    config = toy_config(folder, *ONE, *words)
    pack_toys(config)
    worker = Bench(config)
    ref = worker.learn(next(job for job in worker.plan.jobs.values() if job.stage is not None))
    return TrainResult.of(ref), Details.from_json(artifacts.load(worker.context.store, ref, "details.json"))


@pytest.mark.parametrize("method", ["head_only", "individual_adapters"])
def test_a_head_that_learnt_nothing_is_fitted(tmp_path: Path, method: str) -> None:
    result, _ = learn(tmp_path / "refit", f"method={method}", *STILL)
    plain, _ = learn(tmp_path / "plain", f"method={method}", *STILL, "train.budget.head_refit=false")
    assert 0.0 < result.head_refit <= 1.0 and result.loss < plain.loss - 0.05
    assert plain.head_refit == 0.0 and "head_refit" not in plain.to_json()


def test_what_trains_is_the_head_that_was_learnt(tmp_path: Path) -> None:
    """The one that is validated in between is another one, and leaves no trace in the steps behind it."""
    words = ("method=individual_adapters", "train.stage2.max_steps=6", "train.budget.validations=3", "train.log_every=1")
    result, refit = learn(tmp_path / "refit", *words)
    _, plain = learn(tmp_path / "plain", *words, "train.budget.head_refit=false")
    assert len(refit.curve) == 6 and refit.curve == plain.curve
    assert all(ours["loss"] <= theirs["loss"] for ours, theirs in zip(refit.validation, plain.validation, strict=True))
    least = min(refit.validation, key=lambda found: found["loss"])
    assert (result.best_step, result.loss) == (least["step"], pytest.approx(least["loss"], rel=1e-6))


def test_the_same_job_settles_in_the_same_place(tmp_path: Path) -> None:
    first, again = (learn(tmp_path / name, "method=head_only", "train.stage2.max_steps=3")[0] for name in "ab")
    assert (first.head_refit, first.loss, first.score) == (again.head_refit, again.loss, again.score)


@pytest.mark.parametrize(("method", "expected"), [("atlas", True), ("individual_adapters", True), ("atlas_paper", False)])
def test_the_method_says_whether_heads_are_refitted_unless_the_run_does(tmp_path: Path, method: str, expected: bool) -> None:
    def of(*words: str) -> Budget:
        config = toy_config(tmp_path / "x", *ONE, f"method={method}", *words)
        base = make_method(config.method.name, config.method.settings).budget
        return config.tasks["toy_shape"].budgets(config.train, config.method, base)[Stage.TWO]

    assert of().head_refit is expected and ("head_refit" in of().as_stored()) is expected
    assert of(f"train.budget.head_refit={str(not expected).lower()}").head_refit is not expected


def test_answers_have_no_classes_to_fit_to(tmp_path: Path) -> None:
    config = toy_config(tmp_path, *ONE, "method=head_only")
    pack_toys(config)
    job = next(job for job in Bench(config).plan.jobs.values() if job.stage is not None)
    assert is_refitted(job)
    assert not is_refitted(replace(job, task=replace(job.task, kind=TaskKind.ANSWERS)))
