"""`atlas-dist predict`: one sample on the shell, or many as JSON lines, answered by an exported bank or straight from a store."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import typer

from atlas_dist.app.bank import load_model
from atlas_dist.app.process import hush
from atlas_dist.app.show import standard_console
from atlas_dist.errors import ConfigError, DataError

_FIELDS = ("task", "image", "text", "choices")


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
    from atlas_dist.serve import AtlasModel, Prediction, Request

    if bool(task) == bool(lines):
        raise ConfigError("predict needs either --task or --jsonl.", fix="Give --task NAME --image FILE, or --jsonl FILE.")
    hush()
    single = Request(task, list(images) or None, text, tuple(choices))
    requests = [Request(**fields) for fields in _read_lines(lines)] if lines else [single]
    wanted = list(dict.fromkeys(request.task for request in requests))
    model = AtlasModel.from_pretrained(folder) if folder else load_model(*(overrides or ()), tasks=wanted)
    answers: list[Prediction] = model.predict_batch(requests, output_adapter_coefficients=coefficients)
    if as_json or lines:
        for answer in answers:
            typer.echo(json.dumps(asdict(answer), ensure_ascii=False))
        return
    (answer,) = answers
    out = standard_console()
    out.print(f"{answer.answer}  ({answer.confidence:.1%})", markup=False)
    label = next(t for t in model.weights.tasks.values() if t.learnt.name == answer.task).label
    for index, score in answer.top()[1:]:
        out.print(f"  {choices[index] if choices else label(index)}  {score:.1%}", markup=False)
    for name, sites in (answer.adapter_coefficients or {}).items():
        out.print(f"alpha of {name}: " + ", ".join(f"{site} {value:.3f}" for site, value in sites.items()), markup=False)


def _read_lines(path: Path) -> Iterator[dict[str, Any]]:
    """Objects with `task`, and what they need of `image` (a name or two, beside the file), `text` and `choices`; `-` = stdin."""
    try:
        text = sys.stdin.read() if str(path) == "-" else path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"Cannot read {path}: {error}.", fix="Give a UTF-8 file with one JSON object a line.") from error
    for number, line in enumerate(filter(str.strip, text.split("\n")), start=1):
        try:
            fields = json.loads(line)
            if not isinstance(fields, dict) or not isinstance(fields.get("task"), str) or set(fields) - set(_FIELDS):
                raise ValueError(f"it has {sorted(fields) if isinstance(fields, dict) else type(fields).__name__}")
        except ValueError as error:
            raise DataError(
                f"{path}, line {number} is not a request: {error}.",
                fix=f"An object with task and some of {', '.join(_FIELDS[1:])}.",
            ) from error
        images = fields.get("image") or []
        fields["image"] = [path.parent / name for name in ([images] if isinstance(images, str) else images)] or None
        fields["choices"] = tuple(fields.get("choices") or ())
        yield fields
