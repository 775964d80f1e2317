"""A small HTTP proxy that spoils answers on purpose, to stand between the SDK and a real S3 server.

    with FaultProxy(server.endpoint) as proxy:
        proxy.add(Fault(Kind.RESET_AFTER_APPLY, method="PUT", path="/ledger/"))
        store = open_store(server.url("x"), options=server.options(proxy.endpoint))

Requests go on unchanged (host header included, so signatures hold), one connection each. A rule applies to requests that it
matches, `times` times, each with probability `chance` from the proxy's own seed.
"""

from __future__ import annotations

import contextlib
import random
import re
import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from urllib.parse import urlsplit


class Kind(StrEnum):
    """What goes wrong."""

    RESET_AFTER_APPLY = "reset after the upstream's answer"
    SLOW_DOWN = "503 SlowDown, not forwarded"
    ERROR_AFTER_APPLY = "503 after the upstream applied it"
    DELAY = "answered after `seconds`"
    TRUNCATE = "body cut after `at` bytes, old length"
    TRUNCATE_AT_TAR_HEADER = "body cut where a tar header begins, old length"
    FLIP = "one bit of the body flipped"
    CUT_404 = "404 with half an XML body, not forwarded"
    STALL = "half the body, then silence for `seconds`"
    THROTTLE = "body at `rate` bytes a second"
    CLOSE_EARLY = "closed before anything was forwarded"
    MEANWHILE = "`action` happens before the request is forwarded"


@dataclass
class Fault:
    """One rule. An empty method or path matches every request; `path` is a regular expression searched in path and query."""

    kind: Kind
    method: str = ""
    path: str = ""
    times: int = 1
    """How often it still applies; negative = always."""
    chance: float = 1.0
    at: int = -1
    """Byte of the body; -1 = in the middle."""
    seconds: float = 1.0
    rate: int = 65536
    action: Callable[[], None] = lambda: None

    def matches(self, method: str, path: str) -> bool:
        """Whether the rule is about such a request."""
        return self.times != 0 and self.method in ("", method) and re.search(self.path, path) is not None


_SLOW_DOWN = b"<Error><Code>SlowDown</Code><Message>Slow down.</Message></Error>"
_HALF_404 = b'<?xml version="1.0" encoding="UTF-8"?><Error><Code>NoSuch'


