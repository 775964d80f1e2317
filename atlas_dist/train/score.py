"""An evaluation job on one rank: one task, one state of the bank, one or two views of it (docs/method.md, Evaluation)."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace

from torch import Tensor

from atlas_dist.clock import Stopwatch
from atlas_dist.config import Precision
from atlas_dist.core.attempts import Assignment
from atlas_dist.core.result_files import predictions_file
from atlas_dist.core.results import EvalResult, ScoringSeconds, ViewResult
from atlas_dist.core.types import StageJob, View
from atlas_dist.data.stream import Stream
from atlas_dist.device import device
from atlas_dist.model.atlas import AdaptedModel
from atlas_dist.train.answers import judge_of
from atlas_dist.train.context import RankContext
from atlas_dist.train.effective_rank import EffectiveRankMeter
from atlas_dist.train.inputs import pack_tensors
from atlas_dist.train.loop import Scores, StepProgress, evaluate
from atlas_dist.train.module import StageModule
from atlas_dist.train.predictions import FirstPass, Predictions
from atlas_dist.train.reading import head_spec, model_in_view, reads_of


def score(
    context: RankContext, assignment: Assignment, report: Callable[[StepProgress], bool]
) -> tuple[dict[str, bytes], EvalResult]:
    """Score the job's task in each of its views; files and views on rank 0, {} elsewhere."""
    job, stopwatch = assignment.job, Stopwatch()
    views: dict[View, ViewResult] = {}
    files: dict[str, bytes] = {}
    first = FirstPass(context.store, assignment.inputs[job.first_from]) if job.first_from else None
    sizes = {view: job.samples.get(view, 0) for view in job.views}
    if first is not None and not first.noted:
        sizes[View.TASK] = 0  # nothing is known sample by sample: all of them are read, and the digest over all must be the same
    with ExitStack() as opened:
        streams = {size: opened.enter_context(context.scoring_stream(job, size)) for size in sorted(set(sizes.values()))}
        for done, view in enumerate(job.views):
            stream = streams[sizes[view]]
            tensors, told = _read(context, assignment, view, stream)
            if context.is_rank_zero:
                if sizes[view]:
                    told = replace(told, of=job.split_samples)
                if sizes[view] and first is not None and view is View.TASK:
                    told = replace(told, differing=first.differing(tensors, stream.ordinals.tolist()))
                files[predictions_file(view)], views[view] = pack_tensors(tensors), told
                report(StepProgress(done + 1, len(job.views), told.loss, told.score, 0.0, 0.0, 0.0))
        without = _without_each(context, assignment, streams[sizes[View.TASK]])
        bad = context.masked(*streams.values())
    return files, EvalResult(
        world=context.world,
        views=views,
        seconds=ScoringSeconds(round(stopwatch.lap(), 3)),
        # So that a bank can be checked from its store alone, without the plan.
        model_from=job.model_from,
        without=without,
        bad_samples=tuple(bad),
    )


def _read(context: RankContext, assignment: Assignment, view: View, stream: Stream) -> tuple[dict[str, Tensor], ViewResult]:
    """One pass in one view: what was answered sample by sample (on rank 0, {} elsewhere), and what that comes to."""
    job, predictions, effective_rank = assignment.job, Predictions(), EffectiveRankMeter()

    def observe(index: Tensor, logits: Tensor) -> None:
        predictions.observe(index, logits)
        effective_rank.observe(index, logits)

    with model_in_view(context, job, assignment.inputs, view) as model, effective_rank.attached(model):
        scores = score_model(context, job, model, stream, observe)
    parts = context.gather(predictions.rows)
    rank = round(effective_rank.effective_rank(), 6)
    tensors, digest = predictions.merged(parts) if context.is_rank_zero else ({}, "")
    return tensors, ViewResult(scores.score, scores.loss, scores.samples, digest, rank, token_f1=scores.token_f1)


def _without_each(context: RankContext, assignment: Assignment, stream: Stream) -> tuple[float, ...]:
    """The task's score without each of its adapters in turn, in bank order, when it was just learnt and reads several: what α
    does not prove, that an adapter is of use."""
    job = assignment.job
    reads = reads_of(context, job, assignment.inputs, View.TASK)
    if job.latest_from or len(reads) < 2 or not context.config.train.leave_one_out:
        return ()
    scores = []
    for left_out in reads:
        with model_in_view(context, job, assignment.inputs, View.TASK, left_out) as model:
            scores.append(score_model(context, job, model, stream).score)
    return tuple(scores)


def score_model(
    context: RankContext,
    job: StageJob,
    model: AdaptedModel,
    stream: Stream,
    observe: Callable[[Tensor, Tensor], None] | None = None,
) -> Scores:
    """One pass of `model` over the split in `stream`; `observe` as in `evaluate`."""
    return evaluate(_module(context, job, model), stream.validation(), context.feeder(), observe)


def _module(context: RankContext, job: StageJob, model: AdaptedModel) -> StageModule:
    bf16, judge = context.config.train.precision is Precision.BF16, judge_of(context.backbone(), job.task)
    return StageModule(model, head_spec(job), bf16=bf16, judge=judge).to(device())
