"""Data sets of your own, without code: an image folder, picture + text from a file of records, multiple choice from one."""

from __future__ import annotations

import itertools
import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Literal

from pydantic import Field

from atlas_dist.core.types import TaskKind
from atlas_dist.data.images import sniff
from atlas_dist.data.leftout import LeftOut, left_out_by, shown, writable
from atlas_dist.data.parquet import WithEmbedded
from atlas_dist.data.records import RECORD_ENDS, Record, Scalar, label_forms, label_key, normal_forms, read_records
from atlas_dist.data.sample import IMAGE_EXTENSIONS, IMAGE_PROMPT, RawSample
from atlas_dist.data.source import Source, is_no_data, open_source
from atlas_dist.data.tasks.base import Converter, RawSet, SplitOptions, need, share_of
from atlas_dist.errors import DataError


class ImageFolderOptions(SplitOptions):
    """`{root}/{split}/CLASS/…/x.jpg`: one folder a class."""

    root: str = ""
    prompt: str = IMAGE_PROMPT


def image_folder(path: Path | None, split: str, options: ImageFolderOptions) -> RawSet:
    """Classes are the folders of the task's splits, sorted, so that train and val agree. Every file below a class is a sample,
    or is among those left out."""
    source = open_source(need(path, "image_folder"))
    root = options.root and options.root.rstrip("/") + "/"
    pictures: list[list[str]] = []
    bad: list[LeftOut] = []
    beside: list[tuple[str, str]] = []
    for one in options.all_splits(split):
        for name in source.names(f"{root}{one}"):
            parts = name.removeprefix(root).split("/")
            if is_no_data(name.removeprefix(root)):
                beside += [("/".join(parts), "a file of a program beside the data")] if one == split else []
            elif len(parts) < 3:
                if one == split and parts[-1].rpartition(".")[2].lower() in IMAGE_EXTENSIONS:
                    beside.append(("/".join(parts), "a picture in no class folder"))
            elif (trouble := _no_picture(source, name)) is None:
                pictures.append(parts)
            elif one == split:
                bad.append(left_out_by(shown("/".join(parts)), trouble))
    same = normal_forms(parts[1] for parts in pictures)
    classes = tuple(sorted({writable(form) for form in same.values()}))
    number = {name: label for label, name in enumerate(classes)}
    samples = [
        RawSample(writable("/".join(p)), ((options.prompt,),), (root + "/".join(p),), number[writable(same[p[1]])])
        for p in pictures
        if p[0] == split
    ]
    if not samples:
        raise DataError(
            f"There is no {root}{split}/CLASS/*.jpg or *.png{f' ({len(bad)} other files)' if bad else ''}.",
            fix=_other_spelling(source, root, split) or "Check `root` and the split's name.",
        )
    return RawSet(TaskKind.SINGLE, 1, classes, samples, source, left_out=tuple(beside), bad=tuple(bad), notes=_alike(classes))


def _other_spelling(source: Source, root: str, split: str) -> str:
    """What to do where the split's folder is there in other capitals; "" = it is not."""
    folders = {name.removeprefix(root).partition("/")[0] for name in source.names(root.rstrip("/")) if "/" in name}
    other = next((folder for folder in sorted(folders) if folder.casefold() == split.casefold() != folder), "")
    return f"There is {shown(root + other)}: rename it to {split}." if other else ""


def _no_picture(source: Source, name: str) -> DataError | None:
    """Why a file of a class folder is no picture; None when it is one, or is called like one (decoding will tell)."""
    if name.rpartition(".")[2].lower() in IMAGE_EXTENSIONS:
        return None
    try:
        sniff(source.read(name))
    except DataError as error:
        return error
    return None


class RecordOptions(SplitOptions):
    """Files of records: JSON lines, CSV, TSV or Parquet."""

    file: str = "{split}.jsonl"
    """Where the records are; with a `*`, in all files that match, in the order of their names (`data/{split}-*.parquet`); without
    `{split}`, in one place for both splits (`held_out`). The default also finds `{split}.csv`, `.tsv` and `.parquet`, and the
    numbered parts that the Hub has, beside it or in `data`. What is val here may be called validation, valid or dev there."""
    held_out: float = Field(default=0, ge=0, lt=1)
    """Share of the one place's records that is the validation split, chosen by a hash of each record; 0 = every split has all."""
    image_folder: str = ""

    def files(self, source: Source, split: str) -> list[str]:
        """Those of a split, in order. Raises DataError: there is none, or a part is missing."""
        wanted = [self.file]
        if self.file == RecordOptions.model_fields["file"].default:
            wanted = [f"{{split}}.{end}" for end in RECORD_ENDS] + [f"{below}{{split}}-*-of-*.{end}" for below, end in PARTS]
        return find_records(source, *(one.replace("{split}", name) for name in SPELLINGS.get(split, (split,)) for one in wanted))

    def read(self, source: Source, split: str) -> tuple[list[str], list[Record]]:
        """(files, the split's records in order). Raises DataError with file, line and column."""
        files = self.files(source, split)
        records = [record for name in files for record in read_records(source.read(name), name)]
        if not self.held_out:
            return files, records
        held_out = split == (self.splits or ("train", "val"))[-1]
        return files, [r for r in records if (share_of(_canonical(r), 0) < self.held_out) == held_out]

    @property
    def folder(self) -> str:
        """Of the pictures, ending in a slash or empty."""
        return self.image_folder and self.image_folder.rstrip("/") + "/"


