"""Uniform diffusion against enumerated chains, and its loops against plain dense passes."""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from tests.methods.enumerated import LENGTH, chi_square, enumerated_model, joint
from tests.tiny import VOCABULARY, assert_no_page_is_lost, tiny_config, tiny_engine, tiny_model

from anyorder.core.batch import dense_batch
from anyorder.core.errors import UserError
from anyorder.core.forward import MOST_NOISE
from anyorder.core.request import Completion, Request
from anyorder.engine.engine import Engine
from anyorder.model.loaded import LoadedModel
from anyorder.model.transformer import Transformer

JOINT = joint()
TEXTS = list(itertools.product(range(3), repeat=LENGTH))


@functools.cache
def clean_given_others(canvas: tuple[int, ...], level: float) -> torch.Tensor:
    """Log-probabilities [LENGTH, 3] of each clean token given the noisy tokens elsewhere: what the
    training objective is least for, told the level of noise."""
    fits = [(1 - level) * torch.eye(3, dtype=torch.float64)[noisy] + level / 3 for noisy in canvas]
    rows = [
        torch.einsum("ijk,j,k->i", JOINT, fits[1], fits[2]),
        torch.einsum("ijk,i,k->j", JOINT, fits[0], fits[2]),
        torch.einsum("ijk,i,j->k", JOINT, fits[0], fits[1]),
    ]
    return torch.stack([row / row.sum() for row in rows]).log()


def reverse_step(canvas: tuple[int, ...], before: float, after: float) -> torch.Tensor:
    """Probabilities [3, 3, 3] of the next canvas, as UDLM writes them: q(s | t) q(t) / normaliser
    with the predicted distribution in place of the clean token."""
    survived = (1 - before) / (1 - after)
    factors = []
    for place, token in enumerate(canvas):
        p = clean_given_others(canvas, before)[place].exp()
        line = torch.full((3,), (1 - survived) / 3, dtype=torch.float64)
        line[token] += survived
        line = line * ((1 - after) * p + after / 3)
        factors.append(line / line.sum())
    return torch.einsum("i,j,k->ijk", *factors)


def analytic_step(canvas: tuple[int, ...], before: float, after: float) -> torch.Tensor:
    """The same as SEDD writes it (arXiv 2310.16834, its theorem on Tweedie's formula): ratios of
    probabilities at this level, taken back by the noise's matrix exponential, times its transpose.
    """
    matrix = torch.full((3, 3), 1 / 3, dtype=torch.float64) - torch.eye(3, dtype=torch.float64)
    less = float(torch.tensor((1 - after) / (1 - before)).log())
    factors = []
    for place, token in enumerate(canvas):
        p = clean_given_others(canvas, before)[place].exp()
        noisy = (1 - before) * p + before / 3
        ratios = noisy / noisy[token]
        line = torch.linalg.matrix_exp(-less * matrix) @ ratios
        line = line * torch.linalg.matrix_exp(less * matrix)[token]
        factors.append(line / line.sum())
    return torch.einsum("i,j,k->ijk", *factors)


@pytest.mark.parametrize(("before", "after"), [(0.9, 0.6), (0.5, 0.4), (0.2, 0.0)])
def test_sedds_analytic_sampler_takes_the_same_steps(before: float, after: float) -> None:
    for text in TEXTS:
        expected = analytic_step(text, before, after)
        torch.testing.assert_close(reverse_step(text, before, after), expected)


Step = Callable[[tuple[int, ...], float, float], torch.Tensor]


def chain(steps: int, step: Step = reverse_step) -> torch.Tensor:
    """The distribution after so many steps, enumerated."""
    state = torch.full((3,) * LENGTH, 1 / 27, dtype=torch.float64)
    for number in range(steps):
        before, after = min(1 - number / steps, MOST_NOISE), 1 - (number + 1) / steps
        state = sum(
            (state[text] * step(text, before, after) for text in TEXTS),
            torch.zeros_like(state),
        )
    return state


def sample(
    steps: int,
    says: Callable[[tuple[int, ...], float], torch.Tensor] = clean_given_others,
    *,
    tells_ratios: bool = False,
    **fields: Any,
) -> list[list[int]]:
    """Texts of an engine whose network knows the level of noise: all runs go in step."""
    found: list[list[int]] = []
    for seed in range(2):
        model = enumerated_model(
            lambda canvas, number: says(canvas, min(1 - number / steps, MOST_NOISE)).float(),
            masks=False,
        )
        abilities = dataclasses.replace(model.abilities, tells_ratios=tells_ratios)
        engine = Engine(
            dataclasses.replace(model, abilities=abilities),
            cache_tokens=8192,
            max_batch_tokens=4096,
        )
        request = Request(
            **{
                "prompt": [0],
                "method": "uniform_diffusion",
                "max_new_tokens": LENGTH,
                "temperature": 1.0,
                "options": {"steps": steps},
                "n": 250,
                "seed": seed,
                **fields,
            }
        )
        completion = engine.generate(request)
        assert completion.report.num_forward_passes == steps
        found += [choice.tokens for choice in completion.choices]
        assert_no_page_is_lost(engine)
    return found


