"""Data sets of your own, without code: an image folder, picture + text from JSON lines, multiple choice from JSON lines."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import Field

from atlas_dist.core.types import TaskKind
from atlas_dist.data.sample import IMAGE_EXTENSIONS, IMAGE_PROMPT, RawSample
from atlas_dist.data.source import open_source
from atlas_dist.data.tasks.base import Converter, Options, RawSet, field, find_file, json_lines, need
from atlas_dist.errors import DataError


class ImageFolderOptions(Options):
    """`{root}/{split}/CLASS/…/x.jpg`: one folder a class."""

    root: str = ""
    prompt: str = IMAGE_PROMPT


def image_folder(path: Path | None, split: str, options: ImageFolderOptions) -> RawSet:
    """Classes are the folders of all splits, sorted, so that train and val agree."""
    source = open_source(need(path, "image_folder"))
    root = options.root and options.root.rstrip("/") + "/"
    pictures = [n.removeprefix(root) for n in source.names(root) if n.rpartition(".")[2].lower() in IMAGE_EXTENSIONS]
    parted = [(name, name.split("/")) for name in pictures if name.count("/") >= 2]
    classes = tuple(sorted({parts[1] for _, parts in parted}))
    samples = [
        RawSample(name, ((options.prompt,),), (root + name,), classes.index(parts[1]))
        for name, parts in parted
        if parts[0] == split
    ]
    if not samples:
        raise DataError(f"There is no {root}{split}/CLASS/*.jpg or *.png.", fix="Check `root` and the split's name.")
    return RawSet(TaskKind.SINGLE, 1, classes, samples, source)


class ClassifyOptions(Options):
    """`{split}.jsonl`, an object a line, with the fields named here."""

    file: str = "{split}.jsonl"
    text: str = "text"
    """Field of the text; "" = `prompt` for all."""
    text_b: str = ""
    """Field of a second text segment; "" = none."""
    image: str = "image"
    """Field of the picture's name; "" = no picture. Two fields, "left,right", make a pair."""
    image_folder: str = ""
    label: str = "label"
    classes: tuple[str, ...] = ()
    """Class names in order; () = the labels of train and val, sorted."""
    prompt: str = IMAGE_PROMPT


def classify(path: Path | None, split: str, options: ClassifyOptions) -> RawSet:
    """Picture(s) and text -> class; labels are names (or numbers, whose names they are)."""
    source = open_source(need(path, "classify_jsonl"))
    name = find_file(source, options.file.format(split=split))
    classes = options.classes
    if not classes:
        files = dict.fromkeys(options.file.format(split=s) for s in ("train", "val", split))
        found = {str(field(r, options.label, f"{f}, line {n}")) for f in files if source.has(f) for n, r in json_lines(source, f)}
        classes = tuple(sorted(found, key=_natural))
    label = {c: number for number, c in enumerate(classes)}
    folder = options.image_folder and options.image_folder.rstrip("/") + "/"
    image_fields = [f.strip() for f in options.image.split(",") if f.strip()]
    if len(image_fields) > 2:
        raise DataError(f"image names {len(image_fields)} fields; a sample has at most two pictures.")
    samples: list[RawSample] = []
    for number, record in json_lines(source, name):
        where = f"{name}, line {number}"
        given = str(field(record, options.label, where))
        if given not in label:
            raise DataError(f"{where}: label {given!r} is none of {list(classes)[:20]}.")
        text = str(field(record, options.text, where)) if options.text else options.prompt
        segments = (text, str(field(record, options.text_b, where))) if options.text_b else (text,)
        pictures = tuple(folder + str(field(record, f, where)) for f in image_fields)
        samples.append(RawSample(str(record.get("id", f"{split}-{number - 1}")), (segments,), pictures, label[given]))
    return RawSet(TaskKind.PAIR if len(image_fields) == 2 else TaskKind.SINGLE, len(image_fields), classes, samples, source)


class ChoiceOptions(Options):
    """`{split}.jsonl`, an object a line: a question, its choices, and which is right."""

    file: str = "{split}.jsonl"
    question: str = "question"
    choices: str = "choices"
    """Field that holds the list of K texts."""
    answer: str = "answer"
    """Field of the right choice: its number, or its text."""
    image: str = ""
    image_folder: str = ""
    count: int = Field(default=0, ge=0)
    """K; 0 = that of the first record. Every record must have it."""


def choose(path: Path | None, split: str, options: ChoiceOptions) -> RawSet:
    """Question (and picture) -> one of K choices."""
    source = open_source(need(path, "choice_jsonl"))
    name = find_file(source, options.file.format(split=split))
    folder = options.image_folder and options.image_folder.rstrip("/") + "/"
    count = options.count
    samples: list[RawSample] = []
    for number, record in json_lines(source, name):
        where = f"{name}, line {number}"
        choices = [str(c) for c in field(record, options.choices, where)]
        count = count or len(choices)
        answer = field(record, options.answer, where)
        right = choices.index(answer) if answer in choices else answer
        if len(choices) != count or isinstance(right, bool) or not isinstance(right, int) or not 0 <= right < count:
            raise DataError(f"{where}: {len(choices)} choices, answer {answer!r}; expected {count} and one of them.")
        question = str(field(record, options.question, where))
        pictures = (folder + str(field(record, options.image, where)),) if options.image else ()
        identifier = str(record.get("id", f"{split}-{number - 1}"))
        samples.append(RawSample(identifier, tuple((question, c) for c in choices), pictures, right))
    letters = tuple(chr(65 + k) if count <= 26 else str(k) for k in range(count))
    return RawSet(TaskKind.CHOICE, 1 if options.image else 0, letters, samples, source)


def _natural(name: str) -> tuple[int, Any]:
    return (0, int(name)) if name.isdigit() else (1, name)


IMAGE_FOLDER = Converter("image_folder", ImageFolderOptions, image_folder, (), "SPLIT/CLASS/*.jpg, one folder a class")
CLASSIFY_JSONL = Converter("classify_jsonl", ClassifyOptions, classify, (), "picture and/or text -> class, from SPLIT.jsonl")
CHOICE_JSONL = Converter("choice_jsonl", ChoiceOptions, choose, (), "question -> one of K choices, from SPLIT.jsonl")
