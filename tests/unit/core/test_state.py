"""Where a job stands, as its state alone says it."""

from __future__ import annotations

from dataclasses import replace

import pytest

from atlas_dist.core.attempts import CommittedRef, Failure, FailureKind
from atlas_dist.core.state import Attempt, AttemptStatus, JobState, JobStatus, RunState

FIRST = Attempt("j-e1-1", "j", "runs/r/attempts/j-e1-1", 1)
SECOND = Attempt("j-e2-1", "j", "runs/r/attempts/j-e2-1", 2)
TAKEN, RAISED = Failure(FailureKind.PREEMPTED, "taken", 3), Failure(FailureKind.POISON, "raised", 5)


def failed(attempt: Attempt, failure: Failure) -> Attempt:
    return replace(attempt, status=AttemptStatus.FAILED, failure=failure)


def test_a_result_counts_more_than_a_quarantine_and_both_more_than_an_attempt_under_way() -> None:
    job = JobState("j", (FIRST,))
    assert (JobState("j").status, job.status) == (JobStatus.PENDING, JobStatus.RUNNING)
    given_up = replace(job, quarantined="it raises")
    assert given_up.status is JobStatus.QUARANTINED
    late = replace(given_up, committed=CommittedRef("j", FIRST.id, FIRST.prefix, ()))
    assert late.status is JobStatus.COMMITTED


def test_the_attempt_under_way_and_the_newest_failure_are_found() -> None:
    job = JobState("j", (failed(FIRST, TAKEN), SECOND))
    assert (job.running, job.failure) == (SECOND, TAKEN)
    ended = JobState("j", (failed(FIRST, TAKEN), failed(SECOND, RAISED)))
    assert (ended.running, ended.failure) == (None, RAISED)
    assert JobState("j").failure is None


def test_attempts_are_numbered_from_one_and_those_of_other_runs_not_at_all() -> None:
    job = JobState("j", (FIRST, SECOND))
    assert [job.number(attempt) for attempt in (FIRST.id, SECOND.id, "other-e1-1")] == [1, 2, 0]


def test_a_run_knows_the_jobs_and_attempts_that_were_recorded() -> None:
    run = RunState(jobs={"j": JobState("j", (FIRST, SECOND))}, attempts={FIRST.id: "j", SECOND.id: "j"})
    assert run.attempt(SECOND.id) is SECOND
    assert run.job("k") == JobState("k"), "nothing was recorded of it yet"
    with pytest.raises(KeyError):
        run.attempt("other-e1-1")
