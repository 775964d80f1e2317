"""The page of a run: its first screen answers, its maps speak, and what a result does not have is not shown."""

from __future__ import annotations

import html
import re
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from atlas_dist.core.attempts import Blob
from atlas_dist.core.metrics import spread
from atlas_dist.core.plan import Plan, References, make_plan
from atlas_dist.core.state import RunState
from atlas_dist.methods import make_method
from atlas_dist.report.facts import RunFacts, gather
from atlas_dist.report.forecast import Compared
from atlas_dist.report.growth import bank_sizes, selections
from atlas_dist.report.heatmap import MOST, HeatCell, HeatMap, heat_map
from atlas_dist.report.measures import SequenceMeasures, measure
from atlas_dist.report.overview import method_scores
from atlas_dist.report.page import render, write_report
from tests.kits.pages import check_page
from tests.unit.core.test_plan import COMMON, sequence
from tests.unit.report.test_report import committed

STYLE = (Path(__file__).parents[3] / "atlas_dist" / "report" / "templates" / "page.css").read_text()


def run_of(plan: Plan, state: RunState | None = None) -> tuple[RunFacts, tuple[SequenceMeasures, ...]]:
    state = state or committed(plan)
    return gather(plan, state), measure(plan, state)


def page_of(plan: Plan, state: RunState | None = None) -> str:
    facts, measured = run_of(plan, state)
    page = render(facts, (), measured)
    check_page(page)
    return page


def told(state: RunState, key: str, metrics: Mapping[str, Any], files: Sequence[str] = ()) -> RunState:
    """The state with more in one result."""
    ref = state.jobs[key].committed
    assert ref is not None
    blobs = (*ref.blobs, *(Blob(name, 2_000, "a" * 64) for name in files))
    better = replace(ref, metrics={**ref.metrics, **metrics}, blobs=blobs)
    return replace(state, jobs={**state.jobs, key: replace(state.jobs[key], committed=better)})


def figures(page: str) -> dict[str, tuple[str, str]]:
    """The first screen's figures: what -> (value, what is said of it)."""
    found = re.findall(r"<dt>([^<]*)</dt><dd><b>([^<]*)</b><small>([^<]*)</small>", page)
    return {html.unescape(what): (html.unescape(value), html.unescape(more)) for what, value, more in found}


@pytest.fixture
def plan() -> Plan:
    return make_plan([sequence("abc", downstream="d")], COMMON)


@pytest.fixture
def experienced(plan: Plan) -> RunState:
    """a grows; b reads a and grows, c reads a and b and declines, the transfer d commits its own adapter."""
    (jobs,) = plan.sequences
    state = committed(plan)
    a, b, c = (task.final for task in jobs.upstream)
    d = jobs.downstream[0].final
    state = told(state, a, {"form": "own", "scores": {"own": 50.0}, "samples": 40, "gain": None, "sees": []},
        ["adapter.safetensors"])  # fmt: skip
    gain = {"mean": 3.5, "low": 1.25, "high": 5.75, "confidence": 0.95}
    scores = {"experience": 61.0, "own": 70.0, "both": 73.5}
    both = {"form": "both", "scores": scores, "samples": 1200, "gain": gain, "started_from": a}
    state = told(state, b, {**both, "sees": [a, b], "similarity": {a: 0.625}}, ["adapter.safetensors"])
    gain = {"mean": -0.5, "low": -1.0, "high": 0.25, "confidence": 0.9}
    only = {"form": "experience", "scores": {"experience": 80.0, "own": 80.5}, "samples": 90, "gain": gain}
    state = told(state, c, {**only, "sees": [a, b], "similarity": {a: -0.25, b: 1.0}})
    own = {
        "form": "own",
        "scores": {"experience": 20.0, "own": 40.0, "both": 39.0},
        "samples": 30,
        "gain": None,
        "started_from": "mean",
    }
    return told(state, d, {**own, "sees": [d], "similarity": {a: 0.0, b: 0.125}}, ["adapter.safetensors"])


# --------------------------------------------------------------------------------------------------------- the first screen


