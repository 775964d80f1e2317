"""Which files of a split's folder are the shards to index, and why the others are not: no file is passed over without a word."""

from __future__ import annotations

from collections.abc import Iterator

from atlas_dist.core.keys import check_name
from atlas_dist.data.leftout import LeftOut, shown, summary
from atlas_dist.data.manifest import MANIFEST
from atlas_dist.data.source import is_quiet
from atlas_dist.errors import DataError
from atlas_dist.store.objects import ObjectInfo, ObjectStore, PassesOver

_COMPRESSED = (".tar.gz", ".tgz", ".tar.zst", ".tzst", ".tar.xz", ".txz", ".tar.bz2", ".tbz2", ".tar.lz4", ".tar.br")
_SAFE = "letters, digits, '.', '_', '=' and '-', no '.' or '-' first"
_COMPRESSED_WHY = "a compressed tar, which cannot be read in parts: decompress it"
_NAME_WHY = f"a tar whose name cannot be a shard's: rename it ({_SAFE})"
_CAPITALS_WHY = "a tar whose name does not end in .tar: rename it"
_BELOW_WHY = "a tar in a folder below: shards lie in the folder of their split itself"


def shards_in(store: ObjectStore, prefix: str) -> tuple[list[ObjectInfo], tuple[LeftOut, ...]]:
    """(the tars to index in the order of their names, what else lies in the folder `prefix`).

    Raises:
        DataError: there is no tar to index; it says what there is.
    """
    tars: list[ObjectInfo] = []
    beside: list[LeftOut] = []
    for found in store.list(prefix):
        name = found.key[len(prefix) :]
        why = _why_not(name)
        if not why:
            tars.append(found)
        elif name and name != MANIFEST and not ("/" in name and why != _BELOW_WHY):
            beside.append(LeftOut(shown(name), why, bad=why != _BESIDE_WHY))
    beside += [LeftOut(shown(name), why) for name, why in unlisted(store, prefix)]
    if not tars:
        told = [entry for entry in beside if entry.bad] or beside
        raise DataError(
            f"There is no .tar in {store.url}/{prefix}{f' ({summary(told)})' if told else ''}.",
            fix=_mend({entry.reason for entry in told}),
        )
    return tars, tuple(beside)


_BESIDE_WHY = "a file beside the tars"


def _why_not(name: str) -> str:
    """Why a file is no shard; "" = it is one."""
    low = name.lower()
    if "/" in name:
        return _BELOW_WHY if low.endswith(".tar") and not is_quiet(name) else _BESIDE_WHY
    if low.endswith(_COMPRESSED):
        return _COMPRESSED_WHY
    if not low.endswith(".tar"):
        return _BESIDE_WHY
    try:
        check_name(name, "shard")
    except DataError:
        return _NAME_WHY
    return "" if name.endswith(".tar") else _CAPITALS_WHY


def unlisted(store: ObjectStore, prefix: str) -> Iterator[tuple[str, str]]:
    """(name, why it is no shard) of files that a folder has and its store does not list: names that no object can have, and links
    that lead nowhere."""
    for name, why in store.passed_over(prefix) if isinstance(store, PassesOver) else ():
        if is_quiet(name) or not name.lower().endswith((".tar", *_COMPRESSED)):
            continue
        yield name, why or (_COMPRESSED_WHY if name.lower().endswith(_COMPRESSED) else _NAME_WHY)


def _mend(reasons: set[str]) -> str:
    if _COMPRESSED_WHY in reasons:
        return "Decompress them (gunzip, zstd -d), then index again."
    if reasons & {_NAME_WHY, _CAPITALS_WHY}:
        return f"Rename them to end in .tar ({_SAFE}), then index again."
    if _BELOW_WHY in reasons:
        return "Move the tars up into the folder of the split, or name the folder that holds them."
    return "Name the data set and split whose folder holds the tars."
