"""Every example runs as its reader would run it and prints what it promises."""

from __future__ import annotations

import functools
import re
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
PROMISES = {
    "beam_search": ["greedy: "],
    "generate": [" Paris", "8 passes", "pass 1: ' Paris'"],
    "guided_json": ["'city': ", "'country': "],
    "mixed_batch": ["autoregressive: ", "beam_search: "],
    "score": ["Paris.", "Potato.", "nats"],
    "stream": ["tokens cached]"],
}


def test_every_example_is_run() -> None:
    assert sorted(path.stem for path in EXAMPLES.glob("*.py")) == sorted(PROMISES)


@pytest.mark.parametrize("name", PROMISES)
def test_examples_are_short(name: str) -> None:
    assert len((EXAMPLES / f"{name}.py").read_text("utf-8").splitlines()) < 30


@functools.cache
def output(name: str) -> str:
    """What an example prints; it is run once."""
    command = [sys.executable, str(EXAMPLES / f"{name}.py")]
    answer = subprocess.run(command, capture_output=True, text=True)
    assert answer.returncode == 0, answer.stderr
    return answer.stdout


@pytest.mark.weights
@pytest.mark.parametrize("name", PROMISES)
def test_example(name: str) -> None:
    for words in PROMISES[name]:
        assert words in output(name)


@pytest.mark.weights
def test_the_likelier_text_scores_higher() -> None:
    paris, potato = (float(line.split()[0]) for line in output("score").splitlines())
    assert paris > potato


@pytest.mark.weights
def test_the_second_turn_finds_the_first_in_the_cache() -> None:
    first, second = re.findall(r"^\[(\d+) of", output("stream"), re.MULTILINE)
    assert first == "0" and int(second) >= 16
