"""Durable state: one seam to the local folder, S3 and memory; the ledger and verified artifacts on top of it."""

from __future__ import annotations

from dataclasses import dataclass

from atlas_dist.errors import ConfigError
from atlas_dist.store.local import LocalStore
from atlas_dist.store.objects import MemoryStore, ObjectInfo, ObjectStore
from atlas_dist.store.places import Bucket, Folder, Memory, parse_url

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
    match parse_url(url):
        case Folder(path):
            return LocalStore(path)
        case Memory(name):
            return _memory.setdefault(name, MemoryStore(name))
        case Bucket(bucket, prefix):
            return _open_s3(bucket, prefix, options)


def _open_s3(bucket: str, prefix: str, options: StoreOptions) -> ObjectStore:
    # boto3 takes half a second to import: only those who use S3 pay for it.
    from atlas_dist.store.s3 import S3Options, S3Store

    if options.endpoint_url and not options.endpoint_url.startswith(("http://", "https://")):
        raise ConfigError(
            f"endpoint_url={options.endpoint_url} is no address.",
            fix="Write it with http:// or https://, as in http://10.0.0.1:9000.",
        )
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
