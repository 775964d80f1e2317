"""The dispatcher between coordinator and workers: one job a pool, no lost word, groups that come and go."""

from __future__ import annotations

import threading

import pytest

from atlas_dist.coordinator.dispatch import AttemptProgress, Failed, Finished, Lost
from atlas_dist.coordinator.pool import PoolDispatcher, Waiting
from atlas_dist.core.attempts import Assignment, Failure, FailureKind
from atlas_dist.core.types import Budget, JobKind, StageJob, TaskKind, TaskSpec, Work, WorkerGroupSpec

TASK = TaskSpec("t", TaskKind.SINGLE, 2, 8, "d", "train", "val", "x", "y")


def assignment(attempt: str = "a1") -> Assignment:
    job = StageJob("k", JobKind.TRAIN, TASK, "atlas", 0, (), budget=Budget())
    return Assignment(job=job, attempt=attempt, prefix=f"p/{attempt}", inputs={}, pool="main")


@pytest.fixture
def dispatcher() -> PoolDispatcher:
    return PoolDispatcher([WorkerGroupSpec("main", 2)])


def free(dispatcher: PoolDispatcher) -> int:
    (pool,) = dispatcher.capacity().pools
    assert (pool.ranks, pool.total) == (2, 1)
    return pool.free


def test_a_pool_has_room_only_while_its_workers_sit_idle(dispatcher: PoolDispatcher) -> None:
    assert free(dispatcher) == 0, "nobody has come yet"
    assert dispatcher.lease("main", "g1", 0.0).assignment is None
    assert free(dispatcher) == 1
    dispatcher.start(assignment())
    assert free(dispatcher) == 0
    assert dispatcher.lease("main", "g1", 0.0).assignment == assignment()
    dispatcher.finished("a1")
    assert (free(dispatcher), dispatcher.poll(), dispatcher.poll()) == (1, [Finished("a1")], [])


def test_a_waiting_group_is_woken_by_a_job(dispatcher: PoolDispatcher) -> None:
    leases = []
    waiting = threading.Thread(target=lambda: leases.append(dispatcher.lease("main", "g1", 30.0)))
    waiting.start()
    while not free(dispatcher):
        pass
    dispatcher.start(assignment())
    waiting.join(10)
    assert leases[0].assignment == assignment()


def test_new_workers_mean_that_the_old_ones_work_is_lost(dispatcher: PoolDispatcher) -> None:
    dispatcher.lease("main", "g1", 0.0)
    dispatcher.start(assignment())
    dispatcher.lease("main", "g1", 0.0)
    assert dispatcher.lease("main", "g2", 0.0).assignment is None
    assert dispatcher.poll() == [Lost("a1", "the pool's workers were started again")]
    assert dispatcher.lease("main", "g1", 0.0).assignment is None, "an old group takes its place back, and the others will notice"


def test_the_first_word_about_an_end_is_believed(dispatcher: PoolDispatcher) -> None:
    dispatcher.lease("main", "g1", 0.0)
    dispatcher.start(assignment())
    dispatcher.lease("main", "g1", 0.0)
    poison = Failure(FailureKind.POISON, "it raised")
    dispatcher.failed("a1", poison)
    dispatcher.failed("a1", Failure(FailureKind.PREEMPTED, "the group broke"))
    dispatcher.gone("main", "the trainer ended")
    assert dispatcher.poll() == [Failed("a1", poison)]
    assert free(dispatcher) == 0


def test_cancel_reaches_workers_with_their_next_report(dispatcher: PoolDispatcher) -> None:
    dispatcher.lease("main", "g1", 0.0)
    dispatcher.start(assignment())
    dispatcher.lease("main", "g1", 0.0)
    assert dispatcher.progress(AttemptProgress("a1", 1, 9)) is False
    dispatcher.cancel("a1")
    assert dispatcher.progress(AttemptProgress("a1", 2, 9)) is True
    dispatcher.failed("a1", Failure(FailureKind.PREEMPTED, "stopped", 2))
    assert dispatcher.poll()[-1] == Lost("a1", "stopped")


def test_a_job_nobody_has_begun_is_taken_off_the_dispatcher(dispatcher: PoolDispatcher) -> None:
    dispatcher.lease("main", "g1", 0.0)
    dispatcher.start(assignment())
    dispatcher.cancel("a1")
    assert dispatcher.poll() == [Lost("a1", "cancelled before it began")]
    assert dispatcher.lease("main", "g1", 0.0).assignment is None


def test_closing_sends_groups_home_and_stops_what_runs(dispatcher: PoolDispatcher) -> None:
    dispatcher.lease("main", "g1", 0.0)
    dispatcher.start(assignment())
    dispatcher.lease("main", "g1", 0.0)
    dispatcher.close()
    assert dispatcher.progress(AttemptProgress("a1", 1, 9)) is True
    assert dispatcher.lease("main", "g1", 30.0).go_home


def test_who_is_being_sent_home_is_given_no_other_job(dispatcher: PoolDispatcher) -> None:
    dispatcher.lease("main", "g1", 0.0)
    dispatcher.start(assignment())
    dispatcher.lease("main", "g1", 0.0)
    dispatcher.close()
    dispatcher.failed("a1", Failure(FailureKind.PREEMPTED, "stopped at its next report", 1))
    assert dispatcher.capacity().pools[0].free == 0


