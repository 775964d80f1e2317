"""Learnt tasks as models that learn nothing more: in a view (docs/method.md, Evaluation), or from tensors at hand."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from torch import Tensor

from atlas_dist.core.attempts import CommittedRef
from atlas_dist.core.result_files import BACKBONE_FILE
from atlas_dist.core.results import TrainResult
from atlas_dist.core.types import StageJob, View
from atlas_dist.model.atlas import AdaptedModel
from atlas_dist.model.heads import HeadSpec
from atlas_dist.model.lora import ranks_in, weighed_layers
from atlas_dist.train.build import visible_adapters
from atlas_dist.train.context import RankContext
from atlas_dist.train.inputs import (
    coefficients_of,
    fusion_of,
    has_auxiliary_head,
    head_of,
    queries_of,
    read_adapters,
    read_if_there,
    read_task,
)

Inputs = Mapping[str, CommittedRef]


@dataclass(frozen=True)
class TaskParts:
    """What a model that reads a task is made of; names as in files (core/result_files.py)."""

    head: Mapping[str, Tensor]
    adapters: Sequence[Mapping[str, Tensor]] = ()
    """T adapters that are weighed."""
    own: Mapping[str, Tensor] = field(default_factory=dict)
    """The task's own adapter, where it is not weighed; {} = none."""
    queries: Mapping[str, Tensor] = field(default_factory=dict)
    """`queries/<site>` [T, …]; not looked at where there is nothing to weigh."""
    coefficients: Mapping[str, Tensor] = field(default_factory=dict)
    """`coefficients/<site>/…`, with a row for each of the T adapters."""
    backbone: Mapping[str, Tensor] = field(default_factory=dict)
    """Weights of a backbone that the method trained; {} = the frozen one."""
    fusion: Mapping[str, Tensor] = field(default_factory=dict)


def reads_of(context: RankContext, job: StageJob, inputs: Inputs, view: View) -> tuple[str, ...]:
    """Keys of the adapters that an evaluation job reads in a view, in order, the task's own last."""
    latest = view is View.LATEST
    if context.method_of(job).selecting is not None:
        return TrainResult.of(inputs[job.latest_from if latest else job.model_from]).sees
    return job.bank if latest else job.bank[: job.own_bank]


def model_in_view(context: RankContext, job: StageJob, inputs: Inputs, view: View, left_out: str = "") -> AdaptedModel:
    """The task as `view` reads it: the adapters, queries or coefficients and backbone it had, or the newest of each; always its
    own head, in the state that goes with them. `left_out`: without one of the adapters, by its key."""
    source_key = job.latest_from if view is View.LATEST else job.model_from
    reads = reads_of(context, job, inputs, view)
    selecting = context.method_of(job).selecting is not None
    own_key = source_key if selecting and source_key in reads else ""
    source = inputs[source_key]
    newest, own = read_task(context.store, source), read_task(context.store, inputs[job.model_from])
    parts = arranged(
        newest,
        reads,
        [key for key in reads if key != left_out],
        own_key,
        lambda keys: visible_adapters(context, job, inputs, keys),
        lambda: read_adapters(context.store, inputs, [own_key])[0],
    )
    head = head_of(newest if has_auxiliary_head(newest, job.task.name) else own, job.task.name)
    backbone = read_if_there(context.store, source, BACKBONE_FILE)
    return reading_model(context, job, replace(parts, head=head, backbone=backbone))


def arranged(
    task: Mapping[str, Tensor],
    reads: Sequence[str],
    kept: Sequence[str],
    own_key: str,
    adapters: Callable[[Sequence[str]], Sequence[Mapping[str, Tensor]]],
    own_adapter: Callable[[], Mapping[str, Tensor]],
) -> TaskParts:
    """A task's tensors as the parts of a model that reads some of its adapters.

    Args:
        task: of its task file; `queries/…` have a row for each of `reads`, `coefficients/…` one for each that is weighed.
        reads: keys of the adapters that it reads.
        kept: those of them that the model shall read, in the same order.
        own_key: the one among them that is not weighed; "" = all are.
        adapters: keys -> tensors, of those that are weighed.
        own_adapter: gives the tensors of `own_key`.
    """
    weighed = [key for key in reads if key != own_key]
    rows = [row for row, key in enumerate(weighed) if key in kept]
    own = own_adapter() if own_key and own_key in kept else {}
    return TaskParts(
        head=head_of(task),
        adapters=adapters([weighed[row] for row in rows]),
        own={name: value for name, value in own.items() if not name.startswith("key/")},
        queries={name: values[rows] for name, values in queries_of(task).items()},
        coefficients={name: values[rows] for name, values in coefficients_of(task).items()} if rows else {},
        fusion=fusion_of(task),
    )


def reading_model(context: RankContext, job: StageJob, parts: TaskParts) -> AdaptedModel:
    """A model of the job's task that learns nothing; close it after use. Raises DataError for a tensor that does not fit."""
    method = context.method_of(job)
    model = AdaptedModel(
        context.own_backbone(parts.backbone) if parts.backbone else context.whole_backbone().model,
        head_spec(job),
        method.mixing,
        visible=len(parts.adapters),
        grows=bool(parts.own),
        seed=0,
        second_image_type=method.second_image_type,
        fuses=bool(parts.fusion),
        ranks=[weighed_layers(parts.coefficients) | ranks_in(each) for each in parts.adapters] if method.mixing.lora else None,
    )
    try:
        model.load_adapters(parts.adapters)
        model.load_head(parts.head)
        model.load_coefficients(parts.coefficients)
        if parts.own:
            model.load_grown(parts.own)
        if parts.fusion:
            model.load_fusion(parts.fusion)
        if parts.adapters and method.mixing.has_queries:
            model.load_queries(parts.queries)
    except BaseException:
        model.close()
        raise
    return model


def head_spec(job: StageJob) -> HeadSpec:
    """Of the job's task."""
    return HeadSpec(job.task.kind, job.task.classes)
