"""What a folder of a user's own data holds: which converter reads it as which kind of task, with which options."""

from __future__ import annotations

import itertools
import re
import string
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any

from atlas_dist.core.types import TaskKind
from atlas_dist.data.leftout import shown
from atlas_dist.data.parquet import Embedded
from atlas_dist.data.records import RECORD_ENDS
from atlas_dist.data.source import is_quiet, open_source
from atlas_dist.data.tasks import CONVERTERS
from atlas_dist.data.tasks.generic import PARTS, SPELLINGS, RecordOptions
from atlas_dist.errors import ConfigError, DataError


@dataclass(frozen=True)
class FoundTask:
    """What a data folder turned out to be."""

    name: str
    folder: Path
    kind: TaskKind
    converter: str
    options: dict[str, Any]
    samples: int
    """Of the training split."""
    max_text: int
    """Tokens a text."""
    note: str = ""
    """What the user should know of it."""


def recognise(folder: Path, held_out: float) -> FoundTask:
    """Look at a folder: `train.jsonl` and `val.jsonl`; or one `.jsonl`, of which every `held_out`-th share is put aside for
    validation (by a hash of the record: the same ones each time); or `train/CLASS/…` and `val/CLASS/…` with pictures; or tables
    (`.csv`, `.tsv`, `.parquet`) in the place of `.jsonl`; or the numbered parts of them that the Hub has, here or in `data`.

    Raises:
        ConfigError: the folder's name or path cannot be used. DataError: it is none of these, or a record is unusable.
    """
    if not folder.is_dir():
        raise DataError(f"There is no folder {folder}.", fix="Name the folder that holds the pictures and the .jsonl file.")
    try:
        str(folder).encode()
    except UnicodeEncodeError as error:
        raise ConfigError(f"The path {shown(str(folder))} is not UTF-8.", fix="Rename the folder.") from error
    name = task_name(folder)
    if parts := _part_options(folder, held_out):
        return _records(name, folder, parts)
    for ends in (("jsonl", "ndjson"), ("csv", "tsv", "parquet"), ("json",)):
        files = sorted(
            f.name for f in folder.iterdir() if f.suffix[1:].lower() in ends and not f.is_dir() and not is_quiet(f.name)
        )
        if ends == ("json",) and len(files) > 1:
            files = [name for name in files if name.lower() in ("train.json", "val.json")]
        if files:
            return _records(name, folder, _record_options(folder, files, held_out))
        if ends[0] == "jsonl" and any((folder / "train").glob("*/*")):
            return _pictures(name, folder)
    return _pictures(name, folder)


def task_name(folder: Path) -> str:
    """The task that a folder is: its name, with what cannot stand in a task's name replaced; other alphabets by a short hash."""
    own = folder.resolve().name
    if not own:
        raise ConfigError(f"The folder {folder} cannot name a task.", fix="Put the data into a folder of its own.")
    name = re.sub(r"[^A-Za-z0-9_]", "_", own)[:80]
    if not re.search(r"[A-Za-z0-9]", name):
        name = f"task_{blake2b(own.encode('utf-8', 'surrogateescape'), digest_size=4).hexdigest()}"
    return name if name[0].isalpha() else f"task_{name.lstrip('_')}"[:80]


def _part_options(folder: Path, held_out: float) -> dict[str, Any]:
    """The same of numbered parts, `train-00000-of-00002.parquet`; {} without any. Where none are for validation, a share of the
    training ones is held out."""
    for below, end in PARTS:
        splits = {
            found[1].lower() for file in (folder / below).glob("*") if (found := re.fullmatch(_PART.format(end), file.name))
        }
        if "train" in splits:
            where = f"{below}{{split}}-*-of-*.{end}"
            judged = splits & set(SPELLINGS["val"])
            return {"file": where} if judged else {"file": where.replace("{split}", "train"), "held_out": held_out}
    return {}


_PART = r"(?i)(\w+)-\d+-of-\d+(?:-[0-9a-f]+)?\.{}"


def _record_options(folder: Path, files: Sequence[str], held_out: float) -> dict[str, Any]:
    """The converter's options that say where the records are."""
    there = {name.lower() for name in files}
    for end in RECORD_ENDS:
        if f"train.{end}" in there and any(f"{val}.{end}" in there for val in SPELLINGS["val"]):
            return {} if end == RECORD_ENDS[0] else {"file": f"{{split}}.{end}"}
    if len(files) > 1:
        raise DataError(
            f"{folder} holds {', '.join(files)}: which is which is unclear.",
            fix=f"Name them train.{files[0].rpartition('.')[2]} and val.{files[0].rpartition('.')[2]}, or leave one.",
        )
    return {"file": files[0], "held_out": held_out}


def _pictures(name: str, folder: Path) -> FoundTask:
    counts: dict[str, int] = {}
    for split in ("train", "val"):
        try:
            counts[split] = len(CONVERTERS["image_folder"].run(folder, split, {}).samples)
        except DataError:
            if all((folder / split).is_dir() for split in ("train", "val")):
                raise  # it is meant to be this; what is wrong with it is the answer
    if len(counts) < 2:
        raise DataError(
            f"{folder} holds neither a .jsonl file nor pictures in train/CLASS/ and val/CLASS/{_instead(folder)}.",
            fix='Add a .jsonl with one object a line, such as {"image": "a.jpg", "text": "What is it?", "label": "cat"}.',
        )
    return FoundTask(name, folder, TaskKind.SINGLE, "image_folder", {}, counts["train"], 8)


