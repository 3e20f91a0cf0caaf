"""One side in a process of its own, told over pipes what to generate.

Lines of JSON: {"prompts": [[...]], "new": n} in; {"tokens": [[...]], "seconds": s, "peak_mb": m,
"threads": t} out. Whatever an engine prints goes to stderr, of which the last line is told if the
process dies.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass

from benchmarks.sides import SIDES, open_side


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What a side made of one call."""

    tokens: list[list[int]]
    seconds: float
    peak_mb: float
    """Most memory the process ever held."""
    threads: int
    since_start: float
    """Seconds from the start of the process to this answer, as its parent sees it."""


class Worker:
    """The parent's end. Imports nothing heavy, so that its own memory is not counted as a child's
    (a child's peak starts from what its parent held)."""

    def __init__(self, side: str, *, model: str, folder: str) -> None:
        self._stderr = tempfile.TemporaryFile("w+")  # noqa: SIM115 (closed by close())
        self._started = time.perf_counter()
        self._process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.worker", side, model, folder],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._stderr,
            text=True,
        )

    def ask(self, prompts: list[list[int]], num_new: int) -> Answer:
        """One call, waited for. RuntimeError with the worker's last words if it died."""
        assert self._process.stdin and self._process.stdout
        try:
            self._process.stdin.write(json.dumps({"prompts": prompts, "new": num_new}) + "\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            self._process.wait()
            self._stderr.seek(0)
            words = self._stderr.read().strip().splitlines() or ["it died without a message"]
            raise RuntimeError(words[-1])
        return Answer(**json.loads(line), since_start=time.perf_counter() - self._started)

    def close(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.communicate()
        self._stderr.close()


def serve(side: str, model: str, folder: str) -> None:
    """The child's end."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    generate = open_side(next(s for s in SIDES if s.name == side), model=model, folder=folder)
    import torch

    for line in sys.stdin:
        call = json.loads(line)
        began = time.perf_counter()
        tokens = generate(call["prompts"], call["new"])
        seconds = time.perf_counter() - began
        peak_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024  # KiB on Linux
        fields = {"tokens": tokens, "seconds": seconds, "peak_mb": peak_mb}
        answers.write(json.dumps({**fields, "threads": torch.get_num_threads()}) + "\n")
        answers.flush()


if __name__ == "__main__":
    serve(*sys.argv[1:])
