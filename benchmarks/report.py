"""Figures as a Markdown table and as JSON."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.sides import Side

if TYPE_CHECKING:
    from benchmarks.compare import Result


def machine() -> dict[str, Any]:
    """Where the figures were measured."""
    model = platform.processor()
    if Path("/proc/cpuinfo").exists():
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        model = next((x.split(":")[1].strip() for x in lines if x.startswith("model name")), model)
    libraries = ("anyorder", "torch", "transformers")
    return {
        "cpu": model,
        "num_cores": len(os.sched_getaffinity(0)),
        "python": platform.python_version(),
        **{library: importlib.metadata.version(library) for library in libraries},
    }


def rivals(result: Result, sides: Sequence[Side]) -> dict[str, Side]:
    """For each rival its side with the best median."""
    best = max if result.workload.higher_is_better else min
    groups: dict[str, list[Side]] = {}
    for side in sides[1:]:
        groups.setdefault(side.rival, []).append(side)
    return {
        rival: best(group, key=lambda side: statistics.median(result.figures[side.name]))
        for rival, group in groups.items()
    }


def ratio(ours: list[float], theirs: list[float]) -> dict[str, float]:
    """Of the medians; least and most of the rounds."""
    rounds = [a / b for a, b in zip(ours, theirs, strict=True)]
    median = statistics.median(ours) / statistics.median(theirs)
    return {"median": median, "least": min(rounds), "most": max(rounds)}


def as_data(results: Sequence[Result], sides: Sequence[Side]) -> dict[str, Any]:
    """Everything, for programs."""
    found = []
    for result in results:
        entry: dict[str, Any] = {
            "workload": result.workload.name,
            "title": result.workload.title,
            "unit": result.workload.unit,
            "higher_is_better": result.workload.higher_is_better,
            "failure": result.failure or None,
            "figures": result.figures,
            "equal_texts": result.equal_texts,
            "threads": result.threads,
        }
        if not result.failure:
            ours = result.figures[sides[0].name]
            entry["ratios"] = {
                rival: {"side": side.name, **ratio(ours, result.figures[side.name])}
                for rival, side in rivals(result, sides).items()
            }
        found.append(entry)
    return {"machine": machine(), "results": found}


def spread(figures: list[float]) -> str:
    """Median [least-most], with three significant digits or so."""
    digits = 0 if statistics.median(figures) >= 100 else 1 if min(figures) >= 10 else 2
    middle, least, most = statistics.median(figures), min(figures), max(figures)
    return f"{middle:.{digits}f} [{least:.{digits}f}-{most:.{digits}f}]"


def as_line(result: Result, sides: Sequence[Side]) -> str:
    """One workload in short, for those who watch."""
    if result.failure:
        return f"{result.workload.name} failed: {result.failure}"
    figures = (f"{side.name} {spread(result.figures[side.name])}" for side in sides)
    return f"{result.workload.name}, {result.workload.unit}: " + ", ".join(figures)


def as_table(results: Sequence[Result], sides: Sequence[Side]) -> str:
    """A Markdown table with a ratio (anyorder / rival) for each rival."""
    names = list(dict.fromkeys(side.rival for side in sides[1:]))
    heads = ["work", sides[0].name, *(f"{name} | ratio" for name in names)]
    columns = 2 + 2 * len(names)
    lines = ["| " + " | ".join(heads) + " |", "|---" * columns + "|"]
    for result in results:
        work = result.workload
        better = "more" if work.higher_is_better else "less"
        cells = [f"{work.title} ({work.unit}, {better} is better)"]
        if result.failure:
            cells += [f"failed: {result.failure}", *[""] * (columns - 2)]
        else:
            ours = result.figures[sides[0].name]
            cells.append(spread(ours))
            for side in rivals(result, sides).values():
                one = ratio(ours, result.figures[side.name])
                cells.append(f"{spread(result.figures[side.name])} {side.attention}".strip())
                cells.append(f"**{one['median']:.2f}** [{one['least']:.2f}-{one['most']:.2f}]")
        lines.append("| " + " | ".join(cells) + " |")
    lines += ["", "ratio = anyorder / the other; medians [least-most] of the rounds."]
    where = machine()
    lines.append(", ".join(f"{key.replace('num_', '')} {value}" for key, value in where.items()))
    return "\n".join(lines)
