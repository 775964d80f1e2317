"""What was foreseen when a run began, kept beside its ledger; and what came of it.

For people only: nothing is decided by it, and a run without one is whole.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from pydantic import TypeAdapter, ValidationError

from atlas_dist.core.attempts import CommittedRef
from atlas_dist.core.keys import canonical_json
from atlas_dist.core.plan import Plan
from atlas_dist.core.results import result_of
from atlas_dist.core.state import RunState
from atlas_dist.core.types import JobKind, StageJob
from atlas_dist.errors import AlreadyExists, AtlasError
from atlas_dist.report.outlook import Outlook, Pace, samples_done, seconds_taken
from atlas_dist.runs import layout
from atlas_dist.store.artifacts import read_json
from atlas_dist.store.objects import ObjectStore

_LIMIT = 64 << 20


@dataclass(frozen=True)
class Foreseen:
    """Of one job that was to do: samples, (least, most) seconds (None = there was nothing to judge by), and how many workers."""

    samples: int
    seconds: Pace | None
    workers: int


@dataclass(frozen=True)
class Compared:
    """Jobs of one kind that were foreseen and that this run has done since."""

    what: str
    jobs: int
    of: int
    """How many were foreseen, done or not."""
    samples_foreseen: int
    samples: int
    seconds_foreseen: Pace | None
    """None where a job's time was not foreseen."""
    seconds: float
    """That the worker groups spent on them, one after the other."""
    worker_hours_foreseen: Pace | None
    worker_hours: float


def keep(store: ObjectStore, run: str, outlook: Outlook) -> None:
    """Write down what is foreseen of a run, once: whoever resumes it finds it. A store in trouble is passed over: it will be
    heard of soon enough."""
    jobs = {job.job.key: asdict(Foreseen(job.samples, job.seconds, job.workers)) for job in outlook.left}
    try:
        store.create(layout.forecast(run), canonical_json({"jobs": jobs}))
    except AlreadyExists:
        pass
    except AtlasError:
        return


def recall(store: ObjectStore, run: str) -> Mapping[str, Foreseen]:
    """What was foreseen of a run, job by job; {} where nothing was, or where it can't be read."""
    try:
        found: Any = read_json(store, layout.forecast(run), limit=_LIMIT)
        return TypeAdapter(dict[str, Foreseen]).validate_python(found["jobs"])
    except (AtlasError, ValidationError, KeyError, TypeError):
        return {}


def compared(plan: Plan, state: RunState, foreseen: Mapping[str, Foreseen]) -> tuple[Compared, ...]:
    """Foreseen and actual, of learning and of scoring; what this run adopted from another one cost it nothing and is left out."""
    rows = []
    for kind, what in ((JobKind.TRAIN, "learning"), (JobKind.EVAL, "scoring")):
        keys = [key for key, job in plan.jobs.items() if key in foreseen and job.kind is kind]
        keys = [key for key in keys if not state.job(key).adopted_from]
        done = [(foreseen[key], plan.jobs[key], ref) for key in keys if (ref := state.job(key).committed) is not None]
        if done:
            rows.append(_compare(what, len(keys), done))
    return tuple(rows)


def _compare(what: str, of: int, done: Sequence[tuple[Foreseen, StageJob, CommittedRef]]) -> Compared:
    known = [(before.seconds, before.workers) for before, _, _ in done if before.seconds is not None]
    whole = len(known) == len(done)
    taken = [(seconds_taken(ref), result_of(ref).world or before.workers) for before, _, ref in done]
    return Compared(
        what=what,
        jobs=len(done),
        of=of,
        samples_foreseen=sum(before.samples for before, _, _ in done),
        samples=sum(samples_done(ref, job.budget.global_batch) for _, job, ref in done),
        seconds_foreseen=(sum(s[0] for s, _ in known), sum(s[1] for s, _ in known)) if whole else None,
        seconds=sum(seconds for seconds, _ in taken),
        worker_hours_foreseen=(_hours((s[0], w) for s, w in known), _hours((s[1], w) for s, w in known)) if whole else None,
        worker_hours=_hours(taken),
    )


def _hours(spent: Iterable[tuple[float, int]]) -> float:
    return sum(seconds * workers for seconds, workers in spent) / 3600
