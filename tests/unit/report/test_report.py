"""Reports: values from a ledger, missing ones shown as missing, a page that needs nothing from outside."""

from __future__ import annotations

import io
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from rich.console import Console

from atlas_dist.core.ledger import JobState, RunState
from atlas_dist.core.plan import Plan, make_plan
from atlas_dist.core.types import CommittedRef
from atlas_dist.report.console import show
from atlas_dist.report.facts import RunFacts, gather
from atlas_dist.report.page import render, write_report
from tests.unit.core.test_plan import COMMON, sequence

VOID = {"meta", "line", "circle", "polyline", "br"}


def committed(plan: Plan, *, leave_out: str = "", drift: bool = False) -> RunState:
    """A state in which every job has a made-up result, in percent by its place."""
    jobs = {}
    for number, (key, job) in enumerate(plan.jobs.items()):
        if leave_out and job.label.endswith(leave_out):
            continue
        metrics: dict[str, object] = {"seconds": {"setup": 0.1, "training": 2.0}}
        if job.stage:
            metrics |= {"score": 50.0 + number, "best_step": 4, "steps": 8, "trained_parameters": 12}
        else:
            task = {"score": 90.0, "predictions_sha256": f"{job.task.name}{number if drift else ''}"}
            latest = {"score": 60.0, "predictions_sha256": "late"}
            metrics["views"] = {"task": task, "latest": latest} if job.latest_from else {"task": task}
        jobs[key] = JobState(key, committed=CommittedRef(key, f"{key}-1", f"p/{key}", (), metrics))
    return RunState(run="r", jobs=jobs, spec={"seeds": [0]})


@pytest.fixture
def plan() -> Plan:
    return make_plan([sequence("abc", downstream="d")], COMMON)


def facts(plan: Plan, **options: object) -> RunFacts:
    return gather(plan, committed(plan, **options))  # type: ignore[arg-type]


def test_both_views_fill_a_matrix(plan: Plan) -> None:
    (got,) = facts(plan).sequences
    assert got.matrix["task"] == ((90.0,), (90.0, 90.0), (90.0, 90.0, 90.0))
    assert got.matrix["latest"] == ((90.0,), (60.0, 90.0), (60.0, 60.0, 90.0))
    assert got.transfers == {"d": 90.0}
    summary = got.summary()
    assert summary["average accuracy, latest view"] == pytest.approx(70.0)
    assert summary["backward transfer, latest view"] == pytest.approx(-30.0)
    assert summary["forgetting T_F, latest view"] == pytest.approx(100 * 30 / (90 - 100 / 3))


def test_what_is_missing_is_shown_as_missing_and_not_summed_up(plan: Plan) -> None:
    (got,) = facts(plan, leave_out="3 eval b").sequences
    assert got.matrix["task"][2] == (90.0, None, 90.0)
    assert got.summary() == {}
    assert "<td>–</td>" in render(facts(plan, leave_out="3 eval b"))


def test_predictions_that_changed_are_an_alarm(plan: Plan) -> None:
    assert facts(plan).sequences[0].changed_predictions() == []
    assert facts(plan, drift=True).sequences[0].changed_predictions() == ["a", "b"]
    assert 'role="alert"' in render(facts(plan, drift=True))


class _Balance(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: object) -> None:
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag


def test_the_page_is_whole_and_asks_for_nothing(plan: Plan, tmp_path: Path) -> None:
    page = write_report(facts(plan), tmp_path).read_text()
    parser = _Balance()
    parser.feed(page)
    assert parser.open == []
    assert not re.search(r"""(src|href)=|url\(|@import|https?://""", page)
    assert json.loads((tmp_path / "run.json").read_text())["run"] == "r"
    assert (tmp_path / "abc-task.csv").read_text().splitlines()[1] == "a,90.0000"


def test_names_from_outside_are_escaped(plan: Plan) -> None:
    assert "<script>" not in render(gather(plan, RunState(run="<script>x</script>")))


def test_the_terminal_shows_matrix_transfer_and_places(plan: Plan) -> None:
    console = Console(record=True, width=120, file=io.StringIO())
    show(facts(plan), console, [("bank", "s3://b/x")])
    text = console.export_text()
    assert "bitwise equal" in text
    assert "s3://b/x" in text
    assert "backward transfer, latest view: -30.0" in text
