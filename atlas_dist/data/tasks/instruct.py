"""Instructions with their answers, as the public sets of vision-language models have them: a picture, a question, a text.

    {"messages": [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What is this?"}]},
                  {"role": "assistant", "content": "A red square."}], "images": ["a.png"]}
    {"id": "7", "image": "a.png", "conversations": [{"from": "human", "value": "<image>\\nWhat is this?"},
                                                    {"from": "gpt", "value": "A red square."}]}

Each answer of the assistant is a sample: its question is the text, the turns before it go along. What a system turn says stands
before the first question. A conversation goes as far as questions and answers take turns.
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
    turns: Literal["all", "first"] = "all"
    """Which answers of a conversation are samples."""


@dataclass(frozen=True)
class _Turn:
    """What one side says: a text without placeholders, and the pictures that its parts name themselves."""

    speaker: str
    text: str
    pictures: tuple[Any, ...] = ()


def instruct(path: Path | None, split: str, options: InstructOptions) -> RawSet:
    """Records to samples, one for each answer. A record that cannot be used is counted by what is wrong with it; so are those of
    which some turns are not."""
    source = open_source(need(path, "instruct_jsonl"))
    files, records = options.read(source, split)
    samples: list[RawSample] = []
    bad: list[LeftOut] = []
    other: list[tuple[str, str]] = []
    conversations = longer = 0
    for number, record in enumerate(records):
        try:
            turns = _turns(record)
            pictures = _pictures(record, turns, options.folder)
            name = record.identifier(f"{split}-{number}")
            if len(pictures) != options.pictures:
                other.append((name, f"a record with {_COUNTED.get(len(pictures), 'several pictures')}"))
                continue
            pairs, rest = _pairs(record, turns)
        except DataError as error:
            bad.append(left_out_by(record.where, error))
            continue
        learnt = pairs if options.turns == "all" else pairs[:1]
        conversations += 1
        longer += bool(rest) or len(learnt) < len(pairs)
        for at, (question, answer) in enumerate(learnt):
            known = f"{name}#{at + 1}" if at else name
            samples.append(RawSample(known, ((question,),), pictures, answer=answer, earlier=tuple(learnt[:at])))
    notes: tuple[str, ...] = ()
    if len(samples) > conversations:
        notes += (f"{conversations} records have {len(samples)} answers: each is a sample, with the turns before it",)
    if longer:
        last = "the first answer" if options.turns == "first" else "the last answer that can be used"
        notes += (f"{longer} of {conversations} records go on after {last}: what follows is not learnt",)
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


def _pairs(record: Record, turns: list[_Turn]) -> tuple[list[tuple[str, str]], list[_Turn]]:
    """(questions with their answers, the turns that are none). Raises UnusableError: there is not even a first one."""
    asked = [turn for turn in turns if turn.speaker != "system"]
    said_before = [turn.text for turn in turns[: len(turns) - len(asked)] if turn.text]
    if any(turn.speaker == "system" for turn in turns[len(turns) - len(asked) :]):
        raise _unusable(record, "a system turn within", "a system turn stands behind others")
    if [turn.speaker for turn in asked[:2]] != ["user", "assistant"]:
        raise _unusable(record, "no question with its answer", "the first turns are not a user's and then an assistant's")
    for what, turn in zip(("question", "answer"), asked, strict=False):
        if not turn.text:
            raise _unusable(record, f"an empty {what}", f"the {what} is empty")
    pairs = []
    for question, answer in zip(asked[::2], asked[1::2], strict=False):
        if (question.speaker, answer.speaker) != ("user", "assistant") or not question.text or not answer.text:
            break
        pairs.append((question.text, answer.text))
    pairs[0] = ("\n".join([*said_before, pairs[0][0]]), pairs[0][1])
    return pairs, asked[2 * len(pairs) :]


def _unusable(record: Record, reason: str, what: str) -> UnusableError:
    return UnusableError(f"{record.where}: {what}.", reason=reason)


INSTRUCT_JSONL = Converter(
    "instruct_jsonl", InstructOptions, instruct, (), "picture and question -> written answer, from SPLIT.jsonl with messages"
)
