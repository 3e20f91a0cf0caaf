"""The parent's end of a worker: an engine in a process of its own, which answers in JSON lines."""

from __future__ import annotations

import json
import subprocess
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

WORKER = Path(__file__).resolve().parent / "worker.py"


class WorkerDied(RuntimeError):
    """With its last words."""


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What a side made of one call."""

    tokens: list[list[int]]
    seconds: float
    peak_mb: float
    """Most memory the process ever held."""
    since_start: float
    """Seconds from the start of the process to this answer, as its parent sees it."""


class Asked(Protocol):
    """A worker, or what stands in for one."""

    def generate(self, prompts: list[list[int]], num_new: int, *, lookup: bool = False) -> Answer:
        """Greedy tokens, exactly so many for each prompt."""

    def ask(self, call: Mapping[str, Any]) -> Any:
        """Any other call."""

    def close(self) -> None:
        """End it."""


class Worker:
    """A worker's process. The parent must import nothing heavy before: a child's peak memory starts
    from what its parent held."""

    def __init__(self, command: list[str], environment: Mapping[str, str]) -> None:
        self._stderr = tempfile.TemporaryFile("w+", errors="replace")  # noqa: SIM115 (see close)
        self._started = time.perf_counter()
        self._process = subprocess.Popen(
            command,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._stderr,
            text=True,
        )

    def generate(self, prompts: list[list[int]], num_new: int, *, lookup: bool = False) -> Answer:
        """Greedy tokens, exactly so many for each prompt."""
        found = self.ask(
            {"do": "generate", "prompts": prompts, "num_new": num_new, "lookup": lookup}
        )
        return Answer(**found, since_start=time.perf_counter() - self._started)

    def ask(self, call: Mapping[str, Any]) -> Any:
        """One call, waited for. WorkerDied with the worker's last words if it did."""
        assert self._process.stdin and self._process.stdout
        try:
            self._process.stdin.write(json.dumps(call) + "\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            code = self._process.wait()
            self._stderr.seek(0)
            words = self._stderr.read().strip().splitlines()
            raise WorkerDied(words[-1] if words else f"it ended with exit code {code}")
        return json.loads(line)

    def close(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.communicate()
        self._stderr.close()
