"""What a line of a log says of itself: defends that records can be told apart by run, job and attempt, that JSON lines are JSON
whatever they hold, and that no secret gets into them."""

from __future__ import annotations

import json
import logging
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from atlas_dist.app.events import Advice, Progress
from atlas_dist.app.observers import Records
from atlas_dist.cli import main
from atlas_dist.coordinator.dispatch import AttemptProgress
from atlas_dist.coordinator.service import Decision, Snapshot
from atlas_dist.logs import LogFormat, in_json, log_context, log_fields, set_up
from atlas_dist.runs.status import CoordinatorRole, Phase, RunStatus
from tests.chaos.plans import small_plan

log = logging.getLogger("atlas_dist.train.worker")
CANARY = "canary-secret-4711"


@pytest.fixture(autouse=True)
def as_before() -> Iterator[None]:
    known = [logging.getLogger(), *map(logging.getLogger, [*logging.root.manager.loggerDict, "atlas_dist", "noisylib"])]
    before = [(one, list(one.handlers), one.level, one.propagate) for one in known]
    yield
    for one, handlers, level, propagate in before:
        one.handlers[:] = handlers
        one.setLevel(level)
        one.propagate = propagate


def written(capsys: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    return [json.loads(line) for line in capsys.readouterr().err.splitlines()]


def test_a_record_says_whose_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    set_up(LogFormat.JSON, run="demo", process="worker", pool="main", rank=1)
    with log_context(job="4be1", label="seq0/1 digits stage2", attempt="4be1-e1-1"):
        log.info("checkpoint at step %d", 20, extra=log_fields(step=20))
    log.info("between two jobs")
    first, second = written(capsys)
    assert first.items() >= {
        "level": "INFO", "logger": "atlas_dist.train.worker", "message": "checkpoint at step 20", "run": "demo", "pool": "main",
        "process": "worker", "rank": 1, "job": "4be1", "label": "seq0/1 digits stage2", "attempt": "4be1-e1-1", "step": 20,
    }.items()  # fmt: skip
    assert first["host"]
    assert first["time"].endswith("Z") and first["time"][10] == "T"
    assert "attempt" not in second and second["run"] == "demo"


def test_work_of_another_thread_is_not_mixed_up(capsys: pytest.CaptureFixture[str]) -> None:
    set_up(LogFormat.JSON, run="demo")
    with log_context(attempt="a"):
        thread = threading.Thread(target=lambda: log.info("from elsewhere"))
        thread.start()
        thread.join()
        log.info("from here")
    assert ["attempt" in line for line in written(capsys)] == [False, True]


def test_json_stays_json_whatever_a_record_holds(capsys: pytest.CaptureFixture[str]) -> None:
    set_up(LogFormat.JSON, run="demo")
    try:
        raise ValueError('two\nlines and a "quote"')
    except ValueError:
        log.exception("failed", extra=log_fields(loss=float("nan"), path=sys.stderr, message="not the message"))
    (line,) = written(capsys)
    assert line["loss"] == "nan"
    assert line["message"] == "failed"
    assert 'ValueError: two\nlines and a "quote"' in line["traceback"]


@pytest.mark.parametrize("form", list(LogFormat))
def test_no_secret_is_written(form: LogFormat, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", CANARY)
    set_up(form, run="demo")
    try:
        raise OSError(f"refused: {CANARY}")
    except OSError as error:
        log.error("%s", error, exc_info=True, extra=log_fields(url=f"https://me:{CANARY}@host/"))
    text = capsys.readouterr().err
    assert "refused" in text and CANARY not in text


def test_text_has_the_same_fields_before_the_message(capsys: pytest.CaptureFixture[str]) -> None:
    set_up(LogFormat.TEXT, run="demo", process="worker", pool="main", rank=0)
    with log_context(job="4be1", label="seq0/1 digits stage2", attempt="4be1-e1-1"):
        log.warning("slow")
    line = capsys.readouterr().err
    assert " WARNING run=demo process=worker pool=main rank=0 host=" in line
    assert line.endswith(" label=seq0/1_digits_stage2 attempt=4be1-e1-1 atlas_dist.train.worker: slow\n")


def test_libraries_take_the_same_form_and_are_heard_from_warnings_on(capsys: pytest.CaptureFixture[str]) -> None:
    lib = logging.getLogger("noisylib")
    lib.setLevel(logging.DEBUG)
    lib.addHandler(logging.StreamHandler())
    lib.propagate = False
    set_up(LogFormat.JSON, run="demo")
    set_up(LogFormat.JSON, run="demo")  # a driver may come by twice
    for handler in lib.handlers:  # as ray.init does
        handler.setFormatter(logging.Formatter())
    lib.info("chatter")
    lib.warning("take care")
    (line,) = written(capsys)
    assert (line["logger"], line["message"], line["run"]) == ("noisylib", "take care", "demo")
    assert in_json()


def test_what_is_printed_can_become_records(capsys: pytest.CaptureFixture[str]) -> None:
    Records("demo")(Advice("run demo: 6 jobs\n\nstore /x"))
    assert [(line["message"], line["run"]) for line in written(capsys)] == [("run demo: 6 jobs", "demo"), ("store /x", "demo")]


def test_the_error_that_a_driver_ends_with_is_a_record(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ATLAS_DEBUG", "")
    monkeypatch.setattr("sys.argv", ["atlas-dist", "run", "experiment=toy", "run=nightly", "log.format=json"])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 3
    out, err = capsys.readouterr()
    (line,) = [json.loads(text) for text in err.splitlines()]
    assert (line["level"], line["error"], line["exit_code"], line["run"]) == ("ERROR", "DataError", 3, "nightly")
    assert "shards pack" in line["fix"] and "Traceback" not in err
    assert out == ""


def test_the_driver_records_decisions_and_progress(capsys: pytest.CaptureFixture[str]) -> None:
    plan = small_plan(1)
    key, job = next(iter(plan.jobs.items()))
    metrics = {"loss": 0.5, "score": 50.0, "samples_per_s": 10.0, "data_wait": 0.0, "mfu": None, "workers": 2}
    view = Records("demo", every_s=0.0)
    decisions = (
        Decision(1, 0.0, "dispatch", {"job": key, "attempt": f"{key}-e1-1", "reason": "ready"}),
        Decision(2, 0.0, "fail", {"job": key, "attempt": f"{key}-e1-1", "kind": "poison", "reason": "ValueError: no"}),
    )
    status = RunStatus("demo", CoordinatorRole.LEADER, Phase.RUNNING, 1, 0, len(plan.jobs), running={f"{key}-e1-1": key})
    progress = {f"{key}-e1-1": AttemptProgress(f"{key}-e1-1", 5, 20, metrics)}
    view(Progress(plan, Snapshot(status, over=False, progress=progress, decisions=decisions)))
    view(Progress(plan, Snapshot(status, over=False, progress=progress)))  # it has not moved
    started, failed, moved = written(capsys)
    assert (started["event"], started["job"], started["attempt"], started["label"]) == ("dispatch", key, f"{key}-e1-1", job.label)
    assert (failed["level"], failed["reason"]) == ("WARNING", "ValueError: no")
    assert (moved["job"], moved["step"], moved["total"], moved["loss"], moved["committed"]) == (key, 5, 20, 0.5, 0)
