"""What a line of a log looks like, and whose it is: a record carries run, job, attempt, rank, pool and host where known.

A process says once what is true of all it does (`set_up`); a piece of work says what is true of it (`log_context`, a context
variable); a call says what is true of its own line (`extra=log_fields(step=3)`). `text` puts these before the message, `json`
makes one object a line. Other libraries' records take the same form, from warnings on. Secrets are blotted out of both.
"""

from __future__ import annotations

import json
import logging
import math
import os
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import UTC, datetime
from enum import StrEnum
from types import MappingProxyType
from typing import Any

from atlas_dist.redact import redact, redact_json

OURS = "atlas_dist"
PREFIX = ("run", "process", "pool", "rank", "host", "label", "attempt")
"""What the text form shows of a record, in this order. `job` is the key that an attempt's name begins with: only in JSON."""

_work: ContextVar[Mapping[str, Any]] = ContextVar("atlas_dist_work", default=MappingProxyType({}))


class LogFormat(StrEnum):
    """`text`: for people. `json`: one object a line, for programs that collect logs."""

    TEXT = "text"
    JSON = "json"


@contextmanager
def log_context(**fields: Any) -> Iterator[None]:
    """Records of this thread (or task) carry these fields until the block ends."""
    token = _work.set({**_work.get(), **fields})
    try:
        yield
    finally:
        _work.reset(token)


def log_fields(**fields: Any) -> dict[str, Any]:
    """For the `extra` of a logging call: fields of this one record."""
    return {"fields": fields}


class ContextFilter(logging.Filter):
    """Gives every record its fields: the process's, the work's, its own, in this order. Drops other libraries' chatter."""

    def __init__(self, process: Mapping[str, Any]) -> None:
        super().__init__()
        self.process = dict(process)
        self.chatter = logging.INFO if os.environ.get("ATLAS_DEBUG") else logging.WARNING

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether the record is written; its fields are in `record.context`."""
        record.context = {**self.process, **_work.get(), **getattr(record, "fields", {})}
        return record.name.partition(".")[0] == OURS or record.levelno >= self.chatter


class TextForm(logging.Formatter):
    """`2026-01-31T12:00:00.000Z INFO run=demo rank=0 attempt=… atlas_dist.train.worker: message`, then its traceback."""

    def format(self, record: logging.LogRecord) -> str:
        """One line, or as many as message and traceback have."""
        context = getattr(record, "context", {})
        prefix = " ".join(f"{name}={str(context[name]).replace(' ', '_')}" for name in PREFIX if context.get(name, "") != "")
        lines = [f"{_time(record)} {record.levelname} {prefix} {record.name}: {record.getMessage()}"]
        lines += [self.formatException(record.exc_info)] if record.exc_info else []
        return redact("\n".join(lines))


class JsonForm(logging.Formatter):
    """One JSON object: time (RFC 3339, UTC), level, logger, message, what the record carries, its `traceback`."""

    def format(self, record: logging.LogRecord) -> str:
        """One line, whatever the message holds."""
        tree = {"time": _time(record), "level": record.levelname, "logger": record.name, "message": record.getMessage()}
        tree |= {name: value for name, value in getattr(record, "context", {}).items() if name not in tree}
        if record.exc_info:
            tree["traceback"] = self.formatException(record.exc_info)
        return json.dumps(_plain(redact_json(tree)), ensure_ascii=False)


def set_up(form: LogFormat, **process: Any) -> None:
    """Everything that this process logs to its standard error takes this form. Call it after the libraries are imported: the
    stream handlers that they brought give way to ours; those that write files stay."""
    handler = logging.StreamHandler()
    handler.setFormatter(JsonForm() if form is LogFormat.JSON else TextForm())
    handler.addFilter(ContextFilter({**process, "host": socket.gethostname()}))
    loggers = [logger for logger in logging.root.manager.loggerDict.values() if isinstance(logger, logging.Logger)]
    for logger in loggers:
        brought = [h for h in logger.handlers if _writes_a_stream(h)]
        for one in brought:
            logger.removeHandler(one)
        if brought:  # their records come to the root. Ours is given to nobody: Ray sets the form of whatever its logger has
            logger.propagate = True
    for one in [h for h in logging.root.handlers if _writes_a_stream(h)]:
        logging.root.removeHandler(one)
    logging.root.addHandler(handler)
    logging.getLogger(OURS).setLevel(logging.INFO)


def in_json() -> bool:
    """Whether this process logs in JSON."""
    return any(isinstance(handler.formatter, JsonForm) for handler in logging.root.handlers)


def _writes_a_stream(handler: logging.Handler) -> bool:
    return isinstance(handler, logging.StreamHandler) and not isinstance(handler, logging.FileHandler)


def _time(record: logging.LogRecord) -> str:
    at = datetime.fromtimestamp(record.created, UTC)
    return at.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _plain(value: Any) -> Any:
    """As JSON can hold it: a loss that is not finite is a word, since JSON has no such number."""
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_plain(v) for v in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    return value if value is None or isinstance(value, str | int | bool) else str(value)
