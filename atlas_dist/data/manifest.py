"""Manifests in a store: `<dataset>/<split>/manifest.json` beside its tars. Written last, so that its presence means "complete".

What comes from a store is not trusted: size cap, strict schema, safe shard names, counts that add up, and the digest it claims.
"""

from __future__ import annotations

import base64
import binascii
import json
from dataclasses import replace
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from atlas_dist.core.keys import check_name
from atlas_dist.core.manifest import PART_BYTES, ShardInfo, ShardManifest
from atlas_dist.core.types import TaskKind
from atlas_dist.errors import DataError, MissingObject
from atlas_dist.store.objects import ObjectStore
from atlas_dist.validation import faults

MANIFEST = "manifest.json"
SIZE_CAP = 256 << 20
"""Largest manifest that is read: a split of 100,000 shards stays well below it."""

Count = Annotated[int, Field(ge=0, le=1 << 53)]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Crc = Annotated[int, Field(ge=0, lt=1 << 32)]


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class _Shard(_Strict):
    name: str
    size: Count
    samples: Count
    sha256: Sha256
    crc32c: list[Crc]
    labels: str = ""


class _Manifest(_Strict):
    version: Literal[1]
    dataset: str
    split: str
    kind: str
    images: Annotated[int, Field(ge=0, le=2)]
    classes: list[str]
    part_bytes: Annotated[int, Field(ge=1 << 10, le=1 << 30)] = PART_BYTES
    recipe: str = ""
    digest: Sha256
    shards: list[_Shard]


def split_prefix(dataset: str, split: str) -> str:
    """Store prefix of a split, ending in '/'. Raises DataError for names that are not safe path segments."""
    return f"{check_name(dataset, 'data set')}/{check_name(split, 'split')}/"


def shard_key(manifest: ShardManifest, shard: ShardInfo) -> str:
    """Store key of a shard."""
    return split_prefix(manifest.dataset, manifest.split) + shard.name


def write_manifest(store: ObjectStore, manifest: ShardManifest) -> None:
    """Publish a split: every shard must already be in place."""
    store.put(split_prefix(manifest.dataset, manifest.split) + MANIFEST, dump_manifest(manifest))


def read_manifest(store: ObjectStore, dataset: str, split: str, *, digest: str = "") -> ShardManifest:
    """Read and check the manifest of a split.

    Args:
        digest: when given, the content that is expected (a job's `train_digest`).

    Raises:
        DataError: missing, torn, of an unknown version, inconsistent, or not the expected content.
    """
    key = split_prefix(dataset, split) + MANIFEST
    try:
        data = store.get(key, limit=SIZE_CAP)
    except MissingObject as error:
        raise DataError(
            f"There is no {key} in {store.url}: the split is not packed, or its packing has not finished.",
            fix="Run `atlas-dist shards pack` (it continues where it stopped), or `shards index` for ordinary WebDataset tars.",
        ) from error
    manifest = parse_manifest(data, f"{store.url}/{key}")
    if (manifest.dataset, manifest.split) != (dataset, split):
        # A copied folder: where it lies names it, what it holds is unchanged.
        manifest = replace(manifest, dataset=dataset, split=split)
    if digest and manifest.digest != digest:
        raise DataError(
            f"{key} holds content {manifest.digest[:12]}, but {digest[:12]} was planned.",
            fix="Shards never change under a run: pack the new data under another name, or plan again.",
        )
    return manifest


def dump_manifest(manifest: ShardManifest) -> bytes:
    """JSON of a manifest, deterministic."""
    shards = [
        {
            "name": s.name,
            "size": s.size,
            "samples": s.samples,
            "sha256": s.sha256,
            "crc32c": list(s.crc32c),
            "labels": base64.b64encode(s.labels).decode("ascii"),
        }
        for s in manifest.shards
    ]
    body = {
        "version": 1,
        "dataset": manifest.dataset,
        "split": manifest.split,
        "kind": manifest.kind.value,
        "images": manifest.images,
        "classes": list(manifest.classes),
        "part_bytes": manifest.part_bytes,
        "recipe": manifest.recipe,
        "digest": manifest.digest,
        "shards": shards,
    }
    return (json.dumps(body, sort_keys=True, ensure_ascii=False, indent=1) + "\n").encode()


def parse_manifest(data: bytes, where: str) -> ShardManifest:
    """The manifest in `data`; `where` names it in errors. Raises DataError."""
    try:
        raw = _Manifest.model_validate(json.loads(data))
        kind = TaskKind(raw.kind)
        shards = tuple(
            ShardInfo(s.name, s.size, s.samples, s.sha256, tuple(s.crc32c), base64.b64decode(s.labels, validate=True))
            for s in raw.shards
        )
    except (ValueError, RecursionError, ValidationError, binascii.Error) as error:
        raise DataError(
            f"{where} is damaged or not a manifest: {_first_line(error)}", fix="Pack or index the split again."
        ) from error
    manifest = ShardManifest(raw.dataset, raw.split, kind, raw.images, tuple(raw.classes), shards, raw.part_bytes, raw.recipe)
    _check(manifest, where)
    if manifest.digest != raw.digest:
        raise DataError(
            f"{where} does not match its own digest: it says {raw.digest[:12]}, its content is {manifest.digest[:12]}.",
            fix="It was edited or damaged: pack or index the split again.",
        )
    return manifest


def _check(manifest: ShardManifest, where: str) -> None:
    names = [s.name for s in manifest.shards]
    if len(set(names)) != len(names):
        raise DataError(f"{where} lists a shard twice.", fix="Pack or index the split again.")
    for shard in manifest.shards:
        check_name(shard.name, f"shard of {where}")
        if not shard.name.endswith(".tar"):
            raise DataError(f"{where} lists {shard.name!r}, which is not a .tar.", fix="Pack or index the split again.")
        parts = -(-shard.size // manifest.part_bytes)
        if len(shard.crc32c) != parts:
            raise DataError(f"{where}: {shard.name} has {len(shard.crc32c)} checksums for {parts} parts.", fix="Index it again.")
        if len(shard.labels) not in (0, 4 * shard.samples):
            raise DataError(f"{where}: {shard.name} has labels for another number of samples.", fix="Index the split again.")


def _first_line(error: Exception) -> str:
    if isinstance(error, ValidationError):
        return faults(error)[0]
    return str(error).splitlines()[0][:200] if str(error) else type(error).__name__
