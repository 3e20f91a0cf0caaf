"""Decoding equals transformers' `generate` on a tiny random LLaMA."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from anyorder.core.method import Abilities
from anyorder.core.request import Request
from anyorder.engine.engine import Engine
from anyorder.model.checkpoint import open_folder
from anyorder.model.loaded import LoadedModel
from anyorder.model.loading import load_network

VOCABULARY = 97
END = 2
NEW = 16


@pytest.fixture(scope="module")
def reference() -> Any:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=48,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        initializer_range=0.25,
        eos_token_id=END,
        bos_token_id=1,
        pad_token_id=0,
    )
    return LlamaForCausalLM(config).eval()


@pytest.fixture(scope="module")
def engine(reference: Any, tmp_path_factory: pytest.TempPathFactory) -> Engine:
    folder: Path = tmp_path_factory.mktemp("llama")
    reference.save_pretrained(folder)
    config, tensors = open_folder(folder)
    network = load_network(config, tensors, dtype=torch.float32)
    abilities = Abilities(
        name="tiny",
        vocabulary_size=VOCABULARY,
        context_length=256,
        end_tokens=config.end_tokens,
    )
    assert abilities.end_tokens == {END}
    return Engine(LoadedModel(network=network, abilities=abilities), cache_tokens=16384)


def prompts(num: int, seed: int = 0) -> list[list[int]]:
    rng = random.Random(seed)
    return [[rng.randrange(3, VOCABULARY) for _ in range(rng.randrange(1, 30))] for _ in range(num)]


def generate(reference: Any, prompt: list[int], **options: Any) -> Any:
    return reference.generate(
        torch.tensor([prompt]),
        attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
        max_new_tokens=NEW,
        return_dict_in_generate=True,
        output_scores=True,
        **{"do_sample": False, **options},
    )


def trimmed(sequence: torch.Tensor, prompt: list[int]) -> list[int]:
    """New tokens up to and with the end token."""
    tokens: list[int] = sequence[len(prompt) :].tolist()
    return tokens[: tokens.index(END) + 1] if END in tokens else tokens


def test_greedy_is_equal_token_for_token(reference: Any, engine: Engine) -> None:
    given = prompts(40)
    completions = engine.generate([Request(prompt=p, max_new_tokens=NEW) for p in given])
    for prompt, completion in zip(given, completions, strict=True):
        expected = generate(reference, prompt)
        assert completion.tokens == trimmed(expected.sequences[0], prompt)
        for step, (token, logprob) in enumerate(
            zip(completion.tokens, completion.logprobs, strict=True)
        ):
            want = expected.scores[step][0].log_softmax(-1)[token].item()
            assert logprob == pytest.approx(want, abs=1e-4)


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        ({"repetition_penalty": 1.4}, {"repetition_penalty": 1.4}),
        ({"no_repeat_ngram": 2}, {"no_repeat_ngram_size": 2}),
        ({"min_new_tokens": 9}, {"min_new_tokens": 9}),
        (
            {"logit_bias": {5: 3.0, 8: -100.0}},
            {"sequence_bias": [[[5], 3.0], [[8], -100.0]]},
        ),
        (
            {"repetition_penalty": 1.3, "no_repeat_ngram": 3, "min_new_tokens": 4},
            {"repetition_penalty": 1.3, "no_repeat_ngram_size": 3, "min_new_tokens": 4},
        ),
    ],
)
@pytest.mark.parametrize("method", ["autoregressive", "beam_search"])
def test_controls_are_equal(
    reference: Any, engine: Engine, ours: Any, theirs: Any, method: str
) -> None:
    beams = {"num_beams": 4} if method == "beam_search" else {}
    for prompt in prompts(6, seed=1):
        expected = generate(reference, prompt, **theirs, **beams)
        request = Request(prompt=prompt, max_new_tokens=NEW, method=method, **ours)
        assert engine.generate(request).tokens == trimmed(expected.sequences[0], prompt)


@pytest.mark.parametrize("early_stopping", [False, True, "never"])
@pytest.mark.parametrize("length_penalty", [1.0, 0.0, 2.0, -1.0])
@pytest.mark.parametrize("width", [1, 2, 5])
def test_beams_are_equal_beam_for_beam(
    reference: Any, engine: Engine, early_stopping: Any, length_penalty: float, width: int
) -> None:
    if width == 1:  # transformers decodes greedily then and scores nothing
        prompt = prompts(1)[0]
        request = Request(
            prompt=prompt, method="beam_search", max_new_tokens=NEW, options={"width": 1}
        )
        greedy = engine.generate(Request(prompt=prompt, max_new_tokens=NEW))
        assert engine.generate(request).tokens == greedy.tokens
        return
    names = {False: "no", True: "yes", "never": "never"}
    options = {
        "width": width,
        "length_penalty": length_penalty,
        "early_stopping": names[early_stopping],
    }
    given = prompts(8, seed=2)
    completions = engine.generate(
        [
            Request(
                prompt=p,
                method="beam_search",
                max_new_tokens=NEW,
                n=width,
                options=options,
                logit_bias={END: 4.0},  # so that texts of many lengths compete
            )
            for p in given
        ]
    )
    for prompt, completion in zip(given, completions, strict=True):
        expected = generate(
            reference,
            prompt,
            num_beams=width,
            num_return_sequences=width,
            early_stopping=early_stopping,
            length_penalty=length_penalty,
            sequence_bias=[[[END], 4.0]],
        )
        assert len(completion.choices) == width
        for choice, sequence, score in zip(
            completion.choices, expected.sequences, expected.sequences_scores, strict=True
        ):
            assert choice.tokens == trimmed(sequence, prompt)
            assert choice.score == pytest.approx(score.item(), abs=1e-4)


@pytest.mark.parametrize("method", ["autoregressive", "beam_search"])
@pytest.mark.parametrize("negative", [None, [7, 8, 9, 10]])
def test_guidance_is_equal(
    reference: Any, engine: Engine, method: str, negative: list[int] | None
) -> None:
    theirs: dict[str, Any] = {"guidance_scale": 1.8}
    if negative is not None:
        theirs["negative_prompt_ids"] = torch.tensor([negative])
        theirs["negative_prompt_attention_mask"] = torch.ones(1, len(negative), dtype=torch.long)
    if method == "beam_search":
        # transformers' own beams do not reorder the unconditional cache, so its beams are compared
        # without one: every step from scratch.
        theirs |= {"num_beams": 1}
    for prompt in prompts(6, seed=3):
        expected = generate(reference, prompt, **theirs)
        request = Request(
            prompt=prompt,
            max_new_tokens=NEW,
            method=method,
            guidance_scale=1.8,
            negative_prompt=negative,
            options={"width": 1} if method == "beam_search" else {},
        )
        assert engine.generate(request).tokens == trimmed(expected.sequences[0], prompt)


def test_diverse_groups_are_those_of_the_definition(reference: Any, engine: Engine) -> None:
    """Against a cache-free implementation of Vijayakumar et al. (2016), one beam a group."""
    num_groups, penalty = 3, 1.5
    for prompt in prompts(5, seed=4):
        texts: list[list[int]] = [[] for _ in range(num_groups)]
        scores = [0.0] * num_groups
        ended = [False] * num_groups
        for _ in range(NEW):
            chosen: list[int] = []
            for group in range(num_groups):
                if ended[group]:
                    continue
                with torch.no_grad():
                    logits = reference(torch.tensor([prompt + texts[group]])).logits[0, -1]
                gains = logits.log_softmax(-1)
                for token in chosen:
                    gains[token] -= penalty
                token = int(gains.argmax())
                texts[group].append(token)
                scores[group] += float(gains[token])
                ended[group] = token == END
                if not ended[group]:
                    chosen.append(token)
        request = Request(
            prompt=prompt,
            method="beam_search",
            max_new_tokens=NEW,
            n=num_groups,
            options={
                "width": num_groups,
                "groups": num_groups,
                "diversity_penalty": penalty,
                "early_stopping": "yes",
                "length_penalty": 0.0,
            },
        )
        found = engine.generate(request).choices
        by_text = {tuple(text): score for text, score in zip(texts, scores, strict=True)}
        assert {tuple(choice.tokens) for choice in found} == set(by_text)
        for choice in found:
            assert choice.score == pytest.approx(by_text[tuple(choice.tokens)], abs=1e-3)
