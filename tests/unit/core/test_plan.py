"""The plan: what is named, what is shared, what waits for what."""

from __future__ import annotations

from dataclasses import replace
from itertools import permutations

import pytest

from atlas_dist.compose import compose_config
from atlas_dist.core.plan import Plan, SequenceSpec, make_plan
from atlas_dist.core.task_jobs import Common, PlannedTask
from atlas_dist.core.types import Budget, JobKind, Stage, TaskKind, TaskSpec, View
from atlas_dist.errors import ConfigError
from atlas_dist.methods import make_method

COMMON = Common(backbone_digest="b" * 64, numerics={"version": 1, "precision": "fp32"})


def task(name: str, **changes: object) -> PlannedTask:
    spec = TaskSpec(name, TaskKind.SINGLE, 3, 8, name, "train", "val", f"{name}-train", f"{name}-val")
    return PlannedTask(replace(spec, **changes), {Stage.ONE: Budget(), Stage.TWO: Budget()})  # type: ignore[arg-type]


def sequence(names: str, method: str = "atlas_paper", downstream: str = "", seed: int = 0, **settings: object) -> SequenceSpec:
    spec = make_method(method, settings).spec
    return SequenceSpec(names, spec, seed, tuple(map(task, names)), tuple(map(task, downstream)))


def labels(plan: Plan) -> list[str]:
    return [job.label.partition("/")[2] for job in plan.jobs.values()]


def test_a_sequence_is_a_chain_with_evaluations_and_transfers_beside_it() -> None:
    plan = make_plan([sequence("abc", downstream="d")], COMMON)
    assert labels(plan) == [
        "1 a stage2", "1 eval a",
        "2 b stage1", "2 b stage2", "2 eval a", "2 eval b",
        "3 c stage1", "3 c stage2", "3 eval a", "3 eval b", "3 eval c",
        "transfer d stage1", "transfer d stage2", "transfer eval d",
    ]  # fmt: skip
    seen: set[str] = set()
    for job in plan.jobs.values():
        assert seen.issuperset(job.parents), "parents come before their children"
        seen.add(job.key)


def test_each_job_sees_exactly_the_adapters_that_existed_for_it() -> None:
    plan = make_plan([sequence("abc", downstream="d")], COMMON)
    (jobs,) = plan.sequences
    grown = [t.final for t in jobs.upstream]
    third = plan.jobs[jobs.upstream[2].stages[0]]
    assert third.bank == tuple(grown[:2])
    assert third.queries_from == grown[1], "stage one's queries start from the previous task's"
    assert plan.jobs[jobs.upstream[2].final].model_from == third.key
    old = plan.jobs[jobs.evaluations[2, 0]]
    assert old.views == (View.TASK, View.LATEST)
    assert (old.bank, old.own_bank, old.latest_from) == (tuple(grown), 1, grown[2])
    (transfer,) = jobs.downstream
    assert plan.jobs[transfer.stages[0]].bank == tuple(grown), "a transfer starts from the final bank"
    assert transfer.bank == (*grown, transfer.final)


def test_all_24_orders_of_four_tasks_cost_64_task_trainings_not_96() -> None:
    plan = make_plan([sequence("".join(order)) for order in permutations("abcd")], COMMON)
    finals = {t.final for s in plan.sequences for t in s.upstream}
    assert sum(len(s.upstream) for s in plan.sequences) == 96
    assert len(finals) == 64
    assert sum(job.stage.stage is Stage.TWO for job in plan.jobs.values() if job.stage) == 64


def test_the_toy_orders_are_all_24_and_cost_64_tasks() -> None:
    sequence_of = compose_config(["experiment=orders_toy"]).sequence
    orders = sequence_of.all_orders
    assert sorted(orders) == sorted(map(list, permutations(orders[0])))
    letters = dict(zip(orders[0], "abcd", strict=True))
    plan = make_plan([sequence("".join(letters[t] for t in order)) for order in orders], COMMON)
    stages = [job.stage.stage for job in plan.jobs.values() if job.stage]
    assert (len(plan.jobs), stages.count(Stage.ONE), stages.count(Stage.TWO)) == (320, 60, 64)


def test_orders_share_their_common_prefix_and_nothing_else() -> None:
    both = make_plan([sequence("abc"), sequence("acb")], COMMON)
    alone = make_plan([sequence("abc")], COMMON)
    assert set(alone.jobs) <= set(both.jobs)
    first, second = both.sequences
    assert first.upstream[0] == second.upstream[0]
    assert first.upstream[1].final != second.upstream[2].final, "b after a, and b after a and c, are different facts"


