"""A training job on one rank: build what the stage sees, train it, keep the best, and hand over the files of the result."""

from __future__ import annotations

import math
import resource
from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor

from atlas_dist.config import Precision
from atlas_dist.core.keys import canonical_json
from atlas_dist.core.types import Assignment, CommittedRef, StageJob
from atlas_dist.data.stream import Stream
from atlas_dist.errors import TrainingError
from atlas_dist.model.atlas import AtlasModel
from atlas_dist.model.heads import HeadSpec
from atlas_dist.model.mixing import Weighting
from atlas_dist.train import checkpoint
from atlas_dist.train.context import RankContext, Stopwatch, seed_of
from atlas_dist.train.engine import EngineSettings, StageModule, build_engine, device, gathered
from atlas_dist.train.feed import micro_batch_for
from atlas_dist.train.inputs import (
    ADAPTER_FILE,
    DETAILS_FILE,
    TASK_FILE,
    head_of,
    pack_tensors,
    queries_of,
    read_adapters,
    read_task,
)
from atlas_dist.train.loop import Callbacks, LoopSettings, LoopState, Progress, Scores, Timing, evaluate, train
from atlas_dist.train.reuse import ReuseMeter

Report = Callable[[Progress], bool]
Save = Callable[[int, Mapping[str, bytes]], None]


