"""What a report says of tasks that were read again in part: scores, what was forgotten, and how many of how many."""

from __future__ import annotations

import io
from dataclasses import replace

import pytest
from rich.console import Console

from atlas_dist.core.attempts import CommittedRef
from atlas_dist.core.plan import Plan, make_plan
from atlas_dist.core.results import EvalResult, ViewResult
from atlas_dist.core.state import JobState, RunState
from atlas_dist.core.types import View
from atlas_dist.report.console import show
from atlas_dist.report.facts import gather
from atlas_dist.report.later import token_f1s, written_sentence
from atlas_dist.report.measures import BACKWARD, FORGETTING, measure
from atlas_dist.report.page import render
from tests.unit.core.test_plan import COMMON, sequence


@pytest.fixture
def plan() -> Plan:
    spec = sequence("ab")
    sized = tuple(replace(task, scored_samples=1000) for task in spec.upstream)
    return make_plan([replace(spec, upstream=sized, recheck=256)], COMMON)


def state(plan: Plan, *, differing: int = 0) -> RunState:
    """The first pass found 80 %, whose sample had 75 %; in the latest view the sample has 70 %."""
    jobs = {}
    for key, job in plan.jobs.items():
        metrics: dict[str, object] = {"score": 50.0, "steps": 8}
        if job.views:
            whole = {"score": 80.0, "samples": 1000, "predictions_sha256": f"all of {job.task.name}", "effective_rank": 9.0}
            some = {"samples": 256, "of": 1000, "predictions_sha256": "some"}
            task = {**some, "score": 75.0, "differing": differing, "effective_rank": 7.0}
            latest = {**some, "score": 70.0, "effective_rank": 6.0}
            metrics = {"views": {"task": task, "latest": latest} if job.samples else {"task": whole}}
        jobs[key] = JobState(key, committed=CommittedRef(key, f"{key}-1", f"p/{key}", (), metrics))
    return RunState(run="r", jobs=jobs, spec={"seeds": [0]})


def test_the_fact_stays_the_score_and_what_was_forgotten_is_told_on_the_same_samples(plan: Plan) -> None:
    (told,) = gather(plan, state(plan)).sequences
    assert told.matrix == {"task": ((80.0,), (80.0, 80.0)), "latest": ((80.0,), (70.0, 80.0))}
    chance = 100 / 3
    assert told.forgetting("latest") == ((pytest.approx(100 * (75 - 70) / (75 - chance)),),)
    assert told.summary()["backward transfer, latest view"] == pytest.approx(-5.0)
    assert told.summary()["backward transfer, task view"] == 0.0
    assert told.changed_predictions() == []
    (measured,) = measure(plan, state(plan))
    assert (measured.values[FORGETTING], measured.values[BACKWARD]) == (0.0, 0.0)


def test_ranks_are_compared_on_the_same_samples(plan: Plan) -> None:
    (told,) = gather(plan, state(plan)).sequences
    assert told.effective_rank == ((7.0,), (6.0, 9.0)), "the last task has no later pass: its rank is of the whole split"


def test_page_and_terminal_say_how_many_of_how_many(plan: Plan) -> None:
    facts = gather(plan, state(plan))
    console = Console(record=True, width=120, file=io.StringIO())
    show(facts, console)
    for text in (" ".join(console.export_text().split()), render(facts)):
        assert "after every later task, proved on a fixed sample: 256 of 1,000 (a)" in text
    assert "256 of 1,000 samples of a (sequence.recheck)" in render(facts)


def test_one_sample_that_changed_is_an_alarm(plan: Plan) -> None:
    facts = gather(plan, state(plan, differing=1))
    assert facts.sequences[0].changed_predictions() == ["a"]
    assert 'role="alert"' in render(facts)
    assert facts.sequences[0].matrix["task"][1][0] == 75.0, "no fact is claimed any more"


def test_written_answers_are_said_with_their_token_f1_and_others_are_not() -> None:
    classes = EvalResult(views={View.TASK: ViewResult(80.0, 0.5, 10)})
    written = EvalResult(views={View.TASK: ViewResult(10.0, 2.0, 10, token_f1=43.21)})
    later = EvalResult(views={View.TASK: ViewResult(9.0, 2.0, 10, token_f1=1.0)})
    cells = {(0, 0): classes, (1, 0): classes, (1, 1): written, (2, 0): classes, (2, 1): later, (2, 2): EvalResult()}
    found = token_f1s(cells, ["shape", "say", "next"])
    assert found == {"say": 43.21}
    assert written_sentence(found).endswith("token F1 right after learning: say 43.2 %.")
    assert written_sentence(token_f1s({(0, 0): classes}, ["shape"])) == ""
    stored = written.to_json()["views"]["task"]
    assert stored["token_f1"] == 43.21 and "token_f1" not in classes.to_json()["views"]["task"]
    assert EvalResult.from_json(written.to_json()).views[View.TASK].token_f1 == 43.21
