"""One coordinator and several: attach, follow, take over, refuse, stop and go on."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import pytest

from atlas_dist.coordinator.coordinator import Coordinator
from atlas_dist.coordinator.settings import CoordinatorSettings
from atlas_dist.core.attempts import Assignment, Failure, FailureKind
from atlas_dist.core.records import Adopt, Commit, Dispatch, Elect, Fail, Halt, Quarantine
from atlas_dist.core.schedule import Capacity, Pool
from atlas_dist.errors import ConfigError, FencedError, Paused, StoreError, TrainingError, UnknownOutcome
from atlas_dist.redact import BLOT, redact, redact_json
from atlas_dist.runs.requests import RequestKind, ask
from atlas_dist.runs.status import CoordinatorRole, Phase, RunStatus, TaskState, load_run, task_lines
from atlas_dist.store.artifacts import save_checkpoint
from atlas_dist.store.objects import MemoryStore
from atlas_dist.store.settle import Patience
from tests.chaos.fakes import FakeClock, FakeDispatcher, counted_ids, train
from tests.chaos.judge import judge
from tests.chaos.plans import small_plan


class World:
    """A store, a clock, and as many coordinators as a test wants."""

    def __init__(self, tasks: int = 1, outcome: Callable[[Assignment], Failure | None] = lambda _: None) -> None:
        self.store = MemoryStore("test")
        self.clock = FakeClock()
        self.plan = small_plan(tasks)
        self.outcome = outcome
        self.people = 0
        self.heard: list[tuple[str, Mapping[str, Any]]] = []
        self.dispatchers: list[FakeDispatcher] = []

    def coordinator(self, run: str = "r", **options: Any) -> Coordinator:
        self.people += 1
        dispatcher = FakeDispatcher(self.store, outcome=self.outcome)
        self.dispatchers.append(dispatcher)
        return Coordinator(
            run,
            self.plan,
            self.store,
            dispatcher,
            ids=counted_ids(f"p{self.people}x"),
            clock=self.clock,
            log_sink=lambda event, fields: self.heard.append((event, fields)),
            **options,
        )

    def live(self, coordinator: Coordinator, rounds: int = 200) -> RunStatus:
        """Tick until it is done."""
        status = coordinator.open()
        for _ in range(rounds):
            if status.done:
                break
            status = coordinator.tick()
            self.clock.sleep(1.0)
        coordinator.close()
        return status

    def records(self, kind: type, run: str = "r") -> list[Any]:
        return [e.record for e in load_run(self.store, run)[1] if isinstance(e.record, kind)]

    def ask(self, kind: RequestKind) -> None:
        self.people += 1
        ask(self.store, "r", kind, "asked", clock=self.clock, new_id=counted_ids(f"ask{self.people}x"))


def test_a_run_completes_and_running_it_again_does_nothing() -> None:
    world = World(tasks=2)
    assert world.live(world.coordinator()).phase is Phase.COMPLETE
    entries = load_run(world.store, "r")[1]
    assert world.live(world.coordinator()).phase is Phase.COMPLETE
    assert load_run(world.store, "r")[1] == entries
    judge(world.store, {"r": len(world.plan.jobs)})
    assert {line.state for line in task_lines(world.plan, load_run(world.store, "r")[0])} == {TaskState.EVALUATED}


class _JumpingClock(FakeClock):
    """The clock on the wall is set an hour back and forth while a run learns; the one that measures is not."""

    def __init__(self) -> None:
        super().__init__()
        self.looks = 0

    def wall(self) -> float:
        self.looks += 1
        return self.now + (0.0, 3600.0, -3600.0, -86400.0)[self.looks // 5 % 4]


def test_a_clock_that_jumps_changes_nothing() -> None:
    """Neither way: waits after failures are short, and the leader stays the leader."""
    left = ["poison", "poison"]

    def outcome(_: Assignment) -> Failure | None:
        return Failure(FailureKind.POISON, left.pop(), 0) if left else None

    calm, jumping = World(tasks=2), World(tasks=2, outcome=outcome)
    jumping.clock = _JumpingClock()
    began = jumping.clock.monotonic()
    assert calm.live(calm.coordinator()).phase is Phase.COMPLETE
    assert jumping.live(jumping.coordinator()).phase is Phase.COMPLETE
    assert jumping.clock.monotonic() - began < 600
    assert len(jumping.records(Elect)) == 1
    judge(jumping.store, {"r": len(jumping.plan.jobs)})

    def blobs(world: World) -> dict[str, Any]:
        return {c.job: {b.name: b.sha256 for b in c.blobs if b.name != "trace.json"} for c in world.records(Commit)}

    assert blobs(jumping) == blobs(calm)


def test_another_run_reuses_what_was_learnt() -> None:
    """The key names everything that a result depends on: nothing is trained twice."""
    world = World(tasks=2)
    world.live(world.coordinator("first"))
    assert world.live(world.coordinator("second")).phase is Phase.COMPLETE
    assert world.dispatchers[1].started == []
    assert len(world.records(Adopt, "second")) == len(world.plan.jobs)
    judge(world.store, {"first": len(world.plan.jobs), "second": len(world.plan.jobs)})


def test_a_damaged_fact_of_another_run_is_trained_afresh() -> None:
    world = World()
    world.live(world.coordinator("first"))
    victim = world.records(Commit, "first")[0]
    world.store.put(f"{victim.prefix}/{victim.blobs[0].name}", b"x" * victim.blobs[0].size)
    assert world.live(world.coordinator("second")).phase is Phase.COMPLETE
    assert [d.job for d in world.records(Dispatch, "second")] == [victim.job]


def test_every_decision_is_told_with_its_reason() -> None:
    world = World()
    world.live(world.coordinator())
    told = [(event, fields) for event, fields in world.heard if event == "dispatch"]
    assert told
    assert all(fields["reason"] for _, fields in told)


def test_the_same_name_with_another_spec_is_refused_and_the_difference_shown() -> None:
    world = World()
    world.live(world.coordinator(spec={"train": {"lr": 0.1, "seed": 1}}))
    with pytest.raises(ConfigError, match=r"train\.lr: 0\.1 -> 0\.2.*another run name"):
        world.coordinator(spec={"train": {"lr": 0.2, "seed": 1}}).open()
    world.plan = small_plan(2)
    with pytest.raises(ConfigError, match="its jobs differ"):
        world.coordinator(spec={"train": {"lr": 0.1, "seed": 1}}).open()


def test_a_worker_group_that_can_never_fit_is_refused_before_anything_is_written() -> None:
    world = World()
    coordinator = world.coordinator()
    world.dispatchers[0].capacity = lambda: Capacity((Pool("main", 1, 1, ranks=16, limit=4),))  # type: ignore[method-assign]
    with pytest.raises(ConfigError, match="needs 16 workers"):
        coordinator.open()
    assert list(world.store.list("")) == []


def test_the_second_submitter_attaches_and_follows() -> None:
    world = World()
    leader, second = world.coordinator(), world.coordinator()
    world.dispatchers[0].hold = True
    assert leader.open().role is CoordinatorRole.LEADER
    leader.tick()
    assert second.open().role is CoordinatorRole.FOLLOWER
    for _ in range(40):
        world.clock.sleep(1.0)
        leader.tick()
        assert second.tick().role is CoordinatorRole.FOLLOWER
    world.dispatchers[0].hold = False
    while not leader.tick().done:
        world.clock.sleep(1.0)
    world.clock.sleep(3.0)
    assert second.tick().phase is Phase.COMPLETE
    assert world.dispatchers[1].started == []


def test_a_follower_takes_over_from_a_silent_leader_and_the_old_one_stops() -> None:
    """Exit 7, and harms nothing: the zombie's attempts are cancelled, nothing of it is recorded."""
    world = World()
    leader, second = world.coordinator(), world.coordinator()
    world.dispatchers[0].hold = True
    leader.open()
    leader.tick()
    second.open()
    waited = 0
    while second.tick().role is CoordinatorRole.FOLLOWER:
        world.clock.sleep(1.0)
        waited += 1
    assert 15 <= waited <= 18
    with pytest.raises(FencedError) as caught:
        leader.tick()
    assert caught.value.exit_code == 7
    assert world.dispatchers[0].cancelled == [a.attempt for a in world.dispatchers[0].started]
    while not second.tick().done:
        world.clock.sleep(1.0)
    assert [r.reason for r in world.records(Elect)][1].endswith("silent for 16 s")
    judge(world.store, {"r": len(world.plan.jobs)})