class Learner:
    """One training job on one rank. `run()` returns the files of the result (rank 0; {} elsewhere) and its metrics.

    Args:
        save: stores a mid-stage checkpoint (step, files); called on rank 0 only.
        resume: the files of the checkpoint to go on from, or {}.
    """

    def __init__(
        self, context: RankContext, assignment: Assignment, report: Report, save: Save, resume: Mapping[str, bytes]
    ) -> None:
        self.context, self.job, self.inputs = context, assignment.job, assignment.inputs
        self.report, self.save, self.resume = report, save, resume

    def run(self) -> tuple[dict[str, bytes], dict[str, Any]]:
        """Train the stage. Raises what `loop.train` raises, and DataError for inputs that do not fit."""
        watch = Stopwatch()
        context, job = self.context, self.job
        with (
            build_model(context, job, self.inputs) as model,
            context.training_stream(job, 0) as stream,
            context.validation_stream(job) as validation,
        ):
            assert job.stage is not None, "a training job has a stage"
            names = model.trainable_names(job.stage.trains)
            model.freeze_to(names)
            settings = self._loop_settings(stream)
            module = StageModule(
                model, HeadSpec(job.task.kind, job.task.classes), bf16=context.config.train.precision is Precision.BF16
            )
            module.to(device())
            engine = build_engine(module, self._groups(model), self._engine_settings(settings))
            try:
                return self._train(engine, module, names, stream, validation, settings, watch)
            finally:
                engine.destroy()

    def _train(
        self,
        engine: Any,
        module: StageModule,
        names: tuple[str, ...],
        stream: Stream,
        validation: Stream,
        settings: LoopSettings,
        watch: Stopwatch,
    ) -> tuple[dict[str, bytes], dict[str, Any]]:
        context = self.context
        inside = tuple(f"model.{name}" for name in names)
        state = checkpoint.restore(self.resume, engine, module, inside, settings.accumulation) if self.resume else LoopState()
        resumed_at = state.step
        feed = context.feeder()

        def snapshot() -> dict[str, Tensor]:
            parameters = dict(module.named_parameters())
            with gathered(engine, [parameters[n] for n in inside]):
                return {n: parameters[n].detach().cpu().clone() for n in inside}

        def keep(at: LoopState) -> None:
            if context.config.train.zero_stage == 0:
                files = checkpoint.capture(engine, module, inside, at) if context.leader else {}
                if context.leader:
                    self.save(at.step, files)
                context.barrier()

        callbacks = Callbacks(
            report=lambda progress: self.report(progress) if context.leader else False,
            validate=lambda: evaluate(module, validation.validation(), feed),
            snapshot=snapshot,
            checkpoint=keep,
        )
        setup = watch.lap()
        timing = train(engine, module, stream, feed, settings, state, callbacks)
        _put_back(engine, module, state.best_tensors)
        final, alpha = self._measure(module, validation)
        with gathered(engine, list(module.parameters())):
            files = self._files(module.model) if context.leader else {}
        if context.leader:
            files[DETAILS_FILE] = canonical_json({"curve": state.curve, "validation": state.validation, "alpha": alpha})
        metrics = self._metrics(module, names, state, settings, timing, stream, final)
        metrics["seconds"] |= {"setup": round(setup, 3), "training": round(watch.lap(), 3)}
        return files, metrics | {"resumed_at": resumed_at}

    def _measure(self, module: StageModule, validation: Stream) -> tuple[Scores, dict[str, Any]]:
        """Score the best state once more, and see what it draws on."""
        feed = self.context.feeder()
        if not self.job.bank or self.context.method.mixing.weighting is Weighting.PLAIN:
            return evaluate(module, validation.validation(), feed), {}
        meter = ReuseMeter(module.model, feed.device)
        scores = evaluate(module, validation.validation(), feed, meter.look)
        return scores, meter.summary()

    def _files(self, model: AtlasModel) -> dict[str, bytes]:
        """Adapter and key in one file (what later tasks see), queries and head in another (what only this task needs)."""
        assert self.job.stage is not None
        files = {TASK_FILE: pack_tensors({**model.export_queries(), **model.export_head()})}
        if self.job.stage.grows:
            files[ADAPTER_FILE] = pack_tensors(model.export_adapter())
            files["adapter_config.json"] = canonical_json(
                {
                    "format": "atlas-dist adapter 1",
                    "base_model": self.context.config.backbone.model_dump(),
                    "base_model_digest": self.context.trunk().digest,
                    "task": self.job.task,
                    "method": self.job.method,
                    "settings": self.context.method.spec.settings,
                    "sees": self.job.bank,
                }
            )
        return files

    def _metrics(
        self,
        module: StageModule,
        names: tuple[str, ...],
        state: LoopState,
        settings: LoopSettings,
        timing: Timing,
        stream: Stream,
        final: Scores,
    ) -> dict[str, Any]:
        stats = stream.stats()
        parameters = dict(module.model.named_parameters())
        return {
            "score": final.score,
            "loss": final.loss,
            "samples": final.samples,
            "best_step": state.best_step,
            "steps": settings.total_steps,
            "trained_parameters": sum(_size(parameters[n]) for n in names),
            "seconds": {k: round(v, 3) for k, v in asdict(timing).items()},
            "bytes_read": stats.bytes,
            "bad_samples": [asdict(b) for b in stats.bad],
            "world": self.context.world,
            "peak_rss_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
        }

    def _loop_settings(self, stream: Stream) -> LoopSettings:
        budget, config = self.job.budget, self.context.config.train
        share = budget.global_batch // self.context.world
        if share * self.context.world != budget.global_batch:
            raise TrainingError(
                f"The global batch of {budget.global_batch} cannot be shared evenly by {self.context.world} workers.",
                fix="Choose train.workers so that it divides the global batch.",
            )
        micro = micro_batch_for(share, config.micro_batch)
        return LoopSettings(
            total_steps=budget.max_steps or max(1, math.ceil(budget.epochs * stream.steps_per_epoch)),
            validations=budget.validations,
            log_every=config.log_every,
            checkpoint_every=config.checkpoint_every,
            micro_batch=micro,
            accumulation=share // micro,
            penalty_weight=self.context.method.penalty_weight,
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

    def _groups(self, model: AtlasModel) -> list[dict[str, Any]]:
        budget = self.job.budget
        return model.optimizer_groups(lr=budget.lr, query_lr_scale=budget.query_lr_scale, weight_decay=budget.weight_decay)


def build_model(context: RankContext, job: StageJob, inputs: Mapping[str, CommittedRef]) -> AtlasModel:
    """The model of a training job with everything it starts from. Raises DataError for inputs that do not fit."""
    method = context.method
    assert job.stage is not None, "a training job has a stage"
    model = AtlasModel(
        context.trunk().model,
        HeadSpec(job.task.kind, job.task.classes),
        method.mixing,
        visible=len(job.bank),
        grows=job.stage.grows,
        seed=seed_of(job, "init"),
        second_image_type=method.second_image_type,
        normalize_ortho=method.normalize_ortho,
    )
    try:
        model.load_adapters(read_adapters(context.store, inputs, job.bank))
        has_queries = bool(job.bank) and method.mixing.weighting is not Weighting.PLAIN
        if job.model_from:
            before = read_task(context.store, inputs[job.model_from])
            model.load_head(head_of(before))
            if has_queries:
                model.load_queries(queries_of(before))
        elif job.queries_from and has_queries and method.inherit_queries:
            model.load_queries(queries_of(read_task(context.store, inputs[job.queries_from])))
    except BaseException:
        model.close()
        raise
    return model


def _put_back(engine: Any, module: StageModule, tensors: Mapping[str, Tensor]) -> None:
    """Make the best state the current one."""
    parameters = dict(module.named_parameters())
    chosen = [parameters[n] for n in tensors]
    with torch.no_grad(), gathered(engine, chosen, change=True):
        for name, value in tensors.items():
            parameters[name].copy_(value)


def _size(parameter: Tensor) -> int:
    """Numbers in a parameter; ZeRO-3 leaves an empty shell and keeps the count in `ds_numel`."""
    return int(getattr(parameter, "ds_numel", parameter.numel()))
