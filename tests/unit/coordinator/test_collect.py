"""Garbage collection from outside: only what nothing can use, never under a living coordinator, and a kill changes nothing."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from unittest import mock

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from atlas_dist.coordinator.collect import Survey, collect, survey
from atlas_dist.core.attempts import Assignment, Blob, CommittedRef, Failure, FailureKind
from atlas_dist.core.records import Abandon, Commit, Dispatch, Elect, Fail
from atlas_dist.errors import FencedError
from atlas_dist.runs import layout
from atlas_dist.runs.requests import RequestKind
from atlas_dist.runs.results import point_to
from atlas_dist.runs.status import Phase, load_run
from atlas_dist.store.artifacts import save_checkpoint
from atlas_dist.store.local import LocalStore
from atlas_dist.store.objects import MemoryStore
from atlas_dist.store.settle import Patience
from tests.chaos.fakes import counted_ids
from tests.chaos.judge import judge, objects_of
from tests.unit.coordinator.test_coordinator import World


class Killed(BaseException):
    """The collector was killed here."""


def swept(world: World, run: str = "r", **options: object) -> Survey:
    world.people += 1
    return collect(world.store, run, world.clock, counted_ids(f"gc{world.people}x"), **options)  # type: ignore[arg-type]


def tries(world: World, failures: int) -> Callable[[Assignment], Failure | None]:
    """Every job fails so many times, each time a step further, with a checkpoint left behind."""
    seen: dict[str, int] = {}

    def outcome(assignment: Assignment) -> Failure | None:
        job = assignment.job.key
        seen[job] = seen.get(job, 0) + 1
        save_checkpoint(world.store, assignment.prefix, seen[job], {"state.bin": b"s" * 100})
        return Failure(FailureKind.PREEMPTED, "taken away", seen[job]) if seen[job] <= failures else None

    return outcome


def halted(world: World, run: str = "r") -> None:
    """A run of which two attempts failed and a third is under way when its process is killed."""
    failing = tries(world, 2)

    def outcome(assignment: Assignment) -> Failure | None:
        world.dispatchers[-1].hold = len(world.dispatchers[-1].started) == 2
        return failing(assignment)

    world.outcome = outcome
    coordinator = world.coordinator(run)
    coordinator.open()
    for _ in range(50):
        coordinator.tick()
        world.clock.sleep(10.0)
    assert len(world.dispatchers[-1].started) == 3
    world.outcome = lambda _: None


def test_a_run_that_is_whole_has_nothing_to_free_and_nobody_is_elected() -> None:
    world = World(tasks=2)
    world.live(world.coordinator())
    before = objects_of(world.store)
    found = swept(world)
    assert (found.garbage, found.kept, found.unknown) == ((), (), ())
    assert objects_of(world.store) == before


def test_what_an_unfinished_run_may_still_use_stays() -> None:
    world = World()
    halted(world)
    world.clock.sleep(100.0)
    before = objects_of(world.store)
    found = swept(world)
    assert found.garbage == ()
    assert sorted(each.why for each in found.kept) == [
        "it failed (preempted); the run may go on from its checkpoints",
        "it failed (preempted); the run may go on from its checkpoints",
    ]
    assert objects_of(world.store) == before
    assert world.live(world.coordinator()).phase is Phase.COMPLETE


def test_a_cancelled_run_gives_everything_back_that_is_not_committed() -> None:
    world = World(tasks=2)
    first = world.coordinator()
    first.open()
    for _ in range(3):
        first.tick()
    world.dispatchers[-1].outcome = tries(world, 9)
    world.ask(RequestKind.CANCEL)
    for _ in range(20):
        first.tick()
        world.clock.sleep(10.0)
    first.close()
    committed = {f"{c.prefix}/{b.name}" for c in world.records(Commit) for b in c.blobs}
    assert committed
    left = (
        {k for k in objects_of(world.store) if "/attempts/" in k}
        - committed
        - {f"{c.prefix}/RESULT" for c in world.records(Commit)}
    )
    swept(world)
    now = set(objects_of(world.store))
    assert committed <= now
    assert not left & now


def crashed_before_cleaning(world: World) -> None:
    """A complete run whose leader was killed each time it was about to delete something."""
    world.outcome = tries(world, 2)
    with mock.patch("atlas_dist.coordinator.leader.Leader._clean", lambda _: None):
        assert world.live(world.coordinator()).phase is Phase.COMPLETE


def test_what_a_dead_leader_left_is_freed_and_the_ledger_says_so_first() -> None:
    world = World()
    crashed_before_cleaning(world)
    look = survey(world.store, "r", world.clock)
    assert {each.why for each in look.garbage} == {
        "checkpoints of an attempt that is committed",
        "it was given up, but not all of it was deleted",
    }
    freed = swept(world)
    assert freed.size == look.size > 0
    left = [k for k in objects_of(world.store) if "/checkpoints/" in k]
    assert left == []
    judge(world.store, {"r": len(world.plan.jobs)})
    assert swept(world).garbage == (), "the second time there is nothing"
    assert world.live(world.coordinator()).phase is Phase.COMPLETE


def test_an_attempt_that_nobody_gave_up_is_recorded_as_given_up_before_it_goes() -> None:
    """A second run adopted the job while an attempt of its own was under way; then its process was killed."""
    world = World()
    crashed_before_cleaning(world)
    job = world.records(Commit)[0].job
    coordinator = world.coordinator("s")
    with mock.patch("atlas_dist.coordinator.leader.verified_fact", lambda *_: None):
        world.dispatchers[-1].hold = True
        coordinator.open()
        coordinator.tick()
    (stray,) = world.records(Dispatch, "s")
    assert stray.job == job
    world.store.put(f"{stray.prefix}/adapter.safetensors", b"half")
    world.clock.sleep(100.0)
    assert survey(world.store, "s", world.clock).garbage == (), "its own ledger does not have the job yet"
    # The next leader adopts instead of waiting; it dies before it abandons the attempt.
    with mock.patch("atlas_dist.coordinator.leader.Leader._abandon", side_effect=Killed), pytest.raises(Killed):
        world.live(world.coordinator("s"))
    world.clock.sleep(100.0)
    swept(world, "s")
    assert [a.attempt for a in world.records(Abandon, "s")] == [stray.attempt]
    assert not [k for k in objects_of(world.store) if k.startswith(stray.prefix)]


def test_a_living_coordinator_is_left_in_peace() -> None:
    world = World()
    crashed_before_cleaning(world)
    world.store.put(layout.beat("r", 1), b'{"beat":1}')
    beats = iter(range(2, 1000))
    sleep = world.clock.sleep

    def beating(seconds: float) -> None:
        sleep(seconds)
        world.store.put(layout.beat("r", 1), b'{"beat":%d}' % next(beats))

    world.clock.sleep = beating  # type: ignore[method-assign]
    before = len(load_run(world.store, "r")[1])
    with pytest.raises(FencedError, match="coordinator at work"):
        swept(world)
    assert len(load_run(world.store, "r")[1]) == before


def test_a_coordinator_that_was_only_asleep_stops_at_its_next_word() -> None:
    world = World(tasks=2)
    world.outcome = tries(world, 1)
    zombie = world.coordinator()
    zombie.open()
    with mock.patch("atlas_dist.coordinator.leader.Leader._clean", lambda _: None):
        while not world.records(Commit):
            zombie.tick()
            world.clock.sleep(10.0)
    world.clock.sleep(100.0)
    assert swept(world).garbage
    with pytest.raises(FencedError):
        zombie.tick()
    zombie.close()
    assert world.live(world.coordinator()).phase is Phase.COMPLETE
    judge(world.store, {"r": len(world.plan.jobs)})


def test_young_garbage_waits() -> None:
    world = World()
    crashed_before_cleaning(world)
    assert swept(world, older_than_s=1e6).garbage == ()
    assert survey(world.store, "r", world.clock, older_than_s=1e6).young
    world.clock.sleep(2e6)
    assert swept(world, older_than_s=1e6).garbage


def test_a_folder_that_no_record_speaks_of_is_named_and_left() -> None:
    world = World()
    crashed_before_cleaning(world)
    world.store.put("runs/r/attempts/mine/notes.txt", b"keep me")
    (stranger,) = swept(world).unknown
    assert (stranger.attempt, stranger.files, stranger.size) == ("mine", 1, 7)
    assert world.store.get("runs/r/attempts/mine/notes.txt") == b"keep me"


def test_what_a_pointer_names_stays_whatever_its_ledger_says() -> None:
    world = World()
    halted(world)
    victim = world.records(Fail)[0]
    prefix = layout.attempt("r", victim.attempt)
    ref = CommittedRef(victim.job, victim.attempt, prefix, (Blob("a.json", 2, "0" * 64),), {})
    point_to(world.store, "other", ref, world.clock, Patience())
    world.ask(RequestKind.CANCEL)
    world.clock.sleep(100.0)
    world.live(world.coordinator())
    (kept,) = swept(world).kept
    assert kept.attempt == victim.attempt
    assert "other runs may use it" in kept.why


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 60), st.booleans())
def test_a_collector_killed_at_any_write_or_delete_loses_nothing(at: int, finished: bool) -> None:
    """Killed before or after any one of its writes; another one finishes; the run completes with everything it had committed."""
    world = World(tasks=1)
    if finished:
        crashed_before_cleaning(world)
    else:
        halted(world)
        world.clock.sleep(100.0)
        world.ask(RequestKind.CANCEL)
        world.live(world.coordinator())
    facts = {f"{c.prefix}/{b.name}": b.sha256 for c in world.records(Commit) for b in c.blobs}
    left = iter(range(at))
    originals = {name: getattr(world.store, name) for name in ("create", "put", "delete")}

    def mortal(name: str) -> Callable[..., None]:
        def call(*words: object) -> None:
            if next(left, None) is None:
                raise Killed
            originals[name](*words)

        return call

    with mock.patch.multiple(world.store, **{name: mortal(name) for name in originals}), suppress(Killed):
        swept(world)
    world.clock.sleep(100.0)
    abandoned = {a.attempt for a in world.records(Abandon)}
    swept(world)
    assert abandoned <= {a.attempt for a in world.records(Abandon)}
    assert survey(world.store, "r", world.clock).garbage == ()
    now = objects_of(world.store)
    assert facts.keys() <= now.keys()
    checker = judge(world.store, {"r": len(world.plan.jobs)} if finished else {})
    assert all(checker.frozen[key] == digest for key, digest in facts.items())


def test_half_written_files_of_a_dead_process_go_and_a_writing_ones_stay(tmp_path: Path) -> None:
    store = LocalStore(tmp_path)
    world = World()
    world.store = store  # type: ignore[assignment]
    world.live(world.coordinator())
    folder = tmp_path / world.records(Commit)[0].prefix
    old, new = folder / ".tmp-1-dead", folder / ".tmp-2-alive"
    for path in (old, new):
        path.write_bytes(b"half")
    os.utime(old, (world.clock.wall() - 7200,) * 2)
    os.utime(new, (world.clock.wall() - 60,) * 2)
    assert [half.size for half in swept(world).halves] == [4]
    assert not old.exists()
    assert new.exists()
    judge(store, {"r": len(world.plan.jobs)})


def test_only_a_store_with_such_files_is_asked_for_them() -> None:
    world = World()
    crashed_before_cleaning(world)
    assert isinstance(world.store, MemoryStore)
    assert survey(world.store, "r", world.clock).halves == ()
    assert [type(e.record) for e in load_run(world.store, "r")[1]].count(Elect) == 1