def test_a_leader_that_leaves_frees_its_seat_at_once() -> None:
    world = World()
    leader, second = world.coordinator(), world.coordinator()
    world.dispatchers[0].hold = True
    leader.open()
    leader.tick()
    second.open()
    leader.close()
    world.clock.sleep(2.0)
    assert second.tick().role is CoordinatorRole.LEADER


def test_what_finished_while_nobody_led_is_committed_not_repeated() -> None:
    world = World()
    first = world.coordinator()
    first.open()
    first.tick()
    world.dispatchers[0].poll()  # it trains and publishes, but its coordinator never hears of it
    world.clock.sleep(60.0)
    assert world.live(world.coordinator()).phase is Phase.COMPLETE
    job = world.dispatchers[0].started[0].job.key
    assert job not in {a.job.key for a in world.dispatchers[1].started}


def test_pause_stops_and_the_same_command_resumes() -> None:
    world = World()
    coordinator = world.coordinator()
    world.dispatchers[0].hold = True
    coordinator.open()
    coordinator.tick()
    world.ask(RequestKind.PAUSE)
    status = world.live(coordinator)
    assert status.phase is Phase.PAUSED
    error = status.error()
    assert isinstance(error, Paused)
    assert error.exit_code == 8
    assert list(world.store.list("runs/r/inbox/")) == []
    assert world.live(world.coordinator()).phase is Phase.COMPLETE


