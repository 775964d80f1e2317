"""A training job on one rank: build what the stage sees, train it, keep the best, and hand over the files of the result."""

from __future__ import annotations

import math
import resource
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from atlas_dist.clock import Stopwatch
from atlas_dist.config import Precision
from atlas_dist.core.attempts import Assignment
from atlas_dist.core.result_files import DETAILS_FILE, MEMORY_FILE, VALIDATION_FILE, Details
from atlas_dist.core.results import StageSeconds, TrainResult
from atlas_dist.core.sampling import slots
from atlas_dist.core.seeds import seed_of
from atlas_dist.core.types import Role
from atlas_dist.data.stream import Stream
from atlas_dist.device import device, device_name
from atlas_dist.model.flops import StepFlops, peak_flops, sample_flops
from atlas_dist.model.heads import HeadSpec
from atlas_dist.model.trained import freeze_to, optimizer_groups
from atlas_dist.packages import environment
from atlas_dist.pulse import Doing, pulse
from atlas_dist.train import checkpoint
from atlas_dist.train.answers import judge_of
from atlas_dist.train.augment import augmented, resolved
from atlas_dist.train.background import BackgroundCheckpoints
from atlas_dist.train.build import build_auxiliary_heads, build_mixture, build_model, build_teacher
from atlas_dist.train.compositions import Compositions
from atlas_dist.train.context import RankContext
from atlas_dist.train.engine import EngineSettings, build_engine, gathered
from atlas_dist.train.feed import ModelBatch, micro_batch_for
from atlas_dist.train.files import trained_files
from atlas_dist.train.head_end import is_refitted, refitted_head
from atlas_dist.train.head_start import Length, fit_head, is_fitted, starts_by_ridge
from atlas_dist.train.inputs import pack_tensors, read_if_there
from atlas_dist.train.look_back import look_back
from atlas_dist.train.loop import (
    NOT_WRITTEN,
    Callbacks,
    LoopSettings,
    LoopState,
    Scores,
    StepProgress,
    evaluate,
    mean_scores,
    train,
)
from atlas_dist.train.mixture import OWN, Mixture
from atlas_dist.train.module import StageModule
from atlas_dist.train.reuse import ReuseMeter
from atlas_dist.train.sample_scores import SampleScores
from atlas_dist.train.stage_context import TrainingStageContext
from atlas_dist.train.starts import choose_start

FAREWELL_S = 5.0
"""Seconds for a checkpoint under way when the stage ends by an error; less than the ranks wait for each other then."""

Report = Callable[[StepProgress], bool]
HearValidation = Callable[[int, Scores], None]
Save = Callable[[int, Mapping[str, bytes]], None]


@dataclass(frozen=True)
class Validated:
    """One validation of a stage, and what it showed sample by sample."""

    scores: Scores
    samples: SampleScores
    """Of the task's own samples, this rank's share."""
    reuse: ReuseMeter | None
    """What the model draws on; None where there is nothing to draw on."""


@dataclass(frozen=True)
class PreparedStage:
    """A stage with everything built that it trains with."""

    engine: Any
    module: StageModule
    trained: tuple[str, ...]
    """Names of the parameters of `module` that train."""
    context: TrainingStageContext
    mixture: Mixture
    validations: list[tuple[int, Stream]]
    """(number of the auxiliary task, or `OWN`; its validation split), of every task that judges the stage."""
    settings: LoopSettings
    length: Length