SPELLINGS = {"val": ("val", "validation", "valid", "dev")}
"""What others call our splits."""
PARTS = tuple((below, end) for below in ("", "data/") for end in ("parquet", "jsonl", "csv", "json"))
"""Where numbered parts of a split lie, and how they end."""


def find_records(source: Source, *candidates: str) -> list[str]:
    """The files that the first of `candidates` that exists names, in capitals or not; with a `*`, all that match. Raises
    DataError: there are none, saying what there is instead, or one of several numbered parts is missing."""
    found = next((name for name in candidates if source.has(name)), "")
    if found:
        return [found]
    every = list(source.names())
    for candidate in candidates:
        pattern = re.compile(re.escape(candidate).replace(r"\*", "[^/]*"), re.IGNORECASE)
        matching = [name for name in every if pattern.fullmatch(name)]
        if matching and ("*" in candidate or "/" not in candidate):
            return _whole(matching) if "*" in candidate else matching[:1]
    there = {name.casefold(): name for name in every if "/" not in name}
    ends = tuple(f".{end}{packed}" for end in RECORD_ENDS for packed in _PACKED)
    beside = [name for low, name in sorted(there.items()) if low.endswith(ends)]
    instead = f"; it has {', '.join(map(shown, beside[:5]))}" if beside else ""
    raise DataError(
        f"The raw data set has none of: {', '.join(candidates[: len(RECORD_ENDS)])}{instead}.",
        fix="Decompress it first (gunzip, zstd -d, unzip)."
        if beside and all(name.casefold().endswith(_PACKED[1:]) for name in beside)
        else "Check that the source is the right folder or zip.",
    )


def _whole(parts: list[str]) -> list[str]:
    """Parts of one split. Raises DataError: one that their names count is missing."""
    counted = [(int(found[1]), int(found[2])) for name in parts if (found := re.search(r"-(\d+)-of-(\d+)[^/]*$", name))]
    missing = sorted(set(range(max((of for _, of in counted), default=0))) - {number for number, _ in counted})
    if missing and len(counted) == len(parts):
        raise DataError(
            f"{shown(parts[0])} and its like are {len(parts)} parts of {counted[0][1]}: part {missing[0]} is missing.",
            fix="Download the rest.",
        )
    return parts


_PACKED = ("", ".gz", ".zst", ".xz", ".bz2", ".zip")


class ClassifyOptions(RecordOptions):
    """`{split}.jsonl`, an object a line, with the fields named here."""

    text: str = "text"
    """Field of the text; "" = `prompt` for all."""
    text_b: str = ""
    """Field of a second text segment; "" = none."""
    image: str = "image"
    """Field of the picture's name; "" = no picture. Two fields, "left,right", or a list of two in one field make a pair."""
    label: str = "label"
    classes: tuple[str, ...] = ()
    """Class names in order; () = the labels of train and val, sorted."""
    prompt: str = IMAGE_PROMPT


