"""The dashboard asks only for metrics that a run has, and shows all of them."""

from __future__ import annotations

import json
import re
from pathlib import Path

from atlas_dist.coordinator.ray_metrics import FAILURES, GAUGES

DASHBOARD = json.loads((Path(__file__).parents[3] / "cluster/grafana/atlas-dist.json").read_text())
OURS = {f"ray_{name}" for name in GAUGES} | {f"ray_{FAILURES}_total"}


def test_every_metric_is_shown_and_every_shown_metric_exists() -> None:
    asked = {name for panel in DASHBOARD["panels"] for t in panel["targets"] for name in re.findall(r"ray_atlas_\w+", t["expr"])}
    assert asked == OURS


def test_panels_do_not_overlap() -> None:
    cells: set[tuple[int, int]] = set()
    for panel in DASHBOARD["panels"]:
        at = panel["gridPos"]
        mine = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        assert not mine & cells
        assert at["x"] + at["w"] <= 24
        cells |= mine
    assert len({panel["id"] for panel in DASHBOARD["panels"]}) == len(DASHBOARD["panels"])
