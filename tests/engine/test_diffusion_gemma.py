"""DiffusionGemma through the engine: the tokens of transformers' own generate, fed our noise."""

from __future__ import annotations

import dataclasses
import zlib
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.model.checkpoints import VOCABULARY, random_ids
from tests.model.diffusion_gemma import CANVAS, END, reference
from tests.tiny import assert_no_page_is_lost
from transformers.models.diffusion_gemma import generation_diffusion_gemma as theirs

from anyorder.core.errors import UnsupportedMethod, UserError
from anyorder.core.request import Completion, Request
from anyorder.engine.engine import Engine
from anyorder.model.checkpoint import open_folder
from anyorder.model.loaded import LoadedModel, abilities_of
from anyorder.model.loading import load_network
from anyorder.sampling.draws import uniform

PROMPT = random_ids(10).tolist()


def load(folder: Path, model: Any) -> Engine:
    model.save_pretrained(folder)
    config, source = open_folder(folder)
    network = load_network(config, source, dtype=torch.float32)
    loaded = LoadedModel(network=network, abilities=abilities_of("tiny", config, None))
    return Engine(loaded, cache_tokens=512)


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Engine:
    return load(tmp_path_factory.mktemp("diffusion_gemma"), reference())


def generate(engine: Engine, **fields: Any) -> Completion:
    fields = {"prompt": PROMPT, "method": "uniform_diffusion", "ignore_end": True, **fields}
    completion = engine.generate(Request(**fields))
    assert_no_page_is_lost(engine)
    return completion


def noise(step: int, places: range) -> list[int]:
    """What the method takes for random tokens with seed 0."""
    key = zlib.crc32(b"noise")
    return [int(uniform(0, 0, key, step, place) * VOCABULARY) for place in places]


