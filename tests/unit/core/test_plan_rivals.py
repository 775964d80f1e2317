"""The plans of methods that share more, or less, than a bank of adapters; and of the scores that measures divide by."""

from __future__ import annotations

from dataclasses import replace
from itertools import permutations

import pytest

from atlas_dist.core.compare import refusal
from atlas_dist.core.plan import Plan, References, SequenceSpec, make_plan
from atlas_dist.core.types import Budget, JobKind, Stage, StageJob, View
from atlas_dist.methods import make_method
from tests.unit.core.test_plan import COMMON, sequence, task


def training(plan: Plan) -> list[StageJob]:
    return [job for job in plan.jobs.values() if job.kind is JobKind.TRAIN]


@pytest.mark.parametrize("method", ["sequential_finetune", "ewc", "lwf", "experience_replay"])
def test_each_task_goes_on_from_the_backbone_before_it(method: str) -> None:
    plan = make_plan([sequence("abc", method=method, downstream="d")], COMMON)
    (jobs,) = plan.sequences
    finals = [t.final for t in jobs.upstream]
    assert [plan.jobs[key].backbone_from for key in finals] == ["", *finals[:2]]
    assert plan.jobs[jobs.downstream[0].final].backbone_from == finals[2]
    assert jobs.reads is View.LATEST
    old = plan.jobs[jobs.evaluations[2, 0]]
    assert (old.views, old.latest_from, old.bank) == ((View.TASK, View.LATEST), finals[2], ())
    assert set(old.parents) == {finals[0], finals[2]}


def test_only_methods_that_recall_are_told_of_earlier_tasks() -> None:
    ewc = training(make_plan([sequence("abc", method="ewc", downstream="d")], COMMON))
    assert [[g.task.name for g in job.auxiliary_tasks] for job in ewc] == [[], ["a"], ["a", "b"], []], (
        "a transfer recalls nothing"
    )
    assert [job.leaves for job in ewc] == [True, True, True, False]
    plain = training(make_plan([sequence("abc", method="sequential_finetune")], COMMON))
    assert not any(job.auxiliary_tasks or job.leaves for job in plain)


def test_multitask_is_one_job_whatever_the_order() -> None:
    plan = make_plan([sequence("".join(order), method="multitask") for order in permutations("abc")], COMMON)
    (job,) = training(plan)
    assert {job.task.name, *(g.task.name for g in job.auxiliary_tasks)} == set("abc")
    assert len(plan.jobs) == 4, "and one evaluation a task"
    assert all(len(s.evaluations) == 6 for s in plan.sequences)


def test_fusion_sees_the_tasks_own_adapter_and_i2i_reads_only_that() -> None:
    fused = make_plan([sequence("ab", method="adapter_fusion")], COMMON)
    first, second = fused.sequences[0].upstream
    assert [fused.jobs[k].stage.stage for k in second.stages if fused.jobs[k].stage] == [Stage.TWO, Stage.ONE]  # type: ignore[union-attr]
    assert fused.jobs[second.final].bank == (first.adapter, second.adapter)
    assert fused.jobs[second.adapter].bank == (), "the adapter itself is learnt apart from the others"
    i2i = make_plan([sequence("abc", method="i2i")], COMMON)
    (jobs,) = i2i.sequences
    third = jobs.upstream[2]
    assert [i2i.jobs[k].bank for k in third.stages] == [tuple(t.adapter for t in jobs.upstream[:2])] * 2 + [()]
    assert i2i.jobs[jobs.evaluations[2, 0]].views == (View.TASK,)
    assert i2i.jobs[jobs.evaluations[2, 2]].bank == (third.final,)
    assert i2i.jobs[third.stages[1]].budget == i2i.jobs[third.stages[0]].budget, "distilled for as long as it was put together"


def test_stage_one_alone_reuses_the_first_tasks_adapter() -> None:
    plan = make_plan([sequence("abc", stages="one")], COMMON)
    (jobs,) = plan.sequences
    assert [plan.jobs[t.final].stage.stage for t in jobs.upstream] == [Stage.TWO, Stage.ONE, Stage.ONE]  # type: ignore[union-attr]
    assert plan.jobs[jobs.upstream[2].final].bank == (jobs.upstream[0].final,)


def with_references(spec: SequenceSpec) -> SequenceSpec:
    alone, pretrained = (make_method(name, {}).spec for name in ("sequential_finetune", "head_only"))
    return replace(spec, references=References(alone=alone, pretrained=pretrained))


def test_references_are_jobs_of_the_same_plan_and_shared_by_all_orders() -> None:
    plain = make_plan([sequence("abc", downstream="d")], COMMON)
    orders = ["abc", "cba"]
    plan = make_plan([with_references(sequence(o, downstream="d")) for o in orders], COMMON)
    assert set(plain.jobs) <= set(plan.jobs)
    lone = [job for job in training(plan) if job.method != "atlas"]
    assert sorted(job.task.name for job in lone) == ["a", "b", "c", "d"], "each once, for both orders"
    assert not any(job.parents for job in lone)
    (jobs, _) = plan.sequences
    assert plan.jobs[jobs.alone["b"]].task.name == "b"
    assert plan.jobs[plan.jobs[jobs.pretrained["d"]].model_from].method == "head_only"


def test_the_first_task_of_a_backbone_that_is_trained_on_is_its_own_reference() -> None:
    plan = make_plan([with_references(sequence("ab", method="sequential_finetune"))], COMMON)
    (jobs,) = plan.sequences
    assert plan.jobs[jobs.alone["a"]].model_from == jobs.upstream[0].final


def test_scores_are_compared_only_where_data_seed_and_budget_agree() -> None:
    def final(spec: SequenceSpec) -> StageJob:
        plan = make_plan([spec], COMMON)
        return plan.jobs[plan.sequences[0].upstream[0].final]

    mine, alone = final(sequence("a")), final(sequence("a", method="sequential_finetune"))
    assert refusal(mine, alone, "a") == ""
    assert "seeds 0 and 1" in refusal(mine, final(sequence("a", seed=1)), "a")
    few = replace(sequence("a"), upstream=(task("a", shots=4.0),))
    assert "shots differ" in refusal(mine, final(few), "a")
    longer = {Stage.ONE: Budget(), Stage.TWO: Budget(max_steps=99)}
    slower = {Stage.ONE: Budget(), Stage.TWO: Budget(lr=1.0)}
    assert "99 steps of 128" in refusal(mine, final(replace(sequence("a"), upstream=(replace(task("a"), budgets=longer),))), "a")
    assert refusal(mine, final(replace(sequence("a"), upstream=(replace(task("a"), budgets=slower),))), "a") == ""
    joint = final(sequence("ab", method="multitask"))
    assert refusal(joint, alone, "a") == refusal(joint, final(sequence("b")), "b") == ""
