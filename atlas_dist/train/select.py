"""Committing a task: the best of its trained forms, as files of its own (core/selection.py, docs/method.md, What is committed).

No forward pass is needed: every candidate left its loss and score of each validation sample.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
from safetensors.torch import load as parse_tensors

from atlas_dist.clock import Stopwatch
from atlas_dist.core.attempts import Assignment, CommittedRef
from atlas_dist.core.result_files import (
    ADAPTER_FILE,
    CONFIG_FILE,
    DETAILS_FILE,
    SAMPLES_FILE,
    SIGNATURE_FILE,
    SIGNATURES_FILE,
    TASK_FILE,
    VALIDATION_FILE,
)
from atlas_dist.core.results import SelectResult, StageSeconds, TrainResult
from atlas_dist.core.selection import Evidence, Form, Selection, select
from atlas_dist.errors import DataError
from atlas_dist.store import artifacts
from atlas_dist.store.objects import ObjectStore
from atlas_dist.train.context import RankContext
from atlas_dist.train.files import adapter_config
from atlas_dist.train.inputs import pack_tensors, read_if_there
from atlas_dist.train.signatures import POOLED, site_keys


def commit_best(context: RankContext, assignment: Assignment) -> tuple[dict[str, bytes], SelectResult]:
    """Decide, and hand on the files of the form that is kept; {} on other ranks than 0.

    Raises:
        DataError: a candidate's file does not match its hash, or the candidates were validated on different samples.
    """
    if not context.is_rank_zero:
        return {}, SelectResult()
    stopwatch, job, store = Stopwatch(), assignment.job, context.store
    selecting = context.method_of(job).selecting
    assert selecting is not None, "only a method that trains several forms has such a job"
    candidates = {Form(form): assignment.inputs[key] for form, key in job.candidates.items()}
    chosen = select(
        evidence(store, candidates),
        expand=selecting.expand,
        epsilon=selecting.epsilon,
        epsilon_loss=selecting.epsilon_loss,
        confidence=selecting.confidence,
        familiar=max(_looked_back(candidates).similarity.values(), default=0.0) >= selecting.familiar,
    )
    kept = candidates[chosen.form]
    looked_back = TrainResult.of(kept)
    sees = looked_back.sees if chosen.form is not Form.OWN else ()
    sees += (job.key,) if chosen.form.grows else ()
    result = replace(_result(candidates, chosen, sees, round(stopwatch.lap(), 3)), candidates=job.candidates)
    return _files(context, assignment, kept, chosen.form, sees), result


def evidence(store: ObjectStore, candidates: Mapping[Form, CommittedRef]) -> dict[Form, Evidence]:
    """How each form does on every validation sample, in the samples' order. Raises DataError as `commit_best`."""
    found: dict[Form, Evidence] = {}
    samples = None
    for form, ref in candidates.items():
        tensors = parse_tensors(artifacts.load(store, ref, VALIDATION_FILE))
        ordinals = tensors["sample"].tolist()
        samples = samples or ordinals
        if ordinals != samples:
            raise DataError(f"{ref.attempt} was validated on other samples than the forms it is compared with.")
        scores, losses = (np.asarray(tensors[name].double().numpy()) for name in ("score", "loss"))
        found[form] = Evidence(scores, losses)
    return found


def _looked_back(candidates: Mapping[Form, CommittedRef]) -> TrainResult:
    """Of stage one, which knows how similar the tasks of the bank are; empty without one."""
    return TrainResult.of(candidates[Form.EXPERIENCE]) if Form.EXPERIENCE in candidates else TrainResult()


def _result(candidates: Mapping[Form, CommittedRef], chosen: Selection, sees: tuple[str, ...], seconds: float) -> SelectResult:
    kept = TrainResult.of(candidates[chosen.form])
    looked_back = _looked_back(candidates)
    return SelectResult(
        world=kept.world,
        score=kept.score,
        loss=kept.loss,
        samples=kept.samples,
        best_step=kept.best_step,
        trained_parameters=kept.trained_parameters,
        seconds=StageSeconds(training=seconds),
        environment=kept.environment,
        form=chosen.form.value,
        scores={form.value: round(score, 4) for form, score in chosen.scores.items()},
        losses={form.value: round(loss, 6) for form, loss in chosen.losses.items()},
        gain=chosen.gain,
        sees=sees,
        similarity=looked_back.similarity,
        started_from=looked_back.started_from,
        composition=kept.composition,
    )


def _files(
    context: RankContext, assignment: Assignment, kept: CommittedRef, form: Form, sees: tuple[str, ...]
) -> dict[str, bytes]:
    """What the kept form left, the key of its adapter, and the signatures of the bank with this task's."""
    job, store, inputs = assignment.job, context.store, assignment.inputs
    names = {blob.name for blob in kept.blobs}
    files = {name: artifacts.load(store, kept, name) for name in (TASK_FILE, DETAILS_FILE, SAMPLES_FILE) if name in names}
    signature = read_if_there(store, inputs[job.signature_from], SIGNATURE_FILE)
    signatures = read_if_there(store, inputs.get(job.bank_from), SIGNATURES_FILE)
    files[SIGNATURE_FILE] = pack_tensors(signature)
    if form.grows:
        adapter = read_if_there(store, kept, ADAPTER_FILE)
        keys = {} if context.method_of(job).mixing.lora else site_keys(signature)  # which are of the sites of bottlenecks
        files[ADAPTER_FILE] = pack_tensors({**adapter, **keys})
        signatures |= {f"{job.key}/{part}": signature[f"{POOLED}/{part}"] for part in ("mean", "spread")}
    files[SIGNATURES_FILE] = pack_tensors(signatures)
    others = tuple(key for key in sees if key != job.key)
    files[CONFIG_FILE] = adapter_config(context, job, others, form.value).to_json()
    return files
