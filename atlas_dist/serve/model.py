"""A bank that answers.

    from atlas_dist import AtlasModel

    model = AtlasModel.from_pretrained("exported-bank")
    answer = model.predict(task="digits", image="seven.png")
    print(answer.answer, answer.confidence)

Samples of different tasks go through the backbone together: `model.predict_batch([Request("digits", …), Request("vqa", …)])`.

A request that names no task goes to the one whose samples it looks like (serve/choosing.py): `model.predict(image="seven.png")`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from atlas_dist.bank.package import read_package
from atlas_dist.bank.verify import require_base
from atlas_dist.bank.weights import BankWeights, LearntWeights
from atlas_dist.config import Precision
from atlas_dist.core.signature import TaskChoice
from atlas_dist.core.types import TaskKind
from atlas_dist.data.decode import TextEncoder
from atlas_dist.data.sample import Texts, Turns
from atlas_dist.device import device as where_to_compute
from atlas_dist.errors import ConfigError, DataError
from atlas_dist.model.backbone import Backbone, load_backbone, store_products_in_bf16
from atlas_dist.model.backbone_refs import backbone_ref
from atlas_dist.model.pixels import Normalise
from atlas_dist.serve.choosing import accepted, choose_tasks
from atlas_dist.serve.inputs import (
    Picture,
    Text,
    check_asked,
    check_earlier,
    check_pictures,
    parts_of,
    pictures_in,
    pixels_of,
    texts_of,
)
from atlas_dist.serve.mixed import MixedModel, TaskBatch, TaskOutput
from atlas_dist.train.answers import asked_of, text_of
from atlas_dist.train.signatures import always_has_text

Coefficients = Mapping[str, Mapping[str, float]]
"""{adapter: {site: α}}, α in [0, 1]; of `dimension` weighting the mean over features."""


@dataclass(frozen=True)
class Request:
    """One sample of one task. What is left out is the task's own default: no picture, "This is an image."."""

    task: str | None = None
    """None = the task that the sample looks like."""
    image: Picture | Sequence[Picture] | None = None
    """One picture; two for a pair; None for text alone."""
    text: Text | None = None
    choices: Sequence[str] = ()
    """The texts to choose from (`choice` only)."""
    where: str = ""
    """Where it stands, for messages ("ask.jsonl, line 3"); "" = its number."""
    earlier: Turns = ()
    """What was asked and answered before, the oldest first (`generate` only)."""


@dataclass(frozen=True)
class Prediction:
    """What a task answers to one sample."""

    task: str
    index: int
    """Number of the class, answer or choice; 0 of an answer that was written."""
    answer: str
    """Its name, the text of the choice, or what was written."""
    confidence: float
    """In [0, 1]: its softmax probability; of `answers` its own sigmoid; of a written one the product over its tokens. Not
    calibrated."""
    scores: tuple[float, ...]
    """The same for every class; of a written answer its own alone."""
    chosen: TaskChoice | None = None
    """How the task was found; None where the request named it."""
    adapter_coefficients: Coefficients | None = None

    def top(self, count: int = 5) -> list[tuple[int, float]]:
        """The best classes with their scores, best first."""
        order = sorted(range(len(self.scores)), key=lambda i: -self.scores[i])
        return [(i, self.scores[i]) for i in order[:count]]


