"""Where a Ray of our own keeps its sockets. No Ray here.

The path of a Unix socket has at most 107 bytes, and Ray adds up to 68 to the folder for temporary files: below a long TMPDIR it
does not start.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from atlas_dist.errors import ConfigError
from atlas_dist.store.places import can_be_written

SOCKET_BYTES = 107
_BELOW = "/ray/session_2026-01-31_23-59-59_999999_{pid}/sockets/plasma_store"
SHORT = ("/tmp", "/var/tmp", "/dev/shm")  # noqa: S108 - Ray makes folders of its own below


def ray_home(
    environment: Mapping[str, str], *, others: Sequence[str] = SHORT, usable: Callable[[Path], bool] | None = None
) -> str | None:
    """The folder to give to Ray; None where the one that it would choose itself will do.

    Raises:
        ConfigError: RAY_TMPDIR can't be it, or there is no short folder that can be written.
    """
    usable = usable or can_be_written
    chosen = environment.get("RAY_TMPDIR") or environment.get("TMPDIR") or SHORT[0]
    trouble = _trouble(chosen, usable)
    if not trouble and (environment.get("RAY_TMPDIR") or not any(map(str.isspace, chosen))):
        return None
    if not environment.get("RAY_TMPDIR"):  # a space is fit for most programs; Ray writes command lines
        for other in others:
            if not _trouble(other, usable):
                return f"{other}/ray"
    name = "RAY_TMPDIR" if environment.get("RAY_TMPDIR") else "TMPDIR"
    raise ConfigError(
        f"Ray can't keep its sockets below {name}={chosen}: {trouble}.",
        fix="Set RAY_TMPDIR to a short folder that can be written, such as /tmp.",
    )


def _trouble(folder: str, usable: Callable[[Path], bool]) -> str:
    size = len(os.fsencode(os.path.abspath(folder) + _BELOW.format(pid=os.getpid())))  # noqa: PTH100 - a link is not followed: it is what Ray is given
    if size > SOCKET_BYTES:
        return f"their paths would have {size} bytes, and the system takes {SOCKET_BYTES}"
    return "" if usable(Path(folder)) else "it can't be written"
