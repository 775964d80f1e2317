"""A look at a packed split that reads no shard: its manifest, the tars that lie beside it, and whether both agree."""

from __future__ import annotations

from dataclasses import dataclass

from atlas_dist.core.manifest import ShardManifest
from atlas_dist.core.types import TaskKind
from atlas_dist.data.inspect import unlabelled
from atlas_dist.data.leftout import shown
from atlas_dist.data.manifest import read_manifest, split_prefix
from atlas_dist.data.shardlist import unlisted
from atlas_dist.errors import DataError
from atlas_dist.store.objects import ObjectStore

_NAMED = 3
_AGAIN = "Pack the split again (atlas-dist shards pack … pack.overwrite=true), or copy it again from where it is whole."


@dataclass(frozen=True)
class SplitLook:
    """What a look at a split found. `fault` and `fix` are "" where a run can use it; `notes` are odd, and no fault."""

    name: str
    """`dataset/split`"""
    manifest: ShardManifest | None
    fault: str = ""
    fix: str = ""
    notes: tuple[str, ...] = ()

    @property
    def about(self) -> str:
        """What it holds, in a few words."""
        m = self.manifest
        return f"{m.samples} samples, {len(m.classes)} classes, {len(m.shards)} shards, {m.size / 1e6:.1f} MB" if m else ""


def look_at_split(store: ObjectStore, dataset: str, split: str, kind: TaskKind | None = None) -> SplitLook:
    """Read the manifest and list the folder. Raises StoreError, AuthError: the store does not answer.

    Args:
        kind: what the task says that the samples are; None = not compared.
    """
    name = f"{dataset}/{split}"
    try:
        manifest = read_manifest(store, dataset, split)
    except DataError as error:
        return SplitLook(name, None, error.message, error.fix)
    prefix = split_prefix(dataset, split)
    there = {info.key[len(prefix) :]: info.size for info in store.list(prefix)}
    listed = {shard.name: shard.size for shard in manifest.shards}
    absent = sorted(listed.keys() - there.keys())
    other = sorted(f"{n} has {there[n]} bytes, not {listed[n]}" for n in listed.keys() & there.keys() if there[n] != listed[n])
    more = sorted(n for n in (*there.keys() - listed.keys(), *dict(unlisted(store, prefix))) if n.endswith(".tar"))
    notes = []
    if without := unlabelled(manifest):
        notes.append(f"{without} samples have no label; training masks them")
    if more:
        notes.append(f"{len(more)} tars lie beside that its manifest does not list ({_some(more)}): they are not read")
    fault, fix = "", ""
    if not manifest.samples:
        fault, fix = "it holds no sample", _AGAIN
    elif absent:
        fault, fix = f"{len(absent)} of {len(listed)} shards are missing: {_some(absent)}", _AGAIN
    elif other:
        fault, fix = f"shards are not those of its manifest: {_some(other)}", _AGAIN
    elif kind is not None and manifest.kind is not kind:
        fault = f"it was packed as {manifest.kind.value}, the task's kind is {kind.value}"
        fix = f"Set the task's kind to {manifest.kind.value}, or pack the split again."
    return SplitLook(name, manifest, fault, fix, tuple(notes))


def look_at_task(store: ObjectStore, dataset: str, splits: tuple[str, ...], kind: TaskKind) -> list[SplitLook]:
    """Each split, the first being the one that is trained on, and whether the others fit to it. Raises as `look_at_split`."""
    looks = [look_at_split(store, dataset, split, kind) for split in splits]
    return [looks[0], *(_fitting(looks[0].manifest, look) for look in looks[1:])] if looks else []


def _fitting(first: ShardManifest | None, look: SplitLook) -> SplitLook:
    other = look.manifest
    if first is None or other is None or look.fault:
        return look
    notes, fault, fix = look.notes, "", ""
    if other.images != first.images:
        notes += (f"its samples have {other.images} pictures, those of {first.split} {first.images}",)
    if other.classes != first.classes:
        odd = sorted(set(other.classes) ^ set(first.classes))
        names = f": {_some(odd)}" if odd else ", in another order"
        fault = f"its classes are not those of {first.split} ({len(other.classes)} and {len(first.classes)}{names})"
        fix = "Pack or index both splits again, with the same classes."
    return SplitLook(look.name, other, fault, fix, notes)


def _some(names: list[str]) -> str:
    return ", ".join(map(shown, names[:_NAMED])) + (", …" if len(names) > _NAMED else "")
