"""A run's results, gathered from its plan and its ledger: plain values that every way of showing them starts from.

Nothing here is computed by training; what has no result yet is None and shown as missing, never guessed.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from statistics import fmean
from typing import Any

from atlas_dist.core.attempts import CommittedRef
from atlas_dist.core.ledger import Entry
from atlas_dist.core.metrics import average_accuracy, backward_transfer, final, forgetting, learnt
from atlas_dist.core.plan import Plan, SequenceJobs
from atlas_dist.core.recheck import before_in, score_in
from atlas_dist.core.result_files import ADAPTER_FILE, DETAILS_FILE, Details
from atlas_dist.core.results import EvalResult, SelectResult, TrainResult, result_of
from atlas_dist.core.selection import Form
from atlas_dist.core.state import JobState, JobStatus, RunState
from atlas_dist.core.task_jobs import TaskJobs
from atlas_dist.core.types import StageJob, View
from atlas_dist.errors import DataError
from atlas_dist.packages import environment
from atlas_dist.report.forecast import Compared
from atlas_dist.report.later import effective_ranks, fingerprint, read_again, token_f1s
from atlas_dist.report.timeline import Timeline, timeline
from atlas_dist.store import artifacts
from atlas_dist.store.curves import CurveReader, Point
from atlas_dist.store.objects import ObjectStore

OWN = Form.OWN.value
"""The form of a task that reads no adapter but its own."""


@dataclass(frozen=True)
class StageFacts:
    """One committed training job: its short metrics from the ledger, its curves and α from `details.json`."""

    label: str
    stage: str
    key: str
    score: float
    metrics: Mapping[str, Any]
    curve: tuple[Mapping[str, float], ...] = ()
    validation: tuple[Mapping[str, float], ...] = ()
    reuse: Mapping[str, Mapping[str, list[float]]] = field(default_factory=dict)
    """{site: {"mean": [T], "std": [T]}} of α per visible adapter, the task's own one last in stage two."""
    samples_per_s: float = 0.0
    """Over the time of stepping and waiting for data."""
    data_wait: float = 0.0
    """Share of that time, 0..1."""
    files: Mapping[str, str] = field(default_factory=dict)
    """Name of each file -> its sha256."""
    attempt: int = 0
    """Which of this run's attempts it was, from 1; 0 = adopted from another run."""
    points: tuple[Point, ...] = ()
    """What the attempt told while it learnt (store/curves.py): more than `curve` and with times, but for people only."""

    @property
    def result(self) -> TrainResult:
        """`metrics`, which stand in run.json as the ledger has them."""
        return TrainResult.from_json(self.metrics)


@dataclass(frozen=True)
class TaskFacts:
    """One task of a sequence: its stages so far and the tasks whose adapters it could draw on, in bank order."""

    task: str
    random_score: float
    stages: tuple[StageFacts, ...]
    sees: tuple[str, ...]
    data: Mapping[str, str] = field(default_factory=dict)
    """What the task was learnt and scored on: `dataset/split` -> digest of its manifest."""

    @property
    def tested(self) -> bool:
        """Whether evaluations scored a third split, which chose nothing."""
        return len(self.data) > 2

    def reuse(self, statistic: str = "mean") -> dict[str, float]:
        """Mean over sites of a statistic of α (`mean`, `std` over samples) of each adapter that the last stage saw (a task may
        see its own, in stage two); {} where it was not noted."""
        last = next((s for s in reversed(self.stages) if s.reuse), None)
        if last is None or self.form == OWN or any(statistic not in site for site in last.reuse.values()):
            return {}
        columns = zip(*(site[statistic] for site in last.reuse.values()), strict=True)
        return {name: fmean(column) for name, column in zip(self.adapters, columns, strict=False)}

    @property
    def adapters(self) -> tuple[str, ...]:
        """Names of the adapters in the order of α: those that it sees, and its own where that is noted beside them."""
        return self.sees if self.task in self.sees else (*self.sees, self.task)

    @property
    def form(self) -> str:
        """Which of its forms a task committed, where its method chose: `experience`, `own`, `both`; "" = it did not."""
        return str(self.selection.get("form", ""))

    @property
    def selection(self) -> Mapping[str, Any]:
        """How its method chose: the metrics of the job that did (core/results.py, SelectResult); {} = it did not."""
        return self.metrics if "form" in self.metrics else {}

    @property
    def grew(self) -> bool:
        """Whether it left an adapter of its own. Where its method chose, those of the other candidates do not count."""
        stages = self.stages[-1:] if self.selection else self.stages
        return any(ADAPTER_FILE in stage.files for stage in stages)

    @property
    def metrics(self) -> Mapping[str, Any]:
        """Of its last stage; {} before it is committed."""
        return self.stages[-1].metrics if self.stages else {}


