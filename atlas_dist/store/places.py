"""What the URL of a store means: a folder, a bucket with a prefix, or memory of this process.

Read by hand and not with `urlsplit`: a folder or a prefix may hold '#', '?', '[' or ':', which a URL parser takes for something
else, drops or stumbles over. A store in another place than its user meant is worse than one that is refused.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote

from atlas_dist.errors import ConfigError

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*):(.*)", re.DOTALL)
_OURS = ("file", "s3", "memory")
_BUCKET = re.compile(r"[A-Za-z0-9._-]{1,255}")
_CONTROL = re.compile(r"[\x00-\x1f\x7f\ud800-\udfff]")
_LONGEST_PREFIX = 600
"""Bytes: a key of S3 has at most 1024, and below the prefix come ours."""
_FORMS = "Use a folder, file:///…, s3://bucket/prefix or memory://name."


@dataclass(frozen=True)
class Folder:
    """A folder of this machine, as it was written: perhaps relative. `given_as_url`: by `file:`."""

    path: Path
    given_as_url: bool = False


@dataclass(frozen=True)
class Bucket:
    """A bucket of S3 and the prefix below it, without slashes at its ends; "" = the whole bucket."""

    bucket: str
    prefix: str


@dataclass(frozen=True)
class Memory:
    """Objects of this process."""

    name: str


def parse_url(url: str) -> Folder | Bucket | Memory:
    """What `url` means.

    A path is a folder whatever letters it has, also with a ':' in it. Below `file://` %XX is decoded; a prefix of S3 is taken
    letter by letter, as the aws command line does.

    Raises:
        ConfigError: another scheme, a host where a path should stand, no bucket, or a prefix that S3 would not keep.
    """
    if "\0" in url:
        raise ConfigError(f"The store URL {url!r} has a NUL in it.", fix=_FORMS)
    found = _SCHEME.fullmatch(url)
    scheme = found[1].lower() if found else ""
    rest = found[2] if found else ""
    if scheme not in _OURS and not rest.startswith("//"):
        return Folder(_home(url))
    match scheme:
        case "file":
            return _file(url, rest)
        case "s3":
            return _bucket(url, rest)
        case "memory" if rest.startswith("//"):
            return Memory(rest[2:].partition("/")[0])
    raise ConfigError(f"Unknown store URL {url!r}.", fix=_FORMS)


def absolute_url(url: str, folder: Path) -> str:
    """The same place for a process with another working folder than `folder`. Raises ConfigError as `parse_url`."""
    place = parse_url(url)
    if not isinstance(place, Folder):
        return url
    if place.given_as_url:
        return url if "://" in url else file_url(place.path)
    return str((folder / place.path).resolve())


def file_url(path: Path) -> str:
    """`file:///…` of an absolute path, such that `parse_url` finds it again."""
    return f"file://{str(path).replace('%', '%25')}"


def can_be_written(folder: Path) -> bool:
    """Whether folders can be made in it, or it can be made itself."""
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    return folder.is_dir() and os.access(folder, os.W_OK | os.X_OK)


def _file(url: str, rest: str) -> Folder:
    host, slash, path = rest[2:].partition("/") if rest.startswith("//") else ("", rest[:1], rest[1:])
    if host.lower() not in ("", "localhost") or slash != "/":
        meant = f"{host}/{path}" if slash else host or rest
        raise ConfigError(
            f"{url} is no address of a folder: behind file:// comes the name of a host, {host or rest!r} here.",
            fix=f"Write {meant} for a folder below this one, or file:/// and the whole path: file://{(Path.cwd() / meant)}.",
        )
    return Folder(Path("/" + unquote(path)), given_as_url=True)


def _bucket(url: str, rest: str) -> Bucket:
    if not rest.startswith("//"):
        meant = f"s3://{rest.lstrip('/')}"
        raise ConfigError(f"{url} is no address of a bucket.", fix=f"Write two slashes: {meant}.")
    bucket, _, path = rest[2:].partition("/")
    if not bucket or "@" in bucket:
        raise ConfigError("An s3:// URL needs a bucket and no credentials.", fix="Write s3://bucket/prefix.")
    if not _BUCKET.fullmatch(bucket):
        raise ConfigError(f"{bucket!r} cannot name a bucket.", fix="Names of buckets have letters, digits, '.', '-' and '_'.")
    prefix = path.strip("/")
    odd = next((part for part in prefix.split("/") if part in (".", "..") or (prefix and not part)), None)
    if odd is not None or _CONTROL.search(prefix):
        why = f"a part of the path that is {odd!r}" if odd is not None else "a control character"
        raise ConfigError(
            f"The prefix of {url!r} has {why}.", fix="Write s3://bucket/prefix with plain names between the slashes."
        )
    if len(prefix.encode()) > _LONGEST_PREFIX:
        raise ConfigError(
            f"The prefix of the s3:// URL has {len(prefix.encode())} bytes.",
            fix=f"Use a shorter one, at most {_LONGEST_PREFIX} bytes.",
        )
    return Bucket(bucket, prefix)


def _home(url: str) -> Path:
    try:
        return Path(url).expanduser()
    except RuntimeError as error:
        raise ConfigError(
            f"The folder {url} begins with the home of nobody known here.", fix=f"Write ./{url} or the whole path."
        ) from error
