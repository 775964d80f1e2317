"""Is a bank still what its ledger says? Every committed file is read again and hashed; with a backbone and data, scored again."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from atlas_dist.bank.contents import Bank, Evaluation, Learnt
from atlas_dist.bank.weights import BankWeights
from atlas_dist.config import BackboneConfig, MethodConfig, Precision, RunConfig
from atlas_dist.core.attempts import Assignment, CommittedRef
from atlas_dist.core.types import JobKind, StageJob, View
from atlas_dist.errors import ConfigError, DataError
from atlas_dist.methods import name_of_stored
from atlas_dist.model.backbone import Backbone
from atlas_dist.runs.status import load_run
from atlas_dist.store import artifacts
from atlas_dist.store.objects import ObjectStore
from atlas_dist.train.context import RankContext
from atlas_dist.train.engine import join_alone
from atlas_dist.train.reading import arranged, reading_model
from atlas_dist.train.score import score, score_model

NO_EVALUATION_TOLERANCE = 0.5
"""Percentage points by which a score may differ from the one that *training* measured. There the new adapter is a group of its
own, here it is stacked with the others: equal sums in another order, so that a sample on the edge may fall to the other side. A
recorded evaluation was computed as here and must be met exactly."""


@dataclass(frozen=True)
class Checked:
    """One committed result: what was read again, and what is wrong with it ("" = nothing)."""

    ref: CommittedRef
    fault: str = ""

    @property
    def size(self) -> int:
        """Bytes of its files."""
        return sum(blob.size for blob in self.ref.blobs)


def verify_results(store: ObjectStore, run: str) -> Iterator[Checked]:
    """Re-read and re-hash every file of every committed result of a run, evaluations too; goes on after a damaged one.

    Raises:
        StoreError: the ledger is damaged, or the store is in trouble: nothing is known then.
    """
    state, _ = load_run(store, run)
    for job in state.jobs.values():
        if job.committed is not None:
            yield _checked(store, job.committed)


def _checked(store: ObjectStore, ref: CommittedRef) -> Checked:
    try:
        artifacts.verify(store, ref.prefix, ref.blobs)
    except DataError as error:
        return Checked(ref, error.message)
    return Checked(ref)


@dataclass(frozen=True)
class Rescored:
    """A learnt task, loaded from its files and scored again."""

    learnt: Learnt
    score: float
    """Percent."""
    predictions_sha256: str
    evaluation: Evaluation | None = field(default=None)
    """The recorded one; None when the run has not evaluated the task yet."""

    @property
    def expected(self) -> float:
        """The score to meet, in percent."""
        return self.evaluation.score if self.evaluation else self.learnt.score

    @property
    def bitwise(self) -> bool:
        """Every logit of every sample is equal to the last bit."""
        return self.evaluation is not None and self.evaluation.predictions_sha256 == self.predictions_sha256

    @property
    def reproduced(self) -> bool:
        """Whether the reloaded model is what was recorded."""
        return abs(self.score - self.expected) <= (1e-9 if self.evaluation else NO_EVALUATION_TOLERANCE)


def rescore(config: RunConfig, bank: Bank, learnt: Learnt, context: RankContext | None = None) -> Rescored:
    """Score one learnt task in its own view, by the very code that a run's evaluations use.

    Args:
        config: says where the shards are, and `train.eval_batch`; backbone, method and precision are the bank's own.
        context: of an earlier call with the same bank, to keep the backbone.

    Raises:
        DataError: the backbone or the shards are not those that the task was learnt with, or a file is damaged.
    """
    context = context or rescoring_context(config, bank, learnt)
    require_base(context.backbone(), learnt)
    refs: Mapping[str, CommittedRef] = {key: bank.ref_of(key) for key in (*learnt.view, learnt.key)}
    job = rescoring_job(learnt)
    if bank.evaluation_of(learnt.key) is None:  # then training's own score is what there is, and that is of the validation split
        job = replace(job, task=replace(job.task, test="", test_digest=""))
    _, result = score(context, Assignment(job, "rescore", "", refs), lambda _: False)
    now = result.views[View.TASK]
    recorded = bank.evaluation_of(learnt.key) or _same_predictions(bank, now.predictions_sha256)
    return Rescored(learnt, now.score, now.predictions_sha256, recorded)


def rescoring_job(learnt: Learnt) -> StageJob:
    """The evaluation of a learnt task in its own view, as a job."""
    view = learnt.view
    return StageJob(
        key="rescore",
        kind=JobKind.EVAL,
        task=learnt.task,
        method=learnt.method,
        seed=0,
        parents=view,
        bank=view,
        model_from=learnt.key,
        views=(View.TASK,),
        own_bank=len(view),
        settings=learnt.settings,
    )


def rescoring_context(config: RunConfig, bank: Bank | BankWeights, learnt: Learnt) -> RankContext:
    """A rank of its own with the backbone, the method and the precision that a task was learnt with. Needs no Ray."""
    join_alone()
    train = config.train.model_copy(update={"precision": Precision(bank.precision), "zero_stage": 0, "leave_one_out": False})
    base = BackboneConfig.model_validate(learnt.base.address)
    method = MethodConfig(name=name_of_stored(learnt.method), settings=dict(learnt.settings))
    return RankContext(config.model_copy(update={"train": train, "backbone": base, "method": method}), 0, 1)


def rescore_weights(context: RankContext, weights: BankWeights, key: str, view: Sequence[str] | None = None) -> float:
    """Validation score in percent of a task that is read from memory: from an exported folder, or with fewer adapters.

    Args:
        context: of `rescoring_context` for the same bank.
        view: some of the adapters that the task reads, in bank order; None = all of them.

    Raises:
        DataError: the backbone or the shards are not those that the task was learnt with, or a tensor does not fit.
    """
    task, has = weights.tasks[key], weights.view(key)
    chosen = has if view is None else tuple(view)
    require_base(context.backbone(), task.learnt)
    job = rescoring_job(task.learnt)
    own_key = key if context.method_of(job).selecting is not None and key in has else ""
    parts = arranged(task.own, has, chosen, own_key, lambda keys: [weights.adapters[seen] for seen in keys], lambda: task.adapter)
    with context.validation_stream(job) as stream, reading_model(context, job, parts) as model:
        return score_model(context, job, model, stream).score


@dataclass(frozen=True)
class Worth:
    """A task of an exported bank, scored again."""

    score: float
    """Percent."""
    expected: float
    source: str
    """Where the expected score stands."""
    tolerance: float

    @property
    def reproduced(self) -> bool:
        """Whether it is what was written down."""
        return abs(self.score - self.expected) <= self.tolerance


def worth(context: RankContext, weights: BankWeights, key: str) -> Worth:
    """Score a task of an exported bank as it stands there. Errors as `rescore_weights`."""
    score = rescore_weights(context, weights, key)
    if key in weights.rescored:
        return Worth(score, weights.rescored[key], "what pruning measured", 1e-9)
    return Worth(score, weights.tasks[key].learnt.score, "what training measured", NO_EVALUATION_TOLERANCE)


def require_base(backbone: Backbone, learnt: Learnt) -> None:
    """Raises ConfigError unless `backbone` is the one that the task was learnt on."""
    if backbone.digest != learnt.base.digest:
        raise ConfigError(
            f"{learnt.name} was learnt on another backbone: {learnt.base.name} with digest {learnt.base.digest[:12]}; "
            f"{backbone.name} here has {backbone.digest[:12]}.",
            fix="Use the weights it was learnt with (backbone.source, backbone.revision), or the version of atlas-dist that did.",
        )


def _same_predictions(bank: Bank, fingerprint: str) -> Evaluation | None:
    """Older ledgers do not say which task an evaluation is about; equal bits do."""
    return next((e for about, e in bank.evaluations if not about and e.predictions_sha256 == fingerprint), None)
