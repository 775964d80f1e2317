"""Decisions: the chain first, fairly, never blocked by what hangs off it; each failure by its own rule; each with its reason."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from atlas_dist.core.attempts import Blob, FailureKind
from atlas_dist.core.ledger import GENESIS, Entry, fold
from atlas_dist.core.plan import Plan
from atlas_dist.core.records import Begin, Commit, Dispatch, Elect, Fail, Halt, Pause, Quarantine, Record, Resume
from atlas_dist.core.schedule import (
    AbandonAttempt,
    CancelAttempt,
    Capacity,
    FinishRun,
    Frontier,
    HaltRun,
    Pool,
    QuarantineJob,
    StartJob,
    infeasible,
    next_actions,
)
from atlas_dist.core.state import JobStatus, RunState
from atlas_dist.core.types import Work
from tests.chaos.plans import small_plan

NOW = 1_000_000.0


class Story:
    """Builds a ledger step by step."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.state = fold(RunState(), [Entry(0, 0, "w", "n", GENESIS, NOW, Begin("r", "s", "p"))])
        self.add(Elect("x"))

    def add(self, record: Record, at: float = NOW) -> None:
        self.state = fold(self.state, [Entry(self.state.next_seq, 1, "w", "n", GENESIS, at, record)])

    def start(self, job: str) -> str:
        attempt = f"{job}-e1-{len(self.state.job(job).attempts) + 1}"
        self.add(Dispatch(job, attempt, f"runs/r/attempts/{attempt}", "main", "why"))
        return attempt

    def commit(self, job: str) -> None:
        running = self.state.job(job).running
        attempt = running.id if running else self.start(job)
        self.add(Commit(job, attempt, f"runs/r/attempts/{attempt}", (Blob("x", 1, "0" * 64),), {}))

    def fail(self, job: str, kind: FailureKind, step: int = 0, at: float = NOW) -> None:
        running = self.state.job(job).running
        self.add(Fail(job, running.id if running else self.start(job), kind, "it broke", step), at)

    def decide(self, free: int = 1, total: int | None = None, now: float = NOW + 1e6) -> list[Any]:
        capacity = Capacity((Pool("main", free, total or free),))
        return next_actions(self.plan, self.state, capacity, now)

    def starts(self, free: int = 1, now: float = NOW + 1e6) -> list[str]:
        return [self.plan.jobs[a.job].label for a in self.decide(free, now=now) if isinstance(a, StartJob)]


def by_label(plan: Plan, label: str) -> str:
    return next(key for key, job in plan.jobs.items() if job.label == label)


def test_the_chain_comes_first_and_evaluations_backfill() -> None:
    story = Story(small_plan(2, downstream=1))
    assert story.starts(free=8) == ["seq0/1 task0 stage2"]
    story.commit(by_label(story.plan, "seq0/1 task0 stage2"))
    assert story.starts(free=1) == ["seq0/2 task1 stage1"]
    assert story.starts(free=8) == ["seq0/2 task1 stage1", "seq0/1 eval task0"]


def test_backfill_leaves_a_slot_for_a_chain_that_waits_for_its_retry() -> None:
    """A chain job in back-off keeps its slot: what hangs off the chain never blocks it."""
    story = Story(small_plan(2))
    story.commit(by_label(story.plan, "seq0/1 task0 stage2"))
    story.fail(by_label(story.plan, "seq0/2 task1 stage1"), FailureKind.STORE, at=NOW)
    assert story.starts(free=1, now=NOW + 1) == []
    assert story.starts(free=2, now=NOW + 1) == ["seq0/1 eval task0"]
    assert story.starts(free=1, now=NOW + 3) == ["seq0/2 task1 stage1"]


def test_backfill_prefers_a_pool_of_its_own() -> None:
    story = Story(small_plan(2))
    story.commit(by_label(story.plan, "seq0/1 task0 stage2"))
    pools = (Pool("main", 1, 1), Pool("small", 1, 1, takes=frozenset({Work.EVALUATION})))
    actions = next_actions(story.plan, story.state, Capacity(pools), NOW)
    assert [(story.plan.jobs[a.job].label, a.pool) for a in actions if isinstance(a, StartJob)] == [
        ("seq0/2 task1 stage1", "main"),
        ("seq0/1 eval task0", "small"),
    ]


def test_each_kind_of_work_goes_to_a_pool_that_takes_it() -> None:
    """Also when that pool is busy: a stage never runs where its kind is not taken."""
    story = Story(small_plan(1, downstream=1))
    plan = story.plan
    story.commit(by_label(plan, "seq0/1 task0 stage2"))

    def decide(big: int, small: int) -> dict[str, str]:
        pools = (
            Pool("big", big, 1, ranks=8, takes=frozenset({Work.UPSTREAM})),
            Pool("small", small, 1, takes=frozenset({Work.EVALUATION, Work.TRANSFER})),
        )
        actions = next_actions(plan, story.state, Capacity(pools), NOW)
        return {plan.jobs[a.job].label: a.pool for a in actions if isinstance(a, StartJob)}

    assert decide(1, 1) == {"seq0/1 eval task0": "small"}
    assert decide(1, 2) == {"seq0/1 eval task0": "small", "seq0/transfer down0 stage1": "small"}
    assert decide(1, 0) == {}


