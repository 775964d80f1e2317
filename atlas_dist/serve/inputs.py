"""From what people have (a file, a picture, a sentence) to what the backbone reads, exactly as packed data were turned into
it."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from atlas_dist.core.signature import Parts
from atlas_dist.core.types import Resample, TaskKind, TaskSpec
from atlas_dist.data.decode import MEAN_COLOUR, decode_into
from atlas_dist.data.images import rgb_of, stored_form
from atlas_dist.data.leftout import shown, writable
from atlas_dist.data.parquet import Held
from atlas_dist.data.sample import IMAGE_PROMPT, Turns
from atlas_dist.data.source import is_url
from atlas_dist.errors import DataError

Picture = str | Path | Held | bytes | Image.Image | NDArray[np.uint8]
"""A file, a picture that a table holds, bytes, a PIL image, or an array uint8 [H, W, 3] in RGB ([H, W] in grey, [H, W, 4] with
transparency)."""
_LONGEST = 300
"""Letters of a file's name in one message."""
Text = str | tuple[str, str]
"""One text, or two that are read as two segments."""


def texts_of(task: TaskSpec, text: Text | None, choices: Sequence[str]) -> list[tuple[str, ...]]:
    """The texts of one sample, one for every pass: K of a `choice`, otherwise one.

    Raises:
        DataError: choices are missing, too many or too few, or given to a task that has none; a question is missing; or what is
            given is no text.
    """
    given = _given(text, choices)
    if (task.kind is TaskKind.ANSWERS or task.kind.generates) and not any(part.strip() for part in given):
        raise DataError(f"{task.name} answers questions; no text was given.", fix="Give the question as `text`.")
    if task.kind is not TaskKind.CHOICE:
        if choices:
            raise DataError(f"{task.name} has no choices ({task.kind.value}).", fix="Leave `choices` out.")
        return [(IMAGE_PROMPT,) if text is None else _segments(text)]
    if len(choices) != task.classes or text is None:
        raise DataError(
            f"{task.name} chooses between {task.classes} texts; {len(choices)} were given{'' if text else ', and no text'}.",
            fix=f"Give `text` and exactly {task.classes} `choices`.",
        )
    segments = _segments(text)
    if len(segments) == 2:
        raise DataError(f"{task.name} pairs its text with each choice: it cannot have two segments.", fix="Give one text.")
    return [(segments[0], choice) for choice in choices]


def _given(text: Text | None, choices: Sequence[str]) -> list[str]:
    """All that was given as texts. Raises DataError: some of it is none."""
    if isinstance(choices, str) or not isinstance(choices, Sequence):
        raise DataError(f"`choices` is a {type(choices).__name__}.", fix="Give a list of texts.")
    segments: Sequence[object] = text if isinstance(text, list | tuple) else () if text is None else (text,)
    if len(segments) not in (1, 2) and text is not None:
        raise DataError(f"`text` has {len(segments)} segments.", fix="Give one text, or two that are read as two segments.")
    given: list[str] = []
    for part in (*segments, *choices):
        if not isinstance(part, str):
            raise DataError(f"{part!r} is a {type(part).__name__} and no text.", fix="Give texts: str(…).")
        if writable(part) != part:
            raise DataError(f"The text {shown(part[:80])!r} is not Unicode.", fix="Give it as UTF-8.")
        given.append(part)
    return given


def check_asked(task: TaskSpec, text: Text | None, pictures: Sequence[Picture], *, needs_text: bool) -> None:
    """Whether there is something to answer to.

    Args:
        needs_text: every sample that the task learnt from had a text of its own.

    Raises:
        DataError: there is no text where one is needed.
    """
    if text is not None:
        return
    if needs_text:
        raise DataError(
            f"{task.name} learnt from samples with a text of their own; no text was given.", fix="Give the text as `text`."
        )
    if not pictures:
        raise DataError(f"{task.name} was asked with neither a picture nor a text.", fix="Give what it learnt from.")


def check_earlier(task: TaskSpec, earlier: Turns) -> None:
    """Whether a conversation can be gone on with.

    Raises:
        DataError: the task writes no answers, or what is given are no questions with their answers.
    """
    if not earlier:
        return
    if not task.kind.generates:
        raise DataError(f"{task.name} holds no conversations ({task.kind.value}).", fix="Leave `earlier` out.")
    if not all(isinstance(turn, list | tuple) and len(turn) == 2 for turn in earlier):
        raise DataError("`earlier` is no list of a question and its answer each.", fix="Give [[question, answer], …].")
    _given(None, [said for turn in earlier for said in turn])


