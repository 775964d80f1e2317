"""Weights & Biases, and nowhere else: a run a sequence, a run a stage, together in one group.

W&B takes the ids that we choose: they come from the run's ledger (report/tracking.py), so a restart goes on with the same W&B
run. Offline (WANDB_MODE=offline) every restart leaves a folder of its own under the same id; `wandb sync` puts them together.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from atlas_dist.packages import need_extra
from atlas_dist.report.tracking import SequenceRun, StageRun


class WandB:
    """See report/tracking.py, Tracker. Credentials and mode come from W&B's own environment variables.

    Args:
        project: `project` or `entity/project`.
        folder: where W&B keeps what it has not sent yet.

    Raises:
        ConfigError: the extra is not installed.
    """

    name = "W&B"
    single = True

    def __init__(self, project: str, folder: Path) -> None:
        need_extra("wandb", f"track.wandb={project}", "track.wandb=''")
        *entity, self._project = project.split("/", 1)
        self._entity = entity[0] if entity else None
        self._folder = folder
        self._runs: dict[str, Any] = {}
        self._first: dict[str, int] = {}
        """our id -> the first step that W&B does not have from an earlier process"""
        self._last: dict[tuple[str, str], int] = {}

    def start_sequence(self, sequence: SequenceRun) -> None:
        """The run of the sequence."""
        self._ensure(sequence.id, sequence.name, sequence, "sequence", sequence.about)

    def start_stage(self, stage: StageRun) -> None:
        """The run of the stage, in the sequence's group."""
        self._ensure(stage.id, f"{stage.sequence.name}/{stage.name}", stage.sequence, "stage", stage.about)

    def scalars(self, stage: StageRun) -> None:
        """Points that W&B does not have; its steps never go back."""
        run = self._runs[stage.id]
        for point in stage.points:
            mine = (stage.id, point.split)
            if point.step >= self._first[stage.id] and point.step > self._last.get(mine, 0):
                run.log({f"{point.split}/{name}": value for name, value in point.values.items()}, step=point.step)
                self._last[mine] = point.step

    def finish_stage(self, stage: StageRun) -> None:
        """Its score, and its end."""
        self._finish(stage.id, {} if stage.score is None else {"score": stage.score})

    def finish_sequence(self, sequence: SequenceRun) -> None:
        """Its measures, and its end."""
        self._finish(sequence.id, sequence.measures)

    def close(self) -> None:
        """Send what is left."""
        for key in sorted(self._runs):
            self._finish(key, {})

    def _ensure(self, key: str, name: str, sequence: SequenceRun, kind: str, about: Mapping[str, str]) -> None:
        if key in self._runs:
            return
        import wandb

        self._folder.mkdir(parents=True, exist_ok=True)
        run = wandb.init(
            project=self._project,
            entity=self._entity,
            id=key,
            resume="allow",
            name=name,
            group=f"{sequence.run}/{sequence.name}",
            job_type=kind,
            config=dict(about),
            dir=str(self._folder),
            reinit="create_new",
            settings=wandb.Settings(silent=True, console="off", disable_git=True, save_code=False, x_disable_stats=True),
        )
        self._runs[key] = run
        self._first[key] = int(run.step)

    def _finish(self, key: str, values: Mapping[str, float]) -> None:
        run = self._runs.pop(key)
        run.summary.update(dict(values))
        run.finish()