class StageTrainer:
    """One training job on one rank. `run()` returns the files of the result (rank 0; {} elsewhere) and what it measured.

    Args:
        report: hears of progress, says whether to stop; called on every rank.
        validated: hears of each validation (step, scores); called on every rank.
        save: stores a mid-stage checkpoint (step, files); called on rank 0 only, in a thread of its own while the stage goes on.
        resume: the files of the checkpoint to go on from, or {}.
    """

    def __init__(
        self,
        context: RankContext,
        assignment: Assignment,
        report: Report,
        validated: HearValidation,
        save: Save,
        resume: Mapping[str, bytes],
    ) -> None:
        self.context, self.job, self.inputs = context, assignment.job, assignment.inputs
        assert self.job.stage is not None, "a training job has a stage"
        self.stage = self.job.stage
        self.halvings = assignment.halvings
        self.method = context.method_of(self.job)
        self.looked_back = look_back(context.store, self.method, self.job, self.inputs)
        self.report, self.validated, self.save, self.resume = report, validated, save, resume

    @property
    def chooses_start(self) -> bool:
        """Whether its coefficients may start from what an earlier task made of the same adapters."""
        selecting = self.method.selecting
        trains_coefficients = Role.COEFFICIENTS in self.stage.trains and bool(self.looked_back.sees)
        return selecting is not None and selecting.chooses_start and trains_coefficients

    def run(self) -> tuple[dict[str, bytes], TrainResult]:
        """Train the stage. Raises what `loop.train` raises, and DataError for inputs that do not fit."""
        stopwatch = Stopwatch()
        context, job, method = self.context, self.job, self.method
        memory = read_if_there(context.store, self.inputs.get(job.backbone_from), MEMORY_FILE)
        with ExitStack() as opened:
            model = opened.enter_context(build_model(context, job, self.inputs, self.looked_back.sees))
            own = opened.enter_context(context.training_stream(job, 0))
            mixture = build_mixture(context, job, own, memory, opened)
            # A job that learns several tasks at once is judged by all of them.
            judged = [(OWN, job.task)]
            judged += (
                [(number, auxiliary.task) for number, auxiliary in enumerate(job.auxiliary_tasks)] if method.spec.joint else []
            )
            validations = [(auxiliary, opened.enter_context(context.validation_stream(job, task))) for auxiliary, task in judged]
            names = model.trainable_names(self.stage.trains, frozen_layers=method.frozen_layers)
            freeze_to(model, names)
            module = StageModule(
                model,
                HeadSpec(job.task.kind, job.task.classes),
                bf16=context.config.train.precision is Precision.BF16,
                auxiliary_heads=build_auxiliary_heads(context, job, self.inputs),
                judge=judge_of(context.backbone(), job.task, in_step=context.config.train.zero_stage == 3),
            )
            module.to(device())
            remembers = method.regularizer is not None and bool(job.auxiliary_tasks)
            earlier = opened.enter_context(build_teacher(context, job, self.inputs)) if remembers else None
            stage_context = TrainingStageContext(job, module, own, context.feeder(), memory, earlier)
            module.regularizer = method.regularizer(stage_context) if method.regularizer is not None and remembers else None
            begun = LoopState()
            length = Length(len(mixture), len(mixture) / own.steps_per_epoch)
            if starts_by_ridge(job, length) and not self.resume:
                if self.chooses_start:
                    begun.started_from = choose_start(context, module, job, self.inputs, self.looked_back.sees)
                fit_head(context, module, job)
            goes_on = False
            if job.adapter_from and not self.resume:
                composition = Compositions(context, module, job, self.inputs).choose(fits=is_fitted(job, length))
                begun.composition, goes_on = str(composition), composition.apart > 0
            settings = self._loop_settings(
                length, sample_flops(model, context.backbone().text_length(job.task.max_text), job.task.max_new_tokens), goes_on
            )
            engine = build_engine(module, self._groups(module, length), self._engine_settings(settings))
            inside = (
                *(f"model.{name}" for name in names),
                *(f"auxiliary_heads.{n}" for n, _ in module.auxiliary_heads.named_parameters()),
            )
            prepared = PreparedStage(engine, module, inside, stage_context, mixture, validations, settings, length)
            try:
                return self._train(prepared, begun, stopwatch)
            finally:
                engine.destroy()

    def _train(self, stage: PreparedStage, state: LoopState, stopwatch: Stopwatch) -> tuple[dict[str, bytes], TrainResult]:
        """From `state`, or from the checkpoint to go on from."""
        context, engine, module, inside = self.context, stage.engine, stage.module, stage.trained
        if self.resume:
            state = checkpoint.restore(self.resume, engine, module, inside, stage.settings.accumulation)
        resumed_at = state.step
        feed = context.feeder()

        def keep(at: LoopState) -> None:
            captured = checkpoint.capture(engine, module, inside, at, keeps=context.is_rank_zero)
            if captured is not None:
                written.put(at.step, captured.files)

        def settle() -> None:
            with pulse.waiting(Doing.STORE):
                failed = context.from_rank_zero(written.settle() is not None)
            if failed:
                raise written.error or NOT_WRITTEN

        latest: list[tuple[Validated, float]] = []
        best: dict[int, Validated] = {}

        @contextmanager
        def validate() -> Iterator[Scores]:
            refit = refitted_head(context, engine, module, self.job) if is_refitted(self.job) else nullcontext(0.0)
            with refit as share:
                found = self._validate(module, stage.validations)
                latest[:] = [(found, share)]
                self.validated(state.step, found.scores)
                yield found.scores

        def snapshot() -> dict[str, Tensor]:
            [(found, state.head_refit)] = latest
            best.clear()
            best[state.step] = found
            return _whole(engine, module, inside)

        callbacks = Callbacks(
            report=self.report,
            validate=validate,
            snapshot=snapshot,
            checkpoint=keep,
            vary=partial(self._vary, stage.length.passes),
            trouble=lambda: written.error,
            settle=settle,
        )
        setup = stopwatch.lap()
        written = BackgroundCheckpoints(self.save)
        try:
            timing = train(engine, module, stage.mixture, feed, stage.settings, state, callbacks)
        finally:
            written.close(FAREWELL_S)
        _put_back(engine, module, state.best_tensors)
        module.eval()
        # The best state may be of before the checkpoint that the stage went on from: then it is looked at again.
        final = best.get(state.best_step) or self._validate(module, stage.validations)
        by_sample, alpha = final.samples.merged(context.gather(final.samples.rows)), final.reuse.summary() if final.reuse else {}
        left = self.method.build_memory(stage.context) if self.method.build_memory is not None and self.job.leaves else {}
        with gathered(engine, list(module.parameters())):
            files = trained_files(context, self.job, module, stage.context.samples, left) if context.is_rank_zero else {}
        if context.is_rank_zero:
            files[VALIDATION_FILE] = pack_tensors(by_sample)
            files[DETAILS_FILE] = Details(tuple(state.curve), tuple(state.validation), alpha).to_json()
        seconds = StageSeconds(setup, stopwatch.lap(), **asdict(timing))
        return files, self._result(stage, final.scores, seconds, state, resumed_at)

    def _vary(self, passes: float, auxiliary: int, step: int, part: ModelBatch) -> ModelBatch:
        """Pictures of a training batch as its task's budget asks for; the stage sees its own samples `passes` times."""
        budget = self.job.budget if auxiliary == OWN else self.job.auxiliary_tasks[auxiliary].budget
        return augmented(part, resolved(budget.augment, passes), seed_of(self.job, "augment"), step)

    def _validate(self, module: StageModule, validations: list[tuple[int, Stream]]) -> Validated:
        """One pass over every split that judges the stage."""
        feed, samples = self.context.feeder(), SampleScores()
        weighs = self.method.mixing.weighs or self.method.fuses
        meter = ReuseMeter(module.model, feed.device) if self.looked_back.sees and weighs else None
        observe = meter.observe if meter is not None else None

        def scored(auxiliary: int, split: Stream) -> Scores:
            record = samples.record if auxiliary == OWN else None
            return evaluate(module, split.validation(), feed, observe, record=record, auxiliary=auxiliary)

        return Validated(mean_scores([scored(auxiliary, split) for auxiliary, split in validations]), samples, meter)

    def _result(
        self, stage: PreparedStage, final: Scores, seconds: StageSeconds, state: LoopState, resumed_at: int
    ) -> TrainResult:
        streams = [source.stream for source in stage.mixture.sources]
        stats = [stream.stats() for stream in streams]
        parameters = dict(stage.module.named_parameters())
        settings = stage.settings
        learnt = (settings.total_steps - resumed_at) * self.job.budget.global_batch
        return TrainResult(
            world=self.context.world,
            score=final.score,
            loss=final.loss,
            samples=final.samples,
            best_step=state.best_step,
            steps=settings.total_steps,
            trained_parameters=sum(_size(parameters[n]) for n in stage.trained),
            seconds=StageSeconds(**{name: round(value, 3) for name, value in asdict(seconds).items()}),
            bytes_read=sum(s.bytes for s in stats),
            bad_samples=tuple(self.context.masked(*streams, *(split for _, split in stage.validations))),
            environment=environment() | {"device": device_name()},
            mfu=settings.mfu(learnt / max(1e-9, seconds.stepping + seconds.waiting)),
            peak_rss_mb=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
            resumed_at=resumed_at,
            sees=self.looked_back.sees if self.method.selecting is not None else (),
            similarity=self.looked_back.similarity,
            started_from=state.started_from,
            composition=state.composition,
            head_refit=state.head_refit,
        )

    def _loop_settings(self, length: Length, needed: StepFlops | None, goes_on: bool) -> LoopSettings:
        budget, config = self.job.budget, self.context.config.train
        # What cannot be shared evenly is padded with masked slots: any number of workers takes the same steps.
        share = slots(budget.global_batch, self.context.world)
        wanted = min(share, config.micro_batch or share)
        micro = micro_batch_for(share, max(1, wanted >> self.halvings))
        peak = peak_flops(device(), bf16=config.precision is Precision.BF16)
        return LoopSettings(
            total_steps=length.steps,
            # Without the head a stage does not move the score: there is no best state to choose but the last.
            validations=budget.validations if Role.HEAD in self.stage.trains else 1,
            log_every=config.log_every,
            checkpoint_every=config.checkpoint_every,
            micro_batch=micro,
            accumulation=math.ceil(share / micro),
            penalty_weight=self.method.penalty_weight,
            # An adapter that is kept has learnt something: a new one is nothing before the first step, in the bank as well.
            validate_start=goes_on or (starts_by_ridge(self.job, length) and not self.stage.grows),
            least_loss=is_refitted(self.job),
            sample_flops=needed.total if needed else 0.0,
            peak_flops=self.context.world * peak if needed and peak else 0.0,
        )

    def _engine_settings(self, settings: LoopSettings) -> EngineSettings:
        config = self.context.config.train
        return EngineSettings(
            zero_stage=config.zero_stage,
            micro_batch=settings.micro_batch,
            accumulation=settings.accumulation,
            budget=self.job.budget,
            total_steps=settings.total_steps,
        )

    def _groups(self, module: StageModule, length: Length) -> list[dict[str, Any]]:
        budget = self.job.budget
        groups = optimizer_groups(
            module.model,
            lr=budget.lr,
            query_lr_scale=budget.query_lr_scale,
            weight_decay=budget.weight_decay,
            backbone_lr_scale=self.method.backbone_lr_scale,
            coefficient_lr=self.method.stage_two_coefficient_lr if self.stage.grows else self.method.coefficient_lr,
            head_lr=budget.head_lr if is_fitted(self.job, length) else 0.0,
        )
        heads = list(module.auxiliary_heads.named_parameters())
        for name, decay in (("biases", 0.0), ("weights", budget.weight_decay)):
            params = [p for n, p in heads if n.endswith("bias") == (name == "biases")]
            groups += (
                [{"name": f"auxiliary task {name}", "params": params, "lr": budget.lr, "weight_decay": decay}] if params else []
            )
        return groups


def _whole(engine: Any, module: StageModule, names: Sequence[str]) -> dict[str, Tensor]:
    """Copies on the CPU. One parameter after the other: with ZeRO-3 a device may have no room for all of them."""
    parameters, copies = dict(module.named_parameters()), {}
    for name in names:
        with gathered(engine, [parameters[name]]):
            copies[name] = parameters[name].detach().to("cpu", copy=True)
    return copies


def _put_back(engine: Any, module: StageModule, tensors: Mapping[str, Tensor]) -> None:
    """Make the best state the current one."""
    parameters = dict(module.named_parameters())
    for name, value in tensors.items():
        with torch.no_grad(), gathered(engine, [parameters[name]], change=True):
            parameters[name].copy_(value)


def _size(parameter: Tensor) -> int:
    """Numbers in a parameter; ZeRO-3 leaves an empty shell and keeps the count in `ds_numel`."""
    return int(getattr(parameter, "ds_numel", parameter.numel()))
