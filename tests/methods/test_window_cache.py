"""Blocks filled in windows that see the rest of their block as it was."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tests.methods.test_block_diffusion import MASKS, block_model, dense, generate, request
from tests.tiny import tiny_engine


def stale_by_hand(
    prompt: list[int], num_new: int, *, size: int, window: int, shift: bool, cache: str
) -> tuple[list[int], list[float]]:
    """Greedy, the likeliest place of the window first, by dense passes over everything that was
    run: the line as it was at the window's first pass, what runs again, and what that sees."""
    text: list[int | None] = [None] * num_new
    logprobs = [0.0] * num_new
    while None in text:
        first = len(prompt) + text.index(None)
        start = first // size * size
        end, begin = start + size, start + (first - start) // window * window
        stop = min(begin + window, end)
        begin = max(begin - shift, start)
        tokens: list[int] = []
        places: list[int] = []
        seen: list[set[int]] = []
        rows: dict[int, int] = {}
        for number in range(stop - first):
            open_ = [p for p in range(first, stop) if text[p - len(prompt) :][:1] == [None]]
            if not open_:
                break
            now = [*prompt, *(MASKS if token is None else token for token in text)]
            now = (now + [MASKS] * size)[:end]
            if number == 0 or cache == "none":
                tokens, places, rows = now, list(range(end)), {p: p for p in range(end)}
                seen = [set(range((p // size + 1) * size)) for p in places]
            else:
                again = range(begin, stop if cache == "dual" and number > 1 else end)
                behind = range(stop, end) if again.stop == stop else range(0)
                fresh = {p: len(tokens) + k for k, p in enumerate(again)}
                visible = {rows[p] for p in (*range(begin), *behind)} | set(fresh.values())
                tokens, places = [*tokens, *(now[p] for p in again)], [*places, *again]
                seen, rows = [*seen, *[visible] * len(again)], rows | fresh
            told = dense(
                tokens,
                places,
                torch.tensor([[k in sees for k in range(len(tokens))] for sees in seen]),
            )
            scores = {p: float(told[rows[p - shift]].max()) for p in open_}
            best = max(open_, key=scores.__getitem__)
            text[best - len(prompt)] = int(told[rows[best - shift]].argmax())
            logprobs[best - len(prompt)] = scores[best]
    return [token for token in text if token is not None], logprobs


@pytest.mark.parametrize("shift", [False, True])
@pytest.mark.parametrize("cache", ["none", "prefix", "dual"])
@pytest.mark.parametrize(("num_prompt", "num_new"), [(1, 25), (12, 12), (17, 9)])
def test_windows_see_their_block_as_it_was(
    cache: str, shift: bool, num_prompt: int, num_new: int
) -> None:
    prompt = list(range(3, 3 + num_prompt))
    completion = generate(
        {"window": 5, "cache": cache, "commit": "confidence"},
        prompt=prompt,
        max_new_tokens=num_new,
        model=block_model(block_size=12, token_shift=shift),
    )
    sizes: dict[str, Any] = {"size": 12, "window": 5, "shift": shift}
    tokens, logprobs = stale_by_hand(prompt, num_new, **sizes, cache=cache)
    assert completion.tokens == tokens
    assert completion.logprobs == pytest.approx(logprobs, abs=1e-5)
    for other in {"none", "prefix", "dual"} - {cache}:
        _, others = stale_by_hand(prompt, num_new, **sizes, cache=other)
        assert others != pytest.approx(logprobs, abs=1e-4)
    assert [cache in note for note in completion.report.notes] == [True] * (cache != "none")


@pytest.mark.parametrize(
    ("cache", "lengths"), [("none", [8]), ("prefix", [8, 5, 2]), ("dual", [8, 5, 3, 2])]
)
def test_what_is_cached_does_not_run_again(cache: str, lengths: list[int]) -> None:
    engine = tiny_engine(model=block_model(block_size=8))
    options = {"window": 3, "cache": cache, "commit": "sequential"}
    handle = engine.submit(request(options, prompt=[9] * 16, max_new_tokens=8))
    found = []
    while not handle.done:
        found += [len(job.request.tokens) for run in engine._scheduler.running for job in run.jobs]
        engine.tick()
    assert sorted(set(found), reverse=True) == lengths
    assert handle.result().report.exact == (cache == "none")
