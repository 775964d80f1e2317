"""`atlas-dist track`: curves from the store to TensorBoard, MLflow and W&B; beside a run, the run does the same itself."""

from __future__ import annotations

import time

from atlas_dist.app.composed import compose_run
from atlas_dist.app.process import hush
from atlas_dist.app.report import make_tracker_sync
from atlas_dist.app.show import standard_console


def show_track(overrides: list[str] | None, *, follow: bool, many: bool = False) -> None:
    """Tell everything that the store has, once or until the run is over. Raises ConfigError: there is no such run."""
    composed_run = compose_run(*(overrides or ()), many=many)
    hush()
    out = standard_console()
    tracker_sync = make_tracker_sync(composed_run, lambda text: out.print(text, markup=False))
    tracker_sync.update(last=True)
    if not tracker_sync.begun:
        raise composed_run.no_such_run()
    out.print(f"tensorboard --logdir {composed_run.folder / 'tensorboard'}", markup=False, soft_wrap=True)
    while follow and not tracker_sync.over:
        time.sleep(composed_run.config.track.every_s)
        tracker_sync.update()
    tracker_sync.close()
