"""Which earlier adapters a stage looks at: the whole bank, or the nearest by signature. One that declined to grow has none."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from atlas_dist.core.attempts import CommittedRef
from atlas_dist.core.result_files import ADAPTER_FILE, PROVENANCE_FILE, SIGNATURE_FILE, SIGNATURES_FILE
from atlas_dist.core.results import TrainResult
from atlas_dist.core.signature import nearest
from atlas_dist.core.types import StageJob
from atlas_dist.methods import Method
from atlas_dist.store.objects import ObjectStore
from atlas_dist.train.inputs import read_if_there
from atlas_dist.train.signatures import signature_of, signatures_in


@dataclass(frozen=True)
class LookBack:
    """What a stage sees: `sees`, keys of adapters in the bank's order; `similarity` of every one that it might have seen."""

    sees: tuple[str, ...] = ()
    similarity: Mapping[str, float] = field(default_factory=dict)


def look_back(store: ObjectStore, method: Method, job: StageJob, inputs: Mapping[str, CommittedRef]) -> LookBack:
    """The adapters that a training job sees. Raises DataError when a file does not match its hash."""
    if method.selecting is None:
        return LookBack(job.bank)
    if job.model_from:
        before = TrainResult.of(inputs[job.model_from])
        return LookBack(before.sees, before.similarity)
    grown = tuple(key for key in job.bank if has_adapter(inputs[key]))
    new = signature_of(read_if_there(store, inputs[job.signature_from], SIGNATURE_FILE))
    learnt = signatures_in(read_if_there(store, inputs.get(job.bank_from), SIGNATURES_FILE), grown)
    # An imported adapter was learnt by no task of the chain, so it brings its own.
    learnt |= {key: signature_of(read_if_there(store, inputs[key], SIGNATURE_FILE)) for key in grown if was_imported(inputs[key])}
    known = {key: learnt[key] for key in grown if key in learnt}
    found, sees = nearest(new, known, method.selecting.retrieve)
    return LookBack(sees, found)


def has_adapter(ref: CommittedRef) -> bool:
    """Whether a result has an adapter: a task that declined to grow has none."""
    return any(blob.name == ADAPTER_FILE for blob in ref.blobs)


def was_imported(ref: CommittedRef) -> bool:
    """Whether a result is an adapter that nobody here trained."""
    return any(blob.name == PROVENANCE_FILE for blob in ref.blobs)
