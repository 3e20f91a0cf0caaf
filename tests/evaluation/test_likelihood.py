"""Likelihoods: the chain rule is inference's, and bounds are those of the closed forms."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from tests.tiny import tiny_engine, tiny_model
from tests.training.objectives.closed_forms import closed_form
from tests.training.objectives.toys import ToyModel, pack, repeat, tiniest_model, toy_model, words

from anyorder.core.errors import UserError
from anyorder.evaluation.likelihood import (
    Likelihood,
    bound,
    chain_rule,
    likelihood,
    trained_with,
)
from anyorder.training.objectives.block_diffusion import BlockDiffusion
from anyorder.training.objectives.encoder_decoder import EncoderDecoder
from anyorder.training.objectives.masked_diffusion import MaskedDiffusion
from anyorder.training.objectives.next_token import NextToken
from anyorder.training.objectives.uniform_diffusion import UniformDiffusion


def test_the_chain_rule_is_what_the_engine_scores() -> None:
    loaded = tiny_model()
    model = ToyModel(network=loaded.network, abilities=loaded.abilities)  # type: ignore[arg-type]
    texts = [words(0, 12), words(1, 7), words(2, 30)]
    found = chain_rule(model, [pack(texts[:2], length=25), pack([texts[2]])])
    engine = tiny_engine()
    logprobs = [value for text in texts for value in engine.score(text).logprobs]
    assert found.num_tokens == len(logprobs) == 46
    assert found.nats == pytest.approx(-sum(logprobs) / 46, rel=1e-6)
    assert found.exact and found.standard_error == 0


@pytest.mark.parametrize(
    ("name", "given", "widest"),
    [
        ("masked_diffusion", MaskedDiffusion(min_noise=0.5), MaskedDiffusion(min_noise=0.0)),
        ("uniform_diffusion", UniformDiffusion(min_noise=0.3), UniformDiffusion(min_noise=1e-5)),
        (
            "block_diffusion",
            BlockDiffusion(block_size=2, min_noise=0.3, max_noise=0.6),
            BlockDiffusion(block_size=2, min_noise=0.0),
        ),
    ],
)
def test_bounds_agree_with_the_closed_forms_whatever_noise_was_trained_with(
    name: str, given: MaskedDiffusion, widest: MaskedDiffusion
) -> None:
    model = tiniest_model(2 + given.needs_mask_token, mask=given.needs_mask_token)
    document, targets = [1, 0, 0, 1, 1], [1, 2, 3, 4]
    batch = repeat(pack([document], given=[(0, 0)]), 400)
    found = bound(model, given, [batch, batch], num_draws=20)
    exact = closed_form(name, widest, model, document, targets) / 4
    assert found.num_tokens == 2 * 400 * 4 and not found.exact
    assert 0 < found.standard_error < 0.02 * exact
    assert abs(found.nats - exact) < 4 * found.standard_error
    assert found == bound(model, given, [batch, batch], num_draws=20)
    assert found.nats != bound(model, given, [batch, batch], num_draws=20, seed=1).nats


def test_the_standard_error_says_how_far_estimates_scatter() -> None:
    model = tiniest_model(3, mask=True)
    batch = repeat(pack([[1, 0, 0, 1, 1]]), 4)
    exact = closed_form(
        "masked_diffusion", MaskedDiffusion(min_noise=0.0), model, [1, 0, 0, 1, 1], [*range(5)]
    )
    found = [bound(model, MaskedDiffusion(), [batch], num_draws=8, seed=s) for s in range(40)]
    errors = [(one.nats - exact / 5) / one.standard_error for one in found]
    # Student's t with 7 degrees of freedom has the variance 7 / 5.
    assert 0.6 < sum(error**2 for error in errors) / 40 < 3.0


def test_a_bound_for_a_model_without_mask_token_is_refused() -> None:
    with pytest.raises(UserError, match="MaskedDiffusion needs a mask token"):
        bound(toy_model(mask=False), MaskedDiffusion(), [pack([[1, 2]])])


def test_what_cannot_be_estimated_is_refused() -> None:
    with pytest.raises(UserError, match="takes at least 2 draws of noise, got 1"):
        bound(toy_model(), MaskedDiffusion(), [pack([[1, 2]])], num_draws=1)
    with pytest.raises(UserError, match="the 1 batches have no token to predict"):
        chain_rule(toy_model(), [pack([[1], [2]])])


def test_units() -> None:
    found = Likelihood(nats=math.log(8), standard_error=0.0, num_tokens=1, exact=True)
    assert found.bits == pytest.approx(3) and found.perplexity == pytest.approx(8)


def test_what_a_model_can_do_says_how_its_likelihood_is_told() -> None:
    abilities = toy_model().abilities
    both_ways = replace(abilities, attention=frozenset({"bidirectional"}))
    expected = {
        abilities: NextToken(),
        replace(abilities, source_length=9): EncoderDecoder(),
        both_ways: MaskedDiffusion(),
        replace(both_ways, block_size=4): BlockDiffusion(block_size=4),
        replace(both_ways, mask_token=None): UniformDiffusion(),
    }
    assert {key: trained_with(key) for key in expected} == expected
    with pytest.raises(UserError, match="objective next_token tells that of plain text"):
        trained_with(replace(abilities, attention=frozenset({"causal", "bidirectional"})))
    with pytest.raises(UserError, match="measure it with --task translation"):
        trained_with(replace(both_ways, source_length=9))
    with pytest.raises(UserError, match="tells ratios of probabilities"):
        trained_with(replace(both_ways, mask_token=None, tells_ratios=True))


def test_progress_is_told_over_all_draws() -> None:
    told: list[tuple[int, int]] = []
    batches = [pack([[1, 2, 3]]), pack([[4, 5]])]
    found = likelihood(
        toy_model(),
        batches,
        MaskedDiffusion(),
        num_draws=3,
        progress=lambda stage, done, total: told.append((done, total)),
    )
    assert told == [(done, 6) for done in range(1, 7)] and not found.exact
    assert found == bound(toy_model(), MaskedDiffusion(), batches, num_draws=3)
    assert found.perplexity_error == pytest.approx(found.perplexity * found.standard_error)
