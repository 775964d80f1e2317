"""Files that are laid out on the temporary disk meanwhile: its troubles are told as its own, and not as those of a store."""

from __future__ import annotations

import errno
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager

from atlas_dist.errors import StoreError

_OF_A_DISK = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS})


@contextmanager
def temporary_disk(what: str) -> Iterator[None]:
    """Around what writes `what` below TMPDIR. Raises StoreError where that disk is full or cannot be written."""
    try:
        yield
    except OSError as error:
        if error.errno not in _OF_A_DISK:  # of something else that is read meanwhile
            raise
        why = "it is full" if error.errno in (errno.ENOSPC, errno.EDQUOT) else error.strerror or str(error)
        raise StoreError(
            f"Cannot write {what} to the temporary folder {tempfile.gettempdir()}: {why}.",
            fix="Make room there, or set TMPDIR to a folder on another disk; what is packed already stays.",
        ) from error
