"""S3 and its look-alikes: the only file that knows boto3.

What the rest of the house relies on is stricter than what the SDK does by itself:

- `create` (`If-None-Match: *`) runs on a client *without* retries: a retried create answers 412 to its own first try. Whatever
  may have been applied (time-outs, resets, 5xx, 409) is `UnknownOutcome`, to be settled by the caller (`store/settle.py`).
- Only an answer that says `NoSuchKey` means that an object is absent. A 404 with a cut or foreign body is trouble, not absence.
- Ranged reads carry `If-Match`, check the range they were given, and return what arrived when a body is cut; the SDK neither
  retries nor verifies those.
- A client is made on first use in each process: one inherited over `fork` shares sockets and returns other processes' bytes.
- Credentials that have expired are looked for again once, by a new client: somebody may have renewed the file they come from.

Credentials come from the SDK's own chain (environment, profile, instance role) and are never read, kept or logged here. What a
server said becomes an error of ours in `s3_errors.py`.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import boto3
from boto3.exceptions import S3UploadFailedError
from boto3.s3.transfer import TransferConfig
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError
from urllib3.exceptions import HTTPError

from atlas_dist.core.keys import check_key
from atlas_dist.errors import AlreadyExists, ConfigError, PreconditionFailed, StoreError
from atlas_dist.store.objects import ObjectInfo, too_large
from atlas_dist.store.plain_http import read_plain
from atlas_dist.store.s3_errors import Request, code_of, expired, explained, status_of

_MIB = 1 << 20
_WINDOW = 64 << 10


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
        """See whether the bucket answers. Raises StoreError (no such bucket, unreachable), AuthError, ConfigError."""
        with self._explained("reach the bucket"):
            self._send("list_objects_v2", Prefix=self._prefix, MaxKeys=1)

    def create(self, key: str, data: bytes) -> None:
        """Write if absent. Raises AlreadyExists, UnknownOutcome."""
        name = self._name(key)
        try:
            with self._explained(f"create {key}", writes=True, conditional=True):
                self._send("put_object", once=True, Key=name, Body=data, IfNoneMatch="*")
        except PreconditionFailed as error:
            raise AlreadyExists(f"{key} exists.") from error

    def put(self, key: str, data: bytes) -> None:
        """Write or replace. Raises UnknownOutcome."""
        name = self._name(key)
        with self._explained(f"write {key}", writes=True):
            self._send("put_object", Key=name, Body=data)

    def put_file(self, key: str, path: Path) -> ObjectInfo:
        """Write or replace from a file, in parts where large, each with a checksum unless the SDK's own settings
        (`AWS_REQUEST_CHECKSUM_CALCULATION`) say otherwise. Raises UnknownOutcome."""
        name = self._name(key)
        expected = path.stat().st_size
        part = self._options.part_bytes
        transfer = TransferConfig(multipart_threshold=part, multipart_chunksize=part, max_concurrency=4)
        with self._explained(f"upload {key}", writes=True):
            self._renewed(lambda client: client.upload_file(str(path), self._bucket, name, Config=transfer))
        info = self.stat(key)
        if info.size != expected:
            raise StoreError(f"{key} has {info.size} bytes after an upload of {expected}.", fix="Did something else write it?")
        return info

    def get(self, key: str, *, limit: int = 1 << 31) -> bytes:
        """The whole object. Raises MissingObject; DataError above `limit`."""
        name = self._name(key)
        with self._explained(f"read {key}"):
            answer = self._send("get_object", Key=name)
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
                answer = self._send("head_object", Key=name)
            except ClientError as error:
                if not 400 <= status_of(error) < 500:
                    raise
                # A HEAD has no body: it can't say what is absent, the key or the bucket, nor why it is refused. A GET can.
                answer = self._send("get_object", Key=name)
                answer["Body"].close()
        return ObjectInfo(key, int(answer["ContentLength"]), _etag(answer))

    def read_range(self, key: str, start: int, out: memoryview, *, if_match: str = "") -> int:
        """Fill `out` from `start`; fewer bytes on a cut body, 0 at the end. Raises MissingObject, PreconditionFailed."""
        if not len(out):
            return 0
        name = self._name(key)
        match: dict[str, Any] = {"IfMatch": f'"{if_match}"'} if if_match else {}
        with self._explained(f"read {key}"):
            try:
                answer = self._send("get_object", Key=name, Range=f"bytes={start}-{start + len(out) - 1}", **match)
            except ClientError as error:
                if code_of(error) == "InvalidRange" or status_of(error) == 416:
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
        token: dict[str, Any] = {}
        while True:
            with self._explained(f"list {prefix}"):
                page = self._send("list_objects_v2", Prefix=self._prefix + prefix, MaxKeys=self._options.page, **token)
            for each in page.get("Contents", ()):
                yield ObjectInfo(each["Key"][cut:], int(each["Size"]), each["ETag"].strip('"'))
            if not page.get("IsTruncated"):
                return
            token = {"ContinuationToken": page["NextContinuationToken"]}

    def delete(self, key: str) -> None:
        """Remove; missing keys are fine."""
        name = self._name(key)
        with self._explained(f"delete {key}", writes=True):
            self._send("delete_object", Key=name)

    def _name(self, key: str) -> str:
        return self._prefix + check_key(key)

    @staticmethod
    def _check_range(key: str, start: int, answer: Any, if_match: str) -> None:
        """A server that ignores `Range` or `If-Match` must not pass for one that honours them."""
        if not str(answer.get("ContentRange", "")).startswith(f"bytes {start}-"):
            raise StoreError(f"{key}: asked for bytes from {start}, got {answer.get('ContentRange', 'the whole object')!r}.")
        if if_match and _etag(answer) != if_match:
            raise PreconditionFailed(f"{key} changed: version {_etag(answer)}, expected {if_match}.")

    def _send(self, operation: str, *, once: bool = False, **arguments: Any) -> Any:
        """One request to the bucket; `once`: never repeated by the SDK."""
        return self._renewed(lambda client: getattr(client, operation)(Bucket=self._bucket, **arguments), once=once)

    def _renewed(self, ask: Callable[[Any], Any], *, once: bool = False) -> Any:
        """Ask; where the credentials have expired, a second time with whatever credentials there are by now."""
        try:
            return ask(self._clients.get(once=once))
        except (ClientError, S3UploadFailedError) as error:
            if not expired(error):
                raise
        self._clients.forget()
        return ask(self._clients.get(once=once))

    def _explained(self, what: str, *, writes: bool = False, conditional: bool = False) -> AbstractContextManager[None]:
        """Turn the SDK's exceptions into ours."""
        request = Request(what, self.url, self._bucket, lambda: self._clients.endpoint, writes=writes, conditional=conditional)
        return explained(request)


