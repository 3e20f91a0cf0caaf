"""The samplers that diffusion models are published with, token for token.

Each is written here as its authors describe it, as a plain loop of dense passes over the twin of a
tiny checkpoint in the published layout, without any cache. What differs on purpose: the mask token
itself is never written, and no network is asked about places beyond the limit.
"""

from __future__ import annotations

import functools
import itertools
import tempfile
import zlib
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.model import published
from tests.model.published import MASK
from tests.tiny import assert_no_page_is_lost, tiny_engine

from anyorder.core.request import Completion, Request
from anyorder.model.loaded import LoadedModel
from anyorder.sampling.draws import uniform


@functools.cache
def model(name: str) -> LoadedModel:
    with tempfile.TemporaryDirectory() as folder:
        return published.load(name, Path(folder))


def generate(name: str, method: str, prompt: list[int], num_new: int, **fields: Any) -> Completion:
    engine = tiny_engine(model=model(name))
    completion = engine.generate(
        Request(prompt=prompt, method=method, max_new_tokens=num_new, ignore_end=True, **fields)
    )
    assert_no_page_is_lost(engine)
    return completion


def says(name: str, line: list[int], size: int | None = None) -> torch.Tensor:
    """Logits of the twin at every place, never for the mask; in blocks of `size`."""
    logits = published.twin(name, line, published.in_blocks(len(line), size) if size else None)
    logits[:, MASK] = -torch.inf
    return logits


def prompt_of(length: int) -> list[int]:
    return [3 + 7 * place % 50 for place in range(length)]


def shifted(logits: torch.Tensor) -> torch.Tensor:
    return torch.cat((logits[:1], logits[:-1]))


