"""Several runs on one page: what differs, what is missing, and nothing that a page must not do."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from atlas_dist.core.plan import Plan, make_plan
from atlas_dist.core.state import RunState
from atlas_dist.report.facts import RunFacts, gather
from atlas_dist.report.measures import compare, measure
from atlas_dist.report.side_by_side import Side, cautions, differences, render, write_side_by_side
from atlas_dist.report.svg import COLOURS
from tests.kits.pages import check_page
from tests.unit.core.test_plan import COMMON, sequence
from tests.unit.report.test_report import committed


@pytest.fixture
def plan() -> Plan:
    return make_plan([sequence("abc", downstream="d")], COMMON)


def side(plan: Plan, name: str, spec: dict[str, object] | None = None, **options: object) -> Side:
    state = committed(plan, **options)  # type: ignore[arg-type]
    state = replace(state, run=name, spec=spec or {})
    return Side(name, with_curves(gather(plan, state)), compare(measure(plan, state)))


def with_curves(facts: RunFacts) -> RunFacts:
    def drawn(task: object) -> object:
        stages = tuple(replace(s, validation=[{"step": 4, "loss": 1.0, "score": 50.0}]) for s in task.stages)  # type: ignore[attr-defined]
        return replace(task, stages=stages)  # type: ignore[type-var]

    sequences = tuple(replace(s, upstream=tuple(map(drawn, s.upstream))) for s in facts.sequences)  # type: ignore[arg-type]
    return replace(facts, sequences=sequences)


def test_only_what_differs_is_listed(plan: Plan) -> None:
    left = side(plan, "left", {"seeds": [0], "train": {"lr": 0.1, "clip": None}, "method": {"name": "atlas"}})
    right = side(plan, "right", {"seeds": [0], "train": {"lr": 0.2}, "method": {"name": "atlas", "rank": 4}})
    assert differences([left, right]) == {"method.rank": ["–", "4"], "train.lr": ["0.1", "0.2"]}
    assert "None: the runs were started with the same settings" in render([left, left])


def test_other_data_is_a_difference_too(plan: Plan) -> None:
    left = side(plan, "left")
    tasks = left.facts.sequences[0].upstream
    other = replace(tasks[0], data=dict.fromkeys(tasks[0].data, "f" * 64))
    sequence_ = replace(left.facts.sequences[0], upstream=(other, *tasks[1:]))
    found = differences([left, Side("right", replace(left.facts, sequences=(sequence_,)), left.rows)])
    assert set(found) == {f"data {name}" for name in tasks[0].data}


def test_what_does_not_measure_the_same_is_said_before_the_numbers(plan: Plan) -> None:
    def asked(**settings: object) -> dict[str, object]:
        return {"backbone": {"name": "tiny"}, "tasks": {"a": {"kind": "single", "max_text": 8, "shots": 0.0, **settings}}}

    left = side(plan, "left", asked())
    assert cautions([left, side(plan, "again", asked())]) == []
    assert "not to be compared" not in render([left, left])
    right = side(plan, "right", asked(shots=16, max_text=40))
    told = cautions([left, right])
    assert [sentence.partition(" differs")[0] for sentence in told] == ["a: max_text", "a: shots"]
    assert told[0].endswith("left: 8; right: 40.")
    page = render([left, right])
    check_page(page)
    assert 0 < page.index("a: shots differs") < page.index("Average score at the end") < page.index("Accuracy in %")
    other = make_plan([sequence("ab")], COMMON)
    (told,) = cautions([left, side(other, "short", asked())])
    assert told == "The averages are over different tasks. left: a, b, c; short: a, b."
    (told,) = cautions([left, side(plan, "backbone", {**asked(), "backbone": {"name": "clip"}})])
    assert "backbones differ" in told


def test_the_page_shows_each_run_and_is_a_page(plan: Plan, tmp_path: Path) -> None:
    sides = [side(plan, "left", {"seeds": [0]}), side(plan, "<i>right", {"seeds": [1]})]
    page = write_side_by_side(sides, tmp_path).read_text()
    check_page(page)
    assert "<i>right" not in page
    assert page.index("Average score at the end") < page.index("<nav"), "the answer comes first"
    assert "forgotten 0.0 %" in page
    assert page.count("left: task view") == 4, "a map and a table, each with a caption and a label"
    assert page.count("a stage2: validation score by step") == 2, "a label and a title"
    assert "&lt;i&gt;right 50.0 %" in page
    assert (tmp_path / "settings.csv").read_text().splitlines()[1] == "seeds,[0],[1]"
    assert any(
        line.startswith("left,atlas_paper,average accuracy,90") for line in (tmp_path / "measures.csv").read_text().splitlines()
    )


def test_a_run_that_is_not_complete_is_said_to_be_so(plan: Plan) -> None:
    page = render([side(plan, "whole"), side(plan, "partly", leave_out="3 eval b")])
    check_page(page)
    assert "not complete yet" in page
    assert "<td>–</td>" in page
    nothing = Side("empty", gather(plan, RunState(run="empty")), ())
    check_page(render([nothing, nothing]))


def test_more_lines_than_can_be_told_apart_are_not_drawn() -> None:
    many = make_plan([sequence("ab", seed=seed) for seed in range(COLOURS)], COMMON)
    page = render([side(many, "left"), side(many, "right")])
    check_page(page)
    assert f"Of {2 * COLOURS} sequences, the first of each run is drawn." in page


def test_environments_are_the_jobs_own(plan: Plan) -> None:
    left = side(plan, "left")
    heard = replace(left.facts, trained_on=({"torch": "2.13", "device": "cpu"}, {"torch": "2.14", "device": "cpu"}))
    page = render([Side("noted", heard, left.rows), left])
    assert "2.13, 2.14" in page
    assert "Not noted by the version that ran it: left." in page
    assert json.dumps(heard.environment["python"])[1:-1] not in page.split("Environments")[1], "nobody's guess"
