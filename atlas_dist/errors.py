"""The one exception tree of atlas-dist, and what a shell sees of it.

    AtlasError                exit 1   something is wrong and we know what
    |-- ConfigError           exit 2   a setting: unknown key, bad value, impossible combination
    |-- DataError             exit 3   shards, manifests, raw data sets, artifacts that fail their hash
    |-- AuthError             exit 4   credentials missing, wrong, or not allowed to do this
    |   `-- ExpiredCredentials         they were good and ran out: with new ones the same command goes on
    |-- TrainingError         exit 5   a job failed for good (NaN twice, poisoned job, wrong parameter set)
    |   `-- OutOfMemory                a pass does not fit into the device's memory
    |-- StoreError            exit 6   the object store cannot be reached or cannot be trusted
    |   |-- MissingObject              the store says clearly: there is no such object
    |   |-- AlreadyExists              a create-only write lost: somebody (perhaps we) wrote it before
    |   |-- UnknownOutcome             the request may or may not have been applied: read back before deciding
    |   |-- Unreachable                nobody answers there: a network that comes back mends it
    |   `-- PreconditionFailed         the object changed since it was last seen
    |-- FencedError           exit 7   another coordinator leads this run; this process stops and harms nothing
    `-- Paused                exit 8   stopped on request (Ctrl-C, `ray job stop`, `atlas-dist pause`); resumable

A message says what is wrong, the current value, and what to do. `fix` holds the last part so that the command line can set it
apart; `str(error)` contains both. `retry` tells a machine that starts failed jobs again (KubeRay) whether that can help.
"""

from __future__ import annotations

from typing import ClassVar


class AtlasError(Exception):
    """Base of every error that atlas-dist raises on purpose.

    Args:
        message: what is wrong and the current value.
        fix: what the user can do about it (one sentence), or "" when there is nothing to advise.
        retry: whether the same command may do better when a machine starts it again; None = what is usual for this kind of
            error (`usually_retried`).
    """

    exit_code: ClassVar[int] = 1
    usually_retried: ClassVar[bool] = True
    """A wrong setting stays wrong however often it is tried; a store or a node that was away comes back."""

    def __init__(self, message: str, *, fix: str = "", retry: bool | None = None) -> None:
        super().__init__(message, fix)
        self.message = message
        self.fix = fix
        self.retry = self.usually_retried if retry is None else retry

    def __str__(self) -> str:
        return f"{self.message} {self.fix}".strip() if self.fix else self.message

    def __reduce__(self) -> tuple[object, ...]:
        # Exceptions cross process borders (Ray pickles them): keep the keyword arguments.
        return (_rebuild, (type(self), self.message, self.fix, self.retry))


def _rebuild(kind: type[AtlasError], message: str, fix: str, retry: bool) -> AtlasError:
    return kind(message, fix=fix, retry=retry)


class ConfigError(AtlasError):
    """A setting is unknown, out of range, or does not fit the others."""

    exit_code = 2
    usually_retried = False


class DataError(AtlasError):
    """Shards, manifests, raw data or artifacts are missing, damaged or do not match their digest."""

    exit_code = 3
    usually_retried = False


class AuthError(AtlasError):
    """Credentials are missing, wrong, or not allowed to do what was asked."""

    exit_code = 4
    usually_retried = False


class ExpiredCredentials(AuthError):
    """A session token has run out. Nothing was applied, and new credentials mend it."""


class TrainingError(AtlasError):
    """A job failed for good; repeating it unchanged would fail again."""

    exit_code = 5


class OutOfMemory(TrainingError):
    """A pass did not fit into the device's memory.

    Args:
        samples: of a rank in that pass.
        smaller: whether fewer samples a pass would do the same job.
    """

    def __init__(self, what: str, samples: int, cause: str, *, smaller: bool) -> None:
        setting = "train.micro_batch" if smaller else "train.eval_batch"
        advice = f"Lower {setting} below {samples}" if samples > 1 else "Use a device with more memory"
        super().__init__(
            f"{what} with {samples} samples a worker ({setting}) does not fit into the device's memory: {cause}",
            fix=f"{advice}, or set train.activation_checkpointing=true." if smaller else f"{advice}.",
        )
        self.samples = samples
        self.smaller = smaller
        self._parts = (what, samples, cause, smaller)

    def __reduce__(self) -> tuple[object, ...]:
        return (_rebuild_out_of_memory, self._parts)


def _rebuild_out_of_memory(what: str, samples: int, cause: str, smaller: bool) -> OutOfMemory:
    return OutOfMemory(what, samples, cause, smaller=smaller)


class StoreError(AtlasError):
    """The object store cannot be reached, or does not keep its promises."""

    exit_code = 6


class MissingObject(StoreError):
    """There is certainly no such object (S3 `NoSuchKey`, a missing local file)."""


class AlreadyExists(StoreError):
    """A create-if-absent write found the key taken."""


class UnknownOutcome(StoreError):
    """A write may or may not have been applied (time-out, 5xx, 409, a connection reset after the request was sent)."""


class Unreachable(StoreError):
    """Nobody answers at the store's address. Waiting may mend it, whatever `fix` advises meanwhile."""


class PreconditionFailed(StoreError):
    """The object is no longer the one that was asked for (`If-Match` failed)."""


class FencedError(AtlasError):
    """Another coordinator leads this run. Nothing of this process's later work counts."""

    exit_code = 7


class Paused(AtlasError):
    """The run stopped because somebody asked for it; the same command resumes."""

    exit_code = 8
