"""Raw data sets to shards: every task of an experiment that says how it is packed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from atlas_dist.app.composed import Settings, compose_run
from atlas_dist.app.events import Advice, Idle, Observer, Packing, ShardsReady, SplitPacked
from atlas_dist.app.observers import observer_for
from atlas_dist.app.process import restored_process
from atlas_dist.config import PackOn, RunConfig, TaskConfig
from atlas_dist.coordinator.ray_env import before_ray
from atlas_dist.core.types import TaskKind
from atlas_dist.data.decode import AnswerEncoder, longer_than
from atlas_dist.data.leftout import shown
from atlas_dist.data.manifest import read_manifest
from atlas_dist.data.pack import MapFn, PackReport, run_pack
from atlas_dist.data.source import is_url
from atlas_dist.data.split_part import SplitPart
from atlas_dist.errors import ConfigError, DataError
from atlas_dist.model.backbone import Backbone
from atlas_dist.runs.stores import open_shards
from atlas_dist.store import ObjectStore
from atlas_dist.train.answers import asked_of
from atlas_dist.train.configured import configured_backbone


def pack(*settings: Settings, observer: Observer | None = None) -> dict[str, PackReport]:
    """Pack the splits of every task that says how; finished splits are recognised and left alone.

    Args:
        settings: as for `run`. observer: hears how far each split is; left out = lines on standard output.

    Returns:
        `dataset/split` -> what its shards hold and what was left out.

    Raises:
        ConfigError: no task says how to be packed. DataError: raw data are missing or too much of them is unreadable.
    """
    config = compose_run(*settings).config
    tell = observer or observer_for(config)
    tasks = {name: task for name, task in config.tasks.items() if task.raw is not None}
    if not tasks:
        raise ConfigError("No task of this configuration has a `raw` section.", fix="Add tasks.NAME.raw.converter=…")
    packed: dict[str, PackReport] = {}
    try:
        with restored_process(), _mapping(config) as map_fn:
            backbone, store = configured_backbone(config), open_shards(config)
            for name, task in tasks.items():
                for split in task.data.splits:
                    label = f"{task.data.dataset}/{split}"
                    tell(Packing(label, 0, 0))
                    packed[label] = _pack_split(config, name, task, split, store, backbone, map_fn, partial(_tell, tell, label))
                    tell(SplitPacked(label, packed[label]))
                if note := _unlearnt(store, task):
                    tell(Advice(note))
    finally:
        tell(Idle(config.run))
    tell(ShardsReady(store.url))
    return packed


@contextmanager
def _mapping(config: RunConfig) -> Iterator[MapFn | None]:
    """How shards are made side by side; None = threads of this process."""
    if config.pack.on is PackOn.HERE:
        yield None
        return
    before_ray(config.cluster)
    from atlas_dist.coordinator.ray_pack import packers

    with packers(config) as map_fn:
        yield map_fn


def _pack_split(
    config: RunConfig,
    name: str,
    task: TaskConfig,
    split: str,
    store: ObjectStore,
    backbone: Backbone,
    map_fn: MapFn | None,
    progress: partial[None],
) -> PackReport:
    raw = task.raw
    assert raw is not None
    options = raw.options | (raw.train_options if split == task.data.train else raw.val_options)
    if is_url(raw.source):
        raise DataError(
            f"tasks.{name}.raw.source: {raw.source} is a URL; raw data are read from the disk.", fix="Download it first."
        )
    own = Path(raw.source).expanduser() if raw.source.startswith("~/") else Path(raw.source)
    source = Path(config.raw_root).resolve() / own if raw.source else None
    if source is not None and not source.exists():
        if is_url(raw.source):
            raise DataError(f"tasks.{name}.raw.source: {raw.source} is a URL; data are read from the disk.", fix="Download it.")
        raise DataError(
            f"tasks.{name}.raw.source: there is no {source}.", fix="Set raw_root=… to the folder that holds the raw data."
        )
    return run_pack(
        raw.converter,
        source,
        store,
        task.data.dataset,
        split,
        options=options,
        image_size=backbone.image_size,
        resample=backbone.pictures.resample,
        workers=config.pack.threads,
        splits=(task.data.train, task.data.val) if raw.test_share else tuple(task.data.splits),
        part=_part(task, raw.test_share, split),
        max_bad=config.pack.max_bad,
        overwrite=config.pack.overwrite,
        progress=progress,
        map_fn=map_fn,
        long_texts=partial(longer_than, backbone.tokenizer, task.max_text),
        long_answers=_long_answers(task, backbone),
        asked=asked_of(backbone, task.max_text) if task.kind.generates else None,
    )


def _part(task: TaskConfig, test_share: float, split: str) -> SplitPart | None:
    """Which part of the converter's validation split it is; None = one that the converter makes."""
    if not test_share or split == task.data.train:
        return None
    return SplitPart(task.data.val, *((0.0, test_share) if split == task.data.test else (test_share, 1.0)))


def _long_answers(task: TaskConfig, backbone: Backbone) -> Callable[[Sequence[str]], list[int]] | None:
    """Finds answers that training would cut; None where none are written, or the backbone is no decoder (which a run refuses)."""
    if not task.kind.generates or backbone.chat is None:
        return None
    return AnswerEncoder(backbone.tokenizer, backbone.chat.before_answer, backbone.chat.end, task.new_tokens).longer


def _unlearnt(store: ObjectStore, task: TaskConfig) -> str:
    """The classes that no training sample shows, as a sentence; "" = each has one."""
    manifest = read_manifest(store, task.data.dataset, task.data.train)
    labels = manifest.labels()
    if labels is None or manifest.kind not in (TaskKind.SINGLE, TaskKind.PAIR):
        return ""
    missing = sorted(set(range(len(manifest.classes))) - set(labels.tolist()))
    names = ", ".join(shown(manifest.classes[label]) for label in missing[:10])
    return f"note: no training sample of {len(missing)} of {len(manifest.classes)} classes: {names}" if missing else ""


def _tell(observer: Observer, split: str, done: int, total: int) -> None:
    observer(Packing(split, done, total))
