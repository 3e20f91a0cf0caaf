"""The default model: the same tokens as transformers, and 64 mixed requests equal to each alone."""

from __future__ import annotations

import dataclasses
import json
import re
from typing import Any

import pytest
import torch
from tests.tiny import assert_no_page_is_lost

from anyorder.core.request import Completion, Guide, Request
from anyorder.engine.engine import Engine
from anyorder.model import catalog

pytestmark = [pytest.mark.weights, pytest.mark.timeout(900)]
MODEL = "smollm2-135m-instruct"
PROMPTS = [
    "The capital of France is",
    "Once upon a time, in a small village by the sea,",
    "def fibonacci(n):\n",
    "The three most important things about writing are",
    "Water boils at",
    "My favourite season is autumn, because",
]
CHAT = [
    {"role": "system", "content": "You are a laconic assistant."},
    {"role": "user", "content": "Name a primary colour."},
]


@pytest.fixture(scope="module")
def engine() -> Engine:
    return Engine(MODEL, cache_tokens=32768)


@pytest.fixture(scope="module")
def reference() -> tuple[Any, Any]:
    """transformers' own reading of the same GGUF file."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    path = catalog.resolve(MODEL).path
    where = {"pretrained_model_name_or_path": str(path.parent), "gguf_file": path.name}
    model = AutoModelForCausalLM.from_pretrained(**where, dtype=torch.float32)
    return model.eval(), AutoTokenizer.from_pretrained(**where)


def test_greedy_equals_transformers(engine: Engine, reference: tuple[Any, Any]) -> None:
    model, tokenizer = reference
    assert engine.tokenizer is not None
    for prompt in PROMPTS:
        ids = tokenizer(prompt, return_tensors="pt")
        assert engine.tokenizer.encode(prompt) == ids.input_ids[0].tolist()
        expected = model.generate(
            **ids,
            max_new_tokens=32,
            do_sample=False,
            eos_token_id=list(engine.abilities.end_tokens),
        )
        completion = engine.generate(prompt, max_new_tokens=32)
        new = expected[0, ids.input_ids.shape[1] :].tolist()
        assert completion.tokens == new
        assert completion.text == tokenizer.decode(new, skip_special_tokens=True)


def test_chat_prompts_equal_transformers(engine: Engine, reference: tuple[Any, Any]) -> None:
    _, tokenizer = reference
    ids = tokenizer.apply_chat_template(CHAT, add_generation_prompt=True)
    ids = ids["input_ids"] if not isinstance(ids, list) else ids
    assert engine.tokenizer is not None
    assert engine.tokenizer.apply_chat_template(CHAT) == ids
    assert engine.generate(CHAT, max_new_tokens=8).prompt_tokens == ids


def test_scores_equal_transformers(engine: Engine, reference: tuple[Any, Any]) -> None:
    model, tokenizer = reference
    text = "It was the best of times, it was the worst of times, it was the age of wisdom."
    ids = tokenizer(text, return_tensors="pt").input_ids
    with torch.no_grad():
        logits = model(ids).logits[0, :-1].float().log_softmax(-1)
    expected = logits.gather(-1, ids[0, 1:, None])[:, 0]
    score = engine.score(text)
    torch.testing.assert_close(torch.tensor(score.logprobs), expected, atol=1e-4, rtol=0)
    assert score.total == pytest.approx(expected.sum().item(), abs=1e-3)


def test_beams_equal_transformers(engine: Engine, reference: tuple[Any, Any]) -> None:
    model, tokenizer = reference
    for prompt in PROMPTS[:2]:
        ids = tokenizer(prompt, return_tensors="pt")
        expected = model.generate(
            **ids,
            max_new_tokens=12,
            num_beams=4,
            num_return_sequences=4,
            do_sample=False,
            eos_token_id=list(engine.abilities.end_tokens),
            return_dict_in_generate=True,
            output_scores=True,
        )
        request = Request(
            prompt=prompt, method="beam_search", max_new_tokens=12, n=4, options={"width": 4}
        )
        completion = engine.generate(request)
        new = expected.sequences[:, ids.input_ids.shape[1] :].tolist()
        assert [choice.tokens for choice in completion.choices] == new
        assert [choice.score for choice in completion.choices] == pytest.approx(
            expected.sequences_scores.tolist(), abs=1e-4
        )


def mixed_requests() -> list[Request]:
    """64: greedy, sampled, beams, guided, guided by a contrast, scored; long and short."""
    schema = {
        "type": "object",
        "properties": {"name": {"type": "string", "maxLength": 8}, "age": {"type": "integer"}},
        "required": ["name", "age"],
        "additionalProperties": False,
    }
    kinds: list[dict[str, Any]] = [
        {},
        {"temperature": 0.8, "top_p": 0.9, "repetition_penalty": 1.1},
        {"temperature": 1.0, "top_k": 40, "min_p": 0.05, "presence_penalty": 0.3},
        {"method": "beam_search", "options": {"width": 3}, "n": 2},
        {"guide": Guide.json_schema(schema), "max_new_tokens": 32},
        {"guide": Guide.regex(r"[A-Z][a-z]{2,8}( [a-z]{2,8}){2}\."), "temperature": 1.0},
        {"guide": Guide.choices(["yes", "no", "perhaps"])},
        {"guidance_scale": 1.5, "negative_prompt": "Nobody knows."},
        {"max_new_tokens": 0, "prompt_logprobs": True},
        {"prompt": CHAT},
        {"temperature": 1.0, "n": 2, "stop": ["."]},
    ]
    requests = []
    for index in range(64):
        fields = {"prompt": PROMPTS[index % len(PROMPTS)] * (1 + index % 4), "max_new_tokens": 8}
        requests.append(Request(**{**fields, "seed": index, **kinds[index % len(kinds)]}))
    return requests


def assert_equal(completion: Completion, alone: Completion) -> None:
    assert [choice.tokens for choice in completion.choices] == [c.tokens for c in alone.choices]
    assert completion.text == alone.text
    for choice, other in zip(completion.choices, alone.choices, strict=True):
        assert choice.logprobs == pytest.approx(other.logprobs, abs=2e-3)
    if alone.prompt_logprobs is not None:
        assert completion.prompt_logprobs == pytest.approx(alone.prompt_logprobs, abs=2e-3)


def test_64_mixed_requests_equal_each_alone(engine: Engine) -> None:
    requests = mixed_requests()
    together = engine.generate(requests)
    assert_no_page_is_lost(engine)
    for request, completion in zip(requests, together, strict=True):
        assert_equal(completion, engine.generate(dataclasses.replace(request, prefix_cache=False)))
        if request.guide is not None and completion.finish_reason == "stop":
            if request.guide.kind == "json_schema":
                assert set(json.loads(completion.text)) == {"name", "age"}
            elif request.guide.kind == "regex":
                assert re.fullmatch(request.guide.value, completion.text)
            else:
                assert completion.text in json.loads(request.guide.value)


def test_a_small_pool_preempts_and_gives_the_same(engine: Engine) -> None:
    requests = mixed_requests()[:11]
    crowded = Engine(MODEL, cache_tokens=512)
    for completion, alone in zip(
        crowded.generate(requests), engine.generate(requests), strict=True
    ):
        assert_equal(completion, alone)
    assert_no_page_is_lost(crowded)
