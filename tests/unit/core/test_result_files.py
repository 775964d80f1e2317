"""The small files of a result survive JSON; what another version wrote is passed over or refused."""

import json

import pytest

from atlas_dist.core.keys import canonical_json, plain
from atlas_dist.core.result_files import AdapterConfig, Details
from atlas_dist.core.types import TaskKind, TaskSpec
from atlas_dist.errors import DataError


def task() -> TaskSpec:
    return TaskSpec("pairs", TaskKind.PAIR, 2, 40, "pairs", "train", "val", "a" * 64, "b" * 64)


def adapter_config(**changes: object) -> bytes:
    config = AdapterConfig({"name": "tiny"}, "c" * 64, task(), "atlas", {"rank": 4}, ("k",))
    return canonical_json(plain(json.loads(config.to_json())) | changes)


def test_an_adapters_config_survives_json_and_passes_over_what_it_does_not_know():
    config = AdapterConfig.from_json(adapter_config(), "x")
    assert config.task == task()
    assert config.sees == ("k",)
    foreign = adapter_config(colour="red", task=plain(task()) | {"mood": "good"})
    assert AdapterConfig.from_json(foreign, "x") == config
    assert AdapterConfig.from_json(config.to_json(), "x") == config


@pytest.mark.parametrize("data", [b"{", b"[]", adapter_config(format="atlas-dist adapter 2"), adapter_config(sees=3)])
def test_an_adapters_config_of_another_kind_is_refused(data):
    with pytest.raises(DataError, match=r"here\.json|AdapterConfig"):
        AdapterConfig.from_json(data, "here.json")


def test_details_survive_json():
    details = Details(({"step": 1.0, "loss": 0.5},), (), {"site": {"mean": [0.5], "std": [0.0]}})
    assert Details.from_json(details.to_json()) == details
    assert Details.from_json(b"{}") == Details()
    with pytest.raises(DataError):
        Details.from_json(b"{")
