"""What is measured. Prompts are random ids, equal for all sides, new in every round and call: a
fresh first token leaves prefix caches nothing to share.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

from benchmarks.worker import Answer


@dataclass(frozen=True, kw_only=True)
class Call:
    """Some prompts of one length, and how many tokens to add to each."""

    num_prompts: int
    prompt_length: int
    num_new: int


@dataclass(frozen=True, kw_only=True)
class Workload:
    """Calls whose answers make one figure."""

    name: str
    title: str
    unit: str
    calls: tuple[Call, ...]
    figure: Callable[[list[Answer]], float]
    """From the answers to the calls to the figure."""
    fresh: bool = False
    """Every sample in a new process."""
    higher_is_better: bool = True


WORKLOADS = (
    Workload(
        name="decode",
        title="decode, one stream, 128 + 128",
        unit="tok/s",
        calls=(
            Call(num_prompts=1, prompt_length=128, num_new=1),
            Call(num_prompts=1, prompt_length=128, num_new=128),
        ),
        figure=lambda answers: 127 / (answers[1].seconds - answers[0].seconds),
    ),
    Workload(
        name="prefill",
        title="prefill, 1,024 tokens",
        unit="tok/s",
        calls=(Call(num_prompts=1, prompt_length=1024, num_new=1),),
        figure=lambda answers: 1024 / answers[0].seconds,
    ),
    Workload(
        name="batch",
        title="16 streams, 128 + 128, new tokens over whole time",
        unit="tok/s",
        calls=(Call(num_prompts=16, prompt_length=128, num_new=128),),
        figure=lambda answers: 16 * 128 / answers[0].seconds,
    ),
    Workload(
        name="start",
        title="start of the process to first token, prompt of 128",
        unit="s",
        calls=(Call(num_prompts=1, prompt_length=128, num_new=1),),
        figure=lambda answers: answers[0].since_start,
        fresh=True,
        higher_is_better=False,
    ),
    Workload(
        name="memory",
        title="peak memory, one stream, 128 + 128",
        unit="MB",
        calls=(Call(num_prompts=1, prompt_length=128, num_new=128),),
        figure=lambda answers: answers[0].peak_mb,
        fresh=True,
        higher_is_better=False,
    ),
)


def prompts(call: Call, *, seed: str) -> list[list[int]]:
    """The prompts of one call; other seeds give other first tokens."""
    rng = random.Random(seed)
    # Ids of ordinary words in any vocabulary of at least 40,000; no control tokens.
    return [
        [rng.randrange(1000, 40000) for _ in range(call.prompt_length)]
        for _ in range(call.num_prompts)
    ]
