"""S3 and its look-alikes: the only file that knows boto3.

What the rest of the house relies on is stricter than what the SDK does by itself:

- `create` (`If-None-Match: *`) runs on a client *without* retries: a retried create answers 412 to its own first try. Whatever
  may have been applied (time-outs, resets, 5xx, 409) is `UnknownOutcome`, to be settled by the caller (`store/settle.py`).
- Only an answer that says `NoSuchKey` means that an object is absent. A 404 with a cut or foreign body is trouble, not absence.
- Ranged reads carry `If-Match`, check the range they were given, and return what arrived when a body is cut; the SDK neither
  retries nor verifies those.
- A client is made on first use in each process: one inherited over `fork` shares sockets and returns other processes' bytes.

Credentials come from the SDK's own chain (environment, profile, instance role) and are never read, kept or logged here.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import boto3
from boto3.s3.transfer import TransferConfig
from botocore.config import Config
from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    ConnectTimeoutError,
    EndpointConnectionError,
    NoCredentialsError,
    PartialCredentialsError,
    TokenRetrievalError,
)
from urllib3.exceptions import HTTPError

from atlas_dist.core.keys import check_key
from atlas_dist.errors import (
    AlreadyExists,
    AtlasError,
    AuthError,
    MissingObject,
    PreconditionFailed,
    StoreError,
    UnknownOutcome,
)
from atlas_dist.store.objects import ObjectInfo, too_large
from atlas_dist.store.plain_http import read_plain

_MIB = 1 << 20
_WINDOW = 64 << 10
_AUTH_CODES = frozenset(
    {"AccessDenied", "ExpiredToken", "InvalidAccessKeyId", "InvalidToken", "SignatureDoesNotMatch", "RequestTimeTooSkewed"}
)
_NO_CREDENTIALS = (NoCredentialsError, PartialCredentialsError, TokenRetrievalError)


@dataclass(frozen=True)
class S3Options:
    """How to reach a bucket; nothing secret."""

    endpoint_url: str = ""
    """Address of an S3-compatible server; "" = AWS."""
    region: str = ""
    connect_timeout_s: float = 5.0
    read_timeout_s: float = 30.0
    attempts: int = 5
    """Tries of a request that is safe to repeat. Creates are never repeated here."""
    connections: int = 32
    part_bytes: int = 16 * _MIB
    """Files above this are uploaded in parts of this size."""
    page: int = 1000
    """Keys in one answer to a list."""


class S3Store:
    """Objects below `prefix` in `bucket`. Instances pickle without their clients."""

    def __init__(self, bucket: str, prefix: str = "", options: S3Options | None = None) -> None:
        self._bucket = bucket
        self._prefix = f"{prefix.strip('/')}/" if prefix.strip("/") else ""
        self._options = options or S3Options()
        self._clients = _Clients(self._options)

    def __getstate__(self) -> dict[str, Any]:
        return {"_bucket": self._bucket, "_prefix": self._prefix, "_options": self._options}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._clients = _Clients(self._options)

    @property
    def url(self) -> str:
        """`s3://bucket/prefix`."""
        return f"s3://{self._bucket}/{self._prefix}".rstrip("/")

    def check(self) -> None:
        """See whether the bucket answers. Raises StoreError (no such bucket, unreachable), AuthError."""
        with self._explained("reach the bucket"):
            self._clients.patient.list_objects_v2(Bucket=self._bucket, Prefix=self._prefix, MaxKeys=1)

    def create(self, key: str, data: bytes) -> None:
        """Write if absent. Raises AlreadyExists, UnknownOutcome."""
        name = self._name(key)
        try:
            with self._explained(f"create {key}", unknown=True):
                self._clients.single_try.put_object(Bucket=self._bucket, Key=name, Body=data, IfNoneMatch="*")
        except PreconditionFailed as error:
            raise AlreadyExists(f"{key} exists.") from error

    def put(self, key: str, data: bytes) -> None:
        """Write or replace. Raises UnknownOutcome."""
        name = self._name(key)
        with self._explained(f"write {key}", unknown=True):
            self._clients.patient.put_object(Bucket=self._bucket, Key=name, Body=data)

    def put_file(self, key: str, path: Path) -> ObjectInfo:
        """Write or replace from a file, in parts where large, each part with a checksum. Raises UnknownOutcome."""
        name = self._name(key)
        part = self._options.part_bytes
        transfer = TransferConfig(multipart_threshold=part, multipart_chunksize=part, max_concurrency=4)
        with self._explained(f"upload {key}", unknown=True):
            self._clients.patient.upload_file(
                str(path), self._bucket, name, Config=transfer, ExtraArgs={"ChecksumAlgorithm": "CRC32"}
            )
        info = self.stat(key)
        expected = path.stat().st_size
        if info.size != expected:
            raise StoreError(f"{key} has {info.size} bytes after an upload of {expected}.", fix="Did something else write it?")
        return info

    def get(self, key: str, *, limit: int = 1 << 31) -> bytes:
        """The whole object. Raises MissingObject; DataError above `limit`."""
        name = self._name(key)
        with self._explained(f"read {key}"):
            answer = self._clients.patient.get_object(Bucket=self._bucket, Key=name)
            size = int(answer["ContentLength"])
            if size > limit:
                answer["Body"].close()
                raise too_large(key, size, limit)
            data: bytes = answer["Body"].read()
        if len(data) != size:
            raise StoreError(f"Cannot read {key}: {len(data)} of {size} bytes arrived.")
        return data

    def stat(self, key: str) -> ObjectInfo:
        """Size and version. Raises MissingObject."""
        name = self._name(key)
        with self._explained(f"look up {key}"):
            try:
                answer = self._clients.patient.head_object(Bucket=self._bucket, Key=name)
            except ClientError as error:
                if _status(error) != 404:
                    raise
                # A HEAD has no body: its 404 can't say what is absent, the key or the bucket. A GET can.
                answer = self._clients.patient.get_object(Bucket=self._bucket, Key=name)
                answer["Body"].close()
        return ObjectInfo(key, int(answer["ContentLength"]), _etag(answer))

    def read_range(self, key: str, start: int, out: memoryview, *, if_match: str = "") -> int:
        """Fill `out` from `start`; fewer bytes on a cut body, 0 at the end. Raises MissingObject, PreconditionFailed."""
        if not len(out):
            return 0
        name = self._name(key)
        match = {"IfMatch": f'"{if_match}"'} if if_match else {}
        with self._explained(f"read {key}"):
            try:
                answer = self._clients.patient.get_object(
                    Bucket=self._bucket, Key=name, Range=f"bytes={start}-{start + len(out) - 1}", **match
                )
            except ClientError as error:
                if _code(error) == "InvalidRange" or _status(error) == 416:
                    return 0
                raise
            body = answer["Body"]
            try:
                self._check_range(key, start, answer, if_match)
                filled = _fill(out, body)
            finally:
                body.close()
        if not filled:
            raise StoreError(f"Cannot read {key}: the body at byte {start} never came.")
        return filled

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        """Objects below `prefix` in key order."""
        cut = len(self._prefix)
        token: dict[str, str] = {}
        while True:
            with self._explained(f"list {prefix}"):
                page = self._clients.patient.list_objects_v2(
                    Bucket=self._bucket, Prefix=self._prefix + prefix, MaxKeys=self._options.page, **token
                )
            for each in page.get("Contents", ()):
                yield ObjectInfo(each["Key"][cut:], int(each["Size"]), each["ETag"].strip('"'))
            if not page.get("IsTruncated"):
                return
            token = {"ContinuationToken": page["NextContinuationToken"]}

    def delete(self, key: str) -> None:
        """Remove; missing keys are fine."""
        name = self._name(key)
        with self._explained(f"delete {key}", unknown=True):
            self._clients.patient.delete_object(Bucket=self._bucket, Key=name)

    def _name(self, key: str) -> str:
        return self._prefix + check_key(key)

    @staticmethod
    def _check_range(key: str, start: int, answer: Any, if_match: str) -> None:
        """A server that ignores `Range` or `If-Match` must not pass for one that honours them."""
        if not str(answer.get("ContentRange", "")).startswith(f"bytes {start}-"):
            raise StoreError(f"{key}: asked for bytes from {start}, got {answer.get('ContentRange', 'the whole object')!r}.")
        if if_match and _etag(answer) != if_match:
            raise PreconditionFailed(f"{key} changed: version {_etag(answer)}, expected {if_match}.")

    @contextmanager
    def _explained(self, what: str, *, unknown: bool = False) -> Iterator[None]:
        """Turn the SDK's exceptions into ours; `unknown` marks requests whose effect may have happened all the same."""
        try:
            yield
        except AtlasError:
            raise
        except ClientError as error:
            raise self._from_answer(what, error, unknown) from None
        except _NO_CREDENTIALS as error:
            raise AuthError(
                f"Cannot {what} in {self.url}: {error}.", fix="Set AWS credentials (environment, profile or role)."
            ) from None
        except (BotoCoreError, HTTPError, OSError) as error:
            raise self._from_transport(what, error, unknown) from None
        except Exception as error:
            # s3transfer wraps what the server said; the XML parser raises its own: such an answer has told us nothing.
            if isinstance(error.__context__, ClientError):
                raise self._from_answer(what, error.__context__, unknown) from None
            kind = UnknownOutcome if unknown else StoreError
            raise kind(f"Cannot {what} in {self.url}: {type(error).__name__}: {error}.") from error

    def _from_answer(self, what: str, error: ClientError, unknown: bool) -> AtlasError:
        code, status = _code(error), _status(error)
        text = f"Cannot {what} in {self.url}: {code} ({status})."
        if code == "NoSuchKey" and status == 404:
            return MissingObject(text)
        if code == "NoSuchBucket":
            return StoreError(f"There is no bucket {self._bucket!r}.", fix=f"Create it, or correct the address {self.url}.")
        if code in _AUTH_CODES or status in (401, 403):
            return AuthError(text, fix="Check the credentials and the bucket policy (cluster/ has a minimal one).")
        if code == "PreconditionFailed" or status == 412:
            return PreconditionFailed(text)
        if code == "NotImplemented" or status == 501:
            return StoreError(text, fix="This server can't do conditional writes; `atlas-dist doctor` tells more.")
        if unknown and (status >= 500 or status in (0, 200, 408, 409, 429)):
            return UnknownOutcome(text)
        return StoreError(text)

    def _from_transport(self, what: str, error: Exception, unknown: bool) -> StoreError:
        endpoint = self._options.endpoint_url or "AWS"
        text = f"Cannot {what} in {self.url}: {type(error).__name__} at {endpoint}."
        unreachable = isinstance(error, EndpointConnectionError | ConnectTimeoutError)
        fix = f"Is the network up, and is {endpoint} the right endpoint_url?" if unreachable else ""
        return UnknownOutcome(text, fix=fix) if unknown else StoreError(text, fix=fix)


