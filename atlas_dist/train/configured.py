"""What settings name, as the data and the model know it."""

from __future__ import annotations

from atlas_dist.config import RunConfig
from atlas_dist.data.batch import StreamLimits
from atlas_dist.model.backbone import Backbone, load_backbone
from atlas_dist.model.backbone_refs import backbone_ref


def stream_limits(config: RunConfig) -> StreamLimits:
    """What `shards.*` allows a stream."""
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
    named = config.backbone
    return load_backbone(backbone_ref(named.name, named.source, named.revision, named.architecture))