class AtlasModel:
    """A frozen backbone and the learnt tasks of a bank.

    Args:
        weights: the tasks with what they see.
        backbone: the backbone they were learnt on.
        device: where to compute.
        max_rows: rows of the backbone's batch at most (a pair has two rows a sample, a choice one a text).

    Raises:
        ConfigError: the backbone is another one than the bank's. DataError: the tensors are not those of such a model.
    """

    def __init__(
        self, weights: BankWeights, backbone: Backbone, *, device: str | torch.device = "cpu", max_rows: int = 32
    ) -> None:
        require_base(backbone, weights.first)
        method = weights.method()
        self.weights, self.backbone, self.max_rows = weights, backbone, max_rows
        self.device = torch.device(device)
        backbone.model.to(self.device)
        self._bf16 = weights.precision == Precision.BF16.value
        if self._bf16:
            store_products_in_bf16(backbone.model)
        self._mixed = MixedModel(backbone.model, weights, method.mixing, method.second_image_type)
        self._normalise = Normalise(backbone.pixel_mean, backbone.pixel_std, self.device)
        self._encoders: dict[int, TextEncoder] = {}

    @classmethod
    def from_pretrained(cls, path: str | Path, *, device: str | torch.device | None = None) -> AtlasModel:
        """Load a folder that `atlas-dist bank export` wrote; every file against its hash, nothing unpickled.

        Args:
            device: None = the GPU where there is one.

        Raises:
            DataError: a file is missing or damaged, or the backbone cannot be reached.
            ConfigError: the backbone found is not the one that the bank was learnt on.
        """
        return cls.from_weights(read_package(Path(path)), device=device)

    @classmethod
    def from_weights(cls, weights: BankWeights, *, device: str | torch.device | None = None) -> AtlasModel:
        """With the backbone that the bank names. Errors as `from_pretrained`."""
        backbone = load_backbone(backbone_ref(**weights.base.address))
        return cls(weights, backbone, device=device or where_to_compute())

    @property
    def tasks(self) -> tuple[str, ...]:
        """Names of the tasks it can answer."""
        return tuple(task.learnt.name for task in self.weights.tasks.values())

    def predict(
        self,
        task: str | None = None,
        image: Picture | Sequence[Picture] | None = None,
        text: Text | None = None,
        choices: Sequence[str] = (),
        *,
        earlier: Turns = (),
        output_adapter_coefficients: bool = False,
    ) -> Prediction:
        """Answer one sample; arguments as in Request.

        Raises:
            ConfigError: no such task, or none is named and the bank was learnt without signatures. DataError: the sample is not
                what the task looks at, a picture cannot be read, or no task is named and the sample is unlike everything learnt.
        """
        request = Request(task, image, text, choices, earlier=earlier)
        return self.predict_batch([request], output_adapter_coefficients=output_adapter_coefficients)[0]

    def predict_batch(self, requests: Iterable[Request], *, output_adapter_coefficients: bool = False) -> list[Prediction]:
        """Answer samples of any tasks, as many as fit into one forward pass at a time; answers in the order of the requests.

        Raises:
            ConfigError, DataError: as `predict`, naming the request; no answer is returned then.
        """
        return list(self.predict_each(requests, output_adapter_coefficients=output_adapter_coefficients))

    def predict_each(self, requests: Iterable[Request], *, output_adapter_coefficients: bool = False) -> Iterator[Prediction]:
        """As `predict_batch`, an answer after another: however many are asked, the pictures of one forward pass are in memory.

        Raises:
            ConfigError, DataError: as `predict`, naming the request. Tasks, texts and numbers of pictures are all checked, and
                tasks that nobody named are found, before the first answer; whether a picture of a request with a task can be
                decoded shows when its turn comes.
        """
        listed = list(requests)
        choices = self._choices(listed)
        found = [self._checked(number, request, len(listed), choices.get(number)) for number, request in enumerate(listed)]
        for chunk in self._chunks(found):
            prepared = {n: self._prepared(n, found[n], listed[n], len(listed)) for n in chunk}
            by_task: dict[str, list[int]] = {}
            for number in chunk:
                by_task.setdefault(found[number].learnt.key, []).append(number)
            batches = [_stacked(key, [prepared[n] for n in numbers]) for key, numbers in by_task.items()]
            with self._precision():
                outputs = self._mixed(batches)
            out: dict[int, Prediction] = {}
            for (key, numbers), output in zip(by_task.items(), outputs, strict=True):
                for row, number in enumerate(numbers):
                    shown = output if output_adapter_coefficients else replace(output, alpha={})
                    answer = self._answer(self.weights.tasks[key], listed[number], shown, row)
                    out[number] = replace(answer, chosen=choices.get(number))
            yield from (out[number] for number in chunk)

    def choose_tasks(self, requests: Iterable[Request]) -> list[TaskChoice]:
        """Which task each sample looks like, whether or not it names one, and how sure that is; refuses nothing.

        Raises:
            ConfigError: the bank was learnt without signatures. DataError: a picture cannot be read.
        """
        choices = self._choices([replace(request, task=None) for request in requests])
        return [choices[number] for number in sorted(choices)]

    def _choices(self, requests: Sequence[Request]) -> dict[int, TaskChoice]:
        """By number, of those that name no task; the pictures of `max_rows` requests are in memory."""
        unnamed = [number for number, request in enumerate(requests) if request.task is None]
        out: dict[int, TaskChoice] = {}
        for start in range(0, len(unnamed), self.max_rows):
            out |= self._choices_of(
                {number: requests[number] for number in unnamed[start : start + self.max_rows]}, len(requests)
            )
        return out

    def _choices_of(self, requests: Mapping[int, Request], of: int) -> dict[int, TaskChoice]:
        pixels: dict[tuple[int, int], Tensor] = {}  # a picture is decoded once, whatever the number of tasks

        def prepared(task: LearntWeights, number: int) -> TaskBatch:
            at = number, task.learnt.task.images
            batch = self._prepared(number, task, requests[number], of, pixels.get(at))
            pixels[at] = batch.pixels
            return batch

        parts = {number: parts_of(r.image, r.text, r.choices) for number, r in requests.items()}
        return choose_tasks(self.weights, parts, prepared, self._frozen)

    def _frozen(self, batches: Sequence[TaskBatch]) -> list[Tensor]:
        """Pooled features [P] of the backbone alone, of batches of one."""
        out: list[Tensor] = []
        for chunk in self._chunks([self.weights.tasks[batch.key] for batch in batches]):
            with self._precision():
                out += [row[0] for row in self._mixed.frozen([batches[number] for number in chunk])]
        return out

    def _checked(self, number: int, request: Request, of: int, choice: TaskChoice | None) -> LearntWeights:
        """The task that is asked, or was chosen, when it can be asked so."""
        with _naming(number, request, of):
            wanted = accepted(choice, parts_of(request.image, request.text, request.choices)).task if choice else request.task
            task = self._find(wanted or "")
            texts_of(task.learnt.task, request.text, request.choices)
            pictures = pictures_in(request.image)
            check_pictures(task.learnt.task, pictures)
            check_earlier(task.learnt.task, request.earlier)
            check_asked(task.learnt.task, request.text, pictures, needs_text=always_has_text(task.signature))
        return task

    def _prepared(self, number: int, task: LearntWeights, request: Request, of: int, pixels: Tensor | None = None) -> TaskBatch:
        with _naming(number, request, of):
            return self._prepare(task, request, pixels)

    def _find(self, name: str) -> LearntWeights:
        for task in self.weights.tasks.values():
            if name in (task.learnt.name, task.learnt.key):
                return task
        raise ConfigError(f"This bank has no task {name!r}.", fix=f"It has: {', '.join(self.tasks)}.")

    def _prepare(self, task: LearntWeights, request: Request, pixels: Tensor | None) -> TaskBatch:
        """A batch of one. `pixels`: what an earlier call made of the same pictures, for as many of them a sample."""
        spec = task.learnt.task
        padded = self.backbone.text_length(spec.max_text)
        encoder = self._encoders.setdefault(spec.max_text, TextEncoder(self.backbone.tokenizer, spec.max_text, padded))
        texts: Texts = tuple(texts_of(spec, request.text, request.choices))
        if request.earlier and (asked := asked_of(self.backbone, spec.max_text)) is not None:
            texts = asked(texts, request.earlier)
        encoded = encoder(texts)
        if pixels is None:
            side, resample = self.backbone.image_size, self.backbone.pictures.resample
            raw = torch.from_numpy(pixels_of(spec, pictures_in(request.image), side, resample))
            pixels = self._normalise(raw.to(self.device))[None]
        ids, mask, types = (torch.from_numpy(part)[None].to(self.device) for part in encoded)
        return TaskBatch(task.learnt.key, ids, mask, types, pixels)

    def _chunks(self, found: Sequence[LearntWeights]) -> Iterable[list[int]]:
        """Request numbers, as many at a time as have at most `max_rows` rows together."""
        chunk: list[int] = []
        rows = 0
        for number, task in enumerate(found):
            spec = task.learnt.task
            more = spec.classes if spec.kind is TaskKind.CHOICE else spec.images
            if chunk and rows + more > self.max_rows:
                yield chunk
                chunk, rows = [], 0
            chunk.append(number)
            rows += more
        if chunk:
            yield chunk

    def _precision(self) -> AbstractContextManager[Any]:
        """As training and its evaluations computed."""
        return torch.autocast(self.device.type, dtype=torch.bfloat16) if self._bf16 else nullcontext()

    def _answer(self, task: LearntWeights, request: Request, output: TaskOutput, row: int) -> Prediction:
        index, answer, scores = self._said(task, request, output, row)
        names = [self.weights.name_of(key) for key in self.weights.view(task.learnt.key)]
        # A layer at which none of the task's adapters acts has no coefficients.
        alpha = {site: _per_adapter(values[row]) for site, values in output.alpha.items() if values.shape[1] == len(names)}
        return Prediction(
            task=task.learnt.name,
            index=index,
            answer=answer,
            confidence=scores[index],
            scores=scores,
            adapter_coefficients={name: {site: v[i] for site, v in alpha.items()} for i, name in enumerate(names)}
            if alpha
            else None,
        )

    def _said(self, task: LearntWeights, request: Request, output: TaskOutput, row: int) -> tuple[int, str, tuple[float, ...]]:
        """Number and text of an answer, and the scores of all."""
        if output.written is not None:
            sure = float(output.written.log_probs[row].double().sum().exp())
            return 0, text_of(self.backbone.tokenizer, output.written.tokens[row].cpu()), (sure,)
        logits, kind = output.logits[row].double().cpu(), task.learnt.task.kind
        scores = logits.sigmoid() if kind is TaskKind.ANSWERS else logits.softmax(0)
        index = int(logits.argmax())
        return index, request.choices[index] if kind is TaskKind.CHOICE else task.label(index), tuple(scores.tolist())


@contextmanager
def _naming(number: int, request: Request, of: int) -> Iterator[None]:
    """Say in an error which request it is about."""
    try:
        yield
    except (ConfigError, DataError) as error:
        where = request.where or (f"request {number + 1} of {of}" if of > 1 else "")
        if not where:
            raise
        raise type(error)(f"{where}: {error.message}", fix=error.fix) from error


def _per_adapter(alpha: Tensor) -> list[float]:
    """[T] or [T, D] to T numbers."""
    values = alpha.double()
    return [float(v) for v in (values.mean(dim=1) if values.dim() > 1 else values)]


def _stacked(key: str, parts: Sequence[TaskBatch]) -> TaskBatch:
    return TaskBatch(
        key,
        torch.cat([p.input_ids for p in parts]),
        torch.cat([p.attention_mask for p in parts]),
        torch.cat([p.token_type_ids for p in parts]),
        torch.cat([p.pixels for p in parts]),
    )
