"""The harness with fake sides: turns, figures, ratios, and runs that must count as failed."""

from __future__ import annotations

import json
from typing import Any

import pytest
from benchmarks.compare import measure
from benchmarks.sides import SIDES, Side
from benchmarks.worker import Answer, Worker
from benchmarks.workloads import WORKLOADS, prompts

from benchmarks import compare, report

DECODE, PREFILL, BATCH, START, MEMORY = WORKLOADS
SLOWNESS = {side.name: number for number, side in enumerate(SIDES, 1)}
log: list[tuple[str, str]] = []


class Fake:
    """Takes its slowness in milliseconds per new token; answers with sums of the prompt."""

    def __init__(self, side: Side, wrong: str = "", wrong_from: int = 0) -> None:
        self.side, self.wrong, self.left = side, side.name == wrong, wrong_from
        log.append(("open", side.name))

    def ask(self, prompts: list[list[int]], num_new: int) -> Answer:
        log.append(("ask", self.side.name))
        self.left -= 1
        tokens = [[sum(prompt) + i for i in range(num_new)] for prompt in prompts]
        if self.wrong and self.left < 0:
            tokens[-1][-1] += 1
        slowness = SLOWNESS[self.side.name]
        return Answer(
            tokens=tokens,
            seconds=num_new * slowness / 1000,
            peak_mb=100.0 * slowness,
            threads=2,
            since_start=float(slowness),
        )

    def close(self) -> None:
        log.append(("close", self.side.name))


def run(workload: Any, **wrong: Any) -> Any:
    log.clear()
    return measure(workload, SIDES, lambda side: Fake(side, **wrong), 3, lambda _: None)


@pytest.mark.parametrize(
    ("workload", "first", "last"),
    [
        (DECODE, 1000.0, 200.0),  # 127 tokens in (128 - 1) ms and five times that
        (PREFILL, 1_024_000.0, 204_800.0),
        (BATCH, 16_000.0, 3_200.0),
        (START, 1.0, 5.0),
        (MEMORY, 100.0, 500.0),
    ],
    ids=lambda value: getattr(value, "name", None),
)
def test_figures(workload: Any, first: float, last: float) -> None:
    result = run(workload)
    assert not result.failure
    assert result.figures[SIDES[0].name] == pytest.approx([first] * 3)
    assert result.figures[SIDES[-1].name] == pytest.approx([last] * 3)


def test_sides_take_turns_and_are_opened_once() -> None:
    run(DECODE)
    names = [side.name for side in SIDES]
    asked = [name for what, name in log if what == "ask"]
    rounds = [asked[i : i + 10 : 2] for i in range(0, 40, 10)]
    assert all(sorted(order) == sorted(names) for order in rounds)
    assert len({order[0] for order in rounds}) == 4
    assert [what for what, _ in log].count("open") == len(SIDES)
    assert [name for what, name in log if what == "close"] == names


def test_fresh_workloads_open_a_process_for_every_sample() -> None:
    run(START)
    assert [what for what, _ in log] == ["open", "ask", "close"] * 4 * len(SIDES)


@pytest.mark.parametrize("wrong_from", [0, 3])
@pytest.mark.parametrize("workload", [DECODE, START])
def test_other_tokens_fail_the_workload(workload: Any, wrong_from: int) -> None:
    result = run(workload, wrong="transformers float32 eager", wrong_from=wrong_from)
    if workload.fresh and wrong_from:
        assert not result.failure  # every process is asked once
        return
    assert "transformers float32 eager and anyorder float32 differ from new token" in result.failure
    assert {name for what, name in log if what == "open"} == {n for w, n in log if w == "close"}


def test_other_tokens_in_other_precision_are_told_not_failed() -> None:
    result = run(BATCH, wrong="transformers bfloat16 sdpa")
    assert not result.failure
    assert result.equal_texts["transformers bfloat16 sdpa"] == [15 / 16] * 4
    assert result.equal_texts["transformers float32 sdpa"] == [1.0] * 4


def test_ratios_take_the_best_of_a_rival() -> None:
    data = report.as_data([run(DECODE), run(MEMORY)], SIDES)
    speed, memory = (entry["ratios"]["transformers float32"] for entry in data["results"])
    assert speed["side"] == memory["side"] == "transformers float32 sdpa"
    assert speed["median"] == pytest.approx(2.0)
    assert memory["median"] == pytest.approx(0.5)
    assert report.ratio([1.0, 2.0, 6.0], [2.0, 2.0, 2.0]) == {
        "median": 1.0,
        "least": 0.5,
        "most": 3.0,
    }
    json.dumps(data)


def test_the_table() -> None:
    failed = run(PREFILL, wrong="transformers float32 sdpa")
    lines = report.as_table([run(DECODE), failed], SIDES).splitlines()
    assert len({line.count("|") for line in lines if line.startswith("|")}) == 1
    assert lines[0].split(" | ")[1:4] == ["anyorder float32", "transformers float32", "ratio"]
    assert "| 1000 [1000-1000] | 500 [500-500] sdpa | **2.00** [2.00-2.00] |" in lines[2]
    assert "failed: transformers float32 sdpa and anyorder" in lines[3] and "**" not in lines[3]


def test_the_line() -> None:
    assert report.as_line(run(MEMORY), SIDES).startswith(
        "memory, MB: anyorder float32 100 [100-100], transformers float32 sdpa 200 [200-200], "
    )
    failed = run(PREFILL, wrong="transformers float32 sdpa")
    assert report.as_line(failed, SIDES).startswith("prefill failed: transformers float32 sdpa and")


def test_prompts_are_new_in_every_call() -> None:
    call = BATCH.calls[0]
    first = [tuple(p) for seed in "abc" for p in prompts(call, seed=seed)]
    assert prompts(call, seed="a") == prompts(call, seed="a")
    assert {len(p) for p in first} == {128} and len({p[0] for p in first}) > 40


def test_a_worker_that_dies_is_reported() -> None:
    side = SIDES[0]
    worker = Worker(side.name, model="no such model", folder="nowhere")
    try:
        with pytest.raises(RuntimeError, match="unknown model 'no such model'"):
            worker.ask([[1]], 1)
    finally:
        worker.close()


@pytest.mark.parametrize("arguments", [["decoding"], ["--rounds", "0"]])
def test_mistakes_are_refused(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        compare.main(arguments)
    assert "error: " in capsys.readouterr().err
