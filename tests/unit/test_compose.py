"""Settings: what composes, what is refused, and what the refusal says."""

from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path

import pytest
import yaml

from atlas_dist.choices import choice_file, groups
from atlas_dist.compose import compose_config, compose_rows
from atlas_dist.config import RunConfig, load_config
from atlas_dist.config.groups import BudgetConfig
from atlas_dist.core.keys import flattened
from atlas_dist.core.types import Budget, Stage
from atlas_dist.errors import ConfigError


@pytest.mark.parametrize("experiment", groups()["experiment"])
def test_every_experiment_composes(experiment: str) -> None:
    config = compose_config([f"experiment={experiment}"])
    assert config.sequence.upstream
    assert RunConfig.model_validate(config.model_dump()) == config


@pytest.mark.parametrize("group", ["train", "cluster", "store", "shards"])
def test_a_file_of_a_group_holds_only_what_differs_from_what_is_declared(group: str) -> None:
    declared = dict(flattened(RunConfig().model_dump(mode="json")[group]))
    for choice in groups()[group]:
        given = dict(flattened(yaml.safe_load(choice_file(group, choice).read_text()) or {}))
        assert {key for key, value in given.items() if declared.get(key) == value} == set(), choice


def test_the_budget_of_a_run_is_declared_once() -> None:
    assert list(BudgetConfig.model_fields) == [field.name for field in fields(Budget)]
    (lr,) = (field.default for field in fields(Budget) if field.name == "lr")
    composed = compose_config(["experiment=paper", "train.budget.warmup=0.2"]).train.budget
    assert (composed.lr, composed.warmup) == (lr, 0.2), "what is not given is named all the same: ledgers keep it"
    assert (composed.clip, composed.max_steps) == (None, None), "what is off is not: older ledgers do not have it"
    assert composed.over(Budget()) == replace(Budget(), warmup=0.2)


def test_shards_in_a_bucket_lie_where_the_store_does_unless_they_say_otherwise() -> None:
    bucket = ["store=s3", "store.url=s3://a/b", "store.endpoint_url=http://e:1", "shards=s3", "shards.url=s3://a/c"]
    shards = compose_config(bucket).shards
    assert (shards.endpoint_url, shards.region, shards.buffer_mb) == ("http://e:1", "", 1024)
    assert compose_config([*bucket, "shards.endpoint_url=http://f:2"]).shards.endpoint_url == "http://f:2"


@pytest.mark.parametrize("group", ["method", "backbone", "task"])
def test_every_choice_of_a_group_composes(group: str) -> None:
    for choice in groups()[group]:
        word = f"+task@tasks.extra={choice}" if group == "task" else f"{group}={choice}"
        compose_config([word])


@pytest.mark.parametrize(
    ("word", "cause"),
    [
        ("experiment=dmeo", r"no such experiment.*Did you mean demo"),
        ("train.workrs=3", r"train.workrs: there is no such key; did you mean workers"),
        ("trian.workers=3", r"trian: there is no such key; did you mean train"),
        ("train.precision=fp8", r"train.precision.*'fp32' or 'bf16' \(it is 'fp8'\)"),
        ("train.zero_stage=4", r"train.zero_stage"),
        ("pack.on=slurm", r"pack.on.*'here' or 'ray'"),
        ("train.workers=300", r"too few for 300 workers: a worker without a sample only costs"),
        ("sequence.upstream=[digits,zap]", r"sequence names zap; the tasks of this configuration are digits"),
        ("tasks.digits.kind=film", r"'single', 'choice', 'pair' or 'answers'"),
        ("seeds=[1,1]", r"seeds must differ"),
        ("cluster.pools=0", r"cluster.pools: give a number of equal pools, at least 1, or pools by name"),
        ("cluster.pools={big:{takes:[upstream]}}", r"no pool takes evaluation or transfer; add it to the `takes`"),
        ("cluster.pools={a:{takes:[learning]}}", r"'upstream', 'evaluation', 'transfer' or 'reference' \(it is 'learning'\)"),
        ("cluster.pools={a:{workers:2,min_workers:3}}", r"pool a has 2 workers, fewer than its min_workers of 3"),
        ("cluster.pools={a:{workers:900}}", r"too few for 900 workers"),
        ("cluster.pools={a:{labels:{market:spot or not}}}", r"cluster.pools.a.labels.market"),
        ("train.min_workers=3", r"pool main has 2 workers, fewer than its min_workers of 3"),
        ("store=s3", r"store.url is left open"),
        ("demo", r"not a setting"),
    ],
)
def test_a_slip_is_refused_with_its_cause_and_the_valid_choices(word: str, cause: str) -> None:
    with pytest.raises(ConfigError, match=cause):
        compose_config([word])


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