def test_the_enumerated_chain_ends_at_the_joint() -> None:
    few, many = (float((chain(steps) - JOINT).abs().sum() / 2) for steps in (2, 60))
    assert many < 0.02 < 0.05 < few


@pytest.mark.parametrize("steps", [1, 2, 4])
def test_texts_are_draws_from_the_chain(steps: int) -> None:
    texts = sample(steps)
    assert abs(chi_square(texts, chain(steps))) < 3
    assert chi_square(texts, torch.full_like(JOINT, 1 / 27)) > 8


def test_ratios_give_the_same_texts() -> None:
    """A network that tells how much likelier noisy tokens are than those that stand (SEDD), by
    steps as its paper writes them."""

    def ratios(canvas: tuple[int, ...], level: float) -> torch.Tensor:
        noisy = (1 - level) * clean_given_others(canvas, level).exp() + level / 3
        told = (noisy / noisy[range(LENGTH), canvas][:, None]).log()
        told[range(LENGTH), canvas] = 5.0  # not looked at
        return told

    texts = sample(4, ratios, tells_ratios=True)
    assert abs(chi_square(texts, chain(4, analytic_step))) < 3
    assert chi_square(texts, chain(1, analytic_step)) > 8
    assert chi_square(sample(4, ratios), chain(4, analytic_step)) > 8


def test_texts_become_draws_from_the_joint() -> None:
    assert abs(chi_square(sample(12), JOINT)) < 3
    assert chi_square(sample(1), JOINT) > 8


def test_a_canvas_keeps_its_tokens_and_gives_the_conditional() -> None:
    conditional = torch.zeros_like(JOINT)
    conditional[:, 2] = JOINT[:, 2] / JOINT[:, 2].sum()

    @functools.cache
    def told(canvas: tuple[int, ...], level: float) -> torch.Tensor:
        rows = clean_given_others(canvas, level).clone()
        for place, other in ((0, 2), (2, 0)):  # the second token is known to be clean
            fits = (1 - level) * torch.eye(3, dtype=torch.float64)[canvas[other]] + level / 3
            line = (conditional[:, 2] if place == 0 else conditional[:, 2].T) @ fits
            rows[place] = (line / line.sum()).log()
        return rows.float()

    steps = 10
    model = enumerated_model(lambda canvas, number: told(canvas, 1 - number / steps), masks=False)
    engine = Engine(model, cache_tokens=8192, max_batch_tokens=4096)
    completion = engine.generate(
        Request(
            prompt=[0],
            method="uniform_diffusion",
            canvas=[None, 2, None],
            temperature=1.0,
            n=200,
            options={"steps": steps},
        )
    )
    assert abs(chi_square([choice.tokens for choice in completion.choices], conditional)) < 3


# ----------------------------------------------------------------------------- against dense passes
@functools.cache
def two_way_model() -> LoadedModel:
    config = tiny_config(tied_embeddings=False)
    network = Transformer.random(config, seed=0, dtype=torch.float64, spread=0.4)
    abilities = dataclasses.replace(
        tiny_model(ends=False).abilities, attention=frozenset({"bidirectional"})
    )
    return LoadedModel(network=network, abilities=abilities)


def generate(**fields: Any) -> Completion:
    engine = tiny_engine(model=two_way_model())
    defaults = {"prompt": [5, 6], "method": "uniform_diffusion", "max_new_tokens": 10}
    completion = engine.generate(Request(**{**defaults, "history": True, **fields}))
    assert_no_page_is_lost(engine)
    return completion


def boards(completion: Completion) -> list[list[int]]:
    """What stood on the canvas after each pass, noise first."""
    board: dict[int, int | None] = {}
    found: dict[int, list[Any]] = {}
    for entry in completion.choices[0].history:
        board[entry.place] = entry.token
        found[entry.step] = [board[place] for place in sorted(board)]
    last = found[0]
    for step in range(completion.report.num_forward_passes + 1):
        last = found.setdefault(step, last)
    return [found[step] for step in sorted(found)]