def _instead(folder: Path) -> str:
    """What records there seem to be that are not read as they are, as the end of a sentence."""
    packed = sorted(f.name for f in folder.iterdir() if re.search(rf"\.({'|'.join(RECORD_ENDS)})\.\w+$", f.name.lower()))
    if packed:
        return f"; decompress {', '.join(map(shown, packed[:3]))} first"
    below = sorted(f.relative_to(folder).as_posix() for end in RECORD_ENDS for f in folder.glob(f"*/*.{end}"))
    if below:
        return f"; there is {', '.join(map(shown, below[:3]))}: give that folder, with its files called train and val"
    others = sorted(f.name for f in folder.iterdir() if f.suffix.lower() in (".xlsx", ".xls", ".ods", ".arrow", ".pkl", ".db"))
    return f"; save {', '.join(map(shown, others[:3]))} as CSV or Parquet" if others else ""


def _records(name: str, folder: Path, where: dict[str, Any]) -> FoundTask:
    """A task from the fields of its first records."""
    source = open_source(folder)
    reader = RecordOptions(**where)
    (file, *more), records = reader.read(source, "train")
    note = ""
    if "held_out" in where:
        rest = len(reader.read(source, "val")[1])
        if not rest or not records:
            raise DataError(
                f"{folder / file} has {len(records) + rest} records: too few to hold out {where['held_out']:.0%}.",
                fix=f"Write train.{file.rpartition('.')[2]} and val.{file.rpartition('.')[2]}.",
            )
        where_from = f"{file} and {len(more)} more" if more else file
        note = f"{rest} of the {len(records) + rest} records of {where_from} are held out for validation"
    first, some = (records[0].values if records else {}), records[:200]
    held = sorted({field for record in some for field, value in record.values.items() if _is_picture(value)})
    image = next((field for field in ("image", "images") if field in first), held[0] if len(held) == 1 else "")
    columns = [c for c in ("choices", "choice_a,choice_b", "a,b") if set(c.split(",")) <= set(first)]
    if {"question", "answer"} <= set(first) and columns:
        choices = _columns(first, columns[0])
        options = where | ({"image": image} if image else {}) | ({"choices": choices} if choices != "choices" else {})
        count = len(records[0].texts(choices)[0])
        texts = [f"{r.text('question')} {choice}" for r in some for choice in r.texts(choices)[0]]
        return _checked(name, folder, "choice_jsonl", {**options, "count": count}, texts, note)
    if "label" in first and (image or "text" in first or {"left", "right"} <= set(first)):
        pair = {"left", "right"} <= set(first)
        options = where | {
            "text": "text" if "text" in first else "",
            "image": "left,right" if pair else image,
        }
        texts = [r.text("text") for r in some] if "text" in first else []
        return _checked(name, folder, "classify_jsonl", options, texts, note)
    if {"messages", "conversations"} & set(first):
        options = where | {"pictures": int(any({"images", "image"} & set(record.values) for record in some))}
        asked = CONVERTERS["instruct_jsonl"].run(folder, "train", options).samples[:200]
        texts = [text for sample in asked for text in sample.texts[0]]
        return _checked(name, folder, "instruct_jsonl", options, texts, note)
    raise DataError(
        f"{folder / file}: a record has the fields {', '.join(sorted(first)) or 'none'}.",
        fix="Use image (a name or two) and/or text with label; left, right, text and label; question, choices and answer; or "
        "messages.",
    )


def _columns(first: Mapping[str, Any], choices: str) -> str:
    """All the columns of a table's choices: choice_a, choice_b, … or a, b, …"""
    if choices == "choices":
        return choices
    prefix = "choice_" if choices.startswith("choice_") else ""
    letters = itertools.takewhile(lambda letter: f"{prefix}{letter}" in first, string.ascii_lowercase)
    return ",".join(f"{prefix}{letter}" for letter in letters)


def _is_picture(value: Any) -> bool:
    """Whether a table holds a picture here, or a list of them."""
    return isinstance(value, Embedded) or (isinstance(value, list) and any(isinstance(item, Embedded) for item in value))


def _checked(name: str, folder: Path, converter: str, options: dict[str, Any], texts: Sequence[str], note: str) -> FoundTask:
    """The task, once its converter has read every record of both splits: what is wrong with one is said here, not when
    packing."""
    train, _ = (CONVERTERS[converter].run(folder, split, options) for split in ("train", "val"))
    return FoundTask(name, folder, train.kind, converter, options, len(train.samples), _tokens(texts), note)


def _tokens(texts: Sequence[str]) -> int:
    """Text tokens to provide for: words cost more than one token now and then, and [CLS] and [SEP] come on top."""
    words = max((len(re.findall(r"\w+|[^\w\s]", text)) for text in texts), default=6)
    return min(40, max(8, -(-(words * 3 // 2 + 3) // 4) * 4))
