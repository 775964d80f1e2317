"""Is this store fit to be trusted with a ledger? Tried out, not believed: the whole protocol rests on a handful of promises.

A store that lets two writers create one key, or hides what was just written, would work for weeks and then lose a run.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from atlas_dist.errors import AlreadyExists, AtlasError, MissingObject, StoreError, UnknownOutcome
from atlas_dist.store.objects import ObjectStore

WRITERS, KEYS = 16, 50


@dataclass(frozen=True)
class Finding:
    """One promise, and whether the store kept it."""

    promise: str
    kept: bool
    detail: str = ""
    fix: str = ""
    """What to do about it, where that is known."""

    def __str__(self) -> str:
        return f"{'ok  ' if self.kept else 'FAIL'}  {self.promise}{f': {self.detail}' if self.detail else ''}"


@dataclass(frozen=True)
class Report:
    """What `examine` found."""

    url: str
    findings: tuple[Finding, ...]

    @property
    def fit(self) -> bool:
        """Every promise was kept."""
        return all(f.kept for f in self.findings)

    @property
    def fix(self) -> str:
        """What to do first; "" = nothing is wrong, or nothing better is known than another store."""
        return next((f.fix for f in self.findings if not f.kept and f.fix), "")

    def __str__(self) -> str:
        lines = [str(finding) for finding in self.findings]
        unfit = (
            "NOT fit to hold runs" if self.fix else "NOT fit to hold runs: use a local folder or an S3 with conditional writes"
        )
        return "\n".join([*lines, f"{self.url} is {'fit to hold runs' if self.fit else unfit}."])


def examine(store: ObjectStore, *, new_id: Callable[[], str], writers: int = WRITERS, keys: int = KEYS) -> Report:
    """Try the store's promises out in a folder of its own, and tidy up. Raises AuthError; trouble is part of the report."""
    prefix = f"doctor/{new_id()}"
    findings = []
    try:
        for check in (_created_once, _one_winner, _reads_follow_writes, _replaced_objects_are_noticed, _deletes_hold):
            try:
                findings.append(check(store, prefix, writers, keys))
            except StoreError as error:
                findings.append(Finding(_words(check), False, error.message, error.fix))
            if check is _created_once and not findings[-1].kept:
                break  # nothing else can be right, and a race of writers would only say it many times
    finally:
        _tidy(store, prefix)
    return Report(store.url, tuple(findings))


def require_fit(store: ObjectStore, *, new_id: Callable[[], str]) -> Report:
    """`examine`, and refuse a store that fails. Raises StoreError with the report."""
    report = examine(store, new_id=new_id)
    if not report.fit:
        raise StoreError(f"This store can't be trusted with a ledger:\n{report}", fix=report.fix)
    return report


def _created_once(store: ObjectStore, prefix: str, *_: int) -> Finding:
    """create-if-absent is atomic: a second create of a key is refused"""
    accepted = 0
    for writer in (1, 2):
        try:
            store.create(f"{prefix}/once/x", _mark(writer))
            accepted += 1
        except AlreadyExists:
            return Finding(_words(_created_once), True)
        except UnknownOutcome:
            continue
    detail = "a second one was accepted: the store ignores If-None-Match (conditional writes)" if accepted > 1 else ""
    return Finding(_words(_created_once), accepted < 2, detail)


def _one_winner(store: ObjectStore, prefix: str, writers: int, keys: int) -> Finding:
    """create-if-absent is atomic: one winner a key"""

    def race(job: tuple[int, int]) -> tuple[int, int, str]:
        key, writer = job
        try:
            store.create(f"{prefix}/race/{key:04d}", _mark(writer))
        except AlreadyExists:
            return key, writer, "lost"
        except UnknownOutcome:
            return key, writer, "unknown"
        return key, writer, "won"

    with ThreadPoolExecutor(writers) as pool:
        results = list(pool.map(race, [(key, writer) for key in range(keys) for writer in range(writers)]))
    wins = Counter(key for key, _, outcome in results if outcome == "won")
    many = [key for key, count in wins.items() if count > 1]
    wrong = [k for k, w, o in results if o == "won" and wins[k] == 1 and store.get(f"{prefix}/race/{k:04d}") != _mark(w)]
    unknown = sum(outcome == "unknown" for _, _, outcome in results)
    detail = f"{writers} writers, {keys} keys, {unknown} unknown outcomes"
    if many or wrong:
        detail += f"; several winners on {len(many)} keys, a loser's bytes on {len(wrong)}"
    return Finding(_words(_one_winner), not many and not wrong, detail)


def _reads_follow_writes(store: ObjectStore, prefix: str, _: int, keys: int) -> Finding:
    """what was written is read and listed at once, in order"""
    names = [f"{prefix}/read/{i:04d}" for i in range(keys)]
    for i, name in enumerate(names):
        store.create(name, _mark(i))
        if store.get(name) != _mark(i) or store.stat(name).size != len(_mark(i)):
            return Finding(_words(_reads_follow_writes), False, f"{name} was not what had just been written")
        listed = [info.key for info in store.list(f"{prefix}/read/")]
        if listed != names[: i + 1]:
            return Finding(_words(_reads_follow_writes), False, f"{len(listed)} of {i + 1} keys listed, or out of order")
    return Finding(_words(_reads_follow_writes), True)


def _replaced_objects_are_noticed(store: ObjectStore, prefix: str, *_: int) -> Finding:
    """a replaced object has another version tag"""
    name = f"{prefix}/replace/x"
    store.put(name, b"one")
    before = store.stat(name).etag
    store.put(name, b"two")
    kept = store.stat(name).etag != before and store.get(name) == b"two"
    return Finding(_words(_replaced_objects_are_noticed), kept)


def _deletes_hold(store: ObjectStore, prefix: str, *_: int) -> Finding:
    """what was deleted is absent, and says so clearly"""
    name = f"{prefix}/delete/x"
    store.put(name, b"x")
    store.delete(name)
    store.delete(name)
    try:
        store.get(name)
    except MissingObject:
        gone = not list(store.list(f"{prefix}/delete/"))
        return Finding(_words(_deletes_hold), gone, "" if gone else "it is still listed")
    return Finding(_words(_deletes_hold), False, "it can still be read")


def _words(check: Callable[..., Finding]) -> str:
    return (check.__doc__ or check.__name__).strip()


def _mark(writer: int) -> bytes:
    return b"writer %04d" % writer


def _tidy(store: ObjectStore, prefix: str) -> None:
    try:
        for info in list(store.list(f"{prefix}/")):
            store.delete(info.key)
    except AtlasError:
        return  # what is left lies below doctor/ and harms nobody
