"""Durable state: one seam to the local folder, S3 and memory; the ledger and verified artifacts on top of it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote, urlsplit

from atlas_dist.core.keys import check_key
from atlas_dist.errors import ConfigError
from atlas_dist.store.local import LocalStore
from atlas_dist.store.objects import MemoryStore, ObjectInfo, ObjectStore

__all__ = ["ObjectInfo", "ObjectStore", "StoreOptions", "open_store"]

_memory: dict[str, MemoryStore] = {}


@dataclass(frozen=True)
class StoreOptions:
    """What a URL can't say. Nothing secret: credentials come from the SDK's own chain."""

    endpoint_url: str = ""
    """Address of an S3-compatible server; "" = AWS."""
    region: str = ""
    read_timeout_s: float = 30.0
    connect_timeout_s: float = 5.0
    attempts: int = 5
    check: bool = True
    """Ask the bucket once whether it answers, so that a wrong name fails here and not in the middle of a run."""


def open_store(url: str, *, options: StoreOptions | None = None) -> ObjectStore:
    """The store at `url`: a folder (`demo-run/store`, `file:///…`), `s3://bucket/prefix`, or `memory://name` (this process only).

    Raises:
        ConfigError: the URL has another scheme or no bucket.
        StoreError: the bucket does not exist or cannot be reached.
        AuthError: credentials are missing, wrong, or not allowed to list the bucket.
    """
    options = options or StoreOptions()
    parts = urlsplit(url)
    if parts.scheme in ("", "file"):
        return LocalStore(Path(unquote(parts.path) if parts.scheme else url).expanduser())
    if parts.scheme == "memory":
        return _memory.setdefault(parts.netloc, MemoryStore(parts.netloc))
    if parts.scheme == "s3":
        return _open_s3(url, parts.netloc, parts.path.strip("/"), options)
    raise ConfigError(f"Unknown store URL {url!r}.", fix="Use a folder, file:///…, s3://bucket/prefix or memory://name.")


def _open_s3(url: str, bucket: str, prefix: str, options: StoreOptions) -> ObjectStore:
    # boto3 takes half a second to import: only those who use S3 pay for it.
    from atlas_dist.store.s3 import S3Options, S3Store

    if not bucket or "@" in bucket:
        raise ConfigError("An s3:// URL needs a bucket and no credentials.", fix="Write s3://bucket/prefix.")
    if options.endpoint_url and "://" not in options.endpoint_url:
        raise ConfigError(
            f"endpoint_url={options.endpoint_url} is no address.",
            fix="Write it with http:// or https://, as in http://10.0.0.1:9000.",
        )
    if prefix:
        check_key(prefix)
    store = S3Store(
        bucket,
        prefix,
        S3Options(
            endpoint_url=options.endpoint_url,
            region=options.region,
            connect_timeout_s=options.connect_timeout_s,
            read_timeout_s=options.read_timeout_s,
            attempts=options.attempts,
        ),
    )
    if options.check:
        store.check()
    return store
