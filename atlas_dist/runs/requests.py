"""Requests to a running coordinator: anybody who may write to the store can ask it to pause, resume or cancel."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum

from atlas_dist.clock import Clock
from atlas_dist.core.keys import canonical_json
from atlas_dist.core.records import from_json
from atlas_dist.errors import DataError, MissingObject
from atlas_dist.runs import layout
from atlas_dist.store.artifacts import read_json
from atlas_dist.store.objects import ObjectStore
from atlas_dist.store.settle import create_settled

_LIMIT = 64 << 10


class RequestKind(StrEnum):
    """What can be asked."""

    PAUSE = "pause"
    RESUME = "resume"
    CANCEL = "cancel"


@dataclass(frozen=True)
class RunRequest:
    """One request. `at` only orders requests that are read together."""

    id: str
    kind: RequestKind
    reason: str
    at: float


def ask(store: ObjectStore, run: str, kind: RequestKind, reason: str, *, clock: Clock, new_id: Callable[[], str]) -> RunRequest:
    """Leave a request for the run's coordinator, present or next. Raises StoreError."""
    request = RunRequest(id=new_id(), kind=kind, reason=reason[:500], at=clock.wall())
    create_settled(store, f"{layout.inbox(run)}/{request.id}", canonical_json(request), clock)
    return request


def read_requests(store: ObjectStore, run: str) -> tuple[list[RunRequest], list[str]]:
    """The requests that wait, oldest first, and the ids of files that are no requests. Raises StoreError."""
    prefix = f"{layout.inbox(run)}/"
    requests, unreadable = [], []
    for info in store.list(prefix):
        name = info.key[len(prefix) :]
        try:
            request = from_json(RunRequest, read_json(store, info.key, limit=_LIMIT))
            if request.id != name:
                raise DataError(f"{info.key} says that it is {request.id!r:.80}.")
            requests.append(request)
        except MissingObject:
            continue
        except DataError:
            unreadable.append(name)
    return sorted(requests, key=lambda r: (r.at, r.id)), unreadable


def discard(store: ObjectStore, run: str, request: str) -> None:
    """Remove a request that was answered (the ledger knows it by its id). Raises StoreError."""
    store.delete(f"{layout.inbox(run)}/{request}")
