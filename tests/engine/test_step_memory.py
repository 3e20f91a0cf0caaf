"""A step of decoding takes no memory that grows with the text before it."""

from __future__ import annotations

import dataclasses
import random
import shutil
import tracemalloc
from typing import Any

import pytest
import torch
from tests.tiny import VOCABULARY, tiny_config, tiny_model
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from anyorder.core.request import Request
from anyorder.engine.engine import Engine
from anyorder.model.backends import native
from anyorder.model.config import LayerConfig, Rope
from anyorder.model.loaded import LoadedModel
from anyorder.model.transformer import Transformer

SHORT, LONG = 200, 1900
"""Tokens of a prompt."""
ALLOWED = 4096
"""Bytes by which steps may differ. One number for each of the longer text's further tokens would be
13,600."""
needs_kernels = pytest.mark.skipif(
    native.library() is None and shutil.which("c++") is None,
    reason="torch gathers what the kernels read where it lies",
)


class Allocations(TorchDispatchMode):
    """Counts the bytes of tensors that are made."""

    def __init__(self) -> None:
        super().__init__()
        self.num_bytes = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        known = {place(leaf) for leaf in tree_leaves((args, kwargs)) if is_tensor(leaf)}
        for leaf in tree_leaves(out):
            if is_tensor(leaf) and place(leaf) not in known:
                self.num_bytes += leaf.nbytes
        return out


def is_tensor(thing: object) -> bool:
    return isinstance(thing, torch.Tensor)


def place(tensor: torch.Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def model(seed: int, **changes: Any) -> LoadedModel:
    """Of the smallest size that the kernels take, with a window in one of its layers."""
    layer = LayerConfig(rope=Rope(width=32), attention_scale=32**-0.5)
    config = tiny_config(
        width=32,
        head_width=32,
        num_heads=2,
        num_kv_heads=1,
        mlp_width=32,
        layers=(layer, dataclasses.replace(layer, window=40)),
        context_length=4096,
        **changes,
    )
    abilities = dataclasses.replace(
        tiny_model(ends=False).abilities,
        context_length=4096,
        attention=frozenset({"causal", "bidirectional"}),
        mask_token=VOCABULARY - 1,
        block_size=4,
    )
    network = Transformer.random(config, seed=seed, dtype=torch.float32)
    return LoadedModel(network=network, abilities=abilities)


def large_step(
    length: int, num: int, changes: dict[str, Any], request: dict[str, Any], num_steps: int = 64
) -> tuple[int, int]:
    """Bytes that Python and torch take at once in a step: the fourth largest of 64 steps. A page is
    full more often than that, while lists and tables that double grow once or never."""
    rng = random.Random(0)
    engine = Engine(
        model(0, norm=changes.get("norm", "rms")),
        draft=model(1),
        cache_tokens=16_000,
        max_batch_tokens=4096,
        cache_dtype=changes.get("cache_dtype"),
    )
    for _ in range(num):
        prompt = [rng.randrange(1, VOCABULARY - 1) for _ in range(length)]
        engine.submit(Request(prompt=prompt, max_new_tokens=640, ignore_end=True, **request))
    for _ in range(5):
        engine.tick()
    python, tensors = list[int](), list[int]()
    tracemalloc.start()
    try:
        for _ in range(num_steps):
            with Allocations() as allocations:
                before = tracemalloc.get_traced_memory()[0]
                tracemalloc.reset_peak()
                assert engine.tick()
                python.append(tracemalloc.get_traced_memory()[1] - before)
                tensors.append(allocations.num_bytes)
    finally:
        tracemalloc.stop()
    engine.close()
    return sorted(python)[-4], sorted(tensors)[-4]


@needs_kernels
@pytest.mark.parametrize(
    ("num", "changes", "request_fields"),
    [
        (1, {}, {"method": "autoregressive"}),
        (3, {}, {"method": "autoregressive"}),
        (2, {"cache_dtype": "int8"}, {"method": "autoregressive", "temperature": 1.0}),
        (2, {"norm": "layer"}, {"method": "autoregressive"}),
        (1, {}, {"method": "block_diffusion"}),
        (1, {}, {"method": "jacobi", "options": {"size": 4, "adaptive": False}}),
        (
            1,
            {},
            {
                "method": "speculative",
                "options": {
                    "drafter": {"name": "draft_model", "branches": "2,2"},
                    "adaptive": False,
                },
            },
        ),
    ],
    ids=["alone", "together", "8 bits", "layers by torch", "blocks", "guesses", "tree"],
)
def test_a_step_takes_no_memory_for_the_text_before_it(
    num: int, changes: dict[str, Any], request_fields: dict[str, Any]
) -> None:
    given = num, changes, request_fields
    large_step(SHORT, *given, num_steps=4)  # what is made once, is made here
    python, tensors = large_step(SHORT, *given)
    more_python, more_tensors = large_step(LONG, *given)
    assert more_python - python < ALLOWED
    assert more_tensors - tensors < ALLOWED
