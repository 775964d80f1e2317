"""How fast each stage learnt and how long it waited for data: over its steps, and as a whole."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape
from statistics import fmean, median
from typing import NamedTuple

from atlas_dist.report.facts import StageFacts, TaskFacts
from atlas_dist.report.html import table
from atlas_dist.report.svg import line_chart, round_top
from atlas_dist.store.curves import TRAIN

_MOST = 120
"""Points of a line: more than that cannot be told apart on a picture 360 units wide."""
_ROWS = 12
"""Rows of a table of the same."""


class Speed(NamedTuple):
    """What was measured over the steps since the report before: samples a second, and the share (0..1) spent waiting for data.
    Validations and checkpoints among these steps are in the time."""

    step: int
    samples_per_s: float
    data_wait: float


def speeds(stage: StageFacts) -> list[Speed]:
    """What the stage's attempt told of its speed; [] where it told nothing (an imported result, or an older version's)."""
    told = [p for p in stage.points if p.split == TRAIN and {"samples_per_s", "data_wait"} <= p.values.keys()]
    return [Speed(p.step, p.values["samples_per_s"], p.values["data_wait"]) for p in told]


def speed_section(tasks: Sequence[TaskFacts]) -> str:
    """Figures by stage and one table of what every stage cost, folded away; "" where nothing was learnt."""
    stages = [(task.task, stage) for task in tasks for stage in task.stages]
    if not stages:
        return ""
    figures = "".join(_figure(f"{task} {stage.stage}", found) for task, stage in stages if (found := speeds(stage)))
    shown = f"<div class='figures'>{figures}</div>" if figures else ""
    return f"<details><summary>Throughput and data wait</summary>{shown}{_costs(stages)}</details>"


def _figure(name: str, found: Sequence[Speed]) -> str:
    pace, wait = [s.samples_per_s for s in found], [100 * s.data_wait for s in found]
    drawn = _thinned(found, _MOST)
    typical = f"{median(pace):.0f} samples/s, {median(wait):.1f} % of the time waiting for data"
    charts = line_chart(
        {"samples/s": [(s.step, s.samples_per_s) for s in drawn]},
        f"{name}: samples a second by step, {min(pace):.0f} to {max(pace):.0f}",
        round_top(max(s.samples_per_s for s in drawn)),
    ) + line_chart(
        {"waiting for data, %": [(s.step, 100 * s.data_wait) for s in drawn]},
        f"{name}: share of the time waiting for data in % by step, {min(wait):.1f} to {max(wait):.1f}",
    )
    return (
        f"<figure>{charts}<figcaption>{escape(name)}, at the median: {typical}. Steps in which it validated or saved are slower."
        f"</figcaption><details><summary>numbers</summary>{_numbers(name, _thinned(found, _ROWS))}</details></figure>"
    )


def _numbers(name: str, found: Iterable[Speed]) -> str:
    rows = "".join(
        f'<tr><th scope="row">{s.step}</th><td>{s.samples_per_s:.1f}</td><td>{100 * s.data_wait:.1f}</td></tr>' for s in found
    )
    return table(f"{escape(name)}: up to step", '<th scope="col">samples/s</th><th scope="col">data wait %</th>', rows)


def _thinned(found: Sequence[Speed], most: int) -> list[Speed]:
    """At most `most`, each the mean of as many neighbours, at the last one's step."""
    size = -(-len(found) // most)
    groups = (found[at : at + size] for at in range(0, len(found), size))
    return [Speed(g[-1].step, fmean(s.samples_per_s for s in g), fmean(s.data_wait for s in g)) for g in groups]


def _costs(stages: Iterable[tuple[str, StageFacts]]) -> str:
    rows = []
    for task, stage in stages:
        result = stage.result
        cells = [
            f"{stage.samples_per_s:.0f}",
            f"{stage.data_wait:.1%}",
            *(f"{getattr(result.seconds, k):.1f}" for k in ("setup", "stepping", "validating", "checkpointing")),
            str(result.world or ""),
            str(result.peak_rss_mb or ""),
        ]
        told = "".join(f"<td>{cell}</td>" for cell in cells)
        rows.append(f'<tr><th scope="row">{escape(task)} {escape(stage.stage)}</th>{told}</tr>')
    heads = ("samples/s", "data wait", "set-up s", "stepping s", "validating s", "checkpoints s", "workers", "peak MB")
    return table("Per stage", "".join(f'<th scope="col">{h}</th>' for h in heads), "".join(rows))
