"""Whether α agrees with what leaving an adapter out costs."""

from __future__ import annotations

from dataclasses import replace

from atlas_dist.core.plan import make_plan
from atlas_dist.report.agreement import agreement, lost_without
from atlas_dist.report.facts import SequenceFacts, gather
from atlas_dist.report.matrices import without_matrix
from tests.unit.core.test_plan import COMMON, sequence
from tests.unit.report.test_report import committed


def told(alphas: dict[str, list[float]], without: dict[str, tuple[float, ...]]) -> SequenceFacts:
    """Four tasks, each at 90 points; what some of them read and lose."""
    plan = make_plan([sequence("abcd")], COMMON)
    (found,) = gather(plan, committed(plan)).sequences
    tasks = []
    for task in found.upstream:
        mean = alphas.get(task.task, [1.0])
        stage = replace(task.stages[-1], reuse={"L0.aftmlp": {"mean": mean}, "L1.aftmlp": {"mean": mean}})
        tasks.append(replace(task, stages=(*task.stages[:-1], stage)))
    return replace(found, upstream=tuple(tasks), without=without)


def test_an_alpha_that_follows_what_is_lost_agrees_whatever_its_sign() -> None:
    found = told({"c": [0.1, -0.5, 1.0], "d": [0.3, 0.7, 0.2, 1.0]}, {"c": (89.0, 80.0, 40.0), "d": (85.0, 70.0, 88.0, 10.0)})
    assert lost_without(found)["c"] == {"a": 1.0, "b": 10.0, "c": 50.0}
    # 0.1, 0.2, 0.3, 0.5, 0.7 lose 1, 2, 5, 10, 20 points; the own adapters, which lose most, do not count.
    assert agreement(found) == "Rank correlation of the size of α and the points lost without the adapter: 1.00 (5 pairs)."
    assert "1.00 (5 pairs)" in without_matrix(found)


def test_an_alpha_that_prefers_what_does_harm_disagrees() -> None:
    found = told({"d": [0.3, 0.2, 0.1, 1.0]}, {"d": (95.0, 90.0, 85.0, 10.0)})
    assert "-1.00 (3 pairs)" in agreement(found)


def test_too_few_pairs_say_nothing() -> None:
    assert agreement(told({"b": [0.3, 1.0]}, {"b": (80.0, 10.0)})) == ""
    assert "Rank correlation" not in without_matrix(told({"b": [0.3, 1.0]}, {"b": (80.0, 10.0)}))
