"""Curves told to TensorBoard, MLflow and W&B: once each, whatever was interrupted, and never at a run's expense."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from atlas_dist.clock import SystemClock
from atlas_dist.core.attempts import FailureKind
from atlas_dist.core.plan import Plan, make_plan
from atlas_dist.core.records import Begin, Commit, Dispatch, Elect, Fail
from atlas_dist.errors import ConfigError
from atlas_dist.report.track_mlflow import TAG, MLflow
from atlas_dist.report.track_wandb import WandB
from atlas_dist.report.tracking import SequenceRun, StageRun, TensorBoard, Tracker, TrackerSync
from atlas_dist.runs import layout
from atlas_dist.store.curves import TRAIN, VALIDATION, CurveWriter, history
from atlas_dist.store.log import RecordLog
from atlas_dist.store.objects import MemoryStore
from tests.unit.core.test_plan import COMMON, sequence


class Run:
    """A run of one task, told by hand: its ledger and its curves."""

    def __init__(self, names: str = "a") -> None:
        self.plan: Plan = make_plan([sequence(names)], COMMON)
        self.store = MemoryStore()
        ids = itertools.count()
        self.log = RecordLog(self.store, layout.ledger("r"), writer="w", clock=SystemClock(), new_id=lambda: str(next(ids)))
        self.log.append(0, Begin("r", "s", self.plan.digest))
        self.log.append(1, Elect("first"))
        self.warnings: list[str] = []
        self.attempts = itertools.count(1)
        self.stage = self.plan.sequences[0].upstream[0].final

    def tracker_sync(self, *trackers: Tracker) -> TrackerSync:
        return TrackerSync(self.plan, self.store, "r", trackers, 5.0, self.warnings.append)

    def attempt(self, steps: range, checkpoint: str = "") -> str:
        """A new attempt, at `steps`, going on from a checkpoint."""
        number = next(self.attempts)
        name = f"{self.stage}-e1-{number}"
        prefix = layout.attempt("r", name)
        self.log.append(1, Dispatch(self.stage, name, prefix, "main", "ready", resume_from=checkpoint))
        pen = CurveWriter(self.store, prefix, 5.0, history=history(self.store, checkpoint) if checkpoint else ())
        for step in steps:
            pen.add(TRAIN, step, {"loss": 1.0 / step, "score": 10.0 * step})
            if step % 2 == 0:
                pen.add(VALIDATION, step, {"loss": 2.0 / step, "score": 9.0 * step})
        pen.flush()
        return prefix

    def lose(self, prefix: str, step: int) -> None:
        self.log.append(1, Fail(self.stage, prefix.rpartition("/")[2], FailureKind.PREEMPTED, "gone", step))

    def commit(self, prefix: str) -> None:
        metrics = {"score": 88.0, "steps": 6, "trained_parameters": 3, "seconds": {"setup": 0.1, "training": 1.0}}
        self.log.append(1, Commit(self.stage, prefix.rpartition("/")[2], prefix, (), metrics))
        evaluation = self.plan.sequences[0].evaluations[0, 0]
        views = {"task": {"score": 77.0, "predictions_sha256": "x"}}
        self.log.append(1, Dispatch(evaluation, "e", layout.attempt("r", "e"), "main", "ready"))
        self.log.append(1, Commit(evaluation, "e", layout.attempt("r", "e"), (), {"views": views, "seconds": {}}))


@pytest.fixture
def run() -> Run:
    return Run()


class Listener:
    """What a tracker is told."""

    name, single = "listener", True

    def __init__(self) -> None:
        self.heard: list[str] = []

    def start_sequence(self, sequence: SequenceRun) -> None:
        self.heard.append(f"sequence {sequence.name}")

    def start_stage(self, stage: StageRun) -> None:
        self.heard.append(f"stage {stage.name}")

    def scalars(self, stage: StageRun) -> None:
        self.heard.append(f"points {len(stage.points)}")

    def finish_stage(self, stage: StageRun) -> None:
        self.heard.append(f"score {stage.score}")

    def finish_sequence(self, sequence: SequenceRun) -> None:
        self.heard.append(f"average {sequence.measures['average accuracy']}")

    def close(self) -> None:
        self.heard.append("bye")


# ----------------------------------------------------------------------------------------------------------- the tracker sync


def test_a_run_is_told_as_it_learns_and_nothing_twice(run: Run) -> None:
    listener = Listener()
    tracker_sync = run.tracker_sync(listener)
    tracker_sync.update(last=True)
    assert listener.heard == []
    prefix = run.attempt(range(1, 4))
    tracker_sync.update(last=True)
    tracker_sync.update(last=True)
    began = [f"sequence {run.plan.sequences[0].name}", "stage a-stage2"]
    assert listener.heard == [*began, "points 4"]
    run.commit(prefix)
    tracker_sync.update(last=True)
    tracker_sync.update(last=True)
    assert listener.heard[3:] == [*began, "points 4", "score 88.0", began[0], "average 77.0"]
    again = Listener()
    run.tracker_sync(again).update(last=True)
    assert again.heard == listener.heard[3:], "another process tells the same; it is for the tracker to know it already"


def test_the_newest_attempt_that_has_told_something_is_the_stage(run: Run) -> None:
    listener = Listener()
    tracker_sync = run.tracker_sync(listener)
    first = run.attempt(range(1, 6))
    tracker_sync.update(last=True)
    run.lose(first, 4)
    silent = run.attempt(range(0))
    tracker_sync.update(last=True)
    assert listener.heard[-1] == "points 7", "an attempt that has said nothing yet does not wipe the curve"
    run.lose(silent, 4)
    run.attempt(range(5, 7), f"{first}/checkpoints/00000004")
    tracker_sync.update(last=True)
    assert listener.heard[-1] == "points 9"


def test_who_does_not_lead_leaves_shared_trackers_alone(run: Run, tmp_path: Path) -> None:
    listener = Listener()
    tracker_sync = run.tracker_sync(TensorBoard(tmp_path), listener)
    tracker_sync.leads = False
    run.attempt(range(1, 4))
    tracker_sync.update(last=True)
    assert listener.heard == []
    assert list(tmp_path.rglob("*tfevents*"))


def test_a_tracker_that_fails_is_warned_about_once_and_asked_again(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", "canary-token-value")

    class Broken(Listener):
        down = True

        def scalars(self, stage: StageRun) -> None:
            if self.down:
                raise RuntimeError("refused for canary-token-value\nand a long tale")
            super().scalars(stage)

    broken, fine = Broken(), Listener()
    fine.name = "fine"
    tracker_sync = run.tracker_sync(broken, fine)
    run.attempt(range(1, 4))
    tracker_sync.update(last=True)
    tracker_sync.update(last=True)
    assert run.warnings == ["listener is not told everything: RuntimeError: refused for [redacted]"]
    assert fine.heard[-1] == "points 4"
    broken.down = False
    tracker_sync.update(last=True)
    assert broken.heard[-1] == "points 4"


# ------------------------------------------------------------------------------------------------------------ TensorBoard


def _read(folder: Path) -> dict[str, list[tuple[int, float]]]:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    seen = accumulator.EventAccumulator(str(folder), size_guidance={"scalars": 0})
    seen.Reload()
    return {tag: [(e.step, round(e.value, 4)) for e in seen.Scalars(tag)] for tag in seen.Tags()["scalars"]}


def test_tensorboard_has_each_step_of_a_resumed_stage_once(run: Run, tmp_path: Path) -> None:
    first = run.attempt(range(1, 6))
    tracker_sync = run.tracker_sync(TensorBoard(tmp_path))
    tracker_sync.update(last=True)
    (folder,) = {path.parent for path in tmp_path.rglob("*tfevents*")}
    assert folder.relative_to(tmp_path).parts[0::2] == ("tensorboard", "a-stage2")
    assert [step for step, _ in _read(folder)["train/loss"]] == [1, 2, 3, 4, 5]
    run.lose(first, 4)
    second = run.attempt(range(5, 7), f"{first}/checkpoints/00000004")
    tracker_sync.update(last=True)
    assert len(list(folder.iterdir())) == 2, "an attempt, a file"
    curves = _read(folder)
    assert curves["train/loss"] == [(step, round(1.0 / step, 4)) for step in range(1, 7)]
    assert [step for step, _ in curves["validation/score"]] == [2, 4, 6]
    run.commit(second)
    run.tracker_sync(TensorBoard(tmp_path)).update(last=True)
    assert _read(folder) == curves


def test_a_torn_event_file_is_completed_and_one_that_is_read_only_grows(run: Run, tmp_path: Path) -> None:
    run.attempt(range(1, 6))
    run.tracker_sync(TensorBoard(tmp_path)).update(last=True)
    (path,) = tmp_path.rglob("*tfevents*")
    whole, inode = path.read_bytes(), path.stat().st_ino
    path.write_bytes(whole[:-7])
    run.tracker_sync(TensorBoard(tmp_path)).update(last=True)
    assert path.read_bytes() == whole
    assert path.stat().st_ino == inode, "whoever reads it goes on where it was"


# ----------------------------------------------------------------------------------------------------------------- MLflow


def test_mlflow_has_one_run_a_stage_below_one_a_sequence_after_any_restart(run: Run, tmp_path: Path) -> None:
    pytest.importorskip("mlflow")
    from mlflow.tracking import MlflowClient

    uri = f"file://{tmp_path}/mlruns"

    def tell() -> None:
        tracker_sync = run.tracker_sync(MLflow(uri, "ours"))
        tracker_sync.update(last=True)
        tracker_sync.close()

    first = run.attempt(range(1, 6))
    tell()
    tell()
    client = MlflowClient(tracking_uri=uri)
    experiment = client.get_experiment_by_name("ours").experiment_id

    def found() -> Mapping[str, Any]:
        return {r.data.tags[TAG]: r for r in client.search_runs([experiment])}

    assert len(client.search_runs([experiment])) == 2
    assert {r.info.status for r in found().values()} == {"SCHEDULED"}, "it waits to go on"
    run.lose(first, 4)
    run.commit(run.attempt(range(5, 7), f"{first}/checkpoints/00000004"))
    tell()
    tell()
    runs = client.search_runs([experiment])
    child = next(r for r in runs if r.info.run_name == "a-stage2")
    parent = next(r for r in runs if r is not child)
    assert len(runs) == 2
    assert child.data.tags["mlflow.parentRunId"] == parent.info.run_id
    assert child.data.tags["atlas.job"] == run.stage
    assert [m.step for m in client.get_metric_history(child.info.run_id, "train/loss")] == [1, 2, 3, 4, 5, 6]
    assert [m.step for m in client.get_metric_history(child.info.run_id, "validation/score")] == [2, 4, 6]
    assert len(client.get_metric_history(child.info.run_id, "score")) == 1
    assert parent.data.metrics["average accuracy"] == 77.0
    assert {r.info.status for r in runs} == {"FINISHED"}
    assert run.warnings == []


# -------------------------------------------------------------------------------------------------------------------- W&B


class FakeWandB(ModuleType):
    """The three calls that are used: `init`, `Run.log`, `Run.finish`. `kept` is the service: runs by id."""

    def __init__(self) -> None:
        super().__init__("wandb")
        self.kept: dict[str, list[tuple[int, dict[str, float]]]] = {}
        self.asked: list[dict[str, Any]] = []
        self.open = 0
        self.Settings = lambda **settings: SimpleNamespace(**settings)

    def init(self, **options: Any) -> Any:
        self.asked.append(options)
        rows = self.kept.setdefault(options["id"], [])
        self.open += 1
        fake = self

        class Kept:
            step = rows[-1][0] + 1 if rows else 0
            summary: dict[str, float] = {}  # noqa: RUF012

            def log(self, values: dict[str, float], step: int) -> None:
                assert not rows or step >= rows[-1][0], "W&B drops what goes back"
                rows.append((step, values))

            def finish(self) -> None:
                fake.open -= 1

        return Kept()


def test_wandb_goes_on_with_the_same_run_and_never_back(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = FakeWandB()
    monkeypatch.setitem(sys.modules, "wandb", fake)
    monkeypatch.setattr("atlas_dist.packages.find_spec", lambda _: object())

    def tell() -> None:
        tracker_sync = run.tracker_sync(WandB("people/project", tmp_path))
        tracker_sync.update(last=True)
        tracker_sync.close()

    first = run.attempt(range(1, 6))
    tell()
    run.lose(first, 4)
    run.commit(run.attempt(range(5, 7), f"{first}/checkpoints/00000004"))
    tell()
    assert run.warnings == []
    assert fake.open == 0
    assert len(fake.kept) == 2, "a sequence and a stage"
    stage = next(rows for rows in fake.kept.values() if rows)
    assert [step for step, values in stage if "train/loss" in values] == [1, 2, 3, 4, 5, 6]
    assert [step for step, values in stage if "validation/loss" in values] == [2, 4, 6]
    assert {(a["project"], a["entity"], a["resume"], a["job_type"]) for a in fake.asked} == {
        ("project", "people", "allow", "sequence"), ("project", "people", "allow", "stage"),
    }  # fmt: skip


@pytest.mark.parametrize(("make", "extra"), [(lambda p: MLflow("https://x", "e"), "mlflow"), (lambda p: WandB("x", p), "wandb")])
def test_what_is_not_installed_is_said_before_anything_starts(
    make: Any, extra: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("atlas_dist.packages.find_spec", lambda _: None)
    with pytest.raises(ConfigError, match=rf"pip install 'atlas-dist\[{extra}\]'"):
        make(tmp_path)
