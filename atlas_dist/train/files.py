"""The files that a training job leaves: what later tasks see, what only this task needs, and what the method hands on."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from atlas_dist.core.result_files import (
    ADAPTER_FILE,
    BACKBONE_FILE,
    CONFIG_FILE,
    MEMORY_FILE,
    SAMPLES_FILE,
    TASK_FILE,
    AdapterConfig,
)
from atlas_dist.core.sampling import Ordinals
from atlas_dist.core.types import Role, StageJob
from atlas_dist.train.configured import recorded_backbone
from atlas_dist.train.context import RankContext
from atlas_dist.train.inputs import as_auxiliary_head, pack_tensors
from atlas_dist.train.module import StageModule


def trained_files(
    context: RankContext, job: StageJob, module: StageModule, samples: Ordinals, left: Mapping[str, Tensor]
) -> dict[str, bytes]:
    """Each in a file of its own.

    Args:
        samples: ordinals of the training samples. left: what the method remembers of the task.
    """
    assert job.stage is not None, "a training job has a stage"
    model = module.model
    auxiliary_tasks: dict[str, Tensor] = {}
    for task, head in module.named_auxiliary_heads():
        weights = {f"head/{name}": value.detach().cpu() for name, value in head.named_parameters()}
        auxiliary_tasks |= as_auxiliary_head(task.name, weights)
    of_task = {**model.export_queries(), **model.export_coefficients(), **model.export_fusion(), **model.export_head()}
    files = {TASK_FILE: pack_tensors({**of_task, **auxiliary_tasks})}
    if job.task.shots:
        files[SAMPLES_FILE] = pack_tensors({"train": torch.from_numpy(samples)})
    if job.stage.grows:
        files[ADAPTER_FILE] = pack_tensors(model.export_adapter())
    # Of several forms the one that is committed is described, by the job that commits it.
    if job.stage.grows and context.method_of(job).selecting is None:
        files[CONFIG_FILE] = adapter_config(context, job, job.bank).to_json()
    if Role.BACKBONE in job.stage.trains:
        files[BACKBONE_FILE] = pack_tensors(model.export_backbone())
    if left:
        files[MEMORY_FILE] = pack_tensors(left)
    return files


def adapter_config(context: RankContext, job: StageJob, sees: tuple[str, ...], form: str = "") -> AdapterConfig:
    """What an adapter's file says of where it comes from. `sees`: keys of the other adapters that its task reads."""
    backbone = context.backbone()
    return AdapterConfig(
        base_model=recorded_backbone(context.config, backbone),
        base_model_digest=backbone.digest,
        task=job.task,
        method=job.method,
        settings=context.method_of(job).spec.settings,
        sees=sees,
        form=form,
    )
