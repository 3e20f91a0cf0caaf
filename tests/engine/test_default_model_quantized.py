"""The default model with weights of 8 and 4 bits."""

from __future__ import annotations

import math
from importlib.resources import files

import pytest
import torch

from anyorder.core.request import Request
from anyorder.engine.engine import Engine
from anyorder.model.backends.quantized import QuantizedLinear
from anyorder.model.loaded import load

pytestmark = pytest.mark.weights
MODEL = "smollm2-135m-instruct"
TEXT = (files("anyorder.evaluation.benchmarks") / "text.txt").read_text("utf-8")[:6000]
"""Some 1,500 tokens of a novel: over fewer, rounding scatters by more than it costs."""


def test_its_file_has_4_bits_and_they_come_through_without_loss() -> None:
    plain, small = load(MODEL).network, load(MODEL, quantize="int4").network
    weights = dict(plain.named_parameters())  # type: ignore[attr-defined]
    compared = 0
    for name, module in small.named_modules():  # type: ignore[attr-defined]
        if isinstance(module, QuantizedLinear) and module.bits == 4:
            assert torch.equal(module.expanded(torch.float32), weights[f"{name}.weight"])
            compared += 1
    assert compared == 4 * 30


@pytest.mark.parametrize("quantize", ["int8", "int4"])
def test_a_texts_perplexity_hardly_changes(quantize: str) -> None:
    # Inputs that are rounded to 8 bits turn the last bit of a sum into noise: over a text of this
    # length it moves the mean by some 0.005 nats either way.
    bound = 0.01

    def loss(engine: Engine) -> float:
        logprobs = engine.score(TEXT).logprobs
        return -sum(logprobs) / len(logprobs)

    plain, small = loss(Engine(MODEL)), loss(Engine(MODEL, quantize=quantize))
    assert math.isclose(small, plain, abs_tol=bound) and small != plain


def test_texts_do_not_depend_on_company_in_4_bits() -> None:
    """Rows are equal bit by bit in passes of any size."""
    engine = Engine(MODEL, quantize="int4")
    prompts = ["The capital of France is", "Once upon a time", "def add(a, b):", "Water boils at"]
    requests = [
        Request(prompt=prompt, max_new_tokens=24, prefix_cache=False, method=method)
        for prompt in prompts
        for method in ("autoregressive", "speculative")
    ]
    alone = [engine.generate(request).tokens for request in requests]
    assert alone[::2] == alone[1::2]
    assert [answer.tokens for answer in engine.generate(requests)] == alone
