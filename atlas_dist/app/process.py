"""What a run changes in the process that it is started from, and puts back: nothing of it is left in somebody's notebook."""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

_LOUD = ("ray", "deepspeed", "DeepSpeed", "transformers", "huggingface_hub", "botocore", "urllib3", "filelock")
_lock = threading.Lock()
_inside = 0
"""Calls that are under way in this process, in any thread: the first one notes how it was, the last one puts it back."""
_restore = ExitStack()


def hush() -> None:
    """Keep the libraries' own chatter out of the way, unless --debug asks for it."""
    if os.environ.get("ATLAS_DEBUG"):
        logging.basicConfig(level=logging.INFO)
        return
    warnings.filterwarnings("ignore")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    for name in _LOUD:
        logging.getLogger(name).setLevel(logging.ERROR)


@contextmanager
def restored_process() -> Iterator[None]:
    """Hushed inside; afterwards environment, warning filters, log handlers and levels, and signal handlers are as before."""
    global _inside
    with _lock:
        if not _inside:
            _remember(_restore)
        _inside += 1
    try:
        with _restored_signals():
            hush()
            yield
    finally:
        with _lock:
            _inside -= 1
            if not _inside:
                _restore.close()


def _remember(stack: ExitStack) -> None:
    stack.enter_context(warnings.catch_warnings())
    stack.callback(setattr, sys, "excepthook", sys.excepthook)
    stack.callback(_restore_environment, dict(os.environ))
    known = [logging.root, *map(logging.getLogger, _LOUD)]
    known += [each for each in logging.root.manager.loggerDict.values() if isinstance(each, logging.Logger)]
    for logger in known:
        stack.callback(_restore_logger, logger, logger.level, logger.propagate, list(logger.handlers))


def _restore_environment(before: dict[str, str]) -> None:
    for name in set(os.environ) - set(before):
        del os.environ[name]
    os.environ.update({name: value for name, value in before.items() if os.environ.get(name) != value})


def _restore_logger(logger: logging.Logger, level: int, propagate: bool, handlers: list[logging.Handler]) -> None:
    logger.setLevel(level)
    logger.propagate = propagate
    logger.handlers[:] = handlers


@contextmanager
def _restored_signals() -> Iterator[None]:
    """Only the main thread has any to set."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            if handler is not None:
                signal.signal(number, handler)
