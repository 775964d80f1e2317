"""An evaluation job on one rank: one task, one state of the bank, one or two views of it (docs/method.md, Evaluation)."""

from __future__ import annotations

from collections.abc import Callable
from hashlib import blake2b, sha256

import torch
from torch import Tensor

from atlas_dist.clock import Stopwatch
from atlas_dist.config import Precision
from atlas_dist.core.results import EvalResult, ScoringSeconds, ViewResult, predictions_file
from atlas_dist.core.types import Assignment, StageJob, View
from atlas_dist.data.stream import Stream
from atlas_dist.device import device
from atlas_dist.model.atlas import AdaptedModel
from atlas_dist.train.context import RankContext
from atlas_dist.train.effective_rank import EffectiveRankMeter
from atlas_dist.train.inputs import pack_tensors
from atlas_dist.train.loop import Scores, StepProgress, evaluate
from atlas_dist.train.module import StageModule
from atlas_dist.train.reading import head_spec, model_in_view, reads_of


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
    with context.scoring_stream(job) as stream:
        for done, view in enumerate(job.views):
            predictions, effective_rank = Predictions(), EffectiveRankMeter()

            def observe(
                index: Tensor, logits: Tensor, meters: tuple[Predictions, EffectiveRankMeter] = (predictions, effective_rank)
            ) -> None:
                for meter in meters:
                    meter.observe(index, logits)

            with model_in_view(context, job, assignment.inputs, view) as model, effective_rank.attached(model):
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
        bad = context.masked(stream)
    return files, EvalResult(
        world=context.world,
        views=views,
        seconds=ScoringSeconds(round(stopwatch.lap(), 3)),
        # So that a bank can be checked from its store alone, without the plan.
        model_from=job.model_from,
        without=without,
        bad_samples=tuple(bad),
    )


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
    return StageModule(model, head_spec(job), bf16=context.config.train.precision is Precision.BF16).to(device())
