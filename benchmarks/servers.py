"""Servers in processes of their own, on free ports of this machine."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

START_SECONDS = 300.0
"""How long a server may take until it answers."""


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port


def anyorder_server(model: str, port: int, *flags: str) -> list[str]:
    """The command line of this project's server."""
    program = [sys.executable, "-m", "anyorder.cli.main", "serve", model]
    return [*program, "--port", str(port), "--served-name", "model", *flags]


def transformers_server(folder: Path, port: int, *, batches: bool) -> list[str]:
    """The command line of the other one; `batches`: its continuous batching."""
    program = [sys.executable, "-m", "transformers.cli.transformers", "serve", str(folder)]
    mode = "--continuous-batching" if batches else "--no-continuous-batching"
    return [*program, "--port", str(port), "--device", "cpu", "--log-level", "error", mode]


class ServerProcess:
    """A server that runs until the block ends."""

    def __init__(self, command: Sequence[str], port: int) -> None:
        """Start it and wait until /health answers."""
        self.port = port
        self._log = tempfile.TemporaryFile("w+")  # noqa: SIM115 (closed by __exit__)
        began = time.perf_counter()
        self.process = subprocess.Popen(command, stdout=self._log, stderr=self._log)
        while not self._is_up():
            if self.process.poll() is not None or time.perf_counter() > began + START_SECONDS:
                self._log.seek(0)
                words = self._log.read()[-2000:]
                self.__exit__(None, None, None)
                raise RuntimeError(f"{' '.join(command)} does not answer: {words}")
            time.sleep(0.05)
        self.start_seconds = time.perf_counter() - began

    def _is_up(self) -> bool:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/health", timeout=5) as page:
                return bool(page.read())
        except OSError:
            return False

    @property
    def resident_mb(self) -> float:
        """Memory that the process holds now; Linux only."""
        for line in Path(f"/proc/{self.process.pid}/status").read_text().splitlines():
            if line.startswith("VmRSS:"):
                return int(line.split()[1]) / 1024
        raise RuntimeError("the server is gone")

    def end(self, number: signal.Signals = signal.SIGTERM) -> int:
        """Send a signal, wait, and tell the exit code."""
        self.process.send_signal(number)
        return self.process.wait(timeout=60)

    def __enter__(self) -> ServerProcess:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        self._log.close()