Cell = float | None


@dataclass(frozen=True)
class SequenceFacts:
    """One order of tasks under one seed."""

    name: str
    method: str
    seed: int
    upstream: tuple[TaskFacts, ...]
    downstream: tuple[TaskFacts, ...]
    matrix: Mapping[str, tuple[tuple[Cell, ...], ...]]
    """view -> R[i][j] in percent, row i of length i + 1; None = not scored yet, or never to be (`skipped`)."""
    fingerprints: Mapping[str, tuple[str, ...]]
    """task -> sha256 of its task-view predictions after each later task: all equal, or something is wrong. A later pass that
    proves the first one on some of the samples has that one's."""
    transfers: Mapping[str, Cell]
    """downstream task -> its score in percent."""
    without: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    """task -> its score, right after it was learnt, without each adapter of its bank in turn; tasks that read one adapter only
    are not there."""
    effective_rank: tuple[tuple[Cell, ...], ...] = ()
    """Effective rank of the pooled outputs on task j's validation split after task i, latest view: does what the bank can tell
    apart grow?"""
    token_f1: Mapping[str, float] = field(default_factory=dict)
    """task -> token F1 in percent, right after it was learnt, of those whose answers are written (scores are exact match)."""
    skipped: tuple[tuple[int, int], ...] = ()
    """(i, j) that the run does not measure (`sequence.evaluate_every`)."""
    before: Mapping[str, tuple[tuple[Cell, ...], ...]] = field(default_factory=dict)
    """view -> what R[i][j] is to be compared with: task j right after it was learnt, on the same samples."""
    rechecked: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    """task -> (samples that were read again after later tasks, samples of its split); whole splits are not there."""

    @property
    def complete(self) -> bool:
        """Every cell of every view that is to be measured is there."""
        cells = [(i, j) for i in range(len(self.upstream)) for j in range(i + 1) if (i, j) not in self.skipped]
        return all(rows[i][j] is not None for rows in self.matrix.values() for i, j in cells)

    def summary(self) -> dict[str, float]:
        """Average accuracy, backward transfer and mean forgetting per view; {} before the sequence is complete."""
        if not self.complete:
            return {}
        out: dict[str, float] = {}
        for view, matrix in self.matrix.items():
            before = final(self.before[view]) if self.before else learnt(matrix)
            before_and_after = zip(self.upstream[:-1], before, final(matrix), strict=False)
            losses = [forgetting(own, last, task.random_score) for task, own, last in before_and_after]
            out[f"average accuracy, {view} view"] = average_accuracy(matrix)
            out[f"backward transfer, {view} view"] = backward_transfer(matrix, before)
            out[f"forgetting T_F, {view} view"] = fmean(losses) if losses else 0.0
        return out

    def forgetting(self, view: str) -> tuple[tuple[Cell, ...], ...]:
        """T_F(j <- i) in percent: row i = after task i, column j < i (docs/method.md, Evaluation); None where a score is
        missing."""
        rows = self.matrix[view]
        before = self.before.get(view) or [[rows[j][j] for j in range(len(row))] for row in rows]
        return tuple(
            tuple(_forgotten(before[i][j], cell, self.upstream[j].random_score) for j, cell in enumerate(row[:-1]))
            for i, row in enumerate(rows)
            if i
        )

    @property
    def scored_on(self) -> str:
        """A sentence on the samples that score."""
        tasks = (*self.upstream, *self.downstream)
        untested = [task.task for task in tasks if not task.tested]
        if len(untested) == len(tasks):
            return "Scores are of validation splits, which also chose what was kept."
        rest = f"; those of {', '.join(untested)} of validation splits, which also chose what was kept" if untested else ""
        return f"Scores are of test splits, which chose nothing{rest}."

    @property
    def proved_on(self) -> str:
        """How it was seen that old predictions stay equal, for the end of a sentence; "" where every sample was read again."""
        parts = [f"{read:,} of {of:,} ({task})" for task, (read, of) in self.rechecked.items()]
        return f", proved on a fixed sample: {', '.join(parts)}" if parts else ""

    def changed_predictions(self) -> list[str]:
        """Tasks whose task-view predictions did not stay bitwise equal. Must be empty."""
        return [task for task, prints in self.fingerprints.items() if len(set(prints)) > 1]