def test_the_first_screen_answers(plan: Plan) -> None:
    page = page_of(plan)
    found = figures(page)
    assert found["Learnt"] == ("3 tasks", "atlas_paper, and 1 transfer")
    assert found["Average score, %"] == ("90.0", "chance is 33.3 %")
    assert found["Forgotten, %"][0] == "0.0"
    assert (
        "every old prediction is bitwise equal; read with the newest queries and every adapter 52.9 %" in found["Forgotten, %"][1]
    )
    assert page.index('id="answer"') < page.index("<nav") < page.index('id="s0"'), "before anything else"
    assert page.count('class="block plotted"') == 1, "one picture"
    assert "chance 33.3 · latest view 60.0" in page
    assert "Bank" not in found, "no result has an adapter: nothing is claimed"


def test_what_is_not_known_yet_is_said_to_be_so(plan: Plan) -> None:
    (jobs,) = plan.sequences
    state = committed(plan, leave_out="3 eval b")
    found = figures(page_of(plan, state))
    assert found["Forgotten"] == ("–", "not known before every task is scored")
    assert found["Average score, %"][0] == "90.0"
    started = replace(state, jobs={key: job for key, job in state.jobs.items() if key in jobs.upstream[0].stages})
    page = page_of(plan, started)
    assert figures(page)["Learnt"] == ("1 of 3 tasks", "atlas_paper, and 1 transfer")
    assert "not scored yet" in page
    assert "1 of 14 jobs are done; the rest is missing here." in page
    check_page(render(gather(plan, RunState(run="nothing"))))


def test_changed_predictions_are_the_first_thing_to_be_seen(plan: Plan) -> None:
    value, more = figures(page_of(plan, committed(plan, drift=True)))["Forgotten"]
    assert (value, more) == ("changed", "the predictions of a, b did not stay equal")


def test_seeds_are_a_mean_and_a_deviation() -> None:
    plan = make_plan([replace(sequence("ab", seed=seed), name=f"seed{seed}") for seed in (0, 1, 2)], COMMON)
    state = committed(plan)
    for seed, jobs in enumerate(plan.sequences):
        for key in jobs.evaluations.values():
            view = {"score": 80.0 + seed, "predictions_sha256": "x"}
            state = told(state, key, {"views": {"task": view}})
    page = page_of(plan, state)
    assert figures(page)["Average score, %"][0] == "81.0 ± 1.0"
    assert figures(page)["Learnt"][1] == "atlas_paper, 3 orders and seeds"
    assert page.count('<i class="reach" style="left:80.0%;width:2.0%"></i>') == 2, "each task's bar has its deviation"


def test_methods_are_compared_in_the_picture() -> None:
    plan = make_plan([sequence("ab"), replace(sequence("ab", method="individual_adapters"), name="individual")], COMMON)
    state = committed(plan)
    for key in plan.sequences[1].evaluations.values():
        state = told(state, key, {"views": {"task": {"score": 95.0, "predictions_sha256": "y"}}})
    page = page_of(plan, state)
    assert figures(page)["Average score, %"] == ("95.0", "individual_adapters is the best of 2; chance is 33.3 %")
    assert figures(page)["Learnt"] == ("2 tasks", "by each of 2 methods")
    picture = page.partition('class="plot"')[2].partition("</table>")[0]
    assert re.findall(r'<th scope="row">([^<]*)</th>', picture) == ["atlas_paper", "individual_adapters"]


def test_references_are_what_it_is_compared_with() -> None:
    alone = make_method("individual_adapters", {}).spec
    spec = replace(sequence("ab", downstream="d"), references=References(alone=alone, pretrained=alone))
    plan = make_plan([spec], COMMON)
    state = committed(plan)
    for score, key in enumerate((*plan.sequences[0].alone.values(), *plan.sequences[0].pretrained.values()), 70):
        state = told(state, key, {"views": {"task": {"score": float(score), "predictions_sha256": "z"}}})
    page = page_of(plan, state)
    (measured,) = measure(plan, state)
    assert (measured.alone, measured.pretrained) == ({"a": 70.0, "b": 71.0}, {"d": 72.0})
    assert figures(page)["Average score, %"][1] == "chance is 33.3 %; each task learnt alone 70.5 %"
    assert "alone 71.0" in page
    assert "pretrained alone 72.0" in page


