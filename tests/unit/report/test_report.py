"""Reports: values from a ledger, missing ones shown as missing, a page that needs nothing from outside."""

from __future__ import annotations

import dataclasses
import html
import io
import json
import re
import shutil
import struct
import subprocess
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from atlas_dist.core.attempts import CommittedRef, FailureKind
from atlas_dist.core.ledger import Entry
from atlas_dist.core.plan import Plan, make_plan
from atlas_dist.core.records import Begin, Commit, Dispatch, Elect, Fail, Pause
from atlas_dist.core.state import JobState, RunState
from atlas_dist.data.crc import crc32c
from atlas_dist.report.console import show
from atlas_dist.report.facts import RunFacts, SequenceFacts, TaskFacts, gather
from atlas_dist.report.page import render, write_report
from atlas_dist.report.tensorboard import Scalar, event_file, write_events
from atlas_dist.report.timeline import timeline
from atlas_dist.store.curves import Point
from tests.kits.pages import check_page
from tests.unit.core.test_plan import COMMON, sequence


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


def test_the_page_is_whole_and_asks_for_nothing(plan: Plan, tmp_path: Path) -> None:
    page = write_report(facts(plan), tmp_path).read_text()
    check_page(page)
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


def test_forgetting_is_told_for_every_pair_of_tasks(plan: Plan) -> None:
    (got,) = facts(plan).sequences
    lost = pytest.approx(100 * 30 / (90 - 100 / 3))
    assert got.forgetting("latest") == ((lost,), (lost, lost))
    assert got.forgetting("task") == ((0.0,), (0.0, 0.0))
    (partly,) = facts(plan, leave_out="3 eval b").sequences
    assert partly.forgetting("latest")[1] == (lost, None)


def entries(plan: Plan) -> list[Entry]:
    """One job that fails once and then commits, another that is still under way."""
    first, second, *_ = plan.jobs
    records = [
        Begin("r", "s", "p"),
        Elect("first"),
        Dispatch(first, "a1", "p/a1", "pool", "ready"),
        Fail(first, "a1", FailureKind.POISON, "<it> broke", 3),
        Dispatch(first, "a2", "p/a2", "pool", "again"),
        Commit(first, "a2", "p/a2", (), {"nodes": ["node<1>"]}),
        Dispatch(second, "a3", "p/a3", "pool", "ready"),
        Pause("q", "somebody asked"),
    ]
    return [Entry(n, min(n, 1), "w", str(n), "0" * 64, 1000.0 + 10 * n, record) for n, record in enumerate(records)]


def test_the_timeline_is_the_ledgers(plan: Plan) -> None:
    first, second, *_ = plan.jobs
    line = timeline(entries(plan), {key: job.label for key, job in plan.jobs.items()})
    assert [(s.job, s.begin, s.end, s.outcome) for s in line.spans] == [
        (first, 20.0, 30.0, "fail"),
        (first, 40.0, 50.0, "commit"),
        (second, 60.0, 70.0, ""),
    ]
    assert (line.faults, line.seconds) == (1, 70.0)
    assert [m.what for m in line.moments] == ["elect", "pause"]
    page = render(gather(plan, committed(plan), entries=entries(plan)))
    assert "3 attempts in 70 s, 1 of them failed" in page
    check_page(page)
    assert "on node&lt;1&gt;, commit" in page
    assert "not known where" in page, "where the failed one ran is not known"
    assert "&lt;it&gt; broke" in page
    assert timeline([], {}).spans == ()


def test_programs_get_the_same_numbers_as_csv(plan: Plan, tmp_path: Path) -> None:
    got = facts(plan)
    sequence = got.sequences[0]
    stage = replace(
        sequence.upstream[0].stages[0],
        curve=[{"step": 2, "loss": 1.5, "score": 40.0}],
        validation=[{"step": 4, "loss": 1.0, "score": 55.5}],
        reuse={"L0.aftmlp": {"mean": [0.25], "std": [0.1]}},
    )
    task = replace(sequence.upstream[0], stages=(stage,))
    got = replace(got, sequences=(replace(sequence, upstream=(task, *sequence.upstream[1:])),))
    page = write_report(got, tmp_path).read_text()
    assert (tmp_path / "abc-curves.csv").read_text().splitlines()[1:3] == [
        "a,stage2,training,2,1.5,40.0", "a,stage2,validation,4,1.0,55.5",
    ]  # fmt: skip
    assert "a,stage2,L0.aftmlp,a,0.25,0.1" in (tmp_path / "abc-reuse.csv").read_text()
    assert len((tmp_path / "jobs.csv").read_text().splitlines()) == got.total + 1
    assert "a reads the adapter of a at L0.aftmlp: α 0.250 ± 0.100 over samples" in page
    assert (tmp_path / "tensorboard" / "abc" / "a-stage2").is_dir()


