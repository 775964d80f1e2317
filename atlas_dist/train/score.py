"""An evaluation job on one rank: one task, one state of the bank, one or two views of it (docs/method.md, Evaluation)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from hashlib import blake2b, sha256

import torch
from torch import Tensor

from atlas_dist.config import Precision
from atlas_dist.core.results import BACKBONE_FILE, EvalResult, ScoringSeconds, ViewResult, predictions_file
from atlas_dist.core.types import Assignment, CommittedRef, StageJob, View
from atlas_dist.data.stream import Stream
from atlas_dist.model.atlas import AdaptedModel
from atlas_dist.model.heads import HeadSpec
from atlas_dist.model.mixing import Weighting
from atlas_dist.train.context import RankContext, Stopwatch
from atlas_dist.train.effective_rank import EffectiveRankMeter
from atlas_dist.train.engine import device
from atlas_dist.train.inputs import (
    fusion_of,
    has_auxiliary_head,
    head_of,
    pack_tensors,
    queries_of,
    read_adapters,
    read_if_there,
    read_task,
)
from atlas_dist.train.loop import Scores, StepProgress, evaluate
from atlas_dist.train.module import StageModule


class Predictions:
    """What a view answered: the arg-max class and a fingerprint of the logits' exact bits, sample by sample.

    Two passes agree bit for bit exactly when their digests are equal; keeping fingerprints instead of logits keeps a VQA
    validation split (214,354 questions x 3,129 answers) at a few megabytes.
    """

    def __init__(self) -> None:
        self.rows: dict[int, tuple[int, bytes]] = {}

    def observe(self, index: Tensor, logits: Tensor) -> None:
        """See one batch: ordinals [b] (-1 where masked) and logits [b, C]."""
        classes = logits.argmax(dim=1).tolist()
        raw = logits.contiguous().float().numpy()
        for row, ordinal in enumerate(index.tolist()):
            if ordinal >= 0:
                self.rows[ordinal] = (classes[row], blake2b(raw[row].tobytes(), digest_size=16).digest())

    def merged(self, parts: list[dict[int, tuple[int, bytes]]]) -> tuple[dict[str, Tensor], str]:
        """All ranks' answers in sample order, as tensors, and their digest."""
        rows = {k: v for part in parts for k, v in part.items()}
        order = sorted(rows)
        digest = sha256(b"".join(k.to_bytes(8, "little") + rows[k][1] for k in order)).hexdigest()
        tensors = {
            "sample": torch.tensor(order, dtype=torch.int64),
            "answer": torch.tensor([rows[k][0] for k in order], dtype=torch.int32),
        }
        return tensors, digest


def score(
    context: RankContext, assignment: Assignment, report: Callable[[StepProgress], bool]
) -> tuple[dict[str, bytes], EvalResult]:
    """Score the job's task in each of its views; files and views on rank 0, {} elsewhere."""
    job, stopwatch = assignment.job, Stopwatch()
    views: dict[View, ViewResult] = {}
    files: dict[str, bytes] = {}
    with context.validation_stream(job) as stream:
        for done, view in enumerate(job.views):
            predictions, effective_rank = Predictions(), EffectiveRankMeter()

            def observe(
                index: Tensor, logits: Tensor, meters: tuple[Predictions, EffectiveRankMeter] = (predictions, effective_rank)
            ) -> None:
                for meter in meters:
                    meter.observe(index, logits)

            with _model_in_view(context, job, assignment.inputs, view) as model, effective_rank.attached(model):
                scores = score_model(context, job, model, stream, observe)
            parts = context.gather(predictions.rows)
            rank = effective_rank.effective_rank()
            if context.is_rank_zero:
                tensors, digest = predictions.merged(parts)
                files[predictions_file(view)] = pack_tensors(tensors)
                views[view] = ViewResult(scores.score, scores.loss, scores.samples, digest, round(rank, 6))
            if context.is_rank_zero:
                report(StepProgress(done + 1, len(job.views), scores.loss, scores.score, 0.0, 0.0, 0.0))
        without = _without_each(context, assignment, stream)
    return files, EvalResult(
        world=context.world,
        views=views,
        seconds=ScoringSeconds(round(stopwatch.lap(), 3)),
        # So that a bank can be checked from its store alone, without the plan.
        model_from=job.model_from,
        without=without,
    )


