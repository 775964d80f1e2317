"""A run that another run has learnt already needs no workers: every byte is read again, and what is damaged is computed."""

from __future__ import annotations

import pytest

from atlas_dist.compose import compose_config
from atlas_dist.coordinator.coordinator import Coordinator
from atlas_dist.coordinator.take_over import all_known, take_over
from atlas_dist.core.plan import Plan
from atlas_dist.core.records import Adopt, Dispatch
from atlas_dist.runs.status import Phase, load_run
from atlas_dist.store.objects import MemoryStore
from tests.chaos.fakes import FakeDispatcher, counted_ids
from tests.chaos.plans import small_plan

CONFIG = compose_config(["experiment=toy", "run=second", "store.url=mem"])


@pytest.fixture
def plan() -> Plan:
    return small_plan(3)


@pytest.fixture
def learnt(plan: Plan) -> MemoryStore:
    """A store in which the run `first` has learnt the plan."""
    store = MemoryStore("m")
    coordinator = Coordinator("first", plan, store, FakeDispatcher(store), ids=counted_ids("p1x"))
    status = coordinator.open()
    while not status.done:
        status = coordinator.tick()
    coordinator.close()
    return store


def test_every_job_is_adopted_and_nothing_dispatched(plan: Plan, learnt: MemoryStore) -> None:
    state, _ = load_run(learnt, "second")
    assert all_known(plan, state, learnt)
    snapshot = take_over(CONFIG, plan, {}, learnt)
    assert snapshot is not None
    assert snapshot.status is not None
    assert snapshot.status.phase is Phase.COMPLETE
    assert [d.event for d in snapshot.decisions].count("adopt") == len(plan.jobs)
    state, entries = load_run(learnt, "second")
    assert {e.record.job for e in entries if isinstance(e.record, Adopt)} == set(plan.jobs)
    assert not [e for e in entries if isinstance(e.record, Dispatch)]


def test_a_damaged_result_needs_workers_after_all(plan: Plan, learnt: MemoryStore) -> None:
    state, _ = load_run(learnt, "first")
    last = state.job(list(plan.jobs)[-1]).committed
    assert last is not None
    learnt.put(f"{last.prefix}/{last.blobs[0].name}", b"damaged")
    assert all_known(plan, load_run(learnt, "second")[0], learnt), "names alone do not tell"
    assert take_over(CONFIG, plan, {}, learnt) is None
    state, _ = load_run(learnt, "second")
    assert not state.finished


def test_what_nobody_has_learnt_is_not_known(plan: Plan) -> None:
    store = MemoryStore("m")
    assert not all_known(plan, load_run(store, "second")[0], store)