def test_tensorboard_reads_what_is_written(tmp_path: Path) -> None:
    loader = pytest.importorskip("tensorboard.backend.event_processing.event_file_loader")
    given = [Scalar("train/loss", 300, 0.5, 12.5), Scalar("validation/score", 1 << 40, -2.0)]
    path = write_events(event_file(tmp_path, 1), given)
    _, _, *read = list(loader.LegacyEventFileLoader(str(path)).Load())
    values = [(e.summary.value[0].tag, e.step, e.summary.value[0].simple_value, e.wall_time) for e in read]
    assert values == [("train/loss", 300, 0.5, 12.5), ("validation/score", 1 << 40, -2.0, 0.0)]


def test_event_records_carry_their_checksums(tmp_path: Path) -> None:
    """By the definition of TFRecord, without any reader: masked CRC-32C of length and data."""
    data = write_events(event_file(tmp_path, 1), [Scalar("a", 1, 2.0)], purge=False).read_bytes()

    def masked(part: bytes) -> bytes:
        crc = crc32c(part)
        return struct.pack("<I", ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF)

    at = records = 0
    while at < len(data):
        (length,) = struct.unpack("<Q", data[at : at + 8])
        assert data[at + 8 : at + 12] == masked(data[at : at + 8])
        body = data[at + 12 : at + 12 + length]
        assert data[at + 12 + length : at + 16 + length] == masked(body)
        at, records = at + 16 + length, records + 1
    assert records == 2


@pytest.mark.skipif(shutil.which("chromium") is None, reason="needs chromium")
@pytest.mark.parametrize("width", [360, 1200])
def test_no_page_is_wider_than_its_window(plan: Plan, tmp_path: Path, width: int) -> None:
    """What is wide scrolls in its own box; a phone never scrolls the whole page sideways."""
    page = write_report(gather(plan, committed(plan), entries=entries(plan)), tmp_path)
    probe = "<script>document.title = document.documentElement.scrollWidth + '/' + document.documentElement.clientWidth</script>"
    page.write_text(page.read_text().replace("</body>", f"{probe}</body>"))
    command = [
        "chromium",
        "--headless=new",
        "--no-sandbox",
        "--disable-gpu",
        f"--window-size={max(width, 500)},900",
        "--dump-dom",
    ]
    frame = tmp_path / "frame.html"
    # A window cannot be as narrow as a phone, a frame can; it is of the same origin only as srcdoc.
    frame.write_text(f'<iframe style="width:{width}px;height:800px" srcdoc="{html.escape(page.read_text())}" id="f"></iframe>'
        "<script>f.onload = () => document.body.append('[' + f.contentDocument.title + ']')</script>")  # fmt: skip
    done = subprocess.run([*command, frame.as_uri()], capture_output=True, text=True, timeout=300, check=True)
    found = re.findall(r"\[(\d+)/(\d+)\]", done.stdout)
    assert found, done.stdout[-500:]
    assert int(found[0][0]) <= int(found[0][1])


@pytest.mark.skipif(shutil.which("chromium") is None, reason="needs chromium")
def test_the_page_is_light_by_day_and_dark_by_night(plan: Plan, tmp_path: Path) -> None:
    """As pictures: paper of the wanted brightness, and ink on it."""
    page = write_report(gather(plan, committed(plan), entries=entries(plan)), tmp_path)
    for scheme, light in ((1, True), (0, False)):
        picture = tmp_path / f"{scheme}.png"
        command = ["chromium", "--headless=new", "--no-sandbox", "--disable-gpu", "--window-size=700,900"]
        command += [f"--blink-settings=preferredColorScheme={scheme}", f"--screenshot={picture}", page.as_uri()]
        subprocess.run(command, capture_output=True, timeout=300, check=True)
        grey = np.asarray(Image.open(picture).convert("L"))
        assert (np.median(grey) > 200) == light
        assert grey.max() - grey.min() > 150, "ink can be told from paper"


def test_masked_samples_are_said_on_terminal_and_page(plan: Plan) -> None:
    state = committed(plan)
    bad = [
        {"split": "few/train", "shard": "0.tar", "key": f"{n:04d}", "reason": "its label -1 is outside 0 … <b>"} for n in (0, 5)
    ]
    for key, job in plan.jobs.items():
        ref = state.jobs[key].committed
        if ref is not None and job.stage and job.task.name == "b":
            worse = replace(ref, metrics={**ref.metrics, "bad_samples": bad})
            state = replace(state, jobs={**state.jobs, key: replace(state.jobs[key], committed=worse)})
    out = io.StringIO()
    show(gather(plan, state), Console(file=out, width=120))
    said = "b: 2 samples of few/train were masked (first: 0.tar 0000: its label -1 is outside 0 … <b>)"
    assert said in out.getvalue() and out.getvalue().count("were masked") == 1
    assert html.escape(said) in render(gather(plan, state)) and "were masked" not in render(facts(plan))