def test_a_pool_of_any_size_takes_work_while_it_sits_at_its_smaller_size() -> None:
    story = Story(small_plan(1))
    smaller = Capacity((Pool("main", 1, 1, ranks=2, limit=8),))
    assert [type(a) for a in next_actions(story.plan, story.state, smaller, NOW)] == [StartJob]


def test_several_sequences_advance_in_step() -> None:
    """Fairness: with one slot, no sequence gets two tasks ahead of another."""
    plan = small_plan(3, sequences=3)
    story = Story(plan)
    ahead: dict[str, int] = {}
    while labels := [x for x in story.starts() if "stage2" in x or "stage1" in x]:
        label = labels[0]
        story.commit(by_label(plan, label))
        if "stage2" in label:
            ahead[label[:4]] = int(label[5])
            if len(ahead) == 3:
                assert max(ahead.values()) - min(ahead.values()) <= 1
    assert set(ahead.values()) == {3}


def test_a_taken_attempt_is_tried_again_until_five_got_nowhere() -> None:
    story = Story(small_plan(1))
    job = next(iter(story.plan.jobs))
    for _ in range(4):
        story.fail(job, FailureKind.PREEMPTED, step=0)
        assert [type(a) for a in story.decide()] == [StartJob]
    story.fail(job, FailureKind.PREEMPTED, step=3)
    for _ in range(5):
        assert [a for a in story.decide() if isinstance(a, StartJob)]
        story.fail(job, FailureKind.PREEMPTED, step=3)
    (verdict,) = [a for a in story.decide() if isinstance(a, QuarantineJob)]
    assert "5 attempts in a row" in verdict.reason
    assert not [a for a in story.decide() if isinstance(a, StartJob)]


def test_store_trouble_backs_off_for_ever() -> None:
    story = Story(small_plan(1))
    job = next(iter(story.plan.jobs))
    waits = []
    for _ in range(12):
        story.fail(job, FailureKind.STORE, at=NOW)
        waits.append(next(s for s in (0, 1, 2, 4, 8, 16, 32, 64, 128, 256, 300, 301) if story.starts(now=NOW + s)))
    assert waits == [2, 4, 8, 16, 32, 64, 128, 256, 300, 300, 300, 300]


def test_a_clock_that_jumps_back_never_delays_a_retry() -> None:
    story = Story(small_plan(1))
    story.fail(next(iter(story.plan.jobs)), FailureKind.STORE, at=NOW)
    assert story.starts(now=NOW - 1e6)


def test_nonfinite_replays_once_then_halts() -> None:
    story = Story(small_plan(1))
    job = next(iter(story.plan.jobs))
    story.fail(job, FailureKind.NONFINITE, 7)
    assert [type(a) for a in story.decide(now=NOW)] == [StartJob]
    story.fail(job, FailureKind.NONFINITE, 9)
    assert [type(a) for a in story.decide(now=NOW)] == [StartJob]
    story.fail(job, FailureKind.NONFINITE, 7)
    (halt,) = story.decide()
    assert isinstance(halt, HaltRun)
    assert "step 7 was not finite again" in halt.reason


def test_what_the_job_raises_is_tried_three_times() -> None:
    story = Story(small_plan(1))
    job = next(iter(story.plan.jobs))
    for _ in range(2):
        story.fail(job, FailureKind.POISON)
        assert [type(a) for a in story.decide()] == [StartJob]
    story.fail(job, FailureKind.POISON)
    assert isinstance(story.decide()[0], QuarantineJob)


def test_a_broken_device_counts_as_taken_away() -> None:
    """A new process has it whole again; where none has, the job is given up like one whose nodes always go."""
    story = Story(small_plan(1))
    job = next(iter(story.plan.jobs))
    for _ in range(2):
        story.fail(job, FailureKind.DEVICE, step=0)
        story.fail(job, FailureKind.PREEMPTED, step=0)
        assert [type(a) for a in story.decide()] == [StartJob]
    story.fail(job, FailureKind.DEVICE, step=0)
    (verdict,) = [a for a in story.decide() if isinstance(a, QuarantineJob)]
    assert "5 attempts in a row" in verdict.reason