@pytest.mark.parametrize(("price", "what", "value", "more"), [
    (0.0, "Worker hours", "0.5", "forecast 0.2 to 0.4"),
    (3.0, "Cost", "1.50", "0.5 worker hours; forecast 0.60 to 1.20"),
])  # fmt: skip
def test_time_and_cost_stand_beside_the_plan(plan: Plan, price: float, what: str, value: str, more: str) -> None:
    facts, measured = run_of(plan)
    row = Compared("learning", 7, 7, 100, 100, (400.0, 1200.0), 900.0, (0.2, 0.4), 0.5)
    found = figures(render(replace(facts, compared=(row,), worker_hour=price), (), measured))
    assert found["Time"] == ("15 min", "all jobs 15 min, forecast 7 min to 20 min")
    assert found[what] == (value, more)
    unknown = replace(row, seconds_foreseen=None, worker_hours_foreseen=None)
    found = figures(render(replace(facts, compared=(row, unknown)), (), measured))
    assert found["Time"][1] == "all jobs 30 min, no forecast: nothing had finished to go by"


# ------------------------------------------------------------------------------------------------- what each task committed


def test_what_each_task_committed_is_shown_with_its_certainty(plan: Plan, experienced: RunState) -> None:
    page = page_of(plan, experienced)
    found = figures(page)
    assert found["Bank"] == ("2 adapters", "for 3 tasks, 4 kB; 1 added none, for it did not pay")
    value, more = found["Experience used"]
    assert (value, more) == ("2 of 3", "tasks; committed: experience alone 1, own adapter alone 1, experience and own adapter 1")
    adds = "an own adapter adds +3.5 points (+1.2 to +5.8), worth it with 95 % confidence"
    assert f"+3.5 points over its own adapter alone; {adds}; coefficients began as those of a</small>" in page
    assert "coefficients began as the mean of all" not in page, "what is committed reads none"
    adds = "an own adapter adds -0.5 points (-1.0 to +0.2), worth it with 90 % confidence"
    assert f"-0.5 points over its own adapter alone; {adds}; no adapter added: the bank does not grow" in page
    assert "2 adapters for 3 tasks; without one of their own: c." in page
    assert "own adapter alone</td><td>20.0</td><td>40.0</td><td>39.0</td>" in page, "all scores, folded away as a table"
    (got,) = gather(plan, experienced).sequences
    assert bank_sizes(got) == [1, 2, 2]
    assert [each.form for each in selections(got.upstream)] == ["own", "both", "experience"]


def test_an_adapter_of_another_candidate_does_not_make_the_bank_grow(plan: Plan, experienced: RunState) -> None:
    (jobs,) = plan.sequences
    state = told(experienced, jobs.upstream[2].stages[0], {}, ["adapter.safetensors"])
    (got,) = gather(plan, state).sequences
    assert bank_sizes(got) == [1, 2, 2]
    assert figures(page_of(plan, state)) == figures(page_of(plan, experienced))


def test_similarity_is_a_map_by_the_tasks_names(plan: Plan, experienced: RunState) -> None:
    page = page_of(plan, experienced)
    assert 'aria-label="b and a: similarity 0.62"' in page or 'aria-label="b and a: similarity 0.63"' in page
    assert re.search(r'class="below" style="--share:0.25" tabindex="0" aria-label="c and a: similarity -0.25"', page)
    assert page.count("Similarity of the tasks") >= 2, "a map and a table"


def test_a_task_reads_what_its_result_says(plan: Plan, experienced: RunState) -> None:
    """With retrieval that is less than the plan allows."""
    (got,) = gather(plan, experienced).sequences
    assert [task.sees for task in (*got.upstream, *got.downstream)] == [(), ("a", "b"), ("a", "b"), ("d",)]
    (before,) = gather(plan, committed(plan)).sequences
    assert [task.sees for task in before.upstream] == [("a",), ("a", "b"), ("a", "b", "c")], "an older result says nothing"
    nearest = told(experienced, plan.sequences[0].upstream[2].final, {"sees": [plan.sequences[0].upstream[1].final, "0" * 32]})
    assert gather(plan, nearest).sequences[0].upstream[2].sees == ("b", "0" * 12)


def test_a_result_without_these_facts_has_none_of_their_parts(plan: Plan) -> None:
    page = page_of(plan)
    for absent in ("What each task committed", "Experience used", "Similarity", "Growth", "adapters in the bank"):
        assert absent not in page


