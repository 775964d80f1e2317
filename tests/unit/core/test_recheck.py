"""Old tasks after their first full pass: proved on a fixed sample, named by what is really read."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from atlas_dist.core.plan import Plan, SequenceSpec, make_plan
from atlas_dist.core.recheck import before_in, proves, score_in
from atlas_dist.core.results import EvalResult, ViewResult
from atlas_dist.core.sampling import fixed_sample
from atlas_dist.core.types import View
from tests.unit.core.test_plan import COMMON, sequence


def of_sizes(names: str, method: str = "atlas_paper", size: int = 1000, **changes: object) -> SequenceSpec:
    spec = sequence(names, method)
    sized = tuple(replace(task, scored_samples=size) for task in spec.upstream)
    return replace(spec, upstream=sized, **changes)  # type: ignore[arg-type]


def keys(plan: Plan) -> dict[tuple[int, int], str]:
    (jobs,) = plan.sequences
    return dict(jobs.evaluations)


def test_only_a_pass_that_is_really_partial_has_another_key() -> None:
    whole = keys(make_plan([of_sizes("abc")], COMMON))
    assert keys(make_plan([of_sizes("abc", recheck=1000)], COMMON)) == whole, "the split has no more"
    assert keys(make_plan([of_sizes("abc", size=0, recheck=256)], COMMON)) == whole, "nobody knows how many it has"
    plan = make_plan([of_sizes("abc", recheck=256)], COMMON)
    partly = keys(plan)
    assert {at for at in whole if whole[at] != partly[at]} == {(1, 0), (2, 0), (2, 1)}, "what was just learnt is read whole"
    assert {key for key, job in make_plan([of_sizes("abc")], COMMON).jobs.items() if job.stage} <= set(plan.jobs)
    assert plan.rechecked == {"a": (256, 1000), "b": (256, 1000)}


def test_a_partial_pass_waits_for_the_first_full_one_and_is_named_by_it() -> None:
    plan = make_plan([of_sizes("ab", recheck=256)], COMMON)
    cells = keys(plan)
    late, first = plan.jobs[cells[1, 0]], plan.jobs[cells[0, 0]]
    assert (late.first_from, late.split_samples) == (first.key, 1000)
    assert first.key in late.parents
    assert late.samples == {View.TASK: 256, View.LATEST: 256}
    assert not first.samples
    in_full = make_plan([of_sizes("ab", recheck=256, latest_in_full=True)], COMMON)
    assert in_full.jobs[keys(in_full)[1, 0]].samples == {View.TASK: 256}
    others = [keys(make_plan([of_sizes("ab", recheck=n)], COMMON))[1, 0] for n in (255, 256)]
    assert len({*others, keys(in_full)[1, 0]}) == 3


def test_tasks_that_share_nothing_or_are_learnt_together_are_read_once_and_whole() -> None:
    for method in ("individual_adapters", "multitask"):
        plan = make_plan([of_sizes("abc", method, recheck=10)], COMMON)
        assert not plan.rechecked
        assert keys(plan) == keys(make_plan([of_sizes("abc", method)], COMMON))


def test_scoring_grows_with_the_sample_and_not_with_the_split() -> None:
    def read(size: int, recheck: int) -> int:
        plan = make_plan([of_sizes("abcdefgh", size=size, recheck=recheck)], COMMON)
        return sum(sum(job.samples.get(view, size) for view in job.views) for job in plan.jobs.values())

    later = 2 * 8 * 7 // 2  # two views of every earlier task after every later one
    assert read(5000, 0) == 8 * 5000 + later * 5000
    assert read(5000, 256) == 8 * 5000 + later * 256


@pytest.mark.parametrize("counts", [[1000], [64] * 40, [3] * 400, [500, 1, 1, 1], [0, 0, 300]])
def test_the_sample_is_fixed_of_its_size_and_of_few_shards(counts: list[int]) -> None:
    shards = np.array(counts, np.int64)
    chosen = fixed_sample(shards, 256)
    assert chosen is not None
    assert len(set(chosen.tolist())) == 256
    assert (np.diff(chosen) > 0).all()
    assert 0 <= chosen[0] <= chosen[-1] < shards.sum()
    again = fixed_sample(shards, 256)
    assert again is not None
    assert (again == chosen).all()
    read = set(np.searchsorted(np.cumsum(shards), chosen, side="right").tolist())
    assert len(read) <= max(8, -(-256 // max(1, min(c for c in counts if c))))


def test_a_split_that_has_no_more_is_read_whole() -> None:
    assert fixed_sample(np.array([200, 56]), 256) is None
    assert fixed_sample(np.array([1000]), 0) is None


def test_the_sample_of_a_split_that_is_sorted_by_class_has_every_class() -> None:
    chosen = fixed_sample(np.array([100] * 10), 256)
    assert chosen is not None
    assert len(set((chosen // 125).tolist())) >= 6, "from eight of ten shards, at random"


def evaluation(**views: ViewResult) -> EvalResult:
    return EvalResult(views={View(name): told for name, told in views.items()})


FIRST = evaluation(task=ViewResult(score=80.0, samples=1000, predictions_sha256="all"))


def test_a_proof_on_some_samples_leaves_the_score_of_the_full_pass() -> None:
    task = ViewResult(score=75.0, samples=256, predictions_sha256="some", of=1000, differing=0)
    later = evaluation(task=task, latest=ViewResult(score=70.0, samples=256, predictions_sha256="late", of=1000))
    assert proves(later, FIRST)
    assert score_in(View.TASK, later, FIRST) == 80.0
    assert score_in(View.LATEST, later, FIRST) == 70.0
    assert before_in(View.LATEST, later, FIRST) == 75.0, "what was forgotten is told on the same samples"
    assert before_in(View.TASK, later, FIRST) == 80.0


def test_one_sample_that_differs_is_no_proof() -> None:
    for differing in (1, None):
        later = evaluation(task=ViewResult(score=80.0, samples=256, predictions_sha256="x", of=1000, differing=differing))
        assert not proves(later, FIRST)
        assert score_in(View.TASK, later, FIRST) == 80.0
    moved = evaluation(task=ViewResult(score=60.0, samples=256, predictions_sha256="x", of=1000, differing=200))
    assert score_in(View.TASK, moved, FIRST) == 60.0, "what it answers now, since it is not what it answered then"


def test_a_whole_pass_is_proved_by_the_digest_over_all() -> None:
    assert proves(evaluation(task=ViewResult(score=80.0, samples=1000, predictions_sha256="all")), FIRST)
    assert not proves(evaluation(task=ViewResult(score=80.0, samples=1000, predictions_sha256="other")), FIRST)
    assert not proves(EvalResult(), FIRST)
    latest = evaluation(task=FIRST.views[View.TASK], latest=ViewResult(score=50.0, samples=1000))
    assert before_in(View.LATEST, latest, FIRST) == 80.0
    assert score_in(View.LATEST, EvalResult(), FIRST) is None


def test_what_a_view_did_not_need_to_say_is_not_written() -> None:
    whole = evaluation(task=ViewResult(80.0, 1.0, 128, "x", 2.0)).to_json()["views"]["task"]
    assert set(whole) == {"score", "loss", "samples", "predictions_sha256", "effective_rank"}
    some = evaluation(task=ViewResult(80.0, 1.0, 256, "x", 2.0, of=1000, differing=0))
    assert some.to_json()["views"]["task"]["differing"] == 0
    assert EvalResult.from_json(some.to_json()) == some