def schedule(count: int, steps: int) -> list[int]:
    """So many places in so many steps, the first steps one more."""
    return [count // steps + (step < count % steps) for step in range(steps)]


# ----------------------------------------------------------------------------------- whole canvases
def llada(
    name: str, prompt: list[int], num_new: int, steps: int, block: int, cfg: float = 0.0
) -> list[int]:
    """Low-confidence remasking in windows, each in its share of the steps."""
    line = prompt + [MASK] * num_new
    for start in range(len(prompt), len(line), block):
        for count in schedule(block, steps // (num_new // block)):
            logits = says(name, line)
            if cfg:
                free = says(name, [MASK] * len(prompt) + line[len(prompt) :])
                logits = free + (cfg + 1) * (logits - free)
                logits[:, MASK] = -torch.inf  # of which nothing can be taken
            confidence, tokens = logits.softmax(-1).max(-1)
            for place, token in enumerate(line):
                if token != MASK or not start <= place < start + block:
                    confidence[place] = -torch.inf
            for place in confidence.topk(count).indices.tolist():
                line[place] = int(tokens[place])
    return line[len(prompt) :]


@pytest.mark.parametrize("name", ["llada", "llada_moe"])
@pytest.mark.parametrize(("steps", "block"), [(12, 12), (6, 6), (5, 12), (8, 6)])
def test_llada(name: str, steps: int, block: int) -> None:
    prompt = prompt_of(5)
    options = {"window": block, "steps": steps * block // 12}
    completion = generate(name, "masked_diffusion", prompt, 12, options=options)
    assert completion.tokens == llada(name, prompt, 12, steps, block)
    assert completion.report.num_forward_passes == steps


@pytest.mark.parametrize("cfg", [0.5, 2.0])
def test_llada_with_guidance(cfg: float) -> None:
    prompt = prompt_of(6)
    completion = generate(
        "llada",
        "masked_diffusion",
        prompt,
        12,
        guidance_scale=cfg + 1,
        negative_prompt=[MASK] * 6,
        options={"window": 6, "steps": 3, "judge": "processed"},
    )
    assert completion.tokens == llada("llada", prompt, 12, 6, 6, cfg)


def dream(prompt: list[int], num_new: int, steps: int, alg: str) -> list[int]:
    """`diffusion_generate` at temperature 0."""
    line = prompt + [MASK] * num_new
    times = torch.linspace(1, 1e-3, steps + 1).tolist()
    for step, (t, s) in enumerate(itertools.pairwise(times)):
        probabilities = shifted(says("dream", line)).softmax(-1)
        best, tokens = probabilities.topk(2, -1)
        places = [place for place, token in enumerate(line) if token == MASK]
        if alg == "origin":
            for place in places:
                number = place - len(prompt)
                chance = uniform(0, 0, zlib.crc32(b"commit"), step, number)
                if chance < (1 - s / t if step < steps - 1 else 1):
                    line[place] = int(tokens[place, 0])
            continue
        if alg == "maskgit_plus":
            confidence = best[:, 0]
        elif alg == "topk_margin":
            confidence = best[:, 0] - best[:, 1]
        else:
            confidence = (probabilities * (probabilities + 1e-10).log()).sum(-1)
        count = int(len(places) * (1 - s / t)) if step < steps - 1 else len(places)
        places.sort(key=lambda place: -float(confidence[place]))
        for place in places[:count]:
            line[place] = int(tokens[place, 0])
    return line[len(prompt) :]


@pytest.mark.parametrize("steps", [3, 5, 12])
@pytest.mark.parametrize(
    ("alg", "commit"),
    [
        ("entropy", None),
        ("maskgit_plus", "confidence"),
        ("topk_margin", "margin"),
        ("origin", "ancestral"),
    ],
)
def test_dream(alg: str, commit: str | None, steps: int) -> None:
    prompt = prompt_of(5)
    options: dict[str, object] = {"steps": steps, "schedule": "late"}
    if commit is not None:
        options["commit"] = commit
    completion = generate("dream", "masked_diffusion", prompt, 12, options=options)
    assert completion.tokens == dream(prompt, 12, steps, alg)


def fast_dllm_v1(
    name: str, prompt: list[int], num_new: int, steps: int, block: int, cache: str
) -> list[int]:
    """Fast-dLLM's prefix and dual cache: a block's first pass sees everything afresh, and the
    others keep keys and values from it. With a shift, those of the token before the block too are
    made anew (the authors take the block's first token from the first pass instead)."""
    line = prompt + [MASK] * num_new
    shift = name == "dream"
    for start in range(len(prompt), len(line), block):
        memory: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
        stale: list[bool] | None = None
        for count in schedule(block, steps):
            logits = published.twin(name, line, memory=memory, stale=stale)
            logits[:, MASK] = -torch.inf
            confidence, tokens = (shifted(logits) if shift else logits).softmax(-1).max(-1)
            places = [place for place in range(start, start + block) if line[place] == MASK]
            places.sort(key=lambda place: -float(confidence[place]))
            for place in places[:count]:
                line[place] = int(tokens[place])
            stale = [
                place < start - shift or (cache == "dual" and place >= start + block)
                for place in range(len(line))
            ]
    return line[len(prompt) :]


@pytest.mark.parametrize("cache", ["prefix", "dual"])
@pytest.mark.parametrize("name", ["llada", "dream"])
@pytest.mark.parametrize(("block", "steps"), [(12, 12), (4, 4), (6, 3)])
def test_fast_dllm_v1(name: str, block: int, steps: int, cache: str) -> None:
    prompt = prompt_of(7)
    options = {"window": block, "steps": steps, "cache": cache, "commit": "confidence"}
    completion = generate(name, "masked_diffusion", prompt, 12, options=options)
    assert completion.tokens == fast_dllm_v1(name, prompt, 12, steps, block, cache)
    assert not completion.report.exact and f"cache={cache}" in completion.report.notes[0]


# ------------------------------------------------------------------------------------------ blocks
def in_blocks(
    name: str, prompt: list[int], num_new: int, size: int, steps: int, level: float
) -> list[int]:
    """SDAR's low_confidence_dynamic and LLaDA2's generate: blocks from the start of the prompt."""
    line = prompt + [MASK] * num_new
    for start in range(len(prompt) // size * size, len(line), size):
        for due in schedule(size, steps):
            places = [place for place in range(start, start + size) if line[place] == MASK]
            confidence, tokens = says(name, line[: start + size], size).softmax(-1).max(-1)
            places.sort(key=lambda place: -float(confidence[place]))
            high = [place for place in places if confidence[place] > level]
            for place in high if len(high) >= due else places[:due]:
                line[place] = int(tokens[place])
    return line[len(prompt) :]


@pytest.mark.parametrize("length", [3, 8])
@pytest.mark.parametrize(
    ("name", "size", "level"),
    [
        ("sdar", 4, None),
        ("sdar", 4, 0.1),
        ("sdar_moe", 8, 0.1),
        ("llada2_moe", 8, None),
        ("llada2_moe", 8, 0.2),
    ],
)
def test_blocks_without_a_shift(name: str, size: int, level: float | None, length: int) -> None:
    prompt, num_new = prompt_of(length), 24 - length
    options: dict[str, Any] = {"steps": size}
    if level is not None:
        options["commit"] = {"name": "threshold", "level": level}
    completion = generate(name, "block_diffusion", prompt, num_new, options=options)
    published_level = {"sdar": 0.85, "llada2_moe": 0.95}.get(name, 0.0)
    want = in_blocks(name, prompt, num_new, size, size, level or published_level)
    assert completion.tokens == want
    assert (completion.report.num_forward_passes < num_new) == (level is not None)


def fast_dllm(prompt: list[int], num_new: int, size: int, small: int, level: float) -> list[int]:
    """Fast-dLLM v2: a block's first token from the clean pass, then sub-blocks, with a shift."""
    line = prompt + [MASK] * num_new
    for start in range(len(prompt) // size * size, len(line), size):
        if line[start] == MASK:
            line[start] = int(says("fast_dllm_qwen", line[:start], size)[-1].argmax())
        for first in range(start, start + size, small):
            while MASK in line[first : first + small]:
                logits = shifted(says("fast_dllm_qwen", line[: start + size], size))
                confidence, tokens = logits.softmax(-1).max(-1)
                places = [place for place in range(first, first + small) if line[place] == MASK]
                best = max(places, key=lambda place: float(confidence[place]))
                for place in places:
                    if confidence[place] > level or place == best:
                        line[place] = int(tokens[place])
    return line[len(prompt) :]


@pytest.mark.parametrize("length", [3, 16, 19])
@pytest.mark.parametrize(("small", "level"), [(4, 0.2), (2, 0.15), (8, None)])
def test_fast_dllm(length: int, small: int, level: float | None) -> None:
    prompt, num_new = prompt_of(length), 32 - length
    options: dict[str, Any] = {"window": small}
    if level is not None:
        options["commit"] = {"name": "threshold", "level": level}
    completion = generate("fast_dllm_qwen", "block_diffusion", prompt, num_new, options=options)
    assert completion.tokens == fast_dllm(prompt, num_new, 8, small, level or 0.9)
