"""PIQA (Bisk et al. 2020): goal -> the better of two solutions, no image.

`{train,valid}.jsonl` {goal, sol1, sol2} with `{train,valid}-labels.lst`, a 0 or 1 a line; `tests.jsonl` has no labels.
"""

from __future__ import annotations

from pathlib import Path

from pydantic import Field

from atlas_dist.core.sampling import shuffled
from atlas_dist.core.types import TaskKind
from atlas_dist.data.sample import RawSample
from atlas_dist.data.source import Source, open_source
from atlas_dist.data.tasks.base import Converter, Options, RawSet, field, find_file, json_lines, need, text_lines
from atlas_dist.errors import DataError


class PiqaOptions(Options):
    """How to make two splits of valid where the training file can't be had: `train_from_valid` records train, the rest
    validates."""

    train_from_valid: int = Field(default=0, ge=0)
    """0 = train and valid as distributed; e.g. 1500 leaves 338 of the 1,838."""
    seed: int = 0


def convert(path: Path | None, split: str, options: PiqaOptions) -> RawSet:
    """List a split."""
    source = open_source(need(path, "piqa"))
    carve = options.train_from_valid
    records = _labelled(source, "valid" if split == "val" or carve else "train")
    if carve:
        if carve >= len(records):
            raise DataError(f"train_from_valid is {carve}, but valid has {len(records)} records.")
        order = shuffled(len(records), options.seed)
        chosen = order[:carve] if split == "train" else order[carve:]
        records = [records[i] for i in sorted(chosen)]
    return RawSet(TaskKind.CHOICE, 0, ("sol1", "sol2"), records, source)


def _labelled(source: Source, name: str) -> list[RawSample]:
    file = find_file(source, f"{name}.jsonl", f"PIQA/{name}.jsonl")
    labels = text_lines(source, file.removesuffix(".jsonl") + "-labels.lst")
    lines = list(json_lines(source, file))
    if len(labels) != len(lines) or set(labels) - {"0", "1"}:
        raise DataError(f"{file} has {len(lines)} records, its labels {len(labels)} lines of {sorted(set(labels))[:4]}.")
    samples = []
    for (number, record), label in zip(lines, labels, strict=True):
        where = f"{file}, line {number}"
        goal = str(field(record, "goal", where))
        texts = tuple((goal, str(field(record, solution, where))) for solution in ("sol1", "sol2"))
        samples.append(RawSample(f"{name}-{number - 1}", texts, (), int(label)))
    return samples


PIQA = Converter("piqa", PiqaOptions, convert, ("train", "val"), "PIQA: goal, two solutions")
