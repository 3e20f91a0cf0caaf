"""The application: every endpoint over one engine."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator
from collections.abc import Sequence as Seq
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

from fastapi import FastAPI
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import FileResponse
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from anyorder.engine.engine import Engine
from anyorder.server import (
    canvas,
    chat,
    completions,
    embeddings,
    information,
    messages,
    responses,
    tokens,
)
from anyorder.server.access import Access
from anyorder.server.errors import add_handlers
from anyorder.server.limits import Limits
from anyorder.server.service import Service

PLAYGROUND = Path(__file__).resolve().parent / "playground"
"""Files for a browser: its page at /, the rest at /playground/."""
PAGE_POLICY = (
    "default-src 'self'; img-src 'self' data: blob:; style-src 'self' 'unsafe-inline'; "
    "object-src 'none'; base-uri 'none'; frame-ancestors 'none'"
)
"""Nothing on the page comes from elsewhere, whatever a model writes into it."""
FAREWELL_SECONDS = 0.2
ROUTERS = (
    information.router,
    completions.router,
    chat.router,
    messages.router,
    responses.router,
    embeddings.router,
    tokens.router,
    canvas.router,
)


@dataclass(frozen=True, kw_only=True)
class ServerOptions:
    """What a server is told when it starts."""

    name: str | None = None
    """What clients call the model; None: its own name."""
    method: str = "autoregressive"
    keys: Seq[str] = ()
    """Any of these opens everything; none: no key is needed."""
    hosts: Seq[str] | None = None
    """Names under which it may be addressed; None: any."""
    origins: Seq[str] = ()
    """Other sites whose pages may use it from a browser."""
    limits: Limits = field(default_factory=Limits)


def create_app(engine: Engine, options: ServerOptions) -> FastAPI:
    """The application over an engine that is loaded; it owns the engine from now on."""
    service = Service(
        engine,
        limits=options.limits,
        name=options.name or engine.abilities.name,
        method=options.method,
    )

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield
        if service.draining:  # those whose answers were cut are being told so
            await asyncio.sleep(FAREWELL_SECONDS)
        service.worker.stop()

    app = FastAPI(
        title="anyorder",
        lifespan=lifespan,
        docs_url=None,  # its pages load scripts from elsewhere
        redoc_url=None,
    )
    app.state.service = service
    for router in ROUTERS:
        app.include_router(router)
    add_handlers(app)
    app.add_middleware(
        Access,
        keys=options.keys,
        hosts=options.hosts,
        max_body_bytes=options.limits.max_body_bytes,
        max_seconds=options.limits.max_seconds,
    )
    if options.origins:  # outside of the rest: a browser's question before the question has no key
        app.add_middleware(
            CORSMiddleware,
            allow_origins=options.origins,
            allow_methods=["GET", "POST"],
            allow_headers=["authorization", "content-type", "x-api-key"],
        )
    app.add_middleware(RequestIds)
    app.mount("/playground", StaticFiles(directory=PLAYGROUND))
    app.add_api_route("/", page, include_in_schema=False)
    return app


async def page() -> FileResponse:
    """The playground."""
    headers = {"Content-Security-Policy": PAGE_POLICY, "X-Content-Type-Options": "nosniff"}
    return FileResponse(PLAYGROUND / "index.html", headers=headers)


class RequestIds:
    """Gives every answer an x-request-id, which clients show in their errors."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Add the header."""

        async def named(message: Message) -> None:
            if message["type"] == "http.response.start":
                header = (b"x-request-id", f"req-{secrets.token_hex(12)}".encode())
                message["headers"] = [*message.get("headers", ()), header]
            await send(message)

        await self._app(scope, receive, named if scope["type"] == "http" else send)
