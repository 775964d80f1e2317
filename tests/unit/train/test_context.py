"""What a rank makes once and what it makes for every job."""

from __future__ import annotations

from pathlib import Path

import pytest

from atlas_dist.compose import compose_config
from atlas_dist.model.backbone import load_backbone
from atlas_dist.train import context as module
from atlas_dist.train.context import RankContext


@pytest.mark.parametrize(("zero_stage", "loads"), [(0, 1), (3, 3)])
def test_a_backbone_is_loaded_once_and_for_zero_3_once_a_job(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, zero_stage: int, loads: int
) -> None:
    """ZeRO-3 takes it apart. Feeders, streams and results only want to know what it is like, and once reloaded it each time."""
    loaded: list[object] = []

    def load(_config: object) -> object:
        loaded.append(load_backbone("random-tiny"))
        return loaded[-1]

    monkeypatch.setattr(module, "configured_backbone", load)
    words = ["experiment=toy", f"train.zero_stage={zero_stage}", f"store.url={tmp_path}/s", f"shards.url={tmp_path}/d"]
    context = RankContext(compose_config(words), 0, 1)
    context.backbone()
    models, feeders = [], set()
    for _ in range(3):
        models.append(context.model_backbone())
        for _ in range(3):
            feeders.add(context.feeder())
            assert context.backbone().image_size
    assert len(set(models)) == (1 if zero_stage == 0 else 3), "what was taken apart is not used again"
    assert len(feeders) == 1, "each has a queue of its own on a GPU, and scatters its memory"
    assert len(loaded) == loads
    whole = context.whole_backbone()
    assert (whole.model is models[-1]) == (zero_stage == 0) and context.whole_backbone() is whole is context.backbone()
