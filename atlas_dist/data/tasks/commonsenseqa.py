"""CommonsenseQA v1.11 (Talmor et al. 2019): question -> one of five answers, no image.

`{train,dev}_rand_split.jsonl`: id, answerKey A-E, question{stem, choices[5]{label, text}}. Text of choice k: (stem, choice k).
"""

from __future__ import annotations

from pathlib import Path

from atlas_dist.core.types import TaskKind
from atlas_dist.data.sample import RawSample
from atlas_dist.data.source import open_source
from atlas_dist.data.tasks.base import Converter, Options, RawSet, field, find_file, json_lines, need
from atlas_dist.errors import DataError


class CommonsenseQAOptions(Options):
    """`folder`: where the files lie inside the source (TREC's derived form: `derived_commonsenseqa_format`)."""

    folder: str = ""


def convert(path: Path | None, split: str, options: CommonsenseQAOptions) -> RawSet:
    """List a split; `val` is the file upstream calls dev."""
    source = open_source(need(path, "commonsenseqa"))
    folder = options.folder and options.folder.rstrip("/") + "/"
    name = find_file(source, f"{folder}{'dev' if split == 'val' else split}_rand_split.jsonl")
    samples: list[RawSample] = []
    letters: tuple[str, ...] = ()
    for number, record in json_lines(source, name):
        where = f"{name}, line {number}"
        question = field(record, "question", where)
        try:
            stem, choices = str(question["stem"]), {str(c["label"]): str(c["text"]) for c in question["choices"]}
        except (KeyError, TypeError) as error:
            raise DataError(f"{where}: a question has no {error}.") from error
        letters = letters or tuple(sorted(choices))
        answer = field(record, "answerKey", where)
        if tuple(sorted(choices)) != letters or answer not in choices:
            raise DataError(f"{where}: choices {sorted(choices)}, answer {answer!r}; expected {list(letters)}.")
        samples.append(
            RawSample(str(record.get("id", number)), tuple((stem, choices[a]) for a in letters), (), letters.index(answer))
        )
    return RawSet(TaskKind.CHOICE, 0, letters, samples, source)


COMMONSENSEQA = Converter(
    "commonsenseqa", CommonsenseQAOptions, convert, ("train", "val"), "CommonsenseQA v1.11 (and TREC in its form)"
)