def test_a_pool_is_as_large_as_the_group_that_sits_there() -> None:
    """An elastic worker group comes back smaller, and grows again; before anybody has come it counts with its required
    workers."""
    takes = frozenset({Work.EVALUATION})
    dispatcher = PoolDispatcher([WorkerGroupSpec("small", 1, takes=takes), WorkerGroupSpec("main", 4, min_workers=2)])

    def sizes() -> list[tuple[int, int]]:
        return [(pool.ranks, pool.limit) for pool in dispatcher.capacity().pools]

    assert sizes() == [(1, 1), (2, 4)]
    assert [pool.takes for pool in dispatcher.capacity().pools] == [takes, frozenset(Work)]
    for group, world in (("g1", 4), ("g2", 3), ("g3", 4)):
        dispatcher.lease("main", group, 0.0, world=world)
        assert sizes() == [(1, 1), (world, 4)]
    dispatcher.gone("main", "the trainer ended")
    assert sizes() == [(1, 1), (2, 4)]


def test_a_group_on_a_node_that_goes_saves_its_work_and_makes_room_for_another(dispatcher: PoolDispatcher) -> None:
    dispatcher.lease("main", "g1", 0.0)
    dispatcher.start(assignment())
    dispatcher.lease("main", "g1", 0.0)
    dispatcher.leave("main", "g0", "its node is drained")
    assert dispatcher.progress(AttemptProgress("a1", 1, 9)) is False, "that group is gone already"
    dispatcher.leave("main", "g1", "its node is drained")
    assert dispatcher.progress(AttemptProgress("a1", 2, 9)) is True
    dispatcher.failed("a1", Failure(FailureKind.PREEMPTED, "Stopped at step 2 of 9.", 2))
    assert dispatcher.poll()[-1] == Failed(
        "a1", Failure(FailureKind.PREEMPTED, "its node is drained: Stopped at step 2 of 9.", 2)
    )
    assert free(dispatcher) == 0, "it is given no other job"
    assert dispatcher.lease("main", "g1", 30.0).go_home
    assert dispatcher.comes_back("main")
    assert not dispatcher.lease("main", "g2", 0.0).go_home
    assert (free(dispatcher), dispatcher.comes_back("main")) == (1, False)


def test_a_waiting_group_leaves_at_once_and_a_closed_dispatcher_expects_nobody(dispatcher: PoolDispatcher) -> None:
    leases = []
    waiting = threading.Thread(target=lambda: leases.append(dispatcher.lease("main", "g1", 30.0)))
    waiting.start()
    while not free(dispatcher):
        pass
    dispatcher.leave("main", "g1", "its node is drained")
    waiting.join(10)
    assert leases[0].go_home
    dispatcher.close()
    assert not dispatcher.comes_back("main")


def test_a_pool_says_what_it_does(dispatcher: PoolDispatcher) -> None:
    def standing() -> str:
        return dispatcher.capacity().pools[0].standing

    assert standing() == "waits for workers"
    dispatcher.lease("main", "g1", 0.0)
    assert standing() == "idle"
    dispatcher.start(assignment())
    dispatcher.lease("main", "g1", 0.0)
    assert standing() == "works"
    dispatcher.leave("main", "g1", "its node is drained")
    assert standing() == "makes room for other workers: its node is drained"


def test_a_pool_without_workers_says_for_how_long_and_why() -> None:
    """Nobody saw anything for 88 s after a drain: the group had gone, and the pool still counted as at work."""
    clock = [100.0]
    dispatcher = PoolDispatcher([WorkerGroupSpec("main", 2, min_workers=1)], now=lambda: clock[0])
    clock[0] = 110.0
    assert dispatcher.waiting() == (Waiting("main", 2, 1, 10.0),)
    dispatcher.lease("main", "g1", 0.0)
    assert dispatcher.waiting() == ()
    dispatcher.leave("main", "g1", "its node is drained")
    assert dispatcher.waiting() == (), "it is still saving its checkpoint"
    assert dispatcher.lease("main", "g1", 0.0).go_home
    clock[0] = 130.0
    assert dispatcher.waiting() == (Waiting("main", 2, 1, 20.0, "its node is drained"),)
    dispatcher.lease("main", "g2", 0.0)
    assert dispatcher.waiting() == ()
    dispatcher.start(assignment())
    dispatcher.lease("main", "g2", 0.0)
    dispatcher.vacated("main", "g1", "of a group that is gone anyway")
    assert dispatcher.waiting() == ()
    dispatcher.vacated("main", "g2", "a node was lost")
    clock[0] = 135.0
    dispatcher.vacated("main", "g2", "a node was lost")
    assert dispatcher.waiting() == (Waiting("main", 2, 1, 5.0, "a node was lost"),)
    assert dispatcher.capacity().pools[0].standing == "waits for workers: a node was lost"
    dispatcher.lease("main", "g3", 0.0)
    assert (dispatcher.waiting(), dispatcher.poll()) == ((), [Lost("a1", "the pool's workers were started again")])
    dispatcher.gone("main", "the trainer ended")
    assert dispatcher.waiting() == (Waiting("main", 2, 1, 0.0, "the trainer ended"),)
    dispatcher.close()
    assert dispatcher.waiting() == (), "nobody is expected any more"
