"""The desk between coordinator and workers: one job a pool, no lost word, groups that come and go."""

from __future__ import annotations

import threading

import pytest

from atlas_dist.coordinator.dispatch import Failed, Finished, Lost, Progress
from atlas_dist.coordinator.pool import PoolDispatcher
from atlas_dist.core.types import Assignment, Budget, Failure, FailureKind, Gang, JobKind, StageJob, TaskKind, TaskSpec, Work

TASK = TaskSpec("t", TaskKind.SINGLE, 2, 8, "d", "train", "val", "x", "y")


def assignment(attempt: str = "a1") -> Assignment:
    job = StageJob("k", JobKind.TRAIN, TASK, "atlas", 0, (), budget=Budget())
    return Assignment(job=job, attempt=attempt, prefix=f"p/{attempt}", inputs={}, pool="main")


@pytest.fixture
def desk() -> PoolDispatcher:
    return PoolDispatcher([Gang("main", 2)])


def free(desk: PoolDispatcher) -> int:
    (pool,) = desk.capacity().pools
    assert (pool.gang, pool.total) == (2, 1)
    return pool.free


def test_a_pool_has_room_only_while_its_workers_sit_idle(desk: PoolDispatcher) -> None:
    assert free(desk) == 0, "nobody has come yet"
    assert desk.lease("main", "g1", 0.0).assignment is None
    assert free(desk) == 1
    desk.start(assignment())
    assert free(desk) == 0
    assert desk.lease("main", "g1", 0.0).assignment == assignment()
    desk.finished("a1")
    assert (free(desk), desk.poll(), desk.poll()) == (1, [Finished("a1")], [])


def test_a_waiting_group_is_woken_by_a_job(desk: PoolDispatcher) -> None:
    leases = []
    waiting = threading.Thread(target=lambda: leases.append(desk.lease("main", "g1", 30.0)))
    waiting.start()
    while not free(desk):
        pass
    desk.start(assignment())
    waiting.join(10)
    assert leases[0].assignment == assignment()


def test_new_workers_mean_that_the_old_ones_work_is_lost(desk: PoolDispatcher) -> None:
    desk.lease("main", "g1", 0.0)
    desk.start(assignment())
    desk.lease("main", "g1", 0.0)
    assert desk.lease("main", "g2", 0.0).assignment is None
    assert desk.poll() == [Lost("a1", "the pool's workers were started again")]
    assert desk.lease("main", "g1", 0.0).assignment is None, "a ghost takes the seat back, and the others will notice"


def test_the_first_word_about_an_end_is_believed(desk: PoolDispatcher) -> None:
    desk.lease("main", "g1", 0.0)
    desk.start(assignment())
    desk.lease("main", "g1", 0.0)
    poison = Failure(FailureKind.POISON, "it raised")
    desk.failed("a1", poison)
    desk.failed("a1", Failure(FailureKind.PREEMPTED, "the group broke"))
    desk.gone("main", "the trainer ended")
    assert desk.poll() == [Failed("a1", poison)]
    assert free(desk) == 0


def test_cancel_reaches_workers_with_their_next_report(desk: PoolDispatcher) -> None:
    desk.lease("main", "g1", 0.0)
    desk.start(assignment())
    desk.lease("main", "g1", 0.0)
    assert desk.progress(Progress("a1", 1, 9)) is False
    desk.cancel("a1")
    assert desk.progress(Progress("a1", 2, 9)) is True
    desk.failed("a1", Failure(FailureKind.PREEMPTED, "stopped", 2))
    assert desk.poll()[-1] == Lost("a1", "stopped")


def test_a_job_nobody_has_begun_is_taken_off_the_desk(desk: PoolDispatcher) -> None:
    desk.lease("main", "g1", 0.0)
    desk.start(assignment())
    desk.cancel("a1")
    assert desk.poll() == [Lost("a1", "cancelled before it began")]
    assert desk.lease("main", "g1", 0.0).assignment is None


def test_closing_sends_groups_home_and_stops_what_runs(desk: PoolDispatcher) -> None:
    desk.lease("main", "g1", 0.0)
    desk.start(assignment())
    desk.lease("main", "g1", 0.0)
    desk.close()
    assert desk.progress(Progress("a1", 1, 9)) is True
    assert desk.lease("main", "g1", 30.0).go_home


def test_who_is_being_sent_home_is_given_no_other_job(desk: PoolDispatcher) -> None:
    desk.lease("main", "g1", 0.0)
    desk.start(assignment())
    desk.lease("main", "g1", 0.0)
    desk.close()
    desk.failed("a1", Failure(FailureKind.PREEMPTED, "stopped at its next report", 1))
    assert desk.capacity().pools[0].free == 0


def test_a_pool_is_as_large_as_the_group_that_sits_there() -> None:
    """An elastic gang comes back smaller, and grows again; before anybody has come it counts with its fewest."""
    takes = frozenset({Work.EVALUATION})
    desk = PoolDispatcher([Gang("small", 1, takes=takes), Gang("main", 4, least=2)])

    def sizes() -> list[tuple[int, int]]:
        return [(pool.gang, pool.limit) for pool in desk.capacity().pools]

    assert sizes() == [(1, 1), (2, 4)]
    assert [pool.takes for pool in desk.capacity().pools] == [takes, frozenset(Work)]
    for group, world in (("g1", 4), ("g2", 3), ("g3", 4)):
        desk.lease("main", group, 0.0, world=world)
        assert sizes() == [(1, 1), (world, 4)]
    desk.gone("main", "the trainer ended")
    assert sizes() == [(1, 1), (2, 4)]


def test_a_group_on_a_node_that_goes_saves_its_work_and_makes_room_for_another(desk: PoolDispatcher) -> None:
    desk.lease("main", "g1", 0.0)
    desk.start(assignment())
    desk.lease("main", "g1", 0.0)
    desk.leave("main", "g0", "its node is drained")
    assert desk.progress(Progress("a1", 1, 9)) is False, "that group is gone already"
    desk.leave("main", "g1", "its node is drained")
    assert desk.progress(Progress("a1", 2, 9)) is True
    desk.failed("a1", Failure(FailureKind.PREEMPTED, "Stopped at step 2 of 9.", 2))
    assert desk.poll()[-1] == Failed("a1", Failure(FailureKind.PREEMPTED, "its node is drained: Stopped at step 2 of 9.", 2))
    assert free(desk) == 0, "it is given no other job"
    assert desk.lease("main", "g1", 30.0).go_home
    assert desk.comes_back("main")
    assert not desk.lease("main", "g2", 0.0).go_home
    assert (free(desk), desk.comes_back("main")) == (1, False)


def test_a_waiting_group_leaves_at_once_and_a_closed_desk_expects_nobody(desk: PoolDispatcher) -> None:
    leases = []
    waiting = threading.Thread(target=lambda: leases.append(desk.lease("main", "g1", 30.0)))
    waiting.start()
    while not free(desk):
        pass
    desk.leave("main", "g1", "its node is drained")
    waiting.join(10)
    assert leases[0].go_home
    desk.close()
    assert not desk.comes_back("main")


def test_a_pool_says_what_it_does(desk: PoolDispatcher) -> None:
    def standing() -> str:
        return desk.capacity().pools[0].standing

    assert standing() == "waits for workers"
    desk.lease("main", "g1", 0.0)
    assert standing() == "idle"
    desk.start(assignment())
    desk.lease("main", "g1", 0.0)
    assert standing() == "works"
    desk.leave("main", "g1", "its node is drained")
    assert standing() == "makes room for other workers: its node is drained"
