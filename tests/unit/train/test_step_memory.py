"""What a step needs of a rank's memory, told from shapes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from atlas_dist.config import RunConfig
from atlas_dist.coordinator.expand import expand
from atlas_dist.core.plan import Plan
from atlas_dist.core.types import StageJob
from atlas_dist.methods import stored_method
from atlas_dist.model.atlas import AdaptedModel
from atlas_dist.model.backbone import Backbone
from atlas_dist.model.heads import HeadSpec
from atlas_dist.model.trained import freeze_to
from atlas_dist.train.configured import configured_backbone
from atlas_dist.train.module import StageModule
from atlas_dist.train.step_memory import StepMemory, kept_bytes, samples_like, step_of, steps_of, visible_to
from tests.kits.stage import pack_toys, toy_config

WORDS = ("method=atlas", "method.settings.rank=4", "method.settings.retrieve=1", "train.budget.global_batch=8")


@pytest.fixture(scope="module")
def planned(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[RunConfig, Plan, Backbone]]:
    config = toy_config(tmp_path_factory.mktemp("memory"), *WORDS)
    pack_toys(config, samples=32)
    yield config, expand(config), configured_backbone(config)


def job_of(plan: Plan, label: str) -> StageJob:
    return next(job for job in plan.jobs.values() if job.label.endswith(label))


def test_a_batch_keeps_as_much_as_one_and_two_samples_say(planned: tuple[RunConfig, Plan, Backbone]) -> None:
    """Of every shape of task, and of a stage that sees an adapter and trains another."""
    _, plan, backbone = planned
    for label in ("toy_ask stage2", "toy_kin stage2", "toy_pair stage2"):
        job = job_of(plan, label)
        assert job.stage is not None
        method = stored_method(job.method, job.settings)
        with AdaptedModel(
            backbone.model, HeadSpec(job.task.kind, job.task.classes), method.mixing, visible=1, grows=True, seed=0
        ) as model:
            freeze_to(model, model.trainable_names(job.stage.trains))
            module = StageModule(model, model.head_spec, bf16=False).train()
            one, two, five = (kept_bytes(module, *samples_like(job, backbone, count)) for count in (1, 2, 5))
        assert 0 < one < two
        assert five == pytest.approx(one + 4 * (two - one), rel=0.02), label


def test_the_largest_comes_first_and_each_shape_once(planned: tuple[RunConfig, Plan, Backbone]) -> None:
    config, plan, backbone = planned
    steps = steps_of(config, plan, backbone, ranks=2)
    assert steps == sorted(steps, key=lambda step: -step.total)
    assert len({step.label for step in steps}) == len(steps)
    assert any(step.label.endswith("toy_pair stage2") for step in steps), "two pictures a sample"
    assert {step.micro_batch for step in steps} == {4}, "half of the global batch"
    assert max(step.visible for step in steps) == 1, "as many as are retrieved"


def test_a_stage_that_looks_at_nothing_sees_nothing(planned: tuple[RunConfig, Plan, Backbone]) -> None:
    _, plan, _ = planned
    own, both = job_of(plan, "toy_pair own stage2"), job_of(plan, "toy_pair stage2")
    assert [visible_to(stored_method(job.method, job.settings), job) for job in (own, both)] == [0, 1]


def _step(planned: tuple[RunConfig, Plan, Backbone], ranks: int = 1, **train: object) -> StepMemory:
    config, plan, backbone = planned
    changed = config.model_copy(update={"train": config.train.model_copy(update=train)})
    return step_of(changed, job_of(plan, "toy_pair stage2"), backbone, ranks)


def test_what_settings_save(planned: tuple[RunConfig, Plan, Backbone]) -> None:
    plain = _step(planned)
    assert _step(planned, activation_checkpointing=True).activations < 0.6 * plain.activations
    assert _step(planned, micro_batch=2).activations < 0.5 * plain.activations
    assert _step(planned, ranks=4).micro_batch == plain.micro_batch // 4


def test_what_zero_shares_out(planned: tuple[RunConfig, Plan, Backbone]) -> None:
    """In bytes a trained number: a gradient has 4, AdamW's moments 8, ZeRO's own copy 4."""
    plain = _step(planned, ranks=4)
    numbers = plain.optimizer / 12
    shared = [_step(planned, ranks=4, zero_stage=stage) for stage in (1, 2, 3)]
    assert [step.optimizer / numbers for step in shared] == pytest.approx([4 + 2 + 1, 1 + 2 + 1, 1 + 2 + 1], rel=1e-3)
    assert [step.weights for step in shared] == [plain.weights, plain.weights, plain.weights // 4]


def test_tiles_are_counted_in_what_a_sample_keeps(tmp_path: Path) -> None:
    words = ("sequence=toy_decoder", "sequence.upstream=[toy_shape]", "backbone=random_smolvlm", "method=individual_adapters")
    kept = {}
    for tiles in (1, 2):
        config = toy_config(tmp_path, *words, "train.budget.global_batch=8", f"backbone.tiles={tiles}")
        pack_toys(config, samples=16)
        (step,) = steps_of(config, expand(config), configured_backbone(config), ranks=1)
        kept[tiles] = step
    assert kept[2].activations > 3 * kept[1].activations
    assert kept[2].optimizer == kept[1].optimizer, "the same adapters"
