"""What the sequences of a run achieved, as numbers (docs/method.md, Evaluation), and how methods compare.

Every score a measure needs is a job of the same plan; a measure whose jobs are not there, or must not be compared, is None.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean

from atlas_dist.core.compare import refusal
from atlas_dist.core.metrics import (
    Spread,
    average_accuracy,
    backward_transfer,
    final,
    forgetting,
    forward_transfer,
    learnt,
    order_sensitivity,
    relative_gain,
    spread,
)
from atlas_dist.core.plan import Plan, SequenceJobs
from atlas_dist.core.recheck import before_in, score_in
from atlas_dist.core.result_files import ADAPTER_FILE
from atlas_dist.core.results import EvalResult, TrainResult
from atlas_dist.core.state import RunState
from atlas_dist.core.task_jobs import TaskJobs
from atlas_dist.core.types import View


@dataclass(frozen=True)
class SequenceMeasures:
    """One method on one order under one seed. Old tasks are read in the view that counts for the method."""

    variant: str
    order: tuple[str, ...]
    seed: int
    finals: Mapping[str, float]
    """task -> score in percent after the whole sequence."""
    values: Mapping[str, float]
    """measure -> value; only those that could be computed. Names: MEASURES."""
    refused: tuple[str, ...] = ()
    """Why a measure was not computed although all scores are there."""
    name: str = ""
    """Of the sequence in the plan."""
    alone: Mapping[str, float] = field(default_factory=dict)
    """upstream task -> its score learnt by itself; {} without such a reference, or where it must not be compared."""
    pretrained: Mapping[str, float] = field(default_factory=dict)
    """downstream task -> its score learnt from the pretrained backbone; {} likewise."""
    reads: View = View.TASK
    """The view of old tasks that counts for the method."""
    bank_bytes: int = 0
    """Size of the adapters that the upstream tasks have left."""


AVERAGE, FORGETTING, BACKWARD = "average accuracy", "forgetting T_F", "backward transfer"
FORWARD, UPSTREAM, LOW_SHOT = "forward transfer", "upstream transfer T_UK", "low-shot transfer T_LS"
PARAMETERS, STEPS, SECONDS = "trained parameters", "steps", "seconds"
MEASURES = (AVERAGE, FORGETTING, BACKWARD, FORWARD, UPSTREAM, LOW_SHOT, PARAMETERS, STEPS, SECONDS)


def measure(plan: Plan, state: RunState) -> tuple[SequenceMeasures, ...]:
    """The measures of every complete sequence of the plan."""
    return tuple(m for jobs in plan.sequences if (m := measure_sequence(plan, state, jobs)) is not None)


def measure_sequence(plan: Plan, state: RunState, jobs: SequenceJobs) -> SequenceMeasures | None:
    """The measures of one sequence; None while a score is missing."""
    count = len(jobs.upstream)
    scored = {at: _evaluated(state, key) for at, key in jobs.evaluations.items()}
    cells = {(i, j): score_in(jobs.reads, found, scored[j, j]) for (i, j), found in scored.items()}
    if None in cells.values():
        return None
    matrix = [[cells.get((i, j)) for j in range(i + 1)] for i in range(count)]
    own, last = learnt(matrix), final(matrix)
    before = [before_in(jobs.reads, scored[count - 1, j], scored[j, j]) or 0.0 for j in range(count)]
    names = [task.task for task in jobs.upstream]
    chance = {name: spec.random_score for name, spec in plan.tasks.items()}
    refused: list[str] = []
    alone = _references(plan, state, jobs.upstream, jobs.alone, refused)
    pretrained = _references(plan, state, jobs.downstream, jobs.pretrained, refused)
    transferred = {task: _score(state, key, View.TASK) for task, key in jobs.transfers.items()}

    values = {AVERAGE: average_accuracy(matrix), BACKWARD: backward_transfer(matrix, before)}
    values[FORGETTING] = _mean([forgetting(before[j], last[j], chance[names[j]]) for j in range(count - 1)])
    if alone:
        values[FORWARD] = forward_transfer(matrix, [alone[name] for name in names])
        values[UPSTREAM] = _mean([relative_gain(own[i], alone[name], chance[name]) for i, name in enumerate(names)])
    if pretrained and all(score is not None for score in transferred.values()):
        gains = [relative_gain(score, pretrained[t], chance[t]) for t, score in transferred.items() if score is not None]
        values[LOW_SHOT] = _mean(gains)
    values |= _costs(state, jobs.upstream)
    return SequenceMeasures(
        variant=jobs.variant,
        order=tuple(names),
        seed=jobs.seed,
        finals=dict(zip(names, last, strict=True)),
        values=values,
        refused=tuple(refused),
        name=jobs.name,
        alone=alone,
        pretrained=pretrained,
        reads=jobs.reads,
        bank_bytes=_bank_bytes(state, jobs.upstream),
    )


def _bank_bytes(state: RunState, tasks: Iterable[TaskJobs]) -> int:
    """A task that declined to grow has no such file."""
    keys = dict.fromkeys(key for task in tasks for key in task.stages if key == task.adapter)
    blobs = (blob for key in keys if (ref := state.job(key).committed) is not None for blob in ref.blobs)
    return sum(blob.size for blob in blobs if blob.name == ADAPTER_FILE)


def _references(
    plan: Plan, state: RunState, tasks: Iterable[TaskJobs], scored: Mapping[str, str], refused: list[str]
) -> dict[str, float]:
    """task -> the reference's score; {} when one is missing or must not be compared (`refused` then says why)."""
    found: dict[str, float] = {}
    reasons: list[str] = []
    for task in tasks if scored else ():
        evaluation = plan.jobs[scored[task.task]]
        reason = refusal(plan.jobs[task.final], plan.jobs[evaluation.model_from], task.task)
        score = _score(state, evaluation.key, View.TASK)
        if reason:
            reasons.append(reason)
        elif score is not None:
            found[task.task] = score
    refused += reasons
    return found if scored and len(found) == len(scored) else {}