@pytest.mark.parametrize(
    "other",
    [
        sequence("ab", seed=1),
        sequence("ab", rank=8),
        sequence("ab", ortho_normalize=True),
        replace(sequence("ab"), upstream=(task("a", train_digest="other"), task("b"))),
        replace(sequence("ab"), upstream=(task("a", shots=16.0), task("b"))),
        replace(
            sequence("ab"), upstream=(replace(task("a"), budgets={Stage.ONE: Budget(), Stage.TWO: Budget(lr=1e-3)}), task("b"))
        ),
    ],
    ids=["seed", "method setting", "penalty", "data", "shots", "budget"],
)
def test_a_key_changes_with_everything_a_result_depends_on(other: SequenceSpec) -> None:
    assert not set(make_plan([sequence("ab")], COMMON).jobs) & set(make_plan([other], COMMON).jobs)


@pytest.mark.parametrize("common", [replace(COMMON, backbone_digest="c" * 64), replace(COMMON, numerics={"version": 2})])
def test_a_key_changes_with_the_backbone_and_the_numerics(common: Common) -> None:
    assert not set(make_plan([sequence("ab")], COMMON).jobs) & set(make_plan([sequence("ab")], common).jobs)


def test_the_released_forms_results_keep_the_keys_that_0_1_gave_them() -> None:
    """Written down from 0.1, where `method=atlas` was the released form: a store of that time is read and gone on with."""
    plan = make_plan([sequence("ab", downstream="c"), sequence("ba", downstream="c")], COMMON)
    (first, _) = plan.sequences
    assert next(iter(plan.jobs)) == "562499ef0ea6bb498dfafae4414c135d"
    assert first.upstream[1].final == "097463c875f0d323e980d64a69fdc14c"
    assert first.transfers["c"] == "666025ec854787c5d323d0b04b6775a0"
    assert plan.digest == "1d4a89e3a23b84392ecd85858ed2e101668f68616a28da0e3e72856687521cea"


def test_labels_are_for_people_and_not_part_of_a_key() -> None:
    renamed = replace(sequence("ab"), name="another")
    assert set(make_plan([sequence("ab")], COMMON).jobs) == set(make_plan([renamed], COMMON).jobs)


def test_individual_adapters_never_meet_and_are_scored_once() -> None:
    plan = make_plan([sequence("abc", method="individual_adapters")], COMMON)
    assert [j.label.partition("/")[2] for j in plan.jobs.values() if j.kind is JobKind.EVAL] == [
        "1 eval a",
        "2 eval b",
        "3 eval c",
    ]
    assert all(job.bank in ((), (job.model_from,)) for job in plan.jobs.values())
    (jobs,) = plan.sequences
    assert jobs.evaluations[2, 0] == jobs.evaluations[0, 0]


def test_stage_two_alone_leaves_stage_one_out() -> None:
    plan = make_plan([sequence("ab", stages="two")], COMMON)
    assert [j.stage.stage for j in plan.jobs.values() if j.stage] == [Stage.TWO, Stage.TWO]
    assert plan.jobs[plan.sequences[0].upstream[1].final].bank == (plan.sequences[0].upstream[0].final,)


def test_nonsense_is_refused_with_its_name() -> None:
    with pytest.raises(ConfigError, match="no sequence"):
        make_plan([], COMMON)
    with pytest.raises(ConfigError, match="no upstream task"):
        make_plan([sequence("")], COMMON)
    with pytest.raises(ConfigError, match="names a more than once"):
        make_plan([sequence("aba")], COMMON)


def test_the_whole_bank_may_be_scored_now_and_then_only() -> None:
    """Every second task and the last; each task right after it was learnt; what is scored keeps its key."""
    spec = sequence("abcde", downstream="f")
    every = make_plan([spec], COMMON)
    seldom = make_plan([replace(spec, evaluate_every=2)], COMMON)
    (all_cells,), (cells,) = ([s.evaluations for s in plan.sequences] for plan in (every, seldom))
    rows = {i: [j for j in range(5) if (i, j) in cells] for i in range(5)}
    assert rows == {0: [0], 1: [0, 1], 2: [2], 3: [0, 1, 2, 3], 4: [0, 1, 2, 3, 4]}
    assert all(all_cells[at] == key for at, key in cells.items())
    assert set(seldom.jobs) < set(every.jobs)
    assert len(every.jobs) - len(seldom.jobs) == 2, "c alone is not scored on the bank of a, b and c"
    assert make_plan([replace(spec, evaluate_every=99)], COMMON).sequences[0].evaluations.keys() == {
        *((i, i) for i in range(5)),
        *((4, j) for j in range(5)),
    }
