"""MDLM, BD3-LM and UDLM through the engine: what plain loops over the dense twin give."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.model import dit_twin
from tests.model.dit_twin import VOCABULARY
from tests.tiny import assert_no_page_is_lost

from anyorder.core.errors import UnsupportedMethod
from anyorder.core.request import Completion, Request
from anyorder.engine.engine import Engine
from anyorder.model.checkpoint import open_folder
from anyorder.model.loaded import LoadedModel, abilities_of
from anyorder.model.loading import load_network

MASK = VOCABULARY - 1
PROMPT = [7, 8, 9, 10, 11, 12]
LENGTH = 12
TENSORS = dit_twin.weights()


def engine(folder: Path, **fields: Any) -> Engine:
    return opened(dit_twin.save(folder, TENSORS, **fields))


def opened(folder: Path) -> Engine:
    config, source = open_folder(folder)
    network = load_network(config, source, dtype=torch.float32)
    model = LoadedModel(network=network, abilities=abilities_of("dit", config, None))
    return Engine(model, cache_tokens=512)


def generate(engine: Engine, **fields: Any) -> Completion:
    fields = {"prompt": PROMPT, "max_new_tokens": LENGTH, **fields}
    completion = engine.generate(Request(**fields))
    assert_no_page_is_lost(engine)
    return completion


def surest(logits: torch.Tensor, places: list[int]) -> tuple[int, int]:
    """The open place whose likeliest token is likeliest, and that token."""
    logits[:, MASK] = -torch.inf
    shares = logits.softmax(-1)
    place = max(places, key=lambda p: float(shares[p].max()))
    return place, int(shares[place].argmax())


@pytest.mark.parametrize("timed", [False, True])
def test_mdlm(timed: bool, tmp_path: Path) -> None:
    """Told of the share of masks if it looks at the noise, 0 otherwise."""
    text = [*PROMPT, *[MASK] * LENGTH]
    for number in range(LENGTH):
        share = min(1 - number / LENGTH, 0.999)
        sigma = -math.log(1 - share) if timed else 0.0
        logits = dit_twin.logits(TENSORS, text, sigma=sigma)
        place, token = surest(logits, [p for p, t in enumerate(text) if t == MASK])
        text[place] = token
    options = {"commit": "confidence", "steps": LENGTH}
    ours = generate(
        engine(tmp_path, model_type="mdlm", time_conditioning=timed),
        method="masked_diffusion",
        options=options,
    )
    assert ours.tokens == text[len(PROMPT) :]


def test_other_methods_tell_the_noise(tmp_path: Path) -> None:
    """The share of what is masked now."""
    first = dit_twin.logits(TENSORS, [*PROMPT, *[MASK] * 3], sigma=-math.log(0.001))[len(PROMPT) :]
    first[:, MASK] = -torch.inf
    board = first.argmax(-1).tolist()
    shares = first.softmax(-1).max(-1).values
    again = int(shares.argmin())
    line = [*PROMPT, *board]
    line[len(PROMPT) + again] = MASK
    last = dit_twin.logits(TENSORS, line, sigma=-math.log(2 / 3))[len(PROMPT) + again]
    last[MASK] = -torch.inf
    board[again] = int(last.argmax())
    model = engine(tmp_path, model_type="mdlm", time_conditioning=True)
    ours = generate(model, method="mask_predict", max_new_tokens=3, options={"iterations": 2})
    assert ours.tokens == board
    assert math.exp(ours.logprobs[again]) == pytest.approx(float(last.softmax(-1).max()), abs=1e-5)
    canvas = [None if place == again else token for place, token in enumerate(board)]
    told = generate(model, method="gibbs", max_new_tokens=None, canvas=canvas)
    assert told.logprobs[again] == pytest.approx(ours.logprobs[again], abs=1e-5)


def test_requests_of_one_pass_have_noise_of_their_own(tmp_path: Path) -> None:
    model = engine(tmp_path, model_type="mdlm", time_conditioning=True)
    common: dict[str, Any] = {"prompt": PROMPT, "max_new_tokens": LENGTH, "temperature": 1.0}
    requests = [
        Request(**common, method="masked_diffusion", options={"steps": 4, "commit": "confidence"}),
        Request(**common, method="block_diffusion", options={"block_size": 6}),
        Request(**common, method="gibbs", options={"burn_in": 0, "sweeps": 1}),
    ]
    alone = [model.generate(request) for request in requests]
    for one, other in zip(model.generate(requests), alone, strict=True):
        assert one.tokens == other.tokens
        assert one.logprobs == pytest.approx(other.logprobs, abs=1e-5)


def test_mdlm_decodes_ancestrally_by_itself(tmp_path: Path) -> None:
    """A thousand steps, of which those that change nothing need no pass."""
    model = engine(tmp_path, model_type="mdlm")
    completion = generate(model, method="masked_diffusion", temperature=1.0)
    assert completion.report.num_forward_passes <= LENGTH
    assert not completion.report.exact
    assert generate(model, method="gibbs", options={"sweeps": 1}).tokens


@pytest.mark.parametrize("block_size", [4, 8, 16])
def test_bd3lm(block_size: int, tmp_path: Path) -> None:
    """Each block as one pass over [noisy; clean] tells it; the clean ones come from the cache."""
    text = list(PROMPT)
    while len(text) < len(PROMPT) + LENGTH:
        end = min((len(text) // block_size + 1) * block_size, len(PROMPT) + LENGTH)
        whole = (len(text) // block_size + 1) * block_size
        text += [MASK] * (whole - len(text))
        while open_places := [p for p, t in enumerate(text[:end]) if t == MASK]:
            logits = dit_twin.block_logits(TENSORS, text, text, block_size)
            place, token = surest(logits, open_places)
            text[place] = token
        del text[end:]
    model = engine(tmp_path, model_type="bd3lm", block_size=block_size)
    options = {"commit": "confidence"}
    ours = generate(model, method="block_diffusion", options=options)
    assert ours.tokens == text[len(PROMPT) :]
    assert ours.report.num_forward_passes == LENGTH
    assert generate(model, method="block_diffusion", temperature=1.0).report.exact


@pytest.mark.parametrize("temperature", [0.0, 0.8])
@pytest.mark.parametrize("schedule", [{}, {"schedule": "linear"}])
def test_sedd_with_uniform_noise(
    schedule: dict[str, str], temperature: float, tmp_path: Path
) -> None:
    """What the twin's ratios say of the clean tokens in the last step; its level of noise is the
    geometric schedule's, unless told otherwise."""
    folder = dit_twin.save_sedd(tmp_path, TENSORS, graph="uniform", noise="geometric")
    model = opened(folder)
    steps = 2
    options = {"sampler": "renoise", "steps": steps, "commit": "confidence", **schedule}
    common: dict[str, Any] = {"method": "uniform_diffusion", "options": options, "logprobs": 3}
    completion = generate(model, **common, history=True, temperature=temperature)
    shown: dict[int, list[int | None]] = {}
    board: list[int | None] = [None] * LENGTH
    for entry in completion.choices[0].history:
        board[entry.place] = entry.token
        shown[entry.step] = list(board)
    *_, before, last = [shown[step] for step in sorted(shown)]
    level = math.log(2) if schedule else math.sqrt(20 * 1e-4)
    share = 1 - math.exp(-level)
    tokens = [*PROMPT, *(token for token in before if token is not None)]
    scores = dit_twin.logits(TENSORS, tokens, sigma=level).exp()
    scores[range(len(tokens)), tokens] = 1.0
    noisy = scores / scores.sum(-1, keepdim=True)
    clean = ((noisy - share / VOCABULARY) / (1 - share)).clamp(min=0)[len(PROMPT) :]
    clean = clean / clean.sum(-1, keepdim=True)
    if not temperature:
        assert clean.argmax(-1).tolist() == completion.tokens
    told = clean[range(LENGTH), completion.tokens].log()
    assert completion.logprobs == pytest.approx(told.tolist(), abs=1e-4)
    for entry, row in zip(completion.trace, clean, strict=True):
        assert [token for token, _ in entry.alternatives] == row.topk(3).indices.tolist()
    assert completion.tokens == last


