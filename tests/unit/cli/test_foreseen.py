"""What `plan` foresees, kept when a run begins, and compared with what came."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from atlas_dist.app.plan import forecast_run
from atlas_dist.compose import compose_config
from atlas_dist.coordinator.expand import expand
from atlas_dist.core.state import RunState
from atlas_dist.report.forecast import Foreseen, keep, recall
from atlas_dist.runs.stores import open_run_store
from atlas_dist.store.objects import MemoryStore
from tests.kits.bank import copied, toys
from tests.kits.shell import Shell

PRICE = "cluster.worker_hour=3600"
"""A worker-second costs one."""


def test_a_plan_by_finished_jobs_has_time_and_cost(shell: Shell, tmp_path: Path) -> None:
    words = (*copied(toys(), tmp_path), "run=again", "seeds=[1]", PRICE)
    code, text = shell("plan", "--json", *words)
    assert code == 0, text
    told = json.loads(text)
    least, most = told["seconds"]
    assert 0 < least <= most
    assert told["cost"] == pytest.approx([least, most])
    code, text = shell("plan", *words)
    assert f"{least:,.2f} to {most:,.2f} at 3600 a worker-hour" in text


def test_nothing_finished_nothing_claimed(shell: Shell, tmp_path: Path) -> None:
    words = (*copied(toys(), tmp_path), f"store.url={tmp_path}/empty", PRICE)
    code, text = shell("plan", "--json", *words)
    assert (code, json.loads(text)["cost"]) == (0, None)
    code, text = shell("plan", *words)
    assert "no finished job in this store to estimate time from" in text
    assert "worker-hour" not in text


def test_the_report_compares_what_was_foreseen_with_what_came(shell: Shell, tmp_path: Path) -> None:
    words = (*copied(toys(), tmp_path), f"report={tmp_path}/report", PRICE)
    config = compose_config(list(words))
    plan, store = expand(config), open_run_store(config)
    code, text = shell("report", *words)
    assert code == 0, text
    page = tmp_path / "report" / "index.html"
    assert "Plan and actual" not in page.read_text(), "nothing was foreseen"

    before = forecast_run(config, plan, RunState(run="toy"), MemoryStore())
    keep(store, "toy", before)
    keep(store, "toy", forecast_run(config, plan, RunState(run="toy"), store))
    assert recall(store, "toy") == {key: Foreseen(job.samples, None, 1) for key, job in before.jobs.items()}, (
        "the first one stands"
    )
    code, text = shell("report", *words)
    assert code == 0, text
    assert "Plan and actual" in page.read_text()
    learning, scoring = json.loads((page.parent / "run.json").read_text())["compared"]
    trained = [job for job in plan.jobs.values() if job.stage]
    assert (learning["jobs"], scoring["jobs"]) == (len(trained), len(plan.jobs) - len(trained))
    assert learning["samples"] == learning["samples_foreseen"] == sum(j.budget.max_steps * j.budget.global_batch for j in trained)
    assert learning["worker_hours"] == pytest.approx(learning["seconds"] / 3600)
    assert scoring["samples"] == scoring["samples_foreseen"]


@pytest.mark.parametrize("damage", [b"", b"[]", b'{"jobs": {"k": {"samples": "many"}}}'])
def test_a_damaged_forecast_is_no_forecast(damage: bytes) -> None:
    store = MemoryStore()
    store.create("runs/r/forecast", damage)
    assert recall(store, "r") == {}