@pytest.mark.parametrize("selection", [
    {},
    {"form": "both"},
    {"form": "new form", "scores": {"new form": 3.0}, "gain": {"mean": 1.0}},
    {"form": "own", "scores": {"own": None}, "samples": 3, "gain": {"mean": None, "low": None}},
])  # fmt: skip
def test_half_a_fact_is_shown_as_far_as_it_goes(plan: Plan, selection: Mapping[str, object]) -> None:
    key = plan.sequences[0].upstream[1].final
    page = page_of(plan, told(committed(plan), key, {**selection, "similarity": None}))
    assert ("What each task committed" in page) == bool(selection)


# -------------------------------------------------------------------------------------------------------------------- maps


def with_alpha(facts: RunFacts, values: Mapping[str, Mapping[str, list[float]]]) -> RunFacts:
    """The second task's last stage has these coefficients."""
    (got,) = facts.sequences
    task = got.upstream[1]
    stages = (*task.stages[:-1], replace(task.stages[-1], reuse=values))
    upstream = (got.upstream[0], replace(task, stages=stages), *got.upstream[2:])
    return replace(facts, sequences=(replace(got, upstream=upstream),))


def test_coefficients_below_zero_have_a_colour_of_their_own(plan: Plan) -> None:
    facts, measured = run_of(plan)
    reuse = {"L0.aftattn": {"mean": [-0.5, 0.25], "std": [0.125, 0.0]}, "L0.aftmlp": {"mean": [-0.25, 0.25], "std": [0.375, 0.0]}}
    page = render(with_alpha(facts, reuse), (), measured)
    check_page(page)
    sentence = "b reads the adapter of a with coefficient α -0.375 on average, 0.250 standard deviation over samples"
    assert f'<td class="below" style="--share:1.00" tabindex="0" aria-label="{sentence}">-0.38</td>' in page
    assert '<i class="both"></i>' in page
    assert "b reads the adapter of a at L0.aftattn: α -0.500 ± 0.125 over samples" in page
    chosen = {**facts.sequences[0].upstream[1].metrics, "form": "own", "scores": {}}
    (got,) = with_alpha(facts, reuse).sequences
    task = got.upstream[1]
    alone = replace(task, stages=(*task.stages[:-1], replace(task.stages[-1], metrics=chosen)))
    assert task.reuse()["a"] == -0.375
    assert alone.reuse() == {}, "what is committed reads no adapter but its own"
    positive = {"L0.aftattn": {"mean": [0.5, 0.25]}}
    page = render(with_alpha(facts, positive), (), measured)
    assert 'aria-label="b reads the adapter of a with coefficient α 0.500 on average"' in page, "an older result has no spread"


def test_every_value_of_a_map_can_be_reached_and_read(plan: Plan) -> None:
    page = page_of(plan)
    assert 'aria-label="a after c was learnt: 90.0 %">90.0</td>' in page
    assert 'aria-label="a after c was learnt: 60.0 %">60.0</td>' in page
    assert page.count("<script>") == 1
    assert "ArrowLeft" in page
    missing = render(gather(plan, committed(plan, leave_out="3 eval b")))
    assert 'aria-label="b after c was learnt: not known yet"' in missing


def test_a_map_of_very_many_tasks_stays_small() -> None:
    names = [f"task{n:04}" for n in range(1000)]
    cells = [[HeatCell(float(j), f"{i} {j}") for j in range(i + 1)] for i in range(1000)]
    drawn = heat_map(HeatMap("many", names, names, cells))
    assert drawn.count('<th scope="row">') == MOST
    assert 'aria-label="999 999"' in drawn, "the last one is there"
    assert f"{MOST} rows and columns are drawn; the CSV files have all." in drawn
    assert len(drawn) < 100_000


def test_a_map_without_a_value_is_not_drawn() -> None:
    assert heat_map(HeatMap("empty", ["a"], ["b"], [[HeatCell(None, "not known yet")]])) == ""


# --------------------------------------------------------------------------------------------------------- how it is shown


