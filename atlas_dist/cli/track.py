"""`atlas-dist track`, and the same beside a run: curves from the store to TensorBoard, MLflow and W&B."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from atlas_dist.cli.words import compose_run, console, hush, no_such_run, report_folder
from atlas_dist.config import RunConfig
from atlas_dist.core.plan import Plan
from atlas_dist.report.track_mlflow import MLflow
from atlas_dist.report.track_wandb import WandB
from atlas_dist.report.tracking import TensorBoard, Tracker, TrackerSync
from atlas_dist.runs import layout
from atlas_dist.runs.stores import open_run_store


def show_track(overrides: list[str] | None, *, follow: bool, many: bool = False) -> None:
    """Tell everything that the store has, once or until the run is over. Raises ConfigError: there is no such run."""
    composed_run = compose_run(overrides, many=many)
    config = composed_run.config
    hush()
    out = console()
    tracker_sync = make_tracker_sync(config, composed_run.plan(), lambda text: out.print(text, markup=False))
    tracker_sync.update(last=True)
    if not tracker_sync.begun:
        raise no_such_run(config)
    out.print(f"tensorboard --logdir {report_folder(config) / 'tensorboard'}", markup=False, soft_wrap=True)
    while follow and not tracker_sync.over:
        time.sleep(config.track.every_s)
        tracker_sync.update()
    tracker_sync.close()


def make_tracker_sync(config: RunConfig, plan: Plan, warn: Callable[[str], None]) -> TrackerSync:
    """Everything that `track.*` asks for. Raises ConfigError: an extra is not installed."""
    return TrackerSync(
        plan,
        open_run_store(config),
        config.run,
        layout.ledger(config.run),
        trackers(config, report_folder(config)),
        config.track.every_s,
        warn,
    )


def trackers(config: RunConfig, folder: Path) -> list[Tracker]:
    """TensorBoard's files in `folder`, and what `track.*` names."""
    found: list[Tracker] = [TensorBoard(folder)]
    if config.track.mlflow:
        found.append(MLflow(config.track.mlflow, config.track.mlflow_experiment))
    if config.track.wandb:
        found.append(WandB(config.track.wandb, folder))
    return found
