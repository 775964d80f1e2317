"""What the processes of a run said, in the store: the newest lines of each rank of each attempt, and of each driver.

    logs/<run>/<attempt>/rank-<rank:04d>.log
    logs/<run>/<attempt>/rank-<rank:04d>.stacks.log     where its threads were, of an attempt that stood still
    logs/<run>/driver/<name>.log

A pod's own files go with the pod, and KubeRay's retry is a new cluster: without these, only the last attempt could be asked what
went wrong. They lie outside the attempt's own prefix because that is deleted when the attempt is given up. Logs are for people:
nothing depends on them, so nothing fails because of them. Each is one object that is written anew while the attempt runs; its
writer is the only one.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from atlas_dist.core.keys import check_name
from atlas_dist.errors import AuthError, MissingObject, StoreError
from atlas_dist.output_tail import LIMIT
from atlas_dist.store.curves import due_after_s
from atlas_dist.store.objects import ObjectStore

DRIVER = "driver"
_SLACK = 4096
"""Bytes beside the tail itself: the line that says what was left out, characters that grew when they were decoded."""

log = logging.getLogger(__name__)


def rank_log(run: str, attempt: str, rank: int) -> str:
    """The key of what one rank said during an attempt."""
    return f"{_folder(run)}{check_name(attempt, 'attempt')}/rank-{rank:04d}.log"


def rank_stacks(run: str, attempt: str, rank: int) -> str:
    """The key of where one rank's threads were when its group stood still."""
    return f"{_folder(run)}{check_name(attempt, 'attempt')}/rank-{rank:04d}.stacks.log"


def driver_log(run: str, name: str) -> str:
    """The key of what one driver process said; `name` begins with its time, so that names sort as they began."""
    return f"{_folder(run)}{DRIVER}/{check_name(name, 'driver')}.log"


class TailKeeper:
    """Writes what `read` returns to `key`, again and again while it changes, from a thread of its own.

    Args:
        least_s: see `curves.due_after_s`: a process that is killed has lost no more than what it said since.
    """

    def __init__(self, store: ObjectStore, key: str, read: Callable[[], str], least_s: float) -> None:
        self._store, self._key, self._read, self._least_s = store, key, read, least_s
        self._sent = ""
        self._writing = threading.Lock()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="log-tail", daemon=True)
        self._thread.start()

    @property
    def wrote(self) -> bool:
        """Whether anything of it is in the store."""
        return bool(self._sent)

    def write(self) -> None:
        """Bring the store up to date. A store in trouble is passed over: the next time may do better."""
        with self._writing:
            text = self._read()
            if text == self._sent:
                return
            try:
                self._store.put(self._key, text.encode())
            except (StoreError, AuthError) as error:
                # Once, or this line would be what is new the next time.
                log.debug("%s is not written: %s", self._key, error)
                return
            self._sent = text

    def close(self, *, write: bool) -> None:
        """End the thread; `write`: what is new must be in the store before."""
        self._over.set()
        self._thread.join(timeout=60.0)
        if write:
            self.write()

    def _watch(self) -> None:
        age = 0.0
        while not self._over.wait(wait := due_after_s(age, self._least_s)):
            age += wait
            self.write()


@contextmanager
def kept_log(store: ObjectStore, key: str, read: Callable[[], str], least_s: float, *, quiet: bool) -> Iterator[TailKeeper]:
    """While the block runs, what the process says is kept in the store; when it raises, up to its last word.

    Args:
        quiet: a block that ends well writes nothing more, unless it has written something already (of many ranks that do the
            same, one tells enough).
    """
    keeper = TailKeeper(store, key, read, least_s)
    try:
        yield keeper
    except BaseException:
        keeper.close(write=True)
        raise
    keeper.close(write=not quiet or keeper.wrote)


@dataclass(frozen=True)
class LogTail:
    """The newest lines of one process. `owner`: an attempt, or `driver`. `name`: `rank-0003`, or the driver's."""

    owner: str
    name: str
    text: str


def names(store: ObjectStore, run: str) -> list[tuple[str, str]]:
    """(owner, name) of everything that is kept of a run, in key order. Raises StoreError."""
    folder = _folder(run)
    parts = [info.key.removeprefix(folder).removesuffix(".log").split("/") for info in store.list(folder)]
    return [(owner, name) for owner, name in (p for p in parts if len(p) == 2)]


def read_tails(store: ObjectStore, run: str, wanted: Sequence[tuple[str, str]]) -> list[LogTail]:
    """Those that are still there. Raises StoreError; DataError for one that is no log of ours."""
    found = []
    for owner, name in wanted:
        try:
            data = store.get(f"{_folder(run)}{owner}/{name}.log", limit=4 * (LIMIT + _SLACK))
        except MissingObject:
            continue  # it was deleted meanwhile
        found.append(LogTail(owner, name, data.decode(errors="replace")))
    return found


def _folder(run: str) -> str:
    return f"logs/{check_name(run, 'run name')}/"
