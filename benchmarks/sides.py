"""What is compared: engines behind one call, `generate(prompts, num_new) -> tokens`.

A side lives in its own process (worker.py), so that neither engine's imports, thread settings or
memory touch the other's. Heavy libraries are imported when a side is opened, since the time from
the start of the process to the first token is one of the things measured.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

Generate = Callable[[list[list[int]], int], list[list[int]]]
"""Greedy tokens for prompts of equal length, exactly `num_new` each, end tokens included."""


@dataclass(frozen=True, kw_only=True)
class Side:
    """One engine in one setting."""

    name: str
    engine: str
    """Which opener below."""
    dtype: str
    attention: str = ""
    """transformers only: its attn_implementation."""
    rival: str = ""
    """Sides of one rival compete; each workload counts the best of them. Empty: anyorder."""


SIDES = (
    Side(name="anyorder float32", engine="anyorder", dtype="float32"),
    *(
        Side(
            name=f"transformers {dtype} {attention}",
            engine="transformers",
            dtype=dtype,
            attention=attention,
            rival=f"transformers {dtype}",
        )
        for dtype in ("float32", "bfloat16")
        for attention in ("sdpa", "eager")
    ),
)


def open_side(side: Side, *, model: str, folder: str) -> Generate:
    """Load the engine. `model` is what anyorder opens, `folder` the same weights as safetensors."""
    if side.engine == "anyorder":
        return _anyorder(model, side.dtype)
    return _transformers(folder, side.dtype, side.attention)


def _anyorder(model: str, dtype: str) -> Generate:
    import anyorder

    engine = anyorder.Engine(model, dtype=dtype)

    def generate(prompts: list[list[int]], num_new: int) -> list[list[int]]:
        requests = [
            anyorder.Request(prompt=prompt, max_new_tokens=num_new, ignore_end=True)
            for prompt in prompts
        ]
        return [completion.tokens for completion in engine.generate(requests)]

    return generate


def _transformers(folder: str, dtype: str, attention: str) -> Generate:
    import torch
    from transformers import AutoModelForCausalLM

    model: Any = AutoModelForCausalLM.from_pretrained(
        folder, dtype=dtype, attn_implementation=attention
    )
    model.generation_config.eos_token_id = None  # go on after end tokens, as the other side does
    model.generation_config.pad_token_id = 0

    def generate(prompts: list[list[int]], num_new: int) -> list[list[int]]:
        ids = torch.tensor(prompts)
        answer = model.generate(
            ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=num_new
        )
        tokens: list[list[int]] = answer[:, ids.shape[1] :].tolist()
        return tokens

    return generate
