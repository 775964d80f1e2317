"""Read the body of an answer over plain HTTP straight into its buffer, in one system call and without the interpreter's lock.

The SDK hands a body over in pieces, each copied twice in Python, and after each a thread has to win the lock back, up to 5 ms a
time while another thread computes: a stream that parses and decodes starves its own fetch threads. `recv` with MSG_WAITALL fills
a whole part while the lock is free. TLS can't do that; what cannot be read so is left to the SDK, whose answer stays usable.
"""

from __future__ import annotations

import contextlib
import http.client
import socket
import struct
from typing import Any

SMALL = 1 << 16
"""Bodies below this are left to the SDK: there is nothing to gain."""


def read_plain(body: Any, out: memoryview) -> int:
    """Fill `out` from a botocore body, all but its last byte; return how many bytes arrived.

    The last byte is for the SDK's own `read`, which then finds the answer complete and keeps the connection. Fewer bytes arrive
    when the connection breaks or stays silent for its read time-out. 0 = the answer is none of the kind (TLS, chunked, encoded,
    another length, or internals that look different from what is known), and nothing was read.
    """
    raw = getattr(body, "_raw_stream", None)
    answer = getattr(raw, "_fp", None)
    connection = getattr(getattr(raw, "_connection", None), "sock", None)
    if type(connection) is not socket.socket or not isinstance(answer, http.client.HTTPResponse):
        return 0
    if answer.chunked or answer.length != len(out) or len(out) < SMALL or answer.headers.get("Content-Encoding"):
        return 0
    # What came along with the head waits in the reader's buffer; it must be taken first.
    filled = answer.readinto(out[: min(len(answer.fp.peek(1)), len(out) - 1)])
    patience = connection.gettimeout()
    try:
        _block_for_at_most(connection, patience or 0.0)
        # Reset, or silent for too long: what arrived counts, and the SDK's next read meets the same trouble.
        with contextlib.suppress(OSError):
            while filled < len(out) - 1 and (got := connection.recv_into(out[filled:-1], 0, socket.MSG_WAITALL)):
                filled += got
    finally:
        connection.settimeout(patience)
        answer.length = len(out) - filled
    return filled


def _block_for_at_most(connection: socket.socket, seconds: float) -> None:
    """Python's own time-out makes a socket non-blocking, for which MSG_WAITALL is void; the kernel's does not. 0: never."""
    connection.settimeout(None)
    limit = struct.pack("ll", int(seconds), int(seconds % 1 * 1_000_000))
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, limit)