@torch.inference_mode()
def generated(
    model: Any,
    monkeypatch: pytest.MonkeyPatch,
    num_canvases: int,
    bound: float,
    sure: float,
    steps: int,
) -> tuple[list[int], int]:
    """Their tokens, and how many passes over canvases they took."""
    at = {"canvas": -1, "step": -1, "passes": 0}
    prepare, step = model._prepare_denoiser_inputs, model._denoising_step

    def prepared(**inputs: Any) -> Any:
        at["canvas"], at["step"] = at["canvas"] + 1, -1
        return prepare(**inputs)

    def stepped(**inputs: Any) -> Any:
        at["passes"] += 1
        return step(**inputs)

    def canvas(self: Any, batch_size: int, device: object) -> torch.Tensor:
        first = at["canvas"] * CANVAS
        at["step"] += 1
        return torch.tensor([noise(at["step"] - 1, range(first, first + CANVAS))])

    monkeypatch.setattr(model, "_prepare_denoiser_inputs", prepared)
    monkeypatch.setattr(model, "_denoising_step", stepped)
    monkeypatch.setattr(theirs.EntropyBoundSampler, "initialize_canvas", canvas)
    likeliest = lambda shares, num_samples: shares.argmax(-1, keepdim=True)  # noqa: E731
    monkeypatch.setattr(torch, "multinomial", likeliest)
    options = theirs.DiffusionGemmaGenerationConfig(
        max_new_tokens=num_canvases * CANVAS,
        max_denoising_steps=steps,
        sampler_config=theirs.EntropyBoundSamplerConfig(entropy_bound=bound),
        t_min=0.4,
        t_max=0.8,
        stability_threshold=1,
        confidence_threshold=sure,
        eos_token_id=VOCABULARY + 1,
        pad_token_id=0,
    )
    output = model.generate(torch.tensor([PROMPT]), generation_config=options)
    return output.sequences[0, len(PROMPT) :].tolist(), at["passes"]


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
@pytest.mark.parametrize(
    ("bound", "sure", "steps"), [(0.1, 0.005, 5), (3.0, 0.005, 5), (100.0, 4.0, 5)]
)
def test_tokens_of_transformers(
    bound: float, sure: float, steps: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three canvases, each behind the text of those before; the last case ends canvases early."""
    model = reference(calm=sure > 1)
    engine = load(tmp_path, model)
    tokens, num_passes = generated(model, monkeypatch, 3, bound, sure, steps)
    options = {"steps": steps, "commit": {"name": "entropy_bound", "bound": bound}, "sure": sure}
    ours = generate(engine, max_new_tokens=3 * CANVAS, options=options)
    assert ours.tokens == tokens
    assert ours.report.num_forward_passes == num_passes + 3
    assert (num_passes < 3 * steps) == (sure > 1)
    short = generate(engine, max_new_tokens=CANVAS + 3, options=options)
    assert short.tokens == tokens[: CANVAS + 3]


def test_fixed_tokens_stay(engine: Engine) -> None:
    canvas = [5, None, None, 6, *[None] * CANVAS, 7, None]
    ours = generate(engine, canvas=canvas)
    assert len(ours.tokens) == len(canvas)
    assert all(token in (None, made) for token, made in zip(canvas, ours.tokens, strict=True))


def test_alone_and_beside_others(engine: Engine) -> None:
    requests = [
        Request(
            prompt=PROMPT[:length],
            method="uniform_diffusion",
            max_new_tokens=10,
            temperature=temperature,
            ignore_end=True,
            options={"steps": 4},
        )
        for length, temperature in ((10, 1.0), (3, 1.0), (7, 0.0))
    ]
    alone = [engine.generate(request).tokens for request in requests]
    assert [completion.tokens for completion in engine.generate(requests)] == alone
    role = engine.roles["target"]
    small = Engine(LoadedModel(network=role.network, abilities=role.abilities), cache_tokens=48)
    assert [completion.tokens for completion in small.generate(requests)] == alone
    assert_no_page_is_lost(small)


def test_draws_and_bans(engine: Engine) -> None:
    """Draws decide what stands in later passes; what is banned is never an answer."""
    options = {"steps": 3, "commit": {"name": "entropy_bound", "bound": 9.0}}
    texts = {
        tuple(generate(engine, max_new_tokens=8, temperature=2.0, seed=s, options=options).tokens)
        for s in range(3)
    }
    assert len(texts) > 1
    text = generate(engine, max_new_tokens=8, options=options).tokens
    bias = {token: -float("inf") for token in text}
    again = generate(engine, max_new_tokens=8, options=options, logit_bias=bias).tokens
    assert not set(again) & set(text)


def test_what_looks_at_neighbours_is_refused(engine: Engine) -> None:
    with pytest.raises(UserError, match="leave no_repeat_ngram out"):
        generate(engine, max_new_tokens=8, no_repeat_ngram=2)


def test_guidance_and_alternatives(engine: Engine) -> None:
    options = {"steps": 3}
    plain = generate(engine, max_new_tokens=8, options=options, logprobs=2)
    assert all(len(entry.alternatives) == 2 for entry in plain.choices[0].trace)
    fields = {"guidance_scale": 3.0, "negative_prompt": PROMPT[:4]}
    guided = generate(engine, max_new_tokens=8, options=options, **fields)
    assert guided.tokens != plain.tokens
    same = {"guidance_scale": 3.0, "negative_prompt": PROMPT}
    assert generate(engine, max_new_tokens=8, options=options, **same).tokens == plain.tokens


def test_an_end_token_ends_the_text(engine: Engine) -> None:
    bias = {END: 1e4}  # what the score with it would make of the probability is not told
    ours = generate(engine, max_new_tokens=20, ignore_end=False, logit_bias=bias)
    assert ours.tokens == [END] and ours.choices[0].finish_reason == "stop"
    assert ours.logprobs[0] <= 0


def test_options_of_other_networks_are_refused(engine: Engine) -> None:
    with pytest.raises(UnsupportedMethod, match="sampler=renoise"):
        generate(engine, max_new_tokens=4, options={"sampler": "ancestral"})
    role = engine.roles["target"]
    other = dataclasses.replace(role.abilities, canvas_length=0, decoding={})
    model = LoadedModel(network=role.network, abilities=other)
    with pytest.raises(UnsupportedMethod, match="no sure"):
        generate(Engine(model, cache_tokens=64), max_new_tokens=4, options={"sure": 0.1})
    for method in ("autoregressive", "gibbs"):
        with pytest.raises(UnsupportedMethod, match="uniform_diffusion"):
            generate(engine, method=method, max_new_tokens=4)
