"""What a run would do, before it does anything: what is a fact, what is to do, how many samples and bytes, about how long.

Times are the pace of finished jobs of the same store, from the fastest to the slowest, of the same task and stage where there are
any; those of other runs count where backbone and precision are the same. No calibration is run, and where nothing has finished
yet nothing is claimed.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from atlas_dist.core.attempts import CommittedRef
from atlas_dist.core.manifest import ShardManifest
from atlas_dist.core.plan import Plan, SequenceJobs
from atlas_dist.core.results import result_of
from atlas_dist.core.schedule import work_of
from atlas_dist.core.state import RunState
from atlas_dist.core.types import StageJob, WorkerGroupSpec

Pace = tuple[float, float]
"""(least, most) seconds a sample."""


@dataclass(frozen=True)
class JobOutlook:
    """One job: `standing` is `fact`, `fact of <run>`, `running`, `quarantined` or `to do`."""

    job: StageJob
    standing: str
    orders: int
    """How many sequences it belongs to."""
    samples: int
    bytes: int
    """To be read from the shards' store, if nobody has them cached."""
    seconds: Pace | None
    """(least, most); None = no finished job to go by."""
    workers: int
    """Of the pool that takes it."""

    @property
    def to_do(self) -> bool:
        """Whether anything is left of it."""
        return not self.standing.startswith("fact")


@dataclass(frozen=True)
class Outlook:
    """All jobs of a plan, in its order."""

    jobs: Mapping[str, JobOutlook]

    @property
    def left(self) -> tuple[JobOutlook, ...]:
        """Those to do."""
        return tuple(job for job in self.jobs.values() if job.to_do)

    @property
    def seconds(self) -> Pace | None:
        """(least, most) of all that is left, one after the other; None while any of it is unknown."""
        known = [job.seconds for job in self.left]
        if not known or any(pace is None for pace in known):
            return None
        return sum(p[0] for p in known if p), sum(p[1] for p in known if p)

    @property
    def worker_hours(self) -> Pace | None:
        """(least, most) of all that is left; None while any of it is unknown."""
        if self.seconds is None:
            return None
        priced = [(job.seconds, job.workers) for job in self.left if job.seconds]
        return sum(s[0] * w for s, w in priced) / 3600, sum(s[1] * w for s, w in priced) / 3600


def foresee(
    plan: Plan,
    state: RunState,
    elsewhere: Mapping[str, tuple[str, CommittedRef]],
    manifests: Mapping[tuple[str, str], ShardManifest],
    buffer_bytes: int,
    worker_groups: Sequence[WorkerGroupSpec],
    alike: Iterable[CommittedRef] = (),
) -> Outlook:
    """What is left of a plan.

    Args:
        elsewhere: job key -> (run, result) of facts that other runs have committed.
        manifests: (data set, split) -> manifest, for all that the plan reads.
        buffer_bytes: a split up to this size is read once and kept.
        worker_groups: the pools; the first one that takes a job counts for its cost.
        alike: results of jobs that are not in the plan, learnt on the same backbone in the same precision.
    """
    orders = Counter(key for sequence in plan.sequences for key in set(jobs_of(sequence)))
    finished = [(job, ref) for key, job in plan.jobs.items() if (ref := _result(key, state, elsewhere)) is not None]
    seen = [(_names_of(job), _pace(ref, job.budget.global_batch)) for job, ref in finished]
    seen += [
        (_names(like["kind"], like["stage"], like["task"]), _pace(ref, like["batch"])) for ref in alike if (like := like_of(ref))
    ]
    paces = _Paces((names, pace) for names, pace in seen if pace)
    steps = {job.key: _steps(job, manifests) for job in plan.jobs.values()}
    out = {}
    for key, job in plan.jobs.items():
        samples = (
            steps[key] * job.budget.global_batch
            if job.stage
            else sum(job.samples.get(view, manifests[job.task.dataset, job.task.scored].samples) for view in job.views)
        )
        pace = paces.of(job)
        out[key] = JobOutlook(
            job=job,
            standing=_standing(key, state, elsewhere),
            orders=orders[key],
            samples=samples,
            bytes=_bytes(job, steps[key], manifests, buffer_bytes),
            seconds=(pace[0] * samples, pace[1] * samples) if pace else None,
            workers=next((group.workers for group in worker_groups if work_of(job) in group.takes), 0),
        )
    return Outlook(out)


