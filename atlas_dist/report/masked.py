"""Samples that training and validation could not use: masked as they went by, said here so that nobody learns it from a score."""

from __future__ import annotations

from collections.abc import Iterable

from atlas_dist.core.results import Metrics


def masked_samples(results: Iterable[Metrics]) -> dict[str, list[str]]:
    """`dataset/split` -> what is wrong with each masked sample ("0.tar 0000: its label …"), from the results of a task's jobs.

    What an older version stored names no split; its samples stand under "".
    """
    found: dict[str, dict[str, None]] = {}
    for result in results:
        for bad in result.bad_samples:
            told = f"{bad.get('shard', '')} {bad.get('key', '')}: {bad.get('reason', '')}"
            found.setdefault(str(bad.get("split", "")), {})[told] = None
    return {split: list(told) for split, told in sorted(found.items())}


def masked_sentence(task: str, results: Iterable[Metrics]) -> str:
    """`few: 4 samples of few/train were masked (first: 0.tar 0000: …)`; "" when none was."""
    parts = [
        f"{len(told)} samples{f' of {split}' if split else ''} were masked (first: {told[0]})"
        for split, told in masked_samples(results).items()
    ]
    return f"{task}: {'; '.join(parts)}" if parts else ""