def check_pictures(task: TaskSpec, pictures: Sequence[Picture]) -> None:
    """Whether these are as many as the task looks at, and files that are there; none is opened.

    Raises:
        DataError: too many or too few, a URL, or a file that is missing.
    """
    if len(pictures) > task.images or (len(pictures) < task.images and (pictures or task.images == 2)):
        raise DataError(f"{task.name} looks at {task.images} pictures a sample; {len(pictures)} were given.")
    for picture in pictures:
        if isinstance(picture, str | Path):
            _check_file(str(picture))


def _check_file(name: str) -> None:
    """Raises DataError: it is an address, or there is no file that could be read."""
    named = shown(name if len(name) <= _LONGEST else f"{name[:_LONGEST]}…")
    if is_url(name) or name.lower().startswith("data:"):
        raise DataError(f"{named} is a URL; pictures are read from files.", fix="Download it and give the file.")
    try:
        path = Path(name)
        why = "" if path.is_file() else _why_no_file(path)
    except OSError as error:  # a name that is too long, a folder that may not be looked into
        why = error.strerror or str(error)
    except ValueError:
        why = "there is a NUL in its name"
    if why:
        raise DataError(f"Cannot read the picture {named}: {why}.", fix="Give a picture's file.")


def _why_no_file(path: Path) -> str:
    if path.is_dir():
        return "it is a folder"
    if path.is_symlink():
        return "it is a link to a file that is not there"
    return "it is no plain file" if path.exists() else "there is no such file"


def pixels_of(task: TaskSpec, pictures: Sequence[Picture], side: int, resample: Resample = Resample.BICUBIC) -> NDArray[np.uint8]:
    """uint8 [I, side, side, 3]: the sample's pictures, or the mean colour for a task that was learnt without any.

    Raises:
        DataError: too many or too few pictures, or one that cannot be read.
    """
    check_pictures(task, pictures)
    out = np.empty((task.images, side, side, 3), np.uint8)
    out[:] = MEAN_COLOUR
    for slot, picture in zip(out, pictures, strict=False):
        named = f" {picture}" if isinstance(picture, str | Path | Held) else ""
        try:
            _, stored = stored_form(_compressed(picture), side, resample)
            decode_into(memoryview(stored), slot, resample)
        except (OSError, DataError) as error:
            why = error.strerror if isinstance(error, OSError) else error.message
            what = f"Cannot read the picture{named}" if named else "Cannot read a picture"
            raise DataError(f"{what}: {why}", fix=getattr(error, "fix", "") or "Give a picture such as a JPEG or PNG.") from error
    return out


def parts_of(image: Picture | Sequence[Picture] | None, text: Text | None, choices: Sequence[str]) -> Parts:
    """What a request brings along, to tell which kinds of task it could be for. The text that stands for none counts as none."""
    segments = () if text is None else _segments(text)
    return Parts(
        pictures=len(pictures_in(image)),
        choices=len(choices),
        texted=bool(choices) or segments not in ((), (IMAGE_PROMPT,)),
        paired=bool(choices) or len(segments) == 2,
    )


def pictures_in(image: Picture | Sequence[Picture] | None) -> list[Picture]:
    """One picture, several or none as a list."""
    if image is None:
        return []
    if isinstance(image, list | tuple):
        return list(image)
    return [image]  # type: ignore[list-item]


def _segments(text: Text) -> tuple[str, ...]:
    return (text,) if isinstance(text, str) else tuple(text)


def _compressed(picture: Picture) -> bytes:
    """Bytes as a file would hold them. Pictures in memory become PNG: nothing is lost. Raises OSError, DataError."""
    if isinstance(picture, bytes):
        return picture
    if isinstance(picture, Held):
        return picture.read_bytes()
    if isinstance(picture, str | Path):
        return Path(picture).read_bytes()
    out = io.BytesIO()
    image = picture if isinstance(picture, Image.Image) else _from_array(picture)
    if not image.width * image.height:
        raise DataError(f"a picture of {image.width} x {image.height} has no pixels.")
    rgb_of(image).save(out, "PNG")
    return out.getvalue()


def _from_array(picture: NDArray[np.uint8]) -> Image.Image:
    if not isinstance(picture, np.ndarray):
        raise DataError(f"a {type(picture).__name__} is no picture.", fix="Give a file, bytes, a PIL image or an array.")
    grey, colour = picture.ndim == 2, picture.ndim == 3 and picture.shape[-1] in (3, 4)
    if picture.dtype != np.uint8 or not (grey or colour) or not picture.size:
        raise DataError(f"an array {picture.dtype} {list(picture.shape)} is no picture.", fix="Give uint8 [height, width, 3].")
    return Image.fromarray(np.ascontiguousarray(picture))
