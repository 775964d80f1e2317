"""`atlas-dist track`, and the same beside a run: curves from the store to TensorBoard, MLflow and W&B."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from atlas_dist.cli.words import composed, console, hush, open_run_store, report_folder
from atlas_dist.config import RunConfig
from atlas_dist.coordinator import paths
from atlas_dist.core.plan import Plan
from atlas_dist.errors import ConfigError
from atlas_dist.report.track_mlflow import MLflow
from atlas_dist.report.track_wandb import WandB
from atlas_dist.report.tracking import Teller, TensorBoard, Tracker


def show_track(overrides: list[str] | None, *, follow: bool) -> None:
    """Tell everything that the store has, once or until the run is over. Raises ConfigError: there is no such run."""
    from atlas_dist.coordinator.expand import expand

    config = composed(overrides)
    hush()
    out = console()
    teller = make_teller(config, expand(config), lambda text: out.print(text, markup=False))
    teller.look(last=True)
    if not teller.begun:
        raise ConfigError(f"There is no run {config.run} in {config.store.url}.", fix="Start it with `atlas-dist run`.")
    out.print(f"tensorboard --logdir {report_folder(config) / 'tensorboard'}", markup=False, soft_wrap=True)
    while follow and not teller.over:
        time.sleep(config.track.every_s)
        teller.look()
    teller.close()


def make_teller(config: RunConfig, plan: Plan, warn: Callable[[str], None]) -> Teller:
    """Everything that `track.*` asks for. Raises ConfigError: an extra is not installed."""
    return Teller(
        plan,
        open_run_store(config),
        config.run,
        paths.ledger(config.run),
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
