"""Places where a test kills the real process: `ATLAS_FAILPOINT=name[:nth]` ends it with SIGKILL at the nth passage of `name`.

A kill at a named step is the only honest test of "what if it dies here": no handler runs, no buffer is flushed. Without the
variable a passage costs one dictionary look-up. Names in use are listed in `POINTS`, so that a test can walk through all of them.
"""

from __future__ import annotations

import os
import signal
from collections import Counter

POINTS = (
    "local.create.before_link",
    "local.create.after_link",
    "log.append.before",
    "log.append.after",
    "election.after",
    "dispatch.before_start",
    "dispatch.after_start",
    "publish.after_blob",
    "publish.before_result",
    "publish.after_result",
    "commit.before_verify",
    "commit.before_append",
    "commit.before_pointer",
    "commit.after_pointer",
    "adopt.before_append",
    "checkpoint.before_done",
    "abandon.before_delete",
    "abandon.after_delete",
)

_passed: Counter[str] = Counter()


def failpoint(name: str) -> None:
    """End this process here and now, if the environment says so."""
    wanted = os.environ.get("ATLAS_FAILPOINT")
    if not wanted:
        return
    point, _, nth = wanted.partition(":")
    if point != name:
        return
    _passed[name] += 1
    if _passed[name] == int(nth or 1):
        os.kill(os.getpid(), signal.SIGKILL)
