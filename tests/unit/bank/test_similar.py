"""Which adapters would help a packed data set: the numbers retrieval goes by, before anything is trained."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from atlas_dist.bank.similar import similar
from atlas_dist.bank.weights import BankWeights, load_weights
from atlas_dist.compose import compose_config
from atlas_dist.config import RunConfig
from atlas_dist.coordinator.expand import packed_task
from atlas_dist.core.results import TrainResult
from atlas_dist.core.types import TaskSpec
from atlas_dist.data.manifest import read_manifest
from atlas_dist.errors import ConfigError
from atlas_dist.runs.stores import open_shards
from tests.kits.bank import Toys, toys

GROWS = ("method=atlas", "method.settings.expand=always")


@pytest.fixture(scope="module")
def learnt() -> Toys:
    return toys(*GROWS)


@pytest.fixture(scope="module")
def weights(learnt: Toys) -> BankWeights:
    return load_weights(learnt.store, learnt.bank)


def _asked(learnt: Toys, name: str, *words: str) -> tuple[RunConfig, TaskSpec]:
    config = compose_config([*learnt.words, *words])
    return config, packed_task(config, name, partial(read_manifest, open_shards(config)))


def test_a_learnt_task_is_most_similar_to_itself_and_the_others_are_in_order(learnt: Toys, weights: BankWeights) -> None:
    found = similar(*_asked(learnt, "toy_ask"), weights)
    assert found.adapters[0].task == "toy_ask"
    assert found.adapters[0].similarity == pytest.approx(1, abs=1e-3)
    assert found.adapters[0].site_similarity == pytest.approx(1, abs=1e-3)
    numbers = [adapter.similarity for adapter in found.adapters]
    assert numbers == sorted(numbers, reverse=True)
    assert {adapter.key for adapter in found.adapters} == {k for k, t in weights.tasks.items() if t.learnt.has_adapter}


def test_numbers_are_those_that_the_run_went_by(learnt: Toys, weights: BankWeights) -> None:
    """toy_ask as the run compared it, before it was learnt."""
    recorded = TrainResult.of(learnt.bank.find("toy_ask").ref).similarity
    found = {adapter.key: adapter.similarity for adapter in similar(*_asked(learnt, "toy_ask"), weights).adapters}
    assert recorded
    for key, number in recorded.items():
        assert found[key] == pytest.approx(number, abs=1e-3)


@pytest.mark.parametrize(("retrieve", "marked"), [(0, 4), (1, 1), (2, 2)])
def test_the_nearest_k_are_marked(learnt: Toys, weights: BankWeights, retrieve: int, marked: int) -> None:
    found = similar(*_asked(learnt, "toy_kin", f"method.settings.retrieve={retrieve}"), weights)
    assert [adapter.retrieved for adapter in found.adapters] == [n < marked for n in range(len(found.adapters))]
    assert found.retrieve == retrieve


def test_nothing_is_written(learnt: Toys, weights: BankWeights) -> None:
    before = sorted(str(path) for path in Path(learnt.folder).rglob("*"))
    similar(*_asked(learnt, "toy_kin"), weights)
    assert sorted(str(path) for path in Path(learnt.folder).rglob("*")) == before


def test_a_method_or_a_bank_without_signatures_is_refused_with_what_to_do(learnt: Toys, weights: BankWeights) -> None:
    with pytest.raises(ConfigError, match="every earlier adapter"):
        similar(*_asked(toys("method=atlas_paper"), "toy_kin"), weights)
    bare = replace(weights, tasks={key: replace(task, signature={}) for key, task in weights.tasks.items()})
    with pytest.raises(ConfigError, match="without a signature"):
        similar(*_asked(learnt, "toy_kin"), bare)
