"""Workers that take no time and no model, for the harness alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from anyorder.evaluation.benchmarks.process import Answer, WorkerDied
from anyorder.evaluation.benchmarks.sides import SIDES, Side

SLOWNESS = {side.name: number for number, side in enumerate(SIDES, 1)}


class Fake:
    """Takes its slowness in milliseconds per new token; answers with sums of the prompt."""

    def __init__(self, side: Side, log: list[tuple[str, str]], dies_at: int = 0) -> None:
        self.side, self.log, self.dies_at = side, log, dies_at
        log.append(("open", side.name))

    def generate(self, prompts: list[list[int]], num_new: int, *, lookup: bool = False) -> Answer:
        self.log.append(("lookup" if lookup else "ask", self.side.name))
        if self.dies_at and len(prompts[0]) == self.dies_at:
            raise WorkerDied("no room")
        slowness = SLOWNESS[self.side.name]
        return Answer(
            tokens=[[sum(prompt) + i for i in range(num_new)] for prompt in prompts],
            seconds=num_new * slowness / (2000 if lookup else 1000),
            peak_mb=100.0 * slowness,
            since_start=float(slowness),
        )

    def ask(self, call: Mapping[str, Any]) -> Any:
        raise AssertionError(call)

    def close(self) -> None:
        self.log.append(("close", self.side.name))