def jobs_of(sequence: SequenceJobs) -> tuple[str, ...]:
    """Every job of a sequence, each once, stages before evaluations."""
    stages = (key for task in (*sequence.upstream, *sequence.downstream) for key in task.stages)
    scored = (
        *sequence.evaluations.values(),
        *sequence.transfers.values(),
        *sequence.alone.values(),
        *sequence.pretrained.values(),
    )
    return tuple(dict.fromkeys((*stages, *scored)))


def _result(key: str, state: RunState, elsewhere: Mapping[str, tuple[str, CommittedRef]]) -> CommittedRef | None:
    return state.job(key).committed or (elsewhere[key][1] if key in elsewhere else None)


def _standing(key: str, state: RunState, elsewhere: Mapping[str, tuple[str, CommittedRef]]) -> str:
    status = state.job(key).status.value
    if status == "committed":
        return "fact"
    if status == "pending":
        return f"fact of {elsewhere[key][0]}" if key in elsewhere else "to do"
    return status


Names = tuple[tuple[str, ...], ...]
"""What a pace is looked up by, the closest first."""


class _Paces:
    """Seconds a sample of finished jobs: of the same task and stage where there are any, else of the same kind of job."""

    def __init__(self, finished: Iterable[tuple[Names, float]]) -> None:
        self._seen: dict[tuple[str, ...], list[float]] = {}
        for names, pace in finished:
            for name in names:
                self._seen.setdefault(name, []).append(pace)

    def of(self, job: StageJob) -> Pace | None:
        """(least, most), or None."""
        paces = next((self._seen[name] for name in _names_of(job) if name in self._seen), None)
        return (min(paces), max(paces)) if paces else None


def _names(kind: str, stage: str, task: str) -> Names:
    return (kind, stage, task), (kind,)


def _names_of(job: StageJob) -> Names:
    return _names(job.kind.value, job.stage.stage.value if job.stage else "", job.task.name)


def like_of(ref: CommittedRef) -> Mapping[str, Any]:
    """What a result says of its job (core/pace.py, likeness); {} where an older version did not."""
    return result_of(ref).like


def samples_done(ref: CommittedRef, global_batch: int) -> int:
    """Samples that a finished job of so large steps went through; 0 where the result does not say."""
    return result_of(ref).samples_done(global_batch)


def seconds_taken(ref: CommittedRef) -> float:
    """Seconds that its worker group worked on it; 0 where the result does not say."""
    return result_of(ref).working_seconds


def _pace(ref: CommittedRef, global_batch: int) -> float:
    """Seconds a sample; 0 where the result does not say."""
    samples = samples_done(ref, global_batch)
    return seconds_taken(ref) / samples if samples else 0.0


def _steps(job: StageJob, manifests: Mapping[tuple[str, str], ShardManifest]) -> int:
    if job.stage is None:
        return 0
    samples = manifests[job.task.dataset, job.task.train].samples
    return job.budget.steps(math.ceil(samples / job.budget.global_batch))


def _bytes(job: StageJob, steps: int, manifests: Mapping[tuple[str, str], ShardManifest], buffer_bytes: int) -> int:
    if not job.splits:
        return 0
    val = manifests[job.task.dataset, job.task.val if job.stage else job.task.scored]
    passes = job.budget.validations + 1 if job.stage else len(job.views)
    if job.samples:  # of a few shards (core/sampling.py, fixed_sample): as many bytes as the samples have, at least
        return sum(val.size * job.samples.get(view, job.split_samples) // job.split_samples for view in job.views)
    read = val.size * (1 if val.size <= buffer_bytes else passes)
    if job.stage:
        train = manifests[job.task.dataset, job.task.train]
        epochs = steps * job.budget.global_batch / max(1, train.samples)
        read += int(train.size * (min(1.0, epochs) if train.size <= buffer_bytes else epochs))
    return read
