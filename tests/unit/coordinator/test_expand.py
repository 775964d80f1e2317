"""What of the engine's settings is part of a job's name."""

from __future__ import annotations

from atlas_dist.config import Precision, RunConfig, TrainConfig
from atlas_dist.coordinator.expand import NUMERICS_VERSION, numerics_of, specification


def test_what_may_change_the_numbers_is_named_and_what_is_off_is_not() -> None:
    plain = {"version": NUMERICS_VERSION, "precision": "fp32"}
    assert numerics_of(TrainConfig()) == plain
    assert numerics_of(TrainConfig(activation_checkpointing=True, zero_stage=1, micro_batch=4)) == plain
    assert numerics_of(TrainConfig(compile=True)) == plain | {"compile": True}
    assert numerics_of(TrainConfig(precision=Precision.BF16)) == plain | {"precision": "bf16", "bf16": 2}


def test_a_runs_specification_names_compile_only_where_it_is_on() -> None:
    older = specification(RunConfig())
    assert "compile" not in older["train"]
    assert specification(RunConfig(train=TrainConfig(activation_checkpointing=True))) == older
    assert specification(RunConfig(train=TrainConfig(compile=True)))["train"]["compile"] is True
