"""What is measured. Prompts are random ids, equal for all sides and new in every round: a fresh
first token leaves prefix caches nothing to share.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

from anyorder.evaluation.benchmarks.large import LARGE, Shape
from anyorder.evaluation.benchmarks.process import Answer
from anyorder.evaluation.benchmarks.sides import Side


@dataclass(frozen=True, kw_only=True)
class Call:
    """Some prompts of one length, and how many tokens to add to each."""

    num_prompts: int
    prompt_length: int
    num_new: int


@dataclass(frozen=True, kw_only=True)
class Work:
    """Calls whose answers make one figure."""

    name: str
    title: str
    unit: str
    calls: tuple[Call, ...]
    figure: Callable[[list[Answer]], float]
    """From the answers to the calls to the figure."""
    warm_up: Call | None = None
    """Asked before, not timed."""
    fresh: bool = False
    """The first that its process does."""
    copies: bool = False
    """Text that repeats its prompt. Asked for once plainly and, where the engine has it, once with
    exact speculation out of the text so far, which does not pay on every machine."""
    higher_is_better: bool = True
    shape: Shape | None = None
    """Of a network of random weights that is loaded in the model's place, and for this alone."""
    sides: tuple[str, ...] = ()
    """Names of those that do it; empty: all."""

    def takes(self, side: Side) -> bool:
        """Does this side do it?"""
        return not self.sides or side.name in self.sides


_ONE, _FULL = (Call(num_prompts=1, prompt_length=128, num_new=n) for n in (1, 128))
_LONG = Call(num_prompts=1, prompt_length=1024, num_new=1)
_COPY = Call(num_prompts=1, prompt_length=0, num_new=128)
_FEW, _MORE = (Call(num_prompts=1, prompt_length=32, num_new=n) for n in (1, 49))

WORKS = (
    Work(
        name="start",
        title="process start to first token, prompt of 128",
        unit="s",
        calls=(_ONE,),
        figure=lambda answers: answers[0].since_start,
        fresh=True,
        higher_is_better=False,
    ),
    Work(
        name="memory",
        title="peak memory, one stream, 128 + 128",
        unit="MB",
        calls=(_FULL,),
        figure=lambda answers: answers[0].peak_mb,
        fresh=True,
        higher_is_better=False,
    ),
    Work(
        name="decode",
        title="decode, one stream, 128 + 128",
        unit="tok/s",
        calls=(_ONE, _FULL),
        figure=lambda answers: 127 / (answers[1].seconds - answers[0].seconds),
    ),
    Work(
        name="prefill",
        title="prefill, 1,024 tokens",
        unit="tok/s",
        calls=(_LONG,),
        figure=lambda answers: 1024 / answers[0].seconds,
        warm_up=_LONG,
    ),
    Work(
        name="copy",
        title="text that copies from its prompt, prompt included, with speculation or without",
        unit="tok/s",
        calls=(_COPY,),
        figure=lambda answers: 128 / min(answer.seconds for answer in answers),
        warm_up=_COPY,
        copies=True,
    ),
    Work(
        name="batch",
        title="16 streams, 128 + 128, new tokens over whole time",
        unit="tok/s",
        calls=(Call(num_prompts=16, prompt_length=128, num_new=128),),
        figure=lambda answers: 16 * 128 / answers[0].seconds,
        warm_up=Call(num_prompts=16, prompt_length=128, num_new=2),
    ),
    Work(
        name="large",
        title="decode, one stream, 32 + 48, random weights of Llama-3.2-1B's shape",
        unit="tok/s",
        calls=(_FEW, _MORE),
        figure=lambda answers: 48 / (answers[1].seconds - answers[0].seconds),
        warm_up=Call(num_prompts=1, prompt_length=32, num_new=2),
        shape=LARGE,
        sides=("anyorder int8", "anyorder int4"),
    ),
)


def prompts(call: Call, *, vocabulary: int, seed: str) -> list[list[int]]:
    """The prompts of one call; other seeds give other first tokens."""
    rng = random.Random(seed)
    # Control tokens and bytes stand at the ends of a vocabulary, ordinary words between.
    first, end = vocabulary // 48 + 1, vocabulary * 4 // 5
    return [
        [rng.randrange(first, end) for _ in range(call.prompt_length)]
        for _ in range(call.num_prompts)
    ]
