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
from atlas_dist.data.leftout import shown
from atlas_dist.data.parquet import Embedded, Held, Pictures
from atlas_dist.data.records import Record, read_records
from atlas_dist.data.source import is_url
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

    single = Request(task or None, list(images) or None, text, tuple(choices))
    if (single == Request()) == (lines is None):
        raise ConfigError(
            "predict needs either one sample or --jsonl.", fix="Give --image FILE or --text WORDS, also --task, or --jsonl FILE."
        )
    hush()
    requests = [Request(**fields) for fields in _read_lines(lines)] if lines else [single]
    if not requests:
        return  # nothing was asked, nothing is answered
    named = [request.task for request in requests if request.task is not None]
    wanted = list(dict.fromkeys(named)) if len(named) == len(requests) else []
    model = AtlasModel.from_pretrained(folder) if folder else load_model(*(overrides or ()), tasks=wanted)
    answers: Iterator[Prediction] = model.predict_each(requests, output_adapter_coefficients=coefficients)
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


def _read_lines(path: Path) -> Iterator[dict[str, Any]]:
    """Objects with `task` (left out = found by signature), and what they need of `image` (a name or two, beside the file), `text`
    and `choices`; `-` = stdin."""
    try:
        data = sys.stdin.buffer.read() if str(path) == "-" else path.read_bytes()
    except OSError as error:
        raise DataError(f"Cannot read {path}: {error.strerror}.", fix="Give a file with one JSON object a line.") from error
    name = "standard input" if str(path) == "-" else str(path)
    pictures = Pictures(lambda: data, name)
    for record in read_records(data, name):
        unknown = sorted(set(record.values) - set(_FIELDS))
        if unknown:
            record.refuse(
                f"it is not a request: it has the fields {', '.join(unknown)}",
                f"An object with some of {', '.join(_FIELDS)}.",
            )
        yield {
            "task": record.name("task") if record.values.get("task") not in (None, "") else None,
            "image": _images(record, path.parent, pictures),
            "text": _text(record),
            "choices": tuple(record.texts("choices")[0]) if record.values.get("choices") not in (None, "", []) else (),
            "where": record.where,
        }


def _images(record: Record, folder: Path, pictures: Pictures) -> list[str | Path | Held] | None:
    given = record.values.get("image")
    if given in (None, "", []):
        return None
    if isinstance(given, Embedded):
        return [pictures.of(given)]
    if not isinstance(given, list):
        given = [record.name("image")]
    if not all(isinstance(name, str) and name for name in given):
        record.refuse(f"'image' is {shown(repr(given)[:80])}; the name of a file is wanted, or two of them")
    return [name if is_url(name) else folder / name for name in given]


def _text(record: Record) -> str | tuple[str, ...] | None:
    given = record.values.get("text")
    if given is None or (given == "" and record.untyped):
        return None
    return tuple(record.texts("text")[0]) if isinstance(given, list) else record.text("text")