def test_a_page_of_a_whole_run_is_small(plan: Plan, experienced: RunState, tmp_path: Path) -> None:
    """Twice the demo's steps: four tasks, two stages each, with curves."""
    facts, measured = run_of(plan, experienced)
    (got,) = facts.sequences
    curve = [{"step": float(n), "loss": 2.0 / n, "score": 50.0 + n / 20} for n in range(1, 800, 10)]

    def longer(tasks: Sequence[Any]) -> tuple[Any, ...]:
        sites = {f"L{n}.{site}": {"mean": [0.1] * 4, "std": [0.1] * 4} for n in range(5) for site in ("aftattn", "aftmlp")}
        return tuple(
            replace(t, stages=tuple(replace(s, curve=curve, validation=curve[::8], reuse=sites) for s in t.stages)) for t in tasks
        )

    whole = replace(got, upstream=longer(got.upstream), downstream=longer(got.downstream))
    page = write_report(replace(facts, sequences=(whole,)), tmp_path, (), measured)
    check_page(page.read_text())
    assert page.stat().st_size < 300_000


def colours(scheme: str) -> dict[str, tuple[float, float, float]]:
    light, dark = (dict(re.findall(r"--(\w+): #(\w{6})", line)) for line in STYLE.splitlines()[:2])
    found = light if scheme == "light" else light | dark
    return {name: (int(v[:2], 16), int(v[2:4], 16), int(v[4:], 16)) for name, v in found.items()}


def luminance(colour: Sequence[float]) -> float:
    """WCAG 2."""
    parts = [c / 255 / 12.92 if c / 255 <= 0.04045 else ((c / 255 + 0.055) / 1.055) ** 2.4 for c in colour]
    return 0.2126 * parts[0] + 0.7152 * parts[1] + 0.0722 * parts[2]


def contrast(one: Sequence[float], other: Sequence[float]) -> float:
    darker, lighter = sorted((luminance(one), luminance(other)))
    return (lighter + 0.05) / (darker + 0.05)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_stands_out_from_what_is_behind_it(scheme: str) -> None:
    found = colours(scheme)
    for text in ("ink", "soft", "good", "bad", "a"):
        for behind in ("paper", "card"):
            assert contrast(found[text], found[behind]) >= 4.5, f"{text} on {behind}"
    share = float(re.findall(r"var\(--heat\) calc\(var\(--share\) \* (\d+)%\)", STYLE)[0]) / 100
    for colour in ("heat", "cold"):
        deepest = [share * c + (1 - share) * p for c, p in zip(found[colour], found["paper"], strict=True)]
        assert contrast(found["ink"], deepest) >= 4.5, f"numbers in the deepest {colour} cell"


def test_motion_and_print_are_thought_of() -> None:
    assert "@media (prefers-reduced-motion: reduce)" in STYLE
    assert "::details-content" in STYLE.partition("@media print")[2], "what is folded away is printed"


@pytest.mark.skipif(shutil.which("chromium") is None, reason="needs chromium")
def test_arrow_keys_move_in_a_map_and_the_focus_tells_the_value(plan: Plan, tmp_path: Path) -> None:
    page = write_report(gather(plan, committed(plan)), tmp_path)
    probe = """<script>
      const cells = document.querySelectorAll("table.map td[tabindex]");
      const stops = [...cells].filter((c) => c.tabIndex === 0).length, maps = document.querySelectorAll("table.map").length;
      cells[0].focus();
      for (const key of ["ArrowDown", "ArrowRight", "ArrowRight", "ArrowDown"])
        document.activeElement.dispatchEvent(new KeyboardEvent("keydown", { key, bubbles: true }));
      const at = document.activeElement;
      document.title = `[${stops}/${maps}|${at.ariaLabel}]`;
    </script>"""
    page.write_text(page.read_text().replace("</body>", f"{probe}</body>"))
    command = ["chromium", "--headless=new", "--no-sandbox", "--disable-gpu", "--dump-dom", page.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=True)
    (stops, maps, at) = re.findall(r"\[(\d+)/(\d+)\|([^\]]*)\]</title>", done.stdout)[0]
    assert stops == maps, "a map is one stop of the Tab key"
    assert at == "b after c was learnt: 90.0 %"


def test_scores_are_gathered_by_method(plan: Plan) -> None:
    facts, measured = run_of(plan)
    (method,) = method_scores(facts, measured)
    assert method.average == spread([90.0])
    assert {name: task.later for name, task in method.tasks.items()} == {"a": [60.0], "b": [60.0], "c": [], "d": []}
    (without,) = method_scores(facts)
    assert without.average == spread([90.0])
    assert without.forgotten is None
