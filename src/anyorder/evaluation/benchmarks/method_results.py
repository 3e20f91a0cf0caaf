"""What `anyorder bench --methods` finds, as data."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(kw_only=True)
class MethodSpeed:
    """One method on one stream; rates by round."""

    model: str
    tokens_per_pass: float
    tokens_per_second: list[float] = field(default_factory=list)


@dataclass(kw_only=True)
class MixedSpeed:
    """All of a model's methods, in new tokens per second; figures by round."""

    methods: list[str]
    mixed: list[float] = field(default_factory=list)
    one_by_one: list[float] = field(default_factory=list)
    differing: list[str] = field(default_factory=list)
    """Methods whose tokens were others in company; there should be none."""
    seconds: dict[str, list[float]] = field(default_factory=dict)
    """Of each method's requests by themselves."""
    run_tokens: float | None = None
    """Tokens that passes run for each new one, method by method."""

    @property
    def ratio(self) -> float:
        """How many times faster all together are."""
        return statistics.median(self.mixed) / statistics.median(self.one_by_one)

    @property
    def longest(self) -> tuple[str, float] | None:
        """The method that takes longest by itself, and its share of all methods' time. Together
        they take at least as long as it does."""
        if not self.seconds:
            return None
        medians = {name: statistics.median(taken) for name, taken in self.seconds.items()}
        name = max(medians, key=lambda name: medians[name])
        return name, medians[name] / sum(medians.values())


@dataclass(kw_only=True)
class MethodResults:
    """What `anyorder bench --methods` found."""

    alone: dict[str, MethodSpeed] = field(default_factory=dict)
    batches: dict[str, MixedSpeed] = field(default_factory=dict)
    """By model."""
    left_out: dict[str, str] = field(default_factory=dict)
    """By method: why."""

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> MethodResults:
        """What `dataclasses.asdict` made."""
        return cls(
            alone={name: MethodSpeed(**entry) for name, entry in data["alone"].items()},
            batches={name: MixedSpeed(**entry) for name, entry in data["batches"].items()},
            left_out=dict(data["left_out"]),
        )
