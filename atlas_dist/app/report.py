"""The report of a run: gathered from its store, written as pages and tables, returned as values."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from atlas_dist.app.composed import ComposedRun, Settings, compose_run
from atlas_dist.app.process import restored_process
from atlas_dist.config import ReferencesConfig
from atlas_dist.errors import StoreError
from atlas_dist.report import page as pages
from atlas_dist.report.comparison import write_comparison
from atlas_dist.report.facts import RunFacts, gather, of_row
from atlas_dist.report.forecast import compared, recall
from atlas_dist.report.measures import Row, compare, measure, notes
from atlas_dist.report.track_mlflow import MLflow
from atlas_dist.report.track_wandb import WandB
from atlas_dist.report.tracking import TensorBoard, Tracker, TrackerSync
from atlas_dist.runs.status import load_run


@dataclass(frozen=True)
class Report:
    """What a run has brought, and where it is written."""

    facts: RunFacts
    rows: tuple[Row, ...]
    """A line of the comparison each: methods, or the rows of a sweep; one for an ordinary run."""
    notes: tuple[str, ...]
    """Sentences about a run of several sequences."""
    store: str
    folder: Path
    page: Path
    """`index.html`, which needs no other file."""
    table: Path | None
    """`comparison.csv` of a sweep or of several methods."""
    fault: str
    """Why pages and tables could not be written; "" = they are."""
    compared: bool
    """Several methods, or rows of a sweep, stand beside one another."""
    swept: bool
    referenced: bool
    """Measures of transfer were asked for."""

    def check_written(self) -> None:
        """Raises StoreError: the folder can't be written."""
        if self.fault:
            raise StoreError(
                f"The report can't be written to {self.folder}: {self.fault}.",
                fix="All that was learnt is in the store: set report to a folder that can be written; `atlas-dist report` writes "
                "it.",
            )


def write_report(*settings: Settings, many: bool = False) -> Report:
    """Write the report of a run again, from its store: pages, tables, event files for TensorBoard.

    Args:
        settings: as for `run`.

    Raises:
        ConfigError: there is no such run. DataError: a file of the run is damaged. StoreError: the store is in trouble, or the
            folder of the report can't be written.
    """
    composed_run = compose_run(*settings, many=many)
    with restored_process():
        report = write_pages(composed_run)
    report.check_written()
    return report


def write_pages(composed_run: ComposedRun) -> Report:
    """Everything that is known; of a sweep also a page a row. What was learnt is returned even where it can't be written."""
    config, plan, store, folder = composed_run.config, composed_run.plan(), composed_run.store, composed_run.folder
    state, entries = load_run(store, config.run)
    if not state.next_seq:
        raise composed_run.no_such_run()
    facts = replace(
        gather(plan, state, store, entries),
        compared=compared(plan, state, recall(store, config.run)),
        worker_hour=config.cluster.worker_hour,
    )
    about, measured = notes(plan, state), measure(plan, state)
    rows = compare(measured)
    several = composed_run.swept or bool(config.compare)
    page, table, fault = folder / pages.PAGE, None, ""
    try:
        pages.write_report(facts, folder, about, measured)
        for row in composed_run.rows if composed_run.swept else ():
            pages.write_report(of_row(facts, plan, row), folder / row, measured=measured)
        table = write_comparison(rows, folder) if several else None
    except OSError as error:
        fault = str(error)
    return Report(
        facts=facts,
        rows=rows,
        notes=about,
        store=store.url,
        folder=folder,
        page=page,
        table=table,
        fault=fault,
        compared=several,
        swept=composed_run.swept,
        referenced=config.references != ReferencesConfig(),
    )


def make_tracker_sync(composed_run: ComposedRun, warn: Callable[[str], None]) -> TrackerSync:
    """What tells everybody that `track.*` names of a run's curves. Raises ConfigError: an extra is not installed."""
    config = composed_run.config
    return TrackerSync(composed_run.plan(), composed_run.store, config.run, _trackers(composed_run), config.track.every_s, warn)


def _trackers(composed_run: ComposedRun) -> Sequence[Tracker]:
    """TensorBoard's files beside the report, and what `track.*` names."""
    track, folder = composed_run.config.track, composed_run.folder
    found: list[Tracker] = [TensorBoard(folder)]
    if track.mlflow:
        found.append(MLflow(track.mlflow, track.mlflow_experiment))
    if track.wandb:
        found.append(WandB(track.wandb, folder))
    return found
