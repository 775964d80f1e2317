"""What an attempt leaves behind, and the proof that it is whole.

    <prefix>/<file>                           blobs, each with its size and sha256 in RESULT
    <prefix>/checkpoints/<step:08d>/<file>    mid-stage state
    <prefix>/checkpoints/<step:08d>/DONE      its files and their sha256, written last
    <prefix>/RESULT                           written last of all: without it there is nothing to commit

One attempt has one writer and its own prefix, so nothing here is ever replaced. A writer uploads, a reader believes only what it
has hashed itself.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from atlas_dist.clock import Clock, SystemClock
from atlas_dist.core.attempts import Blob, CommittedRef, StageResult
from atlas_dist.core.keys import canonical_json, check_key, check_name, sha256_hex
from atlas_dist.core.records import from_json
from atlas_dist.errors import DataError, MissingObject, StoreError
from atlas_dist.failpoints import failpoint
from atlas_dist.store.objects import ObjectInfo, ObjectStore
from atlas_dist.store.safetensors_check import check_safetensors
from atlas_dist.store.settle import DEFAULT_PATIENCE, Patience, create_settled, retry_unavailable

RESULT = "RESULT"
DONE = "DONE"
JSON_LIMIT = 4 << 20
"""Largest RESULT, DONE or pointer that is read."""
_CHUNK = 8 << 20
_TRIES = 3
_T = TypeVar("_T")

Source = Path | bytes
KeepAlive = Callable[[], None]
"""Called between chunks of long reads, so that a coordinator that verifies much still shows that it is alive."""


def _no_keep_alive() -> None:
    pass


def retry_damaged(read: Callable[[], _T]) -> _T:
    """Call `read` again when what it got was damaged: a bit that flipped on the way here is not a damaged file.

    Raises:
        DataError: it was wrong every time.
    """
    for _ in range(_TRIES - 1):
        try:
            return read()
        except DataError:
            continue
    return read()


def publish(
    store: ObjectStore,
    prefix: str,
    *,
    job: str,
    attempt: str,
    files: Mapping[str, Source],
    metrics: Mapping[str, Any],
    clock: Clock | None = None,
    patience: Patience = DEFAULT_PATIENCE,
) -> StageResult:
    """Upload an attempt's files, then its RESULT. For rank 0 only.

    Raises:
        StoreError: the store stayed in trouble. Nothing is committed; another attempt starts over.
        DataError: a file name is not safe, or a metric is not finite.
    """
    clock = clock or SystemClock()
    blobs = tuple(_upload(store, prefix, name, source, clock, patience) for name, source in sorted(files.items()))
    result = StageResult(job=job, attempt=attempt, blobs=blobs, metrics=metrics)
    try:
        data = canonical_json(result)
    except ValueError as error:
        raise DataError(f"The metrics of {attempt} are not plain finite JSON: {error}.") from error
    failpoint("publish.before_result")
    create_settled(store, f"{prefix}/{RESULT}", data, clock, patience)
    failpoint("publish.after_result")
    return result


def read_result(store: ObjectStore, prefix: str) -> StageResult:
    """The RESULT of the attempt at `prefix`, unverified. Raises MissingObject; DataError when it is malformed."""
    return from_json(StageResult, read_json(store, f"{prefix}/{RESULT}"))


def read_json(store: ObjectStore, key: str, *, limit: int = JSON_LIMIT) -> Any:
    """A small JSON object. Raises MissingObject; DataError when it is too large or not JSON."""
    return _parse(store.get(key, limit=limit), key)


def verify(store: ObjectStore, prefix: str, blobs: Iterable[Blob], *, keep_alive: KeepAlive = _no_keep_alive) -> None:
    """Re-read every file: its size, its sha256, and for safetensors its layout and that every value is finite.

    Raises:
        DataError: a file is missing, damaged, or not what its name says.
        StoreError: the store is in trouble; nothing is known about the files.
    """
    for blob in blobs:
        keep_alive()
        data = retry_damaged(partial(_read_blob, store, prefix, blob, keep_alive))
        if blob.name.endswith(".safetensors"):
            check_safetensors(data, blob.name)
        elif blob.name.endswith(".json"):
            _parse(bytes(data), blob.name)


def fetch(store: ObjectStore, ref: CommittedRef, name: str, folder: Path) -> Path:
    """Download one file of a committed result into `folder`, verified. Raises DataError, StoreError; KeyError: no such file."""
    return retry_damaged(partial(_download, store, ref.prefix, ref.blob(name), folder))


def load(store: ObjectStore, ref: CommittedRef, name: str) -> bytes:
    """One file of a committed result in memory, verified. Raises DataError, StoreError; KeyError when there is no such file."""
    return bytes(retry_damaged(partial(_read_blob, store, ref.prefix, ref.blob(name), _no_keep_alive)))


@dataclass(frozen=True)
class Checkpoint:
    """A complete mid-stage checkpoint. `digest` is the sha256 of its DONE file, which in turn holds those of its files."""

    prefix: str
    step: int
    digest: str
    blobs: tuple[Blob, ...]


@dataclass(frozen=True)
class _Done:
    step: int
    blobs: tuple[Blob, ...]


def save_checkpoint(
    store: ObjectStore,
    prefix: str,
    step: int,
    files: Mapping[str, Source],
    *,
    clock: Clock | None = None,
    patience: Patience = DEFAULT_PATIENCE,
) -> Checkpoint:
    """Upload the state after `step` below the attempt's `prefix`; DONE last. Raises StoreError, DataError."""
    clock = clock or SystemClock()
    where = f"{prefix}/checkpoints/{step:08d}"
    blobs = tuple(_upload(store, where, name, source, clock, patience) for name, source in sorted(files.items()))
    data = canonical_json(_Done(step, blobs))
    failpoint("checkpoint.before_done")
    create_settled(store, f"{where}/{DONE}", data, clock, patience)
    return Checkpoint(where, step, sha256_hex(data), blobs)