@dataclass(frozen=True)
class RunFacts:
    """Everything the reports show."""

    run: str
    sequences: tuple[SequenceFacts, ...]
    jobs: tuple[Mapping[str, Any], ...]
    """One row a job: label, status, score, seconds, attempts, adopted_from."""
    spec: Mapping[str, Any]
    committed: int
    total: int
    timeline: Timeline = field(default_factory=Timeline)
    environment: Mapping[str, str] = field(default_factory=dict)
    """What made the report: versions of the libraries, the machine's kind."""
    trained_on: tuple[Mapping[str, str], ...] = ()
    """The same of what trained, each that occurs once; () where an older version did not note it."""
    compared: tuple[Compared, ...] = ()
    """What was foreseen when the run began against what came; () where nothing was."""
    worker_hour: float = 0.0
    """What a worker costs an hour (`cluster.worker_hour`); 0 = not said."""


def gather(plan: Plan, state: RunState, store: ObjectStore | None = None, entries: Iterable[Entry] = ()) -> RunFacts:
    """Collect a run's results; with a store, also curves and α (verified); with the ledger's entries, when it all happened.

    Raises:
        DataError: a file is damaged.
    """
    reader = None if store is None else CurveReader(store)
    return RunFacts(
        run=state.run,
        sequences=tuple(_sequence(plan, state, s, reader) for s in plan.sequences),
        jobs=tuple(_job_row(job, state) for job in plan.jobs.values()),
        spec=state.spec,
        committed=sum(state.job(k).committed is not None for k in plan.jobs),
        total=len(plan.jobs),
        timeline=timeline(entries, {key: job.label for key, job in plan.jobs.items()}),
        environment=environment(),
        trained_on=_environments(state),
    )


def _environments(state: RunState) -> tuple[Mapping[str, str], ...]:
    refs = (job.committed for job in state.jobs.values())
    found = (TrainResult.of(ref).environment for ref in refs if ref is not None)
    return tuple({json.dumps(each, sort_keys=True): each for each in found if each}.values())


def of_row(facts: RunFacts, plan: Plan, row: str) -> RunFacts:
    """What a run's facts say of one row of a sweep: its sequences, and the jobs behind them."""
    mine = [s for s in plan.sequences if is_of(s.variant, row)]
    names, keys = {s.name for s in mine}, {key for s in mine for key in plan.behind(s)}
    jobs = tuple(job for job in facts.jobs if job["job"] in keys)
    return replace(
        facts,
        sequences=tuple(s for s in facts.sequences if s.name in names),
        jobs=jobs,
        spec=facts.spec.get("rows", {}).get(row, facts.spec),
        committed=sum(job["status"] == JobStatus.COMMITTED.value for job in jobs),
        total=len(jobs),
        timeline=replace(facts.timeline, spans=tuple(span for span in facts.timeline.spans if span.job in keys)),
        compared=(),
    )


def is_of(variant: str, row: str) -> bool:
    """Whether a sequence of this variant belongs to this row of a sweep."""
    return variant == row or variant.startswith(f"{row}-")


def _forgotten(own: Cell, later: Cell, random: float) -> Cell:
    return None if own is None or later is None else forgetting(own, later, random)


def _sequence(plan: Plan, state: RunState, jobs: SequenceJobs, reader: CurveReader | None) -> SequenceFacts:
    count = len(jobs.upstream)
    every = [(i, j) for i in range(count) for j in range(i + 1)]
    cells = {at: _evaluated(state, jobs.evaluations[at]) if at in jobs.evaluations else EvalResult() for at in every}

    def triangle(cell: Callable[[View, EvalResult, EvalResult], Cell], view: View) -> tuple[tuple[Cell, ...], ...]:
        return tuple(tuple(cell(view, cells[i, j], cells[j, j]) for j in range(i + 1)) for i in range(count))

    prints = {
        task.task: tuple(fingerprint(cells[i, j], cells[j, j]) for i in range(j, count) if View.TASK in cells[i, j].views)
        for j, task in enumerate(jobs.upstream)
    }
    return SequenceFacts(
        name=jobs.name,
        method=jobs.method,
        seed=jobs.seed,
        upstream=tuple(_task(plan, state, t, reader) for t in jobs.upstream),
        downstream=tuple(_task(plan, state, t, reader) for t in jobs.downstream),
        matrix={view.value: triangle(score_in, view) for view in (View.TASK, View.LATEST)},
        fingerprints=prints,
        transfers={task: _score(_evaluated(state, key), View.TASK) for task, key in jobs.transfers.items()},
        without=_without(state, jobs),
        effective_rank=effective_ranks(cells, count),
        token_f1=token_f1s(cells, [task.task for task in jobs.upstream]),
        skipped=tuple(at for at in every if at not in jobs.evaluations),
        before={view.value: triangle(before_in, view) for view in (View.TASK, View.LATEST)},
        rechecked={
            task.task: found
            for j, task in enumerate(jobs.upstream)
            if (found := read_again([cells[i, j] for i in range(j, count)]))
        },
    )


