"""What a training step needs of one rank's memory, told before anything starts (`atlas-dist plan --memory`).

The stage's model is built with weights of no meaning, and one and two samples of the task's shape are passed through it on the
CPU: what autograd keeps for the backward pass is added up, each piece of storage once. The difference is what a further sample of
the micro batch keeps. The rest is counted: weights, gradients, AdamW's moments, and which of these ZeRO shares out. What a device
needs beside that (its context, workspaces, fragments) is not in it: leave a fifth.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from atlas_dist.config import Precision, RunConfig
from atlas_dist.core.plan import Plan
from atlas_dist.core.sampling import slots
from atlas_dist.core.types import JobKind, StageJob, TaskKind
from atlas_dist.methods import Method, stored_method
from atlas_dist.model.atlas import AdaptedModel
from atlas_dist.model.backbone import Backbone
from atlas_dist.model.heads import HeadSpec
from atlas_dist.model.layers import LayerRuns
from atlas_dist.model.trained import freeze_to
from atlas_dist.train.feed import micro_batch_for
from atlas_dist.train.module import StageModule


@dataclass(frozen=True)
class StepMemory:
    """Bytes of one rank in a training step, and the job that needs the most of those of its shape."""

    label: str
    visible: int
    """Adapters that it sees."""
    micro_batch: int
    """Samples of a forward pass."""
    weights: int
    """Of the backbone, the adapters and the head."""
    optimizer: int
    """Gradients, AdamW's two moments and, where ZeRO shares them out, its own copy of what trains."""
    activations: int
    """What is kept between forward and backward."""

    @property
    def total(self) -> int:
        """All of it."""
        return self.weights + self.optimizer + self.activations


def steps_of(config: RunConfig, plan: Plan, backbone: Backbone, ranks: int) -> list[StepMemory]:
    """One for each shape of training job in a plan, the largest first.

    Args:
        backbone: on the CPU. ranks: workers that share a step.
    """
    largest: dict[tuple[object, ...], StageJob] = {}
    for job in plan.jobs.values():
        if job.kind is JobKind.TRAIN:
            shape = _shape(job, backbone)
            kept = largest.get(shape)
            if kept is None or _weight(job) > _weight(kept):
                largest[shape] = job
    found = [step_of(config, job, backbone, ranks) for job in largest.values()]
    return sorted(found, key=lambda step: -step.total)


def step_of(config: RunConfig, job: StageJob, backbone: Backbone, ranks: int) -> StepMemory:
    """What a step of one training job needs."""
    method, train = stored_method(job.method, job.settings), config.train
    assert job.stage is not None, "a training job has a stage"
    with AdaptedModel(
        backbone.model,
        HeadSpec(job.task.kind, job.task.classes),
        method.mixing,
        visible=visible_to(method, job),
        grows=job.stage.grows,
        seed=0,
        second_image_type=method.second_image_type,
        normalize_ortho=method.normalize_ortho,
        fuses=method.fuses and bool(job.bank),
        runs=LayerRuns(recompute=train.activation_checkpointing, compiled=False),
    ) as model:
        freeze_to(model, model.trainable_names(job.stage.trains, frozen_layers=method.frozen_layers))
        module = StageModule(model, model.head_spec, bf16=train.precision is Precision.BF16).train()
        one, two = (kept_bytes(module, *samples_like(job, backbone, count)) for count in (1, 2))
        trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
        weights = sum(p.nbytes for p in (*model.parameters(), *model.buffers()))
    share = slots(job.budget.global_batch, ranks)
    micro = micro_batch_for(share, min(share, train.micro_batch or share))
    return StepMemory(
        label=job.label,
        visible=visible_to(method, job),
        micro_batch=micro,
        weights=weights // (ranks if train.zero_stage == 3 else 1),
        optimizer=_optimizer_bytes(trained, train.zero_stage, ranks),
        activations=one + (micro - 1) * (two - one),
    )


def visible_to(method: Method, job: StageJob) -> int:
    """How many adapters a job sees at most."""
    assert job.stage is not None, "a training job has a stage"
    seen = len(job.bank) if job.stage.sees_earlier else 0
    return min(seen, method.selecting.retrieve) if method.selecting is not None and method.selecting.retrieve else seen


def kept_bytes(module: StageModule, inputs: dict[str, Tensor], target: Tensor) -> int:
    """What autograd keeps between the forward and the backward pass of a batch, without weights and inputs."""
    known = {t.untyped_storage().data_ptr() for t in (*module.parameters(), *module.buffers(), *inputs.values(), target)}
    kept: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in known:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor  # held until the pass is over, so that no address comes twice

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        losses, *rest = module(inputs, target)
        del rest
    total = sum(kept.values())
    del losses
    return total


def samples_like(job: StageJob, backbone: Backbone, count: int) -> tuple[dict[str, Tensor], Tensor]:
    """A batch of the shape of the job's task, and a target; its contents mean nothing."""
    task, size = job.task, backbone.image_size
    head = HeadSpec(task.kind, task.classes)
    text = backbone.text_length(task.max_text)
    ids = torch.ones(count, head.texts, text, dtype=torch.int64)
    inputs = {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "token_type_ids": torch.zeros_like(ids),
        "pixel_values": torch.zeros(count, head.images, 3, size, size),
    }
    if task.kind.generates:
        inputs["answers"] = torch.zeros(count, task.max_new_tokens, dtype=torch.int64)
        return inputs, inputs["answers"]
    if task.kind is TaskKind.ANSWERS:
        return inputs, torch.zeros(count, task.classes)
    return inputs, torch.zeros(count, dtype=torch.int64)


def _shape(job: StageJob, backbone: Backbone) -> tuple[object, ...]:
    """What decides how much a sample keeps, but for the adapters it sees."""
    assert job.stage is not None, "a training job has a stage"
    head = HeadSpec(job.task.kind, job.task.classes)
    text = backbone.text_length(job.task.max_text)
    return job.method, head.texts, head.images, text, job.task.max_new_tokens, job.budget.global_batch


def _weight(job: StageJob) -> tuple[bool, int, int]:
    """Of jobs of a shape, the largest: with an adapter that trains, with the longest bank, with the most classes."""
    assert job.stage is not None, "a training job has a stage"
    return job.stage.grows, len(job.bank) if job.stage.sees_earlier else 0, job.task.classes


def _optimizer_bytes(trained: int, zero_stage: int, ranks: int) -> int:
    """4 bytes a number: its gradient, and AdamW's two moments; from ZeRO 1 on also a copy of what a rank updates."""
    gradient = 4 * trained / (ranks if zero_stage >= 2 else 1)
    moments = 8 * trained / (ranks if zero_stage >= 1 else 1)
    copy = 4 * trained / ranks if zero_stage >= 1 else 0
    return math.ceil(gradient + moments + copy)