def read_checkpoint(store: ObjectStore, prefix: str, digest: str = "") -> Checkpoint:
    """What DONE says of the checkpoint at `prefix` (unverified files). `digest`: refuse another DONE than this.

    Raises:
        MissingObject: it was never completed.
        DataError: DONE is malformed, or not the one that was asked for.
    """
    data = store.get(f"{prefix}/{DONE}", limit=JSON_LIMIT)
    if digest and sha256_hex(data) != digest:
        raise DataError(f"{prefix}/{DONE} is not the one that the ledger knows.")
    done = from_json(_Done, _parse(data, f"{prefix}/{DONE}"))
    return Checkpoint(prefix, done.step, sha256_hex(data), done.blobs)


def newest_checkpoint(
    store: ObjectStore, attempts: Iterable[str], *, before: int | None = None, keep_alive: KeepAlive = _no_keep_alive
) -> Checkpoint | None:
    """The furthest complete checkpoint of these attempt prefixes whose every file has its hash; torn ones are passed over.

    Args:
        before: only states after steps below this one (what a step made non-finite is of no use).
    """
    found = []
    for attempt in attempts:
        folder = f"{attempt}/checkpoints/"
        for info in store.list(folder):
            step, _, name = info.key[len(folder) :].partition("/")
            if name == DONE and step.isdigit() and (before is None or int(step) < before):
                found.append((int(step), f"{folder}{step}"))
    for _, prefix in sorted(found, reverse=True):
        try:
            checkpoint = retry_damaged(partial(read_checkpoint, store, prefix))
            verify(store, prefix, checkpoint.blobs, keep_alive=keep_alive)
        except (DataError, MissingObject):
            continue
        return checkpoint
    return None


