"""The measures of whole runs, against tables worked out by hand; and what is not compared."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest
from rich.console import Console

from atlas_dist.core.attempts import CommittedRef
from atlas_dist.core.plan import Plan, References, SequenceSpec, make_plan
from atlas_dist.core.state import JobState, RunState
from atlas_dist.core.types import Budget, JobKind, Stage, StageJob, View
from atlas_dist.methods import make_method
from atlas_dist.report.comparison import show_comparison, write_comparison
from atlas_dist.report.measures import (
    AVERAGE,
    BACKWARD,
    FORGETTING,
    FORWARD,
    LOW_SHOT,
    PARAMETERS,
    SECONDS,
    STEPS,
    UPSTREAM,
    compare,
    measure,
    notes,
    sharing,
)
from tests.unit.core.test_plan import COMMON, sequence

CHANCE = 100 / 3


def spec(order: str, method: str, seed: int = 0, downstream: str = "") -> SequenceSpec:
    references = References(*(make_method(name, {}).spec for name in ("sequential_finetune", "head_only")))
    return replace(sequence(order, method=method, seed=seed, downstream=downstream), references=references)


def state_of(plan: Plan, score: Callable[[StageJob, View], float]) -> RunState:
    """A run in which every job is committed, with scores as given."""

    def metrics(job: StageJob) -> dict[str, object]:
        if job.kind is JobKind.EVAL:
            return {"views": {view.value: {"score": score(job, view)} for view in job.views}}
        return {"score": 0.0, "steps": 10, "trained_parameters": 1000, "seconds": {"setup": 0.5, "training": 2.0}}

    return RunState(jobs={k: JobState(k, committed=CommittedRef(k, "a", "p", (), metrics(j))) for k, j in plan.jobs.items()})


def numbered(values: dict[str, float]) -> Callable[[StageJob, View], float]:
    """Scores by label: `2 eval a` after the sequence's name; the latest view's marked with a star."""

    def score(job: StageJob, view: View) -> float:
        label = job.label.partition("/")[2] + ("*" if view is View.LATEST else "")
        return values[label]

    return score


def test_a_sequence_worked_out_by_hand() -> None:
    """Chance is 33.3 %. a is learnt to 70 and read as 60 in the end, b reaches 80; alone they reach 65 and 90."""
    plan = make_plan([spec("ab", "ewc", downstream="c")], COMMON)
    scores = {"1 eval a": 70.0, "2 eval a": 70.0, "2 eval a*": 60.0, "2 eval b": 80.0}
    scores |= {"alone eval a": 65.0, "alone eval b": 90.0, "transfer eval c": 50.0, "transfer eval c*": 0.0}
    scores |= {"pretrained eval c": 40.0}
    (found,) = measure(plan, state_of(plan, numbered(scores)))
    assert found.values[AVERAGE] == pytest.approx((60 + 80) / 2), "a shared backbone is read in its newest state"
    assert found.values[BACKWARD] == pytest.approx(-10)
    assert found.values[FORGETTING] == pytest.approx(100 * 10 / (70 - CHANCE))
    assert found.values[FORWARD] == pytest.approx(80 - 90)
    assert found.values[UPSTREAM] == pytest.approx((100 * 5 / (65 - CHANCE) + 100 * -10 / (90 - CHANCE)) / 2)
    assert found.values[LOW_SHOT] == pytest.approx(100 * 10 / (40 - CHANCE))
    assert (found.values[PARAMETERS], found.values[STEPS], found.values[SECONDS]) == (1000, 20, 5)
    assert found.refused == ()


def test_what_the_task_view_keeps_is_not_forgotten() -> None:
    plan = make_plan([spec("ab", "atlas_paper")], COMMON)
    scores = {"1 eval a": 70.0, "2 eval a": 70.0, "2 eval a*": 10.0, "2 eval b": 80.0, "alone eval a": 70.0, "alone eval b": 80.0}
    (found,) = measure(plan, state_of(plan, numbered(scores)))
    assert (found.values[AVERAGE], found.values[FORGETTING], found.values[UPSTREAM]) == (75.0, 0.0, 0.0)


def test_a_reference_with_another_budget_is_refused_by_name() -> None:
    lone = spec("ab", "atlas_paper", downstream="")
    short = {Stage.ONE: Budget(max_steps=5), Stage.TWO: Budget(max_steps=10)}
    tasks = tuple(replace(t, budgets=short) for t in lone.upstream)
    one = make_method("atlas_paper", {"stages": "one"}).spec
    plan = make_plan([replace(lone, method=one, upstream=tasks)], COMMON)
    (found,) = measure(plan, state_of(plan, lambda job, view: 50.0))
    assert UPSTREAM not in found.values
    assert found.refused == ("b: budgets differ (5 steps of 128 samples, its reference 10 steps of 128 samples)",)


def test_an_unfinished_sequence_has_no_measures() -> None:
    plan = make_plan([spec("ab", "atlas_paper")], COMMON)
    state = state_of(plan, lambda job, view: 50.0)
    jobs = {k: v for k, v in state.jobs.items() if k != plan.sequences[0].evaluations[1, 0]}
    assert measure(plan, RunState(jobs=jobs)) == ()


def test_rows_average_over_seeds_and_orders(tmp_path: object) -> None:
    specs = [
        replace(spec(order, method, seed), name=f"{order}-{seed}")
        for method in ("head_only", "atlas_paper")
        for seed in (0, 1)
        for order in ("ab", "ba")
    ]
    plan = make_plan(specs, COMMON)

    def score(job: StageJob, view: View) -> float:
        return 60.0 + 4 * job.seed + (8 if job.method == "atlas" and job.own_bank == 2 else 0)

    rows = compare(measure(plan, state_of(plan, score)))
    assert [row.variant for row in rows] == ["head_only", "atlas_paper"]
    plain, atlas = rows
    assert plain.measures[AVERAGE].mean == 62.0
    assert plain.measures[AVERAGE].deviation == pytest.approx((16 / 3) ** 0.5)
    assert plain.order_sensitivity == 0.0
    assert atlas.measures[AVERAGE].mean == 66.0, "the second task of every order gains 8"
    assert atlas.order_sensitivity == 4.0, "a is 60 or 68, by order"
    assert atlas.measures[AVERAGE].count == 4
    console = Console(width=200, record=True)
    show_comparison(rows, console)
    assert "66.0 ± 2.3" in console.export_text()
    lines = list(written(tmp_path, rows))
    assert "atlas_paper,average accuracy,66,2.3094,4" in lines


def test_what_orders_share_is_counted_once_and_only_when_it_is_a_fact() -> None:
    plan = make_plan([replace(spec(order, "atlas_paper"), name=order) for order in ("abc", "acb")], COMMON)
    state = state_of(plan, lambda job, view: 50.0 + len(job.bank))
    assert str(sharing(plan, state)) == "5 tasks learnt for 6 places in the orders."
    about = notes(plan, state)
    assert about[0] == str(sharing(plan, state))
    assert about[1].startswith("Order sensitivity of atlas_paper: ")
    jobs = {k: v for k, v in state.jobs.items() if k != plan.sequences[0].upstream[0].final}
    assert sharing(plan, RunState(jobs=jobs)).learnt == 4
    assert notes(make_plan([spec("ab", "atlas_paper")], COMMON), state) == ()


def written(folder: object, rows: object) -> Iterator[str]:
    yield from write_comparison(rows, folder).read_text().splitlines()  # type: ignore[arg-type]


def test_measures_need_only_what_is_always_scored() -> None:
    """Whole bank after the last task only: the values are those of the run that scores everything."""
    whole = spec("abc", "ewc")
    seldom = replace(whole, evaluate_every=9)
    scores = {f"{i} eval {t}{star}": 40.0 + 7 * i + ord(t) % 5 for i in (1, 2, 3) for t in "abc" for star in ("", "*")}
    scores |= {f"alone eval {t}": 50.0 for t in "abc"}
    plans = [make_plan([s], COMMON) for s in (whole, seldom)]
    (full,), (few,) = (measure(plan, state_of(plan, numbered(scores))) for plan in plans)
    assert len(plans[1].jobs) < len(plans[0].jobs)
    assert few == full
    state = state_of(plans[1], numbered(scores))
    lacking = {k: v for k, v in state.jobs.items() if k != plans[1].sequences[0].evaluations[2, 0]}
    assert measure(plans[1], RunState(jobs=lacking)) == ()
