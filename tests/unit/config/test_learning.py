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
