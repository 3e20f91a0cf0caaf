"""A reward: what a text that a model wrote is worth, as a number, from 0 (worthless) to 1.

One file a reward in `training/rewards/`, found by its name like an objective; its fields are its
options. A function of one's own is `training/rewards/own.py`'s business, and must be marked with
`reward_function`.
"""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Sequence as Seq
from dataclasses import dataclass
from typing import TypeVar

from anyorder.core.options import validate


@dataclass(frozen=True, kw_only=True)
class Answer:
    """A text to be judged."""

    prompt: str
    text: str
    """What the model wrote after the prompt."""
    reference: str
    """What the data have there."""
    tokens: tuple[int, ...]
    """Of `text`, with the end token if there is one."""
    reference_tokens: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class Reward:
    """Base of all rewards."""

    def __post_init__(self) -> None:
        validate(self)

    def judge(self, answers: Seq[Answer]) -> list[float]:
        """One finite number an answer."""
        raise AssertionError(f"{type(self).__name__} does not define judge()")


RewardFunction = Callable[[Seq[Answer]], Seq[float]]
F = TypeVar("F", bound=RewardFunction)
_MARK = "__anyorder_reward__"


def reward_function(function: F) -> F:
    """Mark a function as a reward that recipes may name. Others they may not: a recipe can come
    from anybody, and must not be able to call whatever is installed."""
    setattr(function, _MARK, True)
    return function


def is_reward_function(found: object) -> bool:
    """Was it marked?"""
    return callable(found) and getattr(found, _MARK, False) is True