def test_relative_places_are_resolved_and_urls_left_alone(tmp_path: Path) -> None:
    config = load_config({"store": {"url": "s3://bucket/x"}, "shards": {"url": "there"}}).at(tmp_path)
    assert (config.store.url, config.shards.url) == ("s3://bucket/x", str(tmp_path / "there"))


def test_several_faults_are_told_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        load_config({"train": {"workers": 0}, "seeds": [], "cluster": {"adress": "auto"}})
    assert all(word in str(caught.value) for word in ("train.workers", "seeds", "did you mean address"))


def test_pools_are_a_number_or_have_names() -> None:
    def worker_groups(*words: str) -> list[tuple[str, int, int]]:
        return [(g.name, g.workers, g.required_workers) for g in compose_config(["experiment=toy", *words]).worker_groups]

    assert worker_groups() == [("main", 2, 2)]
    assert worker_groups("cluster.pools=3") == [("main", 2, 2), ("pool-2", 2, 2), ("pool-3", 2, 2)]
    assert worker_groups("train.min_workers=1", "cluster.pools=2") == [("main", 2, 1), ("pool-2", 2, 1)]
    named = "cluster.pools={big:{workers:8,min_workers:4,takes:[upstream]},small:{workers:1,takes:[evaluation,transfer]}}"
    assert worker_groups(named, "train.min_workers=2") == [("big", 8, 4), ("small", 1, 1)]


# ------------------------------------------------------------------------------------------------------------- sweeps


def test_a_sweep_is_a_row_for_each_combination() -> None:
    rows = compose_rows(["experiment=toy", "train.budget.lr=1e-3,5e-4", "seeds=[0],[1,2]", "method=choice(atlas,ewc)"])
    assert list(rows)[:3] == ["lr=0.001,seeds=0,method=atlas", "lr=0.001,seeds=0,method=ewc", "lr=0.001,seeds=1,2,method=atlas"]
    assert len(rows) == 8
    last = rows["lr=0.0005,seeds=1,2,method=ewc"]
    assert (last.train.budget.lr, last.seeds, last.method.name) == (5e-4, [1, 2], "ewc")


def test_rows_are_called_by_what_differs_and_by_whole_keys_where_ends_are_equal() -> None:
    assert list(compose_rows(["experiment=toy"])) == [""]
    both = compose_rows(["experiment=toy", "train.stage1.lr=1e-3,1e-4", "train.stage2.lr=1e-2,1e-3"])
    assert next(iter(both)) == "train.stage1.lr=0.001,train.stage2.lr=0.01"


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["train.workers=1,2"], r"only one value of: train.workers \(1, 2\)"),
        (["store.url=a,b"], "store.url"),
        (["run=a,b", "backbone=tiny,random_tiny"], "backbone.name.*run"),
        (["train.budget.lr=interval(0,1)"], "which values"),
        (["method=glob(*)"], "no such method"),
        (["train.budget.lr=1e-3,0.001"], "stands twice"),
        (["train.budget.lr=1e-3,"], "can't be read"),
        (["method=atlas,ewk"], "Did you mean ewc"),
        (["train.budget.lr=1e-3,-1"], "train.budget.lr"),
        (["seeds=range(0,40)", "train.budget.lr=range(1,40)"], "more than 1000"),
    ],
)
def test_what_cannot_be_swept_in_one_run_is_refused_by_name(words: list[str], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        compose_rows(["experiment=toy", *words])


def test_several_values_without_m_say_what_m_is_for() -> None:
    with pytest.raises(ConfigError, match="-m"):
        compose_config(["experiment=toy", "train.budget.lr=1e-3,5e-4"])