class _Clients:
    """Two boto3 clients of this process, made on first use: one repeats what is safe to repeat, one sends everything once."""

    def __init__(self, options: S3Options) -> None:
        self._options = options
        self._lock = threading.Lock()
        self._made: dict[tuple[int, int], Any] = {}
        self.endpoint = options.endpoint_url
        """Where requests go, as far as it is known: the settings of the SDK may name a server too."""

    def get(self, *, once: bool = False) -> Any:
        """A client. Raises what the SDK says of settings and credentials; ConfigError: an address that it refuses."""
        attempts = 1 if once else self._options.attempts
        key = (os.getpid(), attempts)
        client = self._made.get(key)
        if client is None:
            with self._lock:
                client = self._made.get(key) or self._made.setdefault(key, self._make(attempts))
        return client

    def forget(self) -> None:
        """The next request makes a client anew, and looks for credentials again."""
        with self._lock:
            self._made.clear()

    def _make(self, attempts: int) -> Any:
        options = self._options
        config = Config(
            connect_timeout=options.connect_timeout_s,
            read_timeout=options.read_timeout_s,
            retries={"total_max_attempts": attempts, "mode": "standard"},
            max_pool_connections=options.connections,
        )
        # A session of its own: boto3's default one is shared between threads that may be making clients too.
        session = boto3.session.Session()

        def make(config: Config) -> Any:
            try:
                return session.client(
                    "s3", endpoint_url=options.endpoint_url or None, region_name=options.region or None, config=config
                )
            except BotoCoreError:  # some of them are ValueErrors too
                raise
            except ValueError as error:
                raise ConfigError(f"The address of the S3 server can't be used: {error}.", fix="Correct endpoint_url.") from error

        client = make(config)
        self.endpoint = str(client.meta.endpoint_url)
        if _is_aws(self.endpoint) or _addressing_style(session):
            return client
        # Few servers but AWS' own answer to bucket.host; some that do are told so in the profile (s3.addressing_style).
        return make(config.merge(Config(s3={"addressing_style": "path"})))


def _is_aws(endpoint: str) -> bool:
    host = urlsplit(endpoint).hostname or ""
    return host.endswith((".amazonaws.com", ".amazonaws.com.cn"))


def _addressing_style(session: boto3.session.Session) -> str:
    """What the SDK's own configuration file says; "" = nothing."""
    about = session._session.get_scoped_config().get("s3") or {}  # no public name leads to the configuration file
    return str(about.get("addressing_style", "")) if isinstance(about, dict) else ""


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


def _etag(answer: Any) -> str:
    return str(answer["ETag"]).strip('"')
