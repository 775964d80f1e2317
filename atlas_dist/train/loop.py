"""The loop of one stage: step, look, keep the best. It knows an engine, a stream and a few callbacks; nothing of Ray or stores.

Losses are normalised by the number of valid slots of the *global* batch, which every rank knows from the plan of the epoch, so
the same global batch gives the same gradient at any number of workers and any accumulation.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from atlas_dist.data.batch import RankBatch
from atlas_dist.errors import AtlasError, OutOfMemory, Paused, StoreError
from atlas_dist.pulse import Doing, pulse
from atlas_dist.train.feed import Feeder, ModelBatch
from atlas_dist.train.mixture import OWN, Mixture
from atlas_dist.train.module import StageModule

NOT_WRITTEN = StoreError("Rank 0 could not write a checkpoint; its log says why.")
"""What the other ranks raise when rank 0 could not."""


class NonFiniteLoss(AtlasError):
    """The loss of `step` was NaN or infinite (the same on every rank)."""

    exit_code = 5

    def __init__(self, step: int) -> None:
        super().__init__(f"The loss of step {step} is not finite.")
        self.step = step

    def __reduce__(self) -> tuple[object, ...]:
        return (NonFiniteLoss, (self.step,))


@dataclass(frozen=True)
class StepProgress:
    """What a stage tells while it runs; averages are over the steps since the last report."""

    step: int
    total: int
    loss: float
    score: float
    """Training score in percent."""
    samples_per_s: float
    data_wait: float
    """Share of the time spent waiting for data, 0..1."""
    lr: float
    mfu: float | None = None
    """Model FLOPs utilisation, 0..1: what the samples needed (model/flops.py) of what all devices could do; None = unknown. Other
    tasks' steps of a stage count as the task's own."""


@dataclass(frozen=True)
class Scores:
    """One pass over a validation split, all ranks together, averaged over samples."""

    score: float
    """Percent."""
    loss: float
    samples: int
    token_f1: float | None = None
    """Percent, of answers that are written; None of others."""


@dataclass
class LoopState:
    """What must survive a restart besides parameters and optimizer: where we are and what was best."""

    step: int = 0
    best_worth: float = -math.inf
    """Validation score of the best state in percent; with `least_loss` its loss, negated."""
    best_step: int = 0
    best_tensors: dict[str, Tensor] = field(default_factory=dict)
    curve: list[dict[str, float]] = field(default_factory=list)
    """Training points: step, loss, score."""
    validation: list[dict[str, float]] = field(default_factory=list)
    """Validation points: step, loss, score."""
    started_from: str = ""
    """As a stage's result has it (core/results.py)."""
    composition: str = ""
    """The same."""
    head_refit: float = 0.0
    """The same, of the best state."""


@dataclass(frozen=True)
class LoopSettings:
    """Lengths in optimizer steps."""

    total_steps: int
    validations: int
    log_every: int
    checkpoint_every: int
    micro_batch: int
    accumulation: int
    penalty_weight: float
    validate_start: bool = False
    """Validate before the first step as well: the stage starts from something that can be the best."""
    least_loss: bool = False
    """The best state is the one with the smallest validation loss, not the one with the largest score."""
    sample_flops: float = 0.0
    """FLOPs that one sample's step needs."""
    peak_flops: float = 0.0
    """FLOP/s of all ranks' devices together at best; 0 = unknown."""

    def mfu(self, samples_per_s: float) -> float | None:
        """Utilisation at this pace; None = unknown."""
        return samples_per_s * self.sample_flops / self.peak_flops if self.peak_flops else None

    def validation_steps(self) -> frozenset[int]:
        """Steps after which to validate: evenly spaced, the last at the end."""
        count = min(self.validations, self.total_steps)
        return frozenset(round(self.total_steps * (k + 1) / count) for k in range(count))


@dataclass
class Timing:
    """Seconds of one stage by what they were spent on."""

    stepping: float = 0.0
    waiting: float = 0.0
    validating: float = 0.0
    checkpointing: float = 0.0


@dataclass(frozen=True)
class Callbacks:
    """What the loop asks its surroundings for. Called on every rank, in step.

    report: gets Progress, says whether somebody asked to stop (only rank 0's answer counts).
    validate: one pass over the validation split. Inside, the model is what was validated; afterwards it is what trains.
    snapshot: copies of the trained tensors, on the CPU; called inside a validation that found a new best state.
    checkpoint: takes everything along so that the stage can go on from here; it may be written later.
    trouble: what ended the writing of checkpoints, or None.
    settle: waits until the checkpoints are written; raises what ended that, on every rank.
    """

    report: Callable[[StepProgress], bool]
    validate: Callable[[], AbstractContextManager[Scores]]
    snapshot: Callable[[], dict[str, Tensor]]
    checkpoint: Callable[[LoopState], None]
    vary: Callable[[int, int, ModelBatch], ModelBatch] = lambda _, __, part: part
    """(auxiliary task, step, a training batch) -> the batch that is learnt from."""
    trouble: Callable[[], Exception | None] = lambda: None
    settle: Callable[[], None] = lambda: None


