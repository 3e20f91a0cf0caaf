"""For methods that promise the text of `autoregressive`: the promise, under all controls."""

from __future__ import annotations

import dataclasses
import itertools
import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.cli.checkpoint import save_checkpoint
from tests.tiny import VOCABULARY, assert_no_page_is_lost, tiny_engine, tiny_model

from anyorder.core.batch import dense_batch
from anyorder.core.request import Completion, Guide, Request
from anyorder.engine.engine import Engine
from anyorder.model.loaded import LoadedModel, load

CONTROLS: list[dict[str, Any]] = [
    {"logprobs": 2},
    {"temperature": 1.0, "seed": 3, "logprobs": 2},
    {"temperature": 0.8, "top_p": 0.9, "repetition_penalty": 1.3, "seed": 5},
    {"temperature": 0.7, "top_k": 9, "presence_penalty": 0.5, "frequency_penalty": 0.2},
    {"no_repeat_ngram": 2, "min_new_tokens": 12},
    {"temperature": 0.7, "guidance_scale": 1.7, "negative_prompt": [5, 6, 7]},
    {"temperature": 1.0, "n": 2, "seed": 11},
]
SITUATIONS: dict[str, dict[str, Any]] = {
    "together": {},
    "in chunks": {"max_batch_tokens": 7},
    "preempted": {},
    "in a crowded pool": {"cache_tokens": 512},
}


def ids(seed: int, length: int) -> list[int]:
    rng = random.Random(seed)
    return [rng.randrange(1, VOCABULARY) for _ in range(length)]


def requests(method: str, options: Mapping[str, object]) -> list[Request]:
    """All controls, after a short and a longer prompt."""
    return [
        Request(prompt=ids(7, length), method=method, options=options, max_new_tokens=17, **more)
        for more in CONTROLS
        for length in (1, 37)
    ]


def assert_same_text(
    method: str, options: Mapping[str, object], situation: str, model: LoadedModel | None = None
) -> list[Completion]:
    """Beside plain requests and a search, it writes what each plain request writes alone."""
    model = model or tiny_model()
    plain = requests("autoregressive", {})
    want = [tiny_engine(model=model).generate(request) for request in plain]
    search = [Request(prompt=ids(2, 9), method="beam_search", max_new_tokens=9)]
    everyone = [*requests(method, options), *plain, *search]
    engine = tiny_engine(model=model, **SITUATIONS[situation])
    handles = [engine.submit(request) for request in everyone]
    for tick in itertools.count():
        if situation == "preempted" and tick % 3 == 2:
            for run in list(engine._scheduler.running):
                engine._scheduler._preempt(run)
        if not engine.tick():
            break
    got = [handle.result() for handle in handles]
    for completion, expected in zip(got, [*want, *want], strict=False):
        for choice, other in zip(completion.choices, expected.choices, strict=True):
            assert choice.tokens == other.tokens
            assert choice.finish_reason == other.finish_reason
            assert choice.logprobs == pytest.approx(other.logprobs, abs=1e-6)
            for entry, like in zip(choice.trace, other.trace, strict=True):
                assert [i for i, _ in entry.alternatives] == [i for i, _ in like.alternatives]
    assert_no_page_is_lost(engine)
    return got[: len(plain)]


def assert_same_guided_text(method: str, options: Mapping[str, object], folder: Path) -> None:
    """Without end tokens nothing at all can follow a complete text: guesses beyond it have no
    answer, which must not fail the request."""
    model = load(save_checkpoint(folder / "checkpoint"))
    endless = dataclasses.replace(model.abilities, end_tokens=frozenset())
    engine = Engine(dataclasses.replace(model, abilities=endless), cache_tokens=4096)
    guides = [
        Guide.choices(["yes", "no", "perhaps not"]),
        Guide.choices(["aaaaaa"]),
        Guide.regex("(ab|ba){3,6}"),
        Guide.json_schema({"type": "array", "items": {"type": "integer"}, "maxItems": 3}),
    ]
    for guide, temperature in itertools.product(guides, (0.0, 1.0)):
        base: dict[str, Any] = {
            "prompt": "The capital " + 24 * "a",
            "guide": guide,
            "temperature": temperature,
            "max_new_tokens": 24,
        }
        want = engine.generate(Request(**base))
        got = engine.generate(Request(**base, method=method, options=options))
        assert got.tokens == want.tokens and got.finish_reason == want.finish_reason
    assert_no_page_is_lost(engine)


def next_tokens(tokens: list[int], model: LoadedModel | None = None) -> list[int]:
    """Greedy answers at every place of a text, by one dense pass."""
    network: Any = (model or tiny_model(ends=False)).network
    logits: torch.Tensor = network.logits(network.hidden(dense_batch(torch.tensor([tokens]))))
    answers: list[int] = logits.argmax(-1).tolist()
    return answers


def greedy(prompt: list[int], length: int, model: LoadedModel | None = None) -> list[int]:
    """Prompt and new tokens, one dense pass a token."""
    text = list(prompt)
    while len(text) < len(prompt) + length:
        text.append(next_tokens(text, model)[-1])
    return text
