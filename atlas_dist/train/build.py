"""What a training job starts from: the model with everything it takes over, other tasks' heads, and whose samples its steps
take."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack

import torch
from torch import Tensor

from atlas_dist.core.attempts import CommittedRef
from atlas_dist.core.result_files import ADAPTER_FILE, BACKBONE_FILE
from atlas_dist.core.seeds import seed_from, seed_of
from atlas_dist.core.types import AuxiliaryTask, Role, StageJob
from atlas_dist.data.stream import Stream
from atlas_dist.model.atlas import AdaptedModel
from atlas_dist.model.heads import Head, HeadSpec
from atlas_dist.model.layers import LayerRuns
from atlas_dist.model.lora import ranks_in
from atlas_dist.model.tensors import load as load_tensors
from atlas_dist.train.context import RankContext
from atlas_dist.train.inputs import coefficients_of, fusion_of, head_of, queries_of, read_adapters, read_if_there, read_task
from atlas_dist.train.mixture import OWN, Mixture, Source
from atlas_dist.train.module import AuxiliaryHead

Inputs = Mapping[str, CommittedRef]


def build_model(context: RankContext, job: StageJob, inputs: Inputs, sees: Sequence[str]) -> AdaptedModel:
    """The model of a training job with everything it starts from. Raises DataError for inputs that do not fit.

    Args:
        sees: keys of the adapters that it reads, in the bank's order (train/look_back.py).
    """
    method = context.method_of(job)
    assert job.stage is not None, "a training job has a stage"
    backbone = read_if_there(context.store, inputs.get(job.backbone_from), BACKBONE_FILE)
    adapters = visible_adapters(context, job, inputs, sees)
    model = AdaptedModel(
        context.own_backbone(backbone) if backbone or Role.BACKBONE in job.stage.trains else context.model_backbone(),
        HeadSpec(job.task.kind, job.task.classes),
        method.mixing,
        visible=len(sees),
        grows=job.stage.grows,
        seed=seed_of(job, "init"),
        second_image_type=method.second_image_type,
        normalize_ortho=method.normalize_ortho,
        fuses=method.fuses and bool(sees),
        runs=LayerRuns(recompute=context.config.train.activation_checkpointing, compiled=context.config.train.compile),
        ranks=[ranks_in(adapter) for adapter in adapters] if method.mixing.lora else None,
    )
    try:
        model.load_adapters(adapters)
        has_queries = bool(sees) and method.mixing.has_queries
        if job.model_from:
            before = read_task(context.store, inputs[job.model_from])
            model.load_head(head_of(before))
            if has_queries:
                model.load_queries(queries_of(before))
            model.load_coefficients(coefficients_of(before))
            if method.fuses and sees and fusion_of(before):
                model.load_fusion(fusion_of(before))
            begun = read_if_there(context.store, inputs[job.model_from], ADAPTER_FILE) if job.stage.grows else {}
            if begun:
                model.load_grown(begun)
        elif job.queries_from and has_queries and method.inherit_queries:
            model.load_queries(queries_of(read_task(context.store, inputs[job.queries_from])))
    except BaseException:
        model.close()
        raise
    return model


def visible_adapters(context: RankContext, job: StageJob, inputs: Inputs, sees: Sequence[str]) -> list[dict[str, Tensor]]:
    """The adapters that a job reads; of the control that asks for it, with the numbers of each tensor in another order."""
    adapters = read_adapters(context.store, inputs, sees)
    if not context.method_of(job).shuffles:
        return adapters
    return [shuffled(adapter, seed_from("shuffled", key)) for key, adapter in zip(sees, adapters, strict=True)]


def shuffled(adapter: Mapping[str, Tensor], seed: int) -> dict[str, Tensor]:
    """An adapter whose weights are permuted within each tensor: the same numbers, no knowledge. Its keys stay."""
    generator = torch.Generator().manual_seed(seed)
    return {
        name: value
        if name.startswith("key/")
        else value.flatten()[torch.randperm(value.numel(), generator=generator)].view_as(value)
        for name, value in adapter.items()
    }


def build_teacher(context: RankContext, job: StageJob, inputs: Inputs) -> AdaptedModel:
    """The model as the task before left it, frozen, with a backbone of its own; only its features are asked for."""
    method = context.method_of(job)
    weights = read_if_there(context.store, inputs.get(job.backbone_from), BACKBONE_FILE)
    model = AdaptedModel(
        context.own_backbone(weights),
        HeadSpec(job.task.kind, job.task.classes),
        method.mixing,
        visible=0,
        grows=False,
        seed=0,
        second_image_type=method.second_image_type,
    )
    return model.requires_grad_(False).eval()


def build_auxiliary_heads(context: RankContext, job: StageJob, inputs: Inputs) -> list[tuple[AuxiliaryHead, Head]]:
    """The heads of other tasks that train along: as the task before left them, or fresh where all tasks begin together."""
    if not context.method_of(job).trains_auxiliary:
        return []
    before = read_task(context.store, inputs[job.backbone_from]) if job.backbone_from else {}
    width = context.backbone().width
    auxiliary_tasks = []
    for auxiliary in job.auxiliary_tasks:
        spec = HeadSpec(auxiliary.task.kind, auxiliary.task.classes)
        seed = seed_of(job, f"head of {auxiliary.task.name}")
        head = Head(spec.images * width, spec.outputs, torch.Generator().manual_seed(seed))
        if before:
            slots = {f"head/{name}": [parameter.data] for name, parameter in head.named_parameters()}
            load_tensors(slots, head_of(before, auxiliary.task.name), f"the head of {auxiliary.task.name}")
        auxiliary_tasks.append((AuxiliaryHead(auxiliary.task.name, spec), head))
    return auxiliary_tasks


def build_mixture(context: RankContext, job: StageJob, own: Stream, memory: Mapping[str, Tensor], opened: ExitStack) -> Mixture:
    """Whose samples the stage's steps take. Streams of other tasks are opened into `opened`."""
    replay = context.method_of(job).replay
    length = job.budget.steps(own.steps_per_epoch)
    sources = [Source(OWN, own, length)]
    if replay is None or not job.auxiliary_tasks:
        return Mixture(sources)
    streams: dict[str, Stream] = {}
    lengths: dict[str, tuple[AuxiliaryTask, int]] = {}
    for auxiliary in job.auxiliary_tasks:
        chosen = replay.samples(auxiliary.task.name, memory)
        if chosen != ():
            stream = opened.enter_context(context.auxiliary_stream(job, auxiliary.task, chosen))
            streams[auxiliary.task.name] = stream
            lengths[auxiliary.task.name] = (auxiliary, auxiliary.budget.steps(stream.steps_per_epoch))
    steps = replay.steps(length, lengths, memory)
    for number, auxiliary in enumerate(job.auxiliary_tasks):
        if steps.get(auxiliary.task.name):
            sources.append(Source(number, streams[auxiliary.task.name], steps[auxiliary.task.name]))
    return Mixture(sources)
