"""Same request, same answer to the last bit, whatever else runs: on a CPU, in every type."""

from __future__ import annotations

import dataclasses
import random

import pytest
import torch
from tests.tiny import VOCABULARY, assert_no_page_is_lost, tiny_config

from anyorder.core.method import Abilities
from anyorder.core.request import Completion, Request
from anyorder.engine.engine import Engine
from anyorder.model.backends import native
from anyorder.model.backends.quantized import Bits
from anyorder.model.config import LayerConfig, Rope
from anyorder.model.loaded import LoadedModel
from anyorder.model.transformer import Transformer

pytestmark = pytest.mark.skipif(
    native.level() < native.QUANTIZED_LEVEL,
    reason="without the kernels torch computes, whose rounding depends on the number of rows",
)
EXACT = ("autoregressive", "speculative", "jacobi", "lookahead")
"""Methods that must agree with each other."""
ALWAYS = {name: {"adaptive": False} for name in ("jacobi", "lookahead")}
"""They guess whether it pays or not."""
OTHERS = ("beam_search", "block_diffusion", "gibbs", "masked_diffusion", "mask_predict")
KINDS: dict[str, tuple[torch.dtype, Bits | None]] = {
    "float32": (torch.float32, None),
    "bfloat16": (torch.bfloat16, None),
    "int8": (torch.float32, 8),
    "int4": (torch.float32, 4),
    "int4 in bfloat16": (torch.bfloat16, 4),
}


def model(kind: str) -> LoadedModel:
    dtype, bits = KINDS[kind]
    layer = LayerConfig(rope=Rope(width=32), attention_scale=32**-0.5)
    config = tiny_config(width=64, head_width=32, mlp_width=128, layers=(layer, layer))
    network = Transformer.random(config, seed=0, spread=0.1, dtype=dtype)
    if bits is not None:
        network.quantize(bits)
    abilities = Abilities(
        name="tiny",
        vocabulary_size=VOCABULARY,
        context_length=256,
        num_layers=2,
        mask_token=VOCABULARY - 1,
        block_size=5,
        attention=frozenset({"causal", "bidirectional"}),
    )
    return LoadedModel(network=network, abilities=abilities)


def draw_requests(count: int, rng: random.Random) -> list[Request]:
    """Prompts of several lengths, many with the same beginning, over every method."""
    beginning = [rng.randrange(1, VOCABULARY) for _ in range(90)]
    found = []
    for index in range(count):
        own = [rng.randrange(1, VOCABULARY) for _ in range(rng.randrange(1, 20))]
        # Copies of itself, so that drafts are found.
        prompt = beginning[: rng.choice((0, 7, 40, 90))] + own + own[: rng.randrange(4)]
        found.append(
            Request(
                prompt=prompt,
                method=(method := (EXACT + OTHERS)[index % len(EXACT + OTHERS)]),
                options=ALWAYS.get(method, {}),
                max_new_tokens=rng.randrange(1, 16),
                temperature=rng.choice((0.0, 0.0, 0.9)),
                seed=index,
                logprobs=2,
            )
        )
    return [dataclasses.replace(r, temperature=0.0) if searches(r) else r for r in found]


def searches(request: Request) -> bool:
    return request.method == "beam_search"


def answers(completion: Completion) -> list[tuple[object, ...]]:
    return [(choice.tokens, choice.logprobs) for choice in completion.choices]


def check(kind: str, count: int) -> None:
    loaded, rng = model(kind), random.Random(kind)
    requests = draw_requests(count, rng)
    by_itself = Engine(loaded, cache_tokens=512)
    alone = [
        answers(by_itself.generate(dataclasses.replace(request, prefix_cache=False)))
        for request in requests
    ]
    preempted = 0
    for _ in range(2):
        order = list(range(count))
        rng.shuffle(order)
        while order:
            size = 16 if len(order) == count else rng.choice((1, 2, 5, 16, 40))
            some, order = order[:size], order[size:]
            # Pages for a few requests at a time, and prompts in chunks.
            engine = Engine(loaded, cache_tokens=288, max_batch_tokens=rng.choice((9, 64, 512)))
            completions = engine.generate([requests[index] for index in some])
            for index, completion in zip(some, completions, strict=True):
                assert answers(completion) == alone[index], (kind, requests[index])
                preempted += completion.report.num_preemptions
            assert_no_page_is_lost(engine)
    assert preempted > 0
    # Speculated or not: the same tokens.
    for request, own in zip(requests, alone, strict=True):
        if request.method in EXACT:
            plain = dataclasses.replace(
                request, method="autoregressive", options={}, prefix_cache=False
            )
            ((tokens, _),) = answers(by_itself.generate(plain))
            assert tokens == own[0][0], (kind, request)


@pytest.mark.parametrize("kind", KINDS)
def test_an_answer_depends_on_the_request_alone(kind: str) -> None:
    check(kind, 2 * len(EXACT + OTHERS))


@pytest.mark.slow
@pytest.mark.timeout(3000)
@pytest.mark.parametrize("kind", KINDS)
def test_200_answers_depend_on_their_requests_alone(kind: str) -> None:
    check(kind, 200)
