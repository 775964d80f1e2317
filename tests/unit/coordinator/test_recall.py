"""A run's plan from its ledger: the very same, or a refusal that says why."""

from __future__ import annotations

from dataclasses import replace

import pytest

from atlas_dist.coordinator.expand import expand
from atlas_dist.coordinator.recall import recall
from atlas_dist.core.types import TaskSpec
from atlas_dist.errors import ConfigError, DataError
from atlas_dist.runs.status import load_run
from atlas_dist.runs.stores import open_shards
from atlas_dist.store.objects import MemoryStore
from tests.kits.bank import Toys, toys


@pytest.fixture(scope="module")
def learnt() -> Toys:
    return toys()


def known(learnt: Toys) -> dict[str, TaskSpec]:
    return {each.task.name: each.task for each in learnt.bank.learnt.values()}


def test_the_plan_is_the_one_that_ran(learnt: Toys) -> None:
    state, _ = load_run(learnt.store, "toy")
    backbone = learnt.bank.find("toy_kin").base.digest
    assert recall(state, known(learnt), backbone, None) == expand(learnt.config)
    assert recall(state, known(learnt), "", None).digest == state.plan_digest, "the backbone itself says its digest"


def test_tasks_that_are_yet_to_be_learnt_come_from_their_data(learnt: Toys) -> None:
    state, _ = load_run(learnt.store, "toy")
    partly = {name: spec for name, spec in known(learnt).items() if name != "toy_pair"}
    assert recall(state, partly, "", open_shards(learnt.config)).digest == state.plan_digest
    for shards in (None, MemoryStore()):
        with pytest.raises(DataError, match="has not learnt toy_pair yet"):
            recall(state, partly, "", shards)


def test_another_plan_than_the_recorded_one_is_refused(learnt: Toys) -> None:
    state, _ = load_run(learnt.store, "toy")
    with pytest.raises(DataError, match="cannot be laid out again"):
        recall(replace(state, spec={**state.spec, "seeds": [5]}), known(learnt), "", None)
    with pytest.raises(DataError, match="are not those of this version"):
        recall(replace(state, spec={**state.spec, "methodology": 1}), known(learnt), "", None)
    with pytest.raises(ConfigError, match="imported bank"):
        recall(replace(state, spec={"imported_from": "x"}), {}, "", None)
