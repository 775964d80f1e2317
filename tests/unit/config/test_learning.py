"""Settings of what is learnt: whose budget wins, and what a ledger is told of it."""

from __future__ import annotations

from dataclasses import fields, replace

from atlas_dist.compose import compose_config
from atlas_dist.config import load_config
from atlas_dist.config.learning import BudgetConfig
from atlas_dist.core.types import Budget, Stage


def test_the_budget_of_a_run_is_declared_once() -> None:
    assert list(BudgetConfig.model_fields) == [field.name for field in fields(Budget)]
    (lr,) = (field.default for field in fields(Budget) if field.name == "lr")
    composed = compose_config(["experiment=paper", "train.budget.warmup=0.2"]).train.budget
    assert (composed.lr, composed.warmup) == (lr, 0.2), "what is not given is named all the same: ledgers keep it"
    assert (composed.clip, composed.max_steps) == (None, None), "what is off is not: older ledgers do not have it"
    assert composed.over(Budget()) == replace(Budget(), warmup=0.2)


def test_any_declared_key_can_be_set_whether_or_not_a_file_mentions_it() -> None:
    config = compose_config(["experiment=toy", "train.stage1.lr=0.25", "tasks.toy_ask.shots=16"])
    budgets = config.tasks["toy_kin"].budgets(config.train)
    assert (budgets[Stage.ONE].lr, budgets[Stage.TWO].lr) == (0.25, 5e-4)
    assert config.tasks["toy_ask"].shots == 16


def test_a_tasks_budget_wins_over_the_general_one_and_a_stages_over_both() -> None:
    task = {"kind": "single", "data": {"dataset": "d"}, "budget": {"lr": 0.2, "epochs": 3}, "stage2": {"lr": 0.3}}
    config = load_config({"tasks": {"a": task}, "train": {"budget": {"lr": 0.1, "clip": 1.0}}})
    budgets = config.tasks["a"].budgets(config.train)
    assert (budgets[Stage.ONE].lr, budgets[Stage.TWO].lr) == (0.2, 0.3)
    assert budgets[Stage.ONE].epochs == 3
    assert budgets[Stage.ONE].clip == 1.0


def test_few_samples_get_the_least_steps_and_many_the_passes() -> None:
    budget = BudgetConfig(epochs=20, min_steps=500).over(Budget())
    assert [budget.steps(an_epoch) for an_epoch in (1, 24, 25, 26, 300)] == [500, 500, 500, 520, 6000]
    assert [replace(budget, max_steps=7).steps(n) for n in (1, 300)] == [7, 7], "steps that are named are what it takes"
    assert [Budget(epochs=0.01).steps(n) for n in (1, 300)] == [1, 3], "and one is the least of all"


def test_a_least_of_steps_is_in_the_key_of_a_job_only_where_it_decides() -> None:
    assert "min_steps" not in Budget().as_stored(), "results of before stay what they are"
    assert Budget(min_steps=9).as_stored()["min_steps"] == 9
    assert Budget(min_steps=9, max_steps=5).as_stored() == Budget(max_steps=5).as_stored()


def test_a_row_of_as_many_steps_in_all_has_the_least_of_each_stage_together() -> None:
    task = {"kind": "single", "data": {"dataset": "d"}}
    train = {"stage1": {"epochs": 5, "min_steps": 60}, "stage2": {"epochs": 20, "min_steps": 500}}
    config = load_config({"tasks": {"a": task}, "train": train, "method": {"name": "individual_adapters", "all_steps": True}})
    two = config.tasks["a"].budgets(config.train, config.method)[Stage.TWO]
    assert (two.epochs, two.min_steps, two.steps(2)) == (45, 1060, 1060)