def test_sedd_with_uniform_noise_decodes_as_its_authors_do(tmp_path: Path) -> None:
    folder = dit_twin.save_sedd(tmp_path, TENSORS, graph="uniform", noise="loglinear")
    model = opened(folder)
    with pytest.raises(UnsupportedMethod, match="mask token"):
        generate(model, method="masked_diffusion")
    completion = generate(model, method="uniform_diffusion", max_new_tokens=2, temperature=1.0)
    assert completion.report.num_forward_passes == 1024


def test_udlm(tmp_path: Path) -> None:
    """The whole canvas at once from random tokens: at each level, what the twin tells of it."""
    model = engine(tmp_path, model_type="udlm")
    with pytest.raises(UnsupportedMethod, match="mask token"):
        generate(model, method="gibbs")
    steps = 4
    options = {"sampler": "renoise", "steps": steps, "commit": "confidence"}
    completion = generate(
        model, method="uniform_diffusion", options=options, history=True, logprobs=1
    )
    shown: dict[int, list[int | None]] = {}
    board: list[int | None] = [None] * LENGTH
    for entry in completion.choices[0].history:
        board[entry.place] = entry.token
        shown[entry.step] = list(board)
    boards = [shown[step] for step in sorted(shown)]
    told = []
    for number, before in enumerate(boards[:-1]):
        share = min(1 - number / steps, 0.999)
        tokens = [*PROMPT, *(token for token in before if token is not None)]
        logits = dit_twin.logits(TENSORS, tokens, sigma=-math.log(1 - share))[len(PROMPT) :]
        told.append(logits.argmax(-1).tolist())
    assert told[-1] == completion.tokens
    for number, after in enumerate(boards[1:-1]):
        kept = [a == b for a, b in zip(after, told[number], strict=True)]
        assert sum(kept) >= LENGTH * (number + 1) // steps