def test_who_stands_still_at_the_same_step_three_times_is_given_up() -> None:
    """Each such attempt has cost a minute or more of every worker; one that got further in between begins to count anew."""
    story = Story(small_plan(1))
    job = next(iter(story.plan.jobs))
    for step in (4, 4, 9, 9):
        story.fail(job, FailureKind.STALLED, step=step)
        assert story.starts()
    story.fail(job, FailureKind.STALLED, step=9)
    (verdict,) = [a for a in story.decide() if isinstance(a, QuarantineJob)]
    assert "stood still 3 times" in verdict.reason
    story.add(Resume("q", "the cable is mended"))
    assert story.starts()


def test_what_does_not_fit_is_tried_at_once_in_smaller_pieces() -> None:
    story = Story(small_plan(1))
    job = next(iter(story.plan.jobs))
    for halvings in range(1, 12):
        story.fail(job, FailureKind.MEMORY, step=0)
        (start,) = [a for a in story.decide(now=NOW) if isinstance(a, StartJob)]
        assert f"with 1/{2**halvings} of the micro batch" in start.reason, "and the run says so"
    story.fail(job, FailureKind.MEMORY, step=0)
    assert next(type(a) for a in story.decide()) is QuarantineJob


def test_fatal_halts_at_once() -> None:
    story = Story(small_plan(1))
    story.fail(next(iter(story.plan.jobs)), FailureKind.FATAL)
    (halt,) = story.decide()
    assert isinstance(halt, HaltRun)
    assert "it broke" in halt.reason


def test_a_quarantined_evaluation_does_not_stop_the_chain() -> None:
    story = Story(small_plan(2))
    story.commit(by_label(story.plan, "seq0/1 task0 stage2"))
    score = by_label(story.plan, "seq0/1 eval task0")
    story.fail(score, FailureKind.POISON)
    story.add(Quarantine(score, "x"))
    assert story.starts(free=4) == ["seq0/2 task1 stage1"]


@pytest.mark.parametrize("stop", [Pause("q", "asked"), Halt("bad")])
def test_a_stopped_run_stops_what_runs_and_starts_nothing(stop: Record) -> None:
    story = Story(small_plan(1))
    attempt = story.start(next(iter(story.plan.jobs)))
    story.add(stop)
    (action,) = story.decide()
    assert isinstance(action, CancelAttempt)
    assert action.attempt == attempt


def test_garbage_is_abandoned_and_a_complete_run_finishes() -> None:
    story = Story(small_plan(1))
    first = next(iter(story.plan.jobs))
    story.fail(first, FailureKind.PREEMPTED)
    for job in story.plan.jobs:
        story.commit(job)
    assert [type(a) for a in story.decide()] == [AbandonAttempt, FinishRun]


def test_worker_groups_that_can_never_fit_are_named() -> None:
    plan = small_plan(1)
    assert infeasible(plan, Capacity((Pool("main", 1, 1, ranks=2, limit=2),))) == []
    assert infeasible(plan, Capacity((Pool("main", 0, 0, ranks=2),))) == []
    (first, *_) = infeasible(plan, Capacity((Pool("main", 1, 1, ranks=8, limit=2),)))
    assert "needs 8 workers at once; the cluster can never give more than 2" in first
    (only,) = infeasible(plan, Capacity((Pool("main", 1, 1, takes=frozenset({Work.UPSTREAM})),)))
    assert only == "no feasible pool takes evaluation jobs"


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_any_history_keeps_the_rules(data: st.DataObject) -> None:
    """Only open jobs start, none twice, never more than there are slots, each with a reason; a kept frontier is a built one."""
    plan = small_plan(
        data.draw(st.integers(1, 3)), downstream=data.draw(st.integers(0, 1)), sequences=data.draw(st.integers(1, 2))
    )
    story, kept = Story(plan), Frontier(plan)
    for _ in range(data.draw(st.integers(0, 40))):
        free = data.draw(st.integers(0, 3))
        pools = Capacity((Pool("main", free, 3),))
        actions = next_actions(plan, story.state, pools, NOW + 1e6, frontier=kept)
        assert actions == next_actions(plan, story.state, pools, NOW + 1e6)
        assert all(a.reason for a in actions)
        starts = [a.job for a in actions if isinstance(a, StartJob)]
        assert len(starts) == len(set(starts)) <= free
        for job in starts:
            assert story.state.job(job).status is JobStatus.PENDING
            assert all(story.state.job(p).committed for p in plan.jobs[job].parents)
        for action in actions:
            if isinstance(action, QuarantineJob):
                story.add(Quarantine(action.job, action.reason))
        if not starts:
            break
        job = data.draw(st.sampled_from(starts))
        if data.draw(st.booleans()):
            story.commit(job)
            kept.settle(job)
        else:
            story.fail(
                job,
                data.draw(
                    st.sampled_from([kind for kind in FailureKind if kind not in (FailureKind.NONFINITE, FailureKind.FATAL)])
                ),
            )