def train(
    engine: Any,
    module: StageModule,
    mixture: Mixture,
    feed: Feeder,
    settings: LoopSettings,
    state: LoopState,
    callbacks: Callbacks,
) -> Timing:
    """Run the stage from `state.step` to its end; `state` then holds the curves and the best tensors.

    Raises:
        NonFiniteLoss: on every rank, naming the step.
        Paused: somebody asked to stop; a checkpoint was saved first.
        StoreError, DataError, AuthError: a checkpoint could not be written (StoreError on the ranks that do not write).
    """
    timing = Timing()
    window = _Window(settings, state.step, feed.device)
    validate_after = settings.validation_steps()
    batches = mixture.steps(state.step)
    if settings.validate_start and state.step == 0:
        timing.validating += _timed(lambda: _keep_best(module, state, settings, callbacks))
    while state.step < settings.total_steps:
        began = time.perf_counter()
        auxiliary, batch = next(batches)
        arrived = time.perf_counter()
        vary = partial(callbacks.vary, auxiliary, state.step)
        loss, score = train_step(engine, auxiliary, batch, feed, settings, vary)
        window.add(loss, score, batch, arrived - began)
        state.step += 1
        pulse.passed(Doing.LEARNING, state.step)
        timing.waiting += arrived - began
        at_end = state.step == settings.total_steps
        stop = False
        if state.step % settings.log_every == 0 or at_end:
            progress = window.close(state.step, settings.total_steps, engine.get_lr()[0])
            state.curve.append({"step": state.step, "loss": progress.loss, "score": progress.score})
            stop = _agreed(callbacks.report(progress), callbacks.trouble(), feed.device)
        timing.stepping += time.perf_counter() - arrived
        if state.step in validate_after:
            timing.validating += _timed(lambda: _keep_best(module, state, settings, callbacks))
        if stop or (settings.checkpoint_every and state.step % settings.checkpoint_every == 0 and not at_end):
            timing.checkpointing += _timed(lambda: callbacks.checkpoint(state))
        if stop and not at_end:
            callbacks.settle()
            raise Paused(f"Stopped at step {state.step} of {settings.total_steps}.")
    timing.checkpointing += _timed(callbacks.settle)
    return timing


def train_step(
    engine: Any,
    auxiliary: int,
    batch: RankBatch,
    feed: Feeder,
    settings: LoopSettings,
    vary: Callable[[ModelBatch], ModelBatch] = lambda part: part,
) -> tuple[Tensor, Tensor]:
    """One optimizer step on this rank's slice of a batch of one task; its share of the step's loss and score, on the device."""
    # DeepSpeed averages over ranks and over accumulated passes; undo both, so that what remains is a sum over valid slots.
    scale = dist.get_world_size() * settings.accumulation / max(1, batch.valid)
    head = () if auxiliary == OWN else (auxiliary,)
    with _memory_is_asked_for("A training step", settings.micro_batch, smaller=True):
        return _passes(engine, head, map(vary, feed(batch, settings.micro_batch)), settings, scale, feed.device)


