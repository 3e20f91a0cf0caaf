"""anyorder beside transformers on the default model: `make bench`, python -m benchmarks.compare.

All sides take turns in every round of one run, so that whatever else the machine does hits all of
them; figures are medians with [least-most], and what counts is the ratio. Same weights, same token
ids, greedy. Before timing and in every round the float32 sides must make the same tokens; a
workload where they do not has failed and gets no figures. bfloat16 rounds otherwise, so there the
share of equal texts is told.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from anyorder.model import catalog
from benchmarks import report
from benchmarks.sides import SIDES, Side
from benchmarks.worker import Answer, Worker
from benchmarks.workloads import WORKLOADS, Workload, prompts

MODEL = "smollm2-135m-instruct"


class Asked(Protocol):
    """A worker, or what stands in for one."""

    def ask(self, prompts: list[list[int]], num_new: int) -> Answer:
        """One call."""

    def close(self) -> None:
        """End it."""


Start = Callable[[Side], Asked]


@dataclass(kw_only=True)
class Result:
    """One workload's figures."""

    workload: Workload
    figures: dict[str, list[float]] = field(default_factory=dict)
    """By side, one per round."""
    equal_texts: dict[str, list[float]] = field(default_factory=dict)
    """By side, one per round: share of texts that equal the first side's."""
    threads: dict[str, int] = field(default_factory=dict)
    failure: str = ""


def measure(
    workload: Workload,
    sides: Sequence[Side],
    start: Start,
    rounds: int,
    tell: Callable[[str], None],
) -> Result:
    """Warm up and check once, then `rounds` rounds in which the sides take turns."""
    result = Result(workload=workload)
    workers: dict[str, Asked] = {}
    try:
        for number in range(rounds + 1):
            texts: dict[str, list[list[int]]] = {}
            turn = number % len(sides)
            for side in [*sides[turn:], *sides[:turn]]:
                what = f"round {number} of {rounds}" if number else "warm-up and check"
                tell(f"{workload.name}: {what}: {side.name}")
                if side.name not in workers:
                    workers[side.name] = start(side)
                answers = []
                for index, call in enumerate(workload.calls):
                    asked = prompts(call, seed=f"{workload.name} {number} {index}")
                    answers.append(workers[side.name].ask(asked, call.num_new))
                texts[side.name] = [tokens for answer in answers for tokens in answer.tokens]
                if number:
                    result.figures.setdefault(side.name, []).append(workload.figure(answers))
                    result.threads[side.name] = answers[0].threads
                if workload.fresh:
                    workers.pop(side.name).close()
            compare_texts(result, sides, texts)
    except (RuntimeError, AssertionError) as error:
        result.failure = str(error)
    finally:
        for worker in workers.values():
            worker.close()
    return result


def compare_texts(result: Result, sides: Sequence[Side], texts: dict[str, list[list[int]]]) -> None:
    """Note the share of equal texts; AssertionError if sides of one precision differ."""
    first = sides[0]
    for side in sides[1:]:
        pairs = list(zip(texts[first.name], texts[side.name], strict=True))
        equal = sum(ours == theirs for ours, theirs in pairs) / len(pairs)
        result.equal_texts.setdefault(side.name, []).append(equal)
        for ours, theirs in pairs:
            if side.dtype == first.dtype and ours != theirs:
                same = zip(ours, theirs, strict=False)
                place = next((i for i, (a, b) in enumerate(same) if a != b), "the end")
                raise AssertionError(f"{side.name} and {first.name} differ from new token {place}")


def main(arguments: list[str]) -> int:
    """Measure and print; 1 if a workload failed."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.compare", description=__doc__)
    names = [workload.name for workload in WORKLOADS]
    parser.add_argument("workloads", nargs="*", metavar="WORKLOAD", help=", ".join(names))
    parser.add_argument("--rounds", type=int, default=3, help="timed rounds (default: 3)")
    parser.add_argument("--model", default=MODEL, help="catalog name or .gguf file")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    options = parser.parse_args(arguments)
    for name in options.workloads:
        if name not in names:
            parser.error(f"unknown workload {name!r}; workloads: {', '.join(names)}.")
    if options.rounds < 1:
        parser.error(f"--rounds must be at least 1, got {options.rounds}.")

    def tell(what: str) -> None:
        print(what, file=sys.stderr, flush=True)

    with tempfile.TemporaryDirectory(prefix="anyorder-benchmark-") as folder:
        tell("writing the weights as safetensors for transformers")
        file = catalog.resolve(options.model).path
        subprocess.run(
            [sys.executable, "-m", "benchmarks.weights", str(file), folder],
            check=True,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )

        def start(side: Side) -> Worker:
            return Worker(side.name, model=str(file), folder=str(Path(folder) / side.dtype))

        results = []
        for workload in WORKLOADS:
            if workload.name in (options.workloads or names):
                results.append(measure(workload, SIDES, start, options.rounds, tell))
                tell(report.as_line(results[-1], SIDES))
    if options.json:
        print(json.dumps(report.as_data(results, SIDES), indent=2))
    else:
        print(report.as_table(results, SIDES))
    return int(any(result.failure for result in results))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
