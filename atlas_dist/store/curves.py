"""Curves of a training attempt, in the store while it still runs: JSONL in small objects, each written once.

    <attempt prefix>/curve/<number:06d>.jsonl     one point a line, in the order in which they happened

An attempt has one writer, and its objects hold *its whole history*: an attempt that goes on from a checkpoint begins with the
points up to there, copied from the attempt that wrote it. So the curve of a job is the curve of one attempt, whatever crashed
before, no step is in it twice, and it survives when earlier attempts are deleted.

Curves are for people. Nothing depends on them, so nothing fails because of them: what can't be written now is written later.
"""

from __future__ import annotations

import json
import logging
import math
import threading
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from atlas_dist.clock import Clock, SystemClock
from atlas_dist.core.keys import canonical_json
from atlas_dist.errors import AlreadyExists, AuthError, DataError, StoreError
from atlas_dist.store.objects import ObjectStore

TRAIN, VALIDATION = "train", "validation"
LIMIT = 16 << 20
"""Largest curve object that is read, in bytes."""
LONGEST_S = 120.0

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Point:
    """What was measured after optimizer step `step`. `at`: seconds since 1970.

    Example: Point("train", 40, 1.7e9, {"loss": 0.4, "score": 81.0, "lr": 5e-4, "samples_per_s": 95.0, "data_wait": 0.02})
    """

    split: str
    step: int
    at: float
    values: Mapping[str, float]


def due_after_s(age_s: float, least_s: float) -> float:
    """How long to wait before writing (or looking) again, for an attempt that began `age_s` ago: a tenth of its age, at least
    `least_s`, at most two minutes. A stage of a minute is seen as it learns, one of a day costs 750 objects."""
    return max(least_s, min(LONGEST_S, 0.1 * age_s))


class CurveWriter:
    """One attempt's pen.

    Args:
        prefix: the attempt's.
        least_s: see `due_after_s`.
        history: points of earlier attempts that this one goes on from.
    """

    def __init__(
        self, store: ObjectStore, prefix: str, least_s: float, *, history: Iterable[Point] = (), clock: Clock | None = None
    ) -> None:
        self._store, self._prefix, self._least_s = store, prefix, least_s
        self._clock = clock or SystemClock()
        self._began = self._written = self._clock.monotonic()
        self._number = 0
        self._noting, self._writing = threading.Lock(), threading.Lock()
        self._pending = list(history)
        self._sending = b""
        """What object `_number` was given and may already hold, should the answer have got lost."""

    def add(self, split: str, step: int, values: Mapping[str, float]) -> None:
        """Note a point now; write when it is time."""
        with self._noting:
            self._pending.append(Point(split, step, self._clock.wall(), values))
        now = self._clock.monotonic()
        due = now - self._written >= due_after_s(now - self._began, self._least_s)
        if due and self._writing.acquire(blocking=False):
            try:
                self._flush()
            finally:
                self._writing.release()

    def flush(self) -> None:
        """Write what is there. A store in trouble is passed over: the points stay pending. May be called from another thread
        than `add`, which does not wait for it."""
        with self._writing:
            self._flush()

    def _flush(self) -> None:
        while self._sending or self._pending:
            self._written = self._clock.monotonic()
            if not self._sending:
                with self._noting:
                    taken, self._pending = self._pending, []
                self._sending = encode(taken)
            try:
                self._store.create(_key(self._prefix, self._number), self._sending)
            except AlreadyExists:
                pass  # by ourselves: the answer to an earlier try got lost, and an attempt has one writer
            except (StoreError, AuthError) as error:
                log.info("the curve of %s is not written yet: %s", self._prefix, error)
                return
            self._number, self._sending = self._number + 1, b""


@dataclass
class CurveReader:
    """Reads curves, and remembers what it has read: an object never changes."""

    store: ObjectStore
    _read: dict[str, tuple[Point, ...]] = field(default_factory=dict)
    _objects: dict[str, int] = field(default_factory=dict)
    _whole: set[str] = field(default_factory=set)

    def points(self, prefix: str, *, whole: bool = False) -> tuple[Point, ...]:
        """The points of the attempt at `prefix` so far; () when it wrote none. One LIST, and a GET for each new object.

        Args:
            whole: the attempt has ended; it is never looked at again.

        Raises:
            StoreError: the store is in trouble. DataError: an object is not a curve.
        """
        if prefix not in self._whole:
            known = self._objects.get(prefix, 0)
            keys = [info.key for info in self.store.list(f"{prefix}/curve/")]
            for key in keys[known:]:
                new = decode(self.store.get(key, limit=LIMIT), key)
                self._read[prefix] = (*self.known(prefix), *new)
                self._objects[prefix] = self._objects.get(prefix, 0) + 1
            if whole:
                self._whole.add(prefix)
        return self.known(prefix)

    def known(self, prefix: str) -> tuple[Point, ...]:
        """What was read so far, without looking again."""
        return self._read.get(prefix, ())


def history(store: ObjectStore, checkpoint: str) -> list[Point]:
    """What an attempt that goes on from `checkpoint` (`<attempt prefix>/checkpoints/<step>`) inherits; [] when it can't be
    read."""
    attempt, _, step = checkpoint.partition("/checkpoints/")
    try:
        return [point for point in CurveReader(store).points(attempt) if point.step <= int(step)]
    except (StoreError, AuthError, DataError, ValueError) as error:
        log.info("the curve before %s is lost: %s", checkpoint, error)
        return []


def encode(points: Iterable[Point]) -> bytes:
    """JSONL: `{"at":…,"loss":…,"score":…,"split":"train","step":40}`. Values that are not finite are left out."""
    return b"".join(
        canonical_json(
            {k: v for k, v in p.values.items() if math.isfinite(v)} | {"split": p.split, "step": p.step, "at": round(p.at, 3)}
        )
        + b"\n"
        for p in points
    )


def decode(data: bytes, key: str) -> list[Point]:
    """The points of one object, in order. Raises DataError."""
    try:
        rows = [json.loads(line) for line in data.splitlines()]
        return [
            Point(
                split=str(row.pop("split")),
                step=int(row.pop("step")),
                at=float(row.pop("at")),
                values={str(name): float(value) for name, value in row.items()},
            )
            for row in rows
        ]
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise DataError(f"{key} is not a curve: {type(error).__name__}: {error}.") from error


def _key(prefix: str, number: int) -> str:
    return f"{prefix}/curve/{number:06d}.jsonl"