def test_a_follower_respects_a_pause_that_it_saw_coming() -> None:
    world = World()
    leader, second = world.coordinator(), world.coordinator()
    world.dispatchers[0].hold = True
    leader.open()
    leader.tick()
    second.open()
    world.ask(RequestKind.PAUSE)
    assert world.live(leader).phase is Phase.PAUSED
    world.clock.sleep(3.0)
    assert second.tick().phase is Phase.PAUSED


def test_cancel_is_for_good() -> None:
    world = World()
    world.ask(RequestKind.CANCEL)
    assert world.live(world.coordinator()).phase is Phase.CANCELLED
    assert world.live(world.coordinator()).phase is Phase.CANCELLED
    assert not world.records(Dispatch)


def test_junk_in_the_inbox_is_removed_and_ignored() -> None:
    world = World()
    world.store.put("runs/r/inbox/junk", b"{")
    world.store.put("runs/r/inbox/huge", b"x" * (1 << 17))
    world.store.put("runs/r/inbox/liar", json.dumps({"id": "other", "kind": "pause", "reason": "", "at": 1}).encode())
    assert world.live(world.coordinator()).phase is Phase.COMPLETE
    assert list(world.store.list("runs/r/inbox/")) == []


def test_a_nonfinite_loss_is_replayed_once_from_before_it_and_then_halts_the_run() -> None:
    def outcome(assignment: Assignment) -> Failure | None:
        for step in (10, 20):
            save_checkpoint(world.store, assignment.prefix, step, {"state.bin": b"%d" % step})
        return Failure(FailureKind.NONFINITE, "loss is nan", 15)

    world = World(outcome=outcome)
    status = world.live(world.coordinator())
    assert status.phase is Phase.HALTED
    assert isinstance(status.error(), TrainingError)
    first, second = world.records(Dispatch)
    assert first.resume_from == ""
    assert second.resume_from == f"{first.prefix}/checkpoints/00000010"
    assert world.records(Halt)[0].reason.startswith("step 15 was not finite again")
    world.outcome = lambda _: None
    world.ask(RequestKind.RESUME)
    assert world.live(world.coordinator()).phase is Phase.COMPLETE


def test_a_poisoned_job_is_quarantined_and_resume_tries_it_again() -> None:
    world = World(outcome=lambda _: Failure(FailureKind.POISON, "it raised"))
    status = world.live(world.coordinator())
    assert status.phase is Phase.FAILED
    assert "it raised 3 times" in str(status.error())
    assert len(world.records(Fail)) == 3
    assert len(world.records(Quarantine)) == 1
    assert world.live(world.coordinator()).phase is Phase.FAILED
    world.outcome = lambda _: None
    world.ask(RequestKind.RESUME)
    assert world.live(world.coordinator()).phase is Phase.COMPLETE


