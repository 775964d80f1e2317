"""Who may ask, and how much at once: the token, and the limit on a body. Plain ASGI, before a byte of the body is read."""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import json
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from typing import Any

from atlas_dist.errors import AtlasError, AuthError, ConfigError, DataError

TOKEN = "ATLAS_SERVE_TOKEN"  # noqa: S105 - the name of the variable
SHORTEST = 16
"""Characters of a token: a replica is given its digest, from which a short one could be guessed."""
OPEN = frozenset({"/healthz", "/docs", "/openapi.json"})
"""What answers without a token: it tells nothing of the bank."""

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]


def token_digest(environment: Mapping[str, str]) -> str:
    """The sha256 of the token in ATLAS_SERVE_TOKEN, in hex; "" where there is none. Only this leaves the process: Ray shows what
    it starts replicas with. Raises ConfigError: it is too short, or could not be sent as a header."""
    token = environment.get(TOKEN, "")
    if not token:
        return ""
    if len(token) < SHORTEST or not token.isascii() or not token.isprintable() or " " in token:
        raise ConfigError(
            f"{TOKEN} has {len(token)} characters; at least {SHORTEST} printable ones of ASCII without spaces are needed.",
            fix=f'Make one: export {TOKEN}="$(openssl rand -hex 32)"',
        )
    return hashlib.sha256(token.encode()).hexdigest()


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches what listens there."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def check_exposed(host: str, digest: str) -> None:
    """Raises ConfigError: anybody could ask, for there is no token and others reach the host."""
    if not digest and not is_loopback(host):
        raise ConfigError(
            f"host={host} can be reached by others, and {TOKEN} is not set.",
            fix=f'export {TOKEN}="$(openssl rand -hex 32)", or leave --host out: 127.0.0.1 is reached from this machine only.',
        )


class TooLarge(DataError):
    """A body has more bytes than the limit."""


class Guard:
    """Lets in what has the token and a body within the limit; answers the rest itself, as JSON.

    Args:
        digest: of `token_digest`; "" = everybody may ask.
        max_body: bytes.
    """

    def __init__(self, app: App, *, digest: str, max_body: int) -> None:
        self._app, self._digest, self._max_body = app, digest, max_body

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = {name.lower(): value for name, value in scope["headers"]}
        if self._digest and scope["path"] not in OPEN and not self._knows(headers.get(b"authorization", b"")):
            await _refuse(
                send, 401, AuthError("The token is missing or wrong.", fix="Send the header Authorization: Bearer TOKEN.")
            )
            return
        announced = headers.get(b"content-length", b"")
        if announced.isdigit() and int(announced) > self._max_body:
            await _refuse(send, 413, self._too_large())
            return
        read = 0

        async def counted() -> Message:
            """A body that does not say its length, or says less than it has, is counted as it comes."""
            nonlocal read
            message = await receive()
            read += len(message.get("body", b""))
            if read > self._max_body:
                raise self._too_large()
            return message

        await self._app(scope, counted, send)

    def _knows(self, header: bytes) -> bool:
        scheme, _, token = header.partition(b" ")
        given = hashlib.sha256(token.strip()).hexdigest()
        return hmac.compare_digest(given, self._digest) and scheme.lower() == b"bearer"

    def _too_large(self) -> TooLarge:
        return TooLarge(f"The body is larger than {self._max_body / 1e6:g} MB.", fix="Send fewer or smaller pictures a request.")


def as_json(error: AtlasError) -> dict[str, Any]:
    """What a client sees of an error."""
    about = {"type": type(error).__name__, "message": error.message, "fix": error.fix}
    return about | {"nearest": list(near)} if (near := getattr(error, "nearest", ())) else about


async def _refuse(send: Send, status: int, error: AtlasError) -> None:
    body = json.dumps({"error": as_json(error)}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode()), (b"connection", b"close")]
    headers += [(b"www-authenticate", b"Bearer")] if status == 401 else []
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
