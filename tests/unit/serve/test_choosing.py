"""Requests that name no task: given to the one whose samples they look like, or refused."""

from __future__ import annotations

import pytest

from atlas_dist import AtlasModel
from atlas_dist.bank.weights import BankWeights, load_weights
from atlas_dist.runs.stores import open_shards
from tests.kits.bank import Toys, toys
from tests.unit.serve.test_serve import REQUESTS


@pytest.fixture(scope="module")
def learnt() -> Toys:
    return toys()


@pytest.fixture(scope="module")
def weights(learnt: Toys) -> BankWeights:
    return load_weights(learnt.store, learnt.bank, shards=open_shards(learnt.config))


@pytest.fixture(scope="module")
def model(weights: BankWeights) -> AtlasModel:
    return AtlasModel.from_weights(weights)


def test_kinds_alone_tell_the_toy_tasks_apart(model: AtlasModel) -> None:
    requests = list(REQUESTS.values())
    choices = model.choose_tasks(requests)
    assert [[candidate.task for candidate in choice.candidates] for choice in choices] == [[r.task] for r in requests]
