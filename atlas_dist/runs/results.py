"""Results in a store: is an attempt's result right, has another run this result already, and what may be deleted.

These functions read and write the store but decide nothing about the run: the coordinator does, and records it first.
"""

from __future__ import annotations

from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass

from atlas_dist.clock import Clock
from atlas_dist.core.attempts import CommittedRef, StageResult
from atlas_dist.core.keys import canonical_json, check_key
from atlas_dist.core.records import from_json
from atlas_dist.errors import AlreadyExists, AtlasError, DataError, MissingObject
from atlas_dist.failpoints import failpoint
from atlas_dist.runs import layout
from atlas_dist.store.artifacts import KeepAlive, read_json, read_result, retry_damaged, verify
from atlas_dist.store.objects import ObjectStore
from atlas_dist.store.settle import Patience, create_settled


@dataclass(frozen=True)
class Pointer:
    """What `results/<job key>` holds: whose commit it is."""

    run: str
    ref: CommittedRef


def verified_result(store: ObjectStore, job: str, attempt: str, prefix: str, keep_alive: KeepAlive) -> StageResult | None:
    """The attempt's RESULT after re-reading everything that it names; None when it has none.

    Raises:
        DataError: RESULT or a file is damaged, missing, or speaks of another attempt.
        StoreError: the store is in trouble; nothing is known.
    """
    try:
        result = retry_damaged(lambda: read_result(store, prefix))
    except MissingObject:
        return None
    if (result.job, result.attempt) != (job, attempt):
        raise DataError(f"{prefix}/RESULT is about attempt {result.attempt} of job {result.job}.")
    failpoint("commit.before_verify")
    verify(store, prefix, result.blobs, keep_alive=keep_alive)
    return result


def verified_fact(store: ObjectStore, job: str, keep_alive: KeepAlive) -> Pointer | None:
    """What another run has committed for this job, after re-reading everything; None when there is nothing.

    Raises:
        DataError: there is something, but it is damaged: train the job instead.
        StoreError: the store is in trouble; nothing is known.
    """
    try:
        pointer = retry_damaged(lambda: from_json(Pointer, read_json(store, layout.result(job))))
    except MissingObject:
        return None
    if pointer.ref.job != job:
        raise DataError(f"{layout.result(job)} points to job {pointer.ref.job}.")
    check_key(pointer.ref.prefix)
    verify(store, pointer.ref.prefix, pointer.ref.blobs, keep_alive=keep_alive)
    return pointer


def known_results(store: ObjectStore) -> set[str]:
    """Keys of all jobs that any run of the store has a committed result of. Raises StoreError."""
    return {info.key.rpartition("/")[2] for info in store.list("results/")}


def read_pointers(store: ObjectStore, jobs: Iterable[str]) -> dict[str, Pointer]:
    """Job key -> whose result it has, unverified; damaged ones are left out: such a job would be trained."""
    jobs = list(jobs)
    with ThreadPoolExecutor(16) as pool:  # one after the other, thousands of them would take minutes from S3
        read = zip(jobs, pool.map(lambda job: _read_pointer(store, job), jobs), strict=True)
        return {job: pointer for job, pointer in read if pointer is not None}


def _read_pointer(store: ObjectStore, job: str) -> Pointer | None:
    try:
        return from_json(Pointer, read_json(store, layout.result(job)))
    except AtlasError:
        return None


def point_to(store: ObjectStore, run: str, ref: CommittedRef, clock: Clock, patience: Patience) -> None:
    """Let other runs find a commit; whoever was first stays. Raises StoreError."""
    failpoint("commit.before_pointer")
    with suppress(AlreadyExists):  # by another run: a fact that is equal in everything it depends on
        create_settled(store, layout.result(ref.job), canonical_json(Pointer(run, ref)), clock, patience)
    failpoint("commit.after_pointer")


def delete_below(store: ObjectStore, prefix: str, keep_alive: KeepAlive) -> None:
    """Delete every object below `prefix/`. Raises StoreError; call again then."""
    for info in list(store.list(f"{prefix}/")):
        keep_alive()
        store.delete(info.key)
