"""/v1/completions through OpenAI's client; texts are compared with the engine's own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import openai
import pytest
import torch
from tests.server.conftest import Live

from anyorder.core.request import Request

PROMPT = "The capital of France"


def test_text_is_the_engines(live: Live, client: openai.OpenAI) -> None:
    answer = client.completions.create(model="tiny", prompt=PROMPT, max_tokens=12, temperature=0)
    own = live.service.engine.generate(PROMPT, max_new_tokens=12)
    assert answer.choices[0].text == own.text
    assert answer.choices[0].finish_reason == own.finish_reason
    assert answer.usage is not None and answer.usage.completion_tokens == len(own.tokens)
    assert answer.usage.prompt_tokens == own.report.num_prompt_tokens
    extra: dict[str, Any] = answer.usage.model_extra or {}
    assert extra["forward_passes"] == own.report.num_forward_passes
    assert extra["tokens_per_pass"] == pytest.approx(own.report.tokens_per_pass)
    assert answer.object == "text_completion" and answer.model == "tiny"


def test_stream_adds_up(client: openai.OpenAI) -> None:
    call: dict[str, Any] = {"model": "tiny", "prompt": PROMPT, "max_tokens": 20, "seed": 3, "n": 2}
    whole = client.completions.create(**call)
    texts, ends, usage = ["", ""], [None, None], None
    for chunk in client.completions.create(
        **call, stream=True, stream_options={"include_usage": True}
    ):
        for choice in chunk.choices:
            texts[choice.index] += choice.text
            ends[choice.index] = choice.finish_reason or ends[choice.index]
        usage = chunk.usage or usage
        assert chunk.usage is None or not chunk.choices
    assert texts == [choice.text for choice in whole.choices]
    assert ends == [choice.finish_reason for choice in whole.choices]
    assert usage is not None and whole.usage is not None
    assert usage.completion_tokens == whole.usage.completion_tokens


def test_prompts_of_every_form(live: Live, client: openai.OpenAI) -> None:
    assert live.service.engine.tokenizer is not None
    ids = [live.service.engine.tokenizer.encode(text) for text in (PROMPT, "She said")]
    texts = []
    for prompt in (PROMPT, [PROMPT, "She said"], ids[0], ids):
        answer = client.completions.create(model="tiny", prompt=prompt, max_tokens=6, temperature=0)
        assert [choice.index for choice in answer.choices] == list(range(len(answer.choices)))
        texts.append([choice.text for choice in answer.choices])
    assert texts[0] == texts[2] == texts[1][:1] and texts[1] == texts[3]


def assert_likeliest(live: Live, folder: Path, text: str, told: Any) -> None:
    """The two likeliest tokens at each place, by the network run by itself."""
    from transformers import AutoModelForCausalLM

    tokenizer = live.service.engine.tokenizer
    assert tokenizer is not None
    ids = torch.tensor([tokenizer.encode(text)])
    with torch.no_grad():
        logits = AutoModelForCausalLM.from_pretrained(folder).eval()(ids).logits[0]
    best = logits.log_softmax(-1)[:-1].topk(2)
    assert told[0] is None and len(told) == ids.shape[1]
    for named, logprobs, tokens in zip(told[1:], best.values, best.indices, strict=True):
        expected = {
            live.service.texts.token_text(int(token)): float(logprob)
            for token, logprob in zip(tokens, logprobs, strict=True)
        }
        assert named == pytest.approx(expected, abs=1e-4)


def test_echo_and_logprobs_score_a_text(live: Live, client: openai.OpenAI, folder: Path) -> None:
    text = "The capital of France is Paris."
    answer = client.completions.create(
        model="tiny", prompt=text, max_tokens=0, echo=True, logprobs=2
    )
    choice = answer.choices[0]
    score = live.service.engine.score(text)
    assert choice.text == text and choice.logprobs is not None
    assert choice.logprobs.token_logprobs is not None and choice.logprobs.tokens is not None
    assert choice.logprobs.token_logprobs[0] is None
    assert choice.logprobs.token_logprobs[1:] == pytest.approx(score.logprobs, abs=1e-5)
    assert "".join(choice.logprobs.tokens) == text
    assert_likeliest(live, folder, text, choice.logprobs.top_logprobs)
    offsets = choice.logprobs.text_offset
    assert offsets is not None
    assert all(text[a:].startswith(t) for a, t in zip(offsets, choice.logprobs.tokens, strict=True))


@pytest.mark.parametrize("stream", [False, True])
def test_logprobs_of_new_tokens(live: Live, client: openai.OpenAI, stream: bool) -> None:
    call: dict[str, Any] = {"model": "tiny", "prompt": PROMPT, "max_tokens": 5, "temperature": 0}
    call |= {"logprobs": 3, "echo": True}
    request = Request(prompt=PROMPT, max_new_tokens=5, logprobs=3)
    own = live.service.engine.generate(request)
    num = own.report.num_prompt_tokens
    if stream:
        chunks = [c.choices[0] for c in client.completions.create(**call, stream=True)]
    else:
        chunks = [client.completions.create(**call).choices[0]]
    scores = [p for c in chunks if c.logprobs for p in c.logprobs.token_logprobs or []]
    top = [p for c in chunks if c.logprobs for p in c.logprobs.top_logprobs or []]
    offsets = [p for c in chunks if c.logprobs for p in c.logprobs.text_offset or []]
    assert scores[num:] == pytest.approx(own.logprobs, abs=1e-5)
    assert all(
        max(named.values()) == pytest.approx(score, abs=1e-4) and len(named) == 3
        for named, score in zip(top[num:], scores[num:], strict=True)
    )
    assert offsets[num] == len(PROMPT) and offsets == sorted(offsets)
    assert "".join(choice.text for choice in chunks) == PROMPT + own.text


def test_best_of_takes_the_likeliest(client: openai.OpenAI) -> None:
    call: dict[str, Any] = {"model": "tiny", "prompt": PROMPT, "max_tokens": 6, "seed": 1}
    all_four = client.completions.create(**call, n=4, logprobs=0)

    def mean(choice: Any) -> float:
        scores = choice.logprobs.token_logprobs
        return float(sum(scores)) / len(scores)

    best = client.completions.create(**call, best_of=4, n=1)
    assert best.choices[0].text == max(all_four.choices, key=mean).text
    assert best.usage is not None and all_four.usage is not None
    assert best.usage.completion_tokens == all_four.usage.completion_tokens


def test_controls_reach_the_engine(live: Live, client: openai.OpenAI) -> None:
    body: dict[str, Any] = {"model": "tiny", "prompt": PROMPT, "max_tokens": 12, "seed": 5}
    sent = {"top_p": 0.9, "frequency_penalty": 1.0, "presence_penalty": 0.5}
    more = {"top_k": 20, "min_p": 0.01, "repetition_penalty": 1.2, "no_repeat_ngram": 3}
    answer = client.completions.create(
        **body, **sent, temperature=0.8, logit_bias={"70": 4}, stop=["zz"], extra_body=more
    )
    own = live.service.engine.generate(
        Request(
            prompt=PROMPT,
            max_new_tokens=12,
            seed=5,
            temperature=0.8,
            logit_bias={70: 4},
            stop=["zz"],
            **sent,  # type: ignore[arg-type]
            **more,  # type: ignore[arg-type]
        )
    )
    assert answer.choices[0].text == own.text


def test_methods_share_the_endpoint(live: Live, client: openai.OpenAI) -> None:
    plain = client.completions.create(model="tiny", prompt=PROMPT, max_tokens=16, temperature=0)
    quick = client.completions.create(
        model="tiny",
        prompt=PROMPT,
        max_tokens=16,
        temperature=0,
        extra_body={"method": "jacobi", "method_options": {"size": 8}},
    )
    assert quick.choices[0].text == plain.choices[0].text
    assert (quick.model_extra or {})["method"] == "jacobi"
    beams = client.completions.create(
        model="tiny",
        prompt=PROMPT,
        max_tokens=6,
        n=2,
        extra_body={"method": "beam_search", "method_options": {"width": 3}},
    )
    own = live.service.engine.generate(
        PROMPT, method="beam_search", options={"width": 3}, max_new_tokens=6, n=2
    )
    assert [c.text for c in beams.choices] == [c.text for c in own.choices]
