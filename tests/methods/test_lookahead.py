"""Lookahead decoding writes the plain text, with the passes that its definition takes."""

from __future__ import annotations

import dataclasses
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

from anyorder.core.request import Request
from anyorder.engine.run import Run

SMALL = {"window": 3, "ngram": 3, "guesses": 2}
ALWAYS = {"adaptive": False}


@pytest.mark.parametrize("situation", SITUATIONS)
@pytest.mark.parametrize("options", [{}, SMALL, ALWAYS, SMALL | ALWAYS], ids=str)
def test_writes_the_plain_text(options: dict[str, Any], situation: str) -> None:
    for completion in assert_same_text("lookahead", options, situation):
        assert completion.report.exact
        if (
            not options.get("adaptive", True)
            and situation == "together"
            and len(completion.choices) == 1
        ):
            assert completion.report.num_forward_passes <= len(completion.tokens)


def test_writes_the_plain_text_under_guides(tmp_path: Path) -> None:
    assert_same_guided_text("lookahead", {}, tmp_path)


def naive_passes(prompt: list[int], text: list[int], window: int, ngram: int, guesses: int) -> int:
    """Every guess is answered by a dense pass over its own path, in no tree."""
    number = window + ngram - 2
    tail = prompt[-number:]
    columns = [[tail[place % len(tail)]] for place in range(number)]
    pool: list[tuple[int, ...]] = []
    num_final, num_passes = len(prompt) + 1, 1
    while num_final < len(text):
        room = len(text) - num_final - 1
        columns = [c for place, c in enumerate(columns) if place + len(c) <= room]
        chain = [column[0] for column in columns]
        paths = [chain[:place] + column for place, column in enumerate(columns)]
        answers = [next_tokens(text[:num_final] + path)[-1] for path in paths]
        pooled = [gram[1:] for gram in pool if gram[0] == text[num_final - 1]][-guesses:]
        right = 0
        for path in [*paths, *(list(gram)[:room] for gram in pooled)]:
            following = text[num_final:]
            same = [a == b for a, b in zip(path, following, strict=False)]
            right = max(right, [*same, False].index(False))
        num_final += right + 1
        num_passes += 1
        grown = [[*c, a] for c, a in zip(columns, answers, strict=True)]
        if grown and len(grown[0]) < ngram:
            columns = grown[1:]
            continue
        for gram in map(tuple, grown):
            pool = [other for other in pool if other != gram] + [gram]
        columns = [column[1:] for column in grown]
    return num_passes


@pytest.mark.parametrize(
    "options",
    [SMALL, {"window": 5, "ngram": 4, "guesses": 1}, {"window": 1, "ngram": 2, "guesses": 9}],
    ids=str,
)
@pytest.mark.parametrize("length", [1, 20])
def test_takes_the_passes_of_its_definition(options: dict[str, int], length: int) -> None:
    prompt = ids(5, length)
    text = greedy(prompt, 40)
    request = Request(
        prompt=prompt,
        method="lookahead",
        options={**options, **ALWAYS},
        max_new_tokens=40,
    )
    completion = tiny_engine(model=tiny_model(ends=False)).generate(request)
    assert completion.tokens == text[length:]
    assert completion.report.num_forward_passes == naive_passes(prompt, text, **options) < 40


class _Counting:
    """A network that remembers how many tokens its passes had, and up to which position."""

    def __init__(self, network: Any) -> None:
        self._network = network
        self.sizes: list[int] = []
        self.last = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._network, name)

    def hidden(self, batch: Any, pool: Any) -> Any:
        self.sizes.append(len(batch.tokens_N))
        self.last = max(self.last, int(batch.positions_N.max()))
        return self._network.hidden(batch, pool)


def test_runs_no_more_tokens_than_it_says() -> None:
    """Admission lets in what fits the pool by this count; growing columns may be the most."""
    model = tiny_model(ends=False)
    network: Any = _Counting(model.network)
    engine = tiny_engine(model=dataclasses.replace(model, network=network))
    options = {"window": 1, "ngram": 9, "guesses": 3} | ALWAYS
    request = Request(
        prompt=list(range(1, 21)), method="lookahead", options=options, max_new_tokens=60
    )
    engine.generate(request)
    # Five columns of four tokens, before there are n-grams; then up to three of those as well.
    assert max(network.sizes[1:9]) == 1 + 5 * 4
    most = engine._admission.prepare(request).method.num_scratch_tokens
    assert most == 5 * 4 + 3 * 8 and max(network.sizes) <= 1 + most


@pytest.mark.parametrize("options", [{"guesses": 1}, {"window": 1, "ngram": 9}], ids=str)
def test_nothing_is_guessed_beyond_the_length_limit(options: dict[str, int]) -> None:
    """The text may end where the model's context does."""
    model = tiny_model(ends=False)
    network: Any = _Counting(model.network)
    engine = tiny_engine(model=dataclasses.replace(model, network=network))
    request = Request(
        prompt=[1, 2, 3],
        method="lookahead",
        options={**options, **ALWAYS},
        max_new_tokens=40,
        logit_bias={5: 100.0, 6: 99.5},
        no_repeat_ngram=9,
    )
    engine.generate(request)
    # The last new token is never run, and what is guessed ends before it.
    assert network.last == 3 + 40 - 2


def test_repetition_is_found_in_the_pool() -> None:
    request = Request(
        prompt=[1, 2, 3],
        method="lookahead",
        options={"window": 2, "ngram": 4, "guesses": 1} | ALWAYS,
        max_new_tokens=30,
        logit_bias={5: 100.0},
    )
    completion = tiny_engine().generate(request)
    assert completion.tokens == [5] * 30
    # Once columns of fives are pooled: three more and one after them, or the window's own chain.
    assert completion.report.num_forward_passes < 15
    assert sum(entry.drafted for entry in completion.trace) > 15


@pytest.mark.parametrize(("each", "most"), [(0.2, 60), (0.01, 30)])
def test_guesses_only_while_it_pays(
    each: float, most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where a tree costs several plain passes, nothing is guessed, whatever the text."""

    def seconds(run: Run, num_tokens: int, *_: object, **__: object) -> float:
        return 1 + each * (num_tokens - 1)

    monkeypatch.setattr(Run, "pass_seconds", seconds)
    request = Request(
        prompt=[1, 2, 3], method="lookahead", max_new_tokens=60, logit_bias={5: 100.0}
    )
    completion = tiny_engine().generate(request)
    assert completion.tokens == [5] * 60
    if each < 0.1:
        assert completion.report.num_forward_passes < most and not completion.report.notes
    else:
        assert completion.report.num_forward_passes == most
        assert "speculation did not pay" in completion.report.notes[0]
