"""Records are read strictly; the fold refuses contradictions and nothing else."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from atlas_dist.core.attempts import Blob, FailureKind
from atlas_dist.core.ledger import GENESIS, Entry, apply, fold
from atlas_dist.core.records import (
    RECORD_TYPES,
    Abandon,
    Adopt,
    Begin,
    Cancel,
    Commit,
    Dispatch,
    Elect,
    Fail,
    Finish,
    Halt,
    Pause,
    Quarantine,
    Record,
    Resume,
)
from atlas_dist.core.state import AttemptStatus, JobStatus, RunState
from atlas_dist.errors import DataError, StoreError

BLOBS = (Blob("adapter.safetensors", 10, "a" * 64),)


def entries(*records: Record | tuple[int, Record], writer: str = "w") -> list[Entry]:
    """A ledger: Begin, one election, then the records in epoch 1 (or in the epoch given with them)."""
    listed: list[tuple[int, Record]] = [(0, Begin("r", "s", "p")), (1, Elect("first"))]
    listed += [r if isinstance(r, tuple) else (1, r) for r in records]
    return [Entry(i, epoch, writer, f"n{i}", GENESIS, 100.0 + i, record) for i, (epoch, record) in enumerate(listed)]


def state_after(*records: Record | tuple[int, Record]) -> RunState:
    return fold(RunState(), entries(*records))


def dispatch(job: str = "j", n: int = 1) -> Dispatch:
    return Dispatch(job, f"{job}-e1-{n}", f"runs/r/attempts/{job}-e1-{n}", "main", "why")


def fail(kind: FailureKind = FailureKind.PREEMPTED, step: int = 0, job: str = "j", n: int = 1) -> Fail:
    return Fail(job, f"{job}-e1-{n}", kind, "why", step)


def commit(job: str = "j", n: int = 1) -> Commit:
    return Commit(job, f"{job}-e1-{n}", f"runs/r/attempts/{job}-e1-{n}", BLOBS, {"score": 1.0})


EVERY = [
    Begin("r", "s", "p", {"a": [1, {"b": None}]}),
    Elect("x"),
    dispatch(),
    commit(),
    Adopt("j", "a", "runs/o/attempts/a", BLOBS, {}, run="o"),
    fail(FailureKind.NONFINITE, 3),
    Quarantine("j", "x"),
    Abandon("j", "j-e1-1", "x"),
    Halt("x", job="j"),
    Pause("q", "x"),
    Resume("q", "x"),
    Cancel("q", "x"),
    Finish("x"),
]


@pytest.mark.parametrize("record", EVERY, ids=lambda r: type(r).__name__)
def test_every_record_survives_its_json(record: Record) -> None:
    entry = Entry(3, 2, "w", "n", GENESIS, 1.5, record)
    assert Entry.from_bytes(entry.to_bytes()) == entry
    assert len(EVERY) == len(RECORD_TYPES)


def _spoilt(change: dict[str, Any]) -> bytes:
    raw = json.loads(Entry(3, 2, "w", "n", GENESIS, 1.5, fail()).to_bytes())
    for path, value in change.items():
        *parents, name = path.split(".")
        place = raw
        for parent in parents:
            place = place[parent]
        if value is None:
            del place[name]
        else:
            place[name] = value
    return json.dumps(raw).encode()


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"[]", "not a JSON object"),
        (b"{", "not JSON"),
        (_spoilt({"type": "vote"}), "unknown record type.*upgrade"),
        (_spoilt({"extra": 1}), "unknown fields"),
        (_spoilt({"seq": None}), "lacks the fields"),
        (_spoilt({"seq": "3"}), "not a int"),
        (_spoilt({"seq": True}), "not a int"),
        (_spoilt({"body": []}), "not a JSON object"),
        (_spoilt({"body.extra": 1}), "unknown fields"),
        (_spoilt({"body.step": None}), "lacks the fields"),
        (_spoilt({"body.kind": "tired"}), "known are.*preempted"),
    ],
)
def test_entries_are_read_strictly(data: bytes, why: str) -> None:
    with pytest.raises(DataError, match=why):
        Entry.from_bytes(data)


@given(st.binary(max_size=200))
def test_any_bytes_are_an_entry_or_a_data_error(data: bytes) -> None:
    with pytest.raises(DataError):
        Entry.from_bytes(data)


def test_a_job_from_pending_to_committed() -> None:
    assert state_after().job("j").status is JobStatus.PENDING
    running = state_after(dispatch())
    assert running.job("j").status is JobStatus.RUNNING
    assert running.running == {"j-e1-1"}
    done = state_after(dispatch(), commit())
    assert done.job("j").status is JobStatus.COMMITTED
    assert (done.committed, done.newest, done.running) == (1, "j", frozenset())


def test_a_late_result_of_a_failed_attempt_may_be_committed() -> None:
    """First verified result wins, even when its attempt had been taken for dead."""
    state = state_after(dispatch(), fail(), dispatch(n=2), commit(n=1))
    assert state.job("j").committed is not None
    assert state.running == {"j-e1-2"}
    ended = state_after(dispatch(), fail(), dispatch(n=2), commit(n=1), fail(n=2))
    assert ended.garbage == {"j-e1-2"}
    assert ended.troubled == frozenset()


@pytest.mark.parametrize(
    ("records", "why"),
    [
        ([commit()], "never dispatched"),
        ([dispatch(), commit(), commit()], "is committed"),
        ([dispatch(), fail(), dispatch(n=2), commit(), commit(n=2)], "committed before"),
        ([dispatch(), dispatch(n=2)], "is running"),
        ([dispatch(), fail(), dispatch()], "dispatched before"),
        ([dispatch(), fail(), Abandon("j", "j-e1-1", "x"), commit()], "is abandoned"),
        ([dispatch(), Abandon("j", "j-e1-1", "x")], "is running"),
        ([dispatch(), commit(), Abandon("j", "j-e1-1", "x")], "is committed"),
        ([dispatch(), fail(), fail()], "is failed"),
        ([dispatch(), (0, commit())], "speaks in epoch 1"),
        ([(2, Elect("b")), (1, dispatch())], "speaks in epoch 2"),
        ([(3, Elect("b"))], "elected after 1"),
        ([(0, Begin("r", "s", "p"))], "one beginning"),
        ([dispatch(), Quarantine("j", "x")], "is running"),
    ],
)
def test_contradictions_are_refused(records: list[Any], why: str) -> None:
    """At most one commit a job; abandoned is abandoned; a deposed leader is not heard."""
    with pytest.raises(StoreError, match=why):
        state_after(*records)


def test_a_commit_must_name_the_attempts_own_prefix() -> None:
    other = Commit("j", "j-e1-1", "runs/r/attempts/elsewhere", BLOBS, {})
    with pytest.raises(StoreError, match="writes to"):
        state_after(dispatch(), other)


def test_another_writer_needs_an_election() -> None:
    ledger = entries(dispatch())
    stranger = Entry(3, 1, "stranger", "n", GENESIS, 0.0, fail())
    with pytest.raises(StoreError, match="speaks in epoch"):
        fold(RunState(), [*ledger, stranger])


def test_gaps_are_refused() -> None:
    ledger = entries(dispatch(), fail())
    with pytest.raises(StoreError, match="expected entry 3"):
        fold(
            RunState(),
            [*ledger[:3], ledger[4]] if len(ledger) > 4 else [*ledger[:3], Entry(9, 1, "w", "n", GENESIS, 0.0, fail())],
        )


def test_failures_are_counted_by_their_kind() -> None:
    def job(*failures: Fail) -> Any:
        records: list[Record] = []
        for n, failure in enumerate(failures, 1):
            records += [dispatch(n=n), Fail("j", f"j-e1-{n}", failure.kind, "why", failure.step)]
        return state_after(*records).job("j")

    taken, store, nan, raised = (FailureKind.PREEMPTED, FailureKind.STORE, FailureKind.NONFINITE, FailureKind.POISON)
    assert job(fail(taken), fail(taken)).stuck == 2
    assert job(fail(taken), fail(taken, 5)).stuck == 0
    assert job(fail(taken, 5), fail(taken, 5), fail(taken, 3)).stuck == 2
    assert job(fail(store), fail(store)).store_failures == 2
    assert job(fail(store), fail(taken)).store_failures == 0
    assert job(fail(store), fail(store)).stuck == 0
    assert job(fail(nan, 7), fail(nan, 7)).nonfinite == (7, 7)
    assert job(fail(raised), fail(raised)).poisons == 2


def test_attempts_stopped_on_request_do_not_count() -> None:
    state = state_after(dispatch(), Pause("q", "x"), fail())
    assert state.job("j").stuck == 0


def test_resume_starts_counting_afresh() -> None:
    state = state_after(dispatch(), fail(), Quarantine("j", "x"), Halt("y"), Pause("q", "x"), Resume("q2", "go on"))
    job = state.job("j")
    assert (job.quarantined, job.stuck, state.halted, state.paused) == ("", 0, "", "")
    assert state.requests == {"q", "q2"}
    assert job.status is JobStatus.PENDING


def test_what_nothing_can_use_is_garbage() -> None:
    """A few failed attempts are kept to continue from, the furthest among them; all go when the job is settled."""
    records: list[Record] = []
    for n in range(1, 7):
        records += [dispatch(n=n), fail(step=9 if n == 1 else 0, n=n)]
    state = state_after(*records)
    assert state.garbage == {"j-e1-2", "j-e1-3"}
    assert state_after(*records, dispatch(n=7), commit(n=7)).garbage == {f"j-e1-{n}" for n in range(1, 7)}
    gone = state_after(*records, Abandon("j", "j-e1-2", "x"))
    assert gone.garbage == {"j-e1-3"}
    assert gone.attempt("j-e1-2").status is AttemptStatus.ABANDONED


RECORDS = st.lists(
    st.sampled_from(
        [
            dispatch("a"),
            fail(job="a"),
            commit("a"),
            dispatch("a", 2),
            fail(job="a", n=2),
            commit("a", 2),
            dispatch("b"),
            commit("b"),
            Pause("p", "x"),
            Resume("q", "x"),
            Halt("h"),
            Quarantine("a", "x"),
            Abandon("a", "a-e1-1", "x"),
        ]
    ),
    max_size=12,
)


@given(RECORDS)
def test_folding_at_once_or_one_by_one_is_the_same(records: list[Record]) -> None:
    """`fold` is `apply` repeated: where one refuses the other does, else the states are equal. Old states are never altered."""
    state, kept, refused = RunState(), [], False
    for entry in entries(*records):
        before = repr(state)
        try:
            after = apply(state, entry)
        except StoreError:
            refused = True
            break
        assert repr(state) == before
        kept.append(entry)
        state = after
    if refused:
        with pytest.raises(StoreError):
            fold(RunState(), entries(*records))
    assert fold(RunState(), kept) == state
