"""Patience with a store: repeat what may be repeated, and find out what became of a write whose answer got lost.

The rule for a create-only write of unknown outcome: send *the same bytes to the same key* again. What the key holds then is the
truth for ever, and reading it back tells which: our bytes (we won, whichever of our tries it was), or other bytes (somebody else
won). Guessing either way loses or doubles a fact.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from atlas_dist.clock import Clock
from atlas_dist.errors import AlreadyExists, MissingObject, PreconditionFailed, StoreError, UnknownOutcome
from atlas_dist.store.objects import ObjectStore

_T = TypeVar("_T")


@dataclass(frozen=True)
class Patience:
    """How long to go on asking a store that is in trouble: waits double from `first_s` to `longest_s`, `total_s` in all."""

    first_s: float = 0.2
    longest_s: float = 20.0
    total_s: float = 600.0


DEFAULT_PATIENCE = Patience()


def retry_unavailable(what: Callable[[], _T], clock: Clock, patience: Patience = DEFAULT_PATIENCE) -> _T:
    """Call `what`, which must be safe to repeat, until the store answers.

    Clear answers (MissingObject, AlreadyExists, PreconditionFailed) and errors that waiting can't mend are raised at once.

    Raises:
        StoreError: the last one, when patience has run out.
    """
    waits = _Waits(clock, patience)
    while True:
        try:
            return what()
        except (MissingObject, AlreadyExists, PreconditionFailed):
            raise
        except StoreError as error:
            waits.wait_or_raise(error)


def create_settled(store: ObjectStore, key: str, data: bytes, clock: Clock, patience: Patience = DEFAULT_PATIENCE) -> None:
    """Create `key` with `data` and don't return before it is known whether that happened.

    Returning means that `data` is what the key holds. The bytes must be this writer's own (a nonce in them), or equal bytes of
    another writer must be just as good.

    Raises:
        AlreadyExists: the key holds other bytes.
        StoreError: patience ran out; the outcome is *still* unknown, and the caller must re-read before it acts on anything.
    """
    waits = _Waits(clock, patience)
    while True:
        try:
            store.create(key, data)
        except AlreadyExists:
            # By somebody else, or by an earlier try of ours whose answer was lost.
            found = _read_back(store, key, len(data), clock, patience)
            if found is None:
                waits.wait_or_raise(StoreError(f"{key} can be neither created nor read."))
                continue
            if found != data:
                raise
            return
        except StoreError as error:
            if not isinstance(error, UnknownOutcome) and not _may_pass(error):
                raise
            waits.wait_or_raise(error)
        else:
            return


def _may_pass(error: StoreError) -> bool:
    # A fix that the user must apply (missing bucket, full disk) is not waited for.
    return not error.fix


def _read_back(store: ObjectStore, key: str, size: int, clock: Clock, patience: Patience) -> bytes | None:
    def read() -> bytes | None:
        try:
            # Longer than ours is certainly not ours: no need to read it all.
            return store.get(key) if store.stat(key).size == size else b""
        except MissingObject:
            return None

    return retry_unavailable(read, clock, patience)


class _Waits:
    """The waiting times of one operation."""

    def __init__(self, clock: Clock, patience: Patience) -> None:
        self._clock = clock
        self._patience = patience
        self._next = patience.first_s
        self._give_up_at = clock.monotonic() + patience.total_s

    def wait_or_raise(self, error: StoreError) -> None:
        if self._clock.monotonic() + self._next > self._give_up_at:
            raise error
        self._clock.sleep(self._next)
        self._next = min(self._next * 2.0, self._patience.longest_s)
