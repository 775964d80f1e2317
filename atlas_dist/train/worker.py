"""What each rank does with an assignment: dispatch by kind, publish the result, and turn what went wrong into a Failure.

An error that strikes every rank alike (not finite, asked to stop) leaves the group healthy: the next job may come. An error of
one rank leaves the others waiting in a collective; then the group must go, and `GroupBroken` says so. So it does after an error
that a process keeps: CUDA fails every call after a bad one, and a communicator that has lost a rank never finds it again.
"""

from __future__ import annotations

import logging
import socket
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
import torch.distributed as dist

from atlas_dist.core.attempts import Assignment, Failure, FailureKind
from atlas_dist.core.pace import likeness
from atlas_dist.core.results import Result
from atlas_dist.core.types import JobKind, StageJob
from atlas_dist.device import release_memory
from atlas_dist.errors import AuthError, ConfigError, DataError, ExpiredCredentials, OutOfMemory, Paused, StoreError
from atlas_dist.logs import log_context, log_fields
from atlas_dist.output_tail import OutputTail
from atlas_dist.pulse import pulse
from atlas_dist.store import artifacts
from atlas_dist.store.attempt_logs import kept_log, rank_log
from atlas_dist.store.curves import TRAIN, VALIDATION, CurveWriter, history
from atlas_dist.train.configured import backbone_label
from atlas_dist.train.context import RankContext
from atlas_dist.train.learn import StageTrainer
from atlas_dist.train.loop import NonFiniteLoss, Scores, StepProgress
from atlas_dist.train.score import score
from atlas_dist.train.select import commit_best
from atlas_dist.train.signatures import describe

log = logging.getLogger(__name__)

PATIENCE_S = 10.0
"""Seconds that the ranks have to arrive together after a failure before the group counts as broken."""