def classify(path: Path | None, split: str, options: ClassifyOptions) -> RawSet:
    """Picture(s) and text -> class; labels are names (or numbers, whose names they are)."""
    source = open_source(need(path, "classify_jsonl"))
    files, records = options.read(source, split)
    source = with_pictures(source, files)
    given = [(r, r.label(options.label)) for r in records]
    every = list(given)
    for other in options.all_splits(split):
        if not options.classes and other != split and _has(source, options, other):
            every += [(r, r.label(options.label)) for r in options.read(source, other)[1]]
    _one_type(every)
    spelt = _spelling(every)
    named = label_forms([*options.classes, *(spelt(value) for _, value in every)])
    classes = tuple(named[c] for c in options.classes) or tuple(sorted({named[spelt(v)] for _, v in every}, key=_natural))
    label = {c: number for number, c in enumerate(classes)}
    image_fields = [f.strip() for f in options.image.split(",") if f.strip()]
    if len(image_fields) > 2:
        raise DataError(f"image names {len(image_fields)} fields; a sample has at most two pictures.")
    images: int | None = None
    samples: list[RawSample] = []
    for number, (record, value) in enumerate(given):
        if named[spelt(value)] not in label:
            record.refuse(f"label {spelt(value)!r} is none of {list(classes)[:20]}")
        text = record.text(options.text) if options.text else options.prompt
        segments = (text, record.text(options.text_b)) if options.text_b else (text,)
        pictures = tuple(itertools.chain.from_iterable(record.pictures(f, options.folder) for f in image_fields))
        images = len(pictures) if images is None else images
        if len(pictures) != images or images > 2:
            wanted = "one or two are wanted" if images > 2 else f"the first record has {images}"
            record.refuse(f"{options.image!r} has {len(pictures)} pictures; {wanted}")
        identifier = record.identifier(f"{split}-{number}")
        samples.append(RawSample(identifier, (segments,), pictures, label[named[spelt(value)]]))
    images = len(image_fields) if images is None else images
    kind = TaskKind.PAIR if images == 2 else TaskKind.SINGLE
    notes = (*_notes(files[0], samples), *_alike(classes), *_like_nothing(classes, given))
    return RawSet(kind, images, classes, samples, source, notes=notes)


class ChoiceOptions(RecordOptions):
    """`{split}.jsonl`, an object a line: a question, its choices, and which is right."""

    question: str = "question"
    choices: str = "choices"
    """Field that holds the list of K texts; of a table also K columns, "a,b,c"."""
    answer: str = "answer"
    """Field of the right choice: its number, its text, or its letter from A."""
    answer_is: Literal["either", "number", "text"] = "either"
    """What `answer` holds; `either` refuses what could be both and differs."""
    image: str = ""
    count: int = Field(default=0, ge=0)
    """K; 0 = that of the first record. Every record must have it."""


def choose(path: Path | None, split: str, options: ChoiceOptions) -> RawSet:
    """Question (and picture) -> one of K choices."""
    source = open_source(need(path, "choice_jsonl"))
    files, records = options.read(source, split)
    source = with_pictures(source, files)
    count = options.count
    samples: list[RawSample] = []
    for number, record in enumerate(records):
        choices, written = record.texts(options.choices)
        count = count or len(choices)
        right = _right(record, choices, written, options)
        if len(choices) != count or not 0 <= right < count:
            answer = record.get(options.answer)
            record.refuse(f"{len(choices)} choices, answer {answer!r}; expected {count} and one of them")
        question = record.text(options.question)
        pictures = record.pictures(options.image, options.folder) if options.image else ()
        if options.image and len(pictures) != 1:
            record.refuse(f"{options.image!r} has {len(pictures)} pictures; a question has one")
        texts = tuple((question, c) for c in choices)
        samples.append(RawSample(record.identifier(f"{split}-{number}"), texts, pictures, right))
    letters = tuple(chr(65 + k) if count <= 26 else str(k) for k in range(count))
    kind = TaskKind.CHOICE
    return RawSet(kind, 1 if options.image else 0, letters, samples, source, notes=_notes(files[0], samples))


def _right(record: Record, choices: Sequence[str], written: Sequence[str | int | float], options: ChoiceOptions) -> int:
    """Number of the right choice, -1 when there is none. Raises DataError: it could be two."""
    answer = record.label(options.answer)
    if isinstance(answer, bool):
        return -1
    if isinstance(answer, float) and answer.is_integer():
        answer = int(answer)
    same = normal_forms([*choices, str(answer)])
    spelt = [same[choice] for choice in choices]
    by_text = spelt.index(same[str(answer)]) if same[str(answer)] in spelt else -1
    counts = isinstance(answer, int) or (isinstance(answer, str) and answer.isdecimal() and record.untyped)
    by_number = int(answer) if counts and int(answer) < len(choices) else -1
    if by_text < 0 and isinstance(answer, str) and re.fullmatch("[A-Z]", answer) and not counts:
        by_number = ord(answer) - ord("A")  # choices are lettered where their texts are not repeated
    # Beside choices that are texts, a number counts them.
    may_be_text = isinstance(answer, str) or record.untyped or any(not isinstance(choice, str) for choice in written)
    if options.answer_is != "either":
        return by_text if options.answer_is == "text" else by_number
    if may_be_text and by_text >= 0 and by_number >= 0 and by_text != by_number:
        record.refuse(
            f"answer {answer!r} of {list(written)!r} is choice {by_text} by its text and choice {by_number} by its number",
            "Write the choices as texts; then an answer that is a text names one and a number counts them. "
            "Or set the converter's option answer_is to text or number.",
        )
    return by_text if may_be_text and by_text >= 0 else by_number


