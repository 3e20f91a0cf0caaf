"""What a run of `anyorder bench` found, as data that further rounds can be added to."""

from __future__ import annotations

import dataclasses
import os
import platform
import statistics
from collections.abc import Callable, Iterable, Mapping
from collections.abc import Sequence as Seq
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

from anyorder.core.errors import InvalidRequest
from anyorder.evaluation.benchmarks.checks import Check
from anyorder.evaluation.benchmarks.large import LARGE
from anyorder.evaluation.benchmarks.method_results import MethodResults
from anyorder.evaluation.benchmarks.rounds import Figures
from anyorder.evaluation.benchmarks.sides import BYTES_PER_WEIGHT, SIDES, Side

_PEAKS = {"float32": "float32", "16-bit": "bfloat16", "8-bit": "int8", "4-bit": "int8"}


@dataclass(kw_only=True)
class Results:
    """Everything that was measured with one model on one machine."""

    model: str
    num_parameters: int
    """0: the model's files do not say, so there are no limits to speak of."""
    threads: int
    machine: dict[str, str] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    limits: dict[str, dict[str, float]] = field(default_factory=dict)
    checks: dict[str, Check] = field(default_factory=dict)
    figures: Figures = field(default_factory=Figures)
    absent: dict[str, str] = field(default_factory=dict)
    """By side: why it could not be measured."""
    methods: MethodResults = field(default_factory=MethodResults)

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Results:
        """What `to_dict` made. InvalidRequest if it is something else."""
        try:
            checks = {name: Check(**entry) for name, entry in data["checks"].items()}
            figures = Figures(**data["figures"])
            methods = MethodResults.from_dict(data["methods"])
            return cls(**{**data, "checks": checks, "figures": figures, "methods": methods})
        except (KeyError, TypeError, AttributeError):
            raise InvalidRequest(
                "the file to add rounds to holds no results of `anyorder bench`; name another "
                "with --output, or leave --append out."
            ) from None

    def sides(self) -> list[Side]:
        """Those with any figures, in order."""
        named = {name for sides in self.figures.values.values() for name in sides}
        return [side for side in SIDES if side.name in named]

    def weight_bytes(self, format: str, work: str = "decode") -> int:
        """Of all weights, as a pass reads them."""
        if work == "large":
            return LARGE.weight_bytes(format)
        return round(self.num_parameters * BYTES_PER_WEIGHT[format])

    def bandwidth(self, num_bytes: int) -> float | None:
        """Gigabytes read in a second over a buffer of so many; None: not measured."""
        return self.limits.get("gigabytes_per_second", {}).get(str(num_bytes))

    def limit(self, work: str, format: str) -> float | None:
        """Tokens per second that the machine could reach; None where nothing simple limits it."""
        if work in ("decode", "large"):
            num_bytes = self.weight_bytes(format, work)
            rate = self.bandwidth(num_bytes)
            return None if rate is None else rate * 1e9 / num_bytes
        if work == "prefill" and self.limits and self.num_parameters:
            return self.limits["teraflops"][_PEAKS[format]] * 1e12 / (2 * self.num_parameters)
        return None

    def fair(self, work: str, sides: Iterable[Side]) -> list[Side]:
        """Those with figures for this work whose tokens are the model's."""
        known = self.figures.values.get(work, {})
        return [
            side
            for side in sides
            if side.name in known
            and not (side.name in self.checks and self.checks[side.name].differs)
        ]

    def best(self, work: str, sides: Iterable[Side], *, higher: bool) -> Side | None:
        """Of some sides the one with the best median."""
        pick: Callable[..., Side] = max if higher else min
        values = self.figures.values.get(work, {})
        found = self.fair(work, sides)
        return pick(found, key=lambda side: statistics.median(values[side.name])) if found else None


def ratios(ours: Seq[float], theirs: Seq[float]) -> tuple[float, float, float]:
    """Of the medians; least and most of the rounds that both have."""
    rounds = [a / b for a, b in zip(ours, theirs, strict=False)]
    return statistics.median(ours) / statistics.median(theirs), min(rounds), max(rounds)


def machine(cores: int) -> dict[str, str]:
    """Where the figures were measured."""
    model = platform.processor() or platform.machine()
    memory = ""
    for file, key in (("/proc/cpuinfo", "model name"), ("/proc/meminfo", "MemTotal")):
        if Path(file).exists():
            lines = Path(file).read_text("utf-8", errors="replace").splitlines()
            found = next((line for line in lines if line.startswith(key)), "")
            if key == "MemTotal" and found:
                memory = f"{int(found.split()[1]) / 2**20:.0f} GiB"
            elif found:
                model = found.partition(":")[2].strip()
    return {
        "cpu": model,
        "cores": str(cores),
        "memory": memory,
        "system": platform.platform(),
        "python": platform.python_version(),
    }


def own_versions() -> dict[str, str]:
    """Of this package and what it computes with."""
    return {name: metadata.version(name) for name in ("anyorder", "torch")}


def num_cores() -> int:
    """That this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