class GroupBroken(RuntimeError):
    """The ranks no longer agree on where they are; the workers must be started again. `failure` is what this rank saw first."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(failure.reason)
        self.failure = failure


@dataclass(frozen=True)
class Outcome:
    """How an assignment ended on this rank: `failure` is None when the RESULT is published."""

    failure: Failure | None = None


class StageWorker:
    """One rank of a pool. Ranks call `run` with the same assignment at the same time."""

    def __init__(self, context: RankContext) -> None:
        self.context = context

    def run(self, assignment: Assignment, report: Callable[[StepProgress], bool]) -> Outcome:
        """Do the job; the same kind of outcome on every rank. What is logged meanwhile says whose it is, and its newest lines are
        kept in the store.

        Raises:
            GroupBroken: the ranks fell out of step.
        """
        context, every_s = self.context, self.context.config.track.every_s
        key = rank_log(context.config.run, assignment.attempt, context.rank)
        with (
            pulse.job(assignment.attempt),
            log_context(job=assignment.job.key, label=assignment.job.label, attempt=assignment.attempt),
            OutputTail() as tail,
            kept_log(context.store, key, tail.text, every_s, quiet=not context.is_rank_zero) as keeper,
        ):
            try:
                outcome = self._run(assignment, report)
            finally:
                release_memory()
            if outcome.failure is not None:
                keeper.write()
            return outcome

    def _run(self, assignment: Assignment, report: Callable[[StepProgress], bool]) -> Outcome:
        log.info("begins%s", " at a checkpoint of an earlier attempt" if assignment.resume_from else "")
        at = _Position()

        def noted(progress: StepProgress) -> bool:
            at.step = progress.step  # on every rank: whichever says first that it failed is heard
            return report(progress) if self.context.is_rank_zero else False

        try:
            files, result = self._do(assignment, noted)
            nodes = self.context.gather(socket.gethostname())
            if self.context.is_rank_zero:
                result = replace(result, nodes=tuple(sorted(set(nodes))), like=self._likeness(assignment.job))
                store, job, metrics = self.context.store, assignment.job.key, result.to_json()
                artifacts.publish(store, assignment.prefix, job=job, attempt=assignment.attempt, files=files, metrics=metrics)
            self.context.barrier()
            log.info("is done and published")
            return Outcome()
        except Exception as error:  # whatever it is, the coordinator must hear of it
            failure = failure_of(error, at.step)
            unforeseen = failure.kind is FailureKind.POISON
            log.log(
                logging.INFO if failure.kind is FailureKind.PREEMPTED else logging.ERROR,
                "ends without a result: %s",
                failure.reason,
                exc_info=unforeseen,
                extra=log_fields(failure=failure.kind.value, step=failure.step),
            )
            if spoils_the_process(error):
                raise GroupBroken(failure) from None
            self._meet_again(failure)
            return Outcome(failure)

    def _likeness(self, job: StageJob) -> dict[str, Any]:
        config = self.context.config
        backbone = backbone_label(config, self.context.backbone().pictures.tiles)
        return likeness(job, backbone, config.train.precision.value)

    def _do(self, assignment: Assignment, report: Callable[[StepProgress], bool]) -> tuple[dict[str, bytes], Result]:
        if assignment.job.kind is JobKind.EVAL:
            return score(self.context, assignment, report)
        if assignment.job.kind is JobKind.DESCRIBE:
            return describe(self.context, assignment)
        if assignment.job.kind is JobKind.SELECT:
            return commit_best(self.context, assignment)

        if assignment.job.kind is JobKind.IMPORT:
            raise DataError(
                f"The imported adapter {assignment.job.task.name} is not in this store any more.",
                fix=f"Import it again: atlas-dist bank import FOLDER --as {assignment.job.task.name}.",
            )

        store, prefix = self.context.store, assignment.prefix
        before = history(store, assignment.resume_from) if self.context.is_rank_zero and assignment.resume_from else ()
        curve = CurveWriter(store, prefix, self.context.config.track.every_s, history=before)

        def reported(progress: StepProgress) -> bool:
            if self.context.is_rank_zero:
                curve.add(TRAIN, progress.step, _measured(progress) | {"workers": float(self.context.world)})
            return report(progress)

        def validated(step: int, scores: Scores) -> None:
            if self.context.is_rank_zero:
                curve.add(VALIDATION, step, {"loss": scores.loss, "score": scores.score})
                fields = log_fields(step=step, loss=scores.loss, score=scores.score)
                log.info("validated at step %d: %.1f %%", step, scores.score, extra=fields)

        def save(step: int, files: Mapping[str, bytes]) -> None:
            curve.flush()  # whoever goes on from this checkpoint finds the points up to it
            artifacts.save_checkpoint(store, prefix, step, files)
            log.info("checkpoint at step %d", step, extra=log_fields(step=step))

        try:
            return StageTrainer(self.context, assignment, reported, validated, save, self._resume_files(assignment)).run()
        finally:
            curve.flush()

    def _resume_files(self, assignment: Assignment) -> dict[str, bytes]:
        """The checkpoint to go on from, every file against its hash; {} when there is none."""
        if not assignment.resume_from:
            return {}
        with TemporaryDirectory(prefix="atlas-resume-") as folder:
            found = artifacts.fetch_checkpoint(self.context.store, assignment.resume_from, assignment.resume_digest, Path(folder))
            return {blob.name: (Path(folder) / blob.name).read_bytes() for blob in found.blobs}

    def _meet_again(self, failure: Failure) -> None:
        """After a failure: go on together, or not at all."""
        try:
            dist.monitored_barrier(group=self.context.control, timeout=timedelta(seconds=PATIENCE_S))
        except RuntimeError as error:
            raise GroupBroken(failure) from error


@dataclass
class _Position:
    step: int = 0


def _measured(progress: StepProgress) -> dict[str, float]:
    return {
        "loss": progress.loss,
        "score": progress.score,
        "lr": progress.lr,
        "samples_per_s": progress.samples_per_s,
        "data_wait": progress.data_wait,
    }


def failure_of(error: Exception, step: int) -> Failure:
    """What an exception means for retries (docs/reliability.md, Retries)."""
    reason = f"{type(error).__name__}: {error}"[:2000]
    if isinstance(error, NonFiniteLoss):
        return Failure(FailureKind.NONFINITE, reason, error.step)
    if isinstance(error, Paused):
        return Failure(FailureKind.PREEMPTED, reason, step)
    if isinstance(error, StoreError | ExpiredCredentials):
        return Failure(FailureKind.STORE, reason, step)
    if isinstance(error, OutOfMemory):
        helps = error.smaller and error.samples > 1
        return Failure(FailureKind.MEMORY if helps else FailureKind.POISON, reason, step)
    if isinstance(error, ConfigError | AuthError | DataError):
        return Failure(FailureKind.FATAL, reason, step)
    if _peer_went_away(error):
        return Failure(FailureKind.PREEMPTED, f"another worker of the group went away: {reason}"[:2000], step)
    if isinstance(error, dist.DistError):
        return Failure(FailureKind.DEVICE, f"the group's communicator is dead: {reason}"[:2000], step)
    if _device_is_broken(error):
        return Failure(FailureKind.DEVICE, f"the device fails until the process is replaced: {reason}"[:2000], step)
    return Failure(FailureKind.POISON, reason, step)


def spoils_the_process(error: Exception) -> bool:
    """Whether later jobs of this process would fail as well."""
    return isinstance(error, dist.DistError) or _peer_went_away(error) or _device_is_broken(error)


def _peer_went_away(error: Exception) -> bool:
    """Whether a collective broke because its other end is gone; gloo has only words for it."""
    return isinstance(error, RuntimeError) and any(word in str(error) for word in ("gloo/transport", "Connection closed by peer"))


def _device_is_broken(error: Exception) -> bool:
    """A CUDA error stays for the life of its process; so does memory that was short outside a pass, where nothing can be halved.
    cuBLAS and cuDNN have only words."""
    if isinstance(error, torch.AcceleratorError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(word in str(error) for word in ("CUDA error", "CUBLAS_STATUS", "CUDNN_STATUS"))
