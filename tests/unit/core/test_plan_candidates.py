"""A method that trains several forms of a task: which of its jobs are shared, and what the choice waits for."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from atlas_dist.core.imported import ImportedAdapter
from atlas_dist.core.plan import Plan, SequenceJobs, make_plan
from atlas_dist.core.selection import Form
from atlas_dist.core.task_jobs import PlannedTask
from atlas_dist.core.types import Budget, JobKind, Stage, StageJob
from atlas_dist.errors import ConfigError
from atlas_dist.methods import make_method
from tests.unit.core.test_plan import COMMON, labels, sequence, task


def kinds(plan: Plan, kind: JobKind) -> list[StageJob]:
    return [job for job in plan.jobs.values() if job.kind is kind]


def own(plan: Plan, jobs: SequenceJobs, name: str) -> str:
    (found,) = (t for t in (*jobs.upstream, *jobs.downstream) if t.task == name)
    return plan.jobs[found.final].candidates[Form.OWN.value]


def test_a_task_is_described_learnt_in_each_form_and_then_one_form_is_chosen() -> None:
    plan = make_plan([sequence("ab", method="atlas", downstream="c")], COMMON)
    assert [label for label in labels(plan) if "eval" not in label] == [
        "1 a describe", "1 a own stage2", "1 a select",
        "2 b describe", "2 b own stage2", "2 b stage1", "2 b stage2", "2 b select",
        "transfer c describe", "transfer c own stage2", "transfer c stage1", "transfer c stage2", "transfer c select",
    ]  # fmt: skip


def test_the_choice_waits_for_every_form_and_names_them() -> None:
    plan = make_plan([sequence("ab", method="atlas")], COMMON)
    first, second = (plan.jobs[t.final] for t in plan.sequences[0].upstream)
    assert list(first.candidates) == ["own"], "the first task has no experience to look back on"
    assert list(second.candidates) == ["own", "experience", "both"]
    for job in (first, second):
        assert set(job.parents) >= {*job.candidates.values(), job.signature_from}
    assert plan.jobs[second.candidates["both"]].model_from == second.candidates["experience"], "stage two goes on from stage one"
    both = plan.jobs[second.candidates["both"]]
    assert both.adapter_from == second.candidates["own"] in both.parents, "and from the adapter that was learnt apart"
    assert {job.adapter_from for job in plan.jobs.values() if job is not both} == {""}
    told = make_plan([sequence("ab", method="atlas", stage_two_start="nothing")], COMMON)
    assert {job.adapter_from for job in told.jobs.values()} == {""}
    assert second.bank_from == first.key, "the signatures of the bank come with the task before"
    assert plan.sequences[0].upstream[1].stages[-1] == second.key
    assert plan.sequences[0].upstream[1].bank == (first.key, second.key)


def test_another_form_is_another_choice() -> None:
    """What a task committed depends on each of its candidates: none may change under the same key."""
    usual = sequence("ab", method="atlas")
    budgets = {Stage.ONE: Budget(max_steps=7), Stage.TWO: Budget()}
    other = replace(usual, upstream=(usual.upstream[0], replace(usual.upstream[1], budgets=budgets)))
    plan, changed = make_plan([usual], COMMON), make_plan([other], COMMON)
    mine, theirs = plan.jobs[plan.sequences[0].upstream[1].final], changed.jobs[changed.sequences[0].upstream[1].final]
    assert mine.candidates["own"] == theirs.candidates["own"], "the own adapter knows nothing of stage one"
    assert mine.candidates["experience"] != theirs.candidates["experience"]
    assert mine.key != theirs.key


def test_own_adapters_are_shared_by_all_orders_and_with_individual_adapters() -> None:
    plan = make_plan(
        [
            sequence("abc", method="atlas", downstream="d"),
            sequence("cba", method="atlas", downstream="d"),
            sequence("abc", method="individual_adapters", downstream="d", init="zero"),
        ],
        COMMON,
    )
    one, other, individual = plan.sequences
    for name in "abcd":
        assert own(plan, one, name) == own(plan, other, name)
    finals = {t.task: t.final for t in (*individual.upstream, *individual.downstream)}
    assert finals == {name: own(plan, one, name) for name in "abcd"}
    apart = [job for job in kinds(plan, JobKind.TRAIN) if job.method == "individual_adapters"]
    assert len(apart) == 4, "four tasks, each adapter once"


def test_a_shuffled_bank_shares_what_reads_no_bank() -> None:
    plan = make_plan([sequence("ab", method="atlas"), sequence("ab", method="atlas", shuffle_bank=True)], COMMON)
    ours, control = plan.sequences
    for mine, theirs in zip(ours.upstream, control.upstream, strict=True):
        assert mine.stages[0] == theirs.stages[0]
        assert mine.final != theirs.final


def test_a_stage_two_on_top_of_experience_has_a_budget_of_its_own_where_it_is_named() -> None:
    def with_both(planned: PlannedTask) -> PlannedTask:
        return replace(planned, both=Budget(max_steps=5))

    usual = sequence("ab", method="atlas")
    plan = make_plan([replace(usual, upstream=tuple(map(with_both, usual.upstream)))], COMMON)
    chosen = plan.jobs[plan.sequences[0].upstream[1].final]
    assert {form: plan.jobs[key].budget.max_steps for form, key in chosen.candidates.items()} == {
        "own": 0,
        "experience": 0,
        "both": 5,
    }
    rival = sequence("ab", method="individual_adapters", init="zero")
    apart = replace(rival, upstream=tuple(map(with_both, rival.upstream)))
    # Who has no such stage keeps its keys.
    assert make_plan([apart], COMMON).jobs.keys() == make_plan([rival], COMMON).jobs.keys()


def test_a_description_is_shared_by_methods_seeds_and_orders_unless_a_seed_chooses_the_samples() -> None:
    runs = [
        sequence(order, method="atlas", downstream="d", seed=seed, **settings)
        for order in ("abc", "bca")
        for seed in (0, 1)
        for settings in ({}, {"retrieve": 0})
    ]
    assert len(kinds(make_plan(runs, COMMON), JobKind.DESCRIBE)) == 4

    few = [replace(run, downstream=(task("d", shots=4.0),)) for run in runs]
    described = kinds(make_plan(few, COMMON), JobKind.DESCRIBE)
    assert sorted((job.task.name, job.seed) for job in described) == [("a", 0), ("b", 0), ("c", 0), ("d", 0), ("d", 1)]


def test_a_method_is_stored_under_a_name_that_no_older_result_has() -> None:
    """In stores `atlas` is the released form: the same word for two things would mix their results."""
    new, paper = make_method("atlas", {}).spec, make_method("atlas_paper", {}).spec
    assert (new.stored, paper.stored) == ("atlas2", "atlas")
    both = make_plan([sequence("ab", method="atlas"), sequence("ab", method="atlas_paper")], COMMON)
    assert {job.method for job in both.jobs.values()} == {"atlas", "atlas2", "individual_adapters", "describe"}


def test_a_test_split_is_part_of_a_key_and_one_that_is_not_there_is_not_named() -> None:
    usual = sequence("ab", method="atlas")
    tested = replace(usual, upstream=(task("a", test="test", test_digest="a-test"), usual.upstream[1]))
    other = replace(usual, upstream=(task("a", test="test", test_digest="another"), usual.upstream[1]))
    plans = [make_plan([s], COMMON) for s in (usual, tested, other)]
    finals = [plan.sequences[0].evaluations[0, 0] for plan in plans]
    assert len(set(finals)) == 3


# ------------------------------------------------------------------------------------------------- imported adapters


def imported(name: str, key: str) -> ImportedAdapter:
    return ImportedAdapter(name, key, replace(task(name).spec, name=name))


def test_imported_adapters_come_before_the_first_task() -> None:
    spec = replace(sequence("ab", method="atlas", downstream="c"), experience=(imported("x", "k" * 32), imported("y", "l" * 32)))
    plan = make_plan([spec], COMMON)
    keys = ("k" * 32, "l" * 32)
    assert [job.key for job in kinds(plan, JobKind.IMPORT)] == list(keys)
    assert all(not job.parents and not job.splits for job in kinds(plan, JobKind.IMPORT))
    first, second = (plan.jobs[t.final] for t in plan.sequences[0].upstream)
    assert list(first.candidates) == ["own", "experience", "both"], "the first task has something to look back on"
    looks_back = plan.jobs[first.candidates["experience"]]
    assert looks_back.bank == keys and set(keys) <= set(looks_back.parents) and "" not in looks_back.parents
    assert plan.jobs[second.candidates["experience"]].bank == (*keys, first.key)
    assert plan.jobs[plan.sequences[0].transfers["c"]].bank[:2] == keys
    assert set(plan.tasks) == {"a", "b", "c"}, "an adapter is no task"
    assert plan.imported == {"x": imported("x", keys[0]), "y": imported("y", keys[1])}
    assert set(keys) <= plan.behind(plan.sequences[0])


@given(order=st.permutations("abc"), names=st.lists(st.sampled_from("xyz"), unique=True, max_size=3))
def test_what_does_not_look_back_keeps_its_key_whatever_was_imported(order: list[str], names: list[str]) -> None:
    plain = make_plan([sequence("".join(order), method="atlas")], COMMON)
    spec = replace(sequence("".join(order), method="atlas"), experience=tuple(imported(n, n * 32) for n in names))
    plan = make_plan([spec], COMMON)
    for was, now in zip(plain.sequences[0].upstream, plan.sequences[0].upstream, strict=True):
        before, after = plain.jobs[was.final], plan.jobs[now.final]
        assert before.candidates["own"] == after.candidates["own"] and before.signature_from == after.signature_from
        assert (before.key == after.key) == (not names)
    if not names:
        assert list(plan.jobs) == list(plain.jobs)


def test_a_method_that_sees_no_earlier_adapter_is_the_same_with_imports() -> None:
    spec = replace(sequence("ab", method="individual_adapters"), experience=(imported("x", "k" * 32),))
    assert list(make_plan([spec], COMMON).jobs) == list(make_plan([sequence("ab", method="individual_adapters")], COMMON).jobs)


@pytest.mark.parametrize("names", ["a", "xx"])
def test_an_imported_adapter_has_a_name_of_its_own(names: str) -> None:
    spec = replace(sequence("ab", method="atlas"), experience=tuple(imported(n, f"{i}" * 32) for i, n in enumerate(names)))
    with pytest.raises(ConfigError, match=r"sequence.experience names"):
        make_plan([spec], COMMON)
