"""When a group stands still, who is behind, and who is excused: a clock that the test turns."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest

from atlas_dist.coordinator.stall import Process, Stall, StallWatch
from atlas_dist.pulse import Doing, Pulse

PROCESSES = tuple(Process("node", f"host{rank}", 100 + rank, 7, "/tmp/stacks") for rank in range(2))


@dataclass
class Group:
    """Two ranks that speak every two seconds, unless they are silent."""

    stall_s: float = 60.0
    at: float = 0.0
    world: int = 2
    pulses: dict[int, Pulse] = field(default_factory=dict)
    silent: set[int] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.watch = StallWatch(self.stall_s, lambda: self.at)

    def stand(self, rank: int, doing: Doing = Doing.LEARNING, *, step: int = 5, marks: int = 15, pace_s: float = 1.0) -> None:
        self.pulses[rank] = Pulse("a1", doing, step, marks, pace_s)

    def live(self, seconds: float) -> list[Stall]:
        """So much time goes by; what the watch says meanwhile."""
        found = []
        for _ in range(round(seconds / 2)):
            self.at += 2.0
            for rank, pulse in self.pulses.items():
                if rank not in self.silent:
                    self.watch.heard(rank, self.world, PROCESSES[rank], pulse)
            found += self.watch.look(["a1"])
        return found


def group(**changes: float) -> Group:
    made = Group(**changes)  # type: ignore[arg-type]
    for rank in range(2):
        made.stand(rank)
    return made


def test_who_goes_on_is_let_alone() -> None:
    ranks = group()
    for marks in range(100):
        for rank in range(2):
            ranks.stand(rank, marks=marks)
        assert not ranks.live(20)


def test_a_rank_that_loops_is_named_by_its_marks() -> None:
    ranks = group()
    ranks.stand(0, marks=16)
    assert not ranks.live(60)
    (stall,) = ranks.live(10)
    assert (stall.behind, stall.step) == ((1,), 5)
    assert "rank 1 on host1 is behind (learning after step 5)" in stall.reason
    assert [process.pid for _, process in stall.processes] == [100, 101], "every rank's stacks are wanted"


def test_a_process_that_is_stopped_is_named_by_its_silence() -> None:
    ranks = group()
    ranks.live(4)
    ranks.silent = {0}
    assert not ranks.live(58)
    (stall,) = ranks.live(10)
    assert stall.behind == (0,)
    assert "its process silent for" in stall.reason


def test_it_is_told_once() -> None:
    ranks = group()
    assert len(ranks.live(62)) + len(ranks.live(10)) == 1


def test_equal_marks_name_nobody() -> None:
    (stall,) = group().live(70)
    assert stall.behind == ()
    assert "their stacks tell" in stall.reason


def test_slow_steps_have_ten_of_themselves() -> None:
    ranks = group()
    for rank in range(2):
        ranks.stand(rank, pace_s=20.0)
    assert not ranks.live(200)
    assert ranks.live(10)


@pytest.mark.parametrize("doing", [Doing.STORE, Doing.DATA])
def test_who_waits_for_a_store_is_excused_with_everybody_who_waits_for_him(doing: Doing) -> None:
    ranks = group()
    ranks.stand(0, doing)
    assert not ranks.live(3600)
    ranks.silent = {0}
    assert ranks.live(70), "but not when his process is gone"


def test_after_a_wait_the_full_time_begins_anew() -> None:
    ranks = group()
    ranks.stand(0, Doing.STORE)
    ranks.live(600)
    ranks.stand(0)
    assert not ranks.live(58)
    assert ranks.live(10)


def test_a_first_step_may_take_ten_times_as_long() -> None:
    ranks = group()
    for rank in range(2):
        ranks.stand(rank, Doing.PREPARING, step=0, pace_s=0.0)
    assert not ranks.live(598)
    (stall,) = ranks.live(10)
    assert "no step has been timed yet" in stall.reason


def test_scoring_is_watched_at_its_own_pace() -> None:
    ranks = group()
    for rank in range(2):
        ranks.stand(rank, Doing.SCORING, marks=20 + rank)
    (stall,) = ranks.live(70)
    assert stall.behind == (0,)
    assert "(scoring after step 5)" in stall.reason


def test_a_group_that_waits_for_a_rank_is_not_still() -> None:
    ranks = group()
    del ranks.pulses[1]
    assert not ranks.live(600)


def test_a_new_process_begins_anew_and_another_size_too() -> None:
    ranks = group()
    ranks.live(50)
    ranks.watch.heard(1, 2, Process("node", "host1", 999, 8, "x"), ranks.pulses[1])
    assert not ranks.live(8), "the old process's time is not the new one's"
    smaller = Group(world=1)
    smaller.watch = ranks.watch
    smaller.at = ranks.at
    smaller.stand(0)
    assert not smaller.live(20)


def test_a_coordinator_that_was_asleep_has_seen_nothing() -> None:
    ranks = group()
    ranks.live(10)
    ranks.at += 3600
    assert not ranks.watch.look(["a1"])
    assert not ranks.live(40)


def test_zero_waits_for_ever() -> None:
    assert not group(stall_s=0.0).live(10_000)


def test_an_attempt_that_nobody_is_at_is_forgotten() -> None:
    ranks = group()
    ranks.live(50)
    ranks.watch.look([])
    assert not ranks.live(50)


def test_a_rank_that_never_spoke_is_behind_after_ten_times_as_long() -> None:
    """It was stopped before it could say that it had begun; the others wait for it in a collective."""
    ranks = Group()
    ranks.stand(0)
    assert not ranks.live(590), "it may be starting still"
    (stall,) = ranks.live(30)
    assert stall.behind == (1,)
    assert "rank 1 has not said a word" in stall.reason
    assert [number for number, _ in stall.processes] == [0]


def test_a_silent_rank_that_last_said_it_prepares_has_stepped_if_others_have() -> None:
    """It was stopped between two beats, in the first second of its job."""
    ranks = group()
    ranks.stand(0, Doing.PREPARING, step=0, marks=0, pace_s=0.0)
    ranks.live(2)
    ranks.silent = {0}
    (stall,) = ranks.live(80)
    assert stall.behind == (0,)
    assert "its process silent for" in stall.reason