def dense(board: list[int], *, first: int = 2) -> torch.Tensor:
    """Log-probabilities from the canvas's first place on, or from another, given all of it."""
    network: Any = two_way_model().network
    tokens = torch.tensor([[5, 6, *board]])
    length = tokens.shape[1]
    hidden = network.hidden(dense_batch(tokens, torch.ones(1, length, length, dtype=torch.bool)))
    return network.logits(hidden)[first:].log_softmax(-1)  # type: ignore[no-any-return]


def test_renoising_keeps_what_the_entropy_bound_allows() -> None:
    options = {"sampler": "renoise", "steps": 8, "commit": {"name": "entropy_bound", "bound": 4.0}}
    num_noisy, num_new = 0, 0
    for seed in range(3):
        completion = generate(seed=seed, options=options)
        history = boards(completion)
        assert len(history) == 9
        for number, (old, new) in enumerate(itertools.pairwise(history)):
            told = dense(old)
            entropies = -(told.exp() * told).sum(-1)
            order = entropies.argsort().tolist()
            before = entropies[order].cumsum(0) - entropies[order]
            count = max(int((before <= 4.0).sum()), 10 - int(10 * (7 - number) / 8 + 1e-9))
            best = told.argmax(-1).tolist()
            assert [new[place] for place in order[:count]] == [best[p] for p in order[:count]]
            num_noisy += len(order[count:])
            num_new += sum(new[p] not in (old[p], best[p]) for p in order[count:])
        assert completion.tokens == history[-1]
    assert num_noisy > 20 and num_new > 0.9 * num_noisy


def test_renoising_ends_when_nothing_changes() -> None:
    bound = {"name": "entropy_bound", "bound": 1e9}
    options = {"sampler": "renoise", "steps": 50, "commit": bound}
    for seed in range(5):
        model = enumerated_model(
            lambda canvas, _: clean_given_others(canvas, 0.8).float(), masks=False
        )
        completion = Engine(model, cache_tokens=256).generate(
            Request(
                prompt=[0],
                method="uniform_diffusion",
                max_new_tokens=LENGTH,
                seed=seed,
                options=options,
            )
        )
        assert completion.report.num_forward_passes < 20
        told = clean_given_others(tuple(completion.tokens), 0.8)
        assert completion.tokens == told.argmax(-1).tolist()


def test_noise_is_all_of_the_vocabulary_and_the_seeds() -> None:
    seen = [boards(generate(seed=seed, options={"steps": 1}))[0] for seed in range(40)]
    assert len({tuple(board) for board in seen}) == 40
    assert {token for board in seen for token in board} == set(range(VOCABULARY))


def test_it_suits_the_network() -> None:
    assert not generate(options={"steps": 1}).report.notes
    model = two_way_model()
    shifted = dataclasses.replace(model.abilities, token_shift=True, mask_token=7)
    engine = tiny_engine(model=dataclasses.replace(model, abilities=shifted))
    request = Request(
        prompt=[5, 6], method="uniform_diffusion", canvas=[None] * 9, options={"steps": 1}
    )
    completion = engine.generate(dataclasses.replace(request, history=True))
    (note,) = completion.report.notes
    assert note.startswith("tiny was trained to fill masks")
    told = dense(boards(completion)[0], first=1)
    told[:, 7] = -torch.inf
    assert completion.tokens == told[:9].argmax(-1).tolist()


def test_tokens_carry_the_models_probability() -> None:
    for seed in range(3):
        completion = generate(seed=seed, temperature=1.0, logprobs=2, options={"steps": 5})
        told = dense(boards(completion)[-2])
        expected = [float(told[place, token]) for place, token in enumerate(completion.tokens)]
        assert completion.logprobs == pytest.approx(expected, abs=1e-5)
        assert all(len(entry.alternatives) == 2 for entry in completion.choices[0].trace)


def test_bans_hold_where_tokens_are_placed_together() -> None:
    num_repeating = 0
    for sampler in ("ancestral", "renoise"):
        options = {"sampler": sampler, "steps": 4}
        for seed in range(4):
            free = generate(seed=seed, options=options, temperature=0.6).tokens
            num_repeating += len(set(free)) < len(free)
            kept = generate(seed=seed, options=options, temperature=0.6, no_repeat_ngram=1).tokens
            assert len(set(kept)) == len(kept)
    assert num_repeating


def test_it_can_be_told_to_keep_by_any_policy() -> None:
    for commit in ("confidence", "random", "threshold"):
        options = {"sampler": "renoise", "steps": 3, "commit": commit}
        assert len(generate(options=options).tokens) == 10
    with pytest.raises(UserError, match="unknown commit"):
        generate(options={"commit": "sometimes"})