class _Clients:
    """Two boto3 clients of this process, made on first use."""

    def __init__(self, options: S3Options) -> None:
        self._options = options
        self._lock = threading.Lock()
        self._made: dict[tuple[int, int], Any] = {}

    @property
    def patient(self) -> Any:
        """Repeats what is safe to repeat."""
        return self._get(self._options.attempts)

    @property
    def single_try(self) -> Any:
        """Sends every request once."""
        return self._get(1)

    def _get(self, attempts: int) -> Any:
        key = (os.getpid(), attempts)
        client = self._made.get(key)
        if client is None:
            with self._lock:
                client = self._made.get(key) or self._made.setdefault(key, self._make(attempts))
        return client

    def _make(self, attempts: int) -> Any:
        options = self._options
        config = Config(
            connect_timeout=options.connect_timeout_s,
            read_timeout=options.read_timeout_s,
            retries={"total_max_attempts": attempts, "mode": "standard"},
            max_pool_connections=options.connections,
            s3={"addressing_style": "path"} if options.endpoint_url else {},
        )
        # A session of its own: boto3's default one is shared between threads that may be making clients too.
        return boto3.session.Session().client(
            "s3", endpoint_url=options.endpoint_url or None, region_name=options.region or None, config=config
        )


def _fill(out: memoryview, body: Any) -> int:
    """Read `body` into `out` until either ends; a connection that breaks ends it like a short one.

    What the fast path leaves comes in small windows, because a read that breaks takes with it what it had got so far.
    """
    filled = 0
    try:
        filled = read_plain(body, out)
        while filled < len(out):
            got = body.readinto(out[filled : filled + _WINDOW])
            if not got:
                break
            filled += got
    except (BotoCoreError, HTTPError, OSError):
        if not filled:
            raise
    return filled


def _code(error: ClientError) -> str:
    return str(error.response.get("Error", {}).get("Code", ""))


def _status(error: ClientError) -> int:
    return int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))


def _etag(answer: Any) -> str:
    return str(answer["ETag"]).strip('"')
