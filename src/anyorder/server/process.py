"""Running the application: a listening socket, signals, and an orderly end.

The first SIGTERM or SIGINT closes the socket and refuses new work; what runs may finish within
`Limits.drain_seconds`, and the process then ends with exit code 0. A second SIGINT ends it at once.
"""

from __future__ import annotations

import signal
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

import uvicorn
from fastapi import FastAPI

from anyorder.core.errors import UserError
from anyorder.server.service import Service


class Server(uvicorn.Server):
    """uvicorn's server that refuses new work while it drains, and that ends by returning."""

    def __init__(self, app: FastAPI) -> None:
        service: Service = app.state.service
        self._service = service
        config = uvicorn.Config(
            app,
            lifespan="on",
            log_level="warning",
            server_header=False,
            timeout_graceful_shutdown=max(1, round(service.limits.drain_seconds)),
        )
        super().__init__(config)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Begin to drain."""
        self._service.draining = True
        super().handle_exit(sig, frame)

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """As uvicorn's, without raising the signal again once all is in order."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        signals = (signal.SIGINT, signal.SIGTERM)
        before = {number: signal.signal(number, self.handle_exit) for number in signals}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def listen(host: str, port: int) -> socket.socket:
    """A listening socket; UserError if there can be none. Port 0 takes any that is free."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=2048)
    except OSError as error:
        raise UserError(
            f"cannot listen on {host} port {port}: {error.strerror or error}; choose another "
            "--host or --port."
        ) from None


def serve(app: FastAPI, listener: socket.socket, *, on_start: Callable[[], None]) -> None:
    """Serve until a signal ends it."""
    server = Server(app)
    on_start()
    server.run([listener])
