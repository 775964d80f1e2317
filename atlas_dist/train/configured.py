"""What settings name, as the data and the model know it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from atlas_dist.config import RunConfig
from atlas_dist.model.backbone_facts import BackboneFacts, facts_of
from atlas_dist.model.backbone_refs import BackboneRef, backbone_ref

if TYPE_CHECKING:  # a plan asks for no more than facts, and needs no torch
    from atlas_dist.data.batch import StreamLimits
    from atlas_dist.model.backbone import Backbone


def stream_limits(config: RunConfig) -> StreamLimits:
    """What `shards.*` allows a stream."""
    from atlas_dist.data.batch import StreamLimits

    shards = config.shards
    return StreamLimits(
        memory_bytes=shards.buffer_mb << 20,
        fetch_threads=shards.fetch_threads,
        decode_threads=shards.decode_threads or max(1, int(config.cluster.cpus_per_worker)),
        bad_samples=shards.max_bad_samples,
        tries=shards.tries,
        cache_dir=shards.cache_dir,
        cache_bytes=shards.cache_mb << 20,
    )


def configured_backbone(config: RunConfig) -> Backbone:
    """The backbone that `backbone.*` names. Raises ConfigError or DataError."""
    from atlas_dist.model.backbone import load_backbone

    return load_backbone(_ref(config))


def configured_facts(config: RunConfig) -> BackboneFacts:
    """What plans need of it, without loading it where it is known. Raises as `configured_backbone`."""
    return facts_of(_ref(config))


def recorded_backbone(config: RunConfig, backbone: Backbone) -> dict[str, Any]:
    """The settings `backbone.*` as results name them: with the architecture, and with tiles only where there are any, so that
    other results stay as they were."""
    settings = config.backbone.model_dump(exclude={"tiles"}) | {"architecture": backbone.architecture.name}
    tiles = backbone.pictures.tiles
    return settings | ({"tiles": tiles} if tiles > 1 else {})


def backbone_label(config: RunConfig, tiles: int) -> str:
    """What the time of a sample depends on: the backbone, and how many tiles a side its pictures have."""
    return config.backbone.name if tiles == 1 else f"{config.backbone.name}, {tiles} x {tiles} tiles"


def _ref(config: RunConfig) -> BackboneRef:
    named = config.backbone
    return backbone_ref(named.name, named.source, named.revision, named.architecture, named.tiles)
