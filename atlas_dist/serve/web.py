"""The HTTP surface of a bank: routes, status codes, the OpenAPI page. Knows nothing of Ray; whoever answers is given to it."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

from fastapi import Depends, FastAPI, Response
from fastapi.requests import Request as HttpRequest
from fastapi.security import HTTPBearer
from pydantic import BaseModel
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException

from atlas_dist.data.images import PictureLimits
from atlas_dist.errors import AtlasError, ConfigError, DataError
from atlas_dist.serve.guard import Guard, TooLarge, as_json
from atlas_dist.serve.model import Prediction
from atlas_dist.serve.settings import ServeSettings
from atlas_dist.serve.wire import (
    Answer,
    Answers,
    Ask,
    Asked,
    Asks,
    Batch,
    Fault,
    Health,
    NotJson,
    Refused,
    TaskAbout,
    Tasks,
    answer_of,
    asks_of,
    request_of,
)

log = logging.getLogger(__name__)

_JSON_ONLY = ("earlier",)
"""Fields of a sample that a form cannot have: they are no text."""
_REPEATED = ("text", "choices")
_FORM_FIELDS = 1024
_FORM_FILES = 8


@dataclass(frozen=True)
class Outcome:
    """What became of one sample, and how many shared its batch."""

    result: Prediction | Exception
    batch: Batch


class Service(Protocol):
    """Who answers."""

    @property
    def tasks(self) -> Sequence[TaskAbout]:
        """What can be asked."""

    async def answer(self, asked: Asked) -> Outcome:
        """One sample; it may wait for others to share its batch."""

    def observe(self, task: str, outcome: str, seconds: float) -> None:
        """A sample was `answered`, `refused` (the client's fault) or `failed` (ours). `task` is one of the bank's, or ""."""


class Refusal(Exception):
    """An error that has its status code already."""

    def __init__(self, status: int, error: AtlasError) -> None:
        super().__init__(status, error)
        self.status, self.error = status, error


def make_api(service: Service, settings: ServeSettings, digest: str) -> FastAPI:
    """The application.

    Args:
        digest: of the token (serve/guard.py); "" = none is asked for.
    """
    api = FastAPI(
        title="atlas-dist",
        version="1",
        description="Asks a bank: samples of any tasks share a forward pass.",
        redoc_url=None,
        exception_handlers={AtlasError: _refuse, Refusal: _refuse, HTTPException: _refuse},
    )
    api.add_middleware(Guard, digest=digest, max_body=settings.max_body)
    endpoints = _Endpoints(service, settings)
    known: dict[str, Any] = {"dependencies": [Depends(HTTPBearer(auto_error=False))]} if digest else {}
    refused: dict[int | str, dict[str, Any]] = {code: {"model": Refused, "description": text} for code, text in _REFUSALS.items()}
    api.post(
        "/v1/predict",
        response_model=Answer | Answers,
        responses=refused,
        openapi_extra=_request_body(),
        summary="Ask one sample, or several",
        **known,
    )(endpoints.predict)
    api.get("/v1/tasks", response_model=Tasks, summary="What can be asked", **known)(endpoints.tasks)
    api.get("/healthz", response_model=Health, summary="Whether a replica answers")(endpoints.health)
    return api


_REFUSALS = {
    400: "the body cannot be read",
    401: "the token is missing or wrong",
    413: "the body is larger than the limit",
    415: "neither JSON nor multipart/form-data",
    422: "the sample cannot be asked so, or is unlike everything learnt",
}


def _request_body() -> dict[str, Any]:
    """For the OpenAPI page: the route reads its body itself, since it takes two kinds."""
    one = Ask.model_json_schema()
    properties = {name: dict(about) for name, about in one["properties"].items() if name not in _JSON_ONLY}
    properties["image"] = {"type": "array", "items": {"type": "string", "format": "binary"}, "description": "One file, or two."}
    properties["text"] = {"type": "array", "items": {"type": "string"}, "description": properties["text"]["description"]}
    several = {"type": "object", "required": ["requests"], "description": Asks.__doc__} | {
        "properties": {"requests": {"type": "array", "minItems": 1, "items": one}},
        "additionalProperties": False,
    }
    content = {
        "application/json": {"schema": {"anyOf": [one, several]}},
        "multipart/form-data": {"schema": {"type": "object", "properties": properties}},
    }
    return {"requestBody": {"required": True, "content": content}}


class _Endpoints:
    """The routes."""

    def __init__(self, service: Service, settings: ServeSettings) -> None:
        self._service, self._settings = service, settings
        self._limits = PictureLimits(settings.max_pixels)
        self._names = frozenset(task.name for task in service.tasks)

    async def predict(self, request: HttpRequest) -> Response:
        """One object is one sample. `{"requests": [...]}` asks several; each gets its answer or its error. A form is one sample:
        files as `image`, and the fields `task`, `text`, `choices`, `coefficients`."""
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind == "multipart/form-data":
            ask, files = await self._form(request)
            return _reply(await self._answer(ask, files))
        if kind != "application/json":
            what = f"The body's type is {kind[:80]!r}" if kind else "The body has no type"
            raise Refusal(415, DataError(f"{what}.", fix="Send application/json or multipart/form-data as Content-Type."))
        asks, several = asks_of(await request.body(), self._settings.max_samples)
        results = await asyncio.gather(*(self._answer(ask) for ask in asks))
        if not several:
            return _reply(results[0])
        return _reply(Answers(answers=[r if isinstance(r, Answer) else refused(r) for r in results]))

    async def tasks(self) -> Tasks:
        """The tasks of the bank, in the order in which they were learnt."""
        return Tasks(tasks=list(self._service.tasks))

    async def health(self) -> Health:
        """Needs no token."""
        return Health(status="ok", tasks=len(self._names))

    async def _answer(self, ask: Ask, files: Sequence[bytes] = ()) -> Answer | Exception:
        """One sample, counted whatever becomes of it."""
        began = time.perf_counter()
        result: Answer | Exception
        try:
            outcome = await self._service.answer(request_of(ask, self._limits, files))
            result = outcome.result if isinstance(outcome.result, Exception) else answer_of(outcome.result, outcome.batch)
        except Exception as error:
            result = error
        task = result.task if isinstance(result, Answer) else ask.task if ask.task in self._names else ""
        what = "answered" if isinstance(result, Answer) else "refused" if status_of(result) < 500 else "failed"
        self._service.observe(task or "", what, time.perf_counter() - began)
        return result

    async def _form(self, request: HttpRequest) -> tuple[Ask, list[bytes]]:
        """The sample of a form. Raises DataError: it has other fields, or pictures that are no files."""
        fields: dict[str, Any] = {}
        files: list[bytes] = []
        async with request.form(max_files=_FORM_FILES, max_fields=_FORM_FIELDS) as form:
            for name, value in form.multi_items():
                if isinstance(value, UploadFile) != (name == "image"):
                    what = "is no file" if name == "image" else "is a file"
                    raise DataError(f"The field {name[:80]!r} {what}.", fix="Send pictures as files: curl -F image=@FILE.")
                if isinstance(value, UploadFile):
                    files.append(await value.read())
                elif name in _REPEATED:
                    fields.setdefault(name, []).append(value)
                elif name in fields:
                    raise DataError(f"The field {name[:80]!r} came twice.", fix="A form is one sample; several go as JSON.")
                else:
                    fields[name] = value
        if len(fields.get("text", ())) == 1:
            (fields["text"],) = fields["text"]
        return _ask(fields), files


def _ask(fields: dict[str, Any]) -> Ask:
    known = [name for name in Ask.model_fields if name not in _JSON_ONLY]
    unknown = sorted(set(fields) - set(known))
    if unknown:
        raise DataError(f"A form has no field {unknown[0][:80]!r}.", fix=f"It may have: {', '.join(known)}.")
    said = str(fields.get("coefficients", "")).lower()
    if said not in ("", "true", "false", "1", "0"):
        raise DataError(f"coefficients={said[:40]!r} is neither true nor false.", fix="Send true or false.")
    return Ask.model_validate({**fields, "task": fields.get("task") or None, "coefficients": said in ("true", "1")})


def status_of(error: Exception) -> int:
    """The status code of an error; what nobody foresaw is ours."""
    if isinstance(error, Refusal):
        return error.status
    if isinstance(error, HTTPException):
        return error.status_code
    for kind, status in ((TooLarge, 413), (NotJson, 400), (ConfigError, 422), (DataError, 422)):
        if isinstance(error, kind):
            return status
    return 500


def refused(error: Exception) -> Refused:
    """What a client reads of an error: of ours only that it happened. What it was goes to the replica's log."""
    if isinstance(error, Refusal):
        error = error.error
    if isinstance(error, HTTPException):
        error = DataError(f"{error.detail}.".replace("..", "."), fix="/docs has the requests that are served.")
    elif status_of(error) >= 500:
        log.error("a request failed", exc_info=error)
        error = AtlasError("This should not have happened.", fix="Ask again; the replica's log has what it was.")
    assert isinstance(error, AtlasError)
    return Refused(error=Fault.model_validate(_plain(as_json(error))))


def _plain(about: dict[str, Any]) -> dict[str, Any]:
    return about | ({"nearest": [vars(c) for c in about["nearest"]]} if "nearest" in about else {})


def _reply(result: BaseModel | Exception) -> Response:
    if isinstance(result, BaseModel):
        return Response(result.model_dump_json(), media_type="application/json")
    headers = dict(result.headers or {}) if isinstance(result, HTTPException) else {}
    return Response(refused(result).model_dump_json(), status_of(result), headers, "application/json")


async def _refuse(_: HttpRequest, error: Exception) -> Response:
    return _reply(error)


def without_coefficients(prediction: Prediction) -> Prediction:
    """Of a batch in which somebody else asked for them."""
    return replace(prediction, adapter_coefficients=None)
