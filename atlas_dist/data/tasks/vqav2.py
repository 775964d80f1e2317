"""VQAv2 (Goyal et al. 2017): MS-COCO picture + question -> soft scores over a list of frequent answers.

`v2_OpenEnded_mscoco_{train,val}2014_questions.json` and `v2_mscoco_{train,val}2014_annotations.json`, joined on question_id. An
answer given by n of ten people scores 0, .3, .6, .9, 1 for n = 0, 1, 2, 3, >= 4. The list is built here: the majority answers
seen at least nine times in train and val, normalised as the official evaluation does, most frequent first, ties by name. Answers
outside it are dropped; a question may keep none (its target is all zero).
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import Field

from atlas_dist.core.types import TaskKind
from atlas_dist.data.sample import RawSample
from atlas_dist.data.source import Source, open_source
from atlas_dist.data.tasks.base import Converter, Options, RawSet, find_file, json_file, need
from atlas_dist.errors import DataError

SCORES = (0.0, 0.3, 0.6, 0.9, 1.0)


class VqaOptions(Options):
    """Where the answer list comes from and where the pictures lie."""

    answers: str = ""
    """A JSON file of the source, {answer: label} or a list; "" = build it from the annotations of `list_from`."""
    list_from: tuple[str, ...] = ("train", "val")
    min_count: int = Field(default=9, ge=1)
    """Occurrences as majority answer to enter the list."""
    images: str = "{split}2014/COCO_{split}2014_{id:012d}.jpg"
    """Name of a picture; `ms-coco/images/{id:012d}.jpg` for the names of 2017."""


def convert(path: Path | None, split: str, options: VqaOptions) -> RawSet:
    """List a split."""
    source = open_source(need(path, "vqav2"))
    answers = _read_list(source, options.answers) if options.answers else _build_list(source, options)
    label = {answer: number for number, answer in enumerate(answers)}
    questions = {q["question_id"]: q for q in _entries(source, split, "questions")}
    samples: list[RawSample] = []
    left_out: list[tuple[str, str]] = []
    for annotation in _entries(source, split, "annotations"):
        identifier = annotation["question_id"]
        question = questions.get(identifier)
        if question is None:
            left_out.append((str(identifier), "an annotation without a question"))
            continue
        try:
            picture = options.images.format(split=split, id=int(question["image_id"]))
            targets = soft_scores([a["answer"] for a in annotation["answers"]], label)
            samples.append(RawSample(str(identifier), ((str(question["question"]),),), (picture,), targets=targets))
        except (KeyError, TypeError, ValueError) as error:
            raise DataError(f"VQA question {identifier} lacks or garbles a field: {error!r}.") from error
    return RawSet(TaskKind.ANSWERS, 1, answers, samples, source, tuple(left_out))


def soft_scores(given: list[str], label: dict[str, int]) -> dict[int, float]:
    """Soft score by label of the answers that people gave; answers outside the list are dropped."""
    # A list made elsewhere may hold answers in another form than `normalise` gives: as written, then.
    counts = Counter(answer if answer in label else normalise(answer) for answer in given)
    return {label[answer]: SCORES[min(n, 4)] for answer, n in counts.items() if answer in label}


def normalise(answer: str) -> str:
    """An answer as the official evaluation compares it: lower case, punctuation, number words, articles and contractions evened
    out.

    Source: https://visualqa.org/evaluation.html
    """
    given = text = answer.replace("\n", " ").replace("\t", " ").strip().lower()
    thousands = re.search(r"\d,\d", given) is not None
    for mark in _PUNCTUATION:
        joins = f"{mark} " in given or f" {mark}" in given or thousands
        text = text.replace(mark, "" if joins else " ")
    text = re.sub(r"(?<!\d)\.(?!\d)", "", text)  # full stops, but not decimal points
    words = (_NUMBERS.get(word, word) for word in text.split())
    return " ".join(_CONTRACTIONS.get(word, word) for word in words if word not in ("a", "an", "the"))


def _build_list(source: Source, options: VqaOptions) -> tuple[str, ...]:
    counts: Counter[str] = Counter()
    for split in options.list_from:
        counts.update(_majority(annotation) for annotation in _entries(source, split, "annotations"))
    chosen = [answer for answer, n in counts.items() if answer and n >= options.min_count]
    if not chosen:
        raise DataError(f"No answer is the majority {options.min_count} times.", fix="Lower min_count, or give `answers`.")
    return tuple(sorted(chosen, key=lambda answer: (-counts[answer], answer)))


def _majority(annotation: dict[str, Any]) -> str:
    """The answer most people gave, normalised; files without the field still have the answers (the first of equals counts)."""
    if given := annotation.get("multiple_choice_answer"):
        return normalise(str(given))
    answers = Counter(normalise(str(a.get("answer", ""))) for a in annotation.get("answers", ()))
    return max(answers, key=answers.__getitem__, default="")


def _read_list(source: Source, name: str) -> tuple[str, ...]:
    body = json_file(source, name)
    if isinstance(body, list) and body and isinstance(body[0], dict):
        body = body[0]  # the released code's answer_dict.json: a list whose first element is the map
    if isinstance(body, dict) and sorted(body.values()) == list(range(len(body))):
        return tuple(sorted(body, key=body.__getitem__))
    if isinstance(body, list) and all(isinstance(a, str) for a in body) and len(set(body)) == len(body):
        return tuple(body)
    raise DataError(f"{name} is neither a list of answers nor a map from answer to 0, 1, 2, ….")


def _entries(source: Source, split: str, what: str) -> Iterator[dict[str, Any]]:
    file = f"v2_{'OpenEnded_' if what == 'questions' else ''}mscoco_{split}2014_{what}.json"
    body = json_file(source, find_file(source, file, f"vqav2/{file}", f"VQA/{file}"))
    entries = body.get(what) if isinstance(body, dict) else None
    if not isinstance(entries, list) or not all(isinstance(e, dict) and "question_id" in e for e in entries):
        raise DataError(f"{file} has no list {what!r} of objects with a question_id.")
    yield from entries


_PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
_NUMBER_WORDS = "zero one two three four five six seven eight nine ten"
_NUMBERS = {word: str(n) for n, word in enumerate(_NUMBER_WORDS.split())} | {"none": "0"}
_CONTRACTED = """
ain't aren't can't could've couldn't didn't doesn't don't hadn't hasn't haven't he's how'd how'll how's i'm i've isn't
it's might've mightn't must've mustn't needn't should've shouldn't somebody's someone's that's there's they'd they'll
they're they've wasn't we've weren't what's when's where's who's who've why's won't would've wouldn't you'd you'll
you're you've
"""
_CONTRACTIONS = {whole.replace("'", ""): whole for whole in _CONTRACTED.split()}

VQAV2 = Converter("vqav2", VqaOptions, convert, ("train", "val"), "VQAv2: picture + question, soft answer scores")
