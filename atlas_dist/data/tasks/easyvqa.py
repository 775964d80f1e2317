"""easy-VQA (Zhou 2019, PyPI `easy-vqa`): a drawn shape + a question -> one of 13 answers.

`data/train/questions.json` = [[question, answer, image_id], …], `data/train/images/ID.png`, `data/answers.txt`. The package's own
test split is left alone; `train` and `val` are carved from its training split *by image*, so that no validation picture was seen.
Without a source, the installed package is read.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

from atlas_dist.core.types import TaskKind
from atlas_dist.data.sample import RawSample
from atlas_dist.data.source import open_source
from atlas_dist.data.tasks.base import Converter, Options, RawSet, find_file, json_file, share_of, text_lines
from atlas_dist.errors import ConfigError, DataError


class EasyVQAOptions(Options):
    """How `val` is carved, and how many questions an image keeps."""

    val_share: float = 0.1
    seed: int = 0
    questions_per_image: int = 0
    """0 = all (about ten); otherwise that many a picture, for short runs."""


def convert(path: Path | None, split: str, options: EasyVQAOptions) -> RawSet:
    """List a split; the one right answer has score 1."""
    if path is None:
        spec = importlib.util.find_spec("easy_vqa")
        if spec is None or not spec.submodule_search_locations:
            raise ConfigError("easyvqa has no source and the package easy-vqa is not installed.", fix="pip install easy-vqa==1.0")
        path = Path(spec.submodule_search_locations[0])
    source = open_source(path)
    answers_file = find_file(source, "data/answers.txt", "answers.txt")
    data = answers_file.removesuffix("answers.txt")
    folder = "test" if split == "test" else "train"
    answers = tuple(text_lines(source, answers_file))
    label = {answer: number for number, answer in enumerate(answers)}
    samples: list[RawSample] = []
    asked: dict[str, int] = {}
    for number, record in enumerate(json_file(source, f"{data}{folder}/questions.json")):
        try:
            question, answer, image = str(record[0]), label[record[1]], str(record[2])
        except (IndexError, TypeError, KeyError) as error:
            raise DataError(
                f"questions.json, entry {number}: {str(record)[:120]} is not [question, answer, image] ({error})."
            ) from error
        if split != "test" and (share_of(image, options.seed) < options.val_share) != (split == "val"):
            continue
        asked[image] = asked.get(image, 0) + 1
        if options.questions_per_image and asked[image] > options.questions_per_image:
            continue
        member = f"{data}{folder}/images/{image}.png"
        samples.append(RawSample(f"{folder}-{number}", ((question,),), (member,), targets={answer: 1.0}))
    return RawSet(TaskKind.ANSWERS, 1, answers, samples, source)


EASYVQA = Converter("easyvqa", EasyVQAOptions, convert, ("train", "val", "test"), "easy-VQA (zip, folder or installed package)")