class FaultProxy:
    """Listens on a free loopback port; a thread per connection. `applied` counts faults by kind."""

    def __init__(self, upstream: str, *, seed: int = 0) -> None:
        parts = urlsplit(upstream)
        self._upstream = (parts.hostname or "127.0.0.1", parts.port or 80)
        self._rng = random.Random(seed)
        self._lock = threading.Lock()
        self._faults: list[Fault] = []
        self._closing = threading.Event()
        self.applied: Counter[Kind] = Counter()
        self.requests: list[tuple[str, str]] = []
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=128)
        self.endpoint = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def __enter__(self) -> FaultProxy:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Stop listening, and end stalled answers."""
        self._closing.set()
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def add(self, *faults: Fault) -> None:
        """Add rules; earlier ones are tried first."""
        with self._lock:
            self._faults += faults

    def clear(self) -> None:
        """From here on everything goes through."""
        with self._lock:
            self._faults.clear()

    def _accept(self) -> None:
        while not self._closing.is_set():
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        with client, contextlib.suppress(OSError, ConnectionError):
            client.settimeout(60)
            head, rest = _read_head(client)
            if not head:
                return
            method, path, _ = head.split(b"\r\n", 1)[0].decode("latin-1").split(" ", 2)
            body = _read_body(client, head, rest)
            fault = self._draw(method, path)
            self._answer(client, head, body, fault)

    def _draw(self, method: str, path: str) -> Fault | None:
        with self._lock:
            self.requests.append((method, path))
            for fault in self._faults:
                if fault.matches(method, path) and self._rng.random() < fault.chance:
                    fault.times -= 1
                    self.applied[fault.kind] += 1
                    return fault
        return None

    def _answer(self, client: socket.socket, head: bytes, body: bytes, fault: Fault | None) -> None:
        kind = fault.kind if fault else None
        if fault is None or kind is None:
            client.sendall(self._forward(head, body))
        elif kind is Kind.CLOSE_EARLY:
            return
        elif kind is Kind.SLOW_DOWN:
            client.sendall(_response(503, "Slow Down", _SLOW_DOWN))
        elif kind is Kind.CUT_404:
            client.sendall(_response(404, "Not Found", _HALF_404))
        else:
            if kind is Kind.MEANWHILE:
                fault.action()
            self._spoil(client, self._forward(head, body), fault)

    def _spoil(self, client: socket.socket, answer: bytes, fault: Fault) -> None:
        """The upstream has done its part; what becomes of its answer?"""
        start = answer.index(b"\r\n\r\n") + 4
        head, body = answer[:start], answer[start:]
        at = start + (fault.at if fault.at >= 0 else len(body) // 2)
        match fault.kind:
            case Kind.RESET_AFTER_APPLY:
                client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            case Kind.ERROR_AFTER_APPLY:
                client.sendall(_response(503, "Slow Down", _SLOW_DOWN))
            case Kind.DELAY:
                self._closing.wait(fault.seconds)
                client.sendall(answer)
            case Kind.TRUNCATE:
                client.sendall(answer[:at])
            case Kind.TRUNCATE_AT_TAR_HEADER:
                client.sendall(answer[: start + _tar_header_in(body)])
            case Kind.FLIP if body:
                at = min(at, len(answer) - 1)
                client.sendall(answer[:at] + bytes([answer[at] ^ 0x10]) + answer[at + 1 :])
            case Kind.STALL:
                client.sendall(answer[:at])
                self._closing.wait(fault.seconds)
            case Kind.THROTTLE:
                client.sendall(head)
                step = max(1, fault.rate // 20)
                for begin in range(0, len(body), step):
                    client.sendall(body[begin : begin + step])
                    time.sleep(0.05)
            case _:
                client.sendall(answer)

    def _forward(self, head: bytes, body: bytes) -> bytes:
        """The upstream's whole answer, as bytes."""
        lines = [line for line in head.split(b"\r\n") if line and line.split(b":")[0].lower() not in (b"connection", b"expect")]
        lines = [line for line in lines if line.split(b":")[0].lower() != b"transfer-encoding"]
        if not any(line.lower().startswith(b"content-length:") for line in lines) and body:
            lines.append(b"Content-Length: %d" % len(body))
        with socket.create_connection(self._upstream, timeout=60) as upstream:
            upstream.sendall(b"\r\n".join([*lines, b"Connection: close"]) + b"\r\n\r\n" + body)
            chunks = []
            while chunk := upstream.recv(1 << 16):
                chunks.append(chunk)
        answer = b"".join(chunks)
        end = answer.index(b"\r\n\r\n")
        kept = [line for line in answer[:end].split(b"\r\n") if not line.lower().startswith((b"connection:", b"keep-alive:"))]
        return b"\r\n".join([*kept, b"Connection: close"]) + answer[end:]


def _read_head(client: socket.socket) -> tuple[bytes, bytes]:
    data = b""
    while b"\r\n\r\n" not in data:
        chunk = client.recv(1 << 16)
        if not chunk:
            return b"", b""
        data += chunk
    head, _, rest = data.partition(b"\r\n\r\n")
    return head, rest


def _read_body(client: socket.socket, head: bytes, rest: bytes) -> bytes:
    headers = {
        name.strip().lower(): value.strip() for name, _, value in (line.partition(b":") for line in head.split(b"\r\n")[1:])
    }
    if headers.get(b"expect", b"").lower() == b"100-continue":
        client.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
    if headers.get(b"transfer-encoding", b"").lower() == b"chunked":
        return _read_chunks(client, rest)
    length = int(headers.get(b"content-length", b"0"))
    while len(rest) < length:
        chunk = client.recv(1 << 16)
        if not chunk:
            raise ConnectionError("the client went away")
        rest += chunk
    return rest[:length]


def _read_chunks(client: socket.socket, rest: bytes) -> bytes:
    """A chunked request body, put together: it is forwarded with a length."""
    body = b""
    while True:
        while b"\r\n" not in rest:
            rest += client.recv(1 << 16)
        size_line, _, rest = rest.partition(b"\r\n")
        size = int(size_line.split(b";")[0], 16)
        while len(rest) < size + 2:
            rest += client.recv(1 << 16)
        body, rest = body + rest[:size], rest[size + 2 :]
        if not size:
            return body


def _tar_header_in(body: bytes) -> int:
    """Where the second tar header of the body begins (a cut there looks like a whole, shorter archive); else the middle."""
    found = [i - 257 for i in range(257, len(body), 512) if body[i : i + 5] == b"ustar"]
    return found[1] if len(found) > 1 else len(body) // 2


def _response(status: int, reason: str, body: bytes) -> bytes:
    head = (
        f"HTTP/1.1 {status} {reason}\r\nContent-Type: application/xml\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n"
    )
    return head.encode() + body
