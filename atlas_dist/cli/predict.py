"""`atlas-dist predict`: one sample on the shell, or many as JSON lines, answered by an exported bank or straight from a store."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import typer

from atlas_dist.app.process import hush
from atlas_dist.app.show import standard_console
from atlas_dist.errors import ConfigError


def predict(
    overrides: list[str] | None,
    *,
    folder: Path | None,
    task: str,
    images: Sequence[Path],
    text: str | None,
    choices: Sequence[str],
    lines: Path | None,
    coefficients: bool,
    as_json: bool,
) -> None:
    """Answer and print. Raises ConfigError, DataError."""
    from atlas_dist.app.predict import model_for, read_requests
    from atlas_dist.serve import Request

    single = Request(task or None, list(images) or None, text, tuple(choices))
    if (single == Request()) == (lines is None):
        raise ConfigError(
            "predict needs either one sample or --jsonl.", fix="Give --image FILE or --text WORDS, also --task, or --jsonl FILE."
        )
    hush()
    requests = list(read_requests(lines)) if lines else [single]
    if not requests:
        return  # nothing was asked, nothing is answered
    model = model_for(requests, *(overrides or ()), folder=folder)
    answers = model.predict_each(requests, output_adapter_coefficients=coefficients)
    if as_json or lines:
        for answer in answers:
            typer.echo(json.dumps(asdict(answer), ensure_ascii=False))
        return
    (answer,) = answers
    out = standard_console()
    if answer.chosen and (best := answer.chosen.best):
        at = f"distance {best.distance:.2f}, limit {best.limit:.2f}"
        out.print(f"task {answer.task}  ({best.probability:.1%}, {at})", markup=False)
    out.print(f"{answer.answer}  ({answer.confidence:.1%})", markup=False)
    label = next(t for t in model.weights.tasks.values() if t.learnt.name == answer.task).label
    for index, score in answer.top()[1:]:
        out.print(f"  {choices[index] if choices else label(index)}  {score:.1%}", markup=False)
    for name, sites in (answer.adapter_coefficients or {}).items():
        out.print(f"alpha of {name}: " + ", ".join(f"{site} {value:.3f}" for site, value in sites.items()), markup=False)
