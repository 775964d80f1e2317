"""`status`, `plan`, `logs`, `report` and `track` on a run that was interrupted anywhere: how it stands and what to do."""

from __future__ import annotations

import itertools
import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from atlas_dist.clock import SystemClock
from atlas_dist.coordinator.expand import expand, specification
from atlas_dist.core.attempts import FailureKind
from atlas_dist.core.keys import canonical_json
from atlas_dist.core.records import Begin, Cancel, Dispatch, Elect, Fail, Halt, Pause, Quarantine, Record
from atlas_dist.runs import layout
from atlas_dist.runs.stores import open_run_store
from atlas_dist.store.curves import TRAIN, CurveWriter
from atlas_dist.store.log import RecordLog
from tests.chaos.fakes import FakeClock
from tests.kits.shell import Shell
from tests.kits.stage import RELEASED, pack_toys, toy_config


@dataclass(frozen=True)
class Case:
    """What the ledger holds after its beginning, and what `status` must say. `JOB` stands for the first job."""

    records: tuple[Record, ...]
    phase: str
    says: tuple[str, ...] = ()


STARTED = Dispatch("JOB", "JOB-e1-1", "runs/toy/attempts/JOB-e1-1", "main", "its parents are committed")
GONE = Fail("JOB", "JOB-e1-1", FailureKind.PREEMPTED, "Paused: Stopped at step 4 of 8.", 4)
NAN = Fail("JOB", "JOB-e1-1", FailureKind.NONFINITE, "NonFiniteLoss: The loss of step 5 is not finite.", 5)
CASES = {
    "before the first job": Case((), "running", ("0 of 14 jobs",)),
    "in the middle of a stage": Case(
        (STARTED,),
        "running",
        ("attempt 1, step 6 of 8, at step 6 loss 0.500, score 75.0 %, 90 samples/s, data wait 1%, about 4 s left", "(heard "),
    ),
    "paused": Case(
        (STARTED, Pause("r1", "maintenance"), GONE),
        "paused",
        ("reason: maintenance", "Stopped at step 4", "next: The same command"),
    ),
    "stopping": Case((STARTED, Pause("r1", "maintenance")), "stopping", ("reason: maintenance",)),
    "halted": Case(
        (STARTED, NAN, Halt("step 5 was not finite again", "JOB")),
        "halted",
        ("reason: step 5 was not finite again", "atlas-dist resume"),
    ),
    "quarantined": Case(
        (STARTED, GONE, Quarantine("JOB", "it raised 3 times")), "failed", ("it raised 3 times", "next:", "atlas-dist resume")
    ),
    "cancelled": Case(
        (STARTED, GONE, Cancel("r2", "no need")), "cancelled", ("reason: no need", "next: Start it under another name")
    ),
}


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("interrupted")
    pack_toys(toy_config(folder), samples=32)
    yield f"shards.url={folder}/shards"


def interrupted(folder: Path, shards: str, case: Case) -> tuple[str, ...]:
    """A store whose run came as far as `case`; its words."""
    words = ("experiment=toy", RELEASED, "train.workers=1", f"store.url={folder}/store", shards)
    config = toy_config(folder, shards)
    plan, store, ids = expand(config), open_run_store(config), itertools.count()
    job = next(iter(plan.jobs))
    log = RecordLog(store, layout.ledger("toy"), writer="w", clock=SystemClock(), new_id=lambda: str(next(ids)))
    spec = specification(config)
    log.append(0, Begin("toy", "digest", plan.digest, spec))
    log.append(1, Elect("the run begins"))
    for record in case.records:
        known = {
            k: v.replace("JOB", job) if isinstance(v, str) and not isinstance(v, FailureKind) else v
            for k, v in vars(record).items()
        }
        log.append(1, type(record)(**known))
    if case.records:
        now = FakeClock()
        pen = CurveWriter(store, f"runs/toy/attempts/{job}-e1-1", 50.0, clock=now)
        pen.add(TRAIN, 2, {"loss": 0.9, "score": 50.0})
        now.sleep(8.0)
        pen.add(TRAIN, 6, {"loss": 0.5, "score": 75.0, "samples_per_s": 90.0, "data_wait": 0.01})
        pen.flush()
        store.put(
            layout.beat("toy", 1), canonical_json({"running": {f"{job}-e1-1": [6, 8]}, "at": time.time(), "released": False})
        )
    return words


@pytest.mark.parametrize("name", CASES)
def test_every_command_tells_a_run_that_was_interrupted(name: str, shell: Shell, shards: str, tmp_path: Path) -> None:
    case = CASES[name]
    words = interrupted(tmp_path, shards, case)
    code, text = shell("status", *words)
    assert code == 0, text
    assert f"run toy: {case.phase}" in text
    assert all(word in text for word in case.says), text
    code, text = shell("status", "--json", *words)
    assert json.loads(text)["phase"] == case.phase
    code, text = shell("plan", *words)
    assert (code, "14 to do" in text) == (0, True), text
    code, text = shell("logs", *words)
    assert (code, len(text.splitlines())) == (0, 2 + len(case.records)), text
    code, text = shell("report", *words)
    assert code == 0, text
    assert (tmp_path / "report-toy" / "index.html").exists()
    code, text = shell("track", *words)
    assert code == 0, text
    assert bool(list(tmp_path.rglob("*tfevents*"))) == bool(case.records)


@pytest.mark.parametrize("command", ["status", "logs", "report", "track"])
def test_no_run_is_said_in_two_lines(command: str, shell: Shell, shards: str, tmp_path: Path) -> None:
    code, text = shell(command, "experiment=toy", RELEASED, "train.workers=1", f"store.url={tmp_path}/store", shards)
    assert code == 2
    assert "There is no run toy" in text
    assert len(text.strip().splitlines()) == 2
    assert not (tmp_path / "report-toy").exists()
