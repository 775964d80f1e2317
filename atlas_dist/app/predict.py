"""Questions to a learnt task: from an exported bank or straight from a run's store, one or many."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import cast

from atlas_dist.app.bank import load_model
from atlas_dist.app.composed import Settings
from atlas_dist.data.leftout import shown
from atlas_dist.data.parquet import Embedded, Held, Pictures
from atlas_dist.data.records import Record, read_records
from atlas_dist.data.sample import Turns
from atlas_dist.data.source import found_file, is_url
from atlas_dist.errors import DataError
from atlas_dist.serve import AtlasModel, Request
from atlas_dist.serve.inputs import Text

_FIELDS = ("task", "image", "text", "choices", "earlier")


def model_for(requests: Sequence[Request], *settings: Settings, folder: Path | None = None) -> AtlasModel:
    """A model with what these requests need.

    Args:
        settings: as for `load_model`. folder: an exported bank; None = that of the run.

    Raises:
        As `load_model` and `AtlasModel.from_pretrained`.
    """
    if folder:
        return AtlasModel.from_pretrained(folder)
    named = [request.task for request in requests if request.task is not None]
    return load_model(*settings, tasks=list(dict.fromkeys(named)) if len(named) == len(requests) else [])


def read_requests(path: Path) -> Iterator[Request]:
    """Requests from a file of objects, one a line, with `task` (left out = found by signature), and what they need of `image` (a
    name or two, beside the file), `text`, `choices` and `earlier` ([question, answer] each); `-` = stdin.

    Raises:
        DataError: naming file, line and field.
    """
    if is_url(str(path)):
        raise DataError(f"{path} is a URL; requests are read from a file.", fix="Download it and give the file.")
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
        choices = record.values.get("choices") not in (None, "", [])
        yield Request(
            task=record.name("task") if record.values.get("task") not in (None, "") else None,
            image=_images(record, path.parent, pictures),
            text=_text(record),
            choices=tuple(record.texts("choices")[0]) if choices else (),
            earlier=_earlier(record),
            where=record.where,
        )


def _images(record: Record, folder: Path, pictures: Pictures) -> list[str | Path | Held] | None:
    given = record.values.get("image")
    if given in (None, "", []):
        return None
    if not isinstance(given, list):
        given = [given if isinstance(given, Embedded) else record.name("image")]
    if not all(isinstance(item, Embedded) or (isinstance(item, str) and item) for item in given):
        record.refuse(f"'image' is {shown(repr(given)[:80])}; the name of a file is wanted, or two of them")
    return [
        pictures.of(item) if isinstance(item, Embedded) else item if is_url(item) else found_file(folder, item) for item in given
    ]


def _earlier(record: Record) -> Turns:
    given = record.values.get("earlier")
    if given in (None, "", []):
        return ()
    if not isinstance(given, list) or not all(isinstance(turn, list) and len(turn) == 2 for turn in given):
        record.refuse(f"'earlier' is {shown(repr(given)[:80])}; a list of [question, answer] is wanted")
    return tuple((turn[0], turn[1]) for turn in given)


def _text(record: Record) -> Text | None:
    given = record.values.get("text")
    if given is None or (given == "" and record.untyped):
        return None
    return cast(Text, tuple(record.texts("text")[0])) if isinstance(given, list) else record.text("text")
