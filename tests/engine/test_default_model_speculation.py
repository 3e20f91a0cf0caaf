"""The default model, greedy in float32: every way of speculating writes plain decoding's text.

A small form of `python -m benchmarks.identity`, which does it on a hundred prompts.
"""

from __future__ import annotations

from typing import Any

import pytest
from benchmarks.identity import SIDES, compare, open_engines
from benchmarks.texts import COPY, hundred

from anyorder.core.request import Completion, Request
from anyorder.engine.engine import Engine
from anyorder.model.loaded import load

pytestmark = [pytest.mark.weights, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def engines() -> dict[str, Engine]:
    return open_engines(load("smollm2-135m-instruct", dtype="float32"), draft_layers=4)


def test_greedy_texts_are_those_of_plain_decoding(engines: dict[str, Engine]) -> None:
    for line in compare(engines, hundred()[::12], 12, list(SIDES), 9):
        assert line.same == line.texts == 9, line


def test_copying_takes_a_third_of_the_passes(
    engines: dict[str, Engine],
) -> None:
    prompt: Any = COPY[0]
    answers: list[Completion] = engines["draft_model"].generate(
        [
            Request(prompt=prompt, max_new_tokens=64),
            Request(
                prompt=prompt,
                max_new_tokens=64,
                method="speculative",
                options={"adaptive": False, "length": 8},
            ),
        ]
    )
    plain, speculated = answers
    assert speculated.tokens == plain.tokens
    assert speculated.report.tokens_per_pass >= 3
    assert speculated.report.exact
