"""What of the engine's settings is part of a job's name."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from atlas_dist.app.composed import ComposedRun
from atlas_dist.compose import compose_config
from atlas_dist.config import MethodConfig, Precision, RunConfig, TrainConfig
from atlas_dist.config.learning import BudgetConfig
from atlas_dist.coordinator.expand import (
    NUMERICS_VERSION,
    expand,
    numerics_of,
    packed_task,
    specification,
    specification_of_rows,
)
from atlas_dist.coordinator.recall import recall
from atlas_dist.core.keys import plain
from atlas_dist.core.manifest import ShardManifest
from atlas_dist.core.state import RunState
from atlas_dist.core.types import Stage
from atlas_dist.data.manifest import read_manifest
from atlas_dist.errors import ConfigError, DataError
from atlas_dist.model.backbone import load_backbone
from atlas_dist.model.backbone_refs import backbone_ref
from atlas_dist.runs.stores import open_shards
from tests.kits.stage import pack_toys, toy_config
from tests.kits.towers import saved


def test_what_may_change_the_numbers_is_named_and_what_is_off_is_not() -> None:
    plain = {"version": NUMERICS_VERSION, "precision": "fp32"}
    assert numerics_of(TrainConfig(precision=Precision.FP32)) == plain
    cheaper = TrainConfig(precision=Precision.FP32, activation_checkpointing=True, zero_stage=1, micro_batch=4)
    assert numerics_of(cheaper) == plain
    assert numerics_of(TrainConfig(precision=Precision.FP32, compile=True)) == plain | {"compile": True}
    assert numerics_of(TrainConfig(precision=Precision.BF16)) == plain | {"precision": "bf16", "bf16": 2}


def test_a_runs_specification_names_compile_only_where_it_is_on() -> None:
    fp32 = Precision.FP32
    older = specification(RunConfig(train=TrainConfig(precision=fp32)))
    assert "compile" not in older["train"]
    assert specification(RunConfig(train=TrainConfig(precision=fp32, activation_checkpointing=True))) == older
    assert specification(RunConfig(train=TrainConfig(precision=fp32, compile=True)))["train"]["compile"] is True


def test_no_key_and_no_record_depends_on_the_machine_that_asks() -> None:
    for undecided in (lambda: numerics_of(TrainConfig()), lambda: specification(RunConfig())):
        with pytest.raises(ConfigError, match="not decided yet"):
            undecided()


def test_a_record_says_how_large_a_split_is_only_where_it_is_read_in_part(tmp_path: Path) -> None:
    config = toy_config(tmp_path, "sequence.recheck=20", "sequence.downstream=[]", "sequence.upstream=[toy_shape,toy_kin]")
    pack_toys(config, samples=64)
    plan = expand(config)
    partly = specification_of_rows({"": config}, plan)
    (shape,) = {job.task.scored_digest for job in plan.jobs.values() if job.samples}
    assert (partly["split_samples"], partly["sequence"]["recheck"]) == ({shape: 32}, 20)
    assert plan.rechecked == {"toy_shape": (20, 32)}
    whole = config.model_copy(update={"sequence": config.sequence.model_copy(update={"recheck": 0})})
    told = specification_of_rows({"": whole}, expand(whole))
    assert "split_samples" not in told
    assert "recheck" not in told["sequence"]
    state = RunState(run="toy", spec=plain(partly), plan_digest=plan.digest)
    known = {job.task.name: job.task for job in plan.jobs.values()}
    assert recall(state, known, "", None) == plan, "also where the shards are out of reach"


def test_a_task_with_a_test_split_names_it_and_needs_the_same_classes_in_it(tmp_path: Path) -> None:
    words = ("sequence.upstream=[toy_shape]", "sequence.downstream=[]", "tasks.toy_shape.data.test=test")
    config = toy_config(tmp_path, *words)
    pack_toys(config, samples=16)
    shards = open_shards(config)
    spec = packed_task(config, "toy_shape", lambda dataset, split: read_manifest(shards, dataset, split))
    assert list(spec.splits) == ["train", "val", "test"]
    assert spec.scored_digest == read_manifest(shards, spec.dataset, "test").digest

    def fewer(dataset: str, split: str) -> ShardManifest:
        manifest = read_manifest(shards, dataset, split)
        return replace(manifest, classes=manifest.classes[:-1]) if split == "test" else manifest

    with pytest.raises(DataError, match=r"train and test of .* do not have the same classes"):
        packed_task(config, "toy_shape", fewer)


def test_a_specification_names_a_test_split_and_a_third_budget_only_where_they_are() -> None:
    older = specification(compose_config(["experiment=toy"]))
    assert all("test" not in task["data"] and "both" not in task for task in older["tasks"].values())
    assert "both" not in older["train"]
    newer = specification(compose_config(["experiment=toy", "tasks.toy_shape.data.test=held", "train.both.max_steps=3"]))
    assert newer["tasks"]["toy_shape"]["data"]["test"] == "held"
    assert newer["train"]["both"]["max_steps"] == 3


def test_a_row_with_all_steps_learns_as_long_as_every_stage_together() -> None:
    words = ["train.stage1.max_steps=3", "train.stage2.max_steps=20", "train.both.max_steps=6", "train.budget.lr=1e-3"]
    config = compose_config(["experiment=toy", *words])
    task, usual, whole = config.tasks["toy_shape"], MethodConfig(), MethodConfig(all_steps=True)
    assert task.budgets(config.train, usual)[Stage.TWO].max_steps == 20
    assert task.budgets(config.train, whole)[Stage.TWO].max_steps == 29
    rated = MethodConfig(stage2=BudgetConfig(lr=2e-3))
    assert task.budget_of_both(config.train, rated).max_steps == 6
    assert task.budget_of_both(config.train, rated).lr == 2e-3, "a row's rate of stage two counts for both kinds"


def test_tiles_are_part_of_every_job_key_and_of_a_record_where_there_are_any(tmp_path: Path) -> None:
    words = ("sequence=toy_decoder", "sequence.upstream=[toy_shape]", "backbone=random_smolvlm")
    left_out, one, two = (toy_config(tmp_path, *words, *more) for more in ((), ("backbone.tiles=1",), ("backbone.tiles=2",)))
    pack_toys(left_out, samples=16)
    plans = [expand(config) for config in (left_out, one, two)]
    assert plans[0] == plans[1] and not set(plans[0].jobs) & set(plans[2].jobs)
    records = [specification(config) for config in (left_out, one, two)]
    assert records[0] == records[1] and "tiles" not in records[0]["backbone"] and records[2]["backbone"]["tiles"] == 2
    asked = specification_of_rows({"": left_out}, plans[2], tiles=2)
    assert asked["backbone"] == records[2]["backbone"], "a checkpoint's own choice is recorded as a number"
    for plan, config in zip(plans, (left_out, one, two), strict=True):
        state = RunState(run="toy", spec=plain(specification_of_rows({"": config}, plan)), plan_digest=plan.digest)
        assert recall(state, {job.task.name: job.task for job in plan.jobs.values()}, "", None) == plan


def test_an_old_record_means_whole_pictures_whatever_the_checkpoint_asks_for(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoint"
    saved(folder, load_backbone(backbone_ref("random-smolvlm", tiles=2)))
    said = {"do_image_splitting": True, "max_image_size": {"longest_edge": 32}, "size": {"longest_edge": 64}}
    (folder / "preprocessor_config.json").write_text(json.dumps(said))
    own = ("backbone.name=mine", f"backbone.source={folder}", "backbone.architecture=smolvlm")
    words = ("sequence=toy_decoder", "sequence.upstream=[toy_shape]", *own)
    asks, whole = toy_config(tmp_path, *words), toy_config(tmp_path, *words, "backbone.tiles=1")
    pack_toys(asks, samples=16)
    before, now = expand(whole), ComposedRun({"": asks})
    known = {job.task.name: job.task for job in before.jobs.values()}
    recorded = specification_of_rows({"": whole}, before)
    assert "tiles" not in recorded["backbone"]
    assert recall(RunState(run="toy", spec=plain(recorded), plan_digest=before.digest), known, "", None) == before
    assert now.plan() == expand(asks) != before and now.specification()["backbone"]["tiles"] == 2
    state = RunState(run="toy", spec=plain(now.specification()), plan_digest=now.plan().digest)
    assert recall(state, known, "", None) == now.plan()


def test_texts_that_do_not_fit_beside_the_tiles_are_refused_with_both_ways_out(tmp_path: Path) -> None:
    words = ("sequence=toy_decoder", "sequence.upstream=[toy_shape]", "backbone=random_smolvlm", "backbone.tiles=4")
    config = toy_config(tmp_path, *words, "tasks.toy_shape.max_text=100")
    with pytest.raises(
        ConfigError, match=r"max_text is 100; random-smolvlm reads at most \d+ text tokens beside 4 x 4 tiles"
    ) as bad:
        expand(config)
    assert "or backbone.tiles below 4" in str(bad.value.fix)
