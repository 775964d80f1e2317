"""What goes over the wire: the bodies of requests and answers, and the way from one to a `Request` of the model.

Pictures are bytes that the client sends. Nothing that comes in names a file of this machine, and no URL is fetched.
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import chain
from typing import Any, cast

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from atlas_dist.bank.weights import LearntWeights
from atlas_dist.data.images import PictureLimits, check_pixels
from atlas_dist.data.leftout import shown
from atlas_dist.data.source import is_url
from atlas_dist.errors import DataError
from atlas_dist.serve.inputs import Text
from atlas_dist.serve.model import Prediction, Request
from atlas_dist.train.signatures import always_has_text, profile_of
from atlas_dist.validation import faults

_MOST_FAULTS = 5
LONGEST_TEXT = 1 << 16
"""Characters of a sample's texts together: no task reads so many tokens, and a tokenizer reads them all."""
_HOW = "Send the picture itself: its bytes in base64 as `image`, or as a file of multipart/form-data."


class _Body(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class Ask(_Body):
    """One sample. What is left out is the task's own default."""

    task: str | None = None
    """Left out: the task that the sample looks like, where the bank has signatures."""
    image: str | list[str] | None = None
    """A picture's file (JPEG, PNG, WebP, GIF, BMP, TIFF, AVIF) in base64; a list of two for a pair."""
    text: str | list[str] | None = None
    """A question or sentence; a list of two is read as two segments."""
    choices: list[str] = []
    """The texts to choose from (tasks of the kind `choice`)."""
    earlier: list[tuple[str, str]] = []
    """What was asked and answered before, the oldest first (tasks of the kind `generate`)."""
    coefficients: bool = False
    """Also answer how much each adapter counted at each site."""


class Asks(_Body):
    """Several samples, of any tasks."""

    requests: list[Ask] = Field(min_length=1)


class Candidate(_Body):
    """A task that a sample might belong to."""

    task: str
    probability: float
    """Among the tasks that take such a sample."""
    distance: float
    """From the task's samples: 1 is ordinary."""
    limit: float
    """Farther out than this it is not taken for one of them."""


class Batch(_Body):
    """What shared a batch with the sample, itself included."""

    samples: int
    tasks: int


class Answer(_Body):
    """What a task answers to one sample."""

    task: str
    index: int
    """Number of the class, answer or choice."""
    answer: str
    """Its name, or the text of the choice."""
    confidence: float
    """In [0, 1]: softmax probability; of `answers` the sigmoid. Not calibrated."""
    scores: list[float]
    """The same for every class."""
    candidates: list[Candidate] | None = None
    """The most probable tasks first, where the request named none."""
    adapter_coefficients: dict[str, dict[str, float]] | None = None
    """Adapter -> site -> coefficient."""
    batch: Batch


class Fault(_Body):
    """What is wrong, and what to do."""

    type: str
    message: str
    fix: str
    nearest: list[Candidate] = []
    """Of a sample that is unlike everything learnt."""


class Refused(_Body):
    """The answer to a request, or one of several samples, that is not served."""

    error: Fault


class Answers(_Body):
    """In the order of the samples: one that is wrong does not fail the others."""

    answers: list[Answer | Refused]


class TaskAbout(_Body):
    """A task that can be asked."""

    name: str
    kind: str
    """`single`, `pair`, `choice` or `answers`."""
    classes: int
    """Classes or answers; of `choice` the number of choices to give."""
    labels: list[str]
    """Their names; [] where nobody knew them."""
    images: int
    """Pictures a sample that has any."""
    needs_text: bool
    """Every sample that it learnt from had a text of its own."""
    found: bool
    """Whether it is found for requests that name no task."""


class Tasks(_Body):
    """The tasks of the bank, as they were learnt."""

    tasks: list[TaskAbout]


class Health(_Body):
    """A replica that has its model answers this."""

    status: str
    tasks: int


@dataclass(frozen=True)
class Asked:
    """A sample that was asked, ready for the model."""

    request: Request
    coefficients: bool


def asks_of(body: bytes, most: int) -> tuple[list[Ask], bool]:
    """The samples of a JSON body, and whether they came as a list.

    Args:
        most: samples of one body.

    Raises:
        NotJson: it cannot be read at all. DataError: it is no request; it names each field that is wrong.
    """
    try:
        given = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise NotJson(f"The body is not JSON: {str(error)[:200]}.", fix=f"Send an object with some of {_fields()}.") from None
    if not isinstance(given, dict):
        raise DataError(
            f"The body is a {type(given).__name__}.", fix=f"Send an object with some of {_fields()}, or with `requests`."
        )
    try:
        if "requests" not in given:
            return [Ask.model_validate(given)], False
        asks = Asks.model_validate(given).requests
    except ValidationError as error:
        lines = faults(error, lambda _: Ask.model_fields, whole="the body")
        more = [f"and {len(lines) - _MOST_FAULTS} faults more"] if len(lines) > _MOST_FAULTS else []
        raise DataError("; ".join([*lines[:_MOST_FAULTS], *more]), fix=f"A sample has some of {_fields()}.") from None
    if len(asks) > most:
        raise DataError(f"The body has {len(asks)} samples; the limit is {most}.", fix="Send them in several requests.")
    return asks, True


class NotJson(DataError):
    """A body that cannot be read."""


def _fields() -> str:
    return ", ".join(Ask.model_fields)


def request_of(ask: Ask, limits: PictureLimits, files: Sequence[bytes] = ()) -> Asked:
    """What the model is asked.

    Args:
        files: pictures that came beside the fields, as they are.

    Raises:
        DataError: a picture is a URL, no base64, of no kind that is read, or larger than the limits; texts are too long.
    """
    images = [ask.image] if isinstance(ask.image, str) else ask.image or []
    pictures = [*map(_bytes_of, images), *files]
    for picture in pictures:
        _check(picture, limits)
    length = sum(map(len, [*ask.choices, *chain(*ask.earlier), *([ask.text] if isinstance(ask.text, str) else ask.text or [])]))
    if length > LONGEST_TEXT:
        raise DataError(f"The texts have {length} characters; the limit is {LONGEST_TEXT}.", fix="Send shorter ones.")
    text = cast(Text | None, tuple(ask.text) if isinstance(ask.text, list) else ask.text)
    return Asked(Request(ask.task, pictures or None, text, tuple(ask.choices), earlier=tuple(ask.earlier)), ask.coefficients)


def _bytes_of(image: str) -> bytes:
    if is_url(image[:300]) or image[:5].lower() == "data:":
        said = shown(image[:100])
        raise DataError(f"{said} is a URL; this service fetches none.", fix=_HOW)
    try:
        return base64.b64decode(image, validate=True)
    except (binascii.Error, ValueError):
        raise DataError("`image` is not base64 (names of files mean nothing here).", fix=_HOW) from None


def _check(picture: bytes, limits: PictureLimits) -> None:
    try:
        check_pixels(picture, limits)
    except DataError as error:
        raise DataError(f"Cannot read a picture: {error.message}", fix=error.fix or "Send a JPEG or PNG.") from error


def answer_of(prediction: Prediction, batch: Batch) -> Answer:
    """The same for the wire."""
    chosen = prediction.chosen
    alpha: Mapping[str, Any] | None = prediction.adapter_coefficients
    return Answer(
        task=prediction.task,
        index=prediction.index,
        answer=prediction.answer,
        confidence=prediction.confidence,
        scores=list(prediction.scores),
        candidates=[Candidate(**asdict(candidate)) for candidate in chosen.candidates] if chosen else None,
        adapter_coefficients={name: dict(sites) for name, sites in alpha.items()} if alpha else None,
        batch=batch,
    )


def task_about(task: LearntWeights) -> TaskAbout:
    """A task of the bank for the wire."""
    spec = task.learnt.task
    return TaskAbout(
        name=task.learnt.name,
        kind=spec.kind.value,
        classes=spec.classes,
        labels=list(task.labels),
        images=spec.images,
        needs_text=always_has_text(task.signature),
        found=profile_of(task.signature, spec) is not None,
    )
