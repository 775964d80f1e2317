"""Instructions with their answers, as the public sets of vision-language models have them: a picture, a question, a text.

    {"messages": [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What is this?"}]},
                  {"role": "assistant", "content": "A red square."}], "images": ["a.png"]}
    {"id": "7", "image": "a.png", "conversations": [{"from": "human", "value": "<image>\\nWhat is this?"},
                                                    {"from": "gpt", "value": "A red square."}]}

The first question, with what a system turn says before it, is the text; the assistant's answer to it is the answer. What follows
is not used: it would be asked without the turns before it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from atlas_dist.core.types import TaskKind
from atlas_dist.data.leftout import LeftOut, UnusableError, left_out_by
from atlas_dist.data.parquet import Embedded
from atlas_dist.data.records import Record
from atlas_dist.data.sample import RawSample
from atlas_dist.data.source import open_source
from atlas_dist.data.tasks.base import Converter, RawSet, need
from atlas_dist.data.tasks.generic import RecordOptions, with_pictures
from atlas_dist.errors import DataError

PLACEHOLDER = "<image>"
"""Where a picture stands in a text. Ours stands before every text, so it is taken out."""

_FORMS = (("messages", "role", "content"), ("conversations", "from", "value"))
"""Field of the turns; of a turn, who speaks and what."""
_SPEAKERS = {"system": "system", "user": "user", "human": "user", "assistant": "assistant", "gpt": "assistant"}

_COUNTED = {0: "no picture", 1: "one picture"}


class InstructOptions(RecordOptions):
    """`{split}.jsonl`, an object a line, in either form."""

    pictures: Literal[0, 1] = 1
    """Pictures a sample. Records with fewer or more are left out and counted: a data set may have both kinds."""


@dataclass(frozen=True)
class _Turn:
    """What one side says: a text without placeholders, and the pictures that its parts name themselves."""

    speaker: str
    text: str
    pictures: tuple[Any, ...] = ()


def instruct(path: Path | None, split: str, options: InstructOptions) -> RawSet:
    """Records to samples. One that cannot be used is counted by what is wrong with it; so are turns that are not used."""
    source = open_source(need(path, "instruct_jsonl"))
    files, records = options.read(source, split)
    samples: list[RawSample] = []
    bad: list[LeftOut] = []
    other: list[tuple[str, str]] = []
    longer = 0
    for number, record in enumerate(records):
        try:
            turns = _turns(record)
            pictures = _pictures(record, turns, options.folder)
            name = record.identifier(f"{split}-{number}")
            if len(pictures) != options.pictures:
                other.append((name, f"a record with {_COUNTED.get(len(pictures), 'several pictures')}"))
                continue
            question, answer, rest = _first_pair(record, turns)
        except DataError as error:
            bad.append(left_out_by(record.where, error))
            continue
        longer += bool(rest)
        samples.append(RawSample(name, ((question,),), pictures, answer=answer))
    notes = (f"{longer} of {len(samples)} records go on after the first answer: only that one is learnt",) if longer else ()
    source = with_pictures(source, files)
    return RawSet(TaskKind.GENERATE, options.pictures, (), samples, source, tuple(other), tuple(bad), notes)


def _turns(record: Record) -> list[_Turn]:
    """All turns of a record in order. Raises UnusableError."""
    form = next((form for form in _FORMS if form[0] in record.values), None)
    if form is None:
        raise _unusable(record, "no turns", f"it has neither messages nor conversations, but {sorted(record.values)[:10]}")
    turns = record.values[form[0]]
    if not isinstance(turns, list) or not all(isinstance(turn, Mapping) for turn in turns):
        raise _unusable(record, "no turns", f"{form[0]!r} is no list of objects")
    return [_turn(record, turn.get(form[1]), turn.get(form[2])) for turn in turns]


def _turn(record: Record, speaker: Any, content: Any) -> _Turn:
    if speaker not in _SPEAKERS:
        raise _unusable(record, "a turn of somebody else", f"{speaker!r} speaks; {', '.join(_SPEAKERS)} may")
    parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
    if not isinstance(parts, list) or not all(isinstance(part, Mapping) for part in parts):
        raise _unusable(record, "no text", f"what {speaker!r} says is neither a text nor a list of parts")
    texts: list[str] = []
    pictures: list[Any] = []
    for part in parts:
        kind = part.get("type")
        if kind == "text" and isinstance(part.get("text"), str):
            texts.append(part["text"])
        elif kind in ("image", "image_url"):
            pictures += [part[key] for key in ("image", "path", "url") if part.get(key) is not None][:1]
        else:
            raise _unusable(record, "a part that is neither text nor picture", f"a part of type {kind!r} cannot be used")
    text = "\n".join(" ".join(text.replace(PLACEHOLDER, " ").split(" ")).strip() for text in texts)
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise _unusable(record, "half a character", "a text holds half a character (a lone surrogate)") from error
    return _Turn(_SPEAKERS[speaker], text.strip(), tuple(pictures))


def _pictures(record: Record, turns: list[_Turn], folder: str) -> tuple[str, ...]:
    """The members of the source that are its pictures: of `images` or `image`, else those that the turns name. Raises
    UnusableError."""
    given = record.values.get("images")
    given = record.values.get("image") if given is None else given
    listed = list(given) if isinstance(given, list | tuple) else [] if given is None else [given]
    found = []
    for picture in listed or [picture for turn in turns for picture in turn.pictures]:
        if isinstance(picture, Embedded):
            found.append(str(picture))
        elif isinstance(picture, str) and picture.strip():
            found.append(folder + picture)
        else:
            raise _unusable(
                record, "a picture that is no file", f"a picture is a {type(picture).__name__}; a file's name is wanted"
            )
    return tuple(found)


def _first_pair(record: Record, turns: list[_Turn]) -> tuple[str, str, list[_Turn]]:
    """(text, answer, the turns after it). Raises UnusableError."""
    asked = [turn for turn in turns if turn.speaker != "system"]
    said_before = [turn.text for turn in turns[: len(turns) - len(asked)] if turn.text]
    if any(turn.speaker == "system" for turn in turns[len(turns) - len(asked) :]):
        raise _unusable(record, "a system turn within", "a system turn stands behind others")
    if [turn.speaker for turn in asked[:2]] != ["user", "assistant"]:
        raise _unusable(record, "no question with its answer", "the first turns are not a user's and then an assistant's")
    question, answer = asked[0].text, asked[1].text
    for what, text in (("question", question), ("answer", answer)):
        if not text:
            raise _unusable(record, f"an empty {what}", f"the {what} is empty")
    return "\n".join([*said_before, question]), answer, asked[2:]


def _unusable(record: Record, reason: str, what: str) -> UnusableError:
    return UnusableError(f"{record.where}: {what}.", reason=reason)


INSTRUCT_JSONL = Converter(
    "instruct_jsonl", InstructOptions, instruct, (), "picture and question -> written answer, from SPLIT.jsonl with messages"
)