def _costs(state: RunState, tasks: Iterable[TaskJobs]) -> dict[str, float]:
    """What the upstream tasks took: jobs that several tasks or orders share count in full."""
    jobs = dict.fromkeys(key for task in tasks for key in task.stages)
    results = [TrainResult.of(ref) for key in jobs if (ref := state.job(key).committed) is not None]
    return {
        PARAMETERS: max(float(r.trained_parameters) for r in results),
        STEPS: sum(float(r.steps) for r in results),
        SECONDS: sum(r.seconds.whole for r in results),
    }


def _score(state: RunState, evaluation: str, view: View) -> float | None:
    found = _evaluated(state, evaluation).view(view)
    return found.score if found else None


def _evaluated(state: RunState, evaluation: str) -> EvalResult:
    """Without views before it is done."""
    ref = state.job(evaluation).committed
    return EvalResult.of(ref) if ref is not None else EvalResult()


def _mean(values: Sequence[float]) -> float:
    return fmean(values) if values else 0.0


@dataclass(frozen=True)
class Sharing:
    """Tasks that a run has learnt, from its ledger, against the places they have in its sequences."""

    places: int
    learnt: int

    def __str__(self) -> str:
        return f"{self.learnt} tasks learnt for {self.places} places in the orders."


def sharing(plan: Plan, state: RunState) -> Sharing:
    """Each task counts once for each last stage that was committed: orders with a common beginning share it."""
    finals = [task.final for sequence in plan.sequences for task in sequence.upstream]
    return Sharing(len(finals), len({key for key in finals if state.job(key).committed is not None}))


def notes(plan: Plan, state: RunState) -> tuple[str, ...]:
    """Sentences about a run of several sequences; () for one."""
    if len(plan.sequences) < 2:
        return ()
    rows = compare(measure(plan, state))
    sensitive = [
        f"Order sensitivity of {row.variant}: {row.order_sensitivity:.1f} points (deviation of a task's final score over orders)."
        for row in rows
        if row.order_sensitivity is not None
    ]
    return (f"{sharing(plan, state)}", *sensitive)


@dataclass(frozen=True)
class Row:
    """One method in a comparison: its measures over all its seeds and orders."""

    variant: str
    measures: Mapping[str, Spread]
    """Only measures that every one of its sequences has."""
    order_sensitivity: float | None = None
    """None with a single order."""
    refused: tuple[str, ...] = field(default=())


def compare(sequences: Iterable[SequenceMeasures]) -> tuple[Row, ...]:
    """One row a method, in the order of the plan."""
    by_variant: dict[str, list[SequenceMeasures]] = {}
    for sequence in sequences:
        by_variant.setdefault(sequence.variant, []).append(sequence)
    return tuple(_row(variant, mine) for variant, mine in by_variant.items())


def _row(variant: str, sequences: list[SequenceMeasures]) -> Row:
    shared = [name for name in MEASURES if all(name in s.values for s in sequences)]
    by_order: dict[tuple[str, ...], list[SequenceMeasures]] = {}
    for sequence in sequences:
        by_order.setdefault(sequence.order, []).append(sequence)
    finals = [{task: fmean(s.finals[task] for s in same) for task in order} for order, same in by_order.items()]
    comparable = len(finals) > 1 and all(set(scores) == set(finals[0]) for scores in finals)
    return Row(
        variant=variant,
        measures={name: spread([s.values[name] for s in sequences]) for name in shared},
        order_sensitivity=order_sensitivity(finals) if comparable else None,
        refused=tuple(dict.fromkeys(reason for s in sequences for reason in s.refused)),
    )