def _without(state: RunState, jobs: SequenceJobs) -> dict[str, tuple[float, ...]]:
    own = {task.task: jobs.evaluations[i, i] for i, task in enumerate(jobs.upstream)} | dict(jobs.transfers)
    return {task: without for task, key in own.items() if (without := _evaluated(state, key).without)}


def _evaluated(state: RunState, key: str) -> EvalResult:
    """An evaluation as far as it is done: without views before it is."""
    ref = state.job(key).committed
    return EvalResult.of(ref) if ref else EvalResult()


def _score(evaluation: EvalResult, view: View) -> Cell:
    found = evaluation.view(view)
    return found.score if found else None


def _task(plan: Plan, state: RunState, jobs: TaskJobs, reader: CurveReader | None) -> TaskFacts:
    spec = plan.tasks[jobs.task]
    stages = tuple(_stage(plan.jobs[key], state.job(key), reader) for key in jobs.stages if state.job(key).committed is not None)
    return TaskFacts(
        task=jobs.task,
        random_score=spec.random_score,
        stages=stages,
        sees=tuple(plan.jobs[key].task.name if key in plan.jobs else key[:12] for key in _seen(jobs, state)),
        data={f"{spec.dataset}/{split}": digest for split, digest in spec.splits.items()},
    )


def _seen(jobs: TaskJobs, state: RunState) -> Iterable[str]:
    """Jobs of the adapters that a task reads: what its result says, for a method may read fewer than the plan allows."""
    ref = state.job(jobs.final).committed
    if ref is None or not {"form", "sees"} & set(ref.metrics):
        return jobs.bank
    return SelectResult.of(ref).sees


def _stage(job: StageJob, now: JobState, reader: CurveReader | None) -> StageFacts:
    ref = now.committed
    assert ref is not None, "only committed stages have results"
    has_details = any(blob.name == DETAILS_FILE for blob in ref.blobs)
    details = Details.from_json(artifacts.load(reader.store, ref, DETAILS_FILE)) if reader and has_details else Details()
    result = TrainResult.of(ref)
    busy = result.seconds.stepping + result.seconds.waiting
    return StageFacts(
        label=job.label,
        stage=job.stage.stage.value if job.stage else job.kind.value,
        key=job.key,
        score=result.score,
        metrics=ref.metrics,
        curve=details.curve,
        validation=details.validation,
        reuse=details.alpha,
        samples_per_s=result.samples_done(job.budget.global_batch) / busy if busy else 0.0,
        data_wait=result.seconds.waiting / busy if busy else 0.0,
        files={blob.name: blob.sha256 for blob in ref.blobs},
        attempt=now.number(ref.attempt),
        points=_points(reader, ref),
    )


def _points(reader: CurveReader | None, ref: CommittedRef) -> tuple[Point, ...]:
    """What the attempt told; () where it told nothing, or that is damaged: the result itself has the curve that counts."""
    try:
        return reader.points(ref.prefix, whole=True) if reader is not None else ()
    except DataError:
        return ()


def _job_row(job: StageJob, state: RunState) -> dict[str, Any]:
    now = state.job(job.key)
    result = result_of(now.committed) if now.committed else None
    return {
        "job": job.key,
        "label": job.label,
        "status": now.status.value,
        "score": result.known_score if result else None,
        "seconds": result.seconds.whole if result else 0,
        "attempts": len(now.attempts),
        "adopted_from": now.adopted_from,
        "failure": now.failure.reason if now.failure else "",
    }