def with_pictures(source: Source, files: Sequence[str]) -> Source:
    """The source with the pictures that the files of records may hold themselves."""
    tables = [file for file in files if file.lower().endswith(".parquet")]
    return WithEmbedded(source, *tables) if tables else source


def _has(source: Source, options: RecordOptions, split: str) -> bool:
    try:
        return bool(options.files(source, split))
    except DataError:
        return False


def _one_type(labels: Iterable[tuple[Record, Scalar]]) -> None:
    """Raises DataError: truth values among names. All of them truth values is a task like others."""
    first: tuple[Record, Scalar] | None = None
    for record, value in labels:
        first = first or (record, value)
        if isinstance(value, bool) != isinstance(first[1], bool):
            record.refuse(f"label {value!r} beside {first[1]!r} of {first[0].where}: one is true or false, the other is not")


_WHOLE, _WITH_POINT = re.compile(r"-?(0|[1-9]\d*)"), re.compile(r"(-?(?:0|[1-9]\d*))\.0+")
_TRUTH = {"true": "True", "false": "False"}


def _spelling(labels: Sequence[tuple[Record, Scalar]]) -> Callable[[Scalar], str]:
    """How labels become names: 1.0 is `1` where others are whole numbers (tables with gaps write them so), else `1.0`. A table
    whose cells are all texts is read alike; true, True and TRUE are one where it has nothing else and several of them."""
    table = bool(labels) and all(record.untyped for record, _ in labels)
    texts = {label_key(value) for _, value in labels if isinstance(value, str)} if table else set()
    whole = any(isinstance(value, int) and not isinstance(value, bool) for _, value in labels) or any(
        map(_WHOLE.fullmatch, texts)
    )
    truth = len(texts) > len({t.casefold() for t in texts}) and {text.casefold() for text in texts} <= _TRUTH.keys()

    def spelt(value: Scalar) -> str:
        if table and isinstance(value, str):
            if truth:
                return _TRUTH[label_key(value).casefold()]
            number = _WITH_POINT.fullmatch(label_key(value)) if whole else None
            return number[1] if number else value
        return str(int(value)) if whole and isinstance(value, float) and value.is_integer() else str(value)

    return spelt


_NOTHING = frozenset({"na", "n/a", "nan", "null", "none", "nil", "<na>", "#n/a"})


def _like_nothing(classes: Sequence[str], given: Sequence[tuple[Record, Scalar]]) -> tuple[str, ...]:
    """A sentence about classes of a table that read like an empty cell, if there are any."""
    found = [name for name in classes if name.strip().casefold() in _NOTHING] if given and given[0][0].untyped else []
    return (f"classes that may mean no label at all: {', '.join(map(shown, found))}",) if found else ()


def _notes(name: str, samples: Sequence[RawSample]) -> tuple[str, ...]:
    """What is odd about records that were taken as they are."""
    notes = []
    empty = [s.id for s in samples if any(not text.strip() for entry in s.texts for text in entry)]
    if empty:
        notes.append(f"{name}: {len(empty)} records have an empty text (first: {shown(empty[0])})")
    twice = [i for i, n in Counter(s.id for s in samples).items() if n > 1]
    if twice:
        notes.append(f"{name}: {len(twice)} ids stand more than once (first: {shown(twice[0])}); each record is a sample")
    return tuple(notes)


def _alike(classes: Sequence[str]) -> tuple[str, ...]:
    """A sentence about classes whose names differ by capitals only, if there are any."""
    groups: dict[str, list[str]] = {}
    for name in classes:
        groups.setdefault(name.casefold(), []).append(name)
    found = next((names for names in groups.values() if len(names) > 1), None)
    return (f"classes whose names differ by capitals only are several: {', '.join(map(shown, found))}",) if found else ()


def _canonical(record: Record) -> str:
    return json.dumps(dict(record.values), sort_keys=True, ensure_ascii=True, default=str)


def _natural(name: str) -> tuple[int, int, str]:
    """Numbers by size, before words."""
    return (0, int(name), name) if name.isdecimal() and len(name) < 4000 else (1, 0, name)


IMAGE_FOLDER = Converter("image_folder", ImageFolderOptions, image_folder, (), "SPLIT/CLASS/*.jpg, one folder a class")
CLASSIFY_JSONL = Converter(
    "classify_jsonl", ClassifyOptions, classify, (), "picture and/or text -> class, from SPLIT.jsonl (.csv, …)"
)
CHOICE_JSONL = Converter("choice_jsonl", ChoiceOptions, choose, (), "question -> one of K choices, from SPLIT.jsonl (.csv, …)")
