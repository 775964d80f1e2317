"""Settings of stores and workers: what is left out is taken from elsewhere."""

from __future__ import annotations

from atlas_dist.compose import compose_config


def test_shards_in_a_bucket_lie_where_the_store_does_unless_they_say_otherwise() -> None:
    bucket = ["store=s3", "store.url=s3://a/b", "store.endpoint_url=http://e:1", "shards=s3", "shards.url=s3://a/c"]
    shards = compose_config(bucket).shards
    assert (shards.endpoint_url, shards.region, shards.buffer_mb) == ("http://e:1", "", 1024)
    assert compose_config([*bucket, "shards.endpoint_url=http://f:2"]).shards.endpoint_url == "http://f:2"


def test_pools_are_a_number_or_have_names() -> None:
    def worker_groups(*words: str) -> list[tuple[str, int, int]]:
        return [(g.name, g.workers, g.required_workers) for g in compose_config(["experiment=toy", *words]).worker_groups]

    assert worker_groups() == [("main", 2, 2)]
    assert worker_groups("cluster.pools=3") == [("main", 2, 2), ("pool-2", 2, 2), ("pool-3", 2, 2)]
    assert worker_groups("train.min_workers=1", "cluster.pools=2") == [("main", 2, 1), ("pool-2", 2, 1)]
    named = "cluster.pools={big:{workers:8,min_workers:4,takes:[upstream]},small:{workers:1,takes:[evaluation,transfer]}}"
    assert worker_groups(named, "train.min_workers=2") == [("big", 8, 4), ("small", 1, 1)]