def test_a_damaged_upload_is_not_committed_but_tried_again() -> None:
    world = World()
    coordinator = world.coordinator()
    coordinator.open()
    coordinator.tick()
    (assignment,) = world.dispatchers[0].waiting
    events = world.dispatchers[0].poll()
    key = f"{assignment.prefix}/adapter.safetensors"
    data = world.store.get(key)
    world.store.put(key, data[:-1] + bytes([data[-1] ^ 1]))
    world.dispatchers[0].poll = lambda: [*events, *FakeDispatcher.poll(world.dispatchers[0])]  # type: ignore[method-assign]
    assert world.live(coordinator).phase is Phase.COMPLETE
    failed = world.records(Fail)[0]
    assert failed.attempt == assignment.attempt
    assert "damaged" in failed.reason
    judge(world.store, {"r": len(world.plan.jobs)})


def test_spent_files_are_deleted_and_committed_ones_stay() -> None:
    tries: list[str] = []

    def outcome(assignment: Assignment) -> Failure | None:
        save_checkpoint(world.store, assignment.prefix, 1, {"state.bin": b"x"})
        tries.append(assignment.attempt)
        return Failure(FailureKind.PREEMPTED, "gone", len(tries)) if len(tries) == 1 else None

    world = World(outcome=outcome)
    world.live(world.coordinator())
    left = {info.key.split("/")[3] for info in world.store.list("runs/r/attempts/")}
    assert tries[0] not in left
    assert not any("/checkpoints/" in info.key for info in world.store.list("runs/r/attempts/"))
    judge(world.store, {"r": len(world.plan.jobs)})


def test_no_secret_reaches_ledger_or_log(monkeypatch: pytest.MonkeyPatch) -> None:
    """A canary in the environment never shows, whoever quotes it."""
    canary = "canary-5f2e9c"
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", canary)
    world = World(outcome=lambda _: Failure(FailureKind.POISON, f"cannot open s3 with {canary}"))
    world.live(world.coordinator(spec={"note": f"key={canary}"}))
    everything = b"".join(world.store.get(info.key) for info in world.store.list(""))
    assert canary.encode() not in everything
    assert canary not in repr(world.heard)
    assert BLOT.encode() in everything


def test_redaction() -> None:
    environment = {"MY_API_KEY": "abcdef123", "TOKEN": "x", "HOME": "/home/me"}
    assert redact("abcdef123 x /home/me", environment) == f"{BLOT} x /home/me"
    assert redact("s3://user:pass@host/x?X-Amz-Signature=0aF", {}) == f"s3://{BLOT}@host/x?X-Amz-Signature={BLOT}"
    assert redact_json({"a": ["abcdef123", 1]}, environment) == {"a": [BLOT, 1]}


def test_a_status_names_what_is_wrong() -> None:
    world = World()
    status = world.live(world.coordinator())
    assert status.error() is None
    assert "can't go on" in str(replace(status, phase=Phase.FAILED, quarantined={"j": "why"}).error())


def test_a_commit_of_unknown_outcome_ends_the_leader() -> None:
    """Whatever led to the append: going on without knowing would act on a guess."""
    world = World()
    first = world.coordinator()
    first.open()
    first.tick()
    assignment = world.dispatchers[0].waiting[0]
    world.dispatchers[0].hold = True
    world.clock.sleep(60.0)
    second = world.coordinator(settings=CoordinatorSettings(patience=Patience(total_s=1.0)))
    world.dispatchers[1].hold = True
    second.open()
    for _ in range(20):
        second.tick()
        world.clock.sleep(1.0)
        if second.state.job(assignment.job.key).failure:
            break
    train(world.store, assignment, "a zombie")
    create = world.store.create

    def unanswered(key: str, data: bytes) -> None:
        raise UnknownOutcome(key)

    world.store.create = unanswered  # type: ignore[method-assign]
    with pytest.raises(StoreError):
        for event in second.state.running:
            world.dispatchers[1].cancel(event)
        for _ in range(5):
            second.tick()
            world.clock.sleep(10.0)
    world.store.create = create  # type: ignore[method-assign]
    world.clock.sleep(60.0)
    assert world.live(world.coordinator()).phase is Phase.COMPLETE
    judge(world.store, {"r": len(world.plan.jobs)})