@contextmanager
def _memory_is_asked_for(what: str, samples: int, *, smaller: bool) -> Iterator[None]:
    """Say what did not fit, and which setting to lower. Raises OutOfMemory."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        cause = str(error).partition(". ")[0]
        raise OutOfMemory(what, samples, cause, smaller=smaller) from None


def _passes(
    engine: Any, head: tuple[int, ...], parts: Iterable[ModelBatch], settings: LoopSettings, scale: float, device: torch.device
) -> tuple[Tensor, Tensor]:
    total_loss = torch.zeros((), device=device)
    total_score = torch.zeros((), device=device)
    for part in parts:
        losses, scores, _, penalty, *added = engine(part.inputs, part.target, *head)
        kept = torch.where(part.mask, losses, torch.zeros_like(losses)).sum()
        loss = kept * scale + settings.penalty_weight * penalty
        for regularizer in added:
            loss = loss + (
                torch.where(part.mask, regularizer, torch.zeros_like(regularizer)).sum() * scale
                if regularizer.dim()
                else regularizer
            )
        engine.backward(loss)
        engine.step()
        total_loss += kept.detach()
        total_score += torch.where(part.mask, scores, torch.zeros_like(scores)).sum()
    return total_loss, total_score


class _Window:
    """The steps since the last report, kept on the device so that nothing waits for the GPU in between."""

    def __init__(self, settings: LoopSettings, step: int, device: torch.device) -> None:
        self.settings = settings
        self.device = device
        self.first = step
        self.sums: list[Tensor] = []
        self.valid: list[int] = []
        self.waited = 0.0
        self.began = time.perf_counter()

    def add(self, loss: Tensor, score: Tensor, batch: RankBatch, waited: float) -> None:
        self.sums.append(torch.stack((loss, score)))
        self.valid.append(batch.valid)
        self.waited += waited

    def close(self, step: int, total: int, lr: float) -> StepProgress:
        """Average over all ranks; raise when any step was not finite; begin anew."""
        sums = torch.stack(self.sums)
        dist.all_reduce(sums)
        sums = sums.cpu().double()
        pulse.mark()
        bad = (~torch.isfinite(sums[:, 0])).nonzero()
        if len(bad):
            raise NonFiniteLoss(self.first + int(bad[0]) + 1)
        samples = sum(self.valid)
        seconds = time.perf_counter() - self.began
        loss, score = (sums.sum(0) / max(1, samples)).tolist()
        pace = samples / seconds
        progress = StepProgress(step, total, loss, 100 * score, pace, self.waited / seconds, lr, self.settings.mfu(pace))
        self.first, self.sums, self.valid, self.waited = step, [], [], 0.0
        self.began = time.perf_counter()
        return progress


def _keep_best(module: StageModule, state: LoopState, settings: LoopSettings, callbacks: Callbacks) -> None:
    """Validate; the best state is kept, the earlier of two equal ones (docs/method.md, What trains)."""
    with callbacks.validate() as scores:
        state.validation.append({"step": state.step, "loss": scores.loss, "score": scores.score})
        worth = -scores.loss if settings.least_loss else scores.score
        if worth > state.best_worth:
            state.best_worth, state.best_step = worth, state.step
            state.best_tensors = callbacks.snapshot()
    module.train()


def evaluate(
    module: StageModule,
    batches: Iterable[RankBatch],
    feed: Feeder,
    observe: Callable[[Tensor, Tensor], None] | None = None,
    record: Callable[[Tensor, Tensor, Tensor], None] | None = None,
    *,
    auxiliary: int = OWN,
) -> Scores:
    """Score a split; every rank calls it, every rank gets the whole.

    `auxiliary`: whose split it is. `observe(index, logits)` sees each batch of this rank: ordinals [b] (-1 where masked) and
    logits [b, C] (what stands for them where answers are written), on the CPU. `record(index, losses, scores)` likewise: loss [b]
    and score [b], 0 to 1.
    """
    module.eval()
    pulse.prepare()
    sums = torch.zeros(3, dtype=torch.float64, device=feed.device)
    near = torch.zeros(1, dtype=torch.float64, device=feed.device)
    head = () if auxiliary == OWN else (auxiliary,)
    for batch in batches:
        with torch.no_grad(), _memory_is_asked_for("An evaluation", len(batch.mask), smaller=False):
            for part in feed(batch):
                losses, scores, logits, _, *f1 = module(part.inputs, part.target, *head)
                kept = torch.stack((losses.double(), scores.double(), torch.ones_like(losses, dtype=torch.float64)))
                sums += torch.where(part.mask, kept, torch.zeros_like(kept)).sum(dim=1)
                near += sum(torch.where(part.mask, each.double(), torch.zeros_like(each.double())).sum() for each in f1)
                if observe is not None:
                    observe(part.index, logits.cpu())
                if record is not None:
                    record(part.index, losses.cpu(), scores.cpu())
        pulse.passed(Doing.SCORING)
    sums = torch.cat((sums, near))
    dist.all_reduce(sums)
    loss, score, count, shared = sums.tolist()
    pulse.prepare()
    found = Scores(score=100 * score / max(1, count), loss=loss / max(1, count), samples=int(count))
    return found if module.judge is None else replace(found, token_f1=100 * shared / max(1, count))


def mean_scores(scores: list[Scores]) -> Scores:
    """One task's scores as they are; several tasks' averaged over tasks, their samples added up."""
    if len(scores) == 1:
        return scores[0]
    count = len(scores)
    return Scores(
        score=math.fsum(s.score for s in scores) / count,
        loss=math.fsum(s.loss for s in scores) / count,
        samples=sum(s.samples for s in scores),
    )


def _agreed(stop: bool, trouble: Exception | None, device: torch.device) -> bool:
    """Whether rank 0 was asked to stop; the same answer on every rank. Rank 0's trouble is raised on every rank, so that the
    group stays in step."""
    flag = torch.tensor([2 if trouble is not None else int(stop)], device=device)
    dist.broadcast(flag, src=0)
    code = int(flag.item())
    if code == 2:
        raise trouble or NOT_WRITTEN
    return bool(code)


def _timed(action: Callable[[], None]) -> float:
    began = time.perf_counter()
    action()
    return time.perf_counter() - began