def test_leave_one_out_and_growth_are_shown_where_they_were_measured(plan: Plan) -> None:
    page = render(facts(plan))
    assert "Leave one out" not in page
    assert "ffective rank" not in page
    state = committed(plan)
    for key, job in plan.jobs.items():
        ref = state.jobs[key].committed
        if ref is not None and job.label.endswith("2 eval b"):
            views = {"task": {**ref.metrics["views"]["task"], "effective_rank": 7.25}}
            better = replace(ref, metrics={**ref.metrics, "views": views, "without": [60.0, 91.5]})
            state = replace(state, jobs={**state.jobs, key: replace(state.jobs[key], committed=better)})
    got = gather(plan, state)
    assert got.sequences[0].without == {"b": (60.0, 91.5)}
    assert got.sequences[0].effective_rank[1] == (None, 7.25)
    page = render(got)
    assert ">30.0</td>" in page, "90 with all, 60 without the first"
    assert ">-1.5</td>" in page
    assert ">7.2</td>" in page or ">7.3</td>" in page


def test_speed_and_data_wait_are_drawn_over_the_steps(plan: Plan, tmp_path: Path) -> None:
    assert "waiting for data" not in render(facts(plan)), "nothing was told: no empty figure"
    told = facts(plan)
    (got,) = told.sequences
    first = got.upstream[0].stages[0]
    points = [Point("train", n, 1e9, {"loss": 1.0, "samples_per_s": 80.0 + n, "data_wait": 0.25}) for n in range(1, 400)]
    points.append(Point("validation", 399, 1e9, {"loss": 1.0}))
    stage = replace(first, points=tuple(points))
    task = replace(got.upstream[0], stages=(stage,))
    told = replace(told, sequences=(replace(got, upstream=(task, *got.upstream[1:])),))
    page = write_report(told, tmp_path).read_text()
    check_page(page)
    label = re.search(r'aria-label="(a stage2: samples a second by step, 81 to 479)"', page)
    assert label, "the text alternative says how it went"
    assert "280 samples/s, 25.0 % of the time waiting for data" in page
    chart = page.partition(label[1])[2].partition("</svg>")[0]
    (line,) = re.findall(r'points="([^"]*)"', chart)
    assert 60 < len(line.split()) <= 120, "as many points as a picture can show"
    assert ">800</text>" in chart, "the axis ends at a round number"
    assert page.count('<th scope="row">399</th>') == 1, "and the numbers as a table that ends at the last step"
    lines = (tmp_path / "abc-speed.csv").read_text().splitlines()
    assert (lines[0], lines[1], len(lines)) == ("task,stage,step,samples_per_s,data_wait", "a,stage2,1,81.0,0.25", 400)


def test_what_is_never_measured_is_told_from_what_is_missing() -> None:
    spec = replace(sequence("abc"), evaluate_every=3)
    found = facts(make_plan([spec], COMMON))
    (got,) = found.sequences
    assert got.matrix["latest"] == ((90.0,), (None, 90.0), (60.0, 60.0, 90.0))
    assert got.skipped == ((1, 0),)
    assert got.complete
    assert got.summary()["backward transfer, latest view"] == pytest.approx(-30.0)
    assert got.forgetting("latest")[0] == (None,)
    page = render(found)
    assert '<td title="not measured">·</td>' in page
    assert "<td>–</td>" not in page
    console = Console(record=True, width=120, file=io.StringIO())
    show(found, console)
    assert "· not measured (sequence.evaluate_every)" in console.export_text()
    json.dumps(dataclasses.asdict(found))


def test_a_report_says_which_samples_score() -> None:
    """A score of the samples that chose a checkpoint flatters; whoever reads a table must know."""
    splits = {"a/train": "1", "a/val": "2"}
    told = TaskFacts("a", 50.0, (), (), splits)
    tested = replace(told, task="b", data=splits | {"a/test": "3"})
    sequence = SequenceFacts("s", "atlas", 0, (told,), (), {}, {}, {})
    assert sequence.scored_on == "Scores are of validation splits, which also chose what was kept."
    assert replace(sequence, upstream=(tested,)).scored_on == "Scores are of test splits, which chose nothing."
    both = replace(sequence, upstream=(told, tested)).scored_on
    assert (
        both == "Scores are of test splits, which chose nothing; those of a of validation splits, which also chose what was kept."
    )
