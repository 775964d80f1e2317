"""MLflow, and nowhere else: a parent run a sequence, a child run a stage.

MLflow chooses the ids of its runs, so ours stands in a tag: it comes from the run's ledger (report/tracking.py), and whoever
tells the same stage again finds the run by it. What a resumed attempt repeats is equal to what the one before told, and not told
again.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from typing import Any

from atlas_dist.packages import need_extra
from atlas_dist.report.tracking import SequenceRun, StageRun

TAG = "atlas.id"
_BATCH = 1000
"""Metrics that MLflow takes in one call."""
_FINISHED, _RUNNING, _WAITING = "FINISHED", "RUNNING", "SCHEDULED"


class MLflow:
    """See report/tracking.py, Tracker.

    Args:
        uri: where MLflow is: `https://…` or `file:///…`. Credentials come from MLflow's own environment variables.

    Raises:
        ConfigError: the extra is not installed.
    """

    name = "MLflow"
    single = True

    def __init__(self, uri: str, experiment: str) -> None:
        need_extra("mlflow", f"track.mlflow={uri}", "track.mlflow=''")
        self._uri, self._experiment = uri, experiment
        self._client: Any = None
        self._where = ""
        self._ids: dict[str, str] = {}
        """our id -> MLflow's"""
        self._open: set[str] = set()
        self._last: dict[tuple[str, str], int] = {}
        """(our id, split) -> the newest step that MLflow has"""

    def start_sequence(self, sequence: SequenceRun) -> None:
        """The parent."""
        self._ensure(sequence.id, f"{sequence.run}/{sequence.name}", sequence.about)

    def start_stage(self, stage: StageRun) -> None:
        """The child."""
        self._ensure(stage.id, stage.name, {**stage.about, "mlflow.parentRunId": self._ids[stage.sequence.id]})

    def scalars(self, stage: StageRun) -> None:
        """Points beyond the newest step of their split that MLflow has."""
        from mlflow.entities import Metric

        new = [point for point in stage.points if point.step > self._known(stage.id, point.split)]
        metrics = [
            Metric(f"{p.split}/{name}", value, round(p.at * 1000), p.step) for p in new for name, value in p.values.items()
        ]
        for at in range(0, len(metrics), _BATCH):
            self._client.log_batch(self._ids[stage.id], metrics=metrics[at : at + _BATCH])
        for point in new:
            self._last[stage.id, point.split] = point.step

    def finish_stage(self, stage: StageRun) -> None:
        """Its score, once, and its end."""
        self._finish(stage.id, {} if stage.score is None else {"score": stage.score})

    def finish_sequence(self, sequence: SequenceRun) -> None:
        """Its measures, once, and its end."""
        self._finish(sequence.id, sequence.measures)

    def close(self) -> None:
        """What is not finished waits for the run to go on."""
        for key in sorted(self._open):
            self._client.update_run(self._ids[key], status=_WAITING)
        self._open.clear()

    def _ensure(self, key: str, name: str, tags: Mapping[str, str]) -> None:
        """Find the run whose tag says `key`, or make it."""
        if key in self._ids:
            return
        self._connect()
        found = self._client.search_runs([self._where], filter_string=f"tags.`{TAG}` = '{key}'", max_results=1)
        run = found[0] if found else self._client.create_run(self._where, run_name=name, tags={**tags, TAG: key})
        self._ids[key] = run.info.run_id
        if run.info.status != _FINISHED:
            self._open.add(key)
            if run.info.status != _RUNNING:
                self._client.update_run(run.info.run_id, status=_RUNNING)

    def _connect(self) -> None:
        if self._client is not None:
            return
        os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")  # two lines a run, between ours
        if self._uri.startswith("file:"):
            os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")  # a folder was asked for by name
        from mlflow.tracking import MlflowClient

        client = MlflowClient(tracking_uri=self._uri)
        found = client.get_experiment_by_name(self._experiment)
        self._where = found.experiment_id if found else client.create_experiment(self._experiment)
        self._client = client

    def _known(self, key: str, split: str) -> int:
        if (key, split) not in self._last:
            told: Iterable[Any] = self._client.get_metric_history(self._ids[key], f"{split}/loss")
            self._last[key, split] = max((metric.step for metric in told), default=0)
        return self._last[key, split]

    def _finish(self, key: str, metrics: Mapping[str, float]) -> None:
        if key not in self._open:
            return
        for name, value in metrics.items():
            self._client.log_metric(self._ids[key], name, value)
        self._client.set_terminated(self._ids[key], status=_FINISHED)
        self._open.discard(key)
