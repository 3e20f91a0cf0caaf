"""Policy gradients against the exact gradient of the expected reward, over all texts there are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tests.training.objectives.rollout_forms import all_texts
from tests.training.objectives.scripted import (
    PROMPT,
    REFERENCE,
    TEXTS,
    Gradients,
    Scripted,
    expected_gradients,
    logp,
    right,
    run,
    scripted,
)
from tests.training.objectives.toys import pack, repeat, tiniest_model, toy_model, words
from tests.training.runs import sections

from anyorder.core.errors import UserError
from anyorder.training.config import build_recipe, difference
from anyorder.training.objectives.next_token import NextToken
from anyorder.training.objectives.policy_gradient import PolicyGradient
from anyorder.training.rewards.length import Length


def pure(**options: Any) -> PolicyGradient:
    return PolicyGradient(**{"likelihood": 0.0, **options})


def gradients(value: torch.Tensor, model: Scripted) -> Gradients:
    return list(torch.autograd.grad(value, list(model.network.parameters())))


def exact(temperature: float, kl: float = 0.0) -> Gradients:
    """Of 1 less the expected reward, and the divergence from the teacher."""
    model = scripted(pure(), teacher=True)
    value = torch.zeros(())
    for text in TEXTS:
        ours = logp(model, text, temperature).sum()
        theirs = logp(model.teacher, text, temperature).sum()  # type: ignore[arg-type]
        value = value + ours.exp() * (1 - right(text) + kl * (ours - theirs))
    return gradients(value, model)


@pytest.mark.parametrize("temperature", [1.0, 1.6])
def test_rloo_is_unbiased(temperature: float) -> None:
    objective = pure(num_samples=2, temperature=temperature)
    found = expected_gradients(objective, 2, temperature=temperature)
    torch.testing.assert_close(found, exact(temperature), rtol=1e-4, atol=1e-6)


def test_rloo_with_a_divergence_is_unbiased() -> None:
    objective = pure(num_samples=2, kl=0.7)
    found = expected_gradients(objective, 2, teacher=True)
    torch.testing.assert_close(found, exact(1.0, kl=0.7), rtol=1e-4, atol=1e-6)


def test_self_critical_is_unbiased_and_compares_with_the_greedy_text() -> None:
    objective = pure(estimator="self_critical", num_samples=1)
    chances = all_texts(scripted(objective), PROMPT, 2)
    greedy = list(max(chances, key=chances.__getitem__))
    total: Gradients = []
    for text, chance in chances.items():
        model = scripted(objective, [list(text)], [greedy])
        found, gradient = run(objective, model)
        by_hand = -(right(text) - right(greedy)) * logp(model, text).sum()
        torch.testing.assert_close(gradient, gradients(by_hand, model))
        assert found.metrics["reward"] == pytest.approx(right(text))
        total = total or [torch.zeros_like(part) for part in gradient]
        total = [have + chance * new for have, new in zip(total, gradient, strict=True)]
    torch.testing.assert_close(total, exact(1.0), rtol=1e-4, atol=1e-6)


def test_the_greedy_baseline_is_asked_for_greedily() -> None:
    asked = []

    class Spy(Scripted):
        def generate(self, prompts: Any, **options: Any) -> list[list[int]]:
            asked.append((len(prompts), options["temperature"]))
            return super().generate(prompts, **options)

    objective = pure(estimator="self_critical", num_samples=2, temperature=1.4)
    model = scripted(objective)
    spy = Spy(network=model.network, abilities=model.abilities, script=[TEXTS[:2], [TEXTS[0]]])
    run(objective, spy)
    assert asked == [(2, 1.4), (1, 0.0)]


def test_minimum_risk_over_all_texts_is_the_expected_reward() -> None:
    objective = pure(estimator="minimum_risk", num_samples=4, sharpness=1.0)
    _, found = run(objective, scripted(objective, TEXTS))
    torch.testing.assert_close(found, exact(1.0), rtol=1e-4, atol=1e-6)


def test_minimum_risk_sharpens_and_counts_a_text_once() -> None:
    texts = [TEXTS[1], TEXTS[3], TEXTS[1]]
    objective = pure(estimator="minimum_risk", num_samples=3, sharpness=0.3)
    model = scripted(objective, texts)
    _, found = run(objective, model)
    chances = torch.stack([0.3 * logp(model, text).sum() for text in texts[:2]]).softmax(0)
    risk = -sum(chance * right(text) for chance, text in zip(chances, texts, strict=False))
    torch.testing.assert_close(found, gradients(torch.as_tensor(risk), model))


@pytest.mark.parametrize("kl", [0.0, 0.4])
@pytest.mark.parametrize("actor", ["model", "teacher"])
def test_grpo_is_its_formula(actor: str, kl: float) -> None:
    texts = [TEXTS[0], TEXTS[1], TEXTS[2], TEXTS[1]]
    objective = pure(estimator="grpo", num_samples=4, kl=kl, actor=actor, clip=0.05)
    model = scripted(objective, texts, teacher=True)
    teacher = model.teacher
    assert isinstance(teacher, type(tiniest_model(2, mask=False)))
    if actor == "teacher":
        speaker = scripted(objective, texts)
        model = Scripted(network=model.network, abilities=model.abilities, teacher=speaker)
        teacher = speaker
        with torch.no_grad():
            for parameter in model.network.parameters():
                parameter.mul_(1.05)
    _, found = run(objective, model)
    rewards = torch.tensor([right(text) for text in texts])
    total, clipped = torch.zeros(()), 0
    for text, reward in zip(texts, rewards, strict=True):
        advantage = (reward - rewards.mean()) / (rewards.std() + 1e-4)
        ours, theirs = logp(model, text), logp(teacher, text).detach()
        old = theirs if actor == "teacher" else ours.detach()
        for new, before, other in zip(ours, old, theirs, strict=True):
            ratio = (new - before).exp()
            gain = ratio * advantage
            if (advantage > 0 and ratio > 1.05) or (advantage < 0 and ratio < 0.95):
                gain, clipped = gain.detach(), clipped + 1
            apart = (other - new).exp() - (other - new) - 1
            total = total + (kl * apart - gain) / len(text) / len(texts)
    assert (clipped > 0) == (actor == "teacher")
    torch.testing.assert_close(found, gradients(total, model), rtol=1e-4, atol=1e-6)


def test_equal_rewards_teach_nothing() -> None:
    for estimator in ("rloo", "grpo"):
        objective = pure(estimator=estimator, num_samples=2)
        _, found = run(objective, scripted(objective, [TEXTS[1], TEXTS[1]]))
        assert not any(gradient.abs().max() > 1e-6 for gradient in found)


def test_value_and_metrics() -> None:
    objective = PolicyGradient(num_samples=2, likelihood=0.5)
    model = scripted(objective, [TEXTS[1], TEXTS[3]])
    found, gradient = run(objective, model)
    nats = -logp(model, REFERENCE).mean()
    assert found.weight == 1
    assert float(found.total.detach()) == pytest.approx(1 - 0.75 + 0.5 * float(nats.detach()))
    assert found.metrics["reward"] == pytest.approx(0.75)
    assert found.metrics["nats"] == pytest.approx(float(nats.detach()))
    assert found.metrics["length"] == 2
    _, alone = run(pure(num_samples=2), scripted(objective, [TEXTS[1], TEXTS[3]]))
    mixed = [one + 0.5 * two for one, two in zip(alone, gradients(nats, model), strict=True)]
    torch.testing.assert_close(gradient, mixed)


def test_the_cross_entropy_is_next_tokens() -> None:
    batch = pack([words(0, 9), words(1, 9)], given=[(0, place) for place in (0, 1, 9, 10)])
    found = PolicyGradient(likelihood=1.0).loss(toy_model(), batch, torch.Generator())
    expected = NextToken().loss(toy_model(), batch, torch.Generator())
    assert found.metrics["nats"] / 2 == pytest.approx(expected.metrics["nats"] / expected.weight)


def test_a_reward_is_learnt() -> None:
    model = toy_model(4, mask=False, spread=0.05)
    batch = repeat(pack([[1, 2, 0, 3]], given=[(0, 0)]), 4)
    optimizer = torch.optim.Adam(model.network.parameters(), lr=0.01)
    rng = torch.Generator().manual_seed(0)
    rewards = []
    for _ in range(60):
        found = pure(num_samples=8).loss(model, batch, rng)
        optimizer.zero_grad()
        (found.total / found.weight).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        rewards.append(found.metrics["reward"] / found.weight)
    assert rewards[0] < 0.5 and sum(rewards[-5:]) / 5 > 0.95


def test_a_batch_without_anything_to_write() -> None:
    model = toy_model()
    found = PolicyGradient().loss(model, pack([[5]]), torch.Generator())
    found.total.backward()  # type: ignore[no-untyped-call]
    assert found.weight == 0 and found.total == 0


def test_refused() -> None:
    with pytest.raises(UserError, match="num_samples must be at least 2, got 1"):
        PolicyGradient(num_samples=1)
    with pytest.raises(UserError, match="rloo learns from the model's own texts alone"):
        PolicyGradient(actor="teacher")


def test_a_teacher_is_asked_for_where_it_is_needed() -> None:
    for options in ({"kl": 0.1}, {"actor": "teacher", "estimator": "grpo"}):
        with pytest.raises(UserError, match=r"policy_gradient needs a teacher; add \[teacher\]"):
            build_recipe(sections({"objective": {"name": "policy_gradient", **options}}))
    assert not build_recipe(sections({"objective": {"name": "policy_gradient"}})).teacher


def test_recipes_name_their_reward(tmp_path: Path) -> None:
    def objective(reward: object) -> dict[str, Any]:
        fields = {"name": "policy_gradient", "reward": reward}
        return build_recipe(sections({"objective": fields}), folder=tmp_path).fields()

    fields = objective({"name": "length", "tokens": 7})
    assert fields["objective"]["reward"] == {"name": "length", "tokens": 7}
    recipe = build_recipe(fields)
    assert isinstance(recipe.objective, PolicyGradient)
    assert recipe.objective.reward == Length(tokens=7)
    assert recipe.fields() == fields
    differs = difference(objective("exact"), objective("tokens"))
    assert differs is not None and "[objective] reward" in differs
    with pytest.raises(UserError, match="did you mean 'length'"):
        objective("lenght")
