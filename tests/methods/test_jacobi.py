"""Jacobi decoding writes the plain text, with the passes that its definition takes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tests.methods.same_text import (
    SITUATIONS,
    assert_same_guided_text,
    assert_same_text,
    greedy,
    ids,
    next_tokens,
)
from tests.tiny import tiny_engine, tiny_model

from anyorder.core.request import Completion, Request
from anyorder.engine.run import Run


@pytest.mark.parametrize("situation", SITUATIONS)
@pytest.mark.parametrize("size", [1, 6])
@pytest.mark.parametrize("adaptive", [True, False])
def test_writes_the_plain_text(adaptive: bool, size: int, situation: str) -> None:
    options = {"size": size, "adaptive": adaptive}
    for completion in assert_same_text("jacobi", options, situation):
        assert completion.report.exact
        if not adaptive and situation == "together" and len(completion.choices) == 1:
            assert completion.report.num_forward_passes <= len(completion.tokens)


def test_writes_the_plain_text_under_guides(tmp_path: Path) -> None:
    assert_same_guided_text("jacobi", {"size": 8}, tmp_path)


@pytest.mark.parametrize("size", [1, 4, 16])
@pytest.mark.parametrize("length", [1, 30])
def test_takes_the_passes_of_its_definition(size: int, length: int) -> None:
    """A naive twin iterates on the whole text, with a dense pass each time."""
    prompt, num_new = ids(3, length), 40
    text = greedy(prompt, num_new)
    num_final, num_passes, guesses = len(prompt), 0, list[int]()
    while num_final < len(text):
        line = text[:num_final] + guesses
        while len(line) < num_final + size:
            line.append(line[len(line) - min(size, len(line))])
        answers = next_tokens(line)[num_final - 1 :]
        num_passes += 1
        num_right = 0
        while num_right < size and line[num_final + num_right] == answers[num_right]:
            num_right += 1
        num_final += num_right + 1
        guesses = answers[num_right + 1 :]
    options = {"size": size, "adaptive": False}
    request = Request(prompt=prompt, method="jacobi", options=options, max_new_tokens=40)
    completion = tiny_engine(model=tiny_model(ends=False)).generate(request)
    assert completion.tokens == text[len(prompt) :]
    assert completion.report.num_forward_passes == num_passes <= num_new


def test_repetition_is_guessed_at_once() -> None:
    request = Request(
        prompt=[1, 2, 3],
        method="jacobi",
        options={"size": 8, "adaptive": False},
        max_new_tokens=24,
        logit_bias={5: 100.0},
    )
    completion = tiny_engine().generate(request)
    assert completion.tokens == [5] * 24
    # One token, then 8 guesses and one more at a time: 1 + 9 + 9 + 5.
    assert completion.report.num_forward_passes == 4
    assert [entry.drafted for entry in completion.trace] == [
        *[False],
        *[*[True] * 8, False] * 2,
        *[*[True] * 4, False],
    ]


def test_the_history_tells_guesses_and_what_was_taken_back() -> None:
    engine = tiny_engine(model=tiny_model(ends=False))
    request = Request(
        prompt=[1, 2, 3],
        method="jacobi",
        options={"size": 4, "adaptive": False},
        max_new_tokens=12,
        history=True,
    )
    completion = engine.generate(request)
    entries = completion.choices[0].history
    # Before the first pass a full block, of which the passes that follow revise what is open.
    assert [(entry.step, entry.place) for entry in entries[:4]] == [(0, n) for n in range(4)]
    taken_back = [(entry.step, entry.place) for entry in entries if entry.token is None]
    steps = [entry.step for entry in completion.trace]
    assert taken_back
    assert all(steps[place] > step for step, place in taken_back), "what was taken back came later"
    assert all(place < 12 for _, place in taken_back)


def with_passes_that_cost(
    each: float, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any], **controls: Any
) -> Completion:
    """An answer where each token of a pass beyond the first costs this share of a plain pass."""

    def seconds(run: Run, num_tokens: int, *_: object, **__: object) -> float:
        return 1 + each * (num_tokens - 1)

    monkeypatch.setattr(Run, "pass_seconds", seconds)
    request = Request(
        prompt=[1, 2, 3], method="jacobi", options=options, max_new_tokens=60, **controls
    )
    return tiny_engine(model=tiny_model(ends=False)).generate(request)


def test_a_block_that_does_not_pay_is_not_run(monkeypatch: pytest.MonkeyPatch) -> None:
    dear = with_passes_that_cost(0.5, monkeypatch, {})
    assert dear.report.num_forward_passes == 60
    assert "speculation did not pay" in dear.report.notes[0]
    always = with_passes_that_cost(0.5, monkeypatch, {"adaptive": False})
    assert always.tokens == dear.tokens and not always.report.notes


def test_a_block_that_pays_is_run_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    found = with_passes_that_cost(0.02, monkeypatch, {"size": 8}, logit_bias={5: 100.0})
    assert found.tokens == [5] * 60
    assert found.report.num_forward_passes < 12 and not found.report.notes