def _without_each(context: RankContext, assignment: Assignment, stream: Stream) -> tuple[float, ...]:
    """The task's score without each of its adapters in turn, in bank order, when it was just learnt and reads several: what α
    does not prove, that an adapter is of use."""
    job = assignment.job
    if job.latest_from or job.own_bank < 2 or not context.config.train.leave_one_out:
        return ()
    scores = []
    for left_out in range(job.own_bank):
        with _model_in_view(context, job, assignment.inputs, View.TASK, left_out) as model:
            scores.append(score_model(context, job, model, stream).score)
    return tuple(scores)


def score_model(
    context: RankContext,
    job: StageJob,
    model: AdaptedModel,
    stream: Stream,
    observe: Callable[[Tensor, Tensor], None] | None = None,
) -> Scores:
    """One pass of `model` over the job's validation split; `observe` as in `evaluate`."""
    return evaluate(_module(context, job, model), stream.validation(), context.feeder(), observe)


def _module(context: RankContext, job: StageJob, model: AdaptedModel) -> StageModule:
    return StageModule(model, _head(job), bf16=context.config.train.precision is Precision.BF16).to(device())


def _model_in_view(
    context: RankContext, job: StageJob, inputs: Mapping[str, CommittedRef], view: View, left_out: int | None = None
) -> AdaptedModel:
    """The task as `view` reads it: the adapters, queries and backbone it had, or the newest of each; always its own head, in the
    state that goes with them. `left_out`: without one of the adapters and its query."""
    latest = view is View.LATEST
    every = job.bank if latest else job.bank[: job.own_bank]
    kept = [number for number in range(len(every)) if number != left_out]
    bank = [every[number] for number in kept]
    source = inputs[job.latest_from if latest else job.model_from]
    parts, own = read_task(context.store, source), read_task(context.store, inputs[job.model_from])
    backbone, fusion = read_if_there(context.store, source, BACKBONE_FILE), fusion_of(parts)
    queries = {name: rows[kept] for name, rows in queries_of(parts).items()}
    return reading_model(
        context,
        job,
        read_adapters(context.store, inputs, bank),
        queries,
        head_of(parts if has_auxiliary_head(parts, job.task.name) else own, job.task.name),
        backbone=backbone,
        fusion=fusion,
    )


def reading_model(
    context: RankContext,
    job: StageJob,
    adapters: Sequence[Mapping[str, Tensor]],
    queries: Mapping[str, Tensor],
    head: Mapping[str, Tensor],
    *,
    backbone: Mapping[str, Tensor] | None = None,
    fusion: Mapping[str, Tensor] | None = None,
) -> AdaptedModel:
    """A model of the job's task that reads `adapters` and learns nothing; close it after use.

    Args:
        queries: `queries/<site>` [T, …], a row for each of the T adapters; not looked at where there is nothing to weigh.
        backbone: weights of a backbone that the method trained; None or {} = the frozen one.

    Raises:
        DataError: a tensor is not what such a model takes.
    """
    method = context.method_of(job)
    model = AdaptedModel(
        context.own_backbone(backbone) if backbone else context.backbone().model,
        _head(job),
        method.mixing,
        visible=len(adapters),
        grows=False,
        seed=0,
        second_image_type=method.second_image_type,
        fuses=bool(fusion),
    )
    try:
        model.load_adapters(adapters)
        model.load_head(head)
        if fusion:
            model.load_fusion(fusion)
        if adapters and method.mixing.weighting is not Weighting.PLAIN:
            model.load_queries(queries)
    except BaseException:
        model.close()
        raise
    return model


def _head(job: StageJob) -> HeadSpec:
    return HeadSpec(job.task.kind, job.task.classes)
