"""Who may ask, from where, and how much at once: checked before any endpoint sees a request."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
from collections.abc import Sequence as Seq

from starlette.datastructures import Headers
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from anyorder.server.errors import ApiError, envelope

OPEN_PATHS = ("/health", "/")
OPEN_FOLDER = "/playground/"
"""What needs no key: a sign of life, and the page in which a key can be typed."""
LOOPBACK = ("localhost", "127.0.0.1", "::1")


class Access:
    """Keys, the Host header of a server on loopback, and the size of bodies.

    Keys are compared by digest in constant time, all of them every time. A page of another site
    that points its own name at 127.0.0.1 is refused by its Host header.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        keys: Seq[str],
        hosts: Seq[str] | None,
        max_body_bytes: int,
        max_seconds: float,
    ) -> None:
        """`hosts`: names under which the server may be addressed; None: any. `max_seconds` is what
        a body may take to arrive."""
        self._app = app
        self._digests = [_digest(key.encode("utf-8", "surrogateescape")) for key in keys]
        self._hosts = hosts
        self._max_body_bytes = max_body_bytes
        self._max_seconds = max_seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Refuse, or hand on."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        error = self._refusal(scope, headers)
        if error is not None:
            status, body = envelope(error)
            await JSONResponse(body, status, headers=dict(error.headers or {}))(
                scope, receive, send
            )
            return
        await self._app(scope, self._limited(receive), send)

    def _refusal(self, scope: Scope, headers: Headers) -> ApiError | None:
        host = _host(headers.get("host", ""))
        if self._hosts is not None and host not in self._hosts:
            names = " or ".join(self._hosts)
            return ApiError(403, f"this server answers to {names} only, not to {host[:60]!r}.")
        path: str = scope["path"]
        if self._digests and path not in OPEN_PATHS and not path.startswith(OPEN_FOLDER):
            scheme, _, key = headers.get("authorization", "").partition(" ")
            if scheme.lower() != "bearer" or not key:
                key = headers.get("x-api-key", "")
            if not self._is_known(key):
                message = "a valid key is needed: send `Authorization: Bearer KEY`."
                headers_out = {"WWW-Authenticate": "Bearer"}
                return ApiError(401, message, code="invalid_api_key", headers=headers_out)
            scope["anyorder_key"] = key
        length = headers.get("content-length", "0")
        if not length.isdigit() or int(length[:20]) > self._max_body_bytes:
            return self._too_large()
        return None

    def _is_known(self, key: str) -> bool:
        digest = _digest(key.encode("latin-1"))  # as headers are decoded
        matches = [hmac.compare_digest(digest, known) for known in self._digests]
        return any(matches)

    def _too_large(self) -> ApiError:
        return ApiError(413, f"the body exceeds {self._max_body_bytes} bytes; send less.")

    def _limited(self, receive: Receive) -> Receive:
        """`receive` that counts, for bodies that do not tell their length or trickle in."""
        num_bytes, is_whole = 0, False
        deadline = asyncio.get_running_loop().time() + self._max_seconds

        async def counted() -> Message:
            nonlocal num_bytes, is_whole
            try:
                async with asyncio.timeout_at(None if is_whole else deadline):
                    message = await receive()
            except TimeoutError:
                why = f"the body did not arrive within {self._max_seconds:g} seconds."
                raise ApiError(408, why, headers={"Connection": "close"}) from None
            if message["type"] == "http.request":
                is_whole = not message.get("more_body", False)
                num_bytes += len(message.get("body", b""))
                if num_bytes > self._max_body_bytes:
                    raise self._too_large()
            return message

        return counted


def _digest(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()


def _host(header: str) -> str:
    """The name in a Host header, without port and brackets."""
    if header.startswith("["):
        return header[1:].partition("]")[0]
    return header.partition(":")[0].lower()