def fetch_checkpoint(store: ObjectStore, prefix: str, digest: str, folder: Path) -> Checkpoint:
    """Download the checkpoint at `prefix`, verified against the DONE that the ledger knows. Raises DataError, StoreError."""
    checkpoint = retry_damaged(partial(read_checkpoint, store, prefix, digest))
    for blob in checkpoint.blobs:
        retry_damaged(partial(_download, store, prefix, blob, folder))
    return checkpoint


def sha256_file(path: Path) -> str:
    """SHA-256 of a file, 64 hex characters."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _upload(store: ObjectStore, prefix: str, name: str, source: Source, clock: Clock, patience: Patience) -> Blob:
    check_name(name, "file name")
    if name in (RESULT, DONE, "checkpoints"):
        raise DataError(f"An artifact can't be called {name}: that name has a meaning.")
    key = f"{prefix}/{name}"
    if isinstance(source, bytes):
        blob = Blob(name, len(source), sha256_hex(source))
        retry_unavailable(lambda: store.put(key, source), clock, patience)
    else:
        blob = Blob(name, source.stat().st_size, sha256_file(source))
        retry_unavailable(lambda: store.put_file(key, source), clock, patience)
    failpoint("publish.after_blob")
    return blob


def _read_blob(store: ObjectStore, prefix: str, blob: Blob, keep_alive: KeepAlive) -> bytearray:
    """All bytes of a file, hashed and compared."""
    info = _find(store, prefix, blob)
    data = bytearray(info.size)
    view = memoryview(data)
    windows = (view[at : at + _CHUNK] for at in range(0, info.size, _CHUNK))
    for _ in _verified(store, info, blob, windows, keep_alive):
        pass
    return data


def _download(store: ObjectStore, prefix: str, blob: Blob, folder: Path) -> Path:
    """Through a temporary name: a file that has its name has its hash."""
    info = _find(store, prefix, blob)
    target = folder / blob.name
    temporary = folder / f".{blob.name}.part"
    view = memoryview(bytearray(min(info.size, _CHUNK)))
    windows = (view[: min(_CHUNK, info.size - at)] for at in range(0, info.size, _CHUNK))
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as file:
            for window in _verified(store, info, blob, windows, _no_keep_alive):
                file.write(window)
        temporary.replace(target)
    except OSError as error:
        raise StoreError(f"Cannot write {target}: {error}.", fix="Is the worker's disk full?") from error
    finally:
        temporary.unlink(missing_ok=True)
    return target


def _find(store: ObjectStore, prefix: str, blob: Blob) -> ObjectInfo:
    """The file as the store has it, if its size is right: a claimed size is never allocated on trust."""
    key = check_key(f"{prefix}/{check_name(blob.name, 'file name')}")
    try:
        info = store.stat(key)
    except MissingObject as error:
        raise DataError(f"{key} is missing.") from error
    if info.size != blob.size:
        raise DataError(f"{key} has {info.size} bytes instead of {blob.size}.")
    return info


def _verified(
    store: ObjectStore, info: ObjectInfo, blob: Blob, windows: Iterable[memoryview], keep_alive: KeepAlive
) -> Iterator[memoryview]:
    """Fill the windows one after the other with the file's bytes, resuming cut bodies at the broken byte; raise behind the last
    one unless the sha256 is right."""
    digest = hashlib.sha256()
    position = 0
    for window in windows:
        filled = 0
        while filled < len(window):
            try:
                got = store.read_range(info.key, position + filled, window[filled:], if_match=info.etag)
            except MissingObject as error:
                raise DataError(f"{info.key} has vanished.") from error
            if not got:
                raise DataError(f"{info.key} ends at byte {position + filled} of {info.size}.")
            filled += got
        digest.update(window)
        position += filled
        yield window
        keep_alive()
    if digest.hexdigest() != blob.sha256:
        raise DataError(f"{info.key} is damaged: its sha256 is {digest.hexdigest()}, expected {blob.sha256}.")


def _parse(data: bytes, what: str) -> Any:
    try:
        return json.loads(data)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{what} is not JSON: {error}.") from error
